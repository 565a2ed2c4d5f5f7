"""
Recurrences over whole sequences at once, without a loop over time.

Shapes: ``B`` batch, ``T`` time.
"""

import torch
from torch import Tensor


def steps_since_start(starts: Tensor, before: Tensor) -> Tensor:
    """
    How many steps of its episode precede each step.

    :param starts: ``(T, B)`` bool; where true, an episode starts
    :param before: how many steps of the running episode precede the first one, ``(B,)``
    :return: ``(T, B)``, of the type of ``before``
    """
    times = torch.arange(len(starts), device=starts.device, dtype=before.dtype).unsqueeze(1)
    # the time of the latest start; before any, the time at which the running episode has begun
    latest = torch.cummax(torch.where(starts, times, -before.expand(starts.shape) - 1), dim=0).values
    return torch.where(latest < 0, times + before, times - latest)


def scan(factors: Tensor, terms: Tensor) -> Tensor:
    """
    All ``h_t = factors_t * h_{t-1} + terms_t`` with ``h_{-1} = 0``, in ``log2 T`` passes over the sequence.

    Hillis and Steele, "Data Parallel Algorithms", 1986, https://doi.org/10.1145/7902.7903. Factors between 0 and 1 only shrink
    in these passes, so it is as stable as the loop; no logarithms are needed, and a factor of 0 (an episode's start) is exact,
    for finite numbers.

    :param factors: ``(T, ...)``
    :param terms: ``(T, ...)``
    :return: ``(T, ...)``
    """
    reach = 1
    while reach < len(terms):
        # both now stand for 2 reach steps instead of reach
        terms = torch.cat([terms[:reach], terms[reach:] + factors[reach:] * terms[:-reach]])
        factors = torch.cat([factors[:reach], factors[reach:] * factors[:-reach]])
        reach *= 2
    return terms
