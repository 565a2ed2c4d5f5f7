"""
minGRU: a GRU whose gates do not read its state, so that all steps are computed at once.

Paper: Feng et al., "Were RNNs All We Needed?", 2024, https://arxiv.org/abs/2410.01201 (section 3.1 and appendix).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width.
"""

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.layers import InitialState
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import scan
from rmc_rl.errors import require_whole

MLP_FACTOR = 2  # hidden units of a block's MLP per unit of its width


class _Block(nn.Module):
    """A minGRU and an MLP, each behind a layer norm and beside a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, width)
        self.candidate = nn.Linear(width, width)
        hidden = MLP_FACTOR * width
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, before: Tensor, fresh: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        A sequence.

        :param x: ``(T, B, W)``
        :param before: state before the first step, ``(B, W)``
        :param fresh: initial state, ``(B, W)``
        :param starts: ``(T, B, 1)`` bool
        :return: output, states after each step and update gates, each ``(T, B, W)``
        """
        normed = self.norm(x)
        update = torch.sigmoid(self.gate(normed))
        keep, terms = 1 - update, update * self.candidate(normed)
        # the first step and those that open an episode have their state from outside the scan
        given = torch.where(starts, fresh, 0)
        given = torch.cat([torch.where(starts[:1], fresh, before), given[1:]])
        terms = terms + keep * given
        states = scan(torch.where(starts, 0, keep), terms)
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

    A layer's gates see its input alone, so what to keep can depend on the past from the second block on.

    :meth:`inspect` shows ``input_gate`` ``(T, B, L, W)``, :math:`z`: the share of the new.

    Differences from the paper:

    * The plain form, whose candidate may be negative, not the one in logarithms: our scan needs none.
    * Blocks as in its experiments, without their convolution over the last four steps.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``, blocks
    :param initial_state: "zeros" or "learned"
    :raises UsageError: for a value outside these rules
    """

    size_arguments = ("width",)

    def __init__(self, input_size: int, width: int = 64, num_layers: int = 2, initial_state: str = "zeros"):
        require_whole("width", width)
        require_whole("num_layers", num_layers)
        super().__init__(input_size, output_size=width, state_size=num_layers * width)
        self.embedding = nn.Linear(input_size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.initial = InitialState(self.state_size, initial_state)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.initial(batch_size)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self(x.unsqueeze(0), state)
        return outputs[0], state

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if starts is None:
            starts = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        # (B, S) -> L tensors (B, W)
        before, fresh = state.chunk(len(self.blocks), dim=1), self.initial_state(len(state)).chunk(len(self.blocks), dim=1)
        x, after, gates = self.embedding(inputs), [], []
        for block, *states in zip(self.blocks, before, fresh, strict=True):
            x, h, update = block(x, *states, starts.unsqueeze(-1))
            after.append(h[-1])
            gates.append(update[-1])
        if self._looks is not None:
            self.show("input_gate", torch.stack(gates, dim=1))
        return self.norm(x), torch.cat(after, dim=1)
