"""
Numbers from episodes and from learning curves.

Bootstrap intervals: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmc_rl.errors import require

RESAMPLES = 10_000  # of the bootstrap; the book finds 1000 enough for 95 % intervals


def summarise(values: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """
    Mean, spread and uncertainty of a sample.

    :param values: one number for each episode, or for each run
    :param seed: of the bootstrap
    :return: ``mean``, ``std`` (of the sample, with n - 1), ``interval`` (95 % percentile bootstrap of the mean), ``each``
    :raises UsageError: for an empty sample
    """
    require(len(values) > 0, "a sample must have at least one value", values)
    sample = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = [sample[rng.integers(len(sample), size=len(sample))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    std = float(sample.std(ddof=1)) if len(sample) > 1 else 0.0
    return {"mean": float(sample.mean()), "std": std, "interval": [float(low), float(high)], "each": sample.tolist()}


def first_reached(curve: np.ndarray, threshold: float) -> int | None:
    """
    Where a learning curve first reaches a threshold.

    :param curve: returns in the order of training
    :param threshold: the return to reach
    :return: the index; None if it is never reached
    """
    reached = np.flatnonzero(curve >= threshold)
    return int(reached[0]) if len(reached) else None
