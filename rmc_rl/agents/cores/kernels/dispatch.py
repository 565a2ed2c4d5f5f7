"""
Fused kernels: code that computes the whole sequence of a core in one call. This module chooses the kernel to use.

A core with a kernel has an argument ``kernel``:

* "native": the fused kernel if there is one for the device, otherwise eager torch with a warning;
* "eager": plain torch, the reference;
* "auto": the fused kernel where its speed was measured (the CPU), otherwise eager torch without a warning.

All of them compute the same values, and a saved model does not depend on the choice.

A kernel belongs to a family of cores and a type of device. It is a module with three functions: ``why_not()`` says why it is
unavailable in this process, ``about()`` describes it, and ``unroll(core, ...)`` computes, or returns None if the kernel does
not support these tensors. ``cpu/rmc.py`` is the first one to read.
"""

import functools
import importlib
import warnings
from types import ModuleType

import torch

from rmc_rl.errors import require_choice

KERNELS = ("auto", "eager", "native")
# (family of cores, type of device) -> module of this package
MODULES = {
    ("rmc", "cpu"): "cpu.rmc",
    ("rmc", "cuda"): "triton.rmc",
    ("rnn", "cpu"): "cpu.rnn",
    ("rims", "cpu"): "cpu.rims",
}
# types of device on which the kernels were timed, so that "auto" uses them
TIMED = ("cpu",)


def check_kernel(kernel: str) -> None:
    """
    Check the argument ``kernel`` of a core.

    :param kernel: the argument
    :raises UsageError: unless it is "auto", "eager" or "native"
    """
    require_choice("kernel", kernel, KERNELS)


def fused(kernel: str, family: str, device: str) -> ModuleType | None:
    """
    Find the fused kernel. Warns once for each reason if ``kernel`` is "native" and there is none.

    :param kernel: the argument of a core
    :param family: the family of the core, the first part of a key of ``MODULES``
    :param device: type of device, as in ``tensor.device.type``
    :return: the kernel's module, or None for eager torch
    """
    found = _choose(kernel, family, device)
    if isinstance(found, str):
        if kernel == "native":
            _warn(found)
        return None
    return found


def report(kernel: str, family: str, device: str) -> str:
    """
    Describe in one line which kernel is used and why.

    :param kernel: the argument of a core
    :param family: the family of the core, the first part of a key of ``MODULES``
    :param device: type of device, as in ``tensor.device.type``
    """
    found = _choose(kernel, family, device)
    return f"eager ({found})" if isinstance(found, str) else f"native ({found.about()})"


def refuse_second_derivatives() -> None:
    """
    Called by the backward pass of a kernel, which autograd cannot differentiate.

    :raises RuntimeError: if a second derivative was requested with ``create_graph=True``
    """
    if torch.is_grad_enabled():
        raise RuntimeError("a fused kernel has no second derivatives, which create_graph=True requests: use kernel='eager'")


def _choose(kernel: str, family: str, device: str) -> ModuleType | str:
    """The kernel's module, or the reason for eager torch."""
    if kernel == "eager":
        return "as requested"
    if kernel == "auto" and (family, device) in MODULES and device not in TIMED:
        return f"the kernel for {device} was not timed; kernel=native uses it"
    return _find(family, device)


@functools.cache
def _find(family: str, device: str) -> ModuleType | str:
    """The module for a family and a type of device, or the reason why there is none."""
    if (family, device) not in MODULES:
        return f"there is no native kernel for {device}"
    module = importlib.import_module(f"{__package__}.{MODULES[family, device]}")
    reason = module.why_not()
    return module if reason is None else f"no native kernel: {reason}"


@functools.cache
def _warn(reason: str) -> None:
    """Warn once for each reason."""
    warnings.warn(f"kernel=native is unavailable: {reason}. Eager torch computes the same values", stacklevel=2)
