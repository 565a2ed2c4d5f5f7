"""The states of random generators, and of gSDE's exploration, as plain data and back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.distributions import StateDependentNoiseDistribution


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put the random generators of Python, NumPy and torch back after a ``with`` block, so that it has no effect on them."""
    before = read_generators()
    try:
        yield
    finally:
        set_generators(before)


def read_generators() -> dict[str, Any]:
    """The states of the generators of Python, NumPy and torch (each device)."""
    version, internal, gauss = random.getstate()
    return {
        "python": (version, np.array(internal, dtype=np.uint64), gauss),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generators(state: dict[str, Any]) -> None:
    """
    Put the generators back.

    :param state: what :func:`read_generators` returned
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)


def read_exploration(model: Any) -> list[torch.Tensor]:
    """
    gSDE's exploration matrices; none without gSDE.

    :param model: the algorithm
    """
    noise = model.policy.action_dist
    if not (model.use_sde and isinstance(noise, StateDependentNoiseDistribution)):
        return []
    return [noise.exploration_mat, noise.exploration_matrices]


def set_exploration(model: Any, matrices: list[torch.Tensor]) -> None:
    """
    Put gSDE's exploration matrices back.

    :param model: the algorithm
    :param matrices: what :func:`read_exploration` returned
    """
    if matrices:
        noise = model.policy.action_dist
        noise.exploration_mat, noise.exploration_matrices = (matrix.to(model.device) for matrix in matrices)
