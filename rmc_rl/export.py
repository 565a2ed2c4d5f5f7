"""
Export a trained agent to one file that acts without this package: python -m rmc_rl.export run=<folder> ...

  python -m rmc_rl.export run=runs/rmc_rl-Copy-v0/rmc/20261120-210000-seed0 model=best   exports/best.onnx in the run's folder
  python -m rmc_rl.export run=<folder> format=pt2                                        exports/last.pt2, for torch

The file computes one step for any number of environments: observation, state and episode_start in; action, log_prob, logits
(Box actions: mean and std), value and next_state out. The initial state, the scaling of observations and the statistics of
normalize=true are inside. docs/exporting.md shows how to play with it. A run is read as data, as by rmc_rl.evaluate.

Before the file gets its name, it plays 200 steps side by side with the policy in the run's environment. At each step every
output must be equal within 1e-5. If it is not, nothing is written and the status is 1.
"""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from stable_baselines3.common.vec_env import VecEnv

from rmc_rl.agents import exporting
from rmc_rl.agents.parity import TOLERANCE, check, played_steps, random_steps
from rmc_rl.command_line.agent import plain
from rmc_rl.command_line.app import FAILED, run_verb, tell
from rmc_rl.command_line.progress import say
from rmc_rl.command_line.schema import ExportKeys
from rmc_rl.envs import make_vec
from rmc_rl.errors import UsageError, require, require_choice
from rmc_rl.runs.folder import MODELS, find_model, versions
from rmc_rl.runs.loading import partial_of, read_policy
from rmc_rl.runs.normalization import load_normalization, normalization_path
from rmc_rl.runs.sharing import shareable


def export(config: DictConfig, _command: str | None = None) -> int:
    """
    Export the policy of a run, and check the file.

    :param config: checked; see ``configs/export.yaml``
    :return: exit status: 0; 1 if the file does not compute what the policy does
    :raises UsageError: for a mistake in the configuration, a run that is damaged, or a policy that cannot be exported
    """
    require_choice("format", config.format, exporting.FORMATS)
    if config.format == "onnx":
        exporting.require_onnx()
    run, model_path = find_model(config.run, config.model)
    require(run.config_path.is_file(), "model must lie in the folder of a run, with a config.yaml", str(model_path))
    policy, timesteps, trained = read_policy(run, model_path, config.trust)
    previous = bool(trained.get("policy", {}).get("previous_action_reward", False))
    env_kwargs = {str(key): value for key, value in plain(trained.env_kwargs).items()}
    env = make_vec(
        trained.env,
        config.n_envs,
        seed=config.seed,
        env_kwargs=env_kwargs,
        previous_action_reward=previous,
        partial=partial_of(trained),
    )
    name = config.model if config.model in MODELS else model_path.stem
    path = run.path / "exports" / f"{name}.{config.format}"
    unchecked = path.with_stem(f"{path.stem}.partial")
    with closing(env):
        scalings = _scalings(env, model_path)
        steps = list(played_steps(policy, env, scalings))
        masked = steps[0].action_masks is not None if config.masks is None else config.masks
        if masked != (steps[0].action_masks is not None):
            steps = list(random_steps(policy, env.observation_space, scalings, masked, config.n_envs))
        about = dict(versions=versions(), timesteps_trained=timesteps, config=shareable(trained))
        try:
            path.parent.mkdir(exist_ok=True)
            exporting.export_policy(policy, unchecked, config.format, env.observation_space, scalings, masked, about)
            parity = check(policy, exporting.load_exported(unchecked), steps, scalings, config.seed)
            found = f"{parity.steps} steps of {config.n_envs} copies, {parity.starts} episode starts"
            worst = f"largest difference {parity.difference:.1e} ({parity.output}; at most {TOLERANCE:g} is allowed)"
            drift = f"with the file's own state for all steps {parity.drift:.1e}"
            if not parity.is_equal:
                return tell(RuntimeError(f"the exported file does not act as the policy does: {found}, {worst}"), FAILED)
            unchecked.replace(path)
        except OSError as error:
            rule = "the folder of exports must be one that can be written to"
            raise UsageError(f"{rule}, got '{path.parent}': {error}") from None
        finally:
            unchecked.unlink(missing_ok=True)
    for kind, ports in exporting.describe(policy, env.observation_space, masked).items():
        say(f"{kind}: " + ", ".join(f"{each['name']} {each['shape']} {each['dtype']}".replace("'", "") for each in ports))
    say(f"check: equal to the policy on {found}; {worst}, {drift}")
    say(f"written: {path} ({path.stat().st_size:,} bytes)")
    return 0


def _scalings(env: VecEnv, model_path: Path) -> Mapping[str, exporting.Scaling]:
    """The running means that lie beside a model, by key of the observation; empty if training did not normalise."""
    statistics = normalization_path(model_path)
    if not statistics.is_file():
        return {}
    saved = load_normalization(statistics, env)
    if not saved.norm_obs:
        return {}
    moments = saved.obs_rms if isinstance(saved.obs_rms, dict) else {"": saved.obs_rms}
    return {
        name: exporting.Scaling(part.mean, np.sqrt(part.var + saved.epsilon), saved.clip_obs) for name, part in moments.items()
    }


def main() -> None:
    """The command line."""
    run_verb(export, "export", __doc__ or "", ExportKeys)


if __name__ == "__main__":
    main()
