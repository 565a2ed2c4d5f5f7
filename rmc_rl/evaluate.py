"""
Play episodes with trained agents and print return and length: python -m rmc_rl.evaluate run=<folder> ...

  python -m rmc_rl.evaluate run=runs/ALE-Pong-v5/rmc/20261120-210000-seed0 episodes=20
  python -m rmc_rl.evaluate run=<folder of a run on the copy task> env_kwargs.delay=20   a longer delay than in training
  python -m rmc_rl.evaluate run='runs/rmc_rl-Copy-v0/*/*' episodes=500                   all runs of a pattern in one table
  python -m rmc_rl.evaluate -m run='runs/rmc_rl-Copy-v0/*/*' env_kwargs.delay=5,10,20    the same for each of three delays
  python -m rmc_rl.evaluate run=<folder> partial.noise=0.1                               noisier observations than in training
  python -m rmc_rl.evaluate model=<any model.zip> env=CartPole-v1 trust=true             a model that was trained in Python

A run is read as data: nothing in its folder is executed. trust=true is needed for a model without a config.yaml, and for a
run of somebody else, or from another machine, that names a module, as in core=module:name.

Each copy of the environment plays a number of episodes that is fixed beforehand, so that short episodes do not count too
often. The interval printed is a 95 % percentile bootstrap of the mean over the episodes. The result is kept as JSON in
evaluations/ of the run's folder, or of the model's folder if it belongs to no run; a CSV beside it has a row for each episode.
"""

import csv
import io
import json
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from rmc_rl.agents.evaluation import Episodes, evaluate_episodes
from rmc_rl.command_line.agent import reference_returns
from rmc_rl.command_line.app import MISTAKE, how_to_run, run_verb, tell
from rmc_rl.command_line.costs import Costs
from rmc_rl.command_line.devices import find_device
from rmc_rl.command_line.player import find_player, make_playing_env
from rmc_rl.command_line.progress import PLAYERS, in_words, progress_bar, say, told
from rmc_rl.command_line.schema import EvaluateKeys
from rmc_rl.command_line.sweep import Job
from rmc_rl.envs.base import Returns
from rmc_rl.errors import UsageError, require
from rmc_rl.runs.folder import Run, find_runs
from rmc_rl.studies.statistics import summarise
from rmc_rl.studies.tables import text_table

MODES = {True: (True,), False: (False,), "both": (True, False)}  # values of the key deterministic
SHOWN = 3  # folders that are named where others are skipped


def evaluate(config: DictConfig, command: str | None = None) -> int:
    """
    Play episodes with one or several models, print what they reached and keep it as JSON.

    :param config: checked; see ``configs/evaluate.yaml``
    :param command: the command line that repeats the evaluation; None: it was started from Python
    :return: exit status 0; 2 if one of several runs could not be evaluated
    :raises UsageError: for a mistake in the configuration, or a single run that is damaged
    """
    device = find_device(config.device)
    known = isinstance(config.deterministic, bool) or config.deterministic == "both"
    require(known, "deterministic must be true, false or both", config.deterministic)
    runs: Sequence[str | None] = [config.run]
    if config.run is not None:
        runs, others = find_runs(config.run)
        if others:
            told["skipped"] = f"skipped {len(others)} that are no runs: {', '.join(others[:SHOWN])}"
            told["skipped"] += ", ..." * (len(others) > SHOWN)
            say(told["skipped"])
    many, status, results = len(runs) > 1, 0, []
    for index, run in enumerate(runs):
        try:
            found = [_evaluate(config, command, run, mode, device, not many) for mode in MODES[config.deterministic]]
        except UsageError as error:
            if not many:
                raise
            status = tell(UsageError(f"{run}: {error}"), MISTAKE)
            continue
        results += found
        if many:
            say(f"{index + 1}/{len(runs)} {run}: {_in_words(found)}")
    told["evaluations"] = [str(result["file"]) for result in results]
    told["cpu_seconds"] = sum(result["cpu_seconds"] for result in results)
    told["result"] = f"{len(results)} evaluations" if many else _in_words(results)
    if len(results) > 1:
        say(_table([(result, "") for result in results]))
    return status


def _evaluate(
    config: DictConfig, command: str | None, folder: str | None, deterministic: bool, device: torch.device, tell_all: bool
) -> dict[str, Any]:
    """
    Evaluate one model in one way; returns what was written, with the ``file`` it was written to.

    :raises UsageError: for a mistake in the configuration, or a run that is damaged
    """
    player = find_player(config, folder, device, "evaluations")
    num_copies = min(config.n_envs, config.episodes)
    costs = Costs()
    env = make_playing_env(player, num_copies, config.seed)
    torch.manual_seed(config.seed)  # of sampled actions
    with closing(env), progress_bar(config.episodes, "episodes") as bar:
        episodes = evaluate_episodes(player.model, env, config.episodes, deterministic, bar.update)
        reference = reference_returns(env)
    result: dict[str, Any] = {
        "command": command,
        "run": str(player.run.path),
        "model": config.model,
        "env": player.env_id,
        "env_kwargs": player.env_kwargs,
        "partial": player.partial,
        "episodes": config.episodes,
        "n_envs": num_copies,
        "deterministic": deterministic,
        "seed": config.seed,
        "timesteps_trained": player.num_timesteps,
        **costs.record(device),
        "reference": reference._asdict(),
        "return": summarise(episodes.returns),
        "length": summarise(episodes.lengths),
    }
    if tell_all:
        _say(result, reference, costs, device)
    path = player.run.write_evaluation(json.dumps(result, indent=1), _csv(episodes))
    if tell_all:
        say(f"written: {path}")
    return result | _of_run(player.run) | {"file": path}


