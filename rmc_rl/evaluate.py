"""
Play episodes with a trained agent and print return and length: python -m rmc_rl.evaluate run=<folder> ...

  python -m rmc_rl.evaluate run=runs/ALE-Pong-v5/rmc/20261120-210000-seed0 episodes=20
  python -m rmc_rl.evaluate run=<folder of a run on the copy task> env_kwargs.delay=20   a longer delay than in training
  python -m rmc_rl.evaluate run=<folder> partial.noise=0.1                               noisier observations than in training
  python -m rmc_rl.evaluate model=<any model.zip> env=CartPole-v1 trust=true             a model that was trained in Python

A run is read as data: nothing in its folder is executed. trust=true is needed for a model without a config.yaml, and for a
run of somebody else, or from another machine, that names a module, as in core=module:name.

The interval printed is a 95 % percentile bootstrap of the mean over the episodes. The result is kept as JSON in evaluations/
of the run's folder, or of the model's folder if it belongs to no run.
"""

import json
import time
from contextlib import closing
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rmc_rl.agents.evaluation import evaluate_episodes
from rmc_rl.command_line.agent import make_playing_env, plain
from rmc_rl.command_line.app import run_verb
from rmc_rl.command_line.devices import find_device
from rmc_rl.command_line.progress import progress_bar, say
from rmc_rl.command_line.schema import EvaluateKeys
from rmc_rl.errors import require
from rmc_rl.runs.folder import find_model
from rmc_rl.runs.loading import load_model, partial_of, read_policy
from rmc_rl.studies.statistics import summarise


def evaluate(config: DictConfig, command: str | None = None) -> int:
    """
    Play episodes with a model, print what it reached and keep it as JSON.

    :param config: checked; see ``configs/evaluate.yaml``
    :param command: the command line that repeats the evaluation; None: it was started from Python
    :return: exit status 0
    :raises UsageError: for a mistake in the configuration, or a run that is damaged
    """
    device = find_device(config.device)
    run, model_path = find_model(config.run, config.model)
    env_id, env_kwargs = config.env, plain(config.env_kwargs)
    partial = {key: value for key, value in plain(config.partial).items() if value is not None}
    if run.config_path.is_file():
        trained = run.read_config()
        if env_id is None or env_id == trained.env:
            env_id, env_kwargs = trained.env, plain(OmegaConf.merge(trained.env_kwargs, config.env_kwargs))  # type: ignore
            partial = partial_of(trained) | partial
    rule = f"env must be an environment's id, as in env=CartPole-v1, for there is no {run.config_path}"
    require(env_id is not None, rule, env_id)
    run.check_writable()
    if run.config_path.is_file():
        loaded = read_policy(run, model_path, config.trust, device)
        model: Any = loaded.policy
        timesteps = loaded.num_timesteps
    else:
        rule = "model must lie in the folder of a run, with a config.yaml; trust=true loads it and executes what it holds"
        require(config.trust, rule, str(model_path))
        model = load_model(model_path, device)
        timesteps = model.num_timesteps
    num_copies = min(config.n_envs, config.episodes)
    started = time.monotonic()
    env = make_playing_env(env_id, env_kwargs, num_copies, config.seed, model, model_path, partial)
    with closing(env), progress_bar(config.episodes, "episodes") as bar:
        returns, lengths = evaluate_episodes(model, env, config.episodes, config.deterministic, bar.update)
    seconds = time.monotonic() - started
    result: dict[str, Any] = {
        "command": command,
        "run": str(run.path),
        "model": config.model,
        "env": env_id,
        "env_kwargs": env_kwargs,
        "partial": partial,
        "episodes": config.episodes,
        "deterministic": config.deterministic,
        "seed": config.seed,
        "timesteps_trained": timesteps,
        "seconds": seconds,
        "return": summarise(returns),
        "length": summarise(lengths),
    }
    disturbed = {f"partial.{key}": value for key, value in partial.items() if value}
    changed = f" with {env_kwargs | disturbed}" if env_kwargs or disturbed else ""
    say(f"{env_id}{changed}: {config.episodes} episodes of model {config.model}")
    for name in ("return", "length"):
        found = result[name]
        low, high = found["interval"]
        say(f"{name}: mean {found['mean']:.3f}, standard deviation {found['std']:.3f}, 95 % interval [{low:.3f}, {high:.3f}]")
    say(f"time: {seconds:,.1f} seconds, {sum(lengths) / seconds:,.0f} steps per second")
    say(f"written: {run.write_evaluation(json.dumps(result, indent=1))}")
    return 0


def main() -> None:
    """The command line."""
    run_verb(evaluate, "evaluate", __doc__ or "", EvaluateKeys)


if __name__ == "__main__":
    main()
