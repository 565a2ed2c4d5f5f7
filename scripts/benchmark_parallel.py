"""
Speed of one process, of two, and of one with a process for each copy: python scripts/benchmark_parallel.py [--quick]

The same training, by the command line, in three ways: one process, torchrun with two processes (each with half of the copies),
and, for the slow world, one process with processes=true. They take turns, so that a change of the machine's load meets all. A
table of the steps per second of a run, without the time to start it, and of how many times faster than one process each is:
median over the rounds, and the range. torch has one thread in each process, unless --threads says otherwise.

Worlds: "pong" is ALE/Pong-v5, 8 x 128 steps a rollout, batch 256, 4 epochs; "slow" is CartPole-v1 with 1 ms of work of the
processor in each step, 16 x 128 steps, batch 512, 10 epochs.
"""

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

WORK = 0.001  # seconds of the processor for a step of the slow world
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
WORLDS = {
    "pong": ("env=ALE/Pong-v5", "core=gru", "n_envs=8", "algo.n_steps=128", "algo.batch_size=256", "algo.n_epochs=4"),
    "slow": ("env=benchmark_parallel:Slow-v0", "core=gru", "n_envs=16", "algo.n_steps=128", "algo.batch_size=512"),
}
QUICK = ("algo.n_steps=16", "algo.batch_size=64")
ROLLOUTS = 5  # of a run; the first one is not counted
WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "one process": ((), ()),
    "two processes": (TORCHRUN, ()),
    "processes=true": ((), ("processes=true",)),
}


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A simulator whose step keeps a processor busy for a while."""

    def __init__(self, **kwargs: Any):
        super().__init__(gymnasium.make("CartPole-v1", **kwargs))

    def step(self, action: Any) -> Any:
        ends = time.process_time() + WORK
        while time.process_time() < ends:
            pass
        return super().step(action)


gymnasium.register("Slow-v0", f"{__name__}:Slow")


def speed(world: str, way: str, quick: bool, threads: int) -> float:
    """Steps per second from the end of the first rollout to the end of the last one: all updates but the last."""
    arguments = WORLDS[world] + (QUICK if quick else ())
    sizes = dict(argument.split("=") for argument in arguments)
    steps, rollouts = int(sizes["n_envs"]) * int(sizes["algo.n_steps"]), 2 if quick else ROLLOUTS
    starter, more = WAYS[way]
    own = (f"total_timesteps={steps * rollouts}", f"num_threads={threads}", "checkpoint_every=null", "name=run", "device=cpu")
    folders = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        called = [sys.executable, *starter, "-m", "rmc_rl.train", *arguments, *own, *more]
        ended = subprocess.run(called, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"error: a run of '{world}' by {way} has failed: {ended.stderr.strip()[-1000:]}")
        (path,) = Path(folder).glob("runs/*/*/run/progress.csv")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    # the seconds that SB3 logs are whole; the steps per second since the start are whole as well, but larger
    seconds = [float(row["time/total_timesteps"]) / float(row["time/fps"]) for row in rows]
    return steps * (rollouts - 1) / (seconds[-1] - seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--quick", action="store_true", help="one round of two short rollouts, to see that it runs")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    about = f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores"
    print(f"{about}, torch's threads in each process: {arguments.threads}, rounds: {rounds}\n")
    print("| world | trained by | steps/s | times one process |\n| --- | --- | --- | --- |")
    for world in arguments.worlds:
        ways = [way for way in WAYS if way != "processes=true" or world == "slow"]  # copies of Atari step together
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                found[way].append(speed(world, way, arguments.quick, arguments.threads))
        for way in ways:
            ratios = np.array(found[way]) / np.array(found["one process"])
            times = "1" if way == "one process" else f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"
            print(f"| {world} | {way} | {np.median(found[way]):,.0f} | {times} |", flush=True)


if __name__ == "__main__":
    main()
