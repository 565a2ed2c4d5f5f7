"""
The Relational Memory Core: memory slots that attend to each other and to the input.

Paper: Santoro et al., "Relational recurrent neural networks", 2018, https://arxiv.org/abs/1806.01822 (section 3).
Code it equals: DeepMind Sonnet v1, ``sonnet/python/modules/relational_memory.py`` at commit ``cd5b5fa4``.

Shapes: ``B`` batch, ``T`` time, ``N`` memory slots, ``n`` entities (input rows) per step, ``H`` heads, ``V`` head size,
``K`` key size, ``D = H V`` width of a slot, ``G`` numbers per gate and slot (``D`` or 1).
"""

import math
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Axis, Core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.layers import FIRST_GATES, linear, uniform_gate_bias
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import require, require_choice, require_number, require_whole

GATE_STYLES = ("unit", "memory", "none")
READOUTS = ("flatten", "mean", "attention")


class _AttentionBlock(nn.Module):
    """The parameters of one attention block: the projection to queries, keys and values, and three layer norms."""

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
        :param num_queries: ``Q``, number of rows that attend; the other rows are only attended to
        :return: values read ``(B, Q, D)`` and attention weights ``(B, H, Q, R)``
        """
        batch, num_rows, _ = rows.shape
        qkv = self.qkv_norm(self.qkv(rows))
        # heads outermost, then query, key and value of each head: (B, R, H (2K + V)) -> (B, H, R, 2K + V)
        qkv = qkv.view(batch, num_rows, self.num_heads, 2 * self.key_size + self.head_size).transpose(1, 2)
        query, key, value = qkv.split([self.key_size, self.key_size, self.head_size], dim=-1)
        query = query[:, :, :num_queries] * self.key_size**-0.5
        weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1)  # (B, H, Q, R)
        return (weights @ value).transpose(1, 2).flatten(2), weights  # (B, H, Q, V) -> (B, Q, H V)


@register_core("rmc")
class RMC(Core):
    r"""
    Relational Memory Core (Santoro et al. 2018). The state is the memory ``M``, ``N`` slots of width ``D``.

    The input is projected to rows :math:`I = W x + b`, one per entity. Each of ``num_blocks`` attention blocks updates the
    rows of :math:`Z = [M; I]`:

    .. math::

        [Q_h, K_h, V_h]_h &= LN(W_{qkv} Z + b) \\
        Z &\leftarrow LN(Z + [softmax(Q_h K_h^T / \sqrt{K})\, V_h]_h) \\
        Z &\leftarrow LN(Z + MLP(Z))

    With :math:`U` the first ``N`` rows of the last ``Z``, the gates (``gate_style``) compute the next memory:

    .. math::

        g_i, g_f &= W_x [I]_{flat} + W_m \tanh(M) \\
        M' &= \sigma(g_i + b_i) \odot \tanh(U) + \sigma(g_f + b_f) \odot M

    The initial memory is the identity matrix, cut or padded with zeros to ``(N, D)``. Slots that start equal would stay equal
    at all steps.

    :meth:`inspect` shows ``attention`` ``(T, B, num_blocks, H, N, N + n)`` (from slots, to slots and input rows),
    ``input_gate`` and ``forget_gate`` ``(T, B, N, G)``, and with ``readout="attention"`` ``read_attention`` ``(T, B, H, N)``.

    Differences from the paper:

    * As in the authors' code, the gates read the projected input, not the raw input; slots and input rows both attend to slots
      and input rows; all blocks share one MLP; the output is the new memory, without an output gate.

    Differences from the authors' code:

    * ``gate_style="none"`` is called ``None`` there, and ``num_entities=n`` is called ``treat_input_as_matrix=True``.
    * The last block does not compute the input rows, because they are dropped. The results are the same.
    * ``readout="mean"`` and ``readout="attention"`` do not exist there. They keep the output small with many or wide slots.

    :func:`~rmc_rl.agents.cores.published_weights.rmc_from_sonnet` builds one from the weights of the authors' code.

    :param input_size: ``F``, features read per step
    :param num_slots: ``N``, rows of the memory
    :param num_heads: ``H``, attention heads
    :param head_size: ``V``, values per head
    :param num_blocks: number of attention blocks per step
    :param key_size: ``K``, size of queries and keys per head; None: ``head_size``
    :param mlp_layers: number of linear layers in the attention MLP, with ReLU between them
    :param gate_style: "unit" (a gate for each number), "memory" (a gate for each slot) or "none"
    :param forget_bias: added to the forget gate before its sigmoid; a constant, not trained
    :param input_bias: added to the input gate before its sigmoid; a constant, not trained
    :param first_gates: initial bias of the forget gates: "standard" (0, as in the authors' code, so that ``forget_bias`` alone
        sets all gates to one value) or "uniform" (the gates keep their content for different times, from one step to many: see
        :func:`~rmc_rl.agents.cores.layers.uniform_gate_bias`; ``forget_bias`` then has no effect on the initial gates)
    :param num_entities: ``n``, number of equal parts of the input that become one row each; must divide ``F``
    :param readout: the output computed from the memory: "flatten" (``O = N D``, as in the authors' code), "mean" over slots
        (``O = D``), or "attention" (``O = D``: each head attends to the slots with a learned query)
    :param kernel: "auto", "eager" or "native": how the core is computed, see :mod:`rmc_rl.agents.cores.kernels.dispatch`
    :raises UsageError: if a value breaks a rule
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
        first_gates: str = "standard",
        num_entities: int = 1,
        readout: str = "flatten",
        kernel: str = "auto",
    ):
        input_size = require_whole("input_size", input_size)
        num_slots = require_whole("num_slots", num_slots)
        num_heads = require_whole("num_heads", num_heads)
        head_size = require_whole("head_size", head_size)
        num_blocks = require_whole("num_blocks", num_blocks)
        key_size = head_size if key_size is None else require_whole("key_size", key_size)
        mlp_layers = require_whole("mlp_layers", mlp_layers)
        num_entities = require_whole("num_entities", num_entities)
        require_choice("gate_style", gate_style, GATE_STYLES)
        require_choice("first_gates", first_gates, FIRST_GATES)
        require_choice("readout", readout, READOUTS)
        dispatch.check_kernel(kernel)
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
        self.gate_style = gate_style
        self.forget_bias = require_number("forget_bias", forget_bias)
        self.input_bias = require_number("input_bias", input_bias)

        self.project = linear(input_size // num_entities, width)
        self.blocks = nn.ModuleList(_AttentionBlock(width, num_heads, key_size, head_size) for _ in range(num_blocks))
        self.mlp = nn.ModuleList(linear(width, width) for _ in range(mlp_layers))
        if gate_style != "none":
            gate_size = 2 * (width if gate_style == "unit" else 1)
            self.gate_from_input = linear(num_entities * width, gate_size)
            self.gate_from_memory = linear(width, gate_size)
            if first_gates == "uniform":
                half = gate_size // 2  # input gates come before forget gates
                with torch.no_grad():
                    self.gate_from_input.bias[half:] = uniform_gate_bias(half) - self.forget_bias
        if readout == "attention":
            self.read_query = nn.Parameter(torch.randn(num_heads, head_size) / math.sqrt(head_size))

    @property
    def output_scale(self) -> float:
        return 1 / self.num_slots if self.readout == "flatten" else 1.0  # the sum of the slots becomes their mean

    def initial_state(self, batch_size: int) -> Tensor:
        weight = self.project.weight
        memory = torch.eye(self.num_slots, self.width, dtype=weight.dtype, device=weight.device)
        return memory.flatten().expand(batch_size, -1)

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        return {"memory": state.reshape(*state.shape[:-1], self.num_slots, self.width)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        inputs = ["input"] if self.num_entities == 1 else [f"input {index + 1}" for index in range(self.num_entities)]
        keys = [f"slot {index + 1}" for index in range(self.num_slots)] + inputs
        per_slot: tuple[Axis, ...] = ("slot", "unit")
        return {
            "memory": per_slot,
            "attention": ("block", "head", "slot", keys),
            "input_gate": per_slot,
            "forget_gate": per_slot,
            "read_attention": ("head", "slot"),
        }

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._advance(*self._embed(x), state)

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kernel = dispatch.find(self, inputs, state)
        if kernel is None and self.is_modified():
            return super().forward(inputs, state, starts)  # a subclass may override any method, step included
        embedded = self._embed(inputs)  # the part that depends on the inputs alone, for all steps at once
        memories = None if kernel is None else self._run(kernel, embedded, state, starts)
        if memories is None:
            return self.unroll(self._advance, embedded, state, starts)
        # (T, B, N, D) -> (T B, N, D), (T B, O) -> (T, B, O)
        outputs = self._read(memories.flatten(0, 1)).view(*memories.shape[:2], self.output_size)
        return outputs, memories[-1].flatten(1)

    def _run(self, kernel: ModuleType, embedded: tuple[Tensor, ...], state: Tensor, starts: Tensor | None) -> Tensor | None:
        """The memory after each step, ``(T, B, N, D)``; None if the kernel does not support these tensors."""
        rows = embedded[0]
        gates = embedded[1].squeeze(-2) if len(embedded) > 1 else None
        memories: Tensor | None = kernel.unroll(self, rows, gates, state, starts)
        # (T, B, N D) -> (T, B, N, D)
        return None if memories is None else memories.view(*rows.shape[:2], self.num_slots, self.width)

    def _embed(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(..., F)`` -> the input rows ``(..., n, D)`` and, with gates, the input's part of the gates ``(..., 1, 2G)``."""
        # (..., F) -> (..., n, F / n) -> (..., n, D)
        rows = self.project(x.reshape(*x.shape[:-1], self.num_entities, self.project.in_features))
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
            # only the slots are needed after the last block
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
