"""
Cores with published weights: functions that build ours from the weights of the authors' code.

* :func:`rmc_from_sonnet`: RMC from DeepMind Sonnet v1, ``relational_memory.py`` at commit ``cd5b5fa4``
* :func:`rims_from_official`: RIMs from anirudh9119/RIMs (``BlocksCore``, supervised and Atari code) at ``aa61773a``
* :func:`rims_from_dido`: RIMs from dido1998/Recurrent-Independent-Mechanisms (``RIMCell``) at ``26aa8717``
* :func:`brims_from_official`: BRIMs from sarthmit/BRIMs (``Blocks``) at ``f8af67e8``; also RIMs of several layers

The cores know nothing of these layouts. The functions ``*_parameters`` convert arrays by name. They only slice, transpose
and stack, so they convert gradients as well as weights.

Shapes: ``K`` modules of size ``s``, ``G`` gates, ``R`` rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.brims import BRIMs
from rmc_rl.agents.cores.rims import RIMs
from rmc_rl.agents.cores.rmc import RMC
from rmc_rl.errors import UsageError, require, require_choice, require_whole

AnyCore = TypeVar("AnyCore", bound=Core)

# arguments of BlocksCore and Blocks that have no default
OFFICIAL_CONFIG = ("ninp", "nhid", "num_blocks", "topk", "inp_heads", "inp_d_k", "comm_heads", "comm_d_k", "comm_d_v")
# arguments of RIMCell that have no default
DIDO_CONFIG = (
    *("input_size", "num_units", "k", "hidden_size", "rnn_cell"),
    *("num_input_heads", "input_key_size", "input_value_size", "num_comm_heads", "comm_key_size"),
)
# parameters that the authors' code has but never uses
UNUSED = (
    "mha.ln.weight",
    "mha.ln.bias",
    *(f"inp_att.{part}.{kind}" for part in ("gate_fc", "ln") for kind in ("weight", "bias")),
)
COMMUNICATION = ("mha.GLN_qs.w", "mha.GLN_ks.w", "mha.GLN_vs.w")
MLP_WEIGHT = "mlp/linear_0/w"  # a variable that every RelationalMemory has once


def rmc_from_sonnet(config: Mapping[str, Any], weights: Mapping[str, Any]) -> RMC:
    """
    An RMC with the weights of a Sonnet v1 ``RelationalMemory``.

    :param config: the arguments of the original's constructor by their own names (``mem_slots``, ``head_size``,
        ``num_heads`` ...). Missing arguments have the original's defaults. With ``treat_input_as_matrix``, also
        ``input_shape``, the shape of one input without the batch dimension
    :param weights: every variable as an array, by its TensorFlow name (with any scope before it, with or without ``:0``)
    :return: the core, float32
    :raises UsageError: if a variable is missing, unknown, or of another shape than the arguments say
    """
    matrix = bool(config.get("treat_input_as_matrix"))
    _require_names(config, ["mem_slots", "head_size", *(["input_shape"] if matrix else [])])
    named = {name.removesuffix(":0"): array for name, array in weights.items()}
    scopes = [name.removesuffix(MLP_WEIGHT) for name in named if name.endswith(MLP_WEIGHT)]
    require(len(scopes) == 1, f"weights must hold one relational memory, so one variable '{MLP_WEIGHT}'", scopes)
    named = {name.removeprefix(scopes[0]): array for name, array in named.items()}
    entities = require_whole("input_shape[0]", config["input_shape"][0]) if matrix else 1
    row_size = _Arrays(named).take("linear/w").shape[0]
    core = RMC(
        entities * row_size,
        num_slots=config["mem_slots"],
        num_heads=config.get("num_heads", 1),
        head_size=config["head_size"],
        num_blocks=config.get("num_blocks", 1),
        key_size=config.get("key_size"),
        mlp_layers=config.get("attention_mlp_layers", 2),
        gate_style=config.get("gate_style", "unit") or "none",
        forget_bias=config.get("forget_bias", 1.0),
        input_bias=config.get("input_bias", 0.0),
        num_entities=entities,
    )
    return load_weights(core, rmc_parameters(core, named))


def rims_from_official(config: Mapping[str, Any], weights: Mapping[str, Any], variant: str = "official") -> RIMs:
    """
    RIMs with the weights of the authors' ``BlocksCore``.

    :param config: ``ninp``, ``nhid``, ``num_blocks``, ``topk``, ``inp_heads``, ``inp_d_k``, ``comm_heads``, ``comm_d_k``,
        ``comm_d_v``, and, unless they are False, True and 2, ``do_gru``, ``step_att`` and ``num_modules_read_input``
    :param weights: every parameter as an array, by its name in that code
    :param variant: "official" (supervised code) or "atari" (reinforcement-learning code)
    :return: the core, float32, without embedding and with an initial state of zeros
    :raises UsageError: if a parameter is missing, unknown, or of another shape than the arguments say
    """
    require_choice("variant", variant, ("official", "atari"))
    _require_names(config, OFFICIAL_CONFIG)
    modules, communication = require_whole("num_blocks", config["num_blocks"]), bool(config.get("step_att", True))
    core = RIMs(
        config["ninp"],
        num_modules=modules,
        num_active=config["topk"],
        module_size=_module_size(config["nhid"], modules),
        variant=variant,
        input_copies=config.get("num_modules_read_input", 2) - 1,
        **_shared_official(config, config["comm_heads"] if communication else 0),
    )
    return load_weights(core, official_parameters(weights, modules, variant == "official", communication))


def rims_from_dido(config: Mapping[str, Any], weights: Mapping[str, Any]) -> RIMs:
    """
    RIMs with the weights of dido1998's ``RIMCell``.

    :param config: the arguments of the original's constructor by their own names
    :param weights: every parameter as an array, by its name in that code
    :return: the core, float32, without embedding and with an initial state of zeros
    :raises UsageError: if a parameter is missing, unknown, or of another shape than the arguments say
    """
    _require_names(config, DIDO_CONFIG)
    core = RIMs(
        config["input_size"],
        num_modules=config["num_units"],
        num_active=config["k"],
        module_size=config["hidden_size"],
        cell=str(config["rnn_cell"]).lower(),
        variant="dido",
        input_heads=config["num_input_heads"],
        input_key_size=config["input_key_size"],
        read_size=config["input_value_size"],
        comm_heads=config["num_comm_heads"],
        comm_key_size=config["comm_key_size"],
        comm_value_size=config["hidden_size"],  # the original ignores its argument comm_value_size
        embedding_size=0,
        initial_state="zeros",
    )
    return load_weights(core, dido_parameters(weights))


def brims_from_official(config: Mapping[str, Any], weights: Mapping[str, Any]) -> BRIMs:
    """
    BRIMs with the weights of the authors' ``Blocks``, which also computes RIMs of several layers.

    :param config: ``ninp``; a list with a number for each layer, ``nhid``, ``num_blocks`` and ``topk``; ``inp_heads``,
        ``inp_d_k``, ``comm_heads``, ``comm_d_k``, ``comm_d_v``; and, unless they are False, True and False, ``do_gru``,
        ``use_inactive`` and ``blocked_grad``. The weights tell whether there is a top-down row
    :param weights: every parameter as an array, by its name in that code (``bc_lst.<layer>. ...``)
    :return: the core, float32, without embedding and with an initial state of zeros
    :raises UsageError: if a parameter is missing, unknown, or of another shape than the arguments say
    """
    _require_names(config, OFFICIAL_CONFIG)
    count = len(config["nhid"])
    lengths = [len(config[name]) for name in ("num_blocks", "topk")]
    require(lengths == [count, count], f"num_blocks and topk must have {count} numbers, as nhid has", lengths)
    num_modules = [require_whole("each number in num_blocks", modules) for modules in config["num_blocks"]]
    converted = brims_parameters(weights, num_modules)
    core = BRIMs(
        config["ninp"],
        num_modules=num_modules,
        num_active=list(config["topk"]),
        module_size=[_module_size(*sizes) for sizes in zip(config["nhid"], num_modules, strict=True)],
        top_down="layers.0.input_attention.key.1.weight" in converted,
        use_inactive=config.get("use_inactive", True),
        blocked_grad=config.get("blocked_grad", False),
        **_shared_official(config, config["comm_heads"]),
    )
    return load_weights(core, converted)


def rmc_parameters(core: RMC, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """
    Convert the variables of a Sonnet v1 ``RelationalMemory``.

    :param core: an RMC of the same sizes
    :param weights: variable name without its scope -> array
    :return: our parameter name -> tensor
    :raises UsageError: if a variable is missing or unknown
    """
    blocks, gates = range(len(core.blocks)), core.gate_style != "none"
    linears = ["project", *(f"blocks.{k}.qkv" for k in blocks), *(["gate_from_input", "gate_from_memory"] if gates else [])]
    norms = [f"blocks.{k}.{norm}" for k in blocks for norm in ("qkv_norm", "attention_norm", "mlp_norm")]
    originals = {f"mlp.{index}": f"mlp/linear_{index}" for index in range(len(core.mlp))}
    originals |= {name: _numbered("linear", index) for index, name in enumerate(linears)}
    arrays, found = _Arrays(weights), {}
    for name, original in originals.items():
        found[f"{name}.weight"] = arrays.take(f"{original}/w").T  # (inputs, outputs) -> (outputs, inputs)
        found[f"{name}.bias"] = arrays.take(f"{original}/b")
    for index, name in enumerate(norms):
        found[f"{name}.weight"] = arrays.take(f"{_numbered('layer_norm', index)}/gamma")
        found[f"{name}.bias"] = arrays.take(f"{_numbered('layer_norm', index)}/beta")
    arrays.finish()
    return found


def brims_parameters(weights: Mapping[str, Any], num_modules: Sequence[int]) -> dict[str, Tensor]:
    """
    Convert the parameters of ``Blocks``.

    :param weights: parameter name -> array
    :param num_modules: ``K`` of each layer
    :return: our parameter name -> tensor
    :raises UsageError: if a parameter is missing or unknown
    """
    prefixes = [f"bc_lst.{index}." for index in range(len(num_modules))]
    unknown = sorted(name for name in weights if not name.startswith(tuple(prefixes)))
    require(not unknown, "weights must hold only the parameters of the layers", unknown)
    found: dict[str, Tensor] = {}
    for index, (prefix, modules) in enumerate(zip(prefixes, num_modules, strict=True)):
        layer = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
        found |= official_parameters(layer, modules, layer=index)
    return found


def official_parameters(
    weights: Mapping[str, Any], num_modules: int, null_row: bool = True, communication: bool = True, layer: int = 0
) -> dict[str, Tensor]:
    """
    Convert the parameters of one ``BlocksCore`` of anirudh9119/RIMs (supervised and Atari) or sarthmit/BRIMs.

    :param weights: parameter name -> array. Of dense recurrent matrices, each module's own block is taken
    :param num_modules: ``K``
    :param null_row: whether the first matrix of keys and values belongs to the null row, and so is never used
    :param communication: whether modules communicate. If not, the original has weights for it, which it never uses
    :param layer: index of our layer
    :return: our parameter name -> tensor
    :raises UsageError: if a parameter is missing or unknown
    """
    used = [name for name in weights if name not in UNUSED and (communication or not name.startswith("mha."))]
    arrays = _Arrays({name: weights[name] for name in used})
    cell, gates = ("gru", 3) if "block_lstm.gru.weight_ih" in weights else ("lstm", 4)
    found = {"input_attention.query.weight": arrays.take("inp_att.GLN_qs.w")}
    for ours, theirs in (("key", "inp_att.GLN_ks.w"), ("value", "inp_att.GLN_vs.w")):
        rows = arrays.take(theirs)[1 if null_row else 0 :]  # (R, inputs, outputs)
        found |= {f"input_attention.{ours}.{index}.weight": row.T for index, row in enumerate(rows)}
    for ours, theirs in (("from_read", "ih"), ("from_state", "hh")):
        weight = arrays.take(f"block_lstm.{cell}.weight_{theirs}")
        found[f"cells.{ours}.weight"] = _own_blocks(weight, gates, num_modules)
        bias = arrays.take(f"block_lstm.{cell}.bias_{theirs}")
        # (G K s) -> (G, K, s) -> (K, G s)
        found[f"cells.{ours}.bias"] = bias.view(gates, num_modules, -1).transpose(0, 1).flatten(1)
    if communication:
        found["communication.qkv.weight"] = torch.cat([arrays.take(name) for name in COMMUNICATION], dim=-1)
        for ours, theirs in (("out", "fc"), ("gate", "gate_fc")):
            found |= {f"communication.{ours}.{kind}": arrays.take(f"mha.{theirs}.{kind}") for kind in ("weight", "bias")}
    arrays.finish()
    return {f"layers.{layer}.{name}": tensor for name, tensor in found.items()}


def dido_parameters(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """
    Convert the parameters of a ``RIMCell`` of dido1998/Recurrent-Independent-Mechanisms.

    :param weights: parameter name -> array
    :return: our parameter name -> tensor
    :raises UsageError: if a parameter is missing or unknown
    """
    arrays = _Arrays(weights)
    found = {"input_attention.query.weight": arrays.take("query.w")}
    for part in ("key", "value"):
        found |= {f"input_attention.{part}.0.{kind}": arrays.take(f"{part}.{kind}") for kind in ("weight", "bias")}
    lstm = "rnn.i2h.w" in weights
    for ours, theirs in (("from_read", "i2h" if lstm else "x2h"), ("from_state", "h2h")):
        gates = arrays.take(f"rnn.{theirs}.w")  # (K, inputs, G s)
        if lstm:  # the original's order of gates is i, f, o, g
            i, f, o, g = gates.chunk(4, dim=-1)
            gates = torch.cat([i, f, g, o], dim=-1)
        found[f"cells.{ours}.weight"] = gates
    found["communication.qkv.weight"] = torch.cat([arrays.take(f"{name}_.w") for name in ("query", "key", "value")], dim=-1)
    found["communication.out.weight"] = arrays.take("comm_attention_output.w")
    arrays.finish()
    return {f"layers.0.{name}": tensor for name, tensor in found.items()}


def load_weights(core: AnyCore, weights: Mapping[str, Tensor]) -> AnyCore:
    """
    Copy tensors into the parameters of a core.

    :param core: changed in place
    :param weights: parameter name -> tensor
    :return: the core
    :raises UsageError: if a tensor is missing, unknown, or of another shape than its parameter
    """
    parameters = dict(core.named_parameters())
    different = sorted(set(parameters) ^ set(weights))
    require(not different, "weights and arguments must name the same parameters, different", different)
    for name, parameter in parameters.items():
        shapes = tuple(parameter.shape), tuple(weights[name].shape)
        require(shapes[0] == shapes[1], f"'{name}' must have shape {shapes[0]}, as the arguments say", shapes[1])
        with torch.no_grad():
            parameter.copy_(weights[name])
    return core


class _Arrays:
    """The original's arrays by name. Each is taken once."""

    def __init__(self, arrays: Mapping[str, Any]):
        self._remaining = dict(arrays)

    def take(self, name: str) -> Tensor:
        if name not in self._remaining:
            raise UsageError(f"weights must hold every parameter of the original, '{name}' is missing")
        return torch.as_tensor(self._remaining.pop(name))

    def finish(self) -> None:
        require(not self._remaining, "weights must hold only the parameters of the original", sorted(self._remaining))


