"""
The state of an SB3 ``VecEnv``: taken when a checkpoint is written, put back when a run is resumed.

A ``VecEnv`` is a stack of wrappers around copies of an environment. The state of a wrapper is a few arrays. That of the copies
is taken in one of three ways:

* The ``VecEnv`` has ``state_dict()`` and ``load_state_dict()``, as the worlds of ``rmc_rl/*`` have: exact.
* The copies of a ``DummyVecEnv`` (CartPole, MiniGrid ...) are pickled, also those in the processes of :func:`rmc_rl.make_vec`:
  exact.
* Otherwise (Atari's emulators, MuJoCo, processes that were made otherwise) the copies cannot be saved: their episodes are
  started again.
"""

import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from rmc_rl.envs.previous_action_reward import PreviousActionReward
from rmc_rl.envs.resumable import pickled_copies, unpickled_copies
from rmc_rl.errors import UsageError, require

# what is restarted begins from a seed that depends on these and on the run's seed
_LARGEST_SEED = 2**31 - 2**20  # leaves room for the seeds of the other copies


class EnvironmentState(NamedTuple):
    """
    The state of a ``VecEnv``.

    :param layers: class and state of each layer, the outermost first; a state of None says that it could not be taken
    :param pickled: the copies, pickled; None if they could not be pickled or did not have to be
    :param inexact: why a resumed run will differ from one that was never stopped; empty if it will not
    """

    layers: list[tuple[str, Any]]
    pickled: bytes | None
    inexact: list[str]


def take_state(env: VecEnv) -> EnvironmentState:
    """
    The state of an environment.

    :param env: the environment, between two steps
    """
    layers: list[tuple[str, Any]] = []
    pickled, inexact = None, []
    for layer in _layers(env):
        name, state = type(layer).__name__, None
        stateful: Any = layer
        if hasattr(type(layer), "state_dict"):  # a wrapper has the attributes of what it wraps
            try:
                state = stateful.state_dict()
            except UsageError as error:
                inexact.append(f"episodes are started again: {error}")
        elif type(layer) in _WRAPPERS:
            state = _WRAPPERS[type(layer)][0](layer)
        elif type(layer) is DummyVecEnv or type(layer) is SubprocVecEnv:
            try:
                pickled = _take_copies(layer)
            except UsageError as error:
                inexact.append(f"episodes are started again: {error}")
        elif isinstance(layer, VecEnvWrapper):
            inexact.append(f"wrapper {name} starts afresh: it has no state_dict()")
        else:
            inexact.append(f"episodes are started again: the copies of {name} cannot be saved")
        layers.append((name, state))
    return EnvironmentState(layers, pickled, inexact)


def put_state(env: VecEnv, state: EnvironmentState, seed: int) -> Any:
    """
    Put the state of an environment back.

    :param env: an environment made with the same settings
    :param state: what :func:`take_state` returned
    :param seed: from which episodes are drawn if they have to be started again
    :return: None if the copies are where they were, otherwise the first observations of their new episodes
    :raises UsageError: if the environment is wrapped in another way, or a part of the state does not fit
    """
    layers, names = list(_layers(env)), [name for name, _ in state.layers]
    rule = "the environment must be wrapped as in the checkpoint, " + " of ".join(names)
    found = [type(layer).__name__ for layer in layers]
    require(found == names, rule, " of ".join(found))
    for layer, (name, part) in zip(layers, state.layers, strict=True):
        if part is None:
            continue
        try:
            stateful: Any = layer
            if hasattr(type(layer), "load_state_dict"):
                stateful.load_state_dict(part)
            else:
                _WRAPPERS[type(layer)][1](layer, part)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise UsageError(f"the state of {name} in the checkpoint does not fit the environment: {error}") from None
    base = layers[-1]
    if state.pickled is not None:
        _put_copies(base, state.pickled)
    elif state.layers[-1][1] is None:
        return _restart(env, layers, seed)
    return None


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    """The wrappers of an environment, the outermost first, and what they wrap."""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv
    yield env


