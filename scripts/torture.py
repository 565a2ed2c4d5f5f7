"""
Stop training in every bad way, resume it, and compare with a run that was never stopped: scripts/torture [--quick] [--seed 0]

Each run is a process of its own, forked from this one, which has imported torch already. It is stopped

* by ``kill -9``: at a random moment, or immediately before a random operation on a file (open, rename, delete, sync),
* by SIGTERM, SIGINT, SIGUSR1 and SIGHUP in turn, at a random moment,
* by a full disk: a small file system where one may be mounted, otherwise a limit on the size of files,
* by the death of a worker process (``processes=true``),

and started again with ``resume=auto``, until it has ended. Nothing is lost if each stop leaves only whole checkpoints and a
model that loads, if a resumed run repeats at most the steps between two checkpoints (none after a signal), and if
``progress.csv`` (without times), the policy, the optimizer and the random generators are at the end, bit for bit, those of a
run with the same seed that was never stopped. Atari cannot save its emulators: its episodes start again, so that only the rows
before the first resume are equal.

The script prints a table and ends with status 1 if anything was lost. ``--quick`` takes about a minute. ``--cost`` measures
instead how long a checkpoint takes, beside 250,000 steps of the small copy task and of Pong.
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from rmc_rl import RecurrentPPO, load_policy, train
from rmc_rl.runs.checkpoint import Checkpoints, find_checkpoints

LONGEST = 600.0  # seconds until a process counts as one that hangs
STEPS, TIMES = "time/total_timesteps", ("time/fps", "time/time_elapsed")
EQUAL_PARTS = ("policy.pt", "optimizer.pt", "random.pt")  # of the last checkpoint; progress.pt holds times
FILE_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
DISK = 64 << 20  # bytes of the small file system, enough for the runs of a case
MASKED = "MaskedCounting-v0"


class Masked(gymnasium.Env[np.ndarray, np.int64]):
    """Each step forbids one action, drawn from the environment's generator; episodes have random lengths."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action != self.forbidden
        return self._observe(), float(action), bool(self.np_random.random() < 0.1), False, {}

    def action_masks(self) -> np.ndarray:
        mask: np.ndarray = np.arange(3) != self.forbidden
        return mask

    def _observe(self) -> np.ndarray:
        self.forbidden = int(self.np_random.integers(3))
        return np.asarray(self.np_random.uniform(-1, 1, 2), dtype=np.float32)


if MASKED not in gymnasium.registry:  # a forked process imports this file again
    gymnasium.register(MASKED, "torture:Masked")


@dataclass(frozen=True)
class Case:
    """
    A training run.

    :param name: as the table shows it
    :param arguments: of the command line
    :param kills: how often it is killed
    :param exact: whether the environment can be saved
    """

    name: str
    arguments: tuple[str, ...]
    kills: int
    exact: bool = True


EVERY, TOTAL = 176, 1320  # steps: checkpoints after every second rollout, and 15 rollouts
SMALL = ("n_envs=4", "algo.n_steps=22", "algo.batch_size=44", "algo.n_epochs=1", f"total_timesteps={TOTAL}")
COMMON = ("device=cpu", f"checkpoint_every={EVERY}")
COPY = ("env_kwargs.n_symbols=4", "env_kwargs.length=3", "env_kwargs.delay=5", *SMALL)
RMC = ("core=rmc", "core.num_heads=2", "core.head_size=4")
RIMS = ("core=rims", "core.num_modules=3", "core.num_active=2", "core.module_size=4")
GTRXL = ("core=gtrxl", "core.num_layers=1", "core.num_heads=2", "core.head_size=4", "core.memory_length=4")
LSTM = ("core=lstm", "core.width=8")
CARTPOLE = ("env=CartPole-v1", "normalize=true", *SMALL, *LSTM)
PONG = ("env=ALE/Pong-v5", "n_envs=4", "algo.n_steps=22", "algo.batch_size=44", "algo.n_epochs=1", f"total_timesteps={TOTAL}")
ONE, TWO = "num_threads=1", "num_threads=2"
CASES = {
    case.name: case
    for case in (
        Case("copy rmc", (*COPY, *RMC, ONE), 12),
        Case("copy rmc, 2 threads", (*COPY, *RMC, TWO), 8),
        Case("copy rims, separate critic", (*COPY, *RIMS, "policy.critic=separate", ONE), 8),
        Case("copy gtrxl, memoryless critic", (*COPY, *GTRXL, "policy.critic=memoryless", ONE), 8),
        Case("copy lstm, previous action", (*COPY, *LSTM, "policy.previous_action_reward=true", ONE), 8),
        Case("copy rmc, imitation", (*COPY, *RMC, "algo=imitation", ONE), 8),
        Case("cartpole lstm, normalised", (*CARTPOLE, ONE), 12),
        Case("cartpole lstm, processes", (*CARTPOLE, "n_envs=2", "algo.n_steps=44", "processes=true", TWO), 12),
        Case("masks rims", (f"env={MASKED}", *SMALL, *RIMS, ONE), 8),
        Case("pendulum rmc, gSDE", ("env=Pendulum-v1", *SMALL, *RMC, "algo.use_sde=true", ONE), 8),
        Case("pong rmc", (*PONG, *RMC, TWO), 12, exact=False),
    )
}
QUICK = {"copy rmc": 3, "cartpole lstm, normalised": 2}  # kills of --quick


