"""
One layer of recurrent modules that compete for the input and talk to each other: what RIMs and BRIMs are made of.

Papers: Goyal et al., "Recurrent Independent Mechanisms", 2019, https://arxiv.org/abs/1909.10893 (section 2);
Mittal et al., "Learning to Combine Top-Down and Bottom-Up Signals in Recurrent Neural Networks with Attention over
Modules", 2020, https://arxiv.org/abs/2006.16981.
Code it equals, by ``variant``: "official", the authors' supervised code (anirudh9119/RIMs, ``event_based``, at commit
``aa61773a``, and sarthmit/BRIMs at ``f8af67e8``); "atari", their reinforcement-learning code (``blocks_atari`` in the former);
"dido", a port that many use (dido1998/Recurrent-Independent-Mechanisms at ``26aa8717``).

Shapes: ``B`` batch, ``K`` modules, ``k`` active ones, ``s`` size of a module, ``R`` rows that modules choose from,
``H`` heads, ``d`` key size, ``a`` numbers a module reads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.layers import GroupLinear, largest, linear, pass_gradient, sparsify

VARIANTS = ("official", "atari", "dido")
CELLS = ("lstm", "gru")


class ModuleSizes(NamedTuple):
    """The arguments of one layer; :class:`~rmc_rl.agents.cores.BRIMs` says what they mean."""

    num_modules: int
    num_active: int
    module_size: int
    cell: str
    variant: str
    input_heads: int
    input_key_size: int
    read_size: int
    comm_heads: int
    comm_key_size: int
    comm_value_size: int
    dropout: float


class InputAttention(nn.Module):
    """
    What each module reads of the rows it is offered, and which modules are active.

    Queries have weights per module; keys and values have weights per row, the same for all modules.

    * "official": a null row of zeros (key and value 0) stands first. A module attends over the rows; the ``k`` modules with
      the smallest weight on the null row are active. With more rows than distinct ones and two, attention is made sparse.
    * "atari": one row and no null row. The modules' weights on it, softmax over modules made sparse, scale what they read; the
      largest are active.
    * "dido": key and value have biases, which are the null row's; scores and values are averaged over heads; the modules with
      the largest score on the input are active, others read zeros.

    :param sizes: of the layer
    :param row_sizes: features of each row, without the null row
    :param distinct_rows: how many of these are not copies of another
    """

    def __init__(self, sizes: ModuleSizes, row_sizes: Sequence[int], distinct_rows: int):
        super().__init__()
        self.variant, self.num_active, self.dropout = sizes.variant, sizes.num_active, sizes.dropout
        self.heads, self.key_size = sizes.input_heads, sizes.input_key_size
        self.distinct_rows = distinct_rows
        bias = sizes.variant == "dido"
        keys = sizes.input_heads * sizes.input_key_size
        values = sizes.read_size * (sizes.input_heads if bias else 1)
        self.query = GroupLinear(sizes.num_modules, sizes.module_size, keys, bias=False)
        self.key = nn.ModuleList(linear(size, keys, bias) for size in row_sizes)
        self.value = nn.ModuleList(linear(size, values, bias) for size in row_sizes)

    def embed(self, row: Tensor, index: int = 0) -> tuple[Tensor, Tensor]:
        """
        Key and value of one row, which do not depend on the modules.

        :param row: ``(..., row_sizes[index])``
        :param index: which row
        :return: ``(..., 1, H d)`` and ``(..., 1, a)`` ("dido": ``H a``)
        """
        return self.key[index](row).unsqueeze(-2), self.value[index](row).unsqueeze(-2)

    def with_null(self, embedded: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """
        Keys and values of all rows, the null row first ("atari": there is none).

        :param embedded: what :meth:`embed` returned for each row
        :return: ``(..., R, H d)`` and ``(..., R, a)``
        """
        keys, values = (torch.cat(tensors, dim=-2) for tensors in zip(*embedded, strict=True))
        if self.variant == "official":
            return functional.pad(keys, (0, 0, 1, 0)), functional.pad(values, (0, 0, 1, 0))
        if self.variant == "dido":
            nulls = [self.key[0].bias, self.value[0].bias]
            keys, values = (
                torch.cat([null.expand_as(rows[..., :1, :]), rows], dim=-2)  # type: ignore[operator]
                for null, rows in zip(nulls, (keys, values), strict=True)
            )
        return keys, values

    def forward(self, h: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Read.

        :param h: the modules' states, ``(B, K, s)``
        :param keys: ``(B, R, H d)``
        :param values: ``(B, R, a)`` ("dido": ``H a``)
        :return: reads ``(B, K, a)``, which modules are active ``(B, K)`` bool, and attention weights ``(B, H, K, R)``
        """
        batch, modules, _ = h.shape
        # (B, K, H d) -> (B, H, K, d)
        query = self.query(h).view(batch, modules, self.heads, -1).transpose(1, 2)
        keys = keys.view(batch, -1, self.heads, self.key_size).transpose(1, 2)
        scores = query @ keys.transpose(-1, -2) * self.key_size**-0.5  # (B, H, K, R)
        if self.variant == "dido":
            # (B, R, H a) -> (B, H, R, a), averaged over heads
            values = values.view(batch, values.shape[1], self.heads, -1).mean(2)
            scores = scores.mean(1, keepdim=True)
            weights = torch.softmax(scores, dim=-1)
            active = largest(scores[:, 0, :, 1], self.num_active)
        elif self.variant == "atari":
            weights = sparsify(torch.softmax(scores, dim=2), self.num_active, dim=2)
            active = largest(weights[..., 0].mean(1), self.num_active)
        else:
            weights = sparsify(torch.softmax(scores, dim=-1), self.distinct_rows + 1, dim=-1)
            active = largest(-weights[..., 0].mean(1), self.num_active)
        dropped = functional.dropout(weights, self.dropout, self.training)
        # (B, R, a) -> (B, H, R, a / H); "dido" has one head left
        values = values.view(batch, values.shape[1], weights.shape[1], -1).transpose(1, 2)
        read = (dropped @ values).transpose(1, 2).flatten(2)  # (B, H, K, a / H) -> (B, K, a)
        if self.variant == "dido":
            read = read * active.unsqueeze(-1)
        return read, active, weights


