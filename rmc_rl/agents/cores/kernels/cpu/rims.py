"""
The arguments of the C++ kernels of RIMs and BRIMs: ``src/rims.cpp`` and its headers.

Shapes: those of ``rims_layer.py`` of the cores.
"""

from ctypes import POINTER, Structure, c_double, c_int64, sizeof
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.kernels.cpu import calling
from rmc_rl.agents.cores.kernels.cpu.library import about, why_not
from rmc_rl.agents.cores.rims_layer import VARIANTS, Communication, InputAttention, ModuleLayer

if TYPE_CHECKING:
    from rmc_rl.agents.cores.rims_stack import ModuleStack

__all__ = ["about", "unroll", "why_not"]


class LayerSizes(Structure):
    """``rims::LayerSizes`` in ``src/rims.h``."""

    _fields_ = [
        ("num_modules", c_int64),
        ("num_active", c_int64),
        ("module_size", c_int64),
        ("read_size", c_int64),
        ("comm_heads", c_int64),
        ("comm_key_size", c_int64),
        ("comm_value_size", c_int64),
        ("distinct_rows", c_int64),
    ]


class Sizes(Structure):
    """``rims::Sizes`` in ``src/rims.h``."""

    _fields_ = [
        ("num_layers", c_int64),
        ("layer_struct_size", c_int64),
        ("layers", POINTER(LayerSizes)),
        ("num_input_rows", c_int64),
        ("input_heads", c_int64),
        ("input_key_size", c_int64),
        ("variant", c_int64),
        ("top_down", c_int64),
        ("hide_inactive", c_int64),
        ("block_gradient", c_int64),
        ("score_scale", c_double),
    ]


class _Prepared(NamedTuple):
    """What does not depend on the inputs."""

    kernel: calling.Kernel
    rows: list[tuple[Tensor, Tensor | None]]  # weight and bias of each row of the input
    parameters: calling.Parameters


def unroll(core: "ModuleStack", inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> Tensor | None:
    """
    All steps of RIMs or BRIMs.

    :param core: the core
    :param inputs: embedded, ``(T, B, E)``
    :param state: ``(B, S)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: the state after each step ``(T, B, S)``; None if the kernel does not support these tensors
    """
    if inputs.ndim != 3 or (core.training and core.layer(0).sizes.dropout > 0):
        return None
    all_parameters = dispatch.keep((core, "parameters"), lambda: list(core.layers.parameters()))
    prepared = dispatch.keep((core, "kernel"), lambda: _prepare(core, all_parameters), all_parameters)
    if prepared is None or not calling.takes(inputs, state, starts, core.state_size, prepared.parameters):
        return None
    kernel, of_rows, parameters = prepared
    rows = [functional.linear(inputs, *of_row) for of_row in of_rows]
    starts = calling.without_empty(starts)
    initial_state = None if starts is None else core.initial_state(len(state))
    return calling.unroll(kernel, dict(input_rows=torch.stack(rows, dim=2)), state, initial_state, starts, parameters)


def _prepare(core: "ModuleStack", all_parameters: list[nn.Parameter]) -> _Prepared | None:
    if calling.Parameters({str(index): each for index, each in enumerate(all_parameters)}).dtype is None:
        return None
    layers = [core.layer(index) for index in range(len(core.layers))]
    sizes = _sizes(core, layers)
    parameters: dict[str, Tensor] = {}
    for index, layer in enumerate(layers):
        of_layer = _linears(layer)
        if index > 0 or core.top_down:  # the step row
            of_layer |= _weights("step_row", *_row(layer.input_attention, core.input_copies if index == 0 else 0))
        if core.variant != "atari":
            bias = _row(layer.input_attention, 0)[1]
            of_layer["null_row"] = _null_row(sizes, layer) if bias is None else bias
        parameters |= {f"layers.{index}.{name}": tensor for name, tensor in of_layer.items()}
    rows = [_row(layers[0].input_attention, index) for index in range(core.input_copies)]
    work = sum(tensor.numel() for tensor in parameters.values())
    return _Prepared(calling.Kernel(f"rims_{layers[0].sizes.cell}", sizes, work), rows, calling.Parameters(parameters))


def _sizes(core: "ModuleStack", layers: list[ModuleLayer]) -> Sizes:
    of_layers = [
        LayerSizes(
            num_modules=layer.sizes.num_modules,
            num_active=layer.sizes.num_active,
            module_size=layer.sizes.module_size,
            read_size=layer.sizes.read_size,
            comm_heads=layer.sizes.comm_heads,
            comm_key_size=layer.sizes.comm_key_size,
            comm_value_size=layer.sizes.comm_value_size,
            distinct_rows=layer.input_attention.distinct_rows,
        )
        for layer in layers
    ]
    sizes = layers[0].sizes
    # "dido" averages the scores of its heads, which equals one head with longer keys
    heads = 1 if core.variant == "dido" else sizes.input_heads
    return Sizes(
        num_layers=len(layers),
        layer_struct_size=sizeof(LayerSizes),
        layers=(LayerSizes * len(layers))(*of_layers),
        num_input_rows=core.input_copies,
        input_heads=heads,
        input_key_size=sizes.input_heads * sizes.input_key_size // heads,
        variant=VARIANTS.index(core.variant),
        top_down=core.top_down,
        hide_inactive=not core.use_inactive,
        block_gradient=core.blocked_grad,
        score_scale=sizes.input_key_size**-0.5 * heads / sizes.input_heads,
    )


def _null_row(sizes: Sizes, layer: ModuleLayer) -> Tensor:
    return layer.cells.from_state.weight.new_zeros(sizes.input_heads * sizes.input_key_size + layer.sizes.read_size)


def _row(attention: InputAttention, index: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear layer that computes keys and values of a row."""
    key, value = cast(nn.Linear, attention.key[index]), cast(nn.Linear, attention.value[index])
    weight: Tensor = value.weight
    if attention.variant != "dido":
        return torch.cat([key.weight, weight]), None
    # the mean over heads is linear as well: (H a, F) -> (H, a, F) -> (a, F)
    weight, bias = (torch.unflatten(tensor, 0, (attention.heads, -1)).mean(0) for tensor in (weight, value.bias))
    return torch.cat([key.weight, weight]), torch.cat([key.bias, bias])


def _linears(layer: ModuleLayer) -> dict[str, Tensor]:
    """The parameters of a layer by the names and in the order of ``rims.h``, without those of the rows."""
    cells, communication = layer.cells, layer.communication
    groups = dict(query=layer.input_attention.query, from_state=cells.from_state, from_read=cells.from_read)
    found: dict[str, Tensor] = {}
    for name, group in groups.items():
        found |= _weights(name, group.weight, group.bias)
    if communication is not None:
        found["qkv.weight"] = _by_heads(communication)
        found |= _weights("message", *_message(communication))
    return found


def _weights(name: str, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {f"{name}.weight": weight} if bias is None else {f"{name}.weight": weight, f"{name}.bias": bias}


def _by_heads(communication: Communication) -> Tensor:
    """The weights of queries, keys and values ``(K, s, E)``, ordered by head as in C++."""
    parts = torch.split(communication.qkv.weight, communication.split, dim=-1)
    heads = [torch.unflatten(part, -1, (communication.heads, -1)) for part in parts]
    return torch.cat(heads, dim=-1).flatten(-2)


def _message(communication: Communication) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer after the communication's attention; with a gate, both layers as one."""
    if communication.gate is None:
        return communication.out.weight, None
    both = (cast(nn.Linear, communication.out), communication.gate)
    return torch.cat([layer.weight for layer in both]), torch.cat([layer.bias for layer in both])
