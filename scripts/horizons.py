"""
How much longer than in training can each memory wait? python scripts/horizons.py [--task copy] [--cores rmc gru] ...

Trains every core by imitation, then tests it with longer episodes than those of training: likeliest answers, the same new
episodes for all. The tasks:

* symbol: one symbol of eight kinds, for a delay that each episode draws from 5 to 50 steps; tested up to 1,000 steps;
* copy: ten such symbols, the copying task of the RIMs paper (Goyal et al. 2019, section 4.1), for 1 to 50 steps; tested up to
  200, as there. A curriculum raises length and delay together, and each episode draws from those so far. All cores have
  40,000 parameters;
* digits: name a handwritten digit of 8x8 pixels, seen pixel by pixel; tested with other digits, of up to 14x14 pixels. The
  sizes grow in the proportions of that paper, which has 14x14 pixels in training and up to 24x24 in tests.

Results go to --out as soon as they are there, and are not computed again; a run that was stopped goes on. --table prints what
is there and trains nothing; --picture draws it.

The table has a row for each core: the seconds of training (the median over seeds), and the mean return over seeds at each
delay or size, with that of the worst and of the best seed. Seconds of an interrupted run count from its last start.
"""

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from arguments import at_least_one

from rmc_rl.runs.folder import Run, written_whole

IMITATION = "algo=imitation num_threads=1"


class Task(NamedTuple):
    """What is trained, and at which values of a world's keyword it is tested."""

    keys: str  # of the command line
    learned: int  # the largest value of training
    tested: tuple[int, ...]  # values
    cores: tuple[str, ...]  # those that are trained unless --cores says otherwise
    more: dict[str, str] = {}  # keys of a core
    env: str = "rmc_rl/Copy-v0"
    keyword: str = "delay"
    test_keys: tuple[str, ...] = ()  # of the command line of a test
    episodes: int = 128  # of a test
    label: str = "steps of waiting"  # of the keyword
    chance: float = 1 / 8


SECONDS = "time/time_elapsed"
QUICK = ("total_timesteps=2048",)
FAMILIES = {  # a panel of the picture each
    "slots and modules": ("rmc", "rims", "brims", "ntm"),
    "gated cells": ("lstm", "gru", "nbrc"),
    "linear in the state": ("mingru", "lru", "linear_attention", "delta_net", "aft"),
    "attention; weights as memory": ("attention", "gtrxl", "titans"),
    "controls": ("framestack", "memoryless"),
}
CORES = tuple(core for cores in FAMILIES.values() for core in cores)
TASKS = {
    "symbol": Task(
        "env_kwargs.n_symbols=8 env_kwargs.length=1 env_kwargs.delay=[5,50] n_envs=32 algo.n_steps=64 algo.batch_size=1024 "
        "algo.n_epochs=2 algo.learning_rate=0.004 total_timesteps=200000",
        50,
        (5, 20, 50, 100, 200, 500, 1000),
        CORES,
    ),
    "copy": Task(
        "env_kwargs.n_symbols=8 curriculum.length=[1,10] curriculum.delay=[1,50] curriculum_draw=range n_envs=16 "
        "algo.n_steps=140 algo.batch_size=560 algo.n_epochs=1 algo.learning_rate=0.006 total_timesteps=3000000 "
        "params_of=core params=40000",
        50,
        (5, 20, 50, 100, 200),
        ("rmc", "rims", "lstm", "gru", "mingru", "gtrxl", "ntm", "memoryless"),
        {"memoryless": "params=null"},
    ),
    "digits": Task(
        "n_envs=64 algo.n_steps=130 algo.batch_size=1040 algo.n_epochs=2 algo.learning_rate=0.004 total_timesteps=1500000",
        8,
        (8, 9, 11, 14),
        ("rmc", "rims", "lstm", "gru", "memoryless"),
        env="rmc_rl/SequentialDigits-v0",
        keyword="size",
        test_keys=("env_kwargs.split=test",),
        episodes=512,
        label="pixels along a side",
        chance=1 / 10,
    ),
}

