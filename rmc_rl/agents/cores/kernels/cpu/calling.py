"""
Calls of the C++ kernels, and their place in torch's autograd.

One call computes a whole sequence, another one its gradients, without returning to Python between steps. Each family of cores
has a module beside this one that prepares the arguments of its kernel.

Nothing is passed by position alone. The structures mirror those of ``src/call.h`` and carry their size in bytes; each tensor
carries its name and its number of elements. C++ checks them and reports a difference, which raises a RuntimeError.

Shapes: ``T`` time, ``B`` batch, ``S`` numbers of a state.
"""

import ctypes
import functools
from collections.abc import Iterable, Mapping, Sequence
from ctypes import POINTER, byref, c_char, c_char_p, c_int64, c_void_p, sizeof
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmc_rl.agents.cores.kernels.cpu import library
from rmc_rl.agents.cores.kernels.dispatch import refuse_second_derivatives

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# multiplications of a call below which one thread is used: they take about 100 microseconds, as long as starting a few threads
SMALL_WORK = 2_000_000


class Status(IntEnum):
    """What a function of the library returns: ``Status`` in ``src/call.h``."""

    DONE = 0
    OUT_OF_MEMORY = 1
    MISMATCH = 2
    FAILED = 3


class _NamedTensors(ctypes.Structure):
    """``NamedTensors`` in ``src/call.h``."""

    _fields_ = [("count", c_int64), ("names", c_char_p), ("data", POINTER(c_void_p)), ("lengths", POINTER(c_int64))]


class _Call(ctypes.Structure):
    """``Call`` in ``src/call.h``."""

    _fields_ = [
        *((name, c_int64) for name in ("struct_size", "time", "batch", "sizes_size")),
        ("sizes", c_void_p),
        ("inputs", _NamedTensors),
        ("parameters", _NamedTensors),
        *((name, c_void_p) for name in ("starts", "states", "saved")),
        ("saved_length", c_int64),
        ("parallel", c_void_p),
        ("threads", c_int64),
        ("message", c_char * 256),
    ]


class _Gradients(ctypes.Structure):
    """``Gradients`` in ``src/call.h``."""

    _fields_ = [
        ("struct_size", c_int64),
        ("states", c_void_p),
        ("input_count", c_int64),
        ("parameter_count", c_int64),
        ("inputs", POINTER(c_void_p)),
        ("parameters", POINTER(c_void_p)),
    ]


class Kernel(NamedTuple):
    """
    A kernel for one core.

    :param name: the first part of the names of its functions
    :param sizes: its structure ``Sizes``, with all sizes and numbers
    :param work: approximate multiplications per step and batch entry, which decide whether a second thread is worthwhile
    """

    name: str
    sizes: ctypes.Structure
    work: int


