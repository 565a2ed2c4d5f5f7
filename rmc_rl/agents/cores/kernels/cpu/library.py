"""
The C++ kernels for the CPU: finding and loading their library, and their place in torch's autograd.

One call computes a whole sequence, and one the gradients of it, without returning to Python between steps. ``build.py``
builds the library; it is called through a plain C interface (ctypes), so that one serves all versions of torch and Python.
Each family of cores has its kernel, and a module beside this one that says what it is called with.

Shapes: ``T`` time, ``B`` batch, ``S`` numbers carried from step to step.
"""

import ctypes
import functools
import warnings
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmc_rl.agents.cores.kernels.cpu import build
from rmc_rl.agents.cores.kernels.dispatch import refuse_second_derivatives

BUILD_COMMAND = "python -m rmc_rl.agents.cores.kernels.cpu.build"
DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# products of two numbers that take some 100 microseconds, as long as starting a few threads
SMALL_WORK = 2_000_000
# what torch calls the CPU -> instruction sets that run on it, best first
USABLE = {"AVX512": ("v4", "v3", "v1"), "AVX2": ("v3", "v1")}


class _Call(ctypes.Structure):
    """``Call`` of ``call.h``."""

    _fields_ = [
        ("sizes", POINTER(c_int64)),
        ("numbers", POINTER(c_double)),
        ("parameters", POINTER(c_void_p)),
        ("inputs", POINTER(c_void_p)),
        *((name, c_void_p) for name in ("starts", "states", "saved", "parallel")),
        ("threads", c_int64),
    ]


class _Gradients(ctypes.Structure):
    """``CallGradients`` of ``call.h``."""

    _fields_ = [("states", c_void_p), ("parameters", POINTER(c_void_p)), ("inputs", POINTER(c_void_p))]


@functools.cache
def load() -> ctypes.CDLL | str:
    """
    The best library for this CPU that can be used. Warns where there are some and none of them can.

    :return: the library, or in words why there is none
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
    """A library, or in words why it cannot be used."""
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
    """The instruction sets that this CPU has, of those that are built on its architecture, best first."""
    names = tuple(build.instruction_sets())
    if "v1" not in names:
        return names
    # x86-64: a library for instructions that the CPU lacks would end the process
    return USABLE.get(torch.backends.cpu.get_cpu_capability(), ("v1",))


def why_not() -> str | None:
    """Why the kernel cannot be had in this process; None: it can."""
    library = load()
    return library if isinstance(library, str) else None


def about() -> str:
    """What is in use, for people."""
    library = load()
    return f"C++, {'' if isinstance(library, str) else Path(library._name).name}"


class Kernel(NamedTuple):
    """
    A kernel for one core.

    :param name: the first part of its functions' names
    :param sizes: whole numbers, in the order of its C++ struct, after ``T`` and ``B``
    :param numbers: other numbers, in the order of its C++ struct
    :param work: products of two numbers that a step of one batch entry takes, about: few are not worth a second thread
    """

    name: str
    sizes: tuple[int, ...]
    numbers: tuple[float, ...]
    work: int


def unroll(
    kernel: Kernel,
    inputs: Sequence[Tensor | None],
    state: Tensor,
    fresh: Tensor | None,
    starts: Tensor | None,
    parameters: Sequence[Tensor],
) -> Tensor:
    """
    All steps of a core.

    :param kernel: its kernel
    :param inputs: what the steps read, each ``(T, B, ...)``; of ``inputs[0]`` neither may be 0
    :param state: before the first step, ``(B, S)``
    :param fresh: at the start of an episode, ``(B, S)``; None where starts is
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :param parameters: of the core, in the order of its C++ struct
    :return: the state after each step, ``(T, B, S)``
    :raises MemoryError: where there is too little
    """
    if torch.is_grad_enabled():
        states: Tensor = _Unroll.apply(kernel, starts, len(inputs), *inputs, state, fresh, *parameters)  # type: ignore[no-untyped-call]
        return states
    return _forward(kernel, starts, (*inputs, state, fresh), parameters, keep=False)[0]


def takes(
    inputs: Sequence[Tensor | None], state: Tensor, starts: Tensor | None, state_size: int, parameters: Sequence[Tensor]
) -> bool:
    """
    Whether a kernel takes these arguments of :func:`unroll`: everything lies on the CPU, in one of the dtypes, in shapes that
    fit. Where not, eager torch computes with them, or says what is wrong with them.
    """
    first = inputs[0]
    assert first is not None
    time, batch = first.shape[:2]
    tensors = [*(tensor for tensor in inputs if tensor is not None), state, *parameters]
    return (
        first.dtype in DTYPES
        and 0 not in (time, batch)
        and all(tensor.dtype == first.dtype and tensor.is_cpu for tensor in tensors)
        and state.shape == (batch, state_size)
        and (starts is None or (starts.is_cpu and starts.shape == (time, batch)))
    )


@functools.cache
def _parallel() -> int | None:
    """The function that starts threads in torch's OpenMP runtime; None: it has none that can be called so."""
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:  # among the libraries that it was linked with, so not another runtime that happens to be loaded
        return ctypes.cast(ctypes.CDLL(str(torch_library)).GOMP_parallel, c_void_p).value
    except (OSError, AttributeError):
        return None


