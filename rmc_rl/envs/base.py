"""
Worlds: many copies of a world in a few tensors, and the same world with NumPy arrays, as a batch and as a single copy.

Shapes: ``B`` copies of a world (``num_envs``).
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rmc_rl.envs.parts.keywords import require_memory, whole
from rmc_rl.errors import UsageError, check_keywords, require


class Answers(NamedTuple):
    """
    The actions of a player that knows the whole state.

    :param actions: ``(B, *action_shape)``; any valid action where it is not known
    :param known: ``(B,)`` bool, where the action is known and matters
    """

    actions: Any
    known: Any


class Returns(NamedTuple):
    """
    Mean returns per episode of three players, each None where it is not known.

    :param random: draws its actions from the action space
    :param memoryless: the best known player that sees only the present observation
    :param perfect: the best player
    """

    random: float | None = None
    memoryless: float | None = None
    perfect: float | None = None


class BatchedWorld(VectorEnv[Tensor, Tensor | np.ndarray, Tensor], ABC):
    """
    ``B`` copies of a world, whose state, observations and rewards are tensors with a leading dimension ``B``.

    A world is a subclass with three methods, :meth:`_draw`, :meth:`_advance` and :meth:`_observe`. This class adds seeding,
    autoreset and Gymnasium's interface. A copy whose episode ends begins the next one in the same step
    (``AutoresetMode.SAME_STEP``): the step returns the first observation of the new episode. The last observation of the
    ended episode is in ``info["final_obs"]``, valid where ``info["_final_obs"]``. On the CPU both keys exist only if an
    episode ended. On another device they always exist, so that no step waits for the device. With a render mode,
    ``info["final_frames"]`` beside them has the pictures before the new episodes began.

    One generator draws for all copies: ``reset(seed=...)`` fixes the whole batch, and the episodes of a copy depend on ``B``.

    :param num_envs: ``B``
    :param observation_space: of one copy
    :param action_space: of one copy
    :param device: where the tensors are
    :param render_mode: None or one of ``metadata["render_modes"]``
    :raises UsageError: for ``num_envs`` below 1, observations that need too much memory, or an unknown render mode
    """

    truncates: ClassVar[bool] = False
    """Whether episodes may be truncated. Where they are not, nothing is computed for the bootstrapping of values."""

    family: ClassVar[str] = "rmc_rl"
    """
    The default configuration that fits: "rmc_rl"; "recall" if the agent answers from memory with discrete actions that change
    only the reward of their own step; "control" if it controls a physical system and observes only positions; or a family of
    the world's own.
    """

    ranges: ClassVar[tuple[str, ...]] = ()
    """
    Keywords that take a range ``[low, high]``, from which each episode draws its own number. They are attributes, and a new
    value (``set_attr``) within the bounds of the first one holds for the episodes that begin after it. Other keywords have one
    value, because they fix the shape of observations, or tables that all episodes share.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": [], "render_fps": 4}

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.num_envs = whole("num_envs", num_envs)
        modes = [None, *self.metadata["render_modes"]]
        require(render_mode in modes, f"render_mode must be one of {modes}", render_mode)
        one = int(np.prod(observation_space.shape or ())) * np.dtype(observation_space.dtype or np.int64).itemsize
        require_memory(self.num_envs * one, num_envs=self.num_envs, observation_shape=observation_space.shape)
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self.device = torch.device(device)
        self._is_on_cpu = self.device.type == "cpu"
        self.render_mode = render_mode
        self.generator = torch.Generator(self.device)
        self._is_seeded = self._is_reset = False
        self._state_names: tuple[str, ...] = ()  # attributes that hold the copies' state
        self.often: dict[str, Any] = {}
        """Numbers of keywords of :attr:`ranges` that half of the new episodes have, whatever the present ranges are."""

    @abstractmethod
    def _draw(self, count: int) -> dict[str, Tensor]:
        """
        Draw the state of new episodes. It is kept in attributes of these names.

        :param count: number of episodes: ``B`` at the first call; afterwards the number of ended episodes (on the CPU) or
            ``B`` (on another device, where counting them would wait for the device)
        :return: attribute -> tensor ``(count, ...)`` in its own memory, on :attr:`device`
        """

    @abstractmethod
    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        One step of all copies, without autoreset.

        :param actions: ``(B, *action_shape)``, whole numbers as int64
        :return: rewards ``(B,)`` float32, terminated ``(B,)`` bool, truncated ``(B,)`` bool
        """

    @abstractmethod
    def _observe(self) -> Tensor:
        """The present observations, ``(B, *observation_shape)``, in their own memory."""

    def _picture(self, index: int) -> np.ndarray:
        """
        A picture of a copy for people. Worlds with render modes implement it.

        :param index: which copy
        :return: ``(height, width, 3)`` uint8
        """
        raise NotImplementedError

    def _answers(self) -> Answers:
        """The answers of :meth:`answers`. Worlds that know them implement it."""
        raise UsageError(f"{type(self).__name__} does not know the right actions: it has no answers()")

    def answers(self) -> Answers:
        """
        The actions that a perfect or scripted player would choose now; the world's docstring says which.

        The player knows the whole state, also what agents do not see.

        :return: actions ``(B, *action_shape)``, and where they are known and matter ``(B,)``, tensors on :attr:`device`
        :raises UsageError: for a world that does not know them
        :raises gymnasium.error.ResetNeeded: before the first reset
        """
        self._require_reset("answers")
        return self._answers()

    def returns(self) -> Returns:
        """Mean returns of random, memoryless and perfect play with this world's keywords."""
        return Returns()

    def present_returns(self) -> Returns:
        """As :meth:`returns`, for episodes as they are drawn now: half of them with the numbers of :attr:`often`."""
        drawn = self.returns()
        if not self.often:
            return drawn
        with self._temporarily(self.often):
            pairs = zip(drawn, self.returns(), strict=True)
            return Returns(*(None if one is None or other is None else (one + other) / 2 for one, other in pairs))

    def memory_demand(self) -> int | None:
        """
        The largest number of steps between seeing a fact and using it; None if it is unknown.

        An agent that is trained on shorter sequences may fail for that reason.
        """
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """
        Begin a new episode in all copies.

        :param seed: fixes all randomness from here on; None continues with the present generator
        :param options: unused
        :return: observations ``(B, *observation_shape)`` and an empty info
        """
        super().reset(seed=seed)
        if seed is not None or not self._is_seeded:
            self.generator.manual_seed(int(self.np_random.integers(2**62)))
            self._is_seeded = True
        state = self._draw_episodes(self.num_envs)
        for name, drawn in state.items():
            setattr(self, name, drawn)
        self._state_names = tuple(state)
        self._is_reset = True
        return self._observe(), {}

    def step(self, actions: Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """
        One step of all copies. A copy whose episode ends begins the next one.

        :param actions: ``(B, *action_shape)``, a tensor or an array
        :return: observations, rewards ``(B,)``, terminated ``(B,)``, truncated ``(B,)``, info
        :raises gymnasium.error.ResetNeeded: before the first reset
        """
        self._require_reset("step")
        actions = torch.as_tensor(actions, device=self.device)
        rewards, terminated, truncated = self._advance(actions if actions.is_floating_point() else actions.long())
        done = terminated | truncated
        if self._is_on_cpu and not done.any():
            return self._observe(), rewards, terminated, truncated, {}
        info: dict[str, Any] = {"final_obs": self._observe(), "_final_obs": done}
        if self.render_mode is not None:
            info["final_frames"] = self.render()
        self._begin(done)
        return self._observe(), rewards, terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """
        Everything that the next steps and episodes depend on: the copies' state, the present ranges and the generators.

        :return: tensors by name; they share memory with the world
        :raises gymnasium.error.ResetNeeded: before the first reset
        """
        if not self._is_reset:
            raise gymnasium.error.ResetNeeded("reset() must be called before state_dict()")
        return {
            "copies": {name: getattr(self, name) for name in self._state_names},
            "ranges": {name: getattr(self, name) for name in self.ranges},
            "often": dict(self.often),
            "generator": self.generator.get_state(),
            "numpy": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continue from a state, in a world made with the same keywords.

        :param state: what :meth:`state_dict` returned, on any device
        :raises UsageError: for the state of another world, or of another number of copies
        """
        if not self._is_reset:
            self.reset()  # names and shapes of the state
        copies: dict[str, Tensor] = state["copies"]
        expected = {name: tuple(getattr(self, name).shape) for name in self._state_names}
        found = {name: tuple(part.shape) for name, part in copies.items()}
        require(found == expected, f"the state must be that of {type(self).__name__} with shapes {expected}", found)
        for name, part in copies.items():
            setattr(self, name, part.to(self.device, getattr(self, name).dtype, copy=True))
        for name in self.ranges:
            setattr(self, name, state["ranges"][name])
        self.often = dict(state.get("often", {}))  # not in states of before it existed
        self.generator.set_state(state["generator"].cpu())
        self.np_random.bit_generator.state = state["numpy"]

    def render(self) -> tuple[np.ndarray, ...] | None:
        """
        A picture of each copy.

        :return: ``B`` frames ``(height, width, 3)`` uint8, or None without a render mode
        :raises gymnasium.error.ResetNeeded: before the first reset
        """
        if self.render_mode is None:
            return None
        self._require_reset("render")
        return tuple(self._picture(index) for index in range(self.num_envs))

    def _require_reset(self, method: str) -> None:
        if not self._is_reset:
            raise gymnasium.error.ResetNeeded(f"reset() must be called before {method}()")

    def _begin(self, rows: Tensor) -> None:
        """
        Begin a new episode in some copies and leave the others unchanged.

        :param rows: ``(B,)`` bool
        """
        self._replace(rows, lambda copies: self._draw_episodes(len(copies)))

    def _draw_episodes(self, count: int) -> dict[str, Tensor]:
        """
        Draw the state of new episodes, half of them with the numbers of :attr:`often`.

        :param count: number of episodes
        :return: as :meth:`_draw`
        """
        state = self._draw(count)
        if self.often:
            is_often = torch.rand(count, generator=self.generator, device=self.device) < 0.5
            with self._temporarily(self.often):
                for name, drawn in self._draw(count).items():
                    state[name] = _choose(is_often, drawn, state[name])
        return state

    @contextmanager
    def _temporarily(self, numbers: Mapping[str, Any]) -> Iterator[None]:
        """
        Give keywords other numbers for a while.

        :param numbers: keyword -> its number inside the ``with`` block
        """
        before = {name: getattr(self, name) for name in numbers}
        for name, number in numbers.items():
            setattr(self, name, number)
        try:
            yield
        finally:
            for name, number in before.items():
                setattr(self, name, number)

    def _replace(self, rows: Tensor, draw: Callable[[Tensor], dict[str, Tensor]]) -> None:
        """
        Replace the state of some copies and leave the others unchanged.

        :param rows: which copies, ``(B,)`` bool
        :param draw: from the indices of copies ``(n,)`` to their state or a part of it, as :meth:`_draw` returns it. On the
            CPU it is called for the chosen copies, if there are any. On another device, where counting them would wait for
            the device, it is called for all copies
        """
        if self._is_on_cpu:
            copies = rows.nonzero().squeeze(1)
            for name, drawn in draw(copies).items() if len(copies) else ():
                getattr(self, name)[copies] = drawn
            return
        for name, drawn in draw(torch.arange(self.num_envs, device=self.device)).items():
            setattr(self, name, _choose(rows, drawn, getattr(self, name)))

    def _has_defaults(self, *names: str) -> bool:
        """Whether these keywords have their default values. They must be kept in attributes of the same names."""
        parameters = inspect.signature(type(self)).parameters
        return all(getattr(self, name) == parameters[name].default for name in names)


def _choose(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The rows of ``new`` ``(n, ...)`` where ``rows`` ``(n,)`` is true, and those of ``old`` elsewhere."""
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


def check_world_keywords(kind: str, world: type[BatchedWorld], keywords: Mapping[str, Any], given: Iterable[str]) -> None:
    """
    Check the names of a world's keywords, and that ranges are given only where the world takes one.

    :param kind: what the keywords are called where the user writes them
    :param world: the class of the world
    :param keywords: what the user gave
    :param given: parameters that the caller fills in itself
    :raises UsageError: for an unknown keyword, or a range for a keyword that needs one value
    """
    check_keywords(kind, world, keywords, given)
    for name, value in keywords.items():
        if isinstance(value, list | tuple) and name not in world.ranges:
            valid = f"those of {world.__name__} that take a range are {', '.join(world.ranges)}"
            has_none = f"{world.__name__} has no keyword that takes a range"
            why = "it fixes the shape of the observations or tables that all episodes share"
            raise UsageError(f"{name} must have one value, because {why}, got {value}; {valid if world.ranges else has_none}")


def to_numpy(value: Any) -> Any:
    """Tensors, arrays and dictionaries of them as NumPy arrays."""
    if isinstance(value, dict):
        return {key: to_numpy(item) for key, item in value.items()}
    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


class NumpyWorld(VectorWrapper[np.ndarray, Tensor | np.ndarray, Tensor, Tensor | np.ndarray, Any]):
    """
    A batched world with NumPy arrays instead of tensors, for Gymnasium's own vector wrappers.

    As in Gymnasium's vector environments, ``info["final_obs"]`` is an array of ``B`` objects: the last observations of the
    episodes that ended, and None for the other copies. (Gymnasium's observation wrappers refuse vector environments that reset
    in the same step. They work with ``gymnasium.make_vec(..., vectorization_mode="sync")``.)

    :param env: the world
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        observations, info = self.env.reset(seed=seed, options=options)
        return to_numpy(observations), info

    def step(self, actions: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        done = to_numpy(terminated | truncated)
        if done.any():
            rows = to_numpy(info["final_obs"])
            last = np.full(len(done), None, dtype=object)
            for index in np.flatnonzero(done).tolist():
                last[index] = rows[index]
            info = {"final_obs": last, "_final_obs": done, "final_info": {}, "_final_info": done.copy()}
        else:
            info = {}
        return to_numpy(observations), to_numpy(rewards), to_numpy(terminated), to_numpy(truncated), info


def load_world(path: str) -> type[BatchedWorld]:
    """
    The class of a world.

    :param path: ``module:class``
    """
    world: type[BatchedWorld] = load_env_creator(path)  # type: ignore[assignment]  # which returns any callable
    return world


class SingleWorld(gymnasium.Env[Any, Any]):
    """
    One copy of a batched world as an ordinary Gymnasium environment with NumPy observations.

    :param world: the class of the batched world, as ``module:class``
    :param render_mode: None or one of ``metadata["render_modes"]``
    :param kwargs: keywords of the world
    :raises UsageError: for an unknown keyword or an invalid value
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, world: str, render_mode: str | None = None, **kwargs: Any):
        World: Any = load_world(world)
        check_world_keywords(f"keyword of {World.__name__}", World, kwargs, given=("num_envs", "render_mode"))
        self.world: BatchedWorld = World(num_envs=1, render_mode=render_mode, **kwargs)
        self.render_mode = render_mode
        self.observation_space = self.world.single_observation_space
        self.action_space = self.world.single_action_space
        self._needs_reset = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.world.reset(seed=seed, options=options)
        self._needs_reset = False
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        One step, without autoreset: the end of an episode can be observed and drawn.

        :raises gymnasium.error.ResetNeeded: before the first reset, or after the end of an episode
        """
        if self._needs_reset:
            raise gymnasium.error.ResetNeeded("reset() must be called before step(), at first and after the end of an episode")
        actions = torch.as_tensor(np.asarray(action)[None], device=self.world.device)
        reward, terminated, truncated = self.world._advance(actions if actions.is_floating_point() else actions.long())
        self._needs_reset = bool(terminated | truncated)
        return self._observation(), float(reward), bool(terminated), bool(truncated), {}

    def _observation(self) -> Any:
        return self.world._observe()[0].cpu().numpy()[()]

    def render(self) -> Any:
        frames = self.world.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.world.close()
