"""
Arguments of RIMs and BRIMs: one dataclass for each core, which holds names, types, defaults, documentation and rules.

:func:`arguments_from` makes the fields of such a dataclass the arguments of a core's constructor. So ``help(RIMs)``,
``inspect.signature(RIMs)`` and editors show what stands here, and nothing is listed twice.

Shapes: ``F`` features read per step, ``K`` modules of a layer, ``k`` active modules, ``s`` size of a module, ``E`` size of the
embedding.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar

from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.layers import INITIAL_STATES
from rmc_rl.errors import require, require_choice, require_number, require_truth, require_whole

VARIANTS = ("official", "atari", "dido")
CELLS = ("lstm", "gru")

P = ParamSpec("P")
Arguments = TypeVar("Arguments")


@dataclass(frozen=True, kw_only=True)
class ModuleArguments:
    """
    Arguments that RIMs and BRIMs share.

    :param cell: "lstm" or "gru"
    :param variant: the published code to equal: "official" (the authors' supervised code), "atari" (their
        reinforcement-learning code: no null row, modules compete by a softmax over modules) or "dido" (a port: keys and values
        with biases, active modules by raw score, communication without a gate)
    :param input_heads: heads of the input attention
    :param input_key_size: size of its keys per head
    :param read_size: numbers that a module reads per step, all heads together ("dido": their mean); None: ``4 s``
    :param comm_heads: heads of the attention between modules; 0: modules do not communicate
    :param comm_key_size: size of its keys per head
    :param comm_value_size: size of its values per head
    :param input_copies: number of rows that hold the input, each with its own keys and values
    :param embedding_size: ``E``, width of a linear layer between input and modules; 0: no such layer
    :param initial_state: "learned" or "zeros"
    :param dropout: fraction of the attention weights set to 0 in training mode
    :param kernel: "auto", "eager" or "native": how the core is computed, see :mod:`rmc_rl.agents.cores.kernels.dispatch`
    :raises UsageError: if a value breaks a rule
    """

    cell: str = "lstm"
    variant: str = "official"
    input_heads: int = 4
    input_key_size: int = 16
    read_size: int | None = None
    comm_heads: int = 4
    comm_key_size: int = 16
    comm_value_size: int = 16
    input_copies: int = 1
    embedding_size: int = 64
    initial_state: str = "learned"
    dropout: float = 0.0
    kernel: str = "auto"

    def __post_init__(self) -> None:
        self._require_whole("input_heads", "input_key_size", "comm_key_size", "comm_value_size", "input_copies")
        self._require_whole("comm_heads", "embedding_size", at_least=0)
        if self.read_size is not None:
            self._require_whole("read_size")
        require_choice("cell", self.cell, CELLS)
        require_choice("variant", self.variant, VARIANTS)
        require_choice("initial_state", self.initial_state, INITIAL_STATES)
        object.__setattr__(self, "dropout", require_number("dropout", self.dropout, at_least=0, below=1))
        dispatch.check_kernel(self.kernel)
        one_row = self.variant == "official" or self.input_copies == 1
        require(one_row, f"variant '{self.variant}' needs input_copies 1", self.input_copies)

    def _require_whole(self, *names: str, at_least: int = 1) -> None:
        """Check sizes, and keep each as Python's int: NumPy's integers do not fit all of torch."""
        for name in names:
            object.__setattr__(self, name, require_whole(name, getattr(self, name), at_least))

    def layer(self, num_modules: int, num_active: int, module_size: int) -> "LayerArguments":
        """
        Arguments of one layer of modules.

        :param num_modules: ``K``
        :param num_active: ``k``
        :param module_size: ``s``
        :raises UsageError: if the layer breaks a rule
        """
        shared: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(ModuleArguments)}
        if self.read_size is None:
            shared["read_size"] = 4 * require_whole("module_size", module_size)
        return LayerArguments(num_modules=num_modules, num_active=num_active, module_size=module_size, **shared)


@dataclass(frozen=True, kw_only=True)
class LayerArguments(ModuleArguments):
    """
    Arguments of one layer of modules; no size is left open.

    :param num_modules: ``K``
    :param num_active: ``k``
    :param module_size: ``s``
    :param read_size: numbers that a module reads per step
    """

    num_modules: int
    num_active: int
    module_size: int
    read_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_whole("num_modules", "num_active", "module_size")
        few = self.num_active <= self.num_modules
        require(few, f"num_active must be at most num_modules, {self.num_modules}", self.num_active)
        divides = self.variant == "dido" or self.read_size % self.input_heads == 0
        rule = f"input_heads must divide the {self.read_size} numbers that a module reads (read_size)"
        require(divides, rule, self.input_heads)

    @property
    def width(self) -> int:
        """Numbers in ``h`` of all modules, ``K s``."""
        return self.num_modules * self.module_size

    @property
    def state_size(self) -> int:
        """Numbers in the state of all modules: ``h``, and ``c`` of an LSTM."""
        return self.width * (2 if self.cell == "lstm" else 1)


@dataclass(frozen=True)
class RIMsArguments(ModuleArguments):
    """
    Arguments of RIMs.

    :param num_modules: ``K``, number of modules
    :param num_active: ``k``, number of modules that are active at each step
    :param module_size: ``s``, size of a module
    """

    num_modules: int = 6
    num_active: int = 4
    module_size: int = 16
    _: KW_ONLY
    input_heads: int = 1
    input_key_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers()  # checks the layer

    def layers(self) -> list[LayerArguments]:
        """Arguments of the one layer."""
        return [self.layer(self.num_modules, self.num_active, self.module_size)]


@dataclass(frozen=True)
class BRIMsArguments(ModuleArguments):
    """
    Arguments of BRIMs.

    :param num_modules: ``K`` of each layer, from the bottom up
    :param num_active: ``k`` of each layer, number of modules that are active at each step
    :param module_size: ``s`` of each layer
    :param top_down: whether the first layer reads the state of the last layer at the previous step
    :param use_inactive: whether a layer passes the states of all its modules up, or zeros for inactive modules
    :param blocked_grad: whether the layer above sends no gradient into inactive modules
    """

    num_modules: Sequence[int] = (6, 3)
    num_active: Sequence[int] = (4, 2)
    module_size: Sequence[int] = (16, 32)
    top_down: bool = True
    use_inactive: bool = True
    blocked_grad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_modules", "num_active", "module_size"):
            values = getattr(self, name)
            is_list = isinstance(values, list | tuple) and len(values) > 0
            require(is_list, f"{name} must be a list, one number for each layer", values)
            count = len(self.num_modules)
            require(len(values) == count, f"{name} must have {count} numbers, as num_modules has", values)
            object.__setattr__(self, name, tuple(require_whole(f"each number in {name}", value) for value in values))
        for name in ("top_down", "use_inactive", "blocked_grad"):
            require_truth(name, getattr(self, name))
        no_other_row = self.variant == "official" or not self.top_down
        require(no_other_row, f"variant '{self.variant}' needs top_down false", self.top_down)
        self.layers()  # checks each layer

    def layers(self) -> list[LayerArguments]:
        """Arguments of each layer, from the bottom up."""
        return [self.layer(*sizes) for sizes in zip(self.num_modules, self.num_active, self.module_size, strict=True)]


def arguments_from(
    arguments: Callable[P, Arguments],
) -> Callable[[Callable[[Any, int, Arguments], None]], Callable[Concatenate[Any, int, P], None]]:
    """
    Decorator of a core's constructor: makes the fields of a dataclass its arguments.

    :param arguments: the dataclass
    :return: from ``__init__(self, input_size, arguments)`` the constructor ``__init__(self, input_size, <fields>)``, whose
        signature has the fields with their types and defaults and whose docstring documents them
    """

    def decorate(init: Callable[[Any, int, Arguments], None]) -> Callable[Concatenate[Any, int, P], None]:
        def with_fields(self: Any, input_size: int, *args: P.args, **kwargs: P.kwargs) -> None:
            init(self, input_size, arguments(*args, **kwargs))

        *own, _ = inspect.signature(init).parameters.values()
        signature = inspect.Signature([*own, *inspect.signature(arguments).parameters.values()], return_annotation=None)
        update_wrapper(with_fields, init)
        with_fields.__signature__ = signature  # type: ignore[attr-defined]
        documents = [init.__doc__, *(cls.__doc__ for cls in getattr(arguments, "__mro__", ()))]
        parameters = [inspect.cleandoc(document or "").partition(":param") for document in documents]
        with_fields.__doc__ = "\n".join(":param" + rest for _, found, rest in parameters if found)
        return with_fields  # type: ignore[return-value]  # Concatenate cannot name its arguments

    return decorate
