"""
Speed of the worlds: python scripts/benchmark_envs.py [--copies 1 64 1024] [--device cuda --copies 65536] [--worlds ...]

The first table shows the steps per second of all copies of each world of rmc_rl/* together: random actions that were drawn
before, with observations and resets, medians over the rounds. The second table shows the nearest public environments that are
installed (pip install minigrid popgym), one copy of each without changes, and how many times as fast the batched world is:
median and range over the rounds.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from rmc_rl.envs import WORLDS

SECONDS = 0.5  # of each measurement
N_ACTIONS = 64  # batches of actions, which are repeated

# the public environment, the module that registers it, and the world that is the same or nearest
PUBLIC = [
    ("MiniGrid-MemoryS11-v0", "minigrid", "rmc_rl/MemoryRoom-v0"),
    ("popgym-RepeatFirstEasy-v0", "popgym", "rmc_rl/Copy-v0"),
    ("popgym-RepeatPreviousEasy-v0", "popgym", "rmc_rl/RepeatPrevious-v0"),
    ("popgym-AutoencodeEasy-v0", "popgym", "rmc_rl/Autoencode-v0"),
    ("popgym-ConcentrationEasy-v0", "popgym", "rmc_rl/Concentration-v0"),
]


def rate(step: Callable[[int], None], synchronise: Callable[[], None]) -> float:
    """Calls per second."""
    step(0)
    synchronise()
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        for _ in range(10):
            step(calls % N_ACTIONS)
            calls += 1
        synchronise()
    return calls / (time.perf_counter() - begin)


def batched(world_id: str, copies: int, device: str) -> Callable[[], float]:
    """A function that measures the steps per second of copies of a world."""
    world = gymnasium.make_vec(world_id, num_envs=copies, device=device, array="torch")
    world.reset(seed=0)
    world.action_space.seed(0)
    actions = [torch.as_tensor(world.action_space.sample(), device=device) for _ in range(N_ACTIONS)]
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    return lambda: copies * rate(lambda index: void(world.step(actions[index])), synchronise)


def single(env: gymnasium.Env[Any, Any]) -> Callable[[], float]:
    """A function that measures the steps per second of one environment, including its resets."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(N_ACTIONS)]

    def step(index: int) -> None:
        _, _, terminated, truncated, _ = env.step(actions[index])
        if terminated or truncated:
            env.reset()

    return lambda: rate(step, lambda: None)


def void(_: object) -> None:
    """Discard a result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS), metavar="ID")
    parser.add_argument("--copies", nargs="+", type=int, default=[1, 64, 1024])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} threads"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {where}, {arguments.rounds} rounds\n")
    print("| world | " + " | ".join(f"{copies:,} copies" for copies in arguments.copies) + " |")
    print("| --- |" + " --- |" * len(arguments.copies))
    for world_id in arguments.worlds:
        measures = [batched(world_id, copies, arguments.device) for copies in arguments.copies]
        found = np.median([[measure() for measure in measures] for _ in range(arguments.rounds)], axis=0)
        print(f"| `{world_id}` | " + " | ".join(f"{value:,.0f}" for value in found) + " |", flush=True)

    most = max(arguments.copies)
    print(f"\n| public environment | steps per second | nearest world | {most:,} copies, times as fast |")
    print("| --- | --- | --- | --- |")
    for public_id, module, world_id in PUBLIC:
        try:
            env = gymnasium.make(f"{module}:{public_id}")
        except ImportError as error:
            reason = str(error).split(". ")[0]
            print(f"| `{public_id}` | not installed: {reason} | `{world_id}` | |")
            continue
        theirs, ours = single(env), batched(world_id, most, arguments.device)
        rates = np.array([[theirs(), ours()] for _ in range(arguments.rounds)])
        times = rates[:, 1] / rates[:, 0]
        spread = f"{np.median(times):,.0f} [{times.min():,.0f}, {times.max():,.0f}]"
        print(f"| `{public_id}` | {np.median(rates[:, 0]):,.0f} | `{world_id}` | {spread} |", flush=True)


if __name__ == "__main__":
    main()
