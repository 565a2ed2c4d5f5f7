"""
Neural memory of Titans: a small network whose weights are the state, trained at each step by gradient descent on its surprise.

Paper: Behrouz et al., "Titans: Learning to Memorize at Test Time", 2025, https://arxiv.org/abs/2501.00663 (section 3).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width, ``H`` heads, ``V`` head size,
``N`` hidden units of a memory.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Axis
from rmc_rl.agents.cores.blocks import BlockCore, Mixer, RMSNorm, layer_names, split_last
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import require_number, require_whole

# initial biases of the gates: rate of learning (of the largest one), momentum and forgetting, before their sigmoids
FIRST_RATE, FIRST_MOMENTUM, FIRST_FORGETTING = 0.0, -1.0, -4.0


class _NeuralMemory(Mixer):
    """
    Equations in :class:`Titans`. The weights of a memory are one tensor ``(N, 2 V)``: row ``n`` has what hidden unit ``n``
    reads of a key, and what it writes to a value.
    """

    def __init__(self, width: int, num_heads: int, head_size: int, hidden_size: int, largest_rate: float):
        self.shape = (num_heads, hidden_size, 2 * head_size)
        self.numbers = num_heads * hidden_size * 2 * head_size
        super().__init__(2 * self.numbers)
        self.num_heads, self.head_size, self.largest_rate = num_heads, head_size, largest_rate
        self.scale = hidden_size**-0.5
        size = num_heads * head_size
        self.project = nn.Linear(width, 3 * size, bias=False)
        self.gates = nn.Linear(width, 3 * num_heads)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor([FIRST_RATE, FIRST_MOMENTUM, FIRST_FORGETTING]).repeat_interleave(num_heads))
        self.memory = nn.Parameter(torch.randn(self.shape))  # before the first step
        self.norm = RMSNorm(head_size)
        self.gate = nn.Linear(width, size, bias=False)
        self.out = nn.Linear(size, width, bias=False)

    def initial_state(self, like: Tensor) -> Tensor:
        return torch.cat([self.memory.flatten(), like.new_zeros(self.numbers)])

    def forward(
        self, x: Tensor, state: Tensor, starts: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        # (T, B, H, 1, V)
        query, key, value = (
            split_last(part, self.num_heads).unsqueeze(-2) for part in functional.silu(self.project(x)).chunk(3, dim=-1)
        )
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
        # (T, B, H, 1, 1)
        rate, momentum, forgetting = (
            part.unsqueeze(-1).unsqueeze(-1) for part in torch.sigmoid(self.gates(x)).chunk(3, dim=-1)
        )
        rate, keep = self.largest_rate * rate, 1 - forgetting
        weights, surprise = (part.view(-1, *self.shape) for part in state.chunk(2, dim=1))  # (B, H, N, 2 V)
        restart, reads, error = starts.view(*starts.shape, 1, 1, 1), [], query
        # acting asks for no number of a tensor: the device would wait for it
        starting = [True] if len(x) == 1 else starts.any(1).tolist()
        steps = zip(*(part.unbind() for part in (restart, query, key, value, rate, momentum, keep)), strict=True)
        for any_starts, (begins, q, k, v, theta, eta, kept) in zip(starting, steps, strict=True):
            if any_starts:
                weights, surprise = torch.where(begins, self.memory, weights), torch.where(begins, 0, surprise)
            gradient, error = self.gradient(weights, k, v)
            surprise = eta * surprise - theta * gradient
            weights = kept * weights + surprise
            inner, outer = weights.chunk(2, dim=-1)
            reads.append(functional.silu(q @ inner.transpose(-1, -2)) @ outer)
        read = self.norm(torch.stack(reads).squeeze(-2) * self.scale).flatten(2)  # (T, B, H V)
        looks = {
            "surprise": error.square().sum((-1, -2)),
            "input_gate": rate[-1, ..., 0, 0] / self.largest_rate,
            "momentum_gate": momentum[-1, ..., 0, 0],
            "forget_gate": keep[-1, ..., 0, 0],
        }
        return (
            self.out(read * functional.silu(self.gate(x))),
            torch.cat([weights.flatten(1), surprise.flatten(1)], dim=1),
            looks,
        )

    def gradient(self, weights: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """
        The gradient of the loss ``|M(key) - value|^2`` by the weights of the memory, in closed form, and the error.

        :param weights: ``(B, H, N, 2 V)``
        :param key: ``(B, H, 1, V)``
        :param value: ``(B, H, 1, V)``
        :return: ``(B, H, N, 2 V)``, and ``M(key) - value``, ``(B, H, 1, V)``
        """
        inner, outer = weights.chunk(2, dim=-1)  # (B, H, N, V) each
        hidden = key @ inner.transpose(-1, -2)  # (B, H, 1, N)
        sigmoid = torch.sigmoid(hidden)
        active = hidden * sigmoid  # SiLU
        error = self.scale * (active @ outer) - value
        back = (2 * self.scale) * error
        of_hidden = (back @ outer.transpose(-1, -2)) * (sigmoid + active * (1 - sigmoid))
        # (B, H, N, 1) by (B, H, 1, V)
        gradient = torch.cat([of_hidden.transpose(-1, -2) * key, active.transpose(-1, -2) * back], dim=-1)
        return gradient, error


@register_core("titans")
class Titans(BlockCore):
    r"""
    The neural memory of Titans (Behrouz et al. 2025) in residual blocks. Its state is the weights of small MLPs, and their
    momentum.

    In each head, with :math:`q, k, v = SiLU(W x)`, :math:`q, k` of length 1, and the memory
    :math:`M(k) = W_2\, SiLU(W_1 k) / \sqrt{N}`:

    .. math::

        \ell_t &= |M_{t-1}(k_t) - v_t|^2 \\
        S_t &= \eta_t S_{t-1} - \theta_t \nabla \ell_t, \quad M_t = (1 - \alpha_t) M_{t-1} + S_t \\
        o_t &= RMSNorm(M_t(q_t)) \odot SiLU(W_g x_t)

    :math:`\nabla` is the gradient by :math:`W_1` and :math:`W_2`. It is written in closed form, so training backpropagates
    through it. The gates :math:`\theta` (below ``largest_rate``), :math:`\eta` and :math:`\alpha` (each below 1) are sigmoids
    of the input, one for each head. The weights before the first step are learned.

    It costs far more than other cores. Each step depends on the weights after the step before, so steps are computed one after
    another, in about 25 operations each. Training keeps the weights of all steps: ``T B L H`` times ``4 N V`` numbers, and
    intermediate results of several times that size.

    :meth:`inspect` shows ``surprise``, :math:`\ell`, and the gates ``input_gate`` (:math:`\theta`, of its largest value),
    ``momentum_gate`` (:math:`\eta`) and ``forget_gate`` (:math:`1 - \alpha`, the share that is kept), each ``(T, B, L, H)``.

    Differences from the paper:

    * The gradient is that of each step at the weights of the step before, as in the paper's equations. In the paper's fast
      form, the gradients of a chunk of steps are all taken at the weights before the chunk.
    * No persistent memory and no attention (the paper's MAC, MAG and MAL): the long-term memory alone, its LMM. No convolution
      before queries, keys and values.
    * Hidden units are scaled by :math:`1 / \sqrt{N}`, so that one rate of learning is stable for all sizes.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``, number of blocks
    :param num_heads: ``H``, memories of a block
    :param head_size: ``V``, size of queries, keys and values per head
    :param hidden_size: ``N``, hidden units of a memory
    :param largest_rate: upper bound of the rate of learning :math:`\theta`
    :raises UsageError: if a value breaks a rule
    """

    def __init__(
        self,
        input_size: int,
        width: int = 64,
        num_layers: int = 1,
        num_heads: int = 2,
        head_size: int = 16,
        hidden_size: int = 32,
        largest_rate: float = 0.5,
    ):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_layers = require_whole("num_layers", num_layers)
        num_heads = require_whole("num_heads", num_heads)
        head_size = require_whole("head_size", head_size)
        hidden_size = require_whole("hidden_size", hidden_size)
        largest_rate = require_number("largest_rate", largest_rate, above=0)
        mixers = [_NeuralMemory(width, num_heads, head_size, hidden_size, largest_rate) for _ in range(num_layers)]
        super().__init__(input_size, width, mixers)
        self.num_heads = num_heads

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        """Of each memory, the weights, flat; not their momentum."""
        weights = self.layers(state).chunk(2, dim=-1)[0]
        return {"memory": split_last(weights, self.num_heads).flatten(-3, -2)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        names = [f"memory {head}" for head in range(1, self.num_heads + 1)]
        per_head: tuple[Axis, ...] = ("layer", "head")
        return {
            "memory": (layer_names(len(self.sizes), names), "unit"),
            "surprise": per_head,
            "input_gate": per_head,
            "momentum_gate": per_head,
            "forget_gate": per_head,
        }
