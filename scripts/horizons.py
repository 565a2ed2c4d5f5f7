"""
How much longer than in training can each memory wait? python scripts/horizons.py [--cores rmc gru] [--seeds 5] ...

Trains every core by imitation to remember one of eight symbols for a delay that each episode draws from 5 to 50 steps, then
tests it at delays of up to 1,000 steps: likeliest answers, the same new episodes for all. Chance is 0.125. Results go to --out
as soon as they are there, and are not computed again; a run that was stopped goes on. --table prints what is there and trains
nothing; --picture draws it.

The table has a row for each core: the mean return over seeds at each delay, with that of the worst and of the best seed.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from arguments import at_least_one

from rmc_rl.runs.folder import Run, written_whole

ENV = "rmc_rl/Copy-v0"
LEARNED = 50  # the longest delay of training
DELAYS = (5, 20, LEARNED, 100, 200, 500, 1000)
KEYS = (
    f"algo=imitation env={ENV} env_kwargs.n_symbols=8 env_kwargs.length=1 env_kwargs.delay=[5,{LEARNED}] n_envs=32 "
    "algo.n_steps=64 algo.batch_size=1024 algo.n_epochs=2 algo.learning_rate=0.004 num_threads=1 total_timesteps=200000"
).split()
EPISODES = 128
CHANCE = 1 / 8
FAMILIES = {  # a panel of the picture each
    "slots and modules": ("rmc", "rims", "brims", "ntm"),
    "gated cells": ("lstm", "gru", "nbrc"),
    "linear in the state": ("mingru", "lru", "linear_attention", "delta_net", "aft"),
    "attention; weights as memory": ("attention", "gtrxl", "titans"),
    "controls": ("framestack", "memoryless"),
}
CORES = tuple(core for cores in FAMILIES.values() for core in cores)

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


def play(core: str, seed: int, folder: Path, total_timesteps: int | None) -> dict[str, Any]:
    """
    Train a core with a seed, or go on with it, and test it.

    :param core: its name
    :param seed: the seed
    :param folder: of all runs
    :param total_timesteps: instead of those of the study; None: those
    :return: what goes into the table
    :raises RuntimeError: if a command failed
    """
    run = Run.named(folder, ENV, core, f"seed{seed}")
    keys = [*KEYS, *([] if total_timesteps is None else [f"total_timesteps={total_timesteps}"])]
    keys = [f"core={core}", f"seed={seed}", *dict((key.partition("=")[0], key) for key in keys).values()]
    call("train", *keys, f"runs_dir={folder}", f"name={run.path.name}", "resume=auto")
    delays = ",".join(map(str, DELAYS))
    call("evaluate", "-m", f"run={run.path}", f"env_kwargs.delay={delays}", f"episodes={EPISODES}", f"n_envs={EPISODES}")
    return collect(run) | dict(keys=keys)


def collect(run: Run) -> dict[str, Any]:
    """
    The results of a run that was tested.

    :param run: the run
    :return: mean return by delay, the steps of its training, and the commit
    """
    tests = [json.loads(path.read_text()) for path in sorted(run.path.glob("evaluations/*.json"))]
    returns = {str(test["env_kwargs"]["delay"]): test["return"]["mean"] for test in tests if test["episodes"] == EPISODES}
    return dict(
        returns={str(delay): returns[str(delay)] for delay in DELAYS},
        steps=tests[-1]["timesteps_trained"],
        git_commit=run.read_config().run.git_commit,
    )


def of_core(found: Results, core: str) -> list[dict[str, float]]:
    """The returns by delay of each seed of a core."""
    return [result["returns"] for name, result in sorted(found.items()) if name.split("/")[0] == core]


def table(found: Results) -> list[str]:
    """
    A Markdown table of what was found, the core that is best at the longest delays first.

    :param found: the results
    """
    lines = [f"| core | seeds | {' | '.join(f'{delay:,}' for delay in DELAYS)} |", "| --- " * (len(DELAYS) + 2) + "|"]
    rows = {}
    for core in CORES:
        seeds = of_core(found, core)
        if not seeds:
            continue
        cells, means = [], []
        for delay in DELAYS:
            values = [seed[str(delay)] for seed in seeds]
            means.append(statistics.mean(values))
            spread = f" [{min(values):.2f}, {max(values):.2f}]" if round(min(values), 2) < round(max(values), 2) else ""
            cells.append(f"{means[-1]:.2f}{spread}")
        rows[f"| `{core}` | {len(seeds)} | {' | '.join(cells)} |"] = means[::-1]
    return lines + sorted(rows, key=rows.__getitem__, reverse=True)


def draw(found: Results, path: Path) -> None:
    """
    Draw the returns over the delays: a panel for each family of cores, a line for each core, a band from the worst to the best
    seed.

    :param found: the results
    :param path: a PNG
    """
    from matplotlib.figure import Figure
    from PIL import Image

    shown = {family: [core for core in cores if of_core(found, core)] for family, cores in FAMILIES.items()}
    shown = {family: cores for family, cores in shown.items() if cores}
    figure = Figure(figsize=(3 * len(shown), 3.2))
    places = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for place, (family, cores) in zip(places, shown.items(), strict=True):
        place.axvspan(DELAYS[0], LEARNED, color="0.92")
        place.axhline(CHANCE, color="0.5", linewidth=1, linestyle=":")
        for core, marker in zip(cores, "osD^v", strict=False):
            seeds = of_core(found, core)
            values = [[seed[str(delay)] for seed in seeds] for delay in DELAYS]
            (line,) = place.plot(DELAYS, list(map(statistics.mean, values)), marker=marker, markersize=4, label=core)
            place.fill_between(DELAYS, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.15)
        place.set(xscale="log", title=family, xlabel="steps of waiting", ylim=(0, 1.04))
        place.set_xticks(DELAYS, [str(delay) for delay in DELAYS], fontsize="x-small")
        place.minorticks_off()
        place.legend(fontsize="x-small", loc=(0.02, 0.18))
    places[0].set_ylabel("return")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # so that the file is small


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", nargs="+", default=CORES, choices=CORES, metavar="CORE", help=", ".join(CORES))
    parser.add_argument("--seeds", type=at_least_one, default=5, help="how many, from 0")
    parser.add_argument("--runs", type=Path, default=Path("runs/horizons"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("runs/horizons/results.json"), help="the results")
    parser.add_argument("--picture", type=Path, help="a PNG")
    parser.add_argument("--quick", action="store_true", help="a few steps of each run, to see whether the study works")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and train nothing")
    arguments = parser.parse_args()
    found: Results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    failed = False
    for seed in () if arguments.table else range(arguments.seeds):
        for core in arguments.cores:
            if f"{core}/seed{seed}" in found:
                continue
            try:
                found[f"{core}/seed{seed}"] = play(core, seed, arguments.runs, 2048 if arguments.quick else None)
            except RuntimeError as error:
                failed = True
                print(f"error: {error}", file=sys.stderr, flush=True)
                continue
            except KeyboardInterrupt:
                print("stopped; the same command goes on", file=sys.stderr)
                return 130
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(arguments.out) as file:
                file.write(json.dumps(found, indent=1).encode() + b"\n")
            print(f"{core}/seed{seed}: {found[f'{core}/seed{seed}']['returns']}", file=sys.stderr, flush=True)
    print("\n".join(table(found)))
    if arguments.picture is not None and found:
        draw(found, arguments.picture)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
