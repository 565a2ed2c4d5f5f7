"""
Recurrences computed for all steps of a sequence at once, without a loop over time.

Shapes: ``B`` batch, ``T`` time.
"""

import torch
from torch import Tensor


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


def scan(factors: Tensor, terms: Tensor) -> Tensor:
    """
    Compute all ``h_t = factors_t * h_{t-1} + terms_t`` with ``h_{-1} = 0``, in ``log2 T`` passes over the sequence.

    Hillis and Steele, "Data Parallel Algorithms", 1986, https://doi.org/10.1145/7902.7903. Products of factors between 0 and 1
    stay between 0 and 1, so the scan is as stable as a loop. It needs no logarithms, so a factor of 0 (where an episode
    starts) is exact for finite numbers.

    :param factors: ``(T, ...)``
    :param terms: ``(T, ...)``
    :return: ``h``, ``(T, ...)``
    """
    span = 1  # steps that each factor and term cover
    while span < len(terms):
        terms = torch.cat([terms[:span], terms[span:] + factors[span:] * terms[:-span]])
        factors = torch.cat([factors[:span], factors[span:] * factors[:-span]])
        span *= 2
    return terms
