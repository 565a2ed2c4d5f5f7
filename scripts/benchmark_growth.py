"""
How cost grows: python scripts/benchmark_growth.py [--axes copies length width parts] [--cores rmc gru rims] [--picture f]

Trains RecurrentPPO on rmc_rl/Copy-v0 (waits so long that no episode ends) and changes one size at a time: copies of the world,
steps of a sequence, width of the memory, slots of an RMC or modules of RIMs. Usual are 64 copies, 32 steps, a width of 64. A
rollout is one sequence of each copy, its update one epoch in minibatches of at most 8,192 transitions.

Columns: steps per second of rollout and update together (median over rounds, the first rollout not counted), those of acting
alone, and the share of the bound: floating-point operations of all matrix products of policy and update, counted in eager
torch (an update as three forward passes), over the rate of a large product, measured in the same run. Memory is what the
process had at most, less what it had before the agent was made; each size runs in a process of its own (Linux). Results go to
--out as JSON; --table and --picture show what is there.
"""

import argparse
import json
import platform
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from arguments import at_least_one
from benchmark_cores import peak
from torch.utils.flop_counter import FlopCounterMode

from rmc_rl import MlpMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.command_line.devices import keep_freed_memory
from rmc_rl.runs.folder import git_commit, written_whole

AXES = {
    "copies": [1, 4, 16, 64, 256, 1024, 4096],
    "length": [8, 32, 128, 512, 1024],
    "width": [32, 64, 128, 256, 512],
    "parts": [1, 2, 4, 8, 16],
}
USUAL = dict(copies=64, length=32, width=64)
CORES = ("rmc", "gru", "rims")
LARGEST_BATCH = 8192  # transitions
CELL = "{0[steps per second]:,.0f} ({0[acting]:,.0f}), {0[share of the bound]:.0%}, {0[megabytes]:,.0f}"
WORLD = dict(n_symbols=8, length=10, delay=50_000)


