"""A Gymnasium vector environment as an SB3 ``VecEnv``, with episode statistics."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from rmc_rl.envs.base import Answers, to_numpy
from rmc_rl.errors import UsageError, require

MOST_SEED = 2**31 - 1  # ale-py's seeds are C integers, one for each copy of the game
_SPACES = ("observation_space", "action_space")  # of a vector environment these are batched


def check_seed(seed: int, n_envs: int) -> None:
    """
    Check that each copy can have a seed of its own.

    :param seed: of the first copy; the others have those after it
    :param n_envs: how many copies
    :raises UsageError: for a seed that is too large
    """
    require(seed <= MOST_SEED - n_envs, f"seed must be at most {MOST_SEED} less n_envs", seed)


def copied_row(value: Any, index: int) -> Any:
    """One copy's part of a batched observation, in its own memory: an environment may reuse the memory of the batch."""
    if isinstance(value, Mapping):
        return {key: copied_row(item, index) for key, item in value.items()}
    one = value[index]
    return {key: np.array(item) for key, item in one.items()} if isinstance(one, Mapping) else np.array(one)


def _is_batched(value: Any, n_envs: int) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0 and len(value) == n_envs


def per_copy(value: Any, n_envs: int, index: int) -> Any:
    """
    One copy's part of what a batched environment returns.

    * A tensor or an array with ``n_envs`` rows: the row, as NumPy's.
    * A dictionary or a named tuple: the same with one copy's part of each value.
    * A list or a tuple of ``n_envs`` values: the value.
    * Anything else: the whole, for it is common to all copies.

    :param value: what the environment returns for all copies
    :param n_envs: how many copies there are
    :param index: which copy
    """
    if _is_batched(value, n_envs):
        return to_numpy(value[index])[()]
    if isinstance(value, Mapping):
        return {key: per_copy(item, n_envs, index) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(per_copy(item, n_envs, index) for item in value))
    if isinstance(value, list | tuple) and len(value) == n_envs:
        return value[index]
    return value


