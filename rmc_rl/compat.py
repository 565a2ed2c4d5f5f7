"""
Interfaces of dependencies that are not public, in one place.

A new version of a dependency may move or remove them. So each one is looked up when it is needed, and each one has a fallback
that keeps the program correct, although it may be slower or less convenient. ``tests/test_compat.py`` tests both.
"""

from typing import Any, TypeVar

F = TypeVar("F", bound=Any)


def torch_is_watching() -> bool:
    """
    Whether torch records or transforms the operations that run now, so that a kernel in C++ would escape its attention: the
    compiler, a tracer, a dispatch mode, a function transform, or forward-mode differentiation.

    :return: also True if this version of torch does not say
    """
    import torch

    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore
        return True
    try:
        return (
            torch.utils._python_dispatch._get_current_dispatch_mode() is not None
            or torch._C._functorch.peek_interpreter_stack() is not None
            or forward_mode_is_active() is not False
        )
    except (AttributeError, TypeError):
        return True


def forward_mode_is_active() -> bool | None:
    """
    Whether forward-mode differentiation is active: ``torch.autograd.forward_ad.dual_level`` or ``torch.func.jvp``.

    :return: None if this version of torch does not say
    """
    import torch

    level = getattr(torch.autograd.forward_ad, "_current_level", None)
    return None if level is None else bool(level >= 0)


def constant_for_compiler(function: F) -> F:
    """
    Decorator: torch.compile calls the function once and takes its result as a constant.

    It is ``torch.compiler.assume_constant_result`` without the import of the compiler, which takes seconds. If a version of
    torch does not know the mark, it traces the function.
    """
    function._dynamo_marked_constant = True
    return function