def _numbered(name: str, index: int) -> str:
    """How TensorFlow names the modules of a kind: "linear", "linear_1", ..."""
    return f"{name}_{index}" if index > 0 else name


def _require_names(config: Mapping[str, Any], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in config]
    require(not missing, f"config must have {', '.join(needed)}; missing", missing)


def _shared_official(config: Mapping[str, Any], comm_heads: int) -> dict[str, Any]:
    """Arguments that RIMs and BRIMs of the official code have in common."""
    return dict(
        cell="gru" if config.get("do_gru") else "lstm",
        input_heads=config["inp_heads"],
        input_key_size=config["inp_d_k"],
        comm_heads=comm_heads,
        comm_key_size=config["comm_d_k"],
        comm_value_size=config["comm_d_v"],
        embedding_size=0,
        initial_state="zeros",
    )


def _module_size(width: Any, num_modules: int) -> int:
    """``s`` from the width of all modules, ``nhid``."""
    require(require_whole("nhid", width) % num_modules == 0, f"num_blocks, {num_modules}, must divide nhid", width)
    return int(width) // num_modules


def _own_blocks(dense: Tensor, gates: int, num_modules: int) -> Tensor:
    """A dense matrix ``(G K s, K inputs)``, gates outermost -> each module's own block, ``(K, inputs, G s)``."""
    rows, columns = dense.shape
    divides = rows % (gates * num_modules) == 0 and columns % num_modules == 0
    require(divides, f"num_blocks must divide a matrix {rows, columns}", num_modules)
    # (G K s, K inputs) -> (G, K, s, K, inputs) -> (G, s, inputs, K)
    blocks = dense.view(gates, num_modules, -1, num_modules, columns // num_modules).diagonal(dim1=1, dim2=3)
    return blocks.permute(3, 2, 0, 1).flatten(2)
