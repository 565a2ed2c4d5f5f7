"""
Interfaces of dependencies that are not public, in one place.

A new version of a dependency may move or remove them. So each is looked up when it is needed, and each has a fallback that
keeps the program correct, if slower or less convenient. ``tests/test_compat.py`` holds both.
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
