"""
Play episodes with a trained agent; print return and length, keep them as JSON: python -m rmc_rl.evaluate run=<folder> ...

  python -m rmc_rl.evaluate run=runs/ALE-Pong-v5/rmc/20261120-210000-seed0 episodes=20
  python -m rmc_rl.evaluate run=<folder of a run on the copy task> env_kwargs.delay=20   a longer wait than in training

The interval printed is a 95 % percentile bootstrap of the mean over the episodes.
"""

import json
from typing import Any
from zipfile import BadZipFile

import numpy as np
from omegaconf import DictConfig, OmegaConf
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import is_masking_supported

from rmc_rl.agents import RecurrentPPO
from rmc_rl.command_line.app import find_device, run_verb, say
from rmc_rl.envs import make_vec
from rmc_rl.errors import UsageError, require, require_truth, require_whole
from rmc_rl.runs.folder import Run, written_whole

RESAMPLES = 10_000  # of the bootstrap; Efron & Tibshirani 1993, chapter 13, find 1000 enough for 95 % intervals


def summarise(values: list[float], seed: int = 0) -> dict[str, Any]:
    """
    Mean, spread and uncertainty of episodes.

    :param values: one number for each episode
    :param seed: of the bootstrap
    :return: ``mean``, ``std`` (of the episodes, with n - 1), ``interval`` (95 % percentile bootstrap of the mean), ``each``
    """
    sample = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = [sample[rng.integers(len(sample), size=len(sample))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    std = float(sample.std(ddof=1)) if len(sample) > 1 else 0.0
    return {"mean": float(sample.mean()), "std": std, "interval": [float(low), float(high)], "each": sample.tolist()}


def evaluate(config: DictConfig) -> int:
    """
    Play episodes with a run's model, print what it reached and keep it as JSON in the run's folder.

    :param config: resolved; see ``configs/evaluate.yaml``
    :return: exit status 0
    :raises UsageError: for a mistake in the configuration
    """
    for key in ("episodes", "n_envs"):
        require_whole(key, config[key])
    require_whole("seed", config.seed, at_least=0)
    require_truth("deterministic", config.deterministic)
    require(OmegaConf.is_dict(config.env_kwargs), "env_kwargs must hold keys, as in env_kwargs.key=value", config.env_kwargs)
    rule = "run must be the folder of a run, as in run=runs/<env>/<core>/<stamp>-seed0"
    require(isinstance(config.run, str), rule, config.run)
    device = find_device(config.device)
    run = Run.open(config.run)
    trained, model_path = run.read_config(), run.model_path(config.model)
    if not model_path.is_file():
        raise UsageError(f"model must have been saved by the run, got '{config.model}', and there is no {model_path}")
    merged = OmegaConf.merge(trained.env_kwargs, config.env_kwargs)
    env_kwargs = {str(key): value for key, value in OmegaConf.to_container(merged).items()}  # type: ignore[union-attr]
    env = make_vec(
        trained.env,
        min(config.n_envs, config.episodes),
        seed=config.seed,
        env_kwargs=env_kwargs,
        previous_action_reward=OmegaConf.select(trained, "policy.previous_action_reward", default=False),  # old runs have none
    )
    env = RecurrentPPO._wrap_env(env, verbose=0, monitor_wrapper=False)  # as in training: channels of images first
    try:
        model = RecurrentPPO.load(model_path, device=device)
    except (ValueError, BadZipFile) as error:
        raise UsageError(f"model must be a saved model, got '{model_path}': {error}") from None
    for name in ("observation_space", "action_space"):
        seen, needed = getattr(env, name), getattr(model, name)
        require(seen == needed, f"env_kwargs must leave the {name} as it was in training, {needed}", seen)

    returns, lengths = evaluate_policy(
        model,  # type: ignore[arg-type]  # it predicts with masks as MaskablePPO does
        env,
        config.episodes,
        deterministic=config.deterministic,
        return_episode_rewards=True,
        use_masking=is_masking_supported(env),
    )
    env.close()
    result = {
        "run": str(run.path),
        "model": config.model,
        "env": trained.env,
        "env_kwargs": env_kwargs,
        "episodes": config.episodes,
        "deterministic": config.deterministic,
        "seed": config.seed,
        "timesteps_trained": model.num_timesteps,
        "return": summarise(list(returns)),  # type: ignore[arg-type]
        "length": summarise(list(lengths)),  # type: ignore[arg-type]
    }
    changed = f" with {env_kwargs}" if env_kwargs else ""
    say(f"{trained.env}{changed}: {config.episodes} episodes of the {config.model} model")
    for name in ("return", "length"):
        found = result[name]
        low, high = found["interval"]
        say(f"{name}: mean {found['mean']:.3f}, standard deviation {found['std']:.3f}, 95 % interval [{low:.3f}, {high:.3f}]")
    path = run.new_evaluation()
    with written_whole(path) as file:
        file.write(json.dumps(result, indent=1).encode())
    say(f"written: {path}")
    return 0


def main() -> None:
    """The command line."""
    run_verb(evaluate, "evaluate", __doc__ or "")


if __name__ == "__main__":
    main()