def _forward(
    kernel: Kernel, starts: Tensor | None, inputs: Sequence[Tensor | None], parameters: Sequence[Tensor], keep: bool
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The states; and what the way back needs: starts, states, what was kept of each step, inputs and parameters."""
    inputs = [None if x is None else x.contiguous() for x in inputs]
    parameters = [parameter.contiguous() for parameter in parameters]
    starts = None if starts is None else starts.to(torch.bool).contiguous()
    first, state = inputs[0], inputs[-2]
    assert first is not None
    assert state is not None
    states = state.new_empty(first.shape[0], *state.shape)
    kept = (starts, states, None, *inputs, *parameters)
    if keep:
        length = _function(f"{kernel.name}_saved_size_{DTYPES[state.dtype]}", c_int64)(byref(_call(kernel, len(inputs), kept)))
        kept = (starts, states, state.new_empty(length), *inputs, *parameters)
    _check(_function(f"{kernel.name}_forward_{DTYPES[state.dtype]}")(byref(_call(kernel, len(inputs), kept))))
    return states, kept


class _Unroll(torch.autograd.Function):
    """All steps in one call, and their gradients in another."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, starts: Tensor | None, count: int, *tensors: Any) -> Tensor:
        ctx.kernel, ctx.count = kernel, count + 2  # with the state and the fresh one
        inputs, parameters = tensors[: ctx.count], tensors[ctx.count :]
        states, kept = _forward(kernel, starts, inputs, parameters, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(*kept)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        kept = ctx.saved_tensors
        *inputs, fresh = kept[3 : 3 + ctx.count]
        grad = grad.contiguous()
        found = [None if x is None else torch.empty_like(x) for x in inputs]
        found.append(None if fresh is None else torch.zeros_like(fresh))  # added to at each start
        parameters = [torch.empty_like(parameter) for parameter in kept[3 + ctx.count :]]
        gradients = _Gradients(_address(grad), _addresses(parameters), _addresses(found))
        function = _function(f"{ctx.kernel.name}_backward_{DTYPES[grad.dtype]}")
        _check(function(byref(_call(ctx.kernel, ctx.count, kept)), byref(gradients)))
        return None, None, None, *found, *parameters


def _call(kernel: Kernel, count: int, kept: Sequence[Tensor | None]) -> _Call:
    """From what :func:`_forward` returned; ``count`` inputs, the states before among them."""
    starts, states, saved = kept[:3]
    assert states is not None
    sizes = (*states.shape[:2], *kernel.sizes)
    threads = torch.get_num_threads() if kernel.work * states.shape[0] * states.shape[1] > SMALL_WORK else 1
    return _Call(
        (c_int64 * len(sizes))(*sizes),
        (c_double * len(kernel.numbers))(*kernel.numbers),
        _addresses(kept[3 + count :]),
        _addresses(kept[3 : 3 + count]),
        *map(_address, (starts, states, saved)),
        _parallel(),
        threads,
    )


@functools.cache
def _function(name: str, returns: Any = c_int) -> Any:
    """Of the library."""
    library = load()
    assert isinstance(library, ctypes.CDLL)
    function = library[name]  # unlike an attribute, new for each caller
    function.restype = returns
    return function


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[Tensor | None]) -> "ctypes.Array[c_void_p]":
    return (c_void_p * len(tensors))(*map(_address, tensors))


def _check(status: int) -> None:
    if status:
        raise MemoryError("a kernel found too little memory")