class Stop(NamedTuple):
    """How the process of a run is stopped; the first field that is given counts."""

    after: float | None = None  # seconds
    at_operation: int | None = None  # on a file: the process kills itself before it


class Outcome(NamedTuple):
    """How a process ended: status (minus the number of a signal that killed it), what it printed, seconds."""

    status: int
    printed: str
    seconds: float


@dataclass
class Count:
    """A row of the table."""

    kind: str
    case: str
    stops: int = 0
    runs: int = 0
    repeated: int = 0  # at most, in steps
    lost: list[str] = field(default_factory=list)


class Process:
    """
    ``python -m rmc_rl.train`` in a forked process.

    :param arguments: of the command line
    :param folder: in which it works
    :param at_operation: it kills itself before this operation on a file; 0: it writes the number of operations to a file
    """

    def __init__(self, arguments: tuple[str, ...], folder: Path, at_operation: int | None = None):
        self.log = Path(tempfile.mkstemp(".log", dir=folder)[1])
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(arguments, folder, self.log, at_operation)
        self.status: int | None = None

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self, seconds: float = LONGEST, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it has ended, until something is true, or some seconds; returns whether it has ended."""
        deadline = time.monotonic() + seconds
        while not self.poll() and not until() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.status is not None

    def kill(self) -> None:
        """End it without notice, as ``kill -9`` does."""
        if not self.poll():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def end(self) -> Outcome:
        """Wait until it has ended; one that hangs is killed, which its printed text tells."""
        hangs = not self.wait()
        self.kill()
        assert self.status is not None
        printed = self.log.read_text(errors="replace") + ("\nhangs" if hangs else "")
        return Outcome(1 if hangs else self.status, printed, time.monotonic() - self.started)


def _run(arguments: tuple[str, ...], folder: Path, log: Path, at_operation: int | None) -> None:
    """The life of a forked process."""
    status = 70
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(folder)
        multiprocessing.set_forkserver_preload(["rmc_rl"])  # worker processes start sooner
        if at_operation is not None:
            _count_operations(at_operation, log.with_suffix(".operations"))
        sys.argv = ["train.py", *COMMON, *arguments]
        train.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _count_operations(last: int, path: Path) -> None:
    """Count operations on files, and end this process before one of them; 0: keep the count in a file."""
    count, ours = 0, os.getpid()
    counter = path.open("w") if last == 0 else None
    fsync = os.fsync

    def operation() -> None:
        nonlocal count
        if os.getpid() != ours:
            return
        count += 1
        if counter is not None:
            counter.seek(0)
            counter.write(str(count))
            counter.flush()
        if count == last:
            os.kill(ours, signal.SIGKILL)

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS or (event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR)):
            operation()

    def synced(handle: Any) -> None:
        operation()
        fsync(handle)

    sys.addaudithook(hook)
    os.fsync = synced  # type: ignore[assignment] # no audit event of its own


@dataclass(frozen=True)
class Whole:
    """
    A run that was never stopped.

    :param path: its folder
    :param seconds: that its process took
    :param operations: on files
    """

    path: Path
    seconds: float
    operations: int


def find_run(folder: Path, name: str) -> Path | None:
    """The folder of a run by its name; None: it was killed before it had one."""
    return next(iter(folder.glob(f"runs/*/*/{name}")), None)


@cache
def whole_run(case: Case, work: Path) -> Whole:
    """Train a case without a stop, once."""
    folder = Path(tempfile.mkdtemp(dir=work))
    process = Process((*case.arguments, "name=whole"), folder, at_operation=0)
    outcome, path = process.end(), find_run(folder, "whole")
    if outcome.status or path is None:
        raise SystemExit(f"{case.name} does not train:\n{outcome.printed}")
    return Whole(path, outcome.seconds, int(process.log.with_suffix(".operations").read_text()))


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of a run's progress file without times; the last one may be cut."""
    path = run / "progress.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def steps_logged(run: Path | None) -> int:
    """The steps at the last row of a run's progress file."""
    found = rows(run) if run is not None else []
    return int(float(found[-1][STEPS])) if found else 0


