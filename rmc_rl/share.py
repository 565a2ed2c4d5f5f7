"""
Make a folder of a trained agent to share, as the Hugging Face Hub expects it: python -m rmc_rl.share run=<folder> to=<folder>

  python -m rmc_rl.share run=runs/rmc_rl-Copy-v0/rmc/20261120-210000-seed0 model=best to=shared
  python -m rmc_rl.share run=<folder> to=shared repository=me/rmc-copy license=mit

The folder holds the weights as safetensors, the configuration, the evaluation, a film if the run has one (in its films/),
Stable-Baselines3's model.zip, and a model card that states how well the agent plays and how to load it. The run must have been
evaluated: python -m rmc_rl.evaluate run=<folder> model=best episodes=100. No path of this machine is in what is shared.

Nothing is uploaded: hf upload <user>/<name> <folder> does that. rmc_rl.load_policy("hf://<user>/<name>") loads what was
uploaded, and rmc_rl.load_policy("<folder>") the folder itself. docs/sharing.md says more.
"""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from rmc_rl.command_line.agent import plain
from rmc_rl.command_line.app import how_to_run, run_verb
from rmc_rl.command_line.progress import say
from rmc_rl.command_line.schema import ShareKeys
from rmc_rl.errors import UsageError, require, require_choice
from rmc_rl.runs import sharing
from rmc_rl.runs.folder import MODELS, find_model, written_whole
from rmc_rl.runs.loading import read_policy
from rmc_rl.runs.normalization import normalization_path

TAGS = ("deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "recurrent-ppo", "rmc-rl")
CARD = """\
# {title}

An agent with the memory `{core}` in `{env}`, trained by rmc-rl for {timesteps} steps with the seed {seed}.

## Evaluation

| environment | episodes | mean return | 95 % interval of the mean | standard deviation |
| --- | --- | --- | --- | --- |
| `{env}`{keywords} | {episodes} | {mean:.3f} | {low:.3f} to {high:.3f} | {std:.3f} |

{actions}; the seed of the evaluation is {evaluation_seed}, that of training {seed}. The interval is a percentile
bootstrap over the episodes of this one trained agent: it does not tell how other seeds of training would do. All returns are
in `{evaluation}`.

## Load it

```python
from rmc_rl import load_policy  # pip install 'rmc-rl[hub]'

policy = load_policy("hf://{repository}")  # or the path of a folder with these files
action, state = policy.predict(observation, state, episode_start, deterministic=True)
```

This reads `config.yaml` and `model.safetensors` as data, and executes nothing of them. Pass the state that `predict` returns
back with the next observation (None at the first step).{normalized}
{with_zip}
## Files

The configuration is `config.yaml`; it also states the versions of the packages.
"""
NORMALIZED = """ The agent was trained on normalised observations, with the statistics of
`model.normalization.json`: `python -m rmc_rl.evaluate run=<folder>` applies them, `load_policy` alone does not."""
WITH_ZIP = """
`model.zip` is the same model for Stable-Baselines3, which executes what the file holds: load it only if you trust its author.

```python
from huggingface_sb3 import load_from_hub
from sb3_contrib import RecurrentPPO

model = RecurrentPPO.load(load_from_hub("{repository}", "model.zip"))  # with rmc-rl installed
```
"""


def share(config: DictConfig, _command: str | None = None) -> int:
    """
    Make the folder of a run that is shared.

    :param config: checked; see ``configs/share.yaml``
    :return: exit status 0
    :raises UsageError: for a mistake in the configuration, a run that is damaged or was not evaluated, or a file that holds a
        path of this machine
    """
    require_choice("model", config.model, MODELS)
    require(config.to is not None, "to must be a new or empty folder, as in to=shared", config.to)
    run, model_path = find_model(config.run, config.model)
    policy, timesteps, trained = read_policy(run, model_path, config.trust)
    evaluation = sharing.find_evaluation(run, config.model, trained.env, plain(trained.env_kwargs), timesteps)
    if evaluation is None:
        again = f"{how_to_run('evaluate')} {shlex.quote(f'run={run.path}')} model={config.model} episodes=100"
        raise UsageError(f"the run must have an evaluation of this model in its own environment: {again}")
    folder = _new_folder(config.to)
    try:
        sharing.write_yaml(folder / sharing.CONFIG, sharing.shareable(trained))
        sharing.write_weights(folder / sharing.WEIGHTS, policy.state_dict(), timesteps)
        if (statistics := normalization_path(model_path)).is_file():
            shutil.copyfile(statistics, folder / normalization_path(Path(sharing.WEIGHTS)))
        if config.zip and model_path.suffix == ".zip":
            shutil.copyfile(model_path, folder / sharing.ZIP)
        if film := sharing.find_film(run):
            shutil.copyfile(film, folder / f"replay{film.suffix}")
        kept = {key: value for key, value in evaluation.items() if key not in ("run", "command")}
        with written_whole(folder / sharing.EVALUATION) as file:
            file.write(json.dumps(sharing.without_paths(kept), indent=1).encode())
        with written_whole(folder / sharing.CARD) as file:
            file.write(_card(config, trained, evaluation, timesteps, folder).encode())
        sharing.check_no_paths(folder, run)
    except BaseException as error:
        for path in folder.iterdir():
            path.unlink()
        if isinstance(error, OSError):
            raise UsageError(f"to must be a folder that can be written to, got '{folder}': {error}") from None
        raise
    say(f"written: {folder} ({', '.join(sorted(path.name for path in folder.iterdir()))})")
    say(f"to load it: rmc_rl.load_policy({str(folder)!r})")
    say(f"to upload it: hf upload {config.repository or '<user>/<name>'} {shlex.quote(str(folder))}")
    return 0


def _new_folder(to: str) -> Path:
    """The folder to fill."""
    folder = Path(to).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"to must be a folder that can be written to, got '{to}': {error}") from None
    require(empty, "to must be a new or empty folder", to)
    return folder


