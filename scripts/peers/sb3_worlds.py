"""The worlds as a vector environment of Stable-Baselines3, for sb3-contrib and for ours."""

# mypy: disable-error-code="misc, unused-ignore"

from typing import Any

import numpy as np
from gymnasium import spaces
from plain_vec_env import PlainVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from peers.common import Clocked
from peers.worlds import Array


class ClockedVecEnv(PlainVecEnv):
    """
    Worlds under the clock.

    :param worlds: the copies
    """

    def __init__(self, worlds: Clocked):
        self.render_mode = None
        box = spaces.Box(-np.inf, np.inf, (worlds.num_inputs,), np.float32)
        super().__init__(worlds.num_envs, box, spaces.Discrete(worlds.num_actions))
        self.worlds = worlds

    def reset(self) -> Array:
        return self.worlds.reset()

    def step_async(self, actions: Array) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        step = self.worlds.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(step.truncated):
            infos[index] = {"TimeLimit.truncated": True}
        ended = step.terminated | step.truncated
        for index in np.flatnonzero(ended):
            infos[index]["terminal_observation"] = step.last[index]
        return step.observations, step.rewards, ended, infos