def check_stopped(run: Path | None, count: Count, at_most: int) -> int:
    """Check what a stop has left in a run's folder; returns the steps at which the run will go on."""
    if run is None:
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a checkpoint that is damaged is skipped with a warning
        try:
            found = find_checkpoints(run / "checkpoints")
        except UserWarning as warning:
            count.lost.append(str(warning))
            return 0
    steps = found[0].steps if found else 0
    repeated = steps_logged(run) - steps
    count.repeated = max(count.repeated, repeated)
    if repeated > at_most:
        count.lost.append(f"{run}: {repeated} steps are repeated")
    for which in ("model.zip", "best/model.zip"):
        if (run / which).exists():
            try:
                load_policy(run / which, trust=True)
            except Exception as error:
                count.lost.append(f"{run}: {which} does not load: {error}")
    return steps


def check_ended(run: Path | None, whole: Path, count: Count, equal_until: int | None = None) -> None:
    """
    Compare a run that has ended with one that was never stopped.

    :param equal_until: the steps until which the rows are equal; None: all of the run is equal
    """
    count.runs += 1
    if run is None:
        count.lost.append("the run has no folder")
        return
    found, expected = rows(run), rows(whole)
    if [row[STEPS] for row in found] != [row[STEPS] for row in expected]:
        count.lost.append(f"{run}: rows of progress.csv are missing or twice there")
    last, other = find_checkpoints(run / "checkpoints")[0], find_checkpoints(whole / "checkpoints")[0]
    if equal_until is None:
        if found != expected:
            count.lost.append(f"{run}: progress.csv differs")
        for part in EQUAL_PARTS:
            if last.manifest["files"][part] != other.manifest["files"][part]:
                count.lost.append(f"{run}: {part} differs")
        saved, weights = (load_policy(path, trust=True).state_dict() for path in (whole, run))
        if any(not torch.equal(saved[name], weights[name]) for name in saved):
            count.lost.append(f"{run}: model.zip differs")
        return
    if "episodes are started again" not in last.inexact.get("environment", ""):
        count.lost.append(f"{run}: the manifest does not say that it is not exact")
    equal = [row for row in expected if int(row[STEPS]) <= equal_until]
    columns = equal[0].keys() if equal else ()
    if [{name: row.get(name, "") for name in columns} for row in found[: len(equal)]] != equal:
        count.lost.append(f"{run}: progress.csv differs before the first resume")


def kill_case(case: Case, kills: int, whole: Whole, folder: Path, generator: random.Random) -> Count:
    """Kill runs of a case again and again, until they have ended."""
    count = Count("kill -9", case.name)
    while count.stops < kills:
        name = f"run{count.runs}"
        arguments = (*case.arguments, f"name={name}", "resume=auto")
        equal_until: int | None = None
        while True:
            after, at_operation = None, None
            if count.stops < kills:
                if generator.random() < 0.5:
                    after = generator.uniform(0, whole.seconds)
                else:
                    at_operation = generator.randint(1, whole.operations)
            process = Process(arguments, folder, at_operation)
            if after is not None:
                process.wait(after)
                process.kill()
            outcome, run = process.end(), find_run(folder, name)
            if outcome.status != -signal.SIGKILL:
                break
            count.stops += 1
            steps = check_stopped(run, count, EVERY)
            if not case.exact and equal_until is None and steps:
                equal_until = steps
        if outcome.status or "Traceback" in outcome.printed:
            count.runs += 1
            count.lost.append(f"{case.name}: status {outcome.status}:\n{outcome.printed[-1000:]}")
            return count
        check_ended(run, whole.path, count, equal_until)
    return count


