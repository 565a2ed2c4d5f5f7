"""
One layer of recurrent modules, which compete for the input and attend to each other. RIMs and BRIMs consist of such layers.

Papers: Goyal et al., "Recurrent Independent Mechanisms", 2019, https://arxiv.org/abs/1909.10893 (section 2);
Mittal et al., "Learning to Combine Top-Down and Bottom-Up Signals in Recurrent Neural Networks with Attention over
Modules", 2020, https://arxiv.org/abs/2006.16981.
Code it equals, by ``variant``: "official", the authors' supervised code (anirudh9119/RIMs, ``event_based``, at commit
``aa61773a``, and sarthmit/BRIMs at ``f8af67e8``); "atari", their reinforcement-learning code (``blocks_atari`` in the former);
"dido", a port in wide use (dido1998/Recurrent-Independent-Mechanisms at ``26aa8717``).

Shapes: ``B`` batch, ``K`` modules, ``k`` active modules, ``s`` size of a module, ``R`` rows that modules attend to,
``H`` heads, ``d`` key size, ``a`` numbers that a module reads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.layers import GroupLinear, largest, linear, pass_gradient, sparsify
from rmc_rl.agents.cores.rims_arguments import VARIANTS, LayerArguments

__all__ = ["VARIANTS", "Communication", "InputAttention", "ModuleCells", "ModuleLayer"]


class InputAttention(nn.Module):
    """
    Attention of modules over rows, which also decides which modules are active.

    Each module has its own weights for queries. Each row has its own weights for keys and values, shared by all modules.

    * "official": the first row is a null row with key and value 0. Each module attends to all rows. The ``k`` modules with the
      smallest weight on the null row are active. With more than ``distinct_rows + 2`` rows, null row included, only the
      ``distinct_rows + 1`` largest attention weights of a module stay above 0.
    * "atari": there is one row, and no null row. A softmax over modules, of which only the ``k`` largest weights stay
      above 0, scales the value that each module reads. The ``k`` modules with the largest weights are active.
    * "dido": keys and values have biases, which are also the key and value of the null row. Scores and values are averaged
      over heads. The ``k`` modules with the largest score on the input are active; inactive modules read zeros.

    :param sizes: arguments of the layer
    :param row_sizes: features of each row, without the null row
    :param distinct_rows: number of these rows that are not copies of another
    """

    def __init__(self, sizes: LayerArguments, row_sizes: Sequence[int], distinct_rows: int):
        super().__init__()
        self.variant, self.num_active, self.dropout = sizes.variant, sizes.num_active, sizes.dropout
        self.heads, self.key_size, self.read_size = sizes.input_heads, sizes.input_key_size, sizes.read_size
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
        Keys and values of all rows, with the null row first (no null row for "atari").

        :param embedded: what :meth:`embed` returned for each row
        :return: ``(..., R, H d)`` and ``(..., R, a)``
        """
        keys, values = (torch.cat(tensors, dim=-2) for tensors in zip(*embedded, strict=True))
        if self.variant == "official":
            return functional.pad(keys, (0, 0, 1, 0)), functional.pad(values, (0, 0, 1, 0))
        if self.variant == "dido":
            null_row = [self.key[0].bias, self.value[0].bias]
            keys, values = (
                torch.cat([null.expand_as(rows[..., :1, :]), rows], dim=-2)  # type: ignore[operator]
                for null, rows in zip(null_row, (keys, values), strict=True)
            )
        return keys, values

    def forward(self, h: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Attend to the rows and choose the active modules.

        :param h: ``h`` of the modules, ``(B, K, s)``
        :param keys: ``(B, R, H d)``
        :param values: ``(B, R, a)`` ("dido": ``(B, R, H a)``)
        :return: reads ``(B, K, a)``, a mask of the active modules ``(B, K)`` bool, and attention weights ``(B, H, K, R)``
        """
        batch, modules, _ = h.shape
        rows = keys.shape[1]
        # (B, K, H d) -> (B, H, K, d)
        query = self.query(h).view(batch, modules, self.heads, self.key_size).transpose(1, 2)
        keys = keys.view(batch, rows, self.heads, self.key_size).transpose(1, 2)  # (B, R, H d) -> (B, H, R, d)
        scores = query @ keys.transpose(-1, -2) * self.key_size**-0.5  # (B, H, K, R)
        if self.variant == "dido":
            values = values.view(batch, rows, self.heads, self.read_size).mean(2)  # (B, R, H a) -> (B, R, H, a) -> (B, R, a)
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
        # (B, R, a) -> (B, H, R, a / H); the mean over heads leaves one head in "dido"
        heads = weights.shape[1]
        values = values.view(batch, rows, heads, self.read_size // heads).transpose(1, 2)
        read = (dropped @ values).transpose(1, 2).flatten(2)  # (B, H, K, a / H) -> (B, K, a)
        if self.variant == "dido":
            read = read * active.unsqueeze(-1)
        return read, active, weights


class ModuleCells(nn.Module):
    """
    An LSTM or GRU cell for each module, with the equations of ``torch.nn.LSTMCell`` and ``torch.nn.GRUCell``.

    :param sizes: arguments of the layer
    """

    def __init__(self, sizes: LayerArguments):
        super().__init__()
        self.lstm = sizes.cell == "lstm"
        gates = (4 if self.lstm else 3) * sizes.module_size
        bias = sizes.variant != "dido"
        self.from_read = GroupLinear(sizes.num_modules, sizes.read_size, gates, bias)
        self.from_state = GroupLinear(sizes.num_modules, sizes.module_size, gates, bias)

    def forward(self, read: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """
        One step of all modules, active or not.

        :param read: ``(B, K, a)``
        :param h: ``(B, K, s)``
        :param c: state of the LSTM's cell, ``(B, K, s)``; an empty tensor for a GRU, ``(B, K, 0)``
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
    Attention of every module over all modules, inactive ones included, with a residual connection.

    With ``y`` the values read: "official" and "atari" compute ``h + sigmoid(gate(y)) * tanh(out(y))``, with the same two
    layers for all modules; "dido" computes ``h + out(y)``, with a layer for each module.

    :param sizes: arguments of the layer
    """

    def __init__(self, sizes: LayerArguments):
        super().__init__()
        self.heads, self.key_size, self.value_size = sizes.comm_heads, sizes.comm_key_size, sizes.comm_value_size
        self.dropout = sizes.dropout
        self.split = [self.heads * size for size in (self.key_size, self.key_size, self.value_size)]
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
        Attend to all modules.

        :param h: new ``h`` of all modules, ``(B, K, s)``
        :param active: mask of the active modules, ``(B, K)`` bool. Inactive modules are read, but no gradient flows from the
            attention into them
        :return: ``h`` with what was read, ``(B, K, s)``, and attention weights ``(B, H, K, K)``, from a module to all modules
        """
        batch, modules, _ = h.shape
        qkv = self.qkv(pass_gradient(h, active.unsqueeze(-1)))
        # (B, K, H d) -> (B, H, K, d) each
        query, key, value = (
            part.view(batch, modules, self.heads, size).transpose(1, 2)
            for part, size in zip(qkv.split(self.split, dim=-1), (self.key_size, self.key_size, self.value_size), strict=True)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) * self.key_size**-0.5, dim=-1)
        dropped = functional.dropout(weights, self.dropout, self.training)
        read = (dropped @ value).transpose(1, 2).flatten(2)  # (B, H, K, d) -> (B, K, H d)
        update = self.out(read)
        if self.gate is not None:
            update = torch.sigmoid(self.gate(read)) * torch.tanh(update)
        return h + update, weights


