"""
How fast cores are: python scripts/benchmark_cores.py [--threads 2] [--cores rmc] [--episodes 32] [--acting] [--device cuda]

Forward and backward over a sequence, each core with its kernel (where it has one), in eager torch, and torch's own LSTM of
256 beside it, in turn within each round: a machine that others use as well is slow now and fast then. Microseconds per step
(median over the rounds) and ratios within a round (median, and the range). With --episodes, episodes of that mean length start
inside the sequence, but in torch's LSTM, which knows none.

"Bound" is the time that the matrix products alone would take at the rate of a large one in torch, measured in the same run:
their floating-point operations, counted in eager torch, over that rate. A kernel whose products are better than torch's can
be below it. With --acting: one step without gradients, as in a rollout. With --device cuda: "graph" is eager torch captured
as a CUDA graph, for fixed shapes, where that is possible. There each row has a process of its own, because a capture that
fails leaves torch's generator of random numbers unusable.
"""

import argparse
import functools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rmc_rl.agents.cores import Core, core_class, core_names, make_core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.command_line.devices import keep_freed_memory

INPUT = 64  # features per step
LSTM_WIDTH = 256  # sb3-contrib's default
COUNTED_STEPS = 4
PEAK_SIZE, PEAK_TRIES = 1024, 20  # rows and columns of the product that sets the rate


@dataclass
class Sized:
    """A core of one size: a row of the table."""

    core: str
    batch: int
    size: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def has_kernel(self, device: str) -> bool:
        """Whether a fused kernel is available on a device."""
        return dispatch.report("native", core_class(self.core).kernel_family, torch.device(device).type).startswith("native")

    def make(self, kernel: str, device: str) -> Core:
        choice = dict(kernel=kernel) if core_class(self.core).kernel_family else {}
        return make_core(self.core, INPUT, {**self.kwargs, **choice}).to(device)


