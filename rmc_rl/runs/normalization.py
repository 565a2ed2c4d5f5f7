"""
Running means of observations and rewards, for agents that were trained on normalised ones.

The normalisation is SB3's ``VecNormalize``, whose own file is a pickle. Here its numbers are JSON, so that reading them
executes nothing.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rmc_rl.agents import parallel
from rmc_rl.errors import UsageError, require

ARGUMENTS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")


def normalization_path(model_path: Path) -> Path:
    """
    The file of the statistics that belong to a model.

    :param model_path: the model's file
    """
    return model_path.with_suffix(".normalization.json")


def normalize(env: VecEnv, what: object, gamma: float) -> VecEnv:
    """
    Normalise what an agent is trained on.

    :param env: the training environment
    :param what: "obs", "reward", True for both, or False or None for neither
    :param gamma: discount, with which returns are estimated whose variance scales the rewards
    :return: the environment, wrapped if anything is normalised. In a group of processes the statistics are those of all
        copies, and all processes must take the same steps
    :raises UsageError: for another value, or observations that cannot be normalised
    """
    known = what is None or isinstance(what, bool) or what in ("obs", "reward")
    require(known, "normalize must be true, false, obs or reward", what)
    if not what:
        return env
    observations = what in (True, "obs")
    keys = _keys(env.observation_space) if observations else None
    if observations and keys is None:
        plain_box = isinstance(env.observation_space, spaces.Box) and not is_image_space(env.observation_space)
        require(plain_box, "normalize=obs needs Box observations that are no images", env.observation_space)
    require(keys != [], "normalize=obs needs a Box among the observations that is no image", env.observation_space)
    normalized = VecNormalize(
        env, norm_obs=observations, norm_reward=what in (True, "reward"), gamma=gamma, norm_obs_keys=keys
    )
    if parallel.size() > 1:
        _share(normalized)
    return normalized


def _share(env: VecNormalize) -> None:
    """Take the statistics over the copies of all processes that train together."""
    moments: Any = getattr(env, "obs_rms", None)
    if isinstance(moments, dict):
        env.obs_rms = {name: parallel.SharedMeanStd(shape=part.mean.shape) for name, part in moments.items()}
    elif moments is not None:
        env.obs_rms = parallel.SharedMeanStd(shape=moments.mean.shape)  # type: ignore[assignment]
    env.ret_rms = parallel.SharedMeanStd(shape=())


def statistics(env: VecNormalize) -> str:
    """
    The statistics of an environment as JSON.

    :param env: the environment
    """
    observations = env.obs_rms if env.norm_obs else {}
    parts = observations if isinstance(observations, dict) else {"": observations}
    moments = {name: _moments(part) for name, part in parts.items()}
    arguments = {name: getattr(env, name) for name in ARGUMENTS}
    return json.dumps(arguments | {"observations": moments, "returns": _moments(env.ret_rms)}, indent=1)


def load_normalization(path: Path, env: VecEnv) -> VecNormalize:
    """
    Normalise observations as in training; the statistics do not change any more and rewards stay as they are.

    :param path: a file with what :func:`statistics` returns
    :param env: the environment to wrap
    :raises UsageError: if the file is damaged or belongs to other observations
    """
    try:
        saved = json.loads(path.read_text())
        observations = saved["observations"]
        arguments = {name: saved[name] for name in ARGUMENTS if name != "norm_reward"}
        keys = list(observations) if isinstance(env.observation_space, spaces.Dict) else None
        normalized = VecNormalize(env, training=False, norm_reward=False, norm_obs_keys=keys, **arguments)
        if normalized.norm_obs:
            parts = normalized.obs_rms if isinstance(normalized.obs_rms, dict) else {"": normalized.obs_rms}
            require(parts.keys() == observations.keys(), "statistics must be of the same observations", list(observations))
            for name, part in parts.items():
                _restore(part, observations[name])
        _restore(normalized.ret_rms, saved["returns"])
        return normalized
    except (OSError, ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"'{path}' must hold the statistics of this environment's observations, got {why}") from None


def _keys(space: spaces.Space[Any]) -> list[str] | None:
    """The parts of a ``Dict`` that can be normalised; None for other spaces."""
    if not isinstance(space, spaces.Dict):
        return None
    return [name for name, part in space.spaces.items() if isinstance(part, spaces.Box) and not is_image_space(part)]


def _moments(moments: RunningMeanStd) -> dict[str, Any]:
    return {"mean": moments.mean.tolist(), "var": moments.var.tolist(), "count": float(moments.count)}


def _restore(moments: RunningMeanStd, saved: dict[str, Any]) -> None:
    mean, var = (np.asarray(saved[name], dtype=float) for name in ("mean", "var"))
    require(mean.shape == var.shape == moments.mean.shape, f"statistics must have shape {moments.mean.shape}", mean.shape)
    moments.mean, moments.var, moments.count = mean, var, float(saved["count"])
