"""
The Relational Memory Core: memory slots that attend to each other and to the input.

Paper: Santoro et al., "Relational recurrent neural networks", 2018, https://arxiv.org/abs/1806.01822 (section 3).
Code it equals: DeepMind Sonnet v1, ``sonnet/python/modules/relational_memory.py`` at commit ``cd5b5fa4``.

Shapes: ``B`` batch, ``T`` time, ``N`` memory slots, ``n`` entities (input rows) per step, ``H`` heads, ``V`` head size,
``K`` key size, ``D = H V`` width of a slot, ``G`` numbers per gate and slot (``D`` or 1).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.layers import linear
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import UsageError, require, require_choice, require_whole

GATE_STYLES = ("unit", "memory", "none")
READOUTS = ("flatten", "mean", "attention")


class _AttentionBlock(nn.Module):
    """What each attention block has for itself: the projection to queries, keys and values, and three layer norms."""

    def __init__(self, width: int, num_heads: int, key_size: int, head_size: int):
        super().__init__()
        self.num_heads, self.key_size, self.head_size = num_heads, key_size, head_size
        self.qkv = linear(width, num_heads * (2 * key_size + head_size))
        self.qkv_norm = nn.LayerNorm(self.qkv.out_features)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)

    def attend(self, rows: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
        """
        Multi-head attention of the first rows over all rows.

        :param rows: ``(B, R, D)``
        :param num_queries: ``Q``, how many rows ask; the others are only attended to
        :return: read values ``(B, Q, D)`` and attention weights ``(B, H, Q, R)``
        """
        batch, num_rows, _ = rows.shape
        qkv = self.qkv_norm(self.qkv(rows))
        # heads outside, q k v inside each head: (B, R, H (2K + V)) -> (B, H, R, 2K + V)
        qkv = qkv.view(batch, num_rows, self.num_heads, -1).transpose(1, 2)
        query, key, value = qkv.split([self.key_size, self.key_size, self.head_size], dim=-1)
        query = query[:, :, :num_queries] * self.key_size**-0.5
        weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1)  # (B, H, Q, R)
        # (B, H, Q, V) -> (B, Q, H V)
        return (weights @ value).transpose(1, 2).reshape(batch, num_queries, -1), weights


@register_core("rmc")
class RMC(Core):
    r"""
    Relational Memory Core (Santoro et al. 2018). The state is the memory ``M``, ``N`` slots of width ``D``.

    With the input's rows :math:`I = W x + b` (one per entity) and, in each of ``num_blocks`` blocks, over the rows of
    :math:`Z = [M; I]`:

    .. math::

        [Q_h, K_h, V_h]_h &= LN(W_{qkv} Z + b) \\
        Z &\leftarrow LN(Z + [softmax(Q_h K_h^T / \sqrt{K})\, V_h]_h) \\
        Z &\leftarrow LN(Z + MLP(Z))

    and with :math:`U` the first ``N`` rows of ``Z``, the gates (``gate_style``)

    .. math::

        g_i, g_f &= W_x [I]_{flat} + W_m \tanh(M) \\
        M' &= \sigma(g_i + b_i) \odot \tanh(U) + \sigma(g_f + b_f) \odot M

    It starts from the identity matrix, cut or padded with zeros to ``(N, D)``: slots that start equal stay equal for ever.

    :meth:`inspect` shows ``attention`` ``(T, B, num_blocks, H, N, N + n)`` (from slots, to slots and input rows),
    ``input_gate`` and ``forget_gate`` ``(T, B, N, G)``, and with ``readout="attention"`` ``read_attention`` ``(T, B, H, N)``.

    Differences from the paper:

    * As in the authors' code: gates read the projected input rather than the raw one; slots and input rows attend to
      both; the MLP is one and the same in all blocks; the new memory itself is the output (no output gate).

    Differences from the authors' code:

    * ``gate_style="none"`` is ``None`` there, ``num_entities=n`` is ``treat_input_as_matrix=True``.
    * Rows that the last block would drop are not computed: the same numbers, less work.
    * ``readout`` "mean" and "attention" are ours, for many or wide slots, where the flat memory would be a large output.

    :param input_size: ``F``, features read per step
    :param num_slots: ``N``, rows of the memory
    :param num_heads: ``H``, attention heads
    :param head_size: ``V``, values per head
    :param num_blocks: attention blocks per step
    :param key_size: ``K``, size of queries and keys per head; None: ``head_size``
    :param mlp_layers: linear layers in the attention MLP, ReLU between them
    :param gate_style: "unit" (a gate for each number), "memory" (one for each slot) or "none"
    :param forget_bias: added to the forget gate before its sigmoid; a constant, not trained
    :param input_bias: the same for the input gate
    :param num_entities: ``n``, equal parts of the input that become one row each; ``F`` must be divisible by it
    :param readout: how the memory is written out: "flatten" (``O = N D``, the original), "mean" over slots (``O = D``),
        or "attention" (``O = D``: each head reads its part of the slots with a learned query)
    :param kernel: "auto", "eager" or "native": how it is computed, see :mod:`rmc_rl.agents.cores.kernels`
    :raises UsageError: for a value outside these rules
    """

    kernel_family = "rmc"
    size_arguments = ("head_size", "key_size")

    def __init__(
        self,
        input_size: int,
        num_slots: int = 4,
        num_heads: int = 4,
        head_size: int = 16,
        num_blocks: int = 1,
        key_size: int | None = None,
        mlp_layers: int = 2,
        gate_style: str = "unit",
        forget_bias: float = 1.0,
        input_bias: float = 0.0,
        num_entities: int = 1,
        readout: str = "flatten",
        kernel: str = "auto",
    ):
        key_size = head_size if key_size is None else key_size
        sizes = dict(num_slots=num_slots, num_heads=num_heads, head_size=head_size, num_blocks=num_blocks)
        sizes |= dict(key_size=key_size, mlp_layers=mlp_layers, num_entities=num_entities)
        for name, value in sizes.items():
            require_whole(name, value)
        require_choice("gate_style", gate_style, GATE_STYLES)
        require_choice("readout", readout, READOUTS)
        dispatch.check_kernel(kernel)
        for name, bias in dict(forget_bias=forget_bias, input_bias=input_bias).items():
            require(isinstance(bias, int | float) and not isinstance(bias, bool), f"{name} must be a number", bias)
        require(
            input_size % num_entities == 0,
            f"num_entities must divide the {input_size} features the core reads per step",
            num_entities,
        )
        width = num_heads * head_size
        output_size = num_slots * width if readout == "flatten" else width
        super().__init__(input_size, output_size, state_size=num_slots * width)
        self.num_slots, self.num_heads, self.head_size, self.width = num_slots, num_heads, head_size, width
        self.num_entities, self.readout, self.kernel = num_entities, readout, kernel
        self.gate_style, self.forget_bias, self.input_bias = gate_style, float(forget_bias), float(input_bias)

        self.project = linear(input_size // num_entities, width)
        self.blocks = nn.ModuleList(_AttentionBlock(width, num_heads, key_size, head_size) for _ in range(num_blocks))
        self.mlp = nn.ModuleList(linear(width, width) for _ in range(mlp_layers))
        if gate_style != "none":
            gate_size = 2 * (width if gate_style == "unit" else 1)
            self.gate_from_input = linear(num_entities * width, gate_size)
            self.gate_from_memory = linear(width, gate_size)
        if readout == "attention":
            self.read_query = nn.Parameter(torch.randn(num_heads, head_size) / math.sqrt(head_size))

    def initial_state(self, batch_size: int) -> Tensor:
        weight = self.project.weight
        memory = torch.eye(self.num_slots, self.width, dtype=weight.dtype, device=weight.device)
        return memory.flatten().expand(batch_size, -1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled() and x.ndim == 2:  # an acting step; a kernel with gradients is worth it for many steps
            fused = self._fused(self._embed(x.unsqueeze(0)), state, None)
            if fused is not None:
                return self._read(fused[0]), fused[0].flatten(1)
        return self._advance(*self._embed(x), state)

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # what depends on the inputs alone, for all steps at once
        embedded = self._embed(inputs)
        memories = self._fused(embedded, state, starts)
        if memories is None:
            return self.unroll(self._advance, embedded, state, starts)
        # (T, B, N, D) -> (T B, N, D), (T B, O) -> (T, B, O)
        outputs = self._read(memories.flatten(0, 1)).view(*memories.shape[:2], -1)
        return outputs, memories[-1].flatten(1)

    def _fused(self, embedded: tuple[Tensor, ...], state: Tensor, starts: Tensor | None) -> Tensor | None:
        """The memory after each step, ``(T, B, N, D)``; None where no kernel computes it."""
        rows = embedded[0]
        kernel = self.find_kernel(rows, state)
        if kernel is None:
            return None
        gates = embedded[1].squeeze(-2) if len(embedded) > 1 else None
        memories: Tensor | None = kernel.unroll(self, rows, gates, state, starts)
        # (T, B, N D) -> (T, B, N, D)
        return None if memories is None else memories.view(*rows.shape[:2], self.num_slots, self.width)

    def _embed(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(..., F)`` -> the input's rows ``(..., n, D)`` and, where there are gates, its part of them ``(..., 1, 2G)``."""
        # (..., F) -> (..., n, F / n) -> (..., n, D)
        rows = self.project(x.reshape(*x.shape[:-1], self.num_entities, -1))
        if self.gate_style == "none":
            return (rows,)
        return rows, self.gate_from_input(rows.flatten(-2)).unsqueeze(-2)

    def _advance(self, *embedded_and_state: Tensor) -> tuple[Tensor, Tensor]:
        """One step from what :meth:`_embed` returned and the state ``(B, S)``."""
        *embedded, state = embedded_and_state
        memory = state.view(-1, self.num_slots, self.width)  # (B, N D) -> (B, N, D)
        rows = torch.cat([memory, embedded[0]], dim=1)  # (B, N + n, D)
        attention = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, _AttentionBlock)
            # after the last block only the slots are kept
            num_queries = self.num_slots if index == len(self.blocks) - 1 else rows.shape[1]
            read, weights = block.attend(rows, num_queries)
            rows = block.attention_norm(rows[:, :num_queries] + read)
            rows = block.mlp_norm(rows + self._mlp(rows))
            attention.append(weights[:, :, : self.num_slots])
        update = rows  # (B, N, D)
        if self._looks is not None:
            self.show("attention", torch.stack(attention, dim=1))
        if self.gate_style != "none":
            gates = embedded[1] + self.gate_from_memory(torch.tanh(memory))  # (B, N, 2G)
            input_gate, forget_gate = gates.chunk(2, dim=-1)
            input_gate = torch.sigmoid(input_gate + self.input_bias)
            forget_gate = torch.sigmoid(forget_gate + self.forget_bias)
            self.show("input_gate", input_gate)
            self.show("forget_gate", forget_gate)
            update = input_gate * torch.tanh(update) + forget_gate * memory
        return self._read(update), update.flatten(1)

    def _mlp(self, rows: Tensor) -> Tensor:
        for index, layer in enumerate(self.mlp):
            rows = layer(rows if index == 0 else functional.relu(rows))
        return rows

    def _read(self, memory: Tensor) -> Tensor:
        """``(B, N, D)`` -> ``(B, O)``."""
        if self.readout == "flatten":
            return memory.flatten(1)
        if self.readout == "mean":
            return memory.mean(1)
        # (B, N, D) -> (B, N, H, V) -> (B, H, N, V)
        heads = memory.view(-1, self.num_slots, self.num_heads, self.head_size).transpose(1, 2)
        scores = (heads * self.read_query.unsqueeze(1)).sum(-1) * self.head_size**-0.5
        weights = torch.softmax(scores, dim=-1)  # (B, H, N)
        self.show("read_attention", weights)
        return (weights.unsqueeze(-1) * heads).sum(2).flatten(1)  # (B, H, V) -> (B, D)

    @classmethod
    def from_sonnet(cls, config: Mapping[str, Any], weights: Mapping[str, Any]) -> "RMC":
        """
        A core with the weights of a Sonnet v1 ``RelationalMemory``.

        :param config: the arguments of the original's constructor by their own names (``mem_slots``, ``head_size``,
            ``num_heads`` ...; missing ones have the original's defaults), and with ``treat_input_as_matrix``
            also ``input_shape``, the shape of one input without its batch
        :param weights: every variable, by its TensorFlow name (any scope before it, with or without ``:0``), as an array
        :return: the core, float32
        :raises UsageError: where a variable is missing, left over or of another shape than the arguments say
        """
        needed = ["mem_slots", "head_size", *(["input_shape"] if config.get("treat_input_as_matrix") else [])]
        missing = [name for name in needed if name not in config]
        require(not missing, f"config must have {', '.join(needed)}; missing", missing)
        named = {name.removesuffix(":0"): torch.as_tensor(array) for name, array in weights.items()}
        mlp_key = "mlp/linear_0/w"
        prefixes = [name.removesuffix(mlp_key) for name in named if name.endswith(mlp_key)]
        require(len(prefixes) == 1, f"weights must hold one relational memory, so one variable '{mlp_key}'", prefixes)
        named = {name.removeprefix(prefixes[0]): array for name, array in named.items()}
        entities = config["input_shape"][0] if config.get("treat_input_as_matrix") else 1
        row_size = named["linear/w"].shape[0] if "linear/w" in named else 0
        core = cls(
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
        parameters = dict(core.named_parameters())
        for name, source in core.sonnet_names().items():
            if source not in named:
                raise UsageError(f"weights must hold every variable of the original, '{prefixes[0]}{source}' is missing")
            array = named.pop(source)
            array = array.T if source.endswith("/w") else array  # Sonnet's matrices are (in, out)
            require(
                array.shape == parameters[name].shape,
                f"'{source}' must have shape {tuple(parameters[name].shape)} (transposed for matrices)",
                tuple(array.shape),
            )
            with torch.no_grad():
                parameters[name].copy_(array)
        require(not named, "weights must hold the relational memory's variables alone", sorted(named))
        return core

    def sonnet_names(self) -> dict[str, str]:
        """
        Where each parameter comes from in Sonnet v1.

        :return: parameter name -> variable name, without its scope. Empty for parameters of ours (``readout``)
        """
        linears: Sequence[str] = ["project", *(f"blocks.{k}.qkv" for k in range(len(self.blocks)))]
        if self.gate_style != "none":
            linears = [*linears, "gate_from_input", "gate_from_memory"]
        norms = [f"blocks.{k}.{norm}" for k in range(len(self.blocks)) for norm in ("qkv_norm", "attention_norm", "mlp_norm")]

        def numbered(name: str, index: int) -> str:
            return name if index == 0 else f"{name}_{index}"

        modules = {module: numbered("linear", index) for index, module in enumerate(linears)}
        modules |= {f"mlp.{index}": f"mlp/linear_{index}" for index in range(len(self.mlp))}
        names = {
            f"{ours}.{p}": f"{theirs}/{q}" for ours, theirs in modules.items() for p, q in (("weight", "w"), ("bias", "b"))
        }
        for index, norm in enumerate(norms):
            names[f"{norm}.weight"] = f"{numbered('layer_norm', index)}/gamma"
            names[f"{norm}.bias"] = f"{numbered('layer_norm', index)}/beta"
        return names
