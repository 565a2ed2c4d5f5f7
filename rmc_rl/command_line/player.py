"""From a configuration to a trained agent and the environment that it plays in."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from rmc_rl.command_line.agent import plain
from rmc_rl.errors import require
from rmc_rl.runs.folder import Run, find_model
from rmc_rl.runs.loading import load_model, read_policy


class Player(NamedTuple):
    """
    A trained agent.

    :param model: a policy, or an algorithm if the model belongs to no run
    :param model_path: its file
    :param run: the run, or the model's folder if it belongs to none
    :param core: the name of its core in the configuration; None if there is no configuration
    :param env_id: the environment to play in
    :param env_kwargs: its keywords
    """

    model: Any
    model_path: Path
    run: Run
    core: str | None
    env_id: str
    env_kwargs: dict[str, Any]


def find_player(config: DictConfig, device: torch.device, results: str) -> Player:
    """
    Load the agent that a configuration names, as data unless it is trusted.

    :param config: with the keys ``run``, ``model``, ``env``, ``env_kwargs`` and ``trust``; see ``configs/watch.yaml``
    :param device: where the policy lies
    :param results: name of the folder in the run's folder that must be writable
    :raises UsageError: for a mistake in the configuration, or a run that is damaged
    """
    run, model_path = find_model(config.run, config.model)
    env_id, env_kwargs = config.env, plain(config.env_kwargs)
    trained = run.read_config() if run.config_path.is_file() else None
    if trained is not None and (env_id is None or env_id == trained.env):
        env_id, env_kwargs = trained.env, plain(OmegaConf.merge(trained.env_kwargs, config.env_kwargs))  # type: ignore[arg-type]
    rule = f"env must be an environment's id, as in env=CartPole-v1, for there is no {run.config_path}"
    require(env_id is not None, rule, env_id)
    run.check_writable(results)
    if trained is not None:
        model: Any = read_policy(run, model_path, config.trust, device).policy
        return Player(model, model_path, run, str(OmegaConf.select(trained, "core.name")), env_id, env_kwargs)
    rule = "model must lie in the folder of a run, with a config.yaml; trust=true loads it and executes what it holds"
    require(config.trust, rule, str(model_path))
    return Player(load_model(model_path, device), model_path, run, None, env_id, env_kwargs)
