"""From a configuration to a trained agent and the environment that it plays in."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.vec_env import VecEnv

from rmc_rl.agents import RecurrentPPO
from rmc_rl.command_line.agent import FLOAT, bytes_of, plain
from rmc_rl.command_line.devices import require_memory
from rmc_rl.compat import wrap_env
from rmc_rl.envs import make_vec
from rmc_rl.envs.previous_action_reward import PREVIOUS
from rmc_rl.errors import require
from rmc_rl.runs.folder import Run, find_model
from rmc_rl.runs.loading import load_model, partial_of, read_policy
from rmc_rl.runs.normalization import load_normalization, normalization_path

COPIES_OF_STEP = 4  # of states and observations: before and after a step, on both sides of the policy


class Player(NamedTuple):
    """
    A trained agent.

    :param model: a policy, or an algorithm if the model belongs to no run
    :param model_path: its file
    :param num_timesteps: of its training; None if the file does not say
    :param run: the run, or the model's folder if it belongs to none
    :param core: the name of its core in the configuration; None if there is no configuration
    :param env_id: the environment to play in
    :param env_kwargs: its keywords
    :param partial: what hides or disturbs its observations
    """

    model: Any
    model_path: Path
    num_timesteps: int | None
    run: Run
    core: str | None
    env_id: str
    env_kwargs: dict[str, Any]
    partial: dict[str, Any]


def find_player(config: DictConfig, folder: str | None, device: torch.device, results: str) -> Player:
    """
    Load the agent that a configuration names, as data unless it is trusted.

    :param config: with the keys ``model``, ``env``, ``env_kwargs``, ``partial`` and ``trust``; see ``configs/evaluate.yaml``
    :param folder: of the run; None: ``model`` is a file
    :param device: where the policy lies
    :param results: name of the folder in the run's folder that must be writable
    :raises UsageError: for a mistake in the configuration, or a run that is damaged
    """
    run, model_path = find_model(folder, config.model)
    env_id, env_kwargs = config.env, plain(config.env_kwargs)
    partial = {str(key): value for key, value in plain(config.partial).items() if value is not None}
    trained = run.read_config() if run.config_path.is_file() else None
    if trained is not None and (env_id is None or env_id == trained.env):
        env_id, env_kwargs = trained.env, plain(OmegaConf.merge(trained.env_kwargs, config.env_kwargs))  # type: ignore[arg-type]
        partial = partial_of(trained) | partial
    rule = f"env must be an environment's id, as in env=CartPole-v1, for there is no {run.config_path}"
    require(env_id is not None, rule, env_id)
    run.check_writable(results)
    core = None
    if trained is not None:
        loaded = read_policy(run, model_path, config.trust, device)
        model: Any = loaded.policy
        num_timesteps, core = loaded.num_timesteps, str(OmegaConf.select(trained, "core.name"))
    else:
        rule = "model must lie in the folder of a run, with a config.yaml; trust=true loads it and executes what it holds"
        require(config.trust, rule, str(model_path))
        model = load_model(model_path, device)
        num_timesteps = model.num_timesteps
    return Player(model, model_path, num_timesteps, run, core, env_id, env_kwargs, partial)


def make_playing_env(player: Player, n_envs: int, seed: int, pictures: bool = False) -> VecEnv:
    """
    An environment to play in with a trained agent, wrapped as it was in training.

    :param player: the agent
    :param n_envs: copies
    :param seed: of the copies
    :param pictures: see :func:`rmc_rl.make_vec`
    :raises UsageError: for a mistake in the keywords, an environment with other spaces than the agent's, or more copies than
        fit into memory
    """
    seen = player.model.observation_space
    policy: Any = getattr(player.model, "policy", player.model)
    state = 2 * math.prod(policy.lstm_hidden_state_shape) * FLOAT  # two halves of one copy
    size = n_envs * (bytes_of(seen) + state) * COPIES_OF_STEP
    require_memory("the observations and states of n_envs copies", size, torch.device("cpu"))
    env: VecEnv = make_vec(
        player.env_id,
        n_envs,
        seed=seed,
        env_kwargs={str(key): value for key, value in player.env_kwargs.items()},
        previous_action_reward=isinstance(seen, spaces.Dict) and PREVIOUS in seen.spaces,
        pictures=pictures,
        partial=player.partial,
    )
    if (statistics := normalization_path(player.model_path)).is_file():
        env = load_normalization(statistics, env)
    env = wrap_env(RecurrentPPO, env)
    for name in ("observation_space", "action_space"):
        found, needed = getattr(env, name), getattr(player.model, name)
        require(found == needed, f"env, env_kwargs and partial must leave the {name} as it was in training, {needed}", found)
    return env