Results = dict[str, dict[str, Any]]  # by "<core>/seed<number>"


def call(verb: str, *keys: str) -> None:
    """
    Run a verb of the command line in a process of its own.

    :param verb: as in "train"
    :param keys: of its command line
    :raises RuntimeError: if it failed, with its last line
    """
    command = [sys.executable, "-m", f"rmc_rl.{verb}", *keys]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-1:]
        raise RuntimeError(f"{shlex.join(command[1:])} ended with status {done.returncode}: {''.join(last)}")


def keys_of(task: Task, core: str, seed: int, more: Sequence[str]) -> list[str]:
    """The keys of the command line with which :func:`play` trains; later ones win."""
    common = f"{IMITATION} env={task.env} {task.keys} {task.more.get(core, '')}"
    keys = [f"core={core}", f"seed={seed}", *common.split(), *more]
    return list({key.partition("=")[0]: key for key in keys}.values())


def play(task: Task, core: str, seed: int, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """
    Train a core with a seed, or go on with it, and test it.

    :param task: the task
    :param core: its name
    :param seed: the seed
    :param folder: of all runs
    :param more: further keys of the command line; they win
    :return: what goes into the table
    :raises RuntimeError: if a command failed
    """
    run = Run.named(folder, task.env, core, f"seed{seed}")
    keys = keys_of(task, core, seed, more)
    call("train", *keys, f"runs_dir={folder}", f"name={run.path.name}", "resume=auto")
    values = ",".join(map(str, task.tested))
    each = (f"env_kwargs.{task.keyword}={values}", f"episodes={task.episodes}", f"n_envs={task.episodes}")
    call("evaluate", "-m", f"run={run.path}", *each, *task.test_keys)
    return collect(run, task) | dict(keys=keys)


def collect(run: Run, task: Task) -> dict[str, Any]:
    """
    The results of a run that was tested.

    :param run: the run
    :param task: its task
    :return: mean return by value; the steps and seconds of its training, and the commit
    """
    tests = [json.loads(path.read_text()) for path in sorted(run.path.glob("evaluations/*.json"))]
    tests = [test for test in tests if test["episodes"] == task.episodes]
    returns = {str(test["env_kwargs"][task.keyword]): test["return"]["mean"] for test in tests}
    with (run.path / "progress.csv").open(newline="") as file:
        seconds = [float(row[SECONDS]) for row in csv.DictReader(file) if row.get(SECONDS)][-1]
    return dict(
        returns={str(value): returns[str(value)] for value in task.tested},
        steps=tests[-1]["timesteps_trained"],
        seconds=round(seconds),
        git_commit=run.read_config().run.git_commit,
    )


def of_core(found: Results, core: str) -> list[dict[str, Any]]:
    """What was found with each seed of a core."""
    return [result for name, result in sorted(found.items()) if name.split("/")[0] == core]


def table(found: Results, task: Task) -> list[str]:
    """
    A Markdown table of what was found, the core that is best at the largest values first.

    :param found: the results
    :param task: their task
    """
    is_timed = all("seconds" in result for result in found.values())  # not in results of earlier versions
    head = ["core", "seeds", *(["seconds"] if is_timed else []), *(f"{value:,}" for value in task.tested)]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    rows = {}
    for core in CORES:
        seeds = of_core(found, core)
        if not seeds:
            continue
        cells, means = [], []
        if is_timed:
            cells.append(f"{statistics.median(seed['seconds'] for seed in seeds):,.0f}")
        for value in task.tested:
            values = [seed["returns"][str(value)] for seed in seeds]
            means.append(statistics.mean(values))
            spread = f" [{min(values):.2f}, {max(values):.2f}]" if round(min(values), 2) < round(max(values), 2) else ""
            cells.append(f"{means[-1]:.2f}{spread}")
        rows[f"| `{core}` | {len(seeds)} | {' | '.join(cells)} |"] = means[::-1]
    return lines + sorted(rows, key=rows.__getitem__, reverse=True)


def draw(found: Results, task: Task, path: Path) -> None:
    """
    Draw the returns over the values: a panel for each family of cores, a line for each core, a band from the worst to the best
    seed.

    :param found: the results
    :param task: their task
    :param path: a PNG
    """
    from matplotlib.figure import Figure
    from PIL import Image

    shown = {family: [core for core in cores if of_core(found, core)] for family, cores in FAMILIES.items()}
    shown = {family: cores for family, cores in shown.items() if cores}
    figure = Figure(figsize=(3 * len(shown), 3.2))
    places = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for place, (family, cores) in zip(places, shown.items(), strict=True):
        place.axvspan(task.tested[0], task.learned, color="0.92")
        place.axhline(task.chance, color="0.5", linewidth=1, linestyle=":")
        for core, marker in zip(cores, "osD^v", strict=False):
            seeds = of_core(found, core)
            values = [[seed["returns"][str(value)] for seed in seeds] for value in task.tested]
            (line,) = place.plot(task.tested, list(map(statistics.mean, values)), marker=marker, markersize=4, label=core)
            place.fill_between(task.tested, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.15)
        place.set(xscale="log", title=family, xlabel=task.label, ylim=(0, 1.04))
        place.set_xticks(task.tested, [str(value) for value in task.tested], fontsize="x-small")
        place.minorticks_off()
        place.legend(fontsize="x-small", loc=(0.02, 0.18))
    places[0].set_ylabel("return")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # so that the file is small


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="symbol", choices=TASKS, help="what is remembered, see above; default: symbol")
    cores = "default: those of the task's page; known are"
    parser.add_argument("--cores", nargs="+", choices=CORES, metavar="CORE", help=f"{cores} {', '.join(CORES)}")
    parser.add_argument("--seeds", type=at_least_one, default=5, help="how many, from 0")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: runs/horizons/<task>")
    parser.add_argument("--out", type=Path, help="the results; default: runs/horizons/<task>.json")
    keys = "further keys of the command line of each training run; they win. Results with other keys need another --out"
    parser.add_argument("--keys", nargs="+", default=[], metavar="KEY=VALUE", help=keys)
    parser.add_argument("--picture", type=Path, help="a PNG")
    parser.add_argument("--quick", action="store_true", help="a few steps of each run, to see whether the study works")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and train nothing")
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    runs, out = (
        arguments.runs or Path("runs/horizons", arguments.task),
        arguments.out or Path(f"runs/horizons/{arguments.task}.json"),
    )
    found: Results = json.loads(out.read_text()) if out.exists() else {}
    more = [*arguments.keys, *(QUICK if arguments.quick else ())]
    for name, result in found.items():
        core, number = name.split("/seed")
        if other := set(result["keys"]) ^ set(keys_of(task, core, int(number), more)):
            parser.error(f"{out} holds {name} with other keys ({' '.join(sorted(other))}): give another --out and --runs")
    failed = False
    for seed in () if arguments.table else range(arguments.seeds):
        for core in arguments.cores or task.cores:
            if f"{core}/seed{seed}" in found:
                continue
            try:
                found[f"{core}/seed{seed}"] = play(task, core, seed, runs, more)
            except RuntimeError as error:
                failed = True
                print(f"error: {error}", file=sys.stderr, flush=True)
                continue
            except KeyboardInterrupt:
                print("stopped; the same command goes on", file=sys.stderr)
                return 130
            out.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(out) as file:
                file.write(json.dumps(found, indent=1).encode() + b"\n")
            print(f"{core}/seed{seed}: {found[f'{core}/seed{seed}']['returns']}", file=sys.stderr, flush=True)
    print("\n".join(table(found, task)))
    if arguments.picture is not None and found:
        draw(found, task, arguments.picture)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