def core_arguments(core: str, axis: str, size: int) -> dict[str, Any] | None:
    """The arguments that give a core its size; None where the axis is not one of this core."""
    width = size if axis == "width" else USUAL["width"]
    if core == "gru":
        return None if axis == "parts" else dict(width=width)
    if core == "rmc":
        return dict(num_slots=size if axis == "parts" else 4, num_heads=4, head_size=width // 4)
    if axis == "parts":
        return dict(num_modules=size, num_active=max(1, size * 2 // 3))
    return dict(module_size=max(4, width // 4))


def make_agent(core: str, axis: str, size: int, kernel: str = "auto") -> RecurrentPPO:
    """An agent of one size."""
    sizes = USUAL | ({axis: size} if axis in USUAL else {})
    arguments = core_arguments(core, axis, size) or {}
    transitions = sizes["copies"] * sizes["length"]
    policy = dict(core=core, core_kwargs=arguments | dict(kernel=kernel), net_arch=[], ortho_init=False)
    return RecurrentPPO(
        MlpMemoryPolicy,
        make_vec("rmc_rl/Copy-v0", sizes["copies"], seed=0, env_kwargs=WORLD),
        n_steps=sizes["length"],
        sequence_length=sizes["length"],
        batch_size=max(sizes["length"], min(transitions, LARGEST_BATCH)),
        n_epochs=1,
        seed=0,
        device="cpu",
        policy_kwargs=policy,
    )


def operations(core: str, axis: str, size: int) -> float:
    """Of the matrix products of one rollout and its update; the update counts as three forward passes."""
    model = make_agent(core, axis, size, kernel="eager")
    model.policy.requires_grad_(False)  # else the counter asks for a graph that acting does not build
    _, callback = model._setup_learn(model.n_steps * model.n_envs, None)
    assert model.env is not None
    with FlopCounterMode(display=False) as counter:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return 4 * float(counter.get_total_flops())


def resident(field: str) -> int:
    """Bytes of this process in memory, VmRSS, or the most that it had, VmHWM."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def measure(core: str, axis: str, size: int, rounds: int, threads: int) -> dict[str, float]:
    """One point, in a process of its own."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    before = resident("VmRSS")
    model = make_agent(core, axis, size)
    steps = model.n_steps * model.n_envs
    together, acting = [], []
    for number in range(rounds + 1):
        begin = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        took = time.perf_counter() - begin
        _, callback = model._setup_learn(steps, None, False)
        assert model.env is not None
        begin = time.perf_counter()
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        if number > 0:  # the first one allocates
            together.append(took)
            acting.append(time.perf_counter() - begin)
    memory = resident("VmHWM") - before
    bound = operations(core, axis, size) / peak("cpu")
    return {
        "steps per second": steps / statistics.median(together),
        "acting": steps / statistics.median(acting),
        "share of the bound": bound / statistics.median(together),
        "megabytes": memory / 1e6,
    }


def table(found: dict[str, dict[str, Any]], axes: list[str], cores: list[str]) -> list[str]:
    """The results in Markdown, a table for each axis."""
    lines = []
    for axis in axes:
        shown = [core for core in cores if any(f"{axis}/{core}/{size}" in found for size in AXES[axis])]
        titles = [f"{core}: steps/s (acting), bound, MB" for core in shown]
        lines += ["", f"| {axis} | {' | '.join(titles)} |", "| --- " * (1 + len(shown)) + "|"]
        for size in AXES[axis]:
            cells = []
            for core in shown:
                each = found.get(f"{axis}/{core}/{size}")
                cells.append("" if each is None else CELL.format(each))
            lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return lines[1:]


def draw(found: dict[str, dict[str, Any]], axes: list[str], cores: list[str], path: Path) -> None:
    """Steps per second over each size, and dashed what the bound would allow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(axes), 3.2), layout="constrained")
    for axis, place in zip(axes, figure.subplots(1, len(axes), squeeze=False)[0], strict=True):
        for core, colour, marker in zip(cores, ("C0", "C1", "C2", "C3", "C4"), "osD^v", strict=False):
            points = [(size, found[key]) for size in AXES[axis] if (key := f"{axis}/{core}/{size}") in found]
            sizes, rates = [size for size, _ in points], [each["steps per second"] for _, each in points]
            place.plot(sizes, rates, color=colour, marker=marker, label=core)
            bounds = [rate / each["share of the bound"] for rate, (_, each) in zip(rates, points, strict=True)]
            place.plot(sizes, bounds, color=colour, linestyle="--", linewidth=1)
        place.set(xscale="log", yscale="log", xlabel=axis)
        place.set_xticks(AXES[axis], [str(size) for size in AXES[axis]], fontsize="small")
        place.minorticks_off()
        place.grid(alpha=0.3)
    figure.axes[0].set_ylabel("steps per second")
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES), metavar="AXIS", help=", ".join(AXES))
    parser.add_argument("--cores", nargs="+", default=list(CORES), choices=CORES, metavar="CORE", help=", ".join(CORES))
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/growth.json"), help="the results; what is there is not run again"
    )
    parser.add_argument("--picture", type=Path, help="a file for the picture, as in growth.png")
    parser.add_argument("--quick", action="store_true", help="two sizes of each axis, one round")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and measure nothing")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for axis in [] if arguments.table else arguments.axes:
        for size in AXES[axis][1:3] if arguments.quick else AXES[axis]:
            for core in arguments.cores:
                name = f"{axis}/{core}/{size}"
                if name in found or core_arguments(core, axis, size) is None:
                    continue
                rounds = 1 if arguments.quick else arguments.rounds
                with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
                    point = pool.submit(measure, core, axis, size, rounds, arguments.threads).result()
                found[name] = point | dict(git_commit=git_commit(), torch=torch.__version__, threads=arguments.threads)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(arguments.out) as file:
                    file.write(json.dumps(found, indent=1).encode())
                print(name, {key: float(f"{value:.3g}") for key, value in point.items()}, file=sys.stderr, flush=True)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {arguments.threads} threads\n")
    print("\n".join(table(found, arguments.axes, arguments.cores)))
    if arguments.picture:
        draw(found, arguments.axes, arguments.cores, arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
