"""
Interfaces of dependencies that are not public, in one place.

A new version of a dependency may move or remove them. So each one is looked up when it is needed, and each one has a fallback
that keeps the program correct, although it may be slower or less convenient. ``tests/test_compat.py`` tests both.
"""

import importlib
from typing import Any


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16, as far as torch can tell; True if it cannot tell."""
    torch: Any = importlib.import_module("torch")
    try:  # torch 2.9 and newer
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:
        try:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        except (AttributeError, RuntimeError):
            return True
    if capabilities.get("architecture") != "x86_64":
        return True
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def wrap_env(algorithm: Any, env: Any, verbose: int = 0) -> Any:
    """
    An environment as SB3's algorithms train in it: vectorised, with the channels of images first.

    :param algorithm: a class of SB3
    :param env: an environment, vectorised or not
    :param verbose: whether SB3 says what it wraps
    """
    return algorithm._wrap_env(env, verbose)


def torch_is_watching() -> bool:
    """
    Whether torch records or transforms the operations that run now, so that a kernel in C++ would escape its attention: the
    compiler, a tracer, a dispatch mode, a function transform, or forward-mode differentiation.

    :return: also True if this version of torch does not say
    """
    torch: Any = importlib.import_module("torch")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
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
    torch: Any = importlib.import_module("torch")
    level = getattr(torch.autograd.forward_ad, "_current_level", None)
    return None if level is None else bool(level >= 0)
