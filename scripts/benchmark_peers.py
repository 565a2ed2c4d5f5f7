"""
How long each project takes to a result: python scripts/benchmark_peers.py [--tasks copy cartpole] [--peers ours rl_games] ...

Trains recurrent PPO of several projects on the same two tasks, each in a virtual environment of its own, which is made from
pinned versions (scripts/peers/pins, for Python 3.11) when it is first needed (--environments). Runs alternate: every peer
once, then every peer again with the next seed. What a run found goes to --out as JSON as soon as it is there, and is not run
again; what failed is tried again. --table prints what is there and runs nothing.

"copy": 4 symbols, length 3, delay 5, 64 copies, threshold 0.95, 1,000,000 steps. "cartpole": CartPole without velocities, 8
copies, threshold 475, 150,000 steps. The worlds are those of scripts/peers/worlds.py for all, in NumPy (memorax: the same in
JAX), and so is the clock. "recommended" are a project's own settings for such a task, "matched" the same width, rollout, rate,
epochs, minibatch and losses for all (scripts/peers/common.py); the files in scripts/peers say what could not be matched.

The table: steps per second after the first update; return at the end, the mean of the last 100 training episodes; seconds from
the start of the process until that mean reaches the threshold; peak memory; seconds until the first update is done, with
imports and compilation. Medians over seeds and the range; a seed that never reached the threshold counts as infinitely slow.

Each process has --threads threads, and on Linux as many cores. PyTorch comes from wherever pip finds it: for one without CUDA
set PIP_INDEX_URL or PIP_FIND_LINKS. The environments take some GB.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from arguments import at_least_one

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TORCH = "torch==2.13.0"
SETTINGS = ("recommended", "matched")
GRACE = 120.0  # seconds beyond --limit, after which a run that hangs is killed
MIB = 1024**2
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
COLUMNS = (
    *("task", "settings", "peer", "steps/s", "return at the end", "seconds to the threshold", "peak MiB"),
    "seconds to the first update",
)

Results = dict[str, dict[str, Any]]  # "task/settings/peer/seed" -> what a run found


class FailedError(Exception):
    """A peer cannot be installed or run; the reason, in one line."""


class Peer(NamedTuple):
    """A project."""

    module: str  # in scripts/peers
    installed: tuple[tuple[str, ...], ...]  # arguments of one pip install after the other; none: the Python of this script
    variant: str = ""  # of the adapter


PEERS = {
    "ours": Peer("ours", ()),
    "ours-rmc": Peer("ours", (), "rmc"),
    "sb3-contrib": Peer("sb3_contrib", ((TORCH,), ("stable-baselines3==2.9.2", "sb3-contrib==2.9.2"))),
    "rl_games": Peer("rl_games", ((TORCH,), ("rl_games==1.6.5",))),
    "sample-factory": Peer("sample_factory", ((TORCH,), ("sample-factory==2.1.1",))),
    "memorax": Peer("memorax", (("memorax==1.0.1", "gymnax==1.0.1"),)),
    "sheeprl": Peer("sheeprl", ((TORCH,), ("sheeprl==0.8.4",))),
    "torchrl": Peer("torchrl", ((TORCH,), ("torchrl==0.14.1",))),
    # it demands torch 2.9.0 with CUDA for its kernel of advantages, for which the adapter has another
    "pufferlib-core": Peer(
        "pufferlib_core",
        (
            (TORCH, "numpy", "gymnasium", "psutil", "rich", "rich-argparse", "nvidia-ml-py", "pyro-ppl", "setuptools"),
            ("--no-deps", "pufferlib-core==3.0.23"),
        ),
    ),
}


class Task(NamedTuple):
    """A row of the table; the same numbers as in scripts/peers/common.py."""

    title: str
    steps: int
    quick: int  # steps of --quick: some rollouts
    threshold: float


TASKS = {
    "copy": Task("copy", 1_000_000, 40_960, 0.95),
    "cartpole": Task("CartPole without velocities", 150_000, 8_192, 475),
}


# Environments


def last_line(path: Path) -> str:
    """The line of a log that says what went wrong."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return " ".join((errors or lines or ["no output"])[-1].split())[:300]


def environment(name: str, folder: Path) -> Path:
    """
    The Python of a peer; its environment is made where it is missing or of other versions.

    :param name: of the peer
    :param folder: of all environments
    :raises FailedError: if it cannot be installed
    """
    steps = PEERS[name].installed
    if not steps:
        return Path(sys.executable)
    home, log = folder / name, folder / f"{name}.log"
    python, marker, wanted = home / "bin" / "python", home / "installed.txt", "\n".join(map(" ".join, steps)) + "\n"
    if marker.exists() and marker.read_text() == wanted:
        return python
    print(f"installing {name} into {home}", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    pins = HERE / "peers" / "pins" / f"{name}.txt"  # of what the peer itself depends on; a bare torch would be another one
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--constraint", str(pins)]
    with log.open("w") as output:
        for command in [[sys.executable, "-m", "venv", str(home)], *([*pip, *step] for step in steps)]:
            if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=clean(), check=False).returncode:
                raise FailedError(f"cannot be installed: {last_line(log)}")
    marker.write_text(wanted)
    return python


