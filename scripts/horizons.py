"""
How much longer than in training can each memory wait? python scripts/horizons.py [--task copy] [--cores rmc gru] ...

Trains every core by imitation to remember symbols of eight kinds, then tests it at longer delays than those of training:
likeliest answers, the same new episodes for all. Chance is 0.125. The tasks:

* symbol: one symbol, for a delay that each episode draws from 5 to 50 steps; tested up to 1,000 steps;
* copy: ten symbols, the copying task of the RIMs paper (Goyal et al. 2019, section 4.1), for 1 to 50 steps; tested up to 200,
  as there. A curriculum raises length and delay together, and each episode draws from those so far. All cores have 40,000
  parameters.

Results go to --out as soon as they are there, and are not computed again; a run that was stopped goes on. --table prints what
is there and trains nothing; --picture draws it.

The table has a row for each core: the seconds of training (the median over seeds), and the mean return over seeds at each
delay, with that of the worst and of the best seed. Seconds of an interrupted run count from its last start.
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

ENV = "rmc_rl/Copy-v0"
IMITATION = f"algo=imitation env={ENV} env_kwargs.n_symbols=8 num_threads=1"


class Task(NamedTuple):
    """What is trained, and at which delays it is tested."""

    keys: str  # of the command line
    learned: int  # the longest delay of training
    delays: tuple[int, ...]
    cores: tuple[str, ...]  # those that are trained unless --cores says otherwise
    more: dict[str, str] = {}  # keys of a core


EPISODES = 128
CHANCE = 1 / 8
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
        "env_kwargs.length=1 env_kwargs.delay=[5,50] n_envs=32 algo.n_steps=64 algo.batch_size=1024 algo.n_epochs=2 "
        "algo.learning_rate=0.004 total_timesteps=200000",
        50,
        (5, 20, 50, 100, 200, 500, 1000),
        CORES,
    ),
    "copy": Task(
        "curriculum.length=[1,10] curriculum.delay=[1,50] curriculum_draw=range n_envs=16 algo.n_steps=140 "
        "algo.batch_size=560 algo.n_epochs=1 algo.learning_rate=0.006 total_timesteps=3000000 params_of=core params=40000",
        50,
        (5, 20, 50, 100, 200),
        ("rmc", "rims", "lstm", "gru", "mingru", "gtrxl", "ntm", "memoryless"),
        {"memoryless": "params=null"},
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
    run = Run.named(folder, ENV, core, f"seed{seed}")
    keys = [f"core={core}", f"seed={seed}", *f"{IMITATION} {task.keys} {task.more.get(core, '')}".split(), *more]
    keys = list(dict((key.partition("=")[0], key) for key in keys).values())
    call("train", *keys, f"runs_dir={folder}", f"name={run.path.name}", "resume=auto")
    delays = ",".join(map(str, task.delays))
    call("evaluate", "-m", f"run={run.path}", f"env_kwargs.delay={delays}", f"episodes={EPISODES}", f"n_envs={EPISODES}")
    return collect(run, task) | dict(keys=keys)


def collect(run: Run, task: Task) -> dict[str, Any]:
    """
    The results of a run that was tested.

    :param run: the run
    :param task: its task
    :return: mean return by delay; the steps and seconds of its training, and the commit
    """
    tests = [json.loads(path.read_text()) for path in sorted(run.path.glob("evaluations/*.json"))]
    returns = {str(test["env_kwargs"]["delay"]): test["return"]["mean"] for test in tests if test["episodes"] == EPISODES}
    with (run.path / "progress.csv").open(newline="") as file:
        seconds = [float(row[SECONDS]) for row in csv.DictReader(file) if row.get(SECONDS)][-1]
    return dict(
        returns={str(delay): returns[str(delay)] for delay in task.delays},
        steps=tests[-1]["timesteps_trained"],
        seconds=round(seconds),
        git_commit=run.read_config().run.git_commit,
    )


def of_core(found: Results, core: str) -> list[dict[str, Any]]:
    """What was found with each seed of a core."""
    return [result for name, result in sorted(found.items()) if name.split("/")[0] == core]


def table(found: Results, task: Task) -> list[str]:
    """
    A Markdown table of what was found, the core that is best at the longest delays first.

    :param found: the results
    :param task: their task
    """
    is_timed = all("seconds" in result for result in found.values())  # not in results of earlier versions
    head = ["core", "seeds", *(["seconds"] if is_timed else []), *(f"{delay:,}" for delay in task.delays)]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    rows = {}
    for core in CORES:
        seeds = of_core(found, core)
        if not seeds:
            continue
        cells, means = [], []
        if is_timed:
            cells.append(f"{statistics.median(seed['seconds'] for seed in seeds):,.0f}")
        for delay in task.delays:
            values = [seed["returns"][str(delay)] for seed in seeds]
            means.append(statistics.mean(values))
            spread = f" [{min(values):.2f}, {max(values):.2f}]" if round(min(values), 2) < round(max(values), 2) else ""
            cells.append(f"{means[-1]:.2f}{spread}")
        rows[f"| `{core}` | {len(seeds)} | {' | '.join(cells)} |"] = means[::-1]
    return lines + sorted(rows, key=rows.__getitem__, reverse=True)


def draw(found: Results, task: Task, path: Path) -> None:
    """
    Draw the returns over the delays: a panel for each family of cores, a line for each core, a band from the worst to the best
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
        place.axvspan(task.delays[0], task.learned, color="0.92")
        place.axhline(CHANCE, color="0.5", linewidth=1, linestyle=":")
        for core, marker in zip(cores, "osD^v", strict=False):
            seeds = of_core(found, core)
            values = [[seed["returns"][str(delay)] for seed in seeds] for delay in task.delays]
            (line,) = place.plot(task.delays, list(map(statistics.mean, values)), marker=marker, markersize=4, label=core)
            place.fill_between(task.delays, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.15)
        place.set(xscale="log", title=family, xlabel="steps of waiting", ylim=(0, 1.04))
        place.set_xticks(task.delays, [str(delay) for delay in task.delays], fontsize="x-small")
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
    failed = False
    for seed in () if arguments.table else range(arguments.seeds):
        for core in arguments.cores or task.cores:
            if f"{core}/seed{seed}" in found:
                continue
            try:
                found[f"{core}/seed{seed}"] = play(task, core, seed, runs, QUICK if arguments.quick else ())
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