class ModuleLayer(nn.Module):
    """
    One layer: input attention, cells and communication of ``K`` modules. Inactive modules keep their state.

    :param sizes: arguments of the layer
    :param row_sizes: features of each row that modules attend to, without the null row
    :param distinct_rows: number of these rows that are not copies of another
    """

    def __init__(self, sizes: LayerArguments, row_sizes: Sequence[int], distinct_rows: int):
        super().__init__()
        self.sizes = sizes
        self.input_attention = InputAttention(sizes, row_sizes, distinct_rows)
        self.cells = ModuleCells(sizes)
        self.communication = Communication(sizes) if sizes.comm_heads else None
        self.cell_size = sizes.module_size if self.cells.lstm else 0

    def forward(self, state: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """
        One step in time.

        :param state: ``h``, followed by ``c`` of an LSTM, ``(B, K s)`` or ``(B, 2 K s)``
        :param keys: of the rows, ``(B, R, H d)``
        :param values: of the rows, ``(B, R, a)``
        :return: next state, mask of the active modules ``(B, K)`` bool, and the tensors that a core shows, by name
        """
        batch, modules, width = state.shape[0], self.sizes.num_modules, self.sizes.width
        # (B, K s) -> (B, K, s) each; the c of a GRU has size 0
        h = state[:, :width].view(batch, modules, self.sizes.module_size)
        c = state[:, width:].view(batch, modules, self.cell_size)
        read, active, attention = self.input_attention(h, keys, values)
        new_h, new_c, shown = self.cells(read, h, c)
        shown |= dict(active=active, input_attention=attention)
        if self.communication is not None:
            new_h, shown["comm_attention"] = self.communication(new_h, active)
        mask = active.unsqueeze(-1)
        new_h, new_c = torch.where(mask, new_h, h), torch.where(mask, new_c, c)
        return torch.cat([new_h.flatten(1), new_c.flatten(1)], dim=1), active, shown
