"""Cores by name: register a class, find it, and build a core."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from rmc_rl.agents.cores.base import Core
from rmc_rl.errors import UsageError, check_keywords, require_whole, unknown

CoreType = TypeVar("CoreType", bound=type[Core])

_CORES: dict[str, type[Core]] = {}


def register_core(name: str) -> Callable[[CoreType], CoreType]:
    """
    Class decorator that registers a core under a name, as used in ``policy_kwargs=dict(core="rmc")``.

    :param name: the name
    :raises UsageError: if another class has the name
    """

    def register(core: CoreType) -> CoreType:
        known = _CORES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (core.__module__, core.__qualname__):
            raise UsageError(f"a core's name must be new, got '{name}', which is {known.__module__}.{known.__qualname__}")
        _CORES[name] = core
        return core

    return register


def core_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_CORES)


def core_class(core: str | type[Core]) -> type[Core]:
    """
    Find a core's class.

    :param core: a registered name; ``"module:name"``, for a name that importing the module registers; or a subclass of
        :class:`Core`
    :raises UsageError: if the name is unknown, the module cannot be imported, or ``core`` is not a core
    """
    if isinstance(core, str):
        module, _, name = core.rpartition(":")
        if module:
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever a user's module raises
                rule = f"the module of core '{core}' must be one that can be imported"
                raise UsageError(f"{rule}: {type(error).__name__}: {error}") from error
        if name not in _CORES:
            if module:
                raise unknown(f"core of module {module}", name, _CORES)
            hint = f"if a module of yours registers it, import that module first or name it 'module:{name}'"
            raise UsageError(f"{unknown('core', name, _CORES)} ({hint})")
        return _CORES[name]
    if not (isinstance(core, type) and issubclass(core, Core)):
        raise UsageError(f"core must be a registered name or a subclass of Core, got {core!r}")
    return core


def make_core(core: str | type[Core], input_size: int, kwargs: dict[str, Any] | None = None) -> Core:
    """
    Build a core.

    :param core: see :func:`core_class`
    :param input_size: ``F``, features read per step; an integer of NumPy becomes Python's int
    :param kwargs: the core's own arguments
    :raises UsageError: if a name or an argument is unknown, or a value breaks a rule of the core
    """
    cls, kwargs = core_class(core), dict(kwargs or {})
    check_keywords(f"argument of core {cls.__name__}", cls, kwargs, given=("input_size",))
    return cls(require_whole("input_size", input_size), **kwargs)