class Trouble(NamedTuple):
    """
    A way to stop a run that it notices.

    :param kind: as the table shows it
    :param begin: causes the trouble, and returns the statuses with which the process must end
    :param end: removes the cause
    :param says: what the process must print
    """

    kind: str
    begin: Callable[[Process], int]
    end: Callable[[], None]
    says: str


def trouble_case(case: Case, number: int, trouble: Trouble, whole: Whole, folder: Path, generator: random.Random) -> Count:
    """Stop runs of a case in a way that they notice, once each, and go on with them."""
    count = Count(trouble.kind, case.name)
    for _ in range(number):
        while True:  # a run that ends before it is stopped does not count
            name = f"{trouble.kind.split()[0]}{count.stops}-{generator.randrange(10**6)}"
            arguments = (*case.arguments, f"name={name}", "resume=auto")
            process = Process(arguments, folder)
            process.wait(until=lambda name=name: steps_logged(find_run(folder, name)) > 0)  # type: ignore[misc]
            process.wait(generator.uniform(0, 0.7 * whole.seconds))
            if process.poll():
                expected, outcome = 0, process.end()
            else:
                expected, outcome = trouble.begin(process), process.end()
                trouble.end()
            if outcome.status != 0:
                break
        count.stops += 1
        run = find_run(folder, name)
        check_stopped(run, count, 0 if expected > 128 else EVERY)
        lines = [line for line in outcome.printed.splitlines() if line.startswith("error: ")]
        answered = outcome.status == expected and trouble.says in outcome.printed and "Traceback" not in outcome.printed
        if not answered or len(lines) > 1:
            count.lost.append(f"{case.name}: {trouble.kind}, status {outcome.status}:\n{outcome.printed[-1000:]}")
        outcome = Process(arguments, folder).end()
        if outcome.status:
            count.runs += 1
            count.lost.append(f"{case.name}: resumed, status {outcome.status}:\n{outcome.printed[-1000:]}")
            continue
        check_ended(run, whole.path, count)
    return count


def signals() -> Trouble:
    """The signals that stop a run, in turn; Ctrl-C reaches its worker processes as well, as in a terminal."""
    numbers = itertools.cycle(SIGNALS)

    def send(process: Process) -> int:
        number = next(numbers)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        return 128 + number

    return Trouble("signals", send, lambda: None, "stopped by SIG")


def dead_worker(generator: random.Random) -> Trouble:
    """The death of a worker process."""

    def kill(process: Process) -> int:
        workers = [worker for server in children(process.pid) for worker in children(server)]
        with suppress(IndexError, ProcessLookupError):  # the run has ended meanwhile
            os.kill(generator.choice(workers), signal.SIGKILL)
        return 1

    return Trouble("dead worker", kill, lambda: None, "a process of the environment has died")


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def full_disk(folder: Path, generator: random.Random) -> Trouble:
    """A file system that is full, except for a few bytes."""
    filler = folder / "filler"

    def fill(_process: Process) -> int:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(filler, max(0, filler.stat().st_size - generator.choice((0, 4096, 40_960))))
        return 1

    return Trouble("full disk", fill, filler.unlink, "No space left")


def file_size_limit(generator: random.Random) -> Trouble:
    """A limit on the size of files."""

    def limit(process: Process) -> int:
        size = generator.choice((6_000, 12_000, 24_000))  # above what is printed, below a checkpoint's largest file
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
        return 1

    return Trouble("full disk (limit on files)", limit, lambda: None, "File too large")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A small file system in memory; None if it may not be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def torture(quick: bool, seed: int, only: list[str], work: Path) -> list[Count]:
    """
    Stop runs in all ways.

    :param quick: a few times each
    :param seed: of the moments
    :param only: kinds of stops and runs whose names have one of these words; empty: all
    :param work: an empty folder
    """
    counts: list[Count] = []

    def wanted(*names: str) -> bool:
        return not only or any(word in name for word in only for name in names)

    def tell(count: Count) -> None:
        counts.append(count)
        lost = "".join(f"\n  lost: {text}" for text in count.lost)
        print(
            f"{count.kind}: {count.case}: {count.stops} stops, {count.runs} runs, {count.repeated} steps repeated{lost}",
            flush=True,
        )

    def folder() -> Path:
        return Path(tempfile.mkdtemp(dir=work))

    for name, number in (QUICK if quick else {name: case.kills for name, case in CASES.items()}).items():
        if wanted("kill -9", name):
            tell(kill_case(CASES[name], number, whole_run(CASES[name], work), folder(), random.Random(f"{seed} {name}")))
    generator = random.Random(seed)
    plain, worker = CASES["copy rmc"], CASES["cartpole lstm, processes"]
    plans = [
        (plain, len(SIGNALS) if quick else 12, signals()),
        (worker, 0 if quick else 8, signals()),
        (plain, 1 if quick else 5, file_size_limit(generator)),
        (worker, 1 if quick else 10, dead_worker(generator)),
    ]
    for case, number, trouble in plans:
        if number and wanted(trouble.kind, case.name):
            tell(trouble_case(case, number, trouble, whole_run(case, work), folder(), generator))
    if wanted("full disk", plain.name):
        with small_disk(folder()) as disk:
            if disk is None:
                print("full disk: no file system may be mounted here; the limit on the size of files stands for it")
            else:
                trouble = full_disk(disk, generator)
                tell(trouble_case(plain, 1 if quick else 5, trouble, whole_run(plain, work), disk, generator))
    return counts


