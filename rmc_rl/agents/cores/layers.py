"""
Layers that several cores share.

Shapes: ``B`` batch, ``K`` groups, ``S`` size of a state.
"""

import math

import torch
from torch import Tensor, nn

from rmc_rl.errors import require_choice

INITIAL_STATES = ("learned", "zeros")


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Sonnet's default weights: truncated normal of deviation ``1/sqrt(inputs)``, zero bias."""
    layer = nn.Linear(inputs, outputs, bias)
    _first_weights(layer.weight.data, inputs)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _first_weights(weight: Tensor, inputs: int) -> Tensor:
    deviation = 1 / math.sqrt(inputs)
    return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


class GroupLinear(nn.Module):
    """
    A linear layer for each of ``K`` groups, as one batched product: no dense matrix that is zero off the diagonal.

    Its first weights are those of :func:`linear`.

    :param groups: ``K``
    :param inputs: features read per group
    :param outputs: features written per group
    :param bias: whether each group adds a bias
    """

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(_first_weights(torch.empty(groups, inputs, outputs), inputs))
        self.bias = nn.Parameter(torch.zeros(groups, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, K, inputs)`` -> ``(B, K, outputs)``."""
        grouped = x.transpose(0, 1)  # (B, K, I) -> (K, B, I), a view: the product takes its strides
        if self.bias is None:
            return torch.bmm(grouped, self.weight).transpose(0, 1)
        return torch.baddbmm(self.bias.unsqueeze(1), grouped, self.weight).transpose(0, 1)


class InitialState(nn.Module):
    """
    The state before the first step of an episode: trained, or zeros.

    :param size: ``S``
    :param kind: "learned" (uniform in +-1 at first, so that no two parts of the state are alike) or "zeros"
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
    Which entries are the largest; of equal ones the first, on every device (``torch.topk`` promises no order of ties).

    :param scores: ``(B, K)``
    :param count: how many
    :return: ``(B, K)`` bool, ``count`` true ones in each row
    """
    if count == scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order[:, :count], 1)


def pass_gradient(x: Tensor, mask: Tensor) -> Tensor:
    """
    The identity, whose gradient is 0 where the mask is false.

    :param x: any shape
    :param mask: bool, of a shape that broadcasts to that of ``x``
    """
    return torch.where(mask, x, x.detach())


def sparsify(probabilities: Tensor, keep: int, dim: int) -> Tensor:
    """
    Attention over few keys: subtract the largest weight that is not kept, cut at 0, scale to sum 1.

    Ke et al., "Sparse Attentive Backtracking", 2018, https://arxiv.org/abs/1809.03702, as in the authors' code of RIMs;
    with no more than ``keep + 1`` keys, where that code leaves the weights alone, so does this.

    :param probabilities: weights of sum 1 along ``dim``
    :param keep: how many stay above 0
    :param dim: the dimension of the keys
    :return: of the same shape
    """
    if probabilities.shape[dim] <= keep + 1:
        return probabilities
    tiny = 1e-7
    threshold = torch.topk(probabilities, keep + 1, dim=dim).values.narrow(dim, keep, 1) + tiny
    kept = torch.clamp(probabilities - threshold, min=0)
    return kept / (kept.sum(dim, keepdim=True) + tiny)
