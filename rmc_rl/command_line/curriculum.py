"""
Curricula: keywords of a world that rise as the training return allows.

Bengio et al., "Curriculum learning", 2009; Zaremba and Sutskever, "Learning to execute", 2014, https://arxiv.org/abs/1410.4615,
raise the length of programs in the same way; their "mix" strategy, which goes on with easier programs, is ``draw="range"``,
and the "combined" one, which joins it with the present length, is ``draw="combined"``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from rmc_rl.agents import parallel
from rmc_rl.command_line.advice import find_world_of
from rmc_rl.command_line.progress import EPISODES_FOR_BEST, episode_returns, say
from rmc_rl.envs.base import BatchedWorld
from rmc_rl.errors import UsageError, require, require_choice, require_number, unknown

STEPS = 10  # in which a keyword goes from the first value to the last, unless its step is given
DRAWS = ("present", "range", "combined")
SHARE = 0.8  # of the way from play without memory to perfect play, at which keywords rise


class Stage(NamedTuple):
    """
    One keyword of a curriculum.

    :param first: value at the start
    :param last: value at the end
    :param step: by which it changes, with its sign
    """

    first: float
    last: float
    step: float

    def value(self, index: int) -> float:
        """
        The value after some steps.

        :param index: how many
        """
        value = self.first + index * self.step
        is_over = value >= self.last if self.step > 0 else value <= self.last
        return self.last if is_over else value

    @property
    def length(self) -> int:
        """The number of steps until the last value."""
        return int(np.ceil(abs((self.last - self.first) / self.step) - 1e-9))


def read_curriculum(curriculum: Mapping[str, Any]) -> dict[str, Stage]:
    """
    The node ``curriculum`` of the command line.

    :param curriculum: for each keyword ``[from, to]`` or ``[from, to, step]``. Without a step it is a tenth of the way; for
        whole numbers at least 1, rounded
    :raises UsageError: for another value
    """
    plain: Any = OmegaConf.to_container(curriculum) if isinstance(curriculum, DictConfig) else curriculum
    return {str(keyword): _stage(str(keyword), value) for keyword, value in plain.items()}


def _stage(keyword: str, value: Any) -> Stage:
    rule = f"curriculum.{keyword} must be [from, to] or [from, to, step], as in curriculum.{keyword}=[5,50]"
    require(isinstance(value, list | tuple) and len(value) in (2, 3), rule, value)
    first, last = (require_number(f"each number of curriculum.{keyword}", bound) for bound in value[:2])
    require(first != last, f"curriculum.{keyword} must have two different numbers", value)
    whole = all(isinstance(each, int) for each in value)
    step = abs(last - first) / STEPS
    if whole:
        first, last, step = int(first), int(last), max(1, round(step))
    if len(value) == 3:
        require_number(f"the step of curriculum.{keyword}", value[2], above=0)
        require(value[2] <= abs(last - first), f"the step of curriculum.{keyword} must not be larger than its way", value)
        step = value[2]
    return Stage(first, last, step if last > first else -step)


def widest(curriculum: Mapping[str, Any]) -> dict[str, list[float]]:
    """
    Keywords with which a world is made that goes through a curriculum: each with the range of its values.

    :param curriculum: see :func:`read_curriculum`
    """
    return {keyword: sorted([stage.first, stage.last]) for keyword, stage in read_curriculum(curriculum).items()}


def set_last_values(config: DictConfig) -> None:
    """
    Write the last values of a curriculum into ``env_kwargs``, with which the agent is evaluated.

    :param config: of a new run
    :raises UsageError: if a keyword has another value there already
    """
    for keyword, stage in read_curriculum(config.curriculum).items():
        rule = f"{keyword} must be in curriculum or in env_kwargs, not in both"
        require(keyword not in config.env_kwargs, rule, config.env_kwargs.get(keyword))
        with open_dict(config.env_kwargs):
            config.env_kwargs[keyword] = stage.last


def check_curriculum(curriculum: Mapping[str, Any], world: type[BatchedWorld] | None, env_id: str) -> None:
    """
    Check that a world has the keywords of a curriculum.

    :param curriculum: see :func:`read_curriculum`
    :param world: the class of the world; None: the environment is none of ours
    :param env_id: the environment's id
    :raises UsageError: for a keyword that cannot change while the agent learns
    """
    if curriculum and world is None:
        raise UsageError(f"curriculum needs a world of rmc_rl/*, whose keywords can change during training, got {env_id}")
    for keyword in curriculum:
        if world is not None and keyword not in world.ranges:
            raise unknown(f"keyword in curriculum for {env_id}", keyword, world.ranges)


class Curriculum(BaseCallback):
    """
    Raises keywords of a world while an agent learns.

    The rule: at the start of a rollout, all keywords go one step further if the last ``EPISODES_FOR_BEST`` (100) training
    episodes, all of which began since the last step, have a mean return of at least ``threshold``. The statistics of
    episodes start afresh with each step, so that the returns that are logged, and by which the best model is chosen, are those
    at the present difficulty. Episodes that run when a keyword changes go on with the old value.

    ``curriculum/<keyword>`` and ``curriculum/threshold`` are logged.

    :param curriculum: see :func:`read_curriculum`; empty: nothing happens
    :param model: the agent; its world gets the first values
    :param threshold: mean return at which keywords rise; None: ``SHARE`` (80 %) of the way from the return without memory
        (from that of random play if it is not known) to that of perfect play, for episodes as they are drawn now
    :param draw: "present": all episodes have the present values; "range": each episode draws its own, for each keyword evenly
        from those between the first value and the present one; "combined": half of the episodes have the present values, and
        the others draw
    :raises UsageError: if the world refuses a value, or does not know these returns and there is no ``threshold``, or for
        another ``draw``
    """

    def __init__(
        self, curriculum: Mapping[str, Any], model: BaseAlgorithm, threshold: float | None = None, draw: str = "present"
    ):
        require_choice("curriculum_draw", draw, DRAWS)
        super().__init__()
        self.stages, self.fixed_threshold, self.draw = read_curriculum(curriculum), threshold, draw
        self.world, n_envs = find_world_of(model), model.n_envs
        self.index = 0  # steps taken so far
        self.ended = torch.zeros(n_envs, dtype=torch.long)  # episodes of each copy since the last step
        if self.stages:
            self._set()
            self._threshold()

    @property
    def values(self) -> dict[str, float]:
        """The present value of each keyword."""
        return {keyword: stage.value(self.index) for keyword, stage in self.stages.items()}

    @property
    def is_over(self) -> bool:
        """Whether all keywords have their last values."""
        return all(self.index >= stage.length for stage in self.stages.values())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps. The values themselves are part of the world's state."""
        return {"index": self.index, "ended": self.ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on from a checkpoint.

        :param state: what :meth:`state_dict` returned
        """
        self.index, self.ended = int(state["index"]), state["ended"]

    def _set(self) -> None:
        assert self.world is not None
        for keyword, value in self.values.items():
            first = self.stages[keyword].first
            setattr(self.world, keyword, value if self.draw == "present" else tuple(sorted([first, value])))
        if self.draw == "combined":
            self.world.often = self.values

    def _threshold(self) -> float:
        """The mean return at which the keywords rise."""
        if self.fixed_threshold is not None:
            return self.fixed_threshold
        assert self.world is not None
        returns = self.world.present_returns()
        low = returns.random if returns.memoryless is None else returns.memoryless
        if low is None or returns.perfect is None:
            raise UsageError(
                "curriculum_return must be a mean return, because the world does not know those of play without memory "
                f"and of perfect play with {self.values}"
            )
        return low + SHARE * (returns.perfect - low)

    def _on_rollout_start(self) -> None:
        if not self.stages or self.is_over:
            return
        returns = episode_returns(self.model)
        # the first episode of each copy may have begun before the last step
        new = int((self.ended - 1).clamp(min=0).sum())
        new = int(parallel.total(torch.tensor(new)))  # of all processes, whose returns these are
        if min(len(returns), new) < EPISODES_FOR_BEST or np.mean(returns) < self._threshold():
            return
        self.index += 1
        self._set()
        say(f"curriculum: {_shown(self.values)} from {self.num_timesteps:,} steps on")
        self.ended.zero_()
        assert self.model.ep_info_buffer is not None
        self.model.ep_info_buffer.clear()

    def _on_step(self) -> bool:
        if self.stages:
            dones = torch.as_tensor(self.locals["dones"])  # of a world on a device: there
            self.ended = self.ended.to(dones.device) + dones
        return True

    def _on_rollout_end(self) -> None:
        for keyword, value in self.values.items():
            self.logger.record(f"curriculum/{keyword}", value)
        if self.stages:
            self.logger.record("curriculum/threshold", self._threshold())


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{keyword} {value:g}" for keyword, value in values.items())
