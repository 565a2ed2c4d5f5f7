"""
Any environment made partially observable: hidden, missing, noisy or late observations.

* ``hide``: parts of the observation are left out, as the velocities in Wierstra et al., "Recurrent policy gradients", 2010.
* ``flicker``: the whole observation is blank, Hausknecht and Stone, "Deep recurrent Q-learning for partially observable MDPs",
  2015, https://arxiv.org/abs/1507.06527.
* ``noise`` and ``drop_sensors``: Gaussian noise, and single numbers that are missing, Meng et al., "Memory-based deep
  reinforcement learning for POMDPs", 2021, https://arxiv.org/abs/2102.12344.
* ``delay``: observations that are some steps old, Katsikopoulos and Engelbrecht, "Markov decision processes with delays and
  asynchronous cost collection", 2003.

Shapes: ``N`` environments.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rmc_rl.envs.parts.keywords import number, whole
from rmc_rl.errors import UsageError, check_keywords, require, unknown

WITH_BLANK = (spaces.Discrete, spaces.MultiDiscrete)  # spaces that have no zero: a blank observation is one more value
_STREAM = 0x7061727469616C  # keeps the numbers drawn here apart from those that the environment draws from the same seed


class PartialObservation(VecEnvWrapper):
    """
    Makes an environment partially observable. The steps follow this order: ``hide``, ``delay``, ``noise``, ``drop_sensors``,
    ``flicker``. Rewards, ends and the environment's own state stay as they are.

    ``hide``, and the last two for discrete observations, change the observation space. The others leave it as it was, so that
    an agent can be evaluated with other values than in training.

    The numbers are drawn from a generator of its own, with the seed of :meth:`seed`.

    :param venv: the environments
    :param hide: which parts of the observation are left out: indices into a vector, or keys of a ``Dict``
    :param flicker: probability that the whole observation of a step is blank: zero (the nearest value if zero is out of
        bounds), and for a discrete observation one more value
    :param noise: standard deviation of Gaussian noise, in the unit of the observation; for images a fraction of 255. The
        result stays within the bounds of the space. For ``Box`` observations
    :param drop_sensors: probability of each number to be blank, independently; for a discrete observation as ``flicker``
    :param delay: steps by which observations are late. At the start of an episode its first observation is repeated
    :raises UsageError: for a value that is out of bounds or does not fit the observations
    """

    def __init__(
        self,
        venv: VecEnv,
        hide: Sequence[int | str] | None = None,
        flicker: float = 0.0,
        noise: float = 0.0,
        drop_sensors: float = 0.0,
        delay: int = 0,
    ):
        self.flicker = number("partial.flicker", flicker, at_least=0, at_most=1)
        self.noise = number("partial.noise", noise, at_least=0)
        self.drop_sensors = number("partial.drop_sensors", drop_sensors, at_least=0, at_most=1)
        self.delay = whole("partial.delay", delay, at_least=0)
        seen = venv.observation_space
        rule = "partial.hide must be a list of indices or of keys, as in [1, 3]"
        require(hide is None or isinstance(hide, list | tuple | np.ndarray), rule, hide)
        self._hidden_keys, self._shown = _check_hide([] if hide is None else list(hide), seen)
        if isinstance(seen, spaces.Dict):
            parts = {key: part for key, part in seen.spaces.items() if key not in self._hidden_keys}
        else:
            parts = {"": self._shorter(seen)}
        self._is_dict = isinstance(seen, spaces.Dict)
        numbers = [part for part in parts.values() if isinstance(part, spaces.Box)]
        require(not self.noise or bool(numbers), "partial.noise needs a Box among the observations", seen)
        blanks = self.flicker > 0 or self.drop_sensors > 0
        self._parts = parts  # before a blank value was added
        shown = {key: _with_blank(part) if blanks else part for key, part in parts.items()}
        super().__init__(venv, observation_space=spaces.Dict(shown) if self._is_dict else shown[""])
        self.changes_something = (
            len(self._hidden_keys) > 0 or self._shown is not None or blanks or self.noise > 0 or self.delay > 0
        )
        self.generator = _generator(None)
        # the last observations, (delay + 1, N, *shape) of each part; the newest first
        self._late: dict[str, np.ndarray] = {}

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Fix the randomness of the environments and of what is added here.

        :param seed: as of SB3's ``VecEnv``
        """
        self.generator = _generator(seed)
        return self.venv.seed(seed)

    def reset(self) -> VecEnvObs:
        parts = self._visible(self.venv.reset())
        if self.delay:
            self._late = {key: np.repeat(part[None], self.delay + 1, axis=0) for key, part in parts.items()}
        joined: VecEnvObs = self._joined(self._disturbed(parts))
        return joined

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        parts, ended = self._visible(observations), np.flatnonzero(dones)
        last = {}
        infos = list(infos)  # the environment may use its list and its dictionaries again
        for index in ended.tolist():
            if infos[index].get("terminal_observation") is not None:
                last[index] = self._visible(infos[index]["terminal_observation"], single=True)
        if self.delay:
            for key, part in parts.items():
                late = self._late[key]
                for index in last:  # the last observation is as late as the others
                    last[index][key] = late[self.delay - 1, index].copy()
                late[1:] = late[:-1].copy()
                late[0] = part
                late[:, ended] = part[ended]
                parts[key] = late[-1].copy()
        disturbed = self._joined(self._disturbed(parts))
        for index, ended_parts in last.items():
            one = self._disturbed({key: np.asarray(value)[None] for key, value in ended_parts.items()})
            joined = self._joined({key: value[0] for key, value in one.items()})
            infos[index] = {**infos[index], "terminal_observation": joined}
        return disturbed, rewards, dones, infos

    def state_dict(self) -> dict[str, Any]:
        """What the next observations depend on: the generator and the observations that are to come; arrays are shared."""
        return {"generator": self.generator.bit_generator.state, "late": self._late}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continue from a state, in a wrapper made with the same settings.

        :param state: what :meth:`state_dict` returned
        :raises UsageError: for the state of another wrapper
        """
        late, shape = state["late"], (self.delay + 1, self.num_envs)
        expected = {key: shape + (part.shape or ()) for key, part in self._parts.items()} if self.delay else {}
        found = {key: part.shape for key, part in late.items()}
        require(found in (expected, {}), f"partial.delay must have stored observations of shapes {expected}", found)
        self.generator.bit_generator.state = state["generator"]
        self._late = {key: part.copy() for key, part in late.items()}

    def _shorter(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        """A space without the hidden numbers."""
        if self._shown is None:
            return space
        if isinstance(space, spaces.MultiBinary):
            return spaces.MultiBinary(len(self._shown))
        if isinstance(space, spaces.MultiDiscrete):
            return spaces.MultiDiscrete(space.nvec[self._shown], dtype=space.dtype, start=space.start[self._shown])
        assert isinstance(space, spaces.Box)
        return spaces.Box(space.low[self._shown], space.high[self._shown], dtype=space.dtype)

    def _visible(self, observation: Any, single: bool = False) -> dict[str, np.ndarray]:
        """The parts of an observation without what is hidden, in their own memory if they are changed later."""
        if self._is_dict:
            return {key: np.array(observation[key]) for key in self._parts}
        whole = np.array(observation)
        if self._shown is not None:
            whole = whole[self._shown] if single else whole[:, self._shown]
        return {"": whole}

    def _joined(self, parts: dict[str, np.ndarray]) -> Any:
        return parts if self._is_dict else parts[""]

    def _disturbed(self, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Noise, missing numbers and blank observations added; each part is ``(n, *shape)``."""
        copies = len(next(iter(parts.values())))
        blank = self.generator.random(copies) < self.flicker if self.flicker else None
        return {key: self._disturb(self._parts[key], part, blank) for key, part in parts.items()}

    def _disturb(self, space: spaces.Space[Any], part: np.ndarray, blank: np.ndarray | None) -> np.ndarray:
        if self.noise and isinstance(space, spaces.Box):
            scale = self.noise * (255 if is_image_space(space, check_channels=False) else 1)
            noisy = part + scale * self.generator.standard_normal(part.shape)
            if np.issubdtype(part.dtype, np.integer):
                noisy = np.rint(noisy)
            part = np.clip(noisy, space.low, space.high).astype(part.dtype)
        if self.drop_sensors:
            part = np.where(self.generator.random(part.shape) < self.drop_sensors, _blank(space), part).astype(part.dtype)
        if blank is not None:
            # (n,) -> (n, 1, ...)
            chosen = blank.reshape(-1, *[1] * (part.ndim - 1))
            part = np.where(chosen, _blank(space), part).astype(part.dtype)
        return part


