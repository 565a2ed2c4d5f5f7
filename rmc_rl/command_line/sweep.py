"""
Sweeps (``-m``): many jobs from one command line, one after the other or, with one of Hydra's launchers, side by side.

A job that fails does not stop the others. What a job prints goes to a file; the terminal gets one line for each job. In the
folder of a sweep, ``hydra.sweep.dir``, lie

    multirun.yaml       the command line, by Hydra
    sweep.json          when the sweep began, how many jobs it has, whether one runs after the other
    stop                the number of the signal that asked the sweep to stop; only then
    <number>/job.json   what became of a job: :class:`Job`
    <number>/output.txt what it printed

The jobs of some launchers run in other processes, perhaps on other machines: they know the sweep by its folder alone, and the
process that started it reads there what became of them.
"""

import json
import logging
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rmc_rl.command_line import progress
from rmc_rl.command_line.costs import duration
from rmc_rl.command_line.overrides import as_typed, given_key
from rmc_rl.command_line.progress import say
from rmc_rl.command_line.signals import StopSignals, requeue_signal
from rmc_rl.runs.folder import written_whole

DONE, FAILED, STOPPED, WAITING = "done", "failed", "stopped", "not started"
SHOWN = 200  # characters of an error in the line of a job
LOOK_SECONDS = 1.0  # between two looks at what became of the jobs in other processes


@dataclass
class Job:
    """
    What became of a job.

    :param number: 0 for the first one
    :param overrides: its arguments ``key=value``, as typed
    :param state: "done", "failed", "stopped" by a signal, or "not started" because the sweep was stopped before
    :param status: exit status
    :param error: the line that says why it failed
    :param seconds: wall clock
    :param told: what the verb told of it: :data:`rmc_rl.command_line.progress.told`
    """

    number: int
    overrides: list[str]
    state: str = WAITING
    status: int = 0
    error: str = ""
    seconds: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """
    A sweep.

    :param folder: its folder
    """

    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        """The content of ``sweep.json``; empty if it is missing."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "sweep.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def job_folder(self, number: int) -> Path:
        """The folder of a job."""
        return self.folder / str(number)

    def jobs(self) -> list[Job]:
        """The jobs that have ended, in the order of their numbers."""
        found = []
        for path in self.folder.glob("*/job.json"):
            with suppress(OSError, ValueError, TypeError):  # of a process that was killed
                found.append(Job(**json.loads(path.read_text())))
        return sorted(found, key=lambda job: job.number)

    def stop(self, number: int) -> None:
        """
        Ask all jobs to stop, each with a checkpoint.

        :param number: of the signal
        """
        with suppress(OSError):
            (self.folder / "stop").write_text(str(int(number)))

    def stopped_by(self) -> int | None:
        """The number of the signal that asked the sweep to stop; None: it goes on."""
        try:
            return int((self.folder / "stop").read_text() or 0)
        except (OSError, ValueError):
            return None


class _Signals(StopSignals):
    """The signals of a sweep whose jobs run in other processes: they are told by a file."""

    def __init__(self, sweep: Sweep):
        super().__init__()
        self.sweep = sweep

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.ignore()
            raise KeyboardInterrupt
        self.sweep.stop(signum)
        super()._receive(signum, frame)


class _Reporter(threading.Thread):
    """
    Prints a line for each job of a sweep whose jobs run in other processes.

    :param sweep: the sweep
    """

    def __init__(self, sweep: Sweep):
        super().__init__(daemon=True)
        self.sweep, self.terminal = sweep, sys.stdout  # a job that runs in this process redirects sys.stdout
        self._ended = threading.Event()
        self._seen: dict[int, Job] = {}

    def run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Print the lines of the jobs that ended since the last look; a job that was queued again gets another one."""
        state = self.sweep.state
        for job in self.sweep.jobs():
            if job.state != WAITING and self._seen.get(job.number) != job:
                self._seen[job.number] = job
                with suppress(OSError):  # the terminal was closed
                    print(_line(self.sweep, state, job), file=self.terminal, flush=True)

    def close(self) -> None:
        """Print the last lines."""
        self._ended.set()
        self.join()
        self.look()


_running: Sweep | None = None  # the sweep that this process has started
_signals: _Signals | None = None
_reporter: _Reporter | None = None


