"""
Layers that several cores share.

Shapes: ``B`` batch, ``K`` groups, ``S`` size of a state.
"""

import math

import torch
from torch import Tensor, nn

from rmc_rl.errors import require_choice

INITIAL_STATES = ("learned", "zeros")
FIRST_GATES = ("standard", "uniform")
# Where initial values are computed. Cores are also built on the "meta" device, without memory, to know their sizes. There
# arithmetic would import torch's compiler, which takes two seconds.
COMPUTING = torch.device("cpu")


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """
    A linear layer with the initial weights of Sonnet.

    They are normal with standard deviation ``1/sqrt(inputs)``, truncated at two deviations. The initial bias is zero.

    :param inputs: features read
    :param outputs: features written
    :param bias: whether the layer adds a bias
    """
    layer = nn.Linear(inputs, outputs, bias)
    _init_weights(layer.weight.data, inputs)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _init_weights(weight: Tensor, inputs: int) -> Tensor:
    """Fill a weight in place as :func:`linear` describes."""
    deviation = 1 / math.sqrt(inputs)
    return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def uniform_gate_bias(size: int) -> Tensor:
    """
    Initial biases of forget gates, whose sigmoids are uniform between 0 and 1.

    A unit whose forget gate is ``f`` keeps its content for about ``1 / (1 - f)`` steps. So some of ``n`` units keep it for up
    to ``n`` steps before anything is learned, and gradients reach equally far back.

    Gu et al., "Improving the Gating Mechanism of Recurrent Neural Networks", 2020, https://arxiv.org/abs/1910.09890.

    :param size: ``n``, number of gates
    :return: ``(n,)``
    """
    return torch.logit(torch.empty(size, device=COMPUTING).uniform_(1 / (size + 1), size / (size + 1)))


class GroupLinear(nn.Module):
    """
    A linear layer for each of ``K`` groups, computed as one batched matrix product.

    The initial weights are those of :func:`linear`.

    :param groups: ``K``
    :param inputs: features read per group
    :param outputs: features written per group
    :param bias: whether each group adds a bias
    """

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(_init_weights(torch.empty(groups, inputs, outputs), inputs))
        self.bias = nn.Parameter(torch.zeros(groups, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, K, inputs)`` -> ``(B, K, outputs)``."""
        grouped = x.transpose(0, 1)  # (B, K, I) -> (K, B, I), a view: bmm reads any strides
        if self.bias is None:
            return torch.bmm(grouped, self.weight).transpose(0, 1)
        return torch.baddbmm(self.bias.unsqueeze(1), grouped, self.weight).transpose(0, 1)


class InitialState(nn.Module):
    """
    The state before the first step of an episode: learned, or zeros.

    :param size: ``S``
    :param kind: "learned" (initially uniform in [-1, 1], so that no two parts of the state are equal) or "zeros"
    :raises UsageError: for another kind
    """

    value: Tensor

    def __init__(self, size: int, kind: str):
        super().__init__()
        require_choice("initial_state", kind, INITIAL_STATES)
        if kind == "learned":
            self.value = nn.Parameter(torch.empty(size).uniform_(-1, 1))
        else:
            self.register_buffer("value", torch.zeros(size), persistent=False)

    def forward(self, batch_size: int) -> Tensor:
        """``B`` -> ``(B, S)``."""
        return self.value.expand(batch_size, -1)


def largest(scores: Tensor, count: int) -> Tensor:
    """
    Mask of the largest entries of each row. Among equal entries the first are taken, on every device.

    ``torch.topk`` promises no order of equal entries.

    :param scores: ``(B, K)``
    :param count: number of entries per row
    :return: ``(B, K)`` bool, with ``count`` true entries in each row
    """
    if count == scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    if torch.compiler.is_exporting():
        return _rank(scores) < count
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order[:, :count], 1)


def _rank(scores: Tensor) -> Tensor:
    """
    The positions that a stable sort from the largest entry down gives to the entries: ``(B, K)`` -> ``(B, K)`` int64.

    It needs no sort, because ONNX has no stable one. A sort is faster.
    """
    other, entry = scores.unsqueeze(1), scores.unsqueeze(2)  # (B, 1, K), (B, K, 1)
    earlier = torch.ones_like(scores[:1]).expand(scores.shape[1], -1).tril(-1) > 0  # (K, K): the other has a smaller index
    return ((other > entry) | ((other == entry) & earlier)).sum(2)


def pass_gradient(x: Tensor, mask: Tensor) -> Tensor:
    """
    Return ``x``, and pass its gradient only where a mask is true.

    :param x: any shape
    :param mask: bool, of a shape that broadcasts to that of ``x``
    """
    return torch.where(mask, x, x.detach())


def sparsify(probabilities: Tensor, keep: int, dim: int) -> Tensor:
    """
    Sparse attention: subtract the ``keep + 1``-th largest weight, clamp at 0, and normalise to a sum of 1.

    Ke et al., "Sparse Attentive Backtracking", 2018, https://arxiv.org/abs/1809.03702, as in the authors' code of RIMs. As in
    that code, the weights of at most ``keep + 1`` keys are returned unchanged.

    :param probabilities: attention weights, which sum to 1 along ``dim``
    :param keep: number of weights that stay above 0
    :param dim: the dimension of the keys
    :return: weights of the same shape
    """
    if probabilities.shape[dim] <= keep + 1:
        return probabilities
    tiny = 1e-7
    threshold = torch.topk(probabilities, keep + 1, dim=dim).values.narrow(dim, keep, 1) + tiny
    kept = torch.clamp(probabilities - threshold, min=0)
    return kept / (kept.sum(dim, keepdim=True) + tiny)
