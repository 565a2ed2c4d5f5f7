"""A Gymnasium vector environment as an SB3 ``VecEnv``, with episode statistics."""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from rmc_rl.errors import require

MOST_SEED = 2**31 - 1  # ale-py's seeds are C integers, one for each copy of the game


def check_seed(seed: int, n_envs: int) -> None:
    """
    Check that each copy can have a seed of its own.

    :param seed: of the first copy; the others have those after it
    :param n_envs: how many copies
    :raises UsageError: for a seed that is too large
    """
    require(seed <= MOST_SEED - n_envs, f"seed must be at most {MOST_SEED} less n_envs", seed)


def to_numpy(value: Any) -> Any:
    """Tensors, arrays and dictionaries of them as NumPy arrays."""
    if isinstance(value, dict):
        return {key: to_numpy(item) for key, item in value.items()}
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def row(value: Any, index: int) -> Any:
    """One copy's part of a batched observation."""
    return {key: item[index] for key, item in value.items()} if isinstance(value, dict) else value[index]


class SameStepVecEnv(VecEnv):
    """
    Copies of an environment that step as one, under SB3's interface.

    Does what SB3's ``Monitor`` does as well: ``info["episode"]`` holds return ``r``, length ``l`` in steps and seconds
    ``t`` when an episode ends. Infos hold nothing else than this, ``terminal_observation`` and ``TimeLimit.truncated``:
    a dictionary for each of thousands of copies would cost more than the step.

    :param vector: the environment; it must reset in the step that ends an episode and give ``final_obs``
    :raises UsageError: for another autoreset mode
    """

    def __init__(self, vector: VectorEnv[Any, Any, Any]):
        mode = vector.metadata.get("autoreset_mode")
        require(mode == AutoresetMode.SAME_STEP, "a vector environment must have AutoresetMode.SAME_STEP", mode)
        self.vector = vector
        self.returns = np.zeros(vector.num_envs)
        self.lengths = np.zeros(vector.num_envs, dtype=int)
        self.started = time.time()
        self._so_far: torch.Tensor | None = None
        self._ended: list[tuple[torch.Tensor, torch.Tensor]] = []
        super().__init__(vector.num_envs, vector.single_observation_space, vector.single_action_space)

    def observation(self, observation: Any) -> VecEnvObs:
        """The agent's view of a batched observation. To be overridden."""
        observations: VecEnvObs = to_numpy(observation)
        return observations

    def reward(self, rewards: np.ndarray) -> np.ndarray:
        """
        The rewards the agent trains on; statistics count the unchanged ones. To be overridden.

        :param rewards: ``(B,)``, the environment's own
        :return: ``(B,)`` float32, in memory that the caller may write to
        """
        return np.array(rewards, dtype=np.float32)

    def episode_over(self, terminated: np.ndarray, truncated: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Which episodes are over, ``(B,)`` bool: those count in the statistics and have a ``final_obs``. To be overridden."""
        over: np.ndarray = terminated | truncated
        return over

    def began(self, info: dict[str, Any]) -> None:
        """Told the info of every reset. To be overridden."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Fix what the next :meth:`reset` draws.

        :param seed: of the first copy; the others have those after it. None: another one each time
        :return: the seed of each copy
        :raises UsageError: for a seed that is too large
        """
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0]) % (MOST_SEED - self.num_envs)
        check_seed(seed, self.num_envs)
        return super().seed(seed)

    def reset(self) -> VecEnvObs:
        observation, info = self.vector.reset(seed=self._seeds[0])
        self.began(info)
        self._reset_seeds()
        self._reset_options()
        self.returns[:], self.lengths[:] = 0, 0
        self._so_far = None
        self._ended.clear()
        return self.observation(observation)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, terminated, truncated, info = self.vector.step(self._actions)
        observations = self.observation(observation)
        rewards, terminated, truncated = to_numpy(rewards), to_numpy(terminated), to_numpy(truncated)
        self.returns += rewards
        self.lengths += 1
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            over = self.episode_over(terminated, truncated, info)
            final = self.observation(info["final_obs"]) if over.any() else observations
            for index in np.flatnonzero(dones).tolist():
                # a done that ends no episode (a lost life) is followed by the observation it ends with
                infos[index]["terminal_observation"] = row(final if over[index] else observations, index)
                infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
                if over[index]:
                    infos[index]["episode"] = {
                        "r": float(self.returns[index]),
                        "l": int(self.lengths[index]),
                        "t": round(time.time() - self.started, 6),
                    }
                    self.returns[index], self.lengths[index] = 0, 0
        return observations, self.reward(rewards), dones, infos

    @property
    def on_device(self) -> bool:
        """Whether the copies live on a device other than the CPU, so that a step need not leave it."""
        return getattr(self.vector, "device", torch.device("cpu")).type != "cpu"

    def step_on_device(
        self, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, Any]:
        """
        A step of a :class:`~rmc_rl.envs.base.BatchedWorld` without leaving its device, and so without infos.

        :param actions: ``(N, *action_shape)``
        :return: observations, rewards ``(N,)``, dones ``(N,)``, and of a world that truncates episodes which ones it did
            ``(N,)`` and the observations they ended with; of another None and None
        """
        observations, rewards, terminated, truncated, info = self.vector.step(actions)
        dones = terminated | truncated
        # returns and lengths so far, (2, N)
        so_far = torch.stack([rewards, torch.ones_like(rewards)]) + (0 if self._so_far is None else self._so_far)
        self._ended.append((dones, so_far))
        self._so_far = torch.where(dones, 0, so_far)
        if not getattr(self.vector, "truncates", True):
            return observations, rewards, dones, None, None
        return observations, rewards, dones, truncated & ~terminated, info.get("final_obs", observations)

    def ended_on_device(self) -> list[dict[str, Any]]:
        """
        The episodes that ended since the last call, brought to the CPU at once.

        :return: an info with ``episode`` for each, as SB3's ``Monitor`` gives it
        """
        dones, so_far = (torch.stack(parts).cpu().numpy() for parts in zip(*self._ended, strict=True))
        self._ended.clear()
        seconds = round(time.time() - self.started, 6)
        ends = zip(so_far[:, 0][dones].tolist(), so_far[:, 1][dones].tolist(), strict=True)
        return [{"episode": {"r": r, "l": int(length), "t": seconds}} for r, length in ends]

    def close(self) -> None:
        self.vector.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        frames: Any = self.vector.render()
        return [None] * self.num_envs if frames is None else list(frames)

    # The copies are one object: what SB3 asks of each is asked of it once.

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.vector, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        setattr(self.vector, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        result = getattr(self.vector, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        # true of Monitor, for its work is done here: SB3's evaluation then reads info["episode"]
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