def table(counts: list[Count]) -> str:
    """What happened, as a table."""
    lines = [
        "| stopped by | run | stops | runs that ended | steps repeated, at most | lost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for count in counts:
        cells = (count.kind, count.case, count.stops, count.runs, count.repeated, len(count.lost))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


COSTS = {
    "small copy task": ("env_kwargs.n_symbols=4", "env_kwargs.length=3", "env_kwargs.delay=5", "total_timesteps=102400"),
    "Pong": ("env=ALE/Pong-v5", "algo.n_steps=32", "total_timesteps=5120"),  # a short rollout, to save often
}
SAVES = 20


def cost(work: Path) -> str:
    """
    How long a checkpoint takes, model.zip included, beside the steps between two of them.

    :param work: an empty folder
    """
    lines = [
        "| run | one save: wall, CPU | checkpoint | 250,000 steps: wall, CPU | share: wall, CPU |",
        "| --- | --- | --- | --- | --- |",
    ]
    save, learn = Checkpoints.save, RecurrentPPO.learn
    saves: list[tuple[float, float]] = []
    trained: list[tuple[float, float]] = []

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def measured_save(self: Checkpoints) -> Path:
        started = now()
        path = save(self)
        saves.append((now()[0] - started[0], now()[1] - started[1]))
        return path

    def measured_learn(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = now()
        found = learn(self, *args, **kwargs)
        trained.append((now()[0] - started[0], now()[1] - started[1]))
        return found

    Checkpoints.save, RecurrentPPO.learn = measured_save, measured_learn  # type: ignore[method-assign]
    for name, arguments in COSTS.items():
        saves.clear()
        every = int(arguments[-1].partition("=")[2]) // SAVES
        sys.argv = ["train.py", *arguments, f"checkpoint_every={every}", f"runs_dir={work / name}", "num_threads=1"]
        train.main()
        (folder,) = (work / name).glob("*/*/*/checkpoints")
        last = find_checkpoints(folder)[0]
        size = sum(file.stat().st_size for file in last.path.iterdir())
        one = [statistics.median(times) for times in zip(*saves, strict=True)]
        all_saves = [sum(times) for times in zip(*saves, strict=True)]
        steps = [250_000 / last.steps * (times - saving) for times, saving in zip(trained[-1], all_saves, strict=True)]
        lines.append(
            f"| {name} | {1000 * one[0]:.0f} ms, {1000 * one[1]:.0f} ms | {size / 1e6:.1f} MB | {steps[0]:,.0f} s, "
            f"{steps[1]:,.0f} s | {one[0] / steps[0]:.2%}, {one[1] / steps[1]:.2%} |"
        )
    Checkpoints.save, RecurrentPPO.learn = save, learn  # type: ignore[method-assign]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few stops of each kind, about a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="runs and kinds of stops with such a word")
    parser.add_argument("--cost", action="store_true", help="measure how long a checkpoint takes instead")
    parser.add_argument("--json", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no threads before a fork
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as work:
        if arguments.cost:
            print(cost(Path(work)))
            return
        counts = torture(arguments.quick, arguments.seed, arguments.only, Path(work))
    print(f"\n{table(counts)}\n")
    stops, lost = sum(count.stops for count in counts), sum(len(count.lost) for count in counts)
    print(f"{stops} stops, {lost} lost, {(time.monotonic() - started) / 60:.1f} minutes")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([vars(count) for count in counts], indent=1) + "\n")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
