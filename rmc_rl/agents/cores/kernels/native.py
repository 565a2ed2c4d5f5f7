"""
The fused RMC in C++ for the CPU: finding and loading the library, and its place in torch's autograd.

One call computes a whole sequence, and one the gradients of it, without returning to Python between steps: ``rmc.cpp`` and
the headers beside it. ``build.py`` builds it. Called through a plain C interface (ctypes), so that one library serves all
versions of torch and Python.

Shapes: those of ``rmc.py``, and ``E = H (2 K + V)``, queries, keys and values of one row.
"""

import ctypes
import functools
import warnings
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rmc_rl.agents.cores.kernels import build

if TYPE_CHECKING:
    from rmc_rl.agents.cores.rmc import RMC

BUILD_COMMAND = "python -m rmc_rl.agents.cores.kernels.build"
DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# products of a number and a weight of one square matrix that take some 100 microseconds, as long as starting a few threads
SMALL_WORK = 2_000_000
# what torch calls the CPU -> instruction sets that run on it, best first
USABLE = {"AVX512": ("v4", "v3", "v1"), "AVX2": ("v3", "v1")}


class _Sizes(ctypes.Structure):
    """``RmcSizes`` of ``rmc.h``."""

    _fields_ = [
        *(
            (name, c_int64)
            for name in ("time", "batch", "slots", "entities", "heads", "key", "head", "blocks", "layers", "gate")
        ),
        ("threads", c_int64),
        *((name, c_double) for name in ("input_bias", "forget_bias", "epsilon")),
        ("parallel", c_void_p),
    ]


class _Tensors(ctypes.Structure):
    """``RmcTensors`` of ``rmc.h``."""

    _fields_ = [
        ("parameters", POINTER(c_void_p)),
        *((name, c_void_p) for name in ("input_qkv", "rows", "gates", "state", "fresh", "starts", "memories", "saved")),
    ]


class _Gradients(ctypes.Structure):
    """``RmcGradients`` of ``rmc.h``."""

    _fields_ = [
        ("memories", c_void_p),
        ("parameters", POINTER(c_void_p)),
        *((name, c_void_p) for name in ("input_qkv", "rows", "gates", "state", "fresh")),
    ]


@functools.cache
def load() -> ctypes.CDLL | str:
    """
    The library for this CPU. Warns where there is one that cannot be used.

    :return: the library, or in words why there is none
    """
    path = _path()
    if path is None:
        return f"it was not built ({BUILD_COMMAND} builds it)"
    try:
        library = ctypes.CDLL(str(path))
        library.rmc_rl_sources.restype = c_char_p
        sources = library.rmc_rl_sources().decode()
        reason = None
    except (OSError, AttributeError) as error:
        reason = f"{path.name} cannot be loaded: {error}"
    else:
        if build.checksum() not in ("", sources):
            reason = f"{path.name} was built from other sources than those beside it ({BUILD_COMMAND} builds it again)"
    if reason is not None:
        warnings.warn(f"computing with eager torch: {reason}", stacklevel=2)
        return reason
    library.rmc_saved_size.argtypes, library.rmc_saved_size.restype = [POINTER(_Sizes)], c_int64
    for dtype in DTYPES.values():
        forward, backward = getattr(library, f"rmc_forward_{dtype}"), getattr(library, f"rmc_backward_{dtype}")
        forward.argtypes, forward.restype = [POINTER(_Sizes), POINTER(_Tensors)], c_int
        backward.argtypes, backward.restype = [POINTER(_Sizes), POINTER(_Tensors), POINTER(_Gradients)], c_int
    return library


def usable() -> tuple[str, ...]:
    """The instruction sets that this CPU has, of those that are built on its architecture, best first."""
    names = tuple(build.instruction_sets())
    if "v1" not in names:
        return names
    # x86-64: a library for instructions that the CPU lacks would end the process
    return USABLE.get(torch.backends.cpu.get_cpu_capability(), ("v1",))


def _path() -> Path | None:
    """The best library that this CPU can use."""
    return next((build.library(name) for name in usable() if build.library(name).exists()), None)


def why_not() -> str | None:
    """Why the kernel cannot be had in this process; None: it can."""
    library = load()
    return library if isinstance(library, str) else None


def about() -> str:
    """What is in use, for people."""
    path = _path()
    return f"C++, {path.name if path else ''}"