def make_partial(env: VecEnv, partial: Mapping[str, Any] | None) -> VecEnv:
    """
    An environment with what the node ``partial`` of the command line says.

    :param env: the environments
    :param partial: arguments of :class:`PartialObservation`; None or empty: everything is observed
    :return: the environment itself if nothing is hidden or disturbed
    :raises UsageError: for an unknown key, or a value that is out of bounds or does not fit the observations
    """
    given = dict(partial or {})
    check_keywords("key of partial", PartialObservation.__init__, given, given=("venv",))
    given = {key: value for key, value in given.items() if value is not None}  # null: the default
    made = PartialObservation(env, **given)
    return made if made.changes_something else env


def _check_hide(hide: list[Any], space: spaces.Space[Any]) -> tuple[list[str], np.ndarray | None]:
    """
    Which parts of an observation are hidden.

    :return: the hidden keys of a ``Dict``; and for a vector the indices of the numbers that are shown, None for all
    """
    if not hide:
        return [], None
    if isinstance(space, spaces.Dict):
        for key in hide:
            if key not in space.spaces:
                raise unknown("part of the observation in partial.hide", key, space.spaces)
        require(len(set(hide)) < len(space.spaces), "partial.hide must leave a part of the observation", hide)
        return list(hide), None
    vector = isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary) and len(space.shape or ()) == 1
    if not vector:
        raise UsageError(f"partial.hide needs observations that are a vector or a Dict, got {space}")
    size = int(space.shape[0])  # type: ignore[index]
    for index in hide:
        valid = isinstance(index, int | np.integer) and not isinstance(index, bool) and 0 <= index < size
        require(bool(valid), f"partial.hide must hold indices from 0 to {size - 1}, as in partial.hide=[1]", hide)
    shown = np.setdiff1d(np.arange(size), hide)
    require(len(shown) > 0, f"partial.hide must leave one of the {size} numbers of the observation", hide)
    return [], shown


def _with_blank(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """A space with one more value for what is missing, if it has no zero."""
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n) + 1, start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec + 1, dtype=space.dtype, start=space.start)
    return space


def _blank(space: spaces.Space[Any]) -> Any:
    """What is observed instead of what is missing."""
    if isinstance(space, spaces.Discrete):
        return space.start + space.n
    if isinstance(space, spaces.MultiDiscrete):
        return space.start + space.nvec
    if isinstance(space, spaces.Box):
        return np.clip(0, space.low, space.high).astype(space.dtype)
    return 0


def _generator(seed: int | None) -> np.random.Generator:
    return np.random.default_rng(None if seed is None else [seed, _STREAM])
