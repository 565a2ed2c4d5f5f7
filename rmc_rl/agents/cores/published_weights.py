"""
Weights of the RIMs and BRIMs codes, as ours: the same numbers in grouped form.

Each function takes one layer's arrays by the names they have there and returns them by the names of
:class:`~rmc_rl.agents.cores.rims_layer.ModuleLayer`. They only cut, transpose and stack, so gradients convert alike.

Shapes: ``K`` modules of size ``s``, ``G`` gates, ``R`` rows, ``H`` heads, ``a`` numbers read.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rmc_rl.errors import UsageError, require

Module = TypeVar("Module", bound=nn.Module)
# parameters that the authors' code has and never uses
UNUSED = (
    "mha.ln.weight",
    "mha.ln.bias",
    *(f"inp_att.{part}.{kind}" for part in ("gate_fc", "ln") for kind in ("weight", "bias")),
)
# what there is to know of a layer or a stack of them
OFFICIAL_CONFIG = ("ninp", "nhid", "num_blocks", "topk", "inp_heads", "inp_d_k", "comm_heads", "comm_d_k", "comm_d_v")
COMMUNICATION = ("mha.GLN_qs.w", "mha.GLN_ks.w", "mha.GLN_vs.w")


def layer_of_official(
    weights: Mapping[str, Any], modules: int, null_row: bool = True, communication: bool = True
) -> dict[str, Tensor]:
    """
    A layer of anirudh9119/RIMs (``BlocksCore``, supervised and Atari) or sarthmit/BRIMs.

    :param weights: parameter name -> array; of dense recurrent matrices the modules' own blocks are taken
    :param modules: ``K``
    :param null_row: whether the first matrix of keys and values belongs to the null row, and is never used
    :param communication: whether modules communicate; where not, weights for it are there, and never used
    :return: our name -> tensor
    :raises UsageError: where one is missing or left over
    """
    used = [name for name in weights if name not in UNUSED and (communication or not name.startswith("mha."))]
    named = _Named({name: torch.as_tensor(weights[name]) for name in used})
    cell, gates = ("gru", 3) if "block_lstm.gru.weight_ih" in weights else ("lstm", 4)
    found = {"input_attention.query.weight": named.take("inp_att.GLN_qs.w")}
    for ours, theirs in (("key", "inp_att.GLN_ks.w"), ("value", "inp_att.GLN_vs.w")):
        rows = named.take(theirs)[1 if null_row else 0 :]  # (R, inputs, outputs)
        found |= {f"input_attention.{ours}.{index}.weight": row.T for index, row in enumerate(rows)}
    for ours, theirs in (("from_read", "ih"), ("from_state", "hh")):
        found[f"cells.{ours}.weight"] = _own_blocks(named.take(f"block_lstm.{cell}.weight_{theirs}"), gates, modules)
        bias = named.take(f"block_lstm.{cell}.bias_{theirs}")
        # (G K s) -> (G, K, s) -> (K, G s)
        found[f"cells.{ours}.bias"] = bias.view(gates, modules, -1).transpose(0, 1).flatten(1)
    if communication:
        found["communication.qkv.weight"] = torch.cat([named.take(name) for name in COMMUNICATION], dim=-1)
        for ours, theirs in (("out", "fc"), ("gate", "gate_fc")):
            found |= {f"communication.{ours}.{kind}": named.take(f"mha.{theirs}.{kind}") for kind in ("weight", "bias")}
    named.finish()
    return found


def layer_of_dido(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """
    A layer of dido1998/Recurrent-Independent-Mechanisms (``RIMCell``).

    :param weights: parameter name -> array
    :return: our name -> tensor
    :raises UsageError: where one is missing or left over
    """
    named = _Named({name: torch.as_tensor(array) for name, array in weights.items()})
    found = {"input_attention.query.weight": named.take("query.w")}
    for part in ("key", "value"):
        found |= {f"input_attention.{part}.0.{kind}": named.take(f"{part}.{kind}") for kind in ("weight", "bias")}
    lstm = "rnn.i2h.w" in weights
    for ours, theirs in (("from_read", "i2h" if lstm else "x2h"), ("from_state", "h2h")):
        gates = named.take(f"rnn.{theirs}.w")  # (K, inputs, G s)
        if lstm:  # their order is i, f, o, g
            i, f, o, g = gates.chunk(4, dim=-1)
            gates = torch.cat([i, f, g, o], dim=-1)
        found[f"cells.{ours}.weight"] = gates
    found["communication.qkv.weight"] = torch.cat([named.take(f"{name}_.w") for name in ("query", "key", "value")], dim=-1)
    found["communication.out.weight"] = named.take("comm_attention_output.w")
    named.finish()
    return found


def load_weights(core: Module, weights: Mapping[str, Tensor]) -> Module:
    """
    Fill a core.

    :param core: changed in place
    :param weights: one tensor for each of its parameters, by name
    :return: the core
    :raises UsageError: where a tensor is missing, left over or of another shape than the core's arguments say
    """
    parameters = dict(core.named_parameters())
    different = sorted(set(parameters) ^ set(weights))
    require(not different, "weights and arguments must name the same parameters", different)
    for name, parameter in parameters.items():
        shapes = tuple(parameter.shape), tuple(weights[name].shape)
        require(shapes[0] == shapes[1], f"'{name}' must have shape {shapes[0]}, as the arguments say", shapes[1])
        with torch.no_grad():
            parameter.copy_(weights[name])
    return core


def check_config(config: Mapping[str, Any], needed: Sequence[str]) -> None:
    """
    Check that a configuration says all there is to know.

    :param config: the original's arguments
    :param needed: their names
    :raises UsageError: where one is missing
    """
    missing = [name for name in needed if name not in config]
    require(not missing, f"config must have {', '.join(needed)}; missing", missing)


class _Named:
    """Arrays by name, each to be taken once."""

    def __init__(self, arrays: dict[str, Tensor]):
        self.left = arrays

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise UsageError(f"weights must hold every parameter of the original, '{name}' is missing")
        return self.left.pop(name)

    def finish(self) -> None:
        require(not self.left, "weights must hold the parameters of the original alone", sorted(self.left))


def _own_blocks(dense: Tensor, gates: int, modules: int) -> Tensor:
    """``(G K s, K inputs)``, gates outside -> each module's own block, ``(K, inputs, G s)``."""
    rows, columns = dense.shape
    require(
        rows % (gates * modules) == 0 and columns % modules == 0, f"num_blocks must divide a matrix {rows, columns}", modules
    )
    # (G K s, K inputs) -> (G, K, s, K, inputs) -> (G, s, inputs, K)
    blocks = dense.view(gates, modules, -1, modules, columns // modules).diagonal(dim1=1, dim2=3)
    return blocks.permute(3, 2, 0, 1).flatten(2)