def rmc(width: int, batch: int) -> Sized:
    return Sized("rmc", batch, f"{width}", dict(num_slots=4, num_heads=4, head_size=width // 4))


# RIMs as wide as the LSTM beside it: 6 modules of 43 numbers, and the sizes of attention in the authors' code
WIDE_RIMS = dict(module_size=43, input_key_size=64, read_size=172, comm_key_size=32, comm_value_size=32)
DEFAULT_SIZED = (
    *("mingru", "lru", "aft", "linear_attention", "delta_net", "attention", "nbrc", "titans"),
    *("gtrxl", "ntm", "framestack", "memoryless"),
)
ROWS = [
    *(rmc(width, batch) for width, batch in ((64, 8), (64, 64), (128, 16), (256, 16), (256, 64))),
    *(
        Sized(name, batch, f"{width}", dict(width=width))
        for name in ("lstm", "gru")
        for width in (64, 256)
        for batch in (8, 64)
    ),
    *(Sized("rims", batch, "6 of 16") for batch in (8, 64)),
    *(Sized("rims", batch, "6 of 43", WIDE_RIMS) for batch in (8, 64)),
    *(Sized("brims", batch, "6 of 16, 3 of 32") for batch in (8, 64)),
    *(Sized(name, batch, "default") for name in DEFAULT_SIZED for batch in (8, 64)),
]


def peak(device: str) -> float:
    """Floating-point operations per second of a large matrix product."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device) for _ in range(2))
    return 2 * PEAK_SIZE**3 / min(seconds(lambda: left @ right) for _ in range(PEAK_TRIES))


def seconds(run: Callable[[], Any]) -> float:
    wait: Callable[[], Any] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


def training(core: Core, batch: int, steps: int, episodes: int = 0, graph: bool = False) -> Callable[[], None]:
    """Forward and backward over a sequence, with gradients of the inputs as well: there are features below a core."""
    state = core.initial_state(batch).contiguous()
    inputs = torch.randn(steps, batch, INPUT, device=state.device, requires_grad=True)
    weights = torch.randn(steps, batch, core.output_size, device=state.device)
    starts = [torch.rand(steps, batch, device=state.device) < 1 / episodes] if episodes else []
    forward: Callable[..., Any] = torch.cuda.make_graphed_callables(core, (inputs, state, *starts)) if graph else core

    def run() -> None:
        forward(inputs, state, *starts)[0].backward(weights)

    return run


def acting(core: Core, batch: int, steps: int, _: int = 0, graph: bool = False) -> Callable[[], None]:
    """Steps without gradients, one call of forward each, as an agent acts."""
    state = core.initial_state(batch).detach().contiguous()
    inputs = torch.randn(1, batch, INPUT, device=state.device)
    step: Callable[[], Any] = torch.no_grad()(lambda: core(inputs, state))
    if graph:
        step()  # what is set up at a first call cannot be captured
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        step = captured.replay

    def run() -> None:
        for _ in range(steps):
            step()

    return run


def torch_lstm(batch: int, steps: int, gradients: bool, device: str) -> Callable[[], None]:
    """What a core is compared with: torch's own LSTM, without resets."""
    lstm = nn.LSTM(INPUT, LSTM_WIDTH, device=device)
    inputs = torch.randn(steps if gradients else 1, batch, INPUT, device=device, requires_grad=gradients)
    weights = torch.randn(steps, batch, LSTM_WIDTH, device=device)

    def train() -> None:
        lstm(inputs)[0].backward(weights)

    @torch.no_grad()
    def act() -> None:
        for _ in range(steps):
            lstm(inputs)

    return train if gradients else act


def operations(row: Sized, gradients: bool) -> float:
    """Of the matrix products of one step, counted in eager torch."""
    core = row.make("eager", "cpu")
    if row.core in ("lstm", "gru"):  # step by step: torch's kernels for sequences hide their products
        core.forward = functools.partial(Core.forward, core)  # type: ignore[method-assign]
    run = (training if gradients else acting)(core, row.batch, COUNTED_STEPS)
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / COUNTED_STEPS


def ratio(above: list[float], below: list[float]) -> str:
    found = [a / b for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(found):.2f} [{min(found):.2f}, {max(found):.2f}]"


def measure(row: Sized, rounds: int, steps: int, gradients: bool, device: str, episodes: int) -> None:
    """Print a row of the table."""
    run = training if gradients else acting
    names = ["eager", *(["native"] if row.has_kernel(device) else [])]
    contenders = {kernel: run(row.make(kernel, device), row.batch, steps, episodes) for kernel in names}
    if device != "cpu":
        try:
            contenders["graph"] = run(row.make("eager", device), row.batch, steps, episodes, graph=True)
        except RuntimeError as error:  # a core that reads numbers on the host, for example where episodes start
            print(f"{row.core}, {row.size}: no CUDA graph: {str(error).splitlines()[0]}", file=sys.stderr)
    contenders["lstm"] = torch_lstm(row.batch, steps, gradients, device)
    bound = operations(row, gradients) / peak(device) * 1e6
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            found = seconds(contender) / steps * 1e6
            if number > 0:  # the first one allocates
                times[name].append(found)
    columns = ["eager", "native", *(["graph"] if device != "cpu" else []), "lstm"]
    middle = " | ".join(f"{statistics.median(times[name]):,.0f}" if name in times else "" for name in columns)
    fastest = times.get("native", times["eager"])
    others = [times.get(name) for name in columns if name != "native"]
    against = " | ".join("" if found in (None, fastest) else ratio(found, fastest) for found in others)
    print(f"| {row.core} | {row.size} | {row.batch} | {bound:,.0f} | {middle} | {against} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=128, help="of a sequence")
    parser.add_argument("--cores", nargs="+", default=list(dict.fromkeys(row.core for row in ROWS)), choices=core_names())
    parser.add_argument("--episodes", type=int, default=0, help="mean length of episodes; 0: none starts in the sequence")
    parser.add_argument("--acting", action="store_true", help="one step without gradients instead of a sequence with them")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as in training
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    where = f"{arguments.threads} threads" if arguments.device == "cpu" else torch.cuda.get_device_name(arguments.device)
    about = f"{where}, {arguments.rounds} rounds, {arguments.steps} steps"
    episodes = f"episodes {arguments.episodes or 'endless'}"
    print(
        f"{versions}, {about}, {episodes}; kernel: {dispatch.report('native', 'rmc', torch.device(arguments.device).type)}\n"
    )
    others = ["eager", *(["graph"] if arguments.device != "cpu" else []), f"LSTM ({LSTM_WIDTH})"]
    names = ["core", "size", "batch", "bound", "eager", "native", *others[1:], *(f"times {name}" for name in others)]
    print(f"| {' | '.join(names)} |")
    print("| --- " * len(names) + "|")
    how = (arguments.rounds, arguments.steps, not arguments.acting, arguments.device, arguments.episodes)
    for row in ROWS:
        if row.core not in arguments.cores:
            continue
        if arguments.device == "cpu":
            measure(row, *how)
        else:
            with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
                pool.submit(measure, row, *how).result()


if __name__ == "__main__":
    main()
