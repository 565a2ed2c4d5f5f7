"""One-line warnings about settings with which an agent cannot learn to remember, or that show that it does not."""

import math
import warnings
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from rmc_rl.command_line.progress import EPISODES_FOR_BEST, episode_returns
from rmc_rl.envs.base import BatchedWorld

COLLAPSED = 0.1  # share of the largest entropy, below which a policy counts as deterministic
CHANCE = 0.05  # share of the way from chance to perfect play, up to which a return counts as chance
ROLLOUTS = 5  # in a row, after which the warning comes
PAGE = "docs/not-learning.md"


def memory_demand(model: BaseAlgorithm) -> int | None:
    """
    Over how many steps the world of an agent asks it to remember, with the present values of its keywords.

    :param model: the agent
    :return: None if it is unknown
    """
    world = find_world_of(model)
    return None if world is None else world.memory_demand()


def warn_about_memory(model: BaseAlgorithm, demand: int | None) -> None:
    """
    Warn if gradients reach back fewer steps than an agent must remember.

    :param model: the agent
    :param demand: steps over which it must remember; None: unknown
    """
    algorithm = cast(Any, model)
    length = getattr(algorithm.rollout_buffer, "sequence_length", algorithm.n_steps)
    if demand is None or length > demand:
        return
    sizes = {name: getattr(algorithm, name, None) for name in ("n_steps", "batch_size", "sequence_length")}
    larger = " ".join(f"algo.{name}={demand + 1}" for name, size in sizes.items() if size is not None and size <= demand)
    warnings.warn(
        f"this world asks to remember over {demand} steps, but gradients reach back {length} steps only; set {larger} or more",
        stacklevel=2,
    )


class EntropyWarning(BaseCallback):
    """
    Warns once if the policy has become deterministic while its return is that of play without memory.

    "Deterministic": the mean entropy of its actions is below a tenth of the largest possible one (not for Box actions). The
    return of play without memory is known for worlds of ``rmc_rl/*`` only.
    """

    def _on_training_start(self) -> None:
        self.in_a_row, self.world = 0, find_world_of(self.model)
        self.most = _largest_entropy(self.training_env.action_space)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        loss = self.logger.name_to_value.get("train/entropy_loss")  # of the update before
        returns = episode_returns(self.model)
        if self.world is None or self.most is None or loss is None or len(returns) < EPISODES_FOR_BEST:
            return
        known = self.world.present_returns()
        chance = known.random if known.memoryless is None else known.memoryless
        if chance is None:
            return
        margin = CHANCE * (known.perfect - chance) if known.perfect is not None else 0.0
        mean = float(np.mean(returns))
        self.in_a_row = self.in_a_row + 1 if -loss < COLLAPSED * self.most and mean <= chance + margin else 0
        if self.in_a_row == ROLLOUTS:
            warnings.warn(
                f"the policy has become deterministic (entropy {-loss:.2g} of {self.most:.2g} nats) at the return {mean:.3g}, "
                f"which needs no memory ({chance:.3g}): a larger algo.ent_coef may help; see {PAGE}",
                stacklevel=2,
            )


def find_world_of(model: BaseAlgorithm) -> BatchedWorld | None:
    """
    The world of ``rmc_rl/*`` in which an agent acts.

    :param model: the agent
    :return: None if the environment is none of them
    """
    env = model.get_env()
    world = None if env is None else getattr(env.unwrapped, "vector", None)
    return world if isinstance(world, BatchedWorld) else None


def _largest_entropy(space: spaces.Space[Any]) -> float | None:
    """The entropy of random actions in nats; None for Box actions."""
    if isinstance(space, spaces.Discrete):
        return math.log(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return float(np.log(space.nvec).sum())
    if isinstance(space, spaces.MultiBinary):
        return math.prod(space.shape) * math.log(2)
    return None
