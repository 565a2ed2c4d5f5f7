"""
What the fused RMC in C++ is called with: ``src/rmc.cpp`` and the headers beside it.

Shapes: those of ``rmc.py``.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from rmc_rl.agents.cores.kernels.cpu.library import Kernel, about, takes, why_not
from rmc_rl.agents.cores.kernels.cpu.library import unroll as run

if TYPE_CHECKING:
    from rmc_rl.agents.cores.rmc import RMC

__all__ = ["about", "unroll", "why_not"]


def unroll(core: "RMC", rows: Tensor, gates: Tensor | None, state: Tensor, starts: Tensor | None = None) -> Tensor | None:
    """
    All steps of an RMC.

    :param core: the core
    :param rows: the input's rows, ``(T, B, n, D)``
    :param gates: what the input adds to the gates, ``(T, B, 2G)``; None without gates
    :param state: ``(B, N D)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: the memory after each step, ``(T, B, N D)``; None where the kernel does not take these tensors: eager torch
        computes with them, or says what is wrong with them
    """
    if rows.ndim != 4:
        return None
    blocks = cast(Sequence[Any], core.blocks)
    first = blocks[0]
    layers = [layer for block in blocks for layer in (block.qkv, block.qkv_norm, block.attention_norm, block.mlp_norm)]
    parameters = [parameter for layer in (*layers, *core.mlp) for parameter in (layer.weight, layer.bias)]
    if gates is not None:
        parameters.append(core.gate_from_memory.weight)
    if not takes((rows,), state, starts, core.state_size, parameters):
        return None
    # the first block reads the input's rows as they come, so their queries, keys and values wait for no step
    input_qkv = first.qkv_norm(first.qkv(rows))
    fresh = None if starts is None else core.initial_state(state.shape[0])
    if gates is not None:
        gates = gates + core.gate_from_memory.bias
    gate = 0 if gates is None else gates.shape[-1] // 2
    kernel = Kernel(
        "rmc",
        (core.num_slots, rows.shape[2], core.num_heads, first.key_size, core.head_size, len(blocks), len(core.mlp), gate),
        (core.input_bias, core.forget_bias, first.qkv_norm.eps),
        work=core.num_slots * core.width**2,
    )
    return run(kernel, (input_qkv, rows if len(blocks) > 1 else None, gates), state, fresh, starts, parameters)
