"""
Attention-free transformer: a weighted mean over the steps so far, for each unit on its own.

Paper: Zhai et al., "An Attention Free Transformer", 2021, https://arxiv.org/abs/2105.14103 (section 3, AFT-simple).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width.
"""

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Axis
from rmc_rl.agents.cores.blocks import BlockCore, Mixer, layer_names
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import running_max, scan
from rmc_rl.errors import require_truth, require_whole

NOTHING = -1e4  # logarithm of the sum of weights before an episode's first step: in place of minus infinity, for its gradients


class _AFT(Mixer):
    """Equations in :class:`AFT`."""

    def __init__(self, width: int):
        super().__init__(2 * width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would cancel
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def initial_state(self, like: Tensor) -> Tensor:
        size = self.state_size // 2
        return torch.cat([like.new_zeros(size), like.new_full((size,), NOTHING)])

    def forward(
        self, x: Tensor, state: Tensor, starts: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        key, value = self.key(x), self.value(x)
        if len(x) == 1:
            mean, total = torch.where(starts[0].unsqueeze(-1), self.initial_state(x), state).chunk(2, dim=1)
            total = torch.logaddexp(total, key[0])
            means = (mean + torch.exp(key[0] - total) * (value[0] - mean)).unsqueeze(0)
        else:
            means, total = self._all_steps(key, value, state, starts)
        gate = torch.sigmoid(self.query(x))
        looks = {"input_gate": torch.exp(key[-1] - total), "output_gate": gate[-1]}
        return self.out(gate * means), torch.cat([means[-1], total], dim=1), looks

    def _all_steps(self, key: Tensor, value: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """The means ``(T, B, W)``, and the logarithm of the last sum of weights, ``(B, W)``."""
        mean, total = state.chunk(2, dim=1)
        # weights are relative to the largest one so far, so none overflows and their sum is at least 1
        largest = running_max(key, total, starts)
        before = torch.cat([total.detach().unsqueeze(0), largest[:-1]])
        factors, weights = torch.exp(before - largest), torch.exp(key - largest)
        weight = torch.exp(total - before[0])  # 1, with the gradient of the state
        sums = scan(
            torch.cat([factors, factors], dim=-1),
            torch.cat([weights * value, weights], dim=-1),
            torch.cat([weight * mean, weight], dim=-1),
            starts,
        )
        numerators, denominators = sums.chunk(2, dim=-1)
        return numerators / denominators, largest[-1] + torch.log(denominators[-1])


@register_core("aft")
class AFT(BlockCore):
    r"""
    Attention-free transformer (Zhai et al. 2021), causal AFT-simple, in residual blocks. It forgets nothing.

    In each block, with :math:`q, k, v` linear in its input, unit by unit:

    .. math::

        y_t = \sigma(q_t) \odot \frac{\sum_{s \le t} \exp(k_s) \odot v_s}{\sum_{s \le t} \exp(k_s)}, \quad
        x_t \leftarrow x_t + W_o y_t

    The state is the weighted mean :math:`m` (the fraction) and :math:`l`, the logarithm of its denominator:

    .. math::

        l_t = \log(e^{l_{t-1}} + e^{k_t}), \quad m_t = m_{t-1} + e^{k_t - l_t} \odot (v_t - m_{t-1})

    It is stable for keys of any size. All steps of a sequence are computed at once, by a scan over numerators and denominators
    relative to the largest key so far. The number of steps in the episode is part of the state as well, for positions.

    :meth:`inspect` shows ``input_gate``, :math:`e^{k_t - l_t}`, the weight of the present step, and ``output_gate``,
    :math:`\sigma(q)`, each ``(T, B, L, W)``.

    Differences from the paper:

    * AFT-full, -local and -conv add learned biases for pairs of positions to the keys. They have no state of a fixed size, so
      they cannot act step by step over episodes of any length. AFT-simple has none.
    * Positions count from the start of the episode, and are encoded with sines and cosines.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``, number of blocks
    :param positions: whether sines and cosines of the step's number in its episode are added to the embedded input (Vaswani et
        al. 2017); without them, the order of steps reaches a layer only through the layers below
    :raises UsageError: if a value breaks a rule
    """

    def __init__(self, input_size: int, width: int = 64, num_layers: int = 2, positions: bool = True):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_layers = require_whole("num_layers", num_layers)
        require_truth("positions", positions)
        super().__init__(input_size, width, [_AFT(width) for _ in range(num_layers)], positions=bool(positions))

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        """The means, without the sums of weights."""
        return {"memory": self.layers(state)[..., : self.output_size]}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        per_unit: tuple[Axis, ...] = ("layer", "unit")
        names = layer_names(len(self.sizes), ["mean"])
        return {"memory": (names, "unit"), "input_gate": per_unit, "output_gate": per_unit}