class SameStepVecEnv(VecEnv):
    """
    Copies of an environment that are stepped together, with SB3's interface.

    The class also does the work of SB3's ``Monitor``: when an episode ends, ``info["episode"]`` holds its return ``r``, its
    length ``l`` in steps and the seconds ``t`` since the start. Infos hold only this, ``terminal_observation``,
    ``TimeLimit.truncated`` and, with a render mode, ``final_frame``, the picture before the reset, because filling a
    dictionary for each of thousands of copies would take longer than the step.

    :param vector: the environment; it must reset in the step that ends an episode and return ``final_obs``
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
        self._is_reset = False
        super().__init__(vector.num_envs, vector.single_observation_space, vector.single_action_space)
        self.metadata = {**vector.metadata, **self.metadata}  # video recorders read render_fps

    def observation(self, observation: Any) -> VecEnvObs:
        """The observations that the agent receives, as arrays. Subclasses may override it."""
        observations: VecEnvObs = to_numpy(observation)
        return observations

    def reward(self, rewards: np.ndarray) -> np.ndarray:
        """
        The rewards that the agent trains on; statistics count the unchanged ones. Subclasses may override it.

        :param rewards: ``(B,)``, the environment's own
        :return: ``(B,)`` float32, in memory that the caller may write to
        """
        return np.array(rewards, dtype=np.float32)

    def episode_over(self, terminated: np.ndarray, truncated: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """
        Which episodes are over, ``(B,)`` bool: they count in the statistics and have a ``final_obs``. Subclasses may
        override it.
        """
        over: np.ndarray = terminated | truncated
        return over

    def final_frames(self, info: dict[str, Any]) -> Sequence[np.ndarray] | None:
        """Pictures of all copies before those that ended were reset; None if none are drawn. Subclasses may override it."""
        frames: Sequence[np.ndarray] | None = info.get("final_frames")
        return frames

    def on_reset(self, info: dict[str, Any]) -> None:
        """Receives the info of every reset. Subclasses may override it."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Fix the randomness from the next :meth:`reset` on.

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
        self.on_reset(info)
        self._reset_seeds()
        self._reset_options()
        self.returns[:], self.lengths[:] = 0, 0
        self._so_far = None
        self._ended.clear()
        self._is_reset = True
        return self.observation(observation)

    def step_async(self, actions: np.ndarray) -> None:
        if not self._is_reset:
            raise gymnasium.error.ResetNeeded("reset() must be called before step()")
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
                # a done that does not end the episode (a lost life): the present observation is its last
                infos[index]["terminal_observation"] = copied_row(final if over[index] else observations, index)
                infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
                frames = self.final_frames(info)
                if frames is not None:
                    infos[index]["final_frame"] = frames[index]
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
        """Whether the copies are on another device than the CPU, so that a step need not leave the device."""
        return getattr(self.vector, "device", torch.device("cpu")).type != "cpu"

    def step_on_device(
        self, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, Any]:
        """
        A step of a :class:`~rmc_rl.envs.base.BatchedWorld` that does not leave its device, and has no infos.

        :param actions: ``(N, *action_shape)``
        :return: observations, rewards ``(N,)``, dones ``(N,)``. If the world truncates episodes, also which episodes were
            truncated ``(N,)`` and the last observations; otherwise None and None
        :raises gymnasium.error.ResetNeeded: before the first reset
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
        The episodes that ended since the last call, copied to the CPU together.

        :return: an info with ``episode`` for each, as SB3's ``Monitor`` gives it
        """
        dones, so_far = (torch.stack(parts).cpu().numpy() for parts in zip(*self._ended, strict=True))
        self._ended.clear()
        seconds = round(time.time() - self.started, 6)
        ends = zip(so_far[:, 0][dones].tolist(), so_far[:, 1][dones].tolist(), strict=True)
        return [{"episode": {"r": r, "l": int(length), "t": seconds}} for r, length in ends]

    def state_dict(self) -> dict[str, Any]:
        """
        Everything that the next steps depend on, between two rollouts.

        :raises UsageError: if the environment cannot say it
        """
        world: Any = self.vector.unwrapped
        require(hasattr(world, "state_dict"), "the environment must have state_dict()", type(world).__name__)
        statistics = {"returns": self.returns, "lengths": self.lengths, "so_far": self._so_far}
        return {"world": world.state_dict(), "statistics": statistics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continue from a state, in an environment made with the same settings.

        :param state: what :meth:`state_dict` returned
        :raises UsageError: for the state of another environment
        """
        self.reset()
        world: Any = self.vector.unwrapped
        world.load_state_dict(state["world"])
        statistics = state["statistics"]
        self.returns, self.lengths, so_far = statistics["returns"], statistics["lengths"], statistics["so_far"]
        self._so_far = None if so_far is None else so_far.to(world.device)

    def close(self) -> None:
        self.vector.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        frames: Any = self.vector.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def answers(self) -> Answers:
        """
        What :meth:`~rmc_rl.envs.base.BatchedWorld.answers` returns, as NumPy arrays.

        :raises UsageError: where the environment does not know the right actions
        """
        world: Any = self.vector.unwrapped
        if not hasattr(world, "answers"):
            raise UsageError(f"{type(world).__name__} does not know the right actions: it has no answers()")
        return Answers(*map(to_numpy, world.answers()))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        An attribute of some copies.

        :param attr_name: the attribute's name
        :param indices: which copies; None: all
        :return: of each copy its row of a tensor or array with a row for each copy, and otherwise the same value. Spaces are
            those of one copy
        """
        value = getattr(self.vector, f"single_{attr_name}" if attr_name in _SPACES else attr_name)
        rows = _is_batched(value, self.num_envs)
        return [per_copy(value, self.num_envs, index) if rows else value for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of some copies.

        :param attr_name: the attribute's name
        :param value: the value of each copy
        :param indices: which copies; None: all
        :raises UsageError: for a part of the copies, where the attribute is common to all
        """
        chosen = list(self._get_indices(indices))
        present: Any = getattr(self.vector, attr_name, None)
        if _is_batched(present, self.num_envs):
            present[chosen] = torch.as_tensor(value, device=present.device) if torch.is_tensor(present) else value
            return
        rule = f"set_attr('{attr_name}') must be for all copies, which share this attribute"
        require(len(set(chosen)) == self.num_envs, rule, chosen)
        setattr(self.vector, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the environment. It is called once, for all copies, because they are one object.

        :param method_name: the method's name
        :param method_args: its positional arguments
        :param indices: of which copies to return the result; None: all
        :param method_kwargs: its keyword arguments
        :return: each copy's part of the result, see :func:`per_copy`
        """
        result = getattr(self.vector, method_name)(*method_args, **method_kwargs)
        return [per_copy(result, self.num_envs, index) for index in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        # true for Monitor, whose work is done here: SB3's evaluation then reads info["episode"]
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
