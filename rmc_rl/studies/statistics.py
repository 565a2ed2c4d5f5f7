"""
Numbers from episodes, from learning curves and from many runs.

Intervals are percentile bootstraps: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. What compares
methods over seeds and worlds follows Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
2021, https://arxiv.org/abs/2108.13264, and equals their package rliable on the same scores.

``scores`` stands for the scores of one method: an array for each world, with a value for each seed, ``(..., seeds)``. Worlds
may have different numbers of seeds. The functions reduce the last axis, so the bootstrap can pass many resamples at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmc_rl.errors import require

RESAMPLES = 10_000  # of the bootstrap; the book finds 1000 enough for 95 % intervals
BATCH = 500  # resamples that are in memory at once
LEVEL = 95  # per cent
SEEDS_FOR_INTERVAL = 3  # with 2 values the bootstrap can only return the smaller and the larger one
SEEDS_ENOUGH = 5  # with fewer an interval is rough


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


def interval(scores: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], seed: int = 0) -> np.ndarray | None:
    """
    Stratified bootstrap: the seeds of each world are resampled by themselves.

    :param scores: an array for each world, the seeds on its last axis
    :param statistic: takes ``scores`` as its arguments and reduces the last axis
    :param seed: of the bootstrap
    :return: the 95 % interval, ``(2, ...)``; None if a world has fewer than ``SEEDS_FOR_INTERVAL`` seeds
    """
    from scipy.stats import bootstrap  # an optional extra

    if not scores or min(each.shape[-1] for each in scores) < SEEDS_FOR_INTERVAL:
        return None
    found = bootstrap(
        scores,
        lambda *samples, axis=-1: statistic(*samples),  # noqa: ARG005  # always the last axis
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        axis=-1,
        confidence_level=LEVEL / 100,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return np.array(found.confidence_interval)


def mean(*scores: np.ndarray) -> np.ndarray:
    """The mean over worlds of the mean over seeds."""
    return np.asarray(np.mean([each.mean(-1) for each in scores], axis=0))


def median(*scores: np.ndarray) -> np.ndarray:
    """The median over worlds of the mean over seeds."""
    return np.asarray(np.median([each.mean(-1) for each in scores], axis=0))


def interquartile_mean(*scores: np.ndarray) -> np.ndarray:
    """The mean of the middle half of all scores; with fewer than 4 of them, of all."""
    from scipy.stats import trim_mean

    return np.asarray(trim_mean(np.concatenate(scores, -1), 0.25, axis=-1))


def optimality_gap(*scores: np.ndarray) -> np.ndarray:
    """How far scores are below 1 on average; a score above 1 counts as 1."""
    return np.asarray(1 - np.minimum(np.concatenate(scores, -1), 1).mean(-1))


# of normalised scores; only the optimality gap is better if it is small
AGGREGATES: Mapping[str, Callable[..., np.ndarray]] = {
    "interquartile mean": interquartile_mean,
    "mean": mean,
    "median": median,
    "optimality gap": optimality_gap,
}


def performance_profile(thresholds: np.ndarray) -> Callable[..., np.ndarray]:
    """
    The statistic "share of runs whose score is above a threshold".

    :param thresholds: ``(T,)``
    :return: from ``scores`` to shares ``(T, ...)``
    """

    def profile(*scores: np.ndarray) -> np.ndarray:
        pooled = np.concatenate(scores, -1)
        return np.stack([(pooled > threshold).mean(-1) for threshold in thresholds])

    return profile


def probability_of_improvement(*scores: np.ndarray) -> np.ndarray:
    """
    The probability that a random run of method X is better than one of method Y, averaged over worlds.

    Ties count one half, as in Mann and Whitney's U.

    :param scores: first those of X, then those of Y, of the same worlds in the same order
    """
    xs, ys = scores[: len(scores) // 2], scores[len(scores) // 2 :]
    pairs = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in zip(xs, ys, strict=True)]
    return np.asarray(np.mean([0.5 + pair.mean((-2, -1)) / 2 for pair in pairs], axis=0))


def median_to_reach(times: Sequence[float] | np.ndarray) -> float:
    """
    The median over all seeds of the time to reach something, where some never reached it.

    :param times: for each seed; infinite where it was not reached
    :return: infinite if half of the seeds or more did not reach it
    """
    ordered = np.sort(np.asarray(times, dtype=float))
    require(len(ordered) > 0, "a sample must have at least one value", times)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float((low + high) / 2)