def _restart(env: VecEnv, layers: list[VecEnv], seed: int) -> Any:
    """Start new episodes in all copies, without a change to the statistics of normalisation."""
    normalizers = [layer for layer in layers if isinstance(layer, VecNormalize)]
    were_training = [layer.training for layer in normalizers]
    for layer in normalizers:
        layer.training = False
    env.seed(seed % _LARGEST_SEED)
    observations = env.reset()
    for layer, training in zip(normalizers, were_training, strict=True):
        layer.training = training
    return observations


def _put_copies(env: VecEnv, pickled: bytes) -> None:
    """Put pickled copies back, here or in their processes."""
    if isinstance(env, DummyVecEnv):
        copies = unpickled_copies(pickled)
        require(len(copies) == len(env.envs), "the checkpoint must hold as many copies of the environment", len(copies))
        for copy in env.envs:
            copy.close()
        env.envs = copies
        return
    for index, part in enumerate(pickle.loads(pickled)):
        (why,) = env.env_method("put_state", part, indices=index)
        if why:
            raise UsageError(why)


def _take_copies(env: DummyVecEnv | SubprocVecEnv) -> bytes:
    """
    The copies of an environment, pickled.

    :raises UsageError: if they cannot be saved
    """
    if isinstance(env, DummyVecEnv):
        return pickled_copies(env.envs)
    require(env.has_attr("put_state"), "processes must be those of make_vec to be saved", type(env).__name__)
    parts: list[tuple[bytes | None, str]] = env.env_method("take_state")
    for part, why in parts:
        if part is None:
            raise UsageError(why)
    return pickle.dumps([part for part, _ in parts])


def _moments(moments: RunningMeanStd) -> dict[str, Any]:
    return {"mean": moments.mean, "var": moments.var, "count": moments.count}


def _put_moments(moments: RunningMeanStd, state: dict[str, Any]) -> None:
    require(np.shape(state["mean"]) == moments.mean.shape, f"means must have shape {moments.mean.shape}", state["mean"])
    moments.mean, moments.var, moments.count = state["mean"], state["var"], state["count"]


def _take_normalize(env: VecNormalize) -> dict[str, Any]:
    parts: dict[str, RunningMeanStd] = {}
    if env.norm_obs:
        parts = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    return {
        "observations": {name: _moments(part) for name, part in parts.items()},
        "rewards": _moments(env.ret_rms),
        "returns": env.returns,
        "old_obs": getattr(env, "old_obs", None),
        "old_reward": env.old_reward,
    }


def _put_normalize(env: VecNormalize, state: dict[str, Any]) -> None:
    for name, part in state["observations"].items():
        _put_moments(env.obs_rms[name] if isinstance(env.obs_rms, dict) else env.obs_rms, part)
    _put_moments(env.ret_rms, state["rewards"])
    env.returns, env.old_obs, env.old_reward = state["returns"], state["old_obs"], state["old_reward"]


def _stacks(env: VecFrameStack) -> dict[str, Any]:
    return getattr(env.stacked_obs, "sub_stacked_observations", None) or {"": env.stacked_obs}


def _take_frames(env: VecFrameStack) -> dict[str, Any]:
    return {name: stack.stacked_obs for name, stack in _stacks(env).items()}


def _put_frames(env: VecFrameStack, state: dict[str, Any]) -> None:
    for name, stack in _stacks(env).items():
        stack.stacked_obs = state[name]


def _take_monitor(env: VecMonitor) -> dict[str, Any]:
    return {name: getattr(env, name) for name in ("episode_returns", "episode_lengths", "episode_count")}


def _put_monitor(env: VecMonitor, state: dict[str, Any]) -> None:
    for name in _take_monitor(env):
        setattr(env, name, state[name])


def _take_nothing(_env: VecEnv) -> dict[str, Any]:
    return {}


def _put_nothing(_env: VecEnv, _state: dict[str, Any]) -> None:
    return


_NOTHING = (_take_nothing, _put_nothing)
# how the state of a wrapper is taken and put back; subclasses are not included, because they may hold more
_WRAPPERS: dict[type[VecEnv], tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    VecNormalize: (_take_normalize, _put_normalize),
    VecFrameStack: (_take_frames, _put_frames),
    VecMonitor: (_take_monitor, _put_monitor),
    VecTransposeImage: _NOTHING,
    VecExtractDictObs: _NOTHING,
    VecCheckNan: _NOTHING,
    PreviousActionReward: _NOTHING,
}
