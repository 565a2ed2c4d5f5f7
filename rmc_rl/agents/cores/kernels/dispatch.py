"""
Fused kernels: code that computes the whole sequence of a core in one call. This module chooses the kernel to use.

A core with a kernel has an argument ``kernel``:

* "native": the fused kernel if there is one for the device, otherwise eager torch with a warning;
* "eager": plain torch, the reference;
* "auto": the fused kernel where its speed was measured (CPUs, and GPUs of NVIDIA's Hopper generation), otherwise eager torch
  without a warning.

All of them compute the same values, and a saved model does not depend on the choice.

A kernel belongs to a family of cores and a type of device. It is a module with three functions: ``why_not()`` says why it is
unavailable in this process, ``about()`` describes it, and ``unroll(core, ...)`` computes, or returns None if the kernel does
not support these tensors. ``cpu/rmc.py`` is the first one to read.
"""

import functools
import importlib
import threading
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from rmc_rl.compat import torch_is_watching
from rmc_rl.errors import require_choice

if TYPE_CHECKING:
    from rmc_rl.agents.cores.base import Core

T = TypeVar("T")

KERNELS = ("auto", "eager", "native")
# (family of cores, type of device) -> module of this package
MODULES = {
    ("rmc", "cpu"): "cpu.rmc",
    ("rmc", "cuda"): "triton.rmc",
    ("rnn", "cpu"): "cpu.rnn",
    ("rims", "cpu"): "cpu.rims",
}
TIMED_CAPABILITY = 9  # major number of the compute capability of the CUDA devices on which kernels were timed: an H100


class Decisions:
    """
    What was decided and prepared for cores at an earlier call, for many calls that each compute a short step::

        decisions = Decisions()
        for observation in rollout:
            with torch.no_grad(), decisions:
                policy(observation)

    Whether a kernel may compute a core (its class, methods, submodules and hooks) is looked at in the first call, and so are
    the places of its parameters. Values of parameters may change: torch counts changes in place, other than those through
    ``parameter.data``, which a kernel may notice only with new decisions.
    """

    def __init__(self) -> None:
        self.made: dict[Any, tuple[Any, list[tuple[int, int]]]] = {}

    def __enter__(self) -> None:
        self._outer, _active.decisions = _active.decisions, self

    def __exit__(self, *error: object) -> None:
        _active.decisions = self._outer


class _Active(threading.local):
    decisions: Decisions | None = None


_active = _Active()


def keep(key: Any, make: Callable[[], T], parameters: Iterable[Tensor] = ()) -> T:
    """
    Compute something, or take it from the active :class:`Decisions`. There are none while gradients are recorded.

    :param key: what it is, and of which core
    :param make: computes it
    :param parameters: what it depends on; it is computed again if one of them was moved or changed
    """
    if torch.compiler.is_compiling() or _active.decisions is None or torch.is_grad_enabled():
        return make()
    made = _active.decisions.made
    try:
        versions = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
    except RuntimeError:  # a tensor of inference mode has no version, and one of a function transform no memory
        return make()
    found = made.get(key)
    if found is None or found[1] != versions:
        found = made[key] = make(), versions
    return found[0]


def find(core: "Core", inputs: Tensor, state: Tensor) -> ModuleType | None:
    """
    Find the fused kernel that computes a core.

    :param core: the core
    :param inputs: what it reads
    :param state: the state before it
    :return: the kernel's module. None means eager torch: under :meth:`Core.inspect` and autocast; while torch traces or
        transforms the operations, see :func:`rmc_rl.compat.torch_is_watching`; for a core that :meth:`Core.is_modified`; and
        for one without :meth:`Core.has_plain_modules`
    """
    device = inputs.device.type
    kernel = keep((core, core.kernel, device), lambda: _find_for(core, device))
    if kernel is None or core._looks is not None or torch.is_autocast_enabled(device):
        return None
    plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in (inputs, state))  # their memory can be read
    return kernel if plain else None


def _find_for(core: "Core", device: str) -> ModuleType | None:
    if torch_is_watching():
        return None
    kernel = fused(core.kernel, core.kernel_family, device)
    return None if kernel is None or core.is_modified() or not core.has_plain_modules() else kernel


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
    if kernel == "auto" and (family, device) in MODULES and not _was_timed(device):
        return f"the kernel for {device} was not timed on such a device; kernel=native uses it"
    return _find(family, device)


@functools.cache
def _was_timed(device: str) -> bool:
    """Whether kernels for a type of device were timed on what this machine has of it."""
    if device != "cuda":
        return True
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == TIMED_CAPABILITY


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