class Parameters:
    """
    The parameters of a core as a kernel reads them.

    :param tensors: by their names in C++ and in that order
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}

    @functools.cached_property
    def structure(self) -> _NamedTensors:
        """Names, addresses and numbers of elements for C++."""
        return _named(self.tensors)

    @functools.cached_property
    def dtype(self) -> torch.dtype | None:
        """Their dtype; None if a kernel does not support them."""
        tensors = self.tensors.values()
        dtype = next(iter(tensors)).dtype
        return dtype if dtype in DTYPES and all(x.dtype == dtype and x.is_cpu for x in tensors) else None


class _Arguments(NamedTuple):
    """The tensors of a call, contiguous."""

    starts: Tensor | None
    states: Tensor
    saved: Tensor | None
    inputs: Mapping[str, Tensor | None]
    parameters: Parameters


def unroll(
    kernel: Kernel,
    inputs: Mapping[str, Tensor | None],
    state: Tensor,
    initial_state: Tensor | None,
    starts: Tensor | None,
    parameters: Parameters,
) -> Tensor:
    """
    All steps of a core.

    :param kernel: its kernel
    :param inputs: tensors that the steps read, ``(T, B, ...)``, by their names in C++ and in that order; the first one exists
    :param state: before the first step, ``(B, S)``
    :param initial_state: at the start of an episode, ``(B, S)``; None if ``starts`` is None
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :param parameters: of the core
    :return: the state after each step, ``(T, B, S)``
    :raises MemoryError: if memory is exhausted
    :raises RuntimeError: if Python and C++ disagree about the arguments
    """
    inputs = {"state": state, "initial_state": initial_state, **inputs}
    if torch.is_grad_enabled():
        names, tensors = (tuple(inputs), tuple(parameters.tensors)), parameters.tensors.values()
        states: Tensor = _Unroll.apply(kernel, starts, *names, *inputs.values(), *tensors)  # type: ignore[no-untyped-call]
        return states
    return _forward(kernel, starts, inputs, parameters, save=False).states


def takes(inputs: Tensor, state: Tensor, starts: Tensor | None, state_size: int, parameters: Parameters) -> bool:
    """
    Whether a kernel supports these tensors: on the CPU, of one supported dtype, not empty, and of shapes that fit. Otherwise
    eager torch computes with them, or raises its own error.

    :param inputs: ``(T, B, ...)``
    :param state: ``(B, S)``
    :param starts: ``(T, B)`` or None
    :param state_size: ``S``
    :param parameters: of the core
    """
    time, batch = inputs.shape[:2]
    return (
        inputs.dtype == state.dtype == parameters.dtype
        and inputs.is_cpu
        and state.is_cpu
        and 0 not in (time, batch)
        and state.shape == (batch, state_size)
        and (starts is None or (starts.is_cpu and starts.shape == (time, batch)))
    )


def without_empty(starts: Tensor | None) -> Tensor | None:
    """
    ``starts``, or None if no episode starts: then a core needs no initial state.

    While gradients are recorded, starts are returned as they are: a learned initial state then has a gradient, which is 0.
    """
    return None if starts is None or (not torch.is_grad_enabled() and not starts.any()) else starts


def _forward(
    kernel: Kernel,
    starts: Tensor | None,
    inputs: Mapping[str, Tensor | None],
    parameters: Parameters,
    save: bool,
) -> _Arguments:
    """Run forward. ``save``: keep what backward needs."""
    inputs = {name: None if x is None else x.contiguous() for name, x in inputs.items()}
    starts = None if starts is None else starts.to(torch.bool).contiguous()
    state, _, first, *_ = inputs.values()
    assert state is not None
    assert first is not None
    arguments = _Arguments(starts, state.new_empty(len(first), *state.shape), None, inputs, parameters)
    call = _call(kernel, arguments)
    if save:
        _run(kernel, "saved_length", state.dtype, call)
        arguments = arguments._replace(saved=state.new_empty(call.saved_length))
        call.saved = _address(arguments.saved)
    _run(kernel, "forward", state.dtype, call)
    return arguments


class _Unroll(torch.autograd.Function):
    """All steps in one call, and their gradients in another one."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        starts: Tensor | None,
        inputs: Sequence[str],
        parameters: Sequence[str],
        *tensors: Any,
    ) -> Tensor:
        count = len(inputs)
        of_inputs = dict(zip(inputs, tensors, strict=False))
        of_parameters = Parameters(dict(zip(parameters, tensors[count:], strict=True)))
        arguments = _forward(kernel, starts, of_inputs, of_parameters, save=any(ctx.needs_input_grad))
        ctx.kernel, ctx.inputs, ctx.parameters = kernel, inputs, parameters
        ctx.save_for_backward(*arguments[:3], *arguments.inputs.values(), *of_parameters.tensors.values())
        return arguments.states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        starts, states, saved, *tensors = ctx.saved_tensors
        inputs = dict(zip(ctx.inputs, tensors, strict=False))
        parameters = Parameters(dict(zip(ctx.parameters, tensors[len(inputs) :], strict=True)))
        grad = grad.contiguous()
        of_inputs = [None if x is None else torch.empty_like(x) for x in inputs.values()]
        if inputs["initial_state"] is not None:
            of_inputs[list(inputs).index("initial_state")] = torch.zeros_like(inputs["initial_state"])  # each start adds to it
        of_parameters = [torch.empty_like(parameter) for parameter in parameters.tensors.values()]
        call = _call(ctx.kernel, _Arguments(starts, states, saved, inputs, parameters))
        counts = len(of_inputs), len(of_parameters)
        gradients = _Gradients(sizeof(_Gradients), _address(grad), *counts, _addresses(of_inputs), _addresses(of_parameters))
        _run(ctx.kernel, "backward", grad.dtype, call, gradients)
        return None, None, None, None, *of_inputs, *of_parameters


def _call(kernel: Kernel, arguments: _Arguments) -> _Call:
    """The structure of a call. The tensors must outlive it."""
    starts, states, saved, inputs, parameters = arguments
    time, batch = states.shape[:2]
    return _Call(
        struct_size=sizeof(_Call),
        time=time,
        batch=batch,
        sizes_size=sizeof(kernel.sizes),
        sizes=ctypes.addressof(kernel.sizes),
        inputs=_named(inputs),
        parameters=parameters.structure,
        starts=_address(starts),
        states=_address(states),
        saved=_address(saved),
        saved_length=0 if saved is None else saved.numel(),
        parallel=_parallel(),
        threads=torch.get_num_threads() if kernel.work * time * batch > SMALL_WORK else 1,
    )


def _run(kernel: Kernel, action: str, dtype: torch.dtype, *structures: ctypes.Structure) -> None:
    """Call a function of the kernel with the call and, for backward, the gradients."""
    status = library.function(f"{kernel.name}_{action}_{DTYPES[dtype]}")(*map(byref, structures))
    if status == Status.DONE:
        return
    if status == Status.OUT_OF_MEMORY:
        raise MemoryError(f"the C++ kernel {kernel.name} ran out of memory")
    if status == Status.MISMATCH:
        message = structures[0].message.decode() or f"bytes of the structure Call: {sizeof(structures[0])} in Python"
        raise RuntimeError(f"Python and the C++ kernel {kernel.name} disagree about {message}")
    raise RuntimeError(f"the C++ kernel {kernel.name} failed with status {status}")


@functools.cache
def _parallel() -> int | None:
    """The address of the function that starts threads in torch's OpenMP runtime; None if it cannot be called."""
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:  # searches the libraries that torch is linked with, not another runtime in the process
        return ctypes.cast(ctypes.CDLL(str(torch_library)).GOMP_parallel, c_void_p).value
    except (OSError, AttributeError):
        return None


def _named(tensors: Mapping[str, Tensor | None]) -> _NamedTensors:
    count = len(tensors)
    lengths = [0 if tensor is None else tensor.numel() for tensor in tensors.values()]
    return _NamedTensors(count, "\n".join(tensors).encode(), _addresses(tensors.values()), (c_int64 * count)(*lengths))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Iterable[Tensor | None]) -> "ctypes.Array[c_void_p]":
    addresses = [_address(tensor) for tensor in tensors]
    return (c_void_p * len(addresses))(*addresses)