def unroll(core: "RMC", rows: Tensor, gates: Tensor | None, state: Tensor, starts: Tensor | None = None) -> Tensor | None:
    """
    All steps of an RMC.

    :param core: the core
    :param rows: the input's rows, ``(T, B, n, D)``
    :param gates: what the input adds to the gates, ``(T, B, 2G)``; None without gates
    :param state: ``(B, N D)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: the memory after each step, ``(T, B, N, D)``; None where the kernel does not take these tensors: eager torch
        computes with them, or says what is wrong with them
    """
    blocks = cast(Sequence[Any], core.blocks)
    first = blocks[0]
    layers = [layer for block in blocks for layer in (block.qkv, block.qkv_norm, block.attention_norm, block.mlp_norm)]
    parameters = [parameter for layer in (*layers, *core.mlp) for parameter in (layer.weight, layer.bias)]
    if gates is not None:
        parameters.append(core.gate_from_memory.weight)
    if not _takes(rows, state, starts, core.state_size, parameters):
        return None
    # the first block reads the input's rows as they come, so their queries, keys and values wait for no step
    input_qkv = first.qkv_norm(first.qkv(rows))
    fresh = None if starts is None else core.initial_state(state.shape[0])
    if gates is not None:
        gates = gates + core.gate_from_memory.bias
    numbers = (core.input_bias, core.forget_bias, first.qkv_norm.eps)
    sizes = (core.num_slots, core.num_heads, first.key_size, core.head_size, len(blocks), len(core.mlp))
    inputs = (input_qkv, rows if len(blocks) > 1 else None, gates, state, fresh)
    if not torch.is_grad_enabled():
        return _forward(_sizes(sizes, numbers, inputs), starts, inputs, parameters, keep=False)[0]
    memories: Tensor = _Unroll.apply(sizes, numbers, starts, *inputs, *parameters)  # type: ignore[no-untyped-call]
    return memories


def _takes(rows: Tensor, state: Tensor, starts: Tensor | None, state_size: int, parameters: Sequence[Tensor]) -> bool:
    """Everything lies on the CPU, in one of the dtypes of the kernel, in the shapes that :func:`unroll` says."""
    if rows.ndim != 4 or rows.dtype not in DTYPES or 0 in rows.shape:
        return False
    time, batch = rows.shape[:2]
    dtype = rows.dtype
    return (
        all(parameter.dtype == dtype and parameter.is_cpu for parameter in parameters)
        and (rows.is_cpu and state.is_cpu and state.dtype == dtype and state.shape == (batch, state_size))
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


def _sizes(sizes: tuple[int, ...], numbers: tuple[float, ...], inputs: Sequence[Tensor | None]) -> _Sizes:
    input_qkv, _, gates, *_ = inputs
    assert input_qkv is not None
    time, batch, entities, _ = input_qkv.shape
    slots, heads, key, head, blocks, layers = sizes
    gate = 0 if gates is None else gates.shape[-1] // 2
    work = time * batch * slots * (heads * head) ** 2
    threads = torch.get_num_threads() if work > SMALL_WORK else 1
    return _Sizes(time, batch, slots, entities, heads, key, head, blocks, layers, gate, threads, *numbers, _parallel())


def _forward(
    sizes: _Sizes, starts: Tensor | None, inputs: Sequence[Tensor | None], parameters: Sequence[Tensor], keep: bool
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The memories; and what the way back needs: starts, memories, what was kept of each step, inputs and parameters."""
    inputs = [None if x is None else x.contiguous() for x in inputs]
    parameters = [parameter.contiguous() for parameter in parameters]
    starts = None if starts is None else starts.to(torch.bool).contiguous()
    like = parameters[0]
    memories = like.new_empty(sizes.time, sizes.batch, sizes.slots, sizes.heads * sizes.head)
    library = load()
    assert isinstance(library, ctypes.CDLL)
    saved = like.new_empty(library.rmc_saved_size(byref(sizes))) if keep else None
    tensors = _pack(inputs, starts, memories, saved, parameters)
    _check(getattr(library, f"rmc_forward_{DTYPES[like.dtype]}")(byref(sizes), byref(tensors)))
    return memories, (starts, memories, saved, *inputs, *parameters)


class _Unroll(torch.autograd.Function):
    """All steps in one call, and their gradients in another."""

    @staticmethod
    def forward(
        ctx: Any,
        sizes: tuple[int, ...],
        numbers: tuple[float, ...],
        starts: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        inputs, parameters = tensors[:5], cast(Sequence[Tensor], tensors[5:])
        ctx.sizes = _sizes(sizes, numbers, inputs)
        memories, kept = _forward(ctx.sizes, starts, inputs, parameters, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(*kept)
        return memories

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        starts, memories, saved, *rest = ctx.saved_tensors
        inputs, parameters = rest[:5], rest[5:]
        tensors = _pack(inputs, starts, memories, saved, parameters)
        grad = grad.contiguous()
        *found, fresh = (None if x is None else torch.empty_like(x) for x in inputs)
        if fresh is not None:
            fresh.zero_()  # added to at each start
        of_parameters = [torch.empty_like(parameter) for parameter in parameters]
        gradients = _Gradients(_address(grad), _addresses(of_parameters), *map(_address, (*found, fresh)))
        library = load()
        assert isinstance(library, ctypes.CDLL)
        call = getattr(library, f"rmc_backward_{DTYPES[memories.dtype]}")
        _check(call(byref(ctx.sizes), byref(tensors), byref(gradients)))
        return None, None, None, *found, fresh, *of_parameters


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[Tensor]) -> "ctypes.Array[c_void_p]":
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _pack(
    inputs: Sequence[Tensor | None],
    starts: Tensor | None,
    memories: Tensor,
    saved: Tensor | None,
    parameters: Sequence[Tensor],
) -> _Tensors:
    return _Tensors(_addresses(parameters), *map(_address, (*inputs, starts, memories, saved)))


def _check(status: int) -> None:
    if status:
        raise MemoryError("the RMC kernel found too little memory")