def _card(config: DictConfig, trained: DictConfig, evaluation: dict[str, Any], timesteps: int | None, folder: Path) -> str:
    """The model card: https://huggingface.co/docs/hub/model-cards."""
    core, env, found = trained.core.get("name"), trained.env, evaluation["return"]
    title = f"{core}-{env}".replace("/", "-").replace(":", "-")
    low, high = found["interval"]
    metric = dict(type="mean_reward", name="mean_reward", value=f"{found['mean']:.2f} +/- {found['std']:.2f}", verified=False)
    result = dict(
        task=dict(type="reinforcement-learning", name="reinforcement-learning"),
        dataset=dict(name=env, type=env),
        metrics=[metric],
    )
    front: dict[str, Any] = dict(license=config.license) if config.license else {}
    front |= dict(
        library_name="stable-baselines3",
        tags=[env, core, *TAGS],
    )
    front["model-index"] = [dict(name=title, results=[result])]
    keywords = plain(trained.env_kwargs)
    repository = config.repository or "USER/NAME"
    text = CARD.format(
        title=title,
        core=core,
        env=env,
        timesteps="an unknown number of" if timesteps is None else f"{timesteps:,}",
        seed=trained.get("seed"),
        keywords=f" with `{sharing.without_paths(keywords)}`" if keywords else "",
        episodes=evaluation["episodes"],
        mean=found["mean"],
        low=low,
        high=high,
        std=found["std"],
        actions="It takes the likeliest actions" if evaluation["deterministic"] else "It samples its actions",
        evaluation_seed=evaluation["seed"],
        evaluation=sharing.EVALUATION,
        repository=repository,
        normalized=NORMALIZED if (folder / normalization_path(Path(sharing.WEIGHTS))).exists() else "",
        with_zip=WITH_ZIP.format(repository=repository) if (folder / sharing.ZIP).exists() else "",
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}"


def main() -> None:
    """The command line."""
    run_verb(share, "share", __doc__ or "", ShareKeys)


if __name__ == "__main__":
    main()
