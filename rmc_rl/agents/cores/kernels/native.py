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


def takes(core: "RMC", rows: Tensor, state: Tensor, starts: Tensor | None) -> bool:
    """
    Whether the kernel computes with these. Where not, eager torch does, or says what is wrong with them.

    :param core: the core
    :param rows: the input's rows, ``(T, B, n, D)``
    :param state: ``(B, N D)``
    :param starts: ``(T, B)`` bool or None
    """
    time, batch = rows.shape[:2]
    tensors = (rows, state, *core.parameters())
    return (
        rows.dtype in DTYPES
        and all(tensor.dtype == rows.dtype and tensor.device.type == "cpu" for tensor in tensors)
        and rows.ndim == 4
        and time > 0
        and batch > 0
        and state.shape == (batch, core.state_size)
        and (starts is None or (starts.shape == (time, batch) and starts.device.type == "cpu"))
    )


def unroll(core: "RMC", rows: Tensor, gates: Tensor | None, state: Tensor, starts: Tensor | None = None) -> Tensor:
    """
    All steps of an RMC.

    :param core: the core
    :param rows: the input's rows, ``(T, B, n, D)``
    :param gates: what the input adds to the gates, ``(T, B, 2G)``; None without gates
    :param state: ``(B, N D)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: the memory after each step, ``(T, B, N, D)``
    """
    blocks = cast(Sequence[Any], core.blocks)
    first = blocks[0]
    # the first block reads the input's rows as they come, so their queries, keys and values wait for no step
    input_qkv = first.qkv_norm(first.qkv(rows))
    fresh = None if starts is None else core.initial_state(state.shape[0])
    if gates is not None:
        gates = gates + core.gate_from_memory.bias
    parameters = [
        parameter
        for block in blocks
        for module in (block.qkv, block.qkv_norm, block.attention_norm, block.mlp_norm)
        for parameter in (module.weight, module.bias)
    ]
    parameters += [parameter for layer in core.mlp for parameter in (layer.weight, layer.bias)]
    if gates is not None:
        parameters.append(core.gate_from_memory.weight)
    numbers = (core.input_bias, core.forget_bias, first.qkv_norm.eps)
    sizes = (core.num_slots, core.num_heads, first.key_size, core.head_size, len(blocks), len(core.mlp))
    keep = torch.is_grad_enabled()
    rows_beside = rows if len(blocks) > 1 else None
    memories: Tensor = _Unroll.apply(  # type: ignore[no-untyped-call]
        (sizes, numbers, keep), starts, input_qkv, rows_beside, gates, state, fresh, *parameters
    )
    return memories


class _Unroll(torch.autograd.Function):
    """All steps in one call, and their gradients in another."""

    @staticmethod
    def forward(
        ctx: Any,
        about: tuple[tuple[int, ...], tuple[float, ...], bool],
        starts: Tensor | None,
        input_qkv: Tensor,
        rows: Tensor | None,
        gates: Tensor | None,
        state: Tensor,
        fresh: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        (slots, heads, key, head, blocks, layers), numbers, keep = about
        time, batch, entities, _ = input_qkv.shape
        gate = 0 if gates is None else gates.shape[-1] // 2
        threads = torch.get_num_threads() if time > 1 else 1
        sizes = _Sizes(time, batch, slots, entities, heads, key, head, blocks, layers, gate, threads, *numbers)
        inputs = [None if x is None else x.contiguous() for x in (input_qkv, rows, gates, state, fresh)]
        starts = None if starts is None else starts.to(torch.bool).contiguous()
        parameters = tuple(parameter.contiguous() for parameter in parameters)
        memories = input_qkv.new_empty(time, batch, slots, heads * head)
        library = load()
        assert isinstance(library, ctypes.CDLL)
        keep = keep and any(ctx.needs_input_grad)
        saved = input_qkv.new_empty(library.rmc_saved_size(byref(sizes))) if keep else None
        tensors, pointers = _pack(inputs, starts, memories, saved, parameters)
        _check(getattr(library, f"rmc_forward_{DTYPES[memories.dtype]}")(byref(sizes), byref(tensors)))
        del pointers
        if keep:
            ctx.sizes = sizes
            ctx.save_for_backward(starts, memories, saved, *inputs, *parameters)
        return memories

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        starts, memories, saved, *rest = ctx.saved_tensors
        inputs, parameters = rest[:5], rest[5:]
        tensors, pointers = _pack(inputs, starts, memories, saved, parameters)
        grad = grad.contiguous()
        *found, fresh = (None if x is None else torch.empty_like(x) for x in inputs)
        fresh = torch.zeros_like(inputs[4]) if ctx.needs_input_grad[6] else None
        of_parameters = [torch.empty_like(parameter) for parameter in parameters]
        addresses = _addresses(of_parameters)
        gradients = _Gradients(grad.data_ptr(), addresses, *(_address(x) for x in (*found, fresh)))
        library = load()
        assert isinstance(library, ctypes.CDLL)
        call = getattr(library, f"rmc_backward_{DTYPES[memories.dtype]}")
        _check(call(byref(ctx.sizes), byref(tensors), byref(gradients)))
        del pointers
        return None, None, *found, fresh, *of_parameters


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Any) -> "ctypes.Array[c_void_p]":
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _pack(inputs: Any, starts: Any, memories: Tensor, saved: Tensor | None, parameters: Any) -> tuple[_Tensors, Any]:
    """The structure, and the array that must live as long as it."""
    pointers = _addresses(parameters)
    others = (_address(x) for x in (*inputs, starts, memories, saved))
    return _Tensors(pointers, *others), pointers


def _check(status: int) -> None:
    if status:
        raise MemoryError("the RMC kernel found too little memory")