def clean() -> dict[str, str]:
    """The variables of this process, without those that let a peer see our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


# Runs


def key_of(task: str, settings: str, peer: str, seed: int) -> str:
    """The name of a run's result."""
    return f"{task}/{settings}/{peer}/{seed}"


def play(key: str, python: Path, steps: int, threads: int, limit: float) -> dict[str, Any]:
    """
    Train one peer once.

    :param key: see :func:`key_of`
    :param python: of its environment
    :param steps: of all copies
    :param threads: of the process
    :param limit: seconds, after which it ends as it is
    :return: what it found
    :raises FailedError: if it failed
    """
    task, settings, name, seed = key.split("/")
    peer = PEERS[name]
    began = time.monotonic()
    command = [str(python), "-m", f"peers.{peer.module}", "--task", task, "--settings", settings, "--seed", seed]
    command += [f"--variant={peer.variant}", f"--steps={steps}", f"--threads={threads}", f"--limit={limit}"]
    # ours is run from this checkout, the others see nothing of it but scripts/peers
    path = [str(HERE), str(ROOT)] if not peer.installed else [str(HERE)]
    variables = clean() | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    variables |= dict.fromkeys(THREADS, str(threads))
    variables |= {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": "", "HYDRA_FULL_ERROR": "1"}
    found: dict[str, Any] = {"asked": steps, "load": os.getloadavg()[0], "curve": []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, f"--began={began}"],
                cwd=folder,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,
            )
            assert process.stdout is not None
            timer = threading.Timer(limit + GRACE, os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            try:
                for line in process.stdout:
                    read_line(line, found)
            finally:
                timer.cancel()
                kill_group(process.pid)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
        if "steps" not in found:
            ended = f"ended with status {process.returncode}" if process.returncode >= 0 else "was killed"
            raise FailedError(f"{ended}: {last_line(log)}")
    found["peak_mib"] = usage.ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
    return found


def kill_group(pid: int) -> None:
    """End what a run may have left behind. It has said its result, or it has failed."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def read_line(line: str, found: dict[str, Any]) -> None:
    """Take a line of an adapter into what its run found."""
    said = json.loads(line)
    found["curve"] += [said["progress"]] if "progress" in said else []
    found |= {"versions": said["versions"]} if "versions" in said else said.get("result", {})


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = models[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        processor = platform.processor() or platform.machine()
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
        commit += "+" if subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True).strip() else ""
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"commit": commit, "processor": processor, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}


def read_results(path: Path) -> Results:
    """What is stored."""
    if not path.exists():
        return {}
    try:
        found: Results = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        refuse(f"{path} must be JSON that this script wrote: {error}")
    return found


def write_results(path: Path, found: Results) -> None:
    """Store everything, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    new.replace(path)


def pin(threads: int) -> None:
    """Let this process and all that it starts use as many cores as threads, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def measure(arguments: argparse.Namespace) -> None:
    """Run what is asked for and not there yet."""
    found, failed, about = read_results(arguments.out), {}, machine() | {"threads": arguments.threads}
    pythons: dict[str, Path] = {}
    for name in arguments.peers:
        try:
            pythons[name] = environment(name, arguments.environments)
        except FailedError as error:
            failed[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
    pin(arguments.threads)
    runs = [
        (seed, task, settings, name)
        for seed in range(arguments.rounds)
        for task in arguments.tasks
        for settings in arguments.settings
        for name in arguments.peers
    ]
    for number, (seed, task, settings, name) in enumerate(runs, 1):
        key = key_of(task, settings, name, seed)
        if "steps" in found.get(key, {}):
            continue
        steps = TASKS[task].quick if arguments.quick else TASKS[task].steps
        print(f"{number} of {len(runs)}: {key}", file=sys.stderr)
        try:
            if name in failed:
                raise FailedError(failed[name])
            result = play(key, pythons[name], arguments.steps or steps, arguments.threads, arguments.limit)
        except FailedError as error:
            result = {"failed": str(error)}
            print(f"{key}: {error}", file=sys.stderr)
        found[key] = result | about
        write_results(arguments.out, found)


# The table


def median(values: Sequence[float]) -> float:
    """The middle one; of an even number the larger of the two in the middle, so that infinity stays what it is."""
    return sorted(values)[len(values) // 2]


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """A median and the range of several values."""
    shown = [show(value) for value in (median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def seconds(value: float) -> str:
    """Seconds with about three digits."""
    return "never" if math.isinf(value) else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def row(task: str, settings: str, name: str, runs: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """
    A peer's row.

    :param runs: of all seeds
    :return: what rows are sorted by, the seconds to the threshold, and the row
    """
    good = [run for run in runs if "steps" in run]
    if not good:
        reason = str(runs[-1]["failed"]).replace("|", "/")
        return math.inf, f"| {TASKS[task].title} | {settings} | {name} | not run: {reason} | | | | |"
    times = [math.inf if run["reached_seconds"] is None else run["reached_seconds"] for run in good]
    ends = [math.nan if run["mean_return"] is None else run["mean_return"] for run in good]
    version = next(iter(good[0].get("versions", {}).values()), "") if PEERS[name].installed else ""
    digits = 3 if TASKS[task].threshold < 1 else 0
    reached = sum(map(math.isfinite, times))
    cells = [
        *(TASKS[task].title, settings, f"{name} {version}".strip()),
        spread([run.get("steps_per_second") or 0.0 for run in good], lambda value: f"{value:,.0f}"),
        spread(ends, lambda value: f"{value:.{digits}f}") + cut_off(good),
        spread(times, seconds) + (f" ({reached} of {len(runs)})" if reached < len(runs) else ""),
        spread([run["peak_mib"] for run in good], lambda value: f"{value:,.0f}"),
        spread([run.get("first_update_seconds") or math.inf for run in good], seconds),
    ]
    return median(times), f"| {' | '.join(cells)} |"


def cut_off(runs: Sequence[dict[str, Any]]) -> str:
    """How far the runs came, where their time was over before their steps."""
    fewest = min(run["steps"] for run in runs)
    return f" after {fewest:,} steps" if fewest < runs[0]["asked"] else ""


def table(found: Results) -> list[str]:
    """The lines of the table, and below it what the figures belong to."""
    names = {key: key.rsplit("/", 1)[0] for key in found}
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |"]
    for task in TASKS:
        for settings in SETTINGS:
            groups = {name: [found[key] for key in found if names[key] == f"{task}/{settings}/{name}"] for name in PEERS}
            rows = [row(task, settings, name, runs) for name, runs in groups.items() if runs]
            lines += [text for _, text in sorted(rows, key=lambda each: ("not run" in each[1], each[0]))]
    return lines if not found else [*lines, "", provenance(found)]


def provenance(found: Results) -> str:
    """One line: commits, hardware, rounds and load."""

    def every(name: str) -> str:
        return ", ".join(sorted({str(run[name]) for run in found.values() if name in run}))

    seeds = len({key.rsplit("/", 1)[1] for key in found})
    loads = [run["load"] for run in found.values() if "load" in run] or [math.nan]
    where = f"{every('processor')}, {every('cores')} cores, threads of a process: {every('threads')}"
    load = f"load when a run began {min(loads):.1f} to {max(loads):.1f}"
    return f"Commit {every('commit')}, {every('date')}; {where}; rounds: {seeds}; {load}."


def page(folder: Path) -> str:
    """
    What docs/peers.md includes.

    :param folder: with the JSON files that were measured
    """
    found: Results = {}
    for path in sorted(folder.glob("*.json")):
        found |= read_results(path)
    return "\n".join(table(found) if found else ["Not measured yet."]) + "\n"


# The command line


def refuse(message: str) -> NoReturn:
    """A mistake of the user: one line, and status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """Mistakes get one line."""

    def error(self, message: str) -> NoReturn:
        refuse(message)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--rounds", type=at_least_one, default=3, help="seeds, from 0; default: 3")
    parser.add_argument("--threads", type=at_least_one, default=1, help="of each process; default: 1")
    parser.add_argument("--steps", type=at_least_one, help="default: those of each task")
    parser.add_argument("--limit", type=at_least_one, default=1800, help="seconds of a run; default: 1800")
    parser.add_argument("--quick", action="store_true", help="few steps and one round, to see that everything runs")
    parser.add_argument("--environments", type=Path, default=Path("runs/peers/environments"), help="their folder")
    parser.add_argument("--out", type=Path, help="default: runs/peers/results.json, with --quick runs/peers/quick.json")
    parser.add_argument("--table", action="store_true", help="print what is stored and run nothing")
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path("runs/peers") / ("quick.json" if arguments.quick else "results.json")
    arguments.environments = arguments.environments.absolute()
    if arguments.quick:
        arguments.rounds = 1
    if arguments.threads > (os.cpu_count() or 1):
        refuse(f"--threads must be at most {os.cpu_count()}, the processors here, got {arguments.threads}")
    if arguments.table:
        if not arguments.out.exists():
            refuse(f"--out must be a file that this script wrote, got {arguments.out}")
    else:
        try:
            measure(arguments)
        except KeyboardInterrupt:
            sys.exit(130)
    print("\n".join(table(read_results(arguments.out))))


if __name__ == "__main__":
    main()
