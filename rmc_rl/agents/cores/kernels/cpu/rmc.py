"""
The arguments of the C++ kernel of the RMC: ``src/rmc.cpp`` and its headers.

Shapes: those of ``rmc.py`` of the cores.
"""

from collections.abc import Sequence
from ctypes import Structure, c_double, c_int64
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.kernels.cpu import calling
from rmc_rl.agents.cores.kernels.cpu.library import about, why_not

if TYPE_CHECKING:
    from rmc_rl.agents.cores.rmc import RMC

__all__ = ["about", "unroll", "why_not"]


class Sizes(Structure):
    """``rmc::Sizes`` in ``src/rmc.h``."""

    _fields_ = [
        ("num_slots", c_int64),
        ("num_entities", c_int64),
        ("num_heads", c_int64),
        ("key_size", c_int64),
        ("head_size", c_int64),
        ("num_blocks", c_int64),
        ("mlp_layers", c_int64),
        ("gate_size", c_int64),
        ("input_bias", c_double),
        ("forget_bias", c_double),
        ("epsilon", c_double),
    ]


def unroll(core: "RMC", rows: Tensor, gates: Tensor | None, state: Tensor, starts: Tensor | None = None) -> Tensor | None:
    """
    All steps of an RMC.

    :param core: the core
    :param rows: the input's rows, ``(T, B, n, D)``
    :param gates: the input's part of the gates, ``(T, B, 2G)``; None without gates
    :param state: ``(B, N D)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: the memory after each step, ``(T, B, N D)``; None if the kernel does not support these tensors
    """
    if rows.ndim != 4:
        return None
    all_parameters = dispatch.keep((core, "parameters"), lambda: list(core.parameters()))
    kernel, parameters = dispatch.keep((core, "kernel"), lambda: (_kernel(core), _parameters(core)), all_parameters)
    if not calling.takes(rows, state, starts, core.state_size, parameters):
        return None
    first = cast(Any, core.blocks[0])
    # queries, keys and values of the input rows in the first block do not depend on the memory: one product for all steps
    input_qkv = first.qkv_norm(first.qkv(rows))
    if gates is not None:
        gates = gates + core.gate_from_memory.bias
    inputs = dict(input_qkv=input_qkv, input_rows=rows if len(core.blocks) > 1 else None, input_gates=gates)
    starts = calling.without_empty(starts)
    initial_state = None if starts is None else core.initial_state(len(state))
    return calling.unroll(kernel, inputs, state, initial_state, starts, parameters)


def _kernel(core: "RMC") -> calling.Kernel:
    first = cast(Any, core.blocks[0])
    sizes = Sizes(
        num_slots=core.num_slots,
        num_entities=core.num_entities,
        num_heads=core.num_heads,
        key_size=first.key_size,
        head_size=core.head_size,
        num_blocks=len(core.blocks),
        mlp_layers=len(core.mlp),
        gate_size=0 if core.gate_style == "none" else core.gate_from_memory.out_features // 2,
        input_bias=core.input_bias,
        forget_bias=core.forget_bias,
        epsilon=first.qkv_norm.eps,
    )
    return calling.Kernel("rmc", sizes, work=core.num_slots * core.width**2)


def _parameters(core: "RMC") -> calling.Parameters:
    """By the names and in the order of ``rmc.h``."""
    parameters: dict[str, Tensor] = {}

    def add(name: str, layer: Any) -> None:
        parameters[f"{name}.weight"], parameters[f"{name}.bias"] = layer.weight, layer.bias

    for index, block in enumerate(cast(Sequence[Any], core.blocks)):
        add(f"blocks.{index}.qkv", block.qkv)
        add(f"blocks.{index}.qkv_norm", block.qkv_norm)
        add(f"blocks.{index}.attention_norm", block.attention_norm)
        add(f"blocks.{index}.mlp_norm", block.mlp_norm)
    for index, layer in enumerate(core.mlp):
        add(f"mlp.{index}", layer)
    if core.gate_style != "none":
        parameters["gate_from_memory.weight"] = core.gate_from_memory.weight
    return calling.Parameters(parameters)
