"""
GTrXL: a gated transformer that attends to the last steps.

Paper: Parisotto et al., "Stabilizing Transformers for Reinforcement Learning", 2019, https://arxiv.org/abs/1910.06764
(section 3), with the relative positions of Dai et al., "Transformer-XL", 2019, https://arxiv.org/abs/1901.02860 (section 3.3).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``M`` steps of memory, ``H`` heads, ``V`` head
size, ``D = H V`` width.
"""

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Axis, Core
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import steps_since_start
from rmc_rl.errors import require_number, require_whole


class _Gate(nn.Module):
    """The GRU-type gate (section 3.2) between the input ``x`` of a sublayer and its output ``y``."""

    def __init__(self, width: int, bias: float):
        super().__init__()
        self.from_y = nn.Linear(width, 3 * width, bias=False)
        self.from_x = nn.Linear(width, 2 * width, bias=False)
        self.candidate = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.full((width,), bias))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gated output, and the gate: the weight of the new value in it."""
        y_reset, y_update, y_new = self.from_y(y).chunk(3, dim=-1)
        x_reset, x_update = self.from_x(x).chunk(2, dim=-1)
        update = torch.sigmoid(y_update + x_update - self.bias)
        new = torch.tanh(y_new + self.candidate(torch.sigmoid(y_reset + x_reset) * x))
        return (1 - update) * x + update * new, update


class _Layer(nn.Module):
    """Attention over the memory and an MLP, each with a layer norm at its input and a gate at its output."""

    def __init__(self, width: int, num_heads: int, mlp_size: int, gate_bias: float):
        super().__init__()
        self.num_heads, self.head_size = num_heads, width // num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, self.head_size))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, self.head_size))
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_size), nn.ReLU(), nn.Linear(mlp_size, width))
        self.attention_gate, self.mlp_gate = _Gate(width, gate_bias), _Gate(width, gate_bias)

    def forward(self, x: Tensor, memory: Tensor, codes: Tensor, steps_ago: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """
        All steps of a sequence.

        :param x: ``(B, T, D)``
        :param memory: the layer's inputs at the previous ``M`` steps, ``(B, M, D)``
        :param codes: encodings of the distances 0 ... M in steps, ``(M + 1, D)``
        :param steps_ago: distance from each query to each key in steps, clamped to 0 ... M, ``(T, M + T)``
        :param mask: true where a query attends to a key, ``(B, 1, T, M + T)`` bool
        :return: output ``(B, T, D)``, attention weights ``(B, H, T, M + T)``, and the gates after attention and MLP, each
            ``(B, T, D)``
        """
        query = self._heads(self.query(self.attention_norm(x)))  # (B, H, T, V)
        key, value = (
            self._heads(part) for part in self.key_value(self.attention_norm(torch.cat([memory, x], dim=1))).chunk(2, dim=-1)
        )
        content = (query + self.content_bias.unsqueeze(1)) @ key.transpose(-1, -2)  # (B, H, T, M + T)
        # by distance, (B, H, T, M + 1), then gathered by key, (B, H, T, M + T)
        position = (query + self.position_bias.unsqueeze(1)) @ self._heads(self.position(codes)).transpose(-1, -2)
        position = position.gather(-1, steps_ago.expand_as(content))
        scores = ((content + position) * self.head_size**-0.5).masked_fill(~mask, -torch.inf)
        weights = torch.softmax(scores, dim=-1)
        read = self.out((weights @ value).transpose(1, 2).flatten(2))  # (B, H, T, V) -> (B, T, D)
        x, attention_gate = self.attention_gate(x, torch.relu(read))
        x, mlp_gate = self.mlp_gate(x, torch.relu(self.mlp(self.mlp_norm(x))))
        return x, weights, attention_gate, mlp_gate

    def _heads(self, x: Tensor) -> Tensor:
        """``(..., T, D)`` -> ``(..., H, T, V)``."""
        return x.view(*x.shape[:-1], self.num_heads, self.head_size).transpose(-2, -3)


@register_core("gtrxl")
class GTrXL(Core):
    r"""
    Gated Transformer-XL (Parisotto et al. 2019) over a sliding window of steps, which is the state.

    Each layer, with input :math:`x_t` and its last ``M`` inputs, computes:

    .. math::

        y_t &= g(x_t,\ ReLU(RelativeAttention(LN(x_{t-M} \dots x_t)))) \\
        x_t &\leftarrow g(y_t,\ ReLU(MLP(LN(y_t)))) \\
        g(x, y) &= (1 - z) \odot x + z \odot \tanh(W_g y + U_g (r \odot x)), \quad
        z = \sigma(W_z y + U_z x - b), \quad r = \sigma(W_r y + U_r x)

    The state is the window of each layer and the number of steps in it: ``L M D + 1`` numbers, far more than in other cores.
    No step attends to an earlier episode. All steps of a sequence are computed at once, layer by layer.

    :meth:`inspect` shows ``attention`` ``(T, B, L, H, M + 1)``, to the present step, one step ago, ... ``M`` steps ago, and
    the gates :math:`z`, ``attention_gate`` and ``mlp_gate`` ``(T, B, L, D)``.

    Differences from the paper:

    * Here, the window slides with every step, both in training and in acting. In the paper, the steps of a training sequence
      attend to all earlier steps of the sequence and to a window of steps before it.
    * In the paper, no gradient flows into that window. Here, gradient flows into the state, as in every core.
    * The part of a window that the episode has not filled yet is masked.

    :param input_size: ``F``, features read per step
    :param num_layers: ``L``, number of layers
    :param num_heads: ``H``, attention heads
    :param head_size: ``V``, size of queries, keys and values per head
    :param memory_length: ``M``, number of previous steps that a layer attends to; ``L`` layers reach back ``L M`` steps
    :param mlp_size: number of hidden units of the MLP; None: ``4 D``
    :param gate_bias: initial value of ``b``, which is trained; the larger it is, the closer a layer starts to the identity
    :raises UsageError: if a value breaks a rule
    """

    size_arguments = ("head_size", "mlp_size")

    codes: Tensor

    def __init__(
        self,
        input_size: int,
        num_layers: int = 2,
        num_heads: int = 4,
        head_size: int = 16,
        memory_length: int = 32,
        mlp_size: int | None = None,
        gate_bias: float = 2.0,
    ):
        input_size = require_whole("input_size", input_size)
        num_layers = require_whole("num_layers", num_layers)
        num_heads = require_whole("num_heads", num_heads)
        head_size = require_whole("head_size", head_size)
        memory_length = require_whole("memory_length", memory_length)
        width = num_heads * head_size
        mlp_size = 4 * width if mlp_size is None else require_whole("mlp_size", mlp_size)
        gate_bias = require_number("gate_bias", gate_bias)
        super().__init__(input_size, output_size=width, state_size=num_layers * memory_length * width + 1)
        self.memory_length, self.width = memory_length, width
        self.embedding = nn.Linear(input_size, width)
        self.layers = nn.ModuleList(_Layer(width, num_heads, mlp_size, gate_bias) for _ in range(num_layers))
        # sines and cosines of distances in steps (Transformer-XL, section 3.3)
        angles = torch.arange(memory_length + 1).unsqueeze(1) / 10000 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("codes", torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width], persistent=False)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.embedding.weight.new_zeros(batch_size, self.state_size)

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        """Of each layer's window the newest step: the older ones were shown at the steps before."""
        windows = state[..., :-1].reshape(*state.shape[:-1], len(self.layers), self.memory_length, self.width)
        return {"memory": windows[..., -1, :]}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        per_unit: tuple[Axis, ...] = ("layer", "unit")
        steps = ["now", *(f"{ago} ago" for ago in range(1, self.memory_length + 1))]
        return {
            "memory": per_unit,
            "attention": ("layer", "head", steps),
            "attention_gate": per_unit,
            "mlp_gate": per_unit,
        }

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self(x.unsqueeze(0), state)
        return outputs[0], state

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        time, batch, _ = inputs.shape
        length, device = self.memory_length, inputs.device
        # (B, L M D) -> (B, L, M, D)
        windows = state[:, :-1].view(batch, len(self.layers), length, self.width)
        if starts is None:
            starts = torch.zeros(time, batch, dtype=torch.bool, device=device)
        # steps of the episode in each query's window
        filled = steps_since_start(starts, state[:, -1].long()).T.clamp(max=length)  # (B, T)
        steps = torch.arange(time + length, device=device)
        steps_ago = steps[length:].unsqueeze(1) - steps  # (T, M + T), from each query to each key
        mask = ((steps_ago >= 0) & (steps_ago <= filled.unsqueeze(-1))).unsqueeze(1)  # (B, 1, T, M + T)

        x = self.embedding(inputs).transpose(0, 1)  # (T, B, D) -> (B, T, D)
        new_windows, shown = [], []
        for index, layer in enumerate(self.layers):
            new_windows.append(torch.cat([windows[:, index], x], dim=1)[:, -length:])
            x, *of_layer = layer(x, windows[:, index], self.codes, steps_ago.clamp(0, length), mask)
            shown.append(of_layer)
        if self._looks is not None:
            self._show_last_step(*zip(*shown, strict=True))
        count = (filled[:, -1] + 1).clamp(max=length)  # (B,), steps in the new windows
        in_episode = steps[:length] >= length - count.unsqueeze(1)  # (B, M)
        new_windows = [torch.where(in_episode.unsqueeze(-1), window, 0).flatten(1) for window in new_windows]
        return x.transpose(0, 1), torch.cat([*new_windows, count.unsqueeze(1).to(x.dtype)], dim=1)

    def _show_last_step(
        self, attention: tuple[Tensor, ...], attention_gates: tuple[Tensor, ...], mlp_gates: tuple[Tensor, ...]
    ) -> None:
        """Show the last step of a sequence: attention weights by distance, from 0 to ``M`` steps ago, and gates."""
        weights = torch.stack(attention, dim=1)  # (B, L, H, T, M + T)
        self.show("attention", weights[..., -1, -self.memory_length - 1 :].flip(-1))
        self.show("attention_gate", torch.stack(attention_gates, dim=1)[:, :, -1])
        self.show("mlp_gate", torch.stack(mlp_gates, dim=1)[:, :, -1])
