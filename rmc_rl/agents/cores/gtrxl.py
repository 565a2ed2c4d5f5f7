"""
GTrXL: a gated transformer over the last steps.

Paper: Parisotto et al., "Stabilizing Transformers for Reinforcement Learning", 2019, https://arxiv.org/abs/1910.06764
(section 3), with the relative positions of Dai et al., "Transformer-XL", 2019, https://arxiv.org/abs/1901.02860 (section 3.3).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``M`` steps of memory, ``H`` heads, ``V`` head
size, ``D = H V`` width.
"""

import math

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import steps_since_start
from rmc_rl.errors import require, require_whole


class _Gate(nn.Module):
    """The GRU-type gate (section 3.2): ``x`` what came in, ``y`` what the sublayer makes of it."""

    def __init__(self, width: int, bias: float):
        super().__init__()
        self.from_y = nn.Linear(width, 3 * width, bias=False)
        self.from_x = nn.Linear(width, 2 * width, bias=False)
        self.candidate = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.full((width,), float(bias)))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What goes on, and the gate: the share of the new in it."""
        y_reset, y_update, y_new = self.from_y(y).chunk(3, dim=-1)
        x_reset, x_update = self.from_x(x).chunk(2, dim=-1)
        update = torch.sigmoid(y_update + x_update - self.bias)
        new = torch.tanh(y_new + self.candidate(torch.sigmoid(y_reset + x_reset) * x))
        return (1 - update) * x + update * new, update


class _Layer(nn.Module):
    """Attention over the memory and an MLP, each normed at its input and gated at its output."""

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

    def forward(self, x: Tensor, memory: Tensor, codes: Tensor, ago: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        """
        A sequence.

        :param x: ``(B, T, D)``
        :param memory: the inputs of the ``M`` steps before, ``(B, M, D)``
        :param codes: of how many steps ago, ``(M + 1, D)``
        :param ago: how many steps ago each key is, from each query, ``(T, M + T)``, cut to 0 ... M
        :param seen: whether a query may see a key, ``(B, 1, T, M + T)`` bool
        :return: ``(B, T, D)``, attention weights ``(B, H, T, M + T)``, and the gates after attention and MLP, ``(B, T, D)``
        """
        query = self._heads(self.query(self.attention_norm(x)))  # (B, H, T, V)
        key, value = (
            self._heads(part) for part in self.key_value(self.attention_norm(torch.cat([memory, x], dim=1))).chunk(2, dim=-1)
        )
        content = (query + self.content_bias.unsqueeze(1)) @ key.transpose(-1, -2)  # (B, H, T, M + T)
        # by how many steps ago, (B, H, T, M + 1), then by key
        position = (query + self.position_bias.unsqueeze(1)) @ self._heads(self.position(codes)).transpose(-1, -2)
        position = position.gather(-1, ago.expand_as(content))
        scores = ((content + position) * self.head_size**-0.5).masked_fill(~seen, -torch.inf)
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
    Gated Transformer-XL (Parisotto et al. 2019) over a sliding window, which is carried as state.

    In each layer, with the last ``M`` inputs of the layer before :math:`x_t`:

    .. math::

        y_t &= g(x_t,\ ReLU(RelativeAttention(LN(x_{t-M} \dots x_t)))) \\
        x_t &\leftarrow g(y_t,\ ReLU(MLP(LN(y_t)))) \\
        g(x, y) &= (1 - z) \odot x + z \odot \tanh(W_g y + U_g (r \odot x)), \quad
        z = \sigma(W_z y + U_z x - b), \quad r = \sigma(W_r y + U_r x)

    The state is the window of each layer and the number of steps in it: ``L M D + 1`` numbers, far more than other cores have.
    Steps of an earlier episode are not seen. A sequence is computed at once, layer by layer.

    :meth:`inspect` shows ``attention`` ``(T, B, L, H, M + 1)``, over this step, one step ago, ... ``M`` steps ago, and the
    gates :math:`z`, ``attention_gate`` and ``mlp_gate`` ``(T, B, L, D)``.

    Differences from the paper:

    * The window slides with every step, in training as in acting; there, a training sequence sees its own steps and a window
      of the ones before, into which no gradient goes. Here it goes as far as the state it is given has one.
    * A window is masked where an episode has not filled it yet.

    :param input_size: ``F``, features read per step
    :param num_layers: ``L``
    :param num_heads: ``H``
    :param head_size: ``V``
    :param memory_length: ``M``, steps before the present one that a layer sees; ``L`` layers reach back ``L M``
    :param mlp_size: hidden units of the MLP; None: ``4 D``
    :param gate_bias: ``b`` at first: how much a layer begins as the identity. Trained
    :raises UsageError: for a value outside these rules
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
        width = num_heads * head_size
        sizes = dict(num_layers=num_layers, num_heads=num_heads, head_size=head_size, memory_length=memory_length)
        for name, value in sizes.items() | ({("mlp_size", mlp_size)} if mlp_size is not None else set()):
            require_whole(name, value)
        number = isinstance(gate_bias, int | float) and not isinstance(gate_bias, bool) and math.isfinite(gate_bias)
        require(number, "gate_bias must be a number", gate_bias)
        super().__init__(input_size, output_size=width, state_size=num_layers * memory_length * width + 1)
        self.memory_length, self.width = memory_length, width
        self.embedding = nn.Linear(input_size, width)
        self.layers = nn.ModuleList(_Layer(width, num_heads, mlp_size or 4 * width, gate_bias) for _ in range(num_layers))
        # sines and cosines of how many steps ago (Transformer-XL, section 3.3)
        angles = torch.arange(memory_length + 1).unsqueeze(1) / 10000 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("codes", torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width], persistent=False)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.embedding.weight.new_zeros(batch_size, self.state_size)

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
        known = steps_since_start(starts, state[:, -1].long()).T.clamp(max=length)  # (B, T)
        steps = torch.arange(time + length, device=device)
        ago = steps[length:].unsqueeze(1) - steps  # (T, M + T): how many steps ago each key is, from each query
        seen = ((ago >= 0) & (ago <= known.unsqueeze(-1))).unsqueeze(1)  # (B, 1, T, M + T)

        x = self.embedding(inputs).transpose(0, 1)  # (T, B, D) -> (B, T, D)
        after, looks = [], []
        for index, layer in enumerate(self.layers):
            after.append(torch.cat([windows[:, index], x], dim=1)[:, -length:])
            x, *shown = layer(x, windows[:, index], self.codes, ago.clamp(0, length), seen)
            looks.append(shown)
        if self._looks is not None:
            self._show_last_step(*zip(*looks, strict=True))
        filled = (known[:, -1] + 1).clamp(max=length)  # (B,)
        kept = steps[:length] >= length - filled.unsqueeze(1)  # (B, M)
        after = [torch.where(kept.unsqueeze(-1), window, 0).flatten(1) for window in after]
        return x.transpose(0, 1), torch.cat([*after, filled.unsqueeze(1).to(x.dtype)], dim=1)

    def _show_last_step(
        self, attention: tuple[Tensor, ...], attention_gates: tuple[Tensor, ...], mlp_gates: tuple[Tensor, ...]
    ) -> None:
        """Show what the layers did at the last step of a sequence: attention from now back in time, and gates."""
        weights = torch.stack(attention, dim=1)  # (B, L, H, T, M + T)
        self.show("attention", weights[..., -1, -self.memory_length - 1 :].flip(-1))
        self.show("attention_gate", torch.stack(attention_gates, dim=1)[:, :, -1])
        self.show("mlp_gate", torch.stack(mlp_gates, dim=1)[:, :, -1])
