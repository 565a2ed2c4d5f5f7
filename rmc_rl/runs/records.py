"""
Runs as numbers: the folders that a pattern names, and their configurations, curves and evaluations as plain data.

Nothing in a folder is executed.
"""

import csv
import glob
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from rmc_rl.errors import UsageError, require, require_number, unknown
from rmc_rl.runs.folder import Run
from rmc_rl.runs.loading import read_policy
from rmc_rl.studies.comparison import FREE, Evaluation, Record

STEPS, SECONDS = "time/total_timesteps", "time/time_elapsed"
CONFIG = "config.yaml"


def search_runs(patterns: Sequence[str]) -> list[Run]:
    """
    All runs in folders.

    :param patterns: folders, which are searched with all folders below them, or patterns of these as in ``runs/*/gru``
    :return: sorted by path, each once
    :raises UsageError: if a pattern matches nothing, or there is no run at all
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        rule = "runs must be folders, or a pattern that matches some, with runs (config.yaml) in them"
        require(bool(pattern.strip()) and "\0" not in pattern, rule, pattern)
        full = os.path.expanduser(pattern)
        paths = [full] if os.path.exists(full) else sorted(glob.glob(full, recursive=True))
        before = len(found)
        for path in paths:
            top = Path(path).parent if os.path.basename(path) == CONFIG else Path(path)
            for folder, below, files in os.walk(top):
                if CONFIG in files:
                    found.setdefault(Path(folder).resolve(), Path(folder))
                    below.clear()  # a run contains no other run
        nothing = "there is no such folder" if not paths else "no folder below has a config.yaml"
        if len(found) == before and not any(_is_in(path, found) for path in paths):
            raise UsageError(f"{rule}, got '{pattern}': {nothing}")
    return [Run(path) for path in sorted(found.values())]


def read_records(runs: Sequence[Run], metric: str, say: Callable[[str], None]) -> list[Record]:
    """
    Read runs.

    :param runs: their folders
    :param metric: the column of ``progress.csv`` that is the return
    :param say: is told of every run that is left out, and why
    :return: of the runs that have a learning curve
    :raises UsageError: if no run can be read
    """
    records, columns, problems = [], set(), []
    sizes: dict[str, dict[str, int]] = {}
    for run in runs:
        try:
            config: Any = OmegaConf.to_container(run.read_config())
            rows = _rows(run.path / "progress.csv")
            columns |= {name for row in rows[:1] for name in row}
            records.append(_record(run, config, rows, metric, sizes, say))
        except UsageError as error:
            problems.append(f"left out: {error}")
    if not records and columns and metric not in columns:
        raise unknown("column of progress.csv in metric", metric, columns)
    if not records:
        raise UsageError(f"none of the {len(runs)} runs has a learning curve; the first is {problems[0]}")
    for problem in problems:
        say(problem)
    unknown_sizes = [record.path for record in records if not record.sizes]
    if unknown_sizes:
        say(
            f"the number of parameters is unknown for {len(unknown_sizes)} runs, whose policy cannot be rebuilt from the "
            f"folder; the first is {unknown_sizes[0]}"
        )
    return records


def learning_curve(run: Run, metric: str) -> np.ndarray:
    """
    The learning curve of a run, which may still be training.

    :param run: the run
    :param metric: the column of ``progress.csv`` that is the return
    :return: steps, seconds and returns of the rows that have a return, ``(3, T)``
    :raises UsageError: if there is no file, no such column or no value yet
    """
    return _curve(run, _rows(run.path / "progress.csv"), metric)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """
    A configuration with dotted keys.

    :param node: dictionaries in dictionaries; ``env_kwargs`` stays one value, as lists do
    :param prefix: of the keys
    """
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name != "env_kwargs":
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def _record(
    run: Run,
    config: dict[str, Any],
    rows: list[dict[str, str]],
    metric: str,
    sizes: dict[str, Any],
    say: Callable[[str], None],
) -> Record:
    of_run = config.pop("run", None)
    of_run = of_run if isinstance(of_run, dict) else {}
    versions = of_run.get("versions")
    curve = _curve(run, rows, metric)
    settings = flat(config)
    require_number(f"total_timesteps in '{run.config_path}'", settings.get("total_timesteps"))
    command, commit = of_run.get("command"), of_run.get("git_commit")
    # runs that differ in nothing but the seed have policies of one size
    key = repr((commit, sorted((name, repr(value)) for name, value in settings.items() if name.split(".")[0] not in FREE)))
    if not sizes.get(key):
        sizes[key] = _sizes(run)
    return Record(
        path=str(run.path),
        settings=settings,
        steps=curve[0],
        seconds=curve[1],
        returns=curve[2],
        started=str(of_run.get("started") or ""),
        commit=None if commit is None else str(commit),
        command=None if command is None else str(command).replace("\\${", "${"),
        versions={str(name): version for name, version in versions.items()} if isinstance(versions, dict) else {},
        sizes=sizes[key],
        evaluations=tuple(_evaluations(run, say)),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a progress file. The last one may be cut, if the process was killed."""
    try:
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from None