def _of_run(run: Run, keys: Sequence[str] = ()) -> dict[str, Any]:
    """What the table says about a run: its core, its seed, and the values of some keys it was trained with."""
    config = run.read_config() if run.config_path.is_file() else OmegaConf.create()
    values = {key.rpartition(".")[2]: OmegaConf.select(config, key) for key in keys if key.startswith("env_kwargs.")}
    trained = " ".join(f"{name}={'default' if value is None else value}" for name, value in values.items())
    return {"core": OmegaConf.select(config, "core.name"), "run_seed": OmegaConf.select(config, "seed"), "trained": trained}


def _say(result: dict[str, Any], reference: Returns, costs: Costs, device: torch.device) -> None:
    """Tell the person about one evaluation."""
    changes = result["env_kwargs"] | {f"partial.{key}": value for key, value in result["partial"].items() if value}
    changed = f" with {changes}" if changes else ""
    actions = "the likeliest actions" if result["deterministic"] else "sampled actions"
    say(f"{result['env']}{changed}: {result['episodes']} episodes of model {result['model']}, {actions}")
    for name in ("return", "length"):
        found = result[name]
        low, high = found["interval"]
        say(f"{name}: mean {found['mean']:.3f}, standard deviation {found['std']:.3f}, 95 % interval [{low:.3f}, {high:.3f}]")
    if text := in_words(reference):
        say(f"for comparison: {text}")
    for line in costs.lines(sum(result["length"]["each"]), device):
        say(line)


def _csv(episodes: Episodes) -> str:
    """A row for each episode, in the order in which they ended."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["episode", "copy", "return", "length"])
    writer.writerows(zip(range(len(episodes.returns)), episodes.copies, episodes.returns, episodes.lengths, strict=True))
    return file.getvalue()


def _cell(result: dict[str, Any]) -> str:
    low, high = result["return"]["interval"]
    return f"{result['return']['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _in_words(results: Sequence[dict[str, Any]]) -> str:
    """The mean returns of one run, of each way to act."""
    ways = {True: " of the likeliest actions", False: " of sampled actions"} if len(results) > 1 else {True: "", False: ""}
    return ", ".join(f"return {_cell(result)}{ways[result['deterministic']]}" for result in results)


def _table(results: Sequence[tuple[dict[str, Any], str]]) -> str:
    """
    The table of several evaluations: a row for each run, a column for each setting.

    :param results: each with what was varied in the sweep, as the title of a column; empty without a sweep
    """
    modes = {result["deterministic"] for result, _ in results}
    worlds = list(dict.fromkeys(result["env"] for result, _ in results))
    columns: dict[str, None] = {}
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    players: dict[tuple[str, ...], dict[str, str]] = {}
    for result, title in results:
        if len(modes) > 1:
            title = f"{title} {'likeliest' if result['deterministic'] else 'sampled'}".strip()
        columns[title or "return"] = None
        seed = "" if result["run_seed"] is None else str(result["run_seed"])
        row = (result["run"], str(result["core"] or ""), seed, result["trained"])
        rows.setdefault(row, {})[title or "return"] = _cell(result)
        for name, value in result["reference"].items():
            if value is not None:
                of = f" on {result['env']}" if len(worlds) > 1 else ""
                players.setdefault((f"{PLAYERS[name]}{of}", "", "", ""), {})[title or "return"] = f"{value:.3f}"
    body = [[*row, *(cells.get(column, "") for column in columns)] for row, cells in (rows | players).items()]
    return "mean return with its 95 % interval\n" + text_table(["run", "core", "seed", "trained at", *columns], body)


def _at_sweep_end(jobs: Sequence[Job]) -> None:
    """One table of all jobs of a sweep."""
    varied = _varied(jobs)
    results = []
    for job in jobs:
        title = " ".join(line.removeprefix("env_kwargs.") for line in job.overrides if line.partition("=")[0] in varied)
        for path in job.told.get("evaluations", []):
            result = json.loads(Path(path).read_text())
            results.append((result | _of_run(Run(Path(result["run"])), varied), title))
    for skipped in dict.fromkeys(job.told["skipped"] for job in jobs if "skipped" in job.told):
        say(skipped)
    if results:
        say(_table(results))
    folders = dict.fromkeys(line.removeprefix("run=") for job in jobs for line in job.overrides if line.startswith("run="))
    if results and folders and any(key.startswith("env_kwargs.") for key in varied):
        names = ",".join(folders)
        say(f"next: {how_to_run('compare')} {shlex.quote(f'runs={names}')}")


def _varied(jobs: Sequence[Job]) -> list[str]:
    """The keys whose values differ between jobs, apart from the one that chooses the run."""
    values: dict[str, set[str]] = {}
    for line in (line for job in jobs for line in job.overrides):
        key, _, value = line.partition("=")
        values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1 and key != "run"]


def main() -> None:
    """The command line."""
    run_verb(evaluate, "evaluate", __doc__ or "", EvaluateKeys, at_sweep_end=_at_sweep_end)


if __name__ == "__main__":
    main()
