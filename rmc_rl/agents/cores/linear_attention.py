"""
Linear attention and gated delta rules: attention without a softmax, whose memory is a matrix.

Paper: Katharopoulos et al., "Transformers are RNNs", 2020, https://arxiv.org/abs/2006.16236 (section 3.2 to 3.4).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width, ``H`` heads, ``V`` head size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Axis
from rmc_rl.agents.cores.blocks import BlockCore, Mixer, RMSNorm, layer_names, split_last
from rmc_rl.agents.cores.layers import COMPUTING
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import matrix_scan
from rmc_rl.errors import require_truth, require_whole

EPSILON = 1e-6  # added to the sum of weights, as in the authors' code (fast-transformers)
SLOWEST, FASTEST = 0.001, 0.1  # initial rates of forgetting, as in the authors' code (flash-linear-attention)


class _LinearAttention(Mixer):
    """Equations in :class:`LinearAttention`. The sum of keys is a further column of the memory, whose values are ones."""

    def __init__(self, width: int, num_heads: int, head_size: int):
        super().__init__(num_heads * head_size * (head_size + 1))
        self.num_heads, self.head_size = num_heads, head_size
        self.project = nn.Linear(width, 3 * num_heads * head_size)
        self.out = nn.Linear(num_heads * head_size, width)

    def forward(
        self, x: Tensor, state: Tensor, starts: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        query, key, value = (split_last(part, self.num_heads) for part in self.project(x).chunk(3, dim=-1))  # (T, B, H, V)
        query, key = functional.elu(query) + 1, functional.elu(key) + 1
        memory = state.view(-1, self.num_heads, self.head_size, self.head_size + 1)
        value = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
        sums, memory = matrix_scan(query, key, value, memory, starts)
        total = sums[..., -1:] + EPSILON
        looks = {"input_gate": ((query[-1] * key[-1]).sum(-1) / total[-1, ..., 0])}
        return self.out((sums[..., :-1] / total).flatten(2)), memory.flatten(1), looks


@register_core("linear_attention")
class LinearAttention(BlockCore):
    r"""
    Linear attention (Katharopoulos et al. 2020) in residual blocks. It sums outer products and forgets nothing.

    In each head, with :math:`q, k, v` linear in the block's input and :math:`\phi(x) = elu(x) + 1`:

    .. math::

        S_t = S_{t-1} + \phi(k_t) v_t^T, \quad z_t = z_{t-1} + \phi(k_t), \quad
        o_t = \frac{S_t^T \phi(q_t)}{z_t^T \phi(q_t)}

    The state is :math:`S` and :math:`z` of each head, and the number of steps in the episode, for positions. It starts with
    zeros. All steps of a sequence are computed at once, in chunks.

    :meth:`inspect` shows ``input_gate`` ``(T, B, L, H)``, the weight of the present step among all steps of the episode.

    Differences from the paper:

    * Positions count from the start of the episode. In the paper, they count from the start of the sequence.
    * The MLP has ``2 W`` hidden units, and layer norms are at the inputs of mixers and MLPs.
    * As in the authors' code, 1e-6 is added to the denominator.

    The equations equal the reference of flash-linear-attention (fla-core 0.6.0, ``naive_recurrent_linear_attn`` with
    ``normalize=True``) but for its scaling of queries, which cancels.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``, number of blocks
    :param num_heads: ``H``
    :param head_size: ``V``, size of queries, keys and values per head
    :param positions: whether sines and cosines of the step's number in its episode are added to the embedded input (Vaswani et
        al. 2017); without them, the order of steps reaches a layer only through the layers below
    :raises UsageError: if a value breaks a rule
    """

    def __init__(
        self,
        input_size: int,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        head_size: int = 16,
        positions: bool = True,
    ):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_layers = require_whole("num_layers", num_layers)
        num_heads = require_whole("num_heads", num_heads)
        head_size = require_whole("head_size", head_size)
        require_truth("positions", positions)
        mixers = [_LinearAttention(width, num_heads, head_size) for _ in range(num_layers)]
        super().__init__(input_size, width, mixers, positions=bool(positions))
        self.num_heads = num_heads

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        """Of each head, its matrix and its sum of keys, flat."""
        return {"memory": split_last(self.layers(state), self.num_heads).flatten(-3, -2)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        names = [f"head {head}" for head in range(1, self.num_heads + 1)]
        return {"memory": (layer_names(len(self.sizes), names), "unit"), "input_gate": ("layer", "head")}


class _DeltaNet(Mixer):
    """Equations in :class:`DeltaNet`."""

    def __init__(self, width: int, num_heads: int, head_size: int, gated: bool):
        super().__init__(num_heads * head_size * head_size)
        self.num_heads, self.head_size, self.gated = num_heads, head_size, gated
        size = num_heads * head_size
        self.project = nn.Linear(width, 3 * size, bias=False)
        self.strength = nn.Linear(width, num_heads, bias=False)
        self.norm = RMSNorm(head_size)
        if gated:
            self.rate = nn.Linear(width, num_heads, bias=False)
            factors = torch.empty(num_heads, device=COMPUTING).uniform_(1, 16)  # A, as in Mamba-2
            self.log_rate_factor = nn.Parameter(factors.log())
            # softplus(bias) is between SLOWEST and FASTEST, log-uniform
            uniform = torch.empty(num_heads, device=COMPUTING).uniform_(0, 1)
            rates = torch.exp(uniform * math.log(FASTEST / SLOWEST)) * SLOWEST
            self.rate_bias = nn.Parameter(rates + torch.log(-torch.expm1(-rates)))
            self.gate = nn.Linear(width, size, bias=False)
        self.out = nn.Linear(size, width, bias=False)

    def forward(
        self, x: Tensor, state: Tensor, starts: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        query, key, value = (split_last(part, self.num_heads) for part in functional.silu(self.project(x)).chunk(3, dim=-1))
        query = functional.normalize(query, dim=-1) * self.head_size**-0.5
        key = functional.normalize(key, dim=-1)
        strength, log_decay = torch.sigmoid(self.strength(x)), None  # (T, B, H)
        looks = {"input_gate": strength[-1]}
        if self.gated:
            log_decay = -self.log_rate_factor.exp() * functional.softplus(self.rate(x) + self.rate_bias)
            looks["forget_gate"] = log_decay[-1].exp()
        memory = state.view(-1, self.num_heads, self.head_size, self.head_size)
        read, memory = matrix_scan(query, key, value, memory, starts, log_decay, strength)
        read = self.norm(read).flatten(2)
        if self.gated:
            read = read * functional.silu(self.gate(x))
        return self.out(read), memory.flatten(1), looks


@register_core("delta_net")
class DeltaNet(BlockCore):
    r"""
    Gated DeltaNet (Yang et al. 2024) in residual blocks: before it writes a value under a key, it erases what is there.

    Paper: Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024, https://arxiv.org/abs/2412.06464
    (section 3). Without gates it is DeltaNet, https://arxiv.org/abs/2406.06484.

    In each head, with :math:`q, k, v = SiLU(W x)`, and :math:`q, k` of length 1:

    .. math::

        S_t &= \alpha_t S_{t-1} + \beta_t k_t (v_t - \alpha_t S_{t-1}^T k_t)^T, \quad
        o_t = RMSNorm(S_t^T q_t / \sqrt{V}) \odot SiLU(W_g x_t) \\
        \alpha_t &= \exp(-A\ softplus(W_\alpha x_t + b)), \quad \beta_t = \sigma(W_\beta x_t)

    The state is :math:`S` of each head. It starts with zeros. All steps of a sequence are computed at once, in chunks.

    :meth:`inspect` shows ``input_gate``, :math:`\beta`, and with gates ``forget_gate``, :math:`\alpha`, the share of the
    memory that is kept, each ``(T, B, L, H)``.

    Differences from the paper:

    * No convolution over the last four steps before queries, keys and values: its inputs would be part of the state.
    * The MLP has ``2 W`` hidden units and GELUs in place of SwiGLU, as in the other cores of this package.
    * Values are as large as keys. In the authors' models, they are twice as large.

    The recurrence equals the reference of its authors (fla-core 0.6.0, ``naive_recurrent_gated_delta_rule``). Without gates,
    it equals ``delta_rule_recurrence`` there.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``, number of blocks
    :param num_heads: ``H``
    :param head_size: ``V``, size of queries, keys and values per head
    :param gated: whether the memory decays (:math:`\alpha`) and the output has a gate; False: DeltaNet
    :raises UsageError: if a value breaks a rule
    """

    def __init__(
        self,
        input_size: int,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        head_size: int = 16,
        gated: bool = True,
    ):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_layers = require_whole("num_layers", num_layers)
        num_heads = require_whole("num_heads", num_heads)
        head_size = require_whole("head_size", head_size)
        require_truth("gated", gated)
        mixers = [_DeltaNet(width, num_heads, head_size, bool(gated)) for _ in range(num_layers)]
        super().__init__(input_size, width, mixers)
        self.num_heads = num_heads

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        """Of each head, its matrix, flat."""
        return {"memory": split_last(self.layers(state), self.num_heads).flatten(-3, -2)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        names = [f"head {head}" for head in range(1, self.num_heads + 1)]
        per_head: tuple[Axis, ...] = ("layer", "head")
        return {
            "memory": (layer_names(len(self.sizes), names), "unit"),
            "input_gate": per_head,
            "forget_gate": per_head,
        }