def _curve(run: Run, rows: list[dict[str, str]], metric: str) -> np.ndarray:
    """Steps, seconds and returns of the rows that have a return, ``(3, T)``."""
    if rows and metric not in rows[0]:
        raise UsageError(f"'{run.path}' has no column {metric} in its progress.csv")
    if rows and STEPS not in rows[0]:
        raise UsageError(f"'{run.path}' has no column {STEPS} in its progress.csv")
    found = []
    for row in rows:
        try:
            values = [float(row[STEPS]), float(row.get(SECONDS) or "nan"), float(row[metric] or "nan")]
        except ValueError:
            raise UsageError(f"'{run.path}' has a row in its progress.csv that holds no numbers") from None
        if math.isfinite(values[0]) and math.isfinite(values[2]):
            found.append(values)
    if not found:
        raise UsageError(f"'{run.path}' has no value of {metric} yet: no episode ended")
    curve: np.ndarray = np.array(found).T
    if not bool((np.diff(curve[0]) > 0).all()):
        raise UsageError(f"'{run.path}' has rows in its progress.csv whose steps do not increase")
    # the clock of a run that was resumed starts again at 0
    restarts = np.where(np.diff(curve[1], prepend=0) < 0, np.concatenate([[0], curve[1][:-1]]), 0)
    curve[1] += np.cumsum(restarts)
    return curve


def _sizes(run: Run) -> dict[str, int]:
    """How large a run's policy is; empty if it cannot be rebuilt."""
    path = run.model_path("last")
    if not path.is_file():
        return {}
    try:
        policy = read_policy(run, path).policy
    except UsageError:
        return {}
    cores = ("core", "critic_core")
    return {
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "core": sum(parameter.numel() for name in cores for parameter in _parameters(getattr(policy, name, None))),
        "state": policy.core.state_size,
    }


def _parameters(module: Any) -> Any:
    return () if module is None else module.parameters()


def _evaluations(run: Run, say: Callable[[str], None]) -> list[Evaluation]:
    """What :mod:`rmc_rl.evaluate` has written for a run."""
    found = []
    for path in sorted((run.path / "evaluations").glob("*.json")):
        try:
            text = json.loads(path.read_text())
            result = text.get("return", text)
            each = result.get("each", text.get("returns"))
            mean = result.get("mean", text.get("mean"))
            mean = float(np.mean(each) if mean is None else mean)
            if not math.isfinite(mean):
                raise ValueError("its mean return is no finite number")
            episodes = text.get("episodes", len(each) if isinstance(each, list) else None)
            deterministic = text.get("deterministic")
            if not (deterministic is None or isinstance(deterministic, bool)):
                raise ValueError("deterministic is neither true nor false")
            found.append(
                Evaluation(
                    env=str(text["env"]),
                    env_kwargs=dict(text.get("env_kwargs") or {}),
                    model=str(text.get("model", "last")),
                    deterministic=deterministic,
                    episodes=episodes if isinstance(episodes, int) else None,
                    mean=mean,
                    when=path.name,
                )
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            say(f"left out: '{path}' is no evaluation: {type(error).__name__}: {' '.join(str(error).split())}")
    return found


def _is_in(path: str, found: dict[Path, Path]) -> bool:
    """Whether a folder, or one above it, is a run that another pattern has found already."""
    top = Path(path).resolve()
    return any(each == top or top in each.parents or each in top.parents for each in found)
