"""
Recurrences computed for all steps of a sequence at once, with episodes that may start at any step.

Affine maps are associative under composition, so a sequence is cut into blocks that are computed side by side: Blelloch,
"Prefix Sums and Their Applications", 1990 (elementwise recurrences, :func:`scan`), and Yang et al., "Parallelizing Linear
Transformers with the Delta Rule over Sequence Length", 2024, https://arxiv.org/abs/2406.06484 (states that are matrices,
:func:`matrix_scan`).

Shapes: ``B`` batch, ``T`` time, ``H`` heads, ``K`` size of keys, ``V`` size of values, ``C`` steps of a chunk, ``N`` chunks.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 32  # steps of a chunk of a matrix_scan


def steps_since_start(starts: Tensor, before: Tensor) -> Tensor:
    """
    Number of steps of the same episode before each step.

    :param starts: ``(T, B)`` bool; true where an episode starts
    :param before: number of steps of the running episode before the first step, ``(B,)``
    :return: ``(T, B)``, of the dtype of ``before``
    """
    if starts.shape[0] == 1:  # a step of acting
        return torch.where(starts, 0, before)
    times = torch.arange(len(starts), device=starts.device, dtype=before.dtype).unsqueeze(1)
    # time of the latest start; before the first start, minus one minus the steps of the running episode so far
    latest = torch.cummax(torch.where(starts, times, -before.expand(starts.shape) - 1), dim=0).values
    return torch.where(latest < 0, times + before, times - latest)


def scan(
    factors: Tensor,
    terms: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> Tensor:
    """
    Compute all ``h_t = factors_t * h_{t-1} + terms_t``, elementwise, real or complex.

    Products of factors of magnitude at most 1 stay at most 1, so the scan is as stable as a loop. It needs no logarithms, so a
    factor of 0 (where an episode starts) is exact for finite numbers. Forward and backward take ``2 sqrt(T)`` steps each. The
    gradient is written by hand: it is the same recurrence, backward in time. It has no second derivative.

    :param factors: ``(T, B, ...)``
    :param terms: ``(T, B, ...)``, of the same shape and dtype
    :param state: ``h_{-1}``, ``(B, ...)``; None: zeros
    :param starts: ``(T, B)`` bool; where true, ``h_{t-1}`` is the initial state. None: no episode starts
    :param initial_state: ``(B, ...)``; None: zeros
    :return: ``h``, ``(T, B, ...)``
    """
    if starts is not None:
        starts = starts.view(*starts.shape, *[1] * (terms.dim() - 2))
        if initial_state is not None:
            terms = torch.where(starts, terms + factors * initial_state, terms)
        factors = torch.where(starts, 0, factors)
    if len(terms) == 1:  # a step of acting
        return terms if state is None else terms + factors * state
    state = torch.zeros_like(terms[0]) if state is None else state
    return _Scan.apply(factors, terms, state)  # type: ignore[no-any-return, no-untyped-call]


class _Scan(torch.autograd.Function):
    """:func:`scan` without starts."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor, terms: Tensor, state: Tensor) -> Tensor:
        states = _blocked(factors, terms, state, _add_product, torch.Tensor.mul_)
        ctx.save_for_backward(factors, states, state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factors, states, state = ctx.saved_tensors
        # d_t = gradient_t + conj(factors_{t+1}) d_{t+1}
        following = torch.cat([factors[1:].conj(), torch.zeros_like(factors[:1])])
        of_terms = _blocked(
            following, gradient, torch.zeros_like(state), _add_product, torch.Tensor.mul_, backward_in_time=True
        )
        previous = torch.cat([state.unsqueeze(0), states[:-1]])
        return of_terms * previous.conj(), of_terms, of_terms[0] * factors[0].conj()


def _add_product(target: Tensor, factor: Tensor, previous: Tensor) -> None:
    target.addcmul_(factor, previous)


def running_max(values: Tensor, state: Tensor, starts: Tensor) -> Tensor:
    """
    The largest value of an episode so far, without a gradient.

    :param values: ``(T, B, ...)``
    :param state: the largest value before the first step, ``(B, ...)``
    :param starts: ``(T, B)`` bool; true where an episode starts
    :return: ``(T, B, ...)``
    """
    values, state = values.detach(), state.detach()
    starts = starts.view(*starts.shape, *[1] * (values.dim() - 2))
    if len(values) == 1:
        return torch.where(starts, values, torch.maximum(values, state))
    # the same recurrence with maxima in place of sums, and sums in place of products
    factors = torch.zeros_like(values).masked_fill_(starts, -math.inf)

    def accumulate(target: Tensor, factor: Tensor, previous: Tensor) -> None:
        torch.maximum(target, factor + previous, out=target)

    return _blocked(factors, values, state, accumulate, torch.Tensor.add_)


def _blocked(
    factors: Tensor,
    terms: Tensor,
    state: Tensor,
    accumulate: Callable[[Tensor, Tensor, Tensor], None],
    compose: Callable[[Tensor, Tensor], Any],
    backward_in_time: bool = False,
) -> Tensor:
    """
    A recurrence in about ``sqrt(T)`` blocks of ``sqrt(T)`` steps: first in all blocks at once, then from block to block.

    :param factors: ``(T, ...)``
    :param terms: ``(T, ...)``
    :param state: before the first step; if ``backward_in_time``, zeros
    :param accumulate: adds to its first argument, in place, the second one applied to the third
    :param compose: replaces its first argument, in place, by its composition with the second
    :param backward_in_time: run from the last step to the first
    :return: ``(T, ...)``
    """
    time, size = len(terms), math.isqrt(len(terms) - 1) + 1
    blocks = -(-time // size)
    padded = torch.zeros(2, blocks * size, *terms.shape[1:], dtype=terms.dtype, device=terms.device)
    padded[0, :time], padded[1, :time] = factors, terms
    # (blocks, size, ...): the composition of the factors since the block's first step, and the states
    products, states = padded.view(2, blocks, size, *terms.shape[1:])
    order = list(range(size))[:: -1 if backward_in_time else 1]
    for previous, index in pairwise(order):
        accumulate(states[:, index], products[:, index], states[:, previous])
        compose(products[:, index], products[:, previous])
    carried = torch.empty_like(states[:, 0])  # the state before each block
    order_of_blocks = list(range(blocks))[:: -1 if backward_in_time else 1]
    carried[order_of_blocks[0]] = state
    for previous, index in pairwise(order_of_blocks):
        carried[index] = states[previous, order[-1]]
        accumulate(carried[index], products[previous, order[-1]], carried[previous])
    accumulate(states, products, carried.unsqueeze(1))
    found: Tensor = states.flatten(0, 1)[:time]
    return found


def matrix_scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    starts: Tensor,
    log_decay: Tensor | None = None,
    strength: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    r"""
    A memory that is a matrix, read and written at each step: ``S_t`` from ``S_{t-1}``, which is zeros where an episode starts.

    .. math::

        S_t = \alpha_t S_{t-1} + k_t u_t^T, \quad o_t = S_t^T q_t, \quad
        u_t = \beta_t (v_t - \alpha_t S_{t-1}^T k_t) \text{ with a strength, otherwise } v_t

    Within a chunk, the :math:`u` of all steps are the solution of one triangular system (Yang et al. 2024, section 3).

    :param query: ``(T, B, H, K)``
    :param key: ``(T, B, H, K)``
    :param value: ``(T, B, H, V)``
    :param state: ``(B, H, K, V)``
    :param starts: ``(T, B)`` bool; true where an episode starts
    :param log_decay: logarithm of :math:`\alpha`, at most 0, ``(T, B, H)``; None: no decay
    :param strength: :math:`\beta`, ``(T, B, H)``; None: the value is added, whatever the memory holds under its key
    :param chunk: ``C``
    :return: ``o``, ``(T, B, H, V)``, and the state after the last step
    """
    if len(query) == 1:
        return _matrix_step(query, key, value, state, starts, log_decay, strength)
    time, size = len(query), min(chunk, len(query))
    pad = -time % size

    def chunks(x: Tensor) -> Tensor:
        """``(T, B, H, ...)`` -> ``(N, B, H, C, ...)``."""
        x = functional.pad(x, [0] * (2 * x.dim() - 1) + [pad]) if pad else x.contiguous()
        return x.view(len(x) // size, size, *x.shape[1:]).movedim(1, 3)

    q, k, v = chunks(query), chunks(key), chunks(value)
    episode = chunks(starts.unsqueeze(-1).long()).cumsum(-1)  # (N, B, 1, C), counted from the start of the chunk
    last = episode[..., -1:]
    causal = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    reach = (episode.unsqueeze(-1) == episode.unsqueeze(-2)) & causal  # (N, B, 1, C, C), from a query to a key
    if log_decay is None:
        decay = reach.to(q.dtype)
        from_before, to_end = (episode == 0).to(q.dtype), (episode == last).to(q.dtype)
        kept = (last == 0).to(q.dtype)
    else:
        total = chunks(log_decay).cumsum(-1)  # (N, B, H, C)
        decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~reach, -math.inf).exp()
        from_before = torch.where(episode == 0, total.exp(), 0)
        to_end = torch.where(episode == last, (total[..., -1:] - total).exp(), 0)
        kept = torch.where(last == 0, total[..., -1:].exp(), 0)
    scores = (q @ k.transpose(-1, -2)) * decay  # (N, B, H, C, C)
    q_before, k_end = q * from_before.unsqueeze(-1), (k * to_end.unsqueeze(-1)).transpose(-1, -2)
    kept = kept.unsqueeze(-1)
    corrections: tuple[Tensor | None, ...] = (None,) * len(q)
    if strength is not None:
        beta = chunks(strength).unsqueeze(-1)
        system = (beta * (k @ k.transpose(-1, -2)) * decay).tril(-1)  # its diagonal of ones is implied
        known = torch.cat([beta * v, beta * from_before.unsqueeze(-1) * k], dim=-1)
        solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
        v = solved[..., : v.shape[-1]]
        corrections = solved[..., v.shape[-1] :].unbind()
    outputs = []
    # unbound at once: the gradient of an index is a tensor as large as the whole sequence, at each chunk
    parts = (part.unbind() for part in (v, q_before, scores, k_end, kept))
    for new, before, within, end, keep, correction in zip(*parts, corrections, strict=True):
        if correction is not None:
            new = new - correction @ state
        outputs.append(before @ state + within @ new)
        state = keep * state + end @ new
    # (N, B, H, C, V) -> (T, B, H, V)
    return torch.stack(outputs).movedim(3, 1).flatten(0, 1)[:time], state


def _matrix_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    starts: Tensor,
    log_decay: Tensor | None,
    strength: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`matrix_scan` of one step."""
    q, k, v = query[0].unsqueeze(-2), key[0].unsqueeze(-2), value[0].unsqueeze(-2)  # (B, H, 1, ...)
    state = torch.where(starts[0].view(-1, 1, 1, 1), 0, state)
    if log_decay is not None:
        state = state * log_decay[0].exp().unsqueeze(-1).unsqueeze(-1)
    if strength is not None:
        v = strength[0].unsqueeze(-1).unsqueeze(-1) * (v - k @ state)
    state = state + k.transpose(-1, -2) @ v
    return (q @ state).squeeze(-2).unsqueeze(0), state
