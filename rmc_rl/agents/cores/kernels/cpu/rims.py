"""
What the fused RIMs and BRIMs in C++ are called with: ``src/rims.cpp`` and the headers beside it.

Shapes: those of ``rims_layer.py``.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.kernels.cpu.library import Kernel, about, takes, why_not
from rmc_rl.agents.cores.kernels.cpu.library import unroll as run
from rmc_rl.agents.cores.rims_layer import VARIANTS, Communication, InputAttention, ModuleLayer

if TYPE_CHECKING:
    from rmc_rl.agents.cores.brims import BRIMs

__all__ = ["about", "unroll", "why_not"]


def unroll(core: "BRIMs", inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> Tensor | None:
    """
    All steps of BRIMs, or of RIMs.

    :param core: the core
    :param inputs: embedded, ``(T, B, E)``
    :param state: ``(B, S)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: the state after each step ``(T, B, S)``; None where the kernel does not take these tensors: eager torch computes
        with them, or says what is wrong with them
    """
    layers = [core.layer(index) for index in range(len(core.layers))]
    sizes = layers[0].sizes
    if inputs.ndim != 3 or (core.training and sizes.dropout > 0):
        return None
    if not takes((inputs,), state, starts, core.state_size, list(core.layers.parameters())):
        return None
    dido = core.variant == "dido"
    heads = 1 if dido else sizes.input_heads  # "dido" averages its heads' scores, so they are one head with longer keys
    key_size = sizes.input_heads * sizes.input_key_size // heads
    numbers: list[int] = [len(layers), core.input_copies, heads, key_size, VARIANTS.index(core.variant)]
    numbers += [core.top_down, not core.use_inactive, core.blocked_grad]
    parameters: list[Tensor] = []
    rows = [functional.linear(inputs, *_row(layers[0].input_attention, index)) for index in range(core.input_copies)]
    work = 0
    for index, layer in enumerate(layers):
        sizes, attention = layer.sizes, layer.input_attention
        numbers += [sizes.num_modules, sizes.num_active, sizes.module_size, sizes.read_size]
        numbers += [sizes.comm_heads, sizes.comm_key_size, sizes.comm_value_size, attention.distinct_rows]
        of_layer = _parameters(layer)
        if index > 0 or core.top_down:  # the row that is made at each step
            made = _row(attention, core.input_copies if index == 0 else 0)
            of_layer += [tensor for tensor in made if tensor is not None]
        if core.variant != "atari":
            bias = _row(attention, 0)[1]
            of_layer.append(inputs.new_zeros(key_size * heads + sizes.read_size) if bias is None else bias)
        parameters += of_layer
        work += sum(tensor.numel() for tensor in of_layer)
    scale = sizes.input_key_size**-0.5 / (sizes.input_heads if dido else 1)
    kernel = Kernel(f"modules_{sizes.cell}", tuple(map(int, numbers)), (scale,), work)
    fresh = None if starts is None else core.initial_state(len(state))
    return run(kernel, (torch.stack(rows, dim=2),), state, fresh, starts, parameters)


def _row(attention: InputAttention, index: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear layer that makes the keys and values of a row."""
    key, value = cast(nn.Linear, attention.key[index]), cast(nn.Linear, attention.value[index])
    weight: Tensor = value.weight
    if attention.variant != "dido":
        return torch.cat([key.weight, weight]), None
    # the mean over heads is linear as well: (H a, F) -> (H, a, F) -> (a, F)
    weight, bias = (torch.unflatten(tensor, 0, (attention.heads, -1)).mean(0) for tensor in (weight, value.bias))
    return torch.cat([key.weight, weight]), torch.cat([key.bias, bias])


def _parameters(layer: ModuleLayer) -> list[Tensor]:
    """Those of a layer in the order of ``rims.h``, but of the rows."""
    found: list[Tensor] = []
    for group in (layer.input_attention.query, layer.cells.from_state, layer.cells.from_read):
        found.append(group.weight)
        if group.bias is not None:
            found.append(group.bias)
    talk = layer.communication
    if talk is None:
        return found
    return [*found, _by_heads(talk), *_said(talk)]


def _by_heads(talk: Communication) -> Tensor:
    """The weights of queries, keys and values ``(K, s, E)``, ordered by head, as the kernel's attention reads them."""
    parts = [torch.unflatten(part, -1, (talk.heads, -1)) for part in torch.split(talk.qkv.weight, talk.split, dim=-1)]
    return torch.cat(parts, dim=-1).flatten(-2)


def _said(talk: Communication) -> list[Tensor]:
    """Of the layers that what was heard passes: with a gate, both as one."""
    if talk.gate is None:
        return [talk.out.weight]
    both = (cast(nn.Linear, talk.out), talk.gate)
    return [torch.cat([layer.weight for layer in both]), torch.cat([layer.bias for layer in both])]