class SweepStart(Callback):
    """
    Writes ``sweep.json`` when Hydra starts a sweep.

    :param num_jobs: of the sweep; None: only its sweeper knows
    """

    def __init__(self, num_jobs: int | None = None):
        self.num_jobs = num_jobs

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _running, _signals, _reporter
        for name in ("hydra", "hydra_plugins"):  # whose launchers list all jobs
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        one_by_one = str(config.hydra.launcher.get("_target_")).endswith("BasicLauncher")
        state = {"started": time.time(), "num_jobs": self.num_jobs, "one_by_one": one_by_one}
        (folder / "sweep.json").write_text(json.dumps(state))
        _running = Sweep(folder)
        how = "one after the other" if one_by_one else "side by side"
        jobs = "jobs" if self.num_jobs is None else f"{self.num_jobs} job{'s' * (self.num_jobs != 1)}"
        say(f"sweep: {jobs}, {how}; what each prints is in {folder}/<number>/output.txt")
        if not one_by_one:
            _signals = _Signals(_running)
            _signals.__enter__()
            _reporter = _Reporter(_running)
            _reporter.start()


def current_sweep() -> Sweep | None:
    """The sweep that the present job belongs to; None: there is none, or :class:`SweepStart` did not start it."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    sweep = Sweep(Path(HydraConfig.get().sweep.dir))
    return sweep if sweep.state else None


def is_sweeping() -> bool:
    """Whether this process has started a sweep that has not ended."""
    return _running is not None


def sweep_stamp() -> str | None:
    """The time at which the present sweep began, as it is written in the names of its runs; None outside a sweep."""
    sweep = current_sweep()
    found = None if sweep is None else re.fullmatch(r"\d{8}-\d{6}", sweep.folder.name)
    return None if found is None else found[0]


def stopped_by() -> int | None:
    """The number of the signal that asked the sweep of the present job to stop; None: it goes on, or there is none."""
    sweep = current_sweep()
    return None if sweep is None else sweep.stopped_by()


def should_stop() -> bool:
    """Whether the present job belongs to a sweep that was asked to stop."""
    return stopped_by() is not None


def run_job(sweep: Sweep, work: Callable[[], int]) -> None:
    """
    Run a job of a sweep: its output goes to a file, its end to ``job.json``, and one line to the terminal.

    If submitit stopped the job and ``resume=auto`` stands on the command line, submitit then queues the job again.

    :param sweep: the sweep
    :param work: runs the verb, tells of mistakes and returns the exit status
    """
    hydra_config, state = HydraConfig.get(), sweep.state
    lines: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    job = Job(int(hydra_config.job.num), [as_typed(line) for line in lines])
    terminal, started = (sys.stdout, sys.stderr), time.monotonic()
    folder = sweep.job_folder(job.number)
    folder.mkdir(parents=True, exist_ok=True)
    here = is_sweeping()
    if not here:
        # a terminal sends Ctrl-C to all processes; the one that started the sweep tells the others by a file
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sweep.stopped_by() is None:
        progress.told.clear()
        title = f"{job.number + 1}/{state.get('num_jobs') or '?'}"
        bar = progress.bar_in_sweep(terminal[1] if here and terminal[1].isatty() else None, title)
        with (folder / "output.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file), bar:
            try:
                job.status = work()
            except Exception as error:  # a mistake in this program, or in the user's environment
                traceback.print_exc()
                job.status, job.error = 1, f"{type(error).__name__}: {' '.join(str(error).split())}"
        job.told = dict(progress.told)
        job.error = job.told.pop("error", job.error)
        job.state = DONE if job.status == 0 else STOPPED if job.status > 128 else FAILED
        if job.state == STOPPED and here:  # a signal to this process
            sweep.stop(job.status - 128)
        job.seconds = time.monotonic() - started
    with written_whole(folder / "job.json") as written:
        written.write(json.dumps(asdict(job)).encode())
    if job.state != WAITING and state.get("one_by_one"):  # of the others the process that started them prints it
        say(_line(sweep, state, job))
    if job.state == STOPPED and job.status - 128 == requeue_signal() and "resume=auto" in job.overrides:
        with suppress(Exception):  # submitit has queued it as often as it may: the job stays stopped
            signal.raise_signal(job.status - 128)


def _line(sweep: Sweep, state: dict[str, Any], job: Job) -> str:
    """The line that the terminal gets when a job has ended."""
    total, ended = state.get("num_jobs"), [each for each in sweep.jobs() if each.state != WAITING]
    parts = [f"{job.number + 1}/{total or '?'}  {label(job, sweep)}:"]
    if job.state == FAILED:
        error = job.error if len(job.error) <= SHOWN else f"{job.error[:SHOWN]} ..."
        parts.append(f"FAILED: {error or f'status {job.status}'};")
    else:
        parts.append(f"{job.told.get('result', job.state)};" if job.state == DONE else f"{job.state};")
    parts.append(duration(job.seconds))
    if total is not None and len(ended) < total and sweep.stopped_by() is None:
        rest = (time.time() - state["started"]) / len(ended) * (total - len(ended))
        parts.append(f"({len(ended)} of {total} ended, about {duration(rest)} to go)")
    return " ".join(parts)


def label(job: Job, sweep: Sweep | None = None) -> str:
    """
    The arguments of a job that the person at the terminal tells it by: those that vary.

    :param job: the job
    :param sweep: whose ``multirun.yaml`` tells which arguments vary; None: all arguments
    """
    keys = None if sweep is None else swept_keys(sweep)
    shown = [line for line in job.overrides if not keys or given_key(line) in keys]
    return " ".join(line.removeprefix("env_kwargs.") for line in shown)


def swept_keys(sweep: Sweep) -> list[str]:
    """The keys that have several values in a sweep."""
    try:
        lines = OmegaConf.load(sweep.folder / "multirun.yaml").hydra.overrides.task
    except (OSError, AttributeError):
        return []
    # a value of a sweep is a list without brackets, or a function such as range
    return [given_key(line) for line in lines if _is_swept(line.partition("=")[2])]


def _is_swept(value: str) -> bool:
    """Whether an argument's value is one of Hydra's sweeps: commas outside brackets and quotes, or a function."""
    if re.match(r"(choice|range|interval|glob|sort|shuffle|tag)\(", value):
        return True
    bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", value)
    while (shorter := re.sub(r"\[[^\[\]{}()]*\]|\{[^\[\]{}()]*\}|\([^\[\]{}()]*\)", "", bare)) != bare:
        bare = shorter
    return "," in bare


def end_sweep(again: str | None, at_end: Callable[[Sequence[Job]], None] | None) -> int:
    """
    Tell the person how the sweep of this process ended; does nothing if it has not started one.

    :param again: the command line that goes on with the sweep; None: the verb cannot go on
    :param at_end: tells what follows from the jobs that are done, and from those that failed as far as they came
    :return: exit status: 0; 1 if a job failed; 128 and the number of the signal that stopped the sweep
    """
    global _running, _signals, _reporter
    sweep, signals, reporter, _running, _signals, _reporter = _running, _signals, _reporter, None, None, None
    if signals is not None:
        signals.__exit__()
    if reporter is not None:
        reporter.close()
    if sweep is None:
        return 0
    jobs, state = sweep.jobs(), sweep.state
    done, failed = ([job for job in jobs if job.state == wanted] for wanted in (DONE, FAILED))
    total = state.get("num_jobs") or len(jobs)
    cpu = sum(job.told.get("cpu_seconds", 0.0) for job in jobs)
    wall = time.time() - state.get("started", time.time())
    say(f"sweep: {len(done)} of {total} done in {duration(wall)} ({duration(cpu)} of the processor)")
    if at_end is not None:
        at_end(done + failed)
    for job in failed:
        why = job.error or f"status {job.status}"
        say(f"failed: {job.number + 1}/{total} {label(job, sweep)}: {why} ({sweep.job_folder(job.number) / 'output.txt'})")
    for job in jobs:
        if job.state == STOPPED and job.status - 128 != sweep.stopped_by():
            say(f"stopped: {job.number + 1}/{total} {label(job, sweep)}: by {signal.Signals(job.status - 128).name}")
    number = sweep.stopped_by()
    if number is not None:
        say(f"stopped by {signal.Signals(number).name}, {total - len(done) - len(failed)} not done")
    if len(done) < total and again is not None:
        say(f"to go on: {again}")
    return 128 + number if number is not None else 1 if len(done) < total else 0


def with_resume(command: str, arguments: Sequence[str]) -> str:
    """
    The command line that goes on with a sweep.

    :param command: how the verb is run
    :param arguments: its arguments as they were typed
    """
    more = [] if any(argument.startswith("resume=") for argument in arguments) else ["resume=auto"]
    return f"{command} {shlex.join([*arguments, *more])}"
