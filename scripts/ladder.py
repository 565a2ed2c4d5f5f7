"""
Which core learns what, and how fast: scripts/ladder [--rungs copy-small tmaze] [--cores rmc gru] [--seeds 5] ...

Trains every core on every rung of a ladder of tasks with ``python -m rmc_rl.train`` and the defaults of that command, apart
from the keys that a rung lists. A run ends when the mean return of the last 100 training episodes (actions are sampled) first
reaches the rung's threshold, or at the rung's last step. What a run found goes to --out as JSON as soon as it is there, and is
not run again; a run that was interrupted goes on where it was. --table prints what is there and trains nothing.

The table has a row for each rung and core: seeds that reached the threshold, steps and seconds until then (the median over all
seeds, where a seed that never reached it counts as infinitely slow; of an even number of seeds the slower of the two in the
middle), and the mean of each seed's best return. "control" is that number of core=memoryless. Rows are sorted by the share of
seeds that reached the threshold, then by steps. Seconds depend on the machine and on what else runs there, and those of an
interrupted run count from its last start: compare steps.
"""

import argparse
import csv
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from arguments import at_least_one

from rmc_rl.command_line.help import group_options
from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import Run, written_whole
from rmc_rl.studies.statistics import first_reached

RETURN, STEPS, SECONDS = "rollout/ep_rew_mean", "time/total_timesteps", "time/time_elapsed"
CONTROL = "memoryless"
LOOK_EVERY = 5.0  # seconds between two looks at a run's progress
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)  # status of a run that was asked to stop: once it trains, and before
QUICK = "n_envs=4 algo.n_steps=16 algo.batch_size=32 algo.n_epochs=1 total_timesteps=512"


class Rung(NamedTuple):
    """A task, what is asked of an agent, and how long it has."""

    keys: str  # of the command line
    threshold: float
    timesteps: int


# the thresholds are about 90 % of the way from play without memory to perfect play, or what the field asks for
RUNGS = {
    "copy-small": Rung("env=rmc_rl/Copy-v0 env_kwargs.n_symbols=4 env_kwargs.length=3 env_kwargs.delay=5", 0.95, 500_000),
    "copy": Rung("env=rmc_rl/Copy-v0 env_kwargs.n_symbols=8 env_kwargs.length=5 env_kwargs.delay=20", 0.95, 2_000_000),
    "tmaze": Rung("env=rmc_rl/TMaze-v0", 0.95, 1_000_000),
    "endless-tmaze": Rung("env=rmc_rl/EndlessTMaze-v0", 4.0, 2_000_000),
    "repeat-previous": Rung("env=rmc_rl/RepeatPrevious-v0", 0.85, 2_000_000),
    "autoencode-small": Rung("env=rmc_rl/Autoencode-v0 env_kwargs.n_cards=6", 0.85, 3_000_000),
    "concentration-small": Rung("env=rmc_rl/Concentration-v0 env_kwargs.n_cards=8 env_kwargs.n_kinds=4", 0.65, 3_000_000),
    "stories-where": Rung("env=rmc_rl/Stories-v0", 0.9, 3_000_000),
    "memory-room": Rung("env=rmc_rl/MemoryRoom-v0", 0.9, 2_000_000),
    "object-pick": Rung("env=rmc_rl/ObjectPick-v0", 0.9, 2_000_000),
    "nth-farthest": Rung("env=rmc_rl/NthFarthest-v0", 0.95, 2_000_000),
    "sequential-digits": Rung("env=rmc_rl/SequentialDigits-v0", 0.8, 3_000_000),
    "cart-pole": Rung("env=rmc_rl/CartPolePositions-v0", 475, 150_000),
    "pendulum": Rung("env=rmc_rl/PendulumAngle-v0", -250, 300_000),
    "memory-s7": Rung("env=MiniGrid-MemoryS7-v0", 0.9, 1_000_000),
    "memory-s11": Rung("env=MiniGrid-MemoryS11-v0", 0.9, 3_000_000),
}


class Job(NamedTuple):
    """One run: a rung, a core and a seed."""

    rung: str
    core: str
    seed: int
    keys: tuple[str, ...]  # of the command line, without the run's folder and name

    @property
    def name(self) -> str:
        """The key of its result."""
        return f"{self.rung}/{self.core}/seed{self.seed}"


def make_job(rung: str, core: str, seed: int, more: Sequence[str], quick: bool) -> Job:
    """The command line of a run; later keys win."""
    keys = [*RUNGS[rung].keys.split(), f"total_timesteps={RUNGS[rung].timesteps}", "num_threads=1", *more]
    by_name = dict(key.partition("=")[::2] for key in [*keys, *(QUICK.split() if quick else ())])
    return Job(rung, core, seed, (f"core={core}", f"seed={seed}", *(f"{name}={value}" for name, value in by_name.items())))