class ModuleCells(nn.Module):
    """
    An LSTM or GRU cell for each module, in the equations of ``torch.nn.LSTMCell`` and ``torch.nn.GRUCell``.

    :param sizes: of the layer
    """

    def __init__(self, sizes: ModuleSizes):
        super().__init__()
        self.lstm = sizes.cell == "lstm"
        gates = (4 if self.lstm else 3) * sizes.module_size
        bias = sizes.variant != "dido"
        self.from_read = GroupLinear(sizes.num_modules, sizes.read_size, gates, bias)
        self.from_state = GroupLinear(sizes.num_modules, sizes.module_size, gates, bias)

    def forward(self, read: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """
        One step of every module, active or not.

        :param read: ``(B, K, a)``
        :param h: ``(B, K, s)``
        :param c: the LSTM's cell, ``(B, K, s)``; of a GRU nothing, ``(B, K, 0)``
        :return: next ``h`` and ``c``, and the gates by name, each ``(B, K, s)``
        """
        gates, recurrent = self.from_read(read), self.from_state(h)
        if self.lstm:
            i, f, g, o = (gates + recurrent).chunk(4, dim=-1)
            forget_gate, input_gate, output_gate = torch.sigmoid(f), torch.sigmoid(i), torch.sigmoid(o)
            c = forget_gate * c + input_gate * torch.tanh(g)
            h = output_gate * torch.tanh(c)
            return h, c, dict(input_gate=input_gate, forget_gate=forget_gate, output_gate=output_gate)
        size = h.shape[-1]
        reset_gate, update_gate = torch.sigmoid(gates[..., : 2 * size] + recurrent[..., : 2 * size]).chunk(2, dim=-1)
        new = torch.tanh(gates[..., 2 * size :] + reset_gate * recurrent[..., 2 * size :])
        return new + update_gate * (h - new), c, dict(reset_gate=reset_gate, update_gate=update_gate)


class Communication(nn.Module):
    """
    Attention of every module over all modules, inactive ones included, with a residual.

    "official" and "atari": ``h + sigmoid(gate(y)) * tanh(out(y))``, with the same two layers for all modules; "dido":
    ``h + out(y)``, with a layer for each module.

    :param sizes: of the layer
    """

    def __init__(self, sizes: ModuleSizes):
        super().__init__()
        self.heads, self.key_size, self.dropout = sizes.comm_heads, sizes.comm_key_size, sizes.dropout
        self.split = [self.heads * size for size in (sizes.comm_key_size, sizes.comm_key_size, sizes.comm_value_size)]
        self.qkv = GroupLinear(sizes.num_modules, sizes.module_size, sum(self.split), bias=False)
        self.gate: nn.Linear | None = None
        self.out: nn.Linear | GroupLinear
        if sizes.variant == "dido":
            self.out = GroupLinear(sizes.num_modules, self.split[2], sizes.module_size, bias=False)
        else:
            self.out = linear(self.split[2], sizes.module_size)
            self.gate = linear(self.split[2], sizes.module_size)

    def forward(self, h: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """
        Exchange.

        :param h: provisional states, ``(B, K, s)``
        :param active: ``(B, K)`` bool; inactive modules are read, but get no gradient from those who read them
        :return: states ``(B, K, s)`` and attention weights ``(B, H, K, K)``, from a module to another
        """
        batch, modules, _ = h.shape
        shown = pass_gradient(h, active.unsqueeze(-1))
        # (B, K, H d) -> (B, H, K, d) each
        query, key, value = (
            part.view(batch, modules, self.heads, -1).transpose(1, 2) for part in self.qkv(shown).split(self.split, dim=-1)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) * self.key_size**-0.5, dim=-1)
        dropped = functional.dropout(weights, self.dropout, self.training)
        heard = (dropped @ value).transpose(1, 2).flatten(2)  # (B, H, K, d) -> (B, K, H d)
        said = self.out(heard)
        if self.gate is not None:
            said = torch.sigmoid(self.gate(heard)) * torch.tanh(said)
        return h + said, weights


class ModuleLayer(nn.Module):
    """
    One layer: input attention, cells, communication; inactive modules keep their state.

    :param sizes: of the layer
    :param row_sizes: features of each row that modules choose from, without the null row
    :param distinct_rows: how many of these are not copies of another
    """

    def __init__(self, sizes: ModuleSizes, row_sizes: Sequence[int], distinct_rows: int):
        super().__init__()
        self.sizes = sizes
        self.input_attention = InputAttention(sizes, row_sizes, distinct_rows)
        self.cells = ModuleCells(sizes)
        self.communication = Communication(sizes) if sizes.comm_heads else None
        self.width = sizes.num_modules * sizes.module_size
        self.cell_size = sizes.module_size if self.cells.lstm else 0
        self.state_size = self.width + sizes.num_modules * self.cell_size

    def forward(self, state: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """
        One step.

        :param state: ``h``, followed by ``c`` of an LSTM, ``(B, K s)`` or ``(B, 2 K s)``
        :param keys: of the rows, ``(B, R, H d)``
        :param values: of the rows, ``(B, R, a)``
        :return: next state, which modules were active ``(B, K)`` bool, and what there is to look at, by name
        """
        # (B, K s) -> (B, K, s) each; a GRU's c has size 0
        h = state[:, : self.width].view(-1, self.sizes.num_modules, self.sizes.module_size)
        c = state[:, self.width :].view(len(state), self.sizes.num_modules, self.cell_size)
        read, active, attention = self.input_attention(h, keys, values)
        new_h, new_c, looks = self.cells(read, h, c)
        looks |= dict(active=active, input_attention=attention)
        if self.communication is not None:
            new_h, looks["comm_attention"] = self.communication(new_h, active)
        chosen = active.unsqueeze(-1)
        new_h, new_c = torch.where(chosen, new_h, h), torch.where(chosen, new_c, c)
        return torch.cat([new_h.flatten(1), new_c.flatten(1)], dim=1), active, looks
