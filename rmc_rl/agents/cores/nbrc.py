"""
Neuromodulated bistable recurrent cell: units that hold one of two states for as long as nothing pushes them out of it.

Paper: Vecoven et al., "A bio-inspired bistable recurrent cell allows for long-lasting memory", 2021,
https://arxiv.org/abs/2006.05252 (section 3).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``W`` width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Axis, Core
from rmc_rl.agents.cores.layers import InitialState
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import require_whole


@register_core("nbrc")
class NBRC(Core):
    r"""
    Neuromodulated bistable recurrent cell (Vecoven et al. 2021): a multistable memory. The state is ``h``, as is the output.

    .. math::

        a_t &= 1 + \tanh(U_a x_t + W_a h_{t-1} + b_a), \quad c_t = \sigma(U_c x_t + W_c h_{t-1} + b_c) \\
        h_t &= c_t \odot h_{t-1} + (1 - c_t) \odot \tanh(U x_t + a_t \odot h_{t-1})

    Each unit excites itself with the strength :math:`a` between 0 and 2. Above 1, without input, it has two stable states, one
    positive and one negative, and keeps its sign for ever; below 1, it decays to 0. :math:`c` says how slowly it changes.

    The gates read the state, so steps are computed one after another. Only the products with the inputs are computed at once.

    :meth:`inspect` shows ``update_gate``, :math:`c`, the weight of the previous state, and ``bistable_gate``, 1 where
    :math:`a > 1` and 0 elsewhere, each ``(T, B, W)``.

    Differences from the authors' code: none in the equations. The initial weights are those of its ``cells.py``: Glorot's, and
    biases of 0. The package ``brc`` 0.1.2 adds a bias in the candidate, which neither the authors' code nor the paper has.
    With that bias at 0, it computes the same numbers.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param initial_state: "zeros" or "learned"
    :raises UsageError: if a value breaks a rule
    """

    size_arguments = ("width",)

    def __init__(self, input_size: int, width: int = 64, initial_state: str = "zeros"):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        super().__init__(input_size, output_size=width, state_size=width)
        # rows for a, for c, and for the candidate
        self.from_input = nn.Parameter(torch.empty(3 * width, input_size))
        self.from_state = nn.Parameter(torch.empty(2 * width, width))
        self.bias = nn.Parameter(torch.zeros(2 * width))
        for weight in (*self.from_input.data.chunk(3), *self.from_state.data.chunk(2)):
            nn.init.xavier_uniform_(weight)
        self.initial = InitialState(width, initial_state)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.initial(batch_size)  # type: ignore[no-any-return]

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        return {"memory": state.unsqueeze(-2)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        return {"memory": (["h"], "unit"), "update_gate": ("unit",), "bistable_gate": ("unit",)}

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._step(*self._project(x), state)

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.unroll(self._step, self._project(inputs), state, starts)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What depends on the inputs alone: of the gates ``(..., 2 W)`` and of the candidate ``(..., W)``."""
        width = self.output_size
        gates = functional.linear(x, self.from_input[: 2 * width], self.bias)
        return gates, functional.linear(x, self.from_input[2 * width :])

    def _step(self, gates: Tensor, candidate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step, from the products with its inputs."""
        a, c = (gates + functional.linear(state, self.from_state)).chunk(2, dim=1)
        a, c = 1 + torch.tanh(a), torch.sigmoid(c)
        state = c * state + (1 - c) * torch.tanh(candidate + a * state)
        self.show("update_gate", c)
        self.show("bistable_gate", (a > 1).to(state.dtype))
        return state, state
