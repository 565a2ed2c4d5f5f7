"""
Fused kernels: a core's whole sequence in one call, and which of them is in use.

A core with a kernel takes ``kernel``: "native" (the fused one where there is one for the device, else eager, with a warning),
"eager" (plain torch, the reference) or "auto" (on the CPU as "native", without the warning; else eager, for the kernel for
NVIDIA GPUs was compiled for them but has not run on one yet). All compute the same, and a saved model does not depend on it.

A kernel is for a family of cores on a type of device: a module with ``why_not()``, ``about()`` and ``unroll(core, ...)``, that
returns None where it does not take these tensors. ``cpu/rmc.py`` is one to begin with.
"""

import functools
import importlib
import warnings
from types import ModuleType

import torch

from rmc_rl.errors import require_choice

KERNELS = ("auto", "eager", "native")
# family of cores, type of device -> module of this package with the kernel
MODULES = {
    ("rmc", "cpu"): "cpu.rmc",
    ("rmc", "cuda"): "triton.rmc",
    ("rnn", "cpu"): "cpu.rnn",
    ("modules", "cpu"): "cpu.rims",
}
# where "auto" takes it: where it was timed
TIMED = ("cpu",)


def check_kernel(kernel: str) -> None:
    """
    :param kernel: a core's argument
    :raises UsageError: for another value than those of the module's first lines
    """
    require_choice("kernel", kernel, KERNELS)


def fused(kernel: str, family: str, device: str) -> ModuleType | None:
    """
    The module to compute with.

    :param kernel: a core's argument
    :param family: of cores, the first part of a key of ``MODULES``
    :param device: type of device, as in ``tensor.device.type``
    :return: the kernel's module; None: eager
    """
    found = _choose(kernel, family, device)
    if isinstance(found, str):
        if kernel == "native":
            _warn(found)
        return None
    return found


def report(kernel: str, family: str, device: str) -> str:
    """
    Which kernel is in use and why, in a line for people.

    :param kernel: a core's argument
    :param family: of cores, the first part of a key of ``MODULES``
    :param device: type of device
    """
    found = _choose(kernel, family, device)
    return f"eager ({found})" if isinstance(found, str) else f"native ({found.about()})"


def _choose(kernel: str, family: str, device: str) -> ModuleType | str:
    """The module to compute with, or in words why it is eager torch."""
    if kernel == "eager":
        return "it was asked for"
    if kernel == "auto" and (family, device) in MODULES and device not in TIMED:
        return f"kernel=native would take one for {device} that was not timed yet"
    return _find(family, device)


def refuse_second_derivatives() -> None:
    """
    For the way back of a kernel, which autograd cannot follow.

    :raises RuntimeError: where it is asked to, by ``create_graph=True``
    """
    if torch.is_grad_enabled():
        raise RuntimeError("a fused kernel has no second derivatives, which create_graph=True asks for: use kernel='eager'")


@functools.cache
def _find(family: str, device: str) -> ModuleType | str:
    """The module for a family and a device, or in words why there is none."""
    if (family, device) not in MODULES:
        return f"there is no native kernel for {device}"
    module = importlib.import_module(f"{__package__}.{MODULES[family, device]}")
    reason = module.why_not()
    return module if reason is None else f"no native kernel: {reason}"


@functools.cache
def _warn(reason: str) -> None:
    """Once for each reason."""
    warnings.warn(f"kernel=native is not to be had, computing the same with eager torch: {reason}", stacklevel=2)
