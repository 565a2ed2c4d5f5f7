"""
minGRU: a GRU whose gates do not read its state, so all steps of a sequence are computed at once.

Paper: Feng et al., "Were RNNs All We Needed?", 2024, https://arxiv.org/abs/2410.01201 (section 3.1 and appendix).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width.
"""

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Axis, Core
from rmc_rl.agents.cores.layers import InitialState
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import scan
from rmc_rl.errors import require_whole

MLP_FACTOR = 2  # hidden units of the MLP, relative to the width


class _Block(nn.Module):
    """A minGRU and an MLP, each with a layer norm at its input and a residual connection."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, width)
        self.candidate = nn.Linear(width, width)
        hidden = MLP_FACTOR * width
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, state: Tensor, initial_state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        All steps of a sequence.

        :param x: ``(T, B, W)``
        :param state: before the first step, ``(B, W)``
        :param initial_state: of an episode, ``(B, W)``
        :param starts: ``(T, B)`` bool
        :return: output, states after each step and update gates, each ``(T, B, W)``
        """
        normed = self.norm(x)
        update = torch.sigmoid(self.gate(normed))
        states = scan(1 - update, update * self.candidate(normed), state, starts, initial_state)
        x = x + states
        return x + self.mlp(x), states, update


@register_core("mingru")
class MinGRU(Core):
    r"""
    minGRU (Feng et al. 2024) in residual blocks. The state is ``h`` of each block.

    In each block, with :math:`u = LN(x)`:

    .. math::

        z_t &= \sigma(W_z u_t + b_z), \quad h_t = (1 - z_t) \odot h_{t-1} + z_t \odot (W_h u_t + b_h) \\
        x_t &\leftarrow x_t + h_t, \quad x_t \leftarrow x_t + MLP(LN(x_t))

    The gates of a block read only its input, so the first block's gates cannot depend on the past. Those of later blocks can.

    :meth:`inspect` shows ``input_gate`` ``(T, B, L, W)``, :math:`z`, the weight of the new value.

    Differences from the paper:

    * Candidates may be negative, as in the paper's first form. The form in logarithms is for another scan than ours.
    * Blocks are those of the paper's experiments, without the convolution over the last four steps.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``, number of blocks
    :param initial_state: "zeros" or "learned"
    :raises UsageError: if a value breaks a rule
    """

    size_arguments = ("width",)

    def __init__(self, input_size: int, width: int = 64, num_layers: int = 2, initial_state: str = "zeros"):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_layers = require_whole("num_layers", num_layers)
        super().__init__(input_size, output_size=width, state_size=num_layers * width)
        self.embedding = nn.Linear(input_size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.initial = InitialState(self.state_size, initial_state)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.initial(batch_size)  # type: ignore[no-any-return]

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        return {"memory": state.reshape(*state.shape[:-1], len(self.blocks), -1)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        return {"memory": ("layer", "unit"), "input_gate": ("layer", "unit")}

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self(x.unsqueeze(0), state)
        return outputs[0], state

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if starts is None:
            starts = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        # (B, S) -> L tensors (B, W)
        states, initial_states = (each.chunk(len(self.blocks), dim=1) for each in (state, self.initial_state(state.shape[0])))
        x, last_states, gates = self.embedding(inputs), [], []
        for block, *block_states in zip(self.blocks, states, initial_states, strict=True):
            x, h, update = block(x, *block_states, starts)
            last_states.append(h[-1])
            gates.append(update[-1])
        if self._looks is not None:
            self.show("input_gate", torch.stack(gates, dim=1))
        return self.norm(x), torch.cat(last_states, dim=1)
