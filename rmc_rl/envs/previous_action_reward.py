"""
The previous action and reward as part of the observation.

Wang et al., "Learning to reinforcement learn", 2016, https://arxiv.org/abs/1611.05763, and Duan et al., "RL^2", 2016,
https://arxiv.org/abs/1611.02779, give both to a recurrent agent, because its memory cannot know them otherwise.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rmc_rl.errors import require

PREVIOUS = "previous"
_ACTION_SPACES = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)


def _encoding_size(space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(np.prod(space.shape or ()))


class PreviousActionReward(VecEnvWrapper):
    """
    Adds the action and the reward of the previous step to the observation.

    The observation becomes a ``Dict``: ``observation`` (or the keys of a ``Dict``), and ``previous``, the action (one-hot if
    it is discrete) followed by the reward. ``previous`` is zero at the first step of an episode.

    :param venv: the environments
    :raises UsageError: if the observation is a ``Dict`` with a key ``previous``, or for actions of another kind than SB3's
    """

    def __init__(self, venv: VecEnv):
        seen = venv.observation_space
        parts = dict(seen.spaces) if isinstance(seen, spaces.Dict) else {"observation": seen}
        require(PREVIOUS not in parts, f"observations must not have a key '{PREVIOUS}' yet", sorted(parts))
        kinds = ", ".join(kind.__name__ for kind in _ACTION_SPACES)
        require(isinstance(venv.action_space, _ACTION_SPACES), f"the action space must be one of {kinds}", venv.action_space)
        self.size = _encoding_size(venv.action_space) + 1
        self.is_dict = isinstance(seen, spaces.Dict)
        box = spaces.Box(-np.inf, np.inf, (self.size,), np.float32)
        super().__init__(venv, observation_space=spaces.Dict({**parts, PREVIOUS: box}))

    def _encode(self, actions: np.ndarray) -> np.ndarray:
        """``(N, *action_shape)`` -> ``(N, size - 1)``, in its own memory."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            one_hot: np.ndarray = np.eye(int(space.n), dtype=np.float32)[np.asarray(actions).reshape(self.num_envs)]
            return one_hot
        # (N, *action_shape) -> (N, numbers)
        numbers = np.asarray(actions).reshape(self.num_envs, -1)
        if isinstance(space, spaces.MultiDiscrete):
            sizes = space.nvec.ravel()
            return np.concatenate([np.eye(size, dtype=np.float32)[numbers[:, i]] for i, size in enumerate(sizes)], axis=1)
        return numbers.astype(np.float32)

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
        infos = list(infos)  # the environment may use its list and its dictionaries again
        for index in np.flatnonzero(dones).tolist():
            last = infos[index].get("terminal_observation")
            if last is not None:
                last = {key: np.array(part) for key, part in self._join(last, previous[index]).items()}
                infos[index] = {**infos[index], "terminal_observation": last}
        previous[dones] = 0
        return self._join(observations, previous), rewards, dones, infos