def read_progress(run: Run) -> dict[str, np.ndarray]:
    """The columns of a run's progress.csv, for the rows that have a return; empty before the first."""
    try:
        with (run.path / "progress.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(RETURN) and None not in row.values()]  # the last may be cut
    except OSError:
        rows = []
    return {name: np.array([float(row[name]) for row in rows]) for name in (RETURN, STEPS, SECONDS)}


def play(job: Job, folder: Path, to_the_end: bool) -> dict[str, Any]:
    """
    Train one run, or go on with it.

    :param folder: of the ladder's runs
    :param to_the_end: whether it goes on after the threshold
    :return: what goes into the table
    :raises RuntimeError: if training failed
    """
    threshold = RUNGS[job.rung].threshold
    env = job.keys[2].partition("=")[2]
    run = Run.named(folder / job.rung, env, job.core, f"seed{job.seed}")
    command = [sys.executable, "-m", "rmc_rl.train", *job.keys, f"runs_dir={folder / job.rung}", f"name={run.path.name}"]
    run.path.parent.mkdir(parents=True, exist_ok=True)
    log = run.path.parent / f"{run.path.name}.log"

    def is_over() -> bool:
        return not to_the_end and first_reached(read_progress(run)[RETURN], threshold) is not None

    with log.open("w") as output:
        process = subprocess.Popen([*command, "resume=auto"], stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and not is_over():
                try:
                    process.wait(LOOK_EVERY)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.terminate()
            process.wait()
    progress = read_progress(run)
    reached = first_reached(progress[RETURN], threshold)
    if process.returncode not in (0, *STOPPED) or (process.returncode in STOPPED and reached is None):
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        raise RuntimeError(f"{job.name} failed with status {process.returncode}: {''.join(last)} ({log})")
    steps, seconds, returns = progress[STEPS], progress[SECONDS], progress[RETURN]
    return {
        "keys": list(job.keys),
        "threshold": threshold,
        "reached_steps": None if reached is None else float(steps[reached]),
        "reached_seconds": None if reached is None else float(seconds[reached]),
        "best_return": float(returns.max()) if len(returns) else None,
        "steps": float(steps.max(initial=0)),
        "seconds": float(seconds.max(initial=0)),
        "git_commit": run.read_config().run.git_commit,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def median(values: Sequence[float | None]) -> float:
    """The median of numbers that may be censored (None: larger than any); of an even number the larger of the middle two."""
    return statistics.median_high([math.inf if value is None else value for value in values])


def table(found: dict[str, dict[str, Any]], jobs: Sequence[Job]) -> list[str]:
    """The results of some runs as a Markdown table."""
    titles = ["rung", "core", "reached", "steps", "seconds", "best return", "control"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for rung in dict.fromkeys(job.rung for job in jobs):
        rows: list[tuple[float, float, str]] = []
        of_rung = [job for job in jobs if job.rung == rung and job.name in found]
        controls = [found[job.name] for job in of_rung if job.core == CONTROL]
        control = _mean_return(controls)
        for core in dict.fromkeys(job.core for job in of_rung):
            results = [found[job.name] for job in of_rung if job.core == core]
            n_reached = sum(result["reached_steps"] is not None for result in results)
            steps, seconds = (median([result[f"reached_{what}"] for result in results]) for what in ("steps", "seconds"))
            longest = max(result["steps"] for result in results)
            shown = [f"> {longest:,.0f}", "never"] if math.isinf(steps) else [f"{steps:,.0f}", f"{seconds:,.0f}"]
            cells = [rung, core, f"{n_reached} of {len(results)}", *shown, _mean_return(results), control]
            rows.append((-n_reached / len(results), steps, f"| {' | '.join(cells)} |"))
        lines += [line for _, _, line in sorted(rows)]
    return lines


def _mean_return(results: Sequence[dict[str, Any]]) -> str:
    best = [result["best_return"] for result in results if result["best_return"] is not None]
    return f"{statistics.mean(best):,.3g}" if best else ""


def _write(path: Path, found: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(json.dumps(found, indent=1).encode())


def main() -> int:
    """The command line; the exit status is 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = group_options("core")
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), choices=list(RUNGS), metavar="RUNG", help=", ".join(RUNGS))
    parser.add_argument("--cores", nargs="+", default=cores, choices=cores, metavar="CORE", help=", ".join(cores))
    parser.add_argument("--seeds", type=at_least_one, default=5, help="how many, from 0")
    parser.add_argument("--jobs", type=at_least_one, default=1, help="runs side by side, each on one core of the processor")
    parser.add_argument("--keys", nargs="*", default=[], help="keys of all runs, as in params=60000; they change the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder/results.json"), help="the results")
    parser.add_argument("--to-the-end", action="store_true", help="train on after the threshold was reached")
    parser.add_argument("--quick", action="store_true", help="a few steps of each run, to see whether the ladder works")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and train nothing")
    arguments = parser.parse_args()
    for key in arguments.keys:
        if "=" not in key:
            parser.error(f"--keys must be key=value, got {key!r}")
    found: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    chosen = list(dict.fromkeys([*arguments.cores, CONTROL]))
    jobs = [
        make_job(rung, core, seed, arguments.keys, arguments.quick)
        for rung in arguments.rungs
        for seed in range(arguments.seeds)
        for core in chosen
    ]
    for job in jobs:
        if job.name in found and found[job.name]["keys"] != list(job.keys):
            parser.error(
                f"{arguments.out} holds {job.name} with other keys, {shlex.join(found[job.name]['keys'])}: name another --out "
                "and --runs"
            )
    todo, failed, lock = [] if arguments.table else [job for job in jobs if job.name not in found], 0, Lock()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = {pool.submit(play, job, arguments.runs, arguments.to_the_end): job for job in todo}
        try:
            for done in as_completed(running):
                try:
                    result = done.result()
                except (RuntimeError, UsageError) as error:
                    failed += 1
                    print(f"error: {error}", file=sys.stderr, flush=True)
                    continue
                with lock:
                    found[running[done].name] = result
                    _write(arguments.out, found)
                print(
                    f"{running[done].name}: {result['best_return']} after {result['steps']:,.0f} steps",
                    file=sys.stderr,
                    flush=True,
                )
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("stopped; the same command goes on", file=sys.stderr)
            os._exit(130)  # the runs received the Ctrl-C as well, and have saved checkpoints
    print("\n".join(table(found, jobs)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
