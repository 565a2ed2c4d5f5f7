"""
The library of the C++ kernels for the CPU: finding it, loading it and looking up its functions.

``build.py`` builds the library. It has a plain C interface (ctypes), so one build works with all versions of torch and Python.
``calling.py`` calls the functions.
"""

import ctypes
import functools
import warnings
from ctypes import c_char_p, c_int
from pathlib import Path
from typing import Any

import torch

from rmc_rl.agents.cores.kernels.cpu import build

BUILD_COMMAND = "python -m rmc_rl.agents.cores.kernels.cpu.build"
# torch's name for the capability of the CPU -> instruction sets that run on it, best first
USABLE = {"AVX512": ("v4", "v3", "v1"), "AVX2": ("v3", "v1")}


@functools.cache
def load() -> ctypes.CDLL | str:
    """
    Load the best library for this CPU. Warns if there are libraries but none of them can be used.

    :return: the library, or the reason why there is none
    """
    paths = [build.library(name) for name in usable() if build.library(name).exists()]
    if not paths:
        return f"it was not built ({BUILD_COMMAND} builds it)"
    reasons = []
    for path in paths:
        library = _open(path)
        if not isinstance(library, str):
            return library
        reasons.append(library)
    warnings.warn(f"computing with eager torch: {'; '.join(reasons)}", stacklevel=2)
    return "; ".join(reasons)


def _open(path: Path) -> ctypes.CDLL | str:
    """A library, or the reason why it cannot be used."""
    try:
        library = ctypes.CDLL(str(path))
        library.rmc_rl_sources.restype = c_char_p
        sources = library.rmc_rl_sources().decode()
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded: {error}"
    if build.checksum() not in ("", sources):
        return f"{path.name} was built from other sources than those beside it ({BUILD_COMMAND} builds it again)"
    return library


def usable() -> tuple[str, ...]:
    """The instruction sets that this CPU supports, among those built for its architecture, best first."""
    names = tuple(build.instruction_sets())
    if "v1" not in names:
        return names
    # x86-64: an instruction that the CPU lacks would end the process
    return USABLE.get(torch.backends.cpu.get_cpu_capability(), ("v1",))


def why_not() -> str | None:
    """The reason why the C++ kernels are unavailable in this process; None if they are available."""
    library = load()
    return library if isinstance(library, str) else None


def about() -> str:
    """The language and the file of the library in use."""
    library = load()
    return f"C++, {'' if isinstance(library, str) else Path(library._name).name}"


@functools.cache
def function(name: str) -> Any:
    """
    Look up a function of the library, which returns a status.

    :param name: its name
    """
    library = load()
    assert isinstance(library, ctypes.CDLL)
    found = library[name]  # unlike an attribute of the library, a new object for each caller
    found.restype = c_int
    return found
