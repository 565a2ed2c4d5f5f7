"""
The previous action and reward as part of the observation.

Wang et al., "Learning to reinforcement learn", 2016, https://arxiv.org/abs/1611.05763, and Duan et al., "RL^2", 2016,
https://arxiv.org/abs/1611.02779, give both to a recurrent agent: without them, what it did and got is lost to its memory.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rmc_rl.errors import require

PREVIOUS = "previous"


def _encoding_size(space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    assert space.shape is not None
    return int(np.prod(space.shape))


class PreviousActionReward(VecEnvWrapper):
    """
    Adds what an agent did and got at the step before to what it sees.

    The observation becomes a ``Dict``: ``observation`` (or the keys of a ``Dict``), and ``previous``, the action (discrete
    ones one-hot) followed by the reward; zeros at the first step of an episode.

    :param venv: the environments
    :raises UsageError: where the observation is a ``Dict`` with a key ``previous``
    """

    def __init__(self, venv: VecEnv):
        seen = venv.observation_space
        parts = dict(seen.spaces) if isinstance(seen, spaces.Dict) else {"observation": seen}
        require(PREVIOUS not in parts, f"observations must not have a key '{PREVIOUS}' yet", sorted(parts))
        self.size = _encoding_size(venv.action_space) + 1
        self.is_dict = isinstance(seen, spaces.Dict)
        box = spaces.Box(-np.inf, np.inf, (self.size,), np.float32)
        super().__init__(venv, observation_space=spaces.Dict({**parts, PREVIOUS: box}))

    def _encode(self, actions: np.ndarray) -> np.ndarray:
        """``(N, *action_shape)`` -> ``(N, size - 1)``."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            one_hot: np.ndarray = np.eye(int(space.n), dtype=np.float32)[actions]
            return one_hot
        if isinstance(space, spaces.MultiDiscrete):
            parts = [np.eye(size, dtype=np.float32)[actions[:, index]] for index, size in enumerate(space.nvec)]
            return np.concatenate(parts, axis=1)
        return actions.reshape(self.num_envs, -1).astype(np.float32)

    def _join(self, observation: Any, previous: np.ndarray) -> dict[str, np.ndarray]:
        return {**(observation if self.is_dict else {"observation": observation}), PREVIOUS: previous}

    def reset(self) -> VecEnvObs:
        return self._join(self.venv.reset(), np.zeros((self.num_envs, self.size), dtype=np.float32))

    def step_async(self, actions: np.ndarray) -> None:
        self._encoded = self._encode(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        previous = np.concatenate([self._encoded, rewards[:, None]], axis=1, dtype=np.float32)
        for index in np.flatnonzero(dones).tolist():
            if "terminal_observation" in infos[index]:
                infos[index]["terminal_observation"] = self._join(infos[index]["terminal_observation"], previous[index].copy())
        previous[dones] = 0
        return self._join(observations, previous), rewards, dones, infos
