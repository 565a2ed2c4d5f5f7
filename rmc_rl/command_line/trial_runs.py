"""The runs of a trial of :mod:`rmc_rl.tune`: each is trained in a process of its own, which the pruner may end."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmc_rl.errors import UsageError
from rmc_rl.runs.folder import Run
from rmc_rl.runs.records import learning_curve
from rmc_rl.studies.statistics import interquartile_mean

LOOK_EVERY = 0.5  # seconds between two looks at a run's curve
LOCK_PATIENCE = 600  # seconds that the process of a trial that was killed may take to stop
EVALUATIONS, RETURNS = "eval/mean_reward", "rollout/ep_rew_mean"  # columns of progress.csv


class RunFailed(Exception):
    """A run did not end well. The message is the line that says why."""


class Pruned(Exception):
    """The pruner has ended the trial."""


class Interrupted(Exception):
    """A signal has ended the trial; its runs can go on."""


@dataclass(frozen=True)
class TrialRuns:
    """
    The runs of a trial, one after the other.

    :param folder: of the study
    :param env: the environment's id
    :param core: the core's name
    :param number: in the names of the runs
    :param seeds: of the runs
    :param arguments: of ``rmc_rl.train`` for all of them
    :param metric: the column of ``progress.csv`` whose last value is the result of a run
    :param total_timesteps: of each run
    :param report_every: steps of a run between two reports
    :param report: takes the steps of all runs so far and a mean return; returns whether to prune
    :param should_stop: whether a signal asks to stop
    :param show: takes the steps of all runs so far
    """

    folder: Path
    env: str
    core: str
    number: int
    seeds: Sequence[int]
    arguments: Sequence[str]
    metric: str
    total_timesteps: int
    report_every: int
    report: Callable[[int, float], bool]
    should_stop: Callable[[], bool]
    show: Callable[[int], None]

    def train(self) -> list[float]:
        """
        Train the runs, or go on with them.

        :return: the return that each seed has reached: the last value of its learning curve
        :raises RunFailed: if one of them failed
        :raises Pruned: if the pruner has ended the trial
        :raises Interrupted: by a signal
        """
        results: list[float] = []
        for seed in self.seeds:
            run = Run.named(self.folder / "runs", self.env, self.core, f"trial-{self.number}-seed{seed}")
            output = self.folder / "output" / f"{run.path.name}.txt"
            self._wait_for(run)
            self._train(run, seed, output, results)
            try:
                results.append(float(learning_curve(run, self.metric)[2, -1]))
            except UsageError as error:
                raise RunFailed(str(error)) from None
        return results

    def _train(self, run: Run, seed: int, output: Path, results: Sequence[float]) -> None:
        command = self._command(seed, run.path.name)
        output.parent.mkdir(exist_ok=True)
        with output.open("a") as file:
            # a session of its own: Ctrl-C at the terminal is for the study, which then ends the run
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=os.name == "posix"
            )
            try:
                self._watch(process, run, results)
            except BaseException:
                process.kill()  # unless it has ended
                raise
            finally:
                with suppress(OSError):
                    process.stdin.close()  # type: ignore[union-attr]
                process.wait()
        if process.returncode:
            raise RunFailed(f"{_reason(output, process.returncode)} ({output})")

    def _command(self, seed: int, name: str) -> list[str]:
        own = [f"seed={seed}", f"runs_dir={self.folder / 'runs'}", f"name={name}", "resume=auto"]
        return [sys.executable, "-m", "rmc_rl.command_line.child", "train", *self.arguments, *own]

    def _watch(self, process: "subprocess.Popen[bytes]", run: Run, results: Sequence[float]) -> None:
        """Report until the process ends, or end it."""
        reported, ended = 0, False
        while not ended:
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY)
            ended = process.poll() is not None  # before the curve is read, so that its last row is seen
            if self.should_stop():
                _stop(process)
                raise Interrupted
            curve = self._curve(run)
            steps = int(curve[0, -1]) if curve.shape[1] else 0
            self.show(len(results) * self.total_timesteps + min(steps, self.total_timesteps))
            # the end of the last run is no report: the trial has its result then
            while reported + self.report_every <= min(steps, self.total_timesteps - 1):
                reported += self.report_every
                until = curve[2, curve[0] <= reported]
                if not len(until):
                    continue  # no episode had ended
                value = float(interquartile_mean(np.array([*results, until[-1]])))
                if self.report(len(results) * self.total_timesteps + reported, value):
                    _stop(process)
                    raise Pruned

    def _curve(self, run: Run) -> np.ndarray:
        try:
            return learning_curve(run, self.metric)
        except UsageError:  # nothing yet
            return np.empty((3, 0))

    def _wait_for(self, run: Run) -> None:
        """Wait until the process of a trial that was killed has stopped."""
        until = time.monotonic() + LOCK_PATIENCE
        while run.path.is_dir():
            if self.should_stop():
                raise Interrupted
            try:
                with run.locked():
                    return
            except UsageError as error:
                if time.monotonic() > until:
                    raise RunFailed(str(error)) from None
                time.sleep(LOOK_EVERY)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a run to stop with a checkpoint, and wait until it has."""
    with suppress(OSError):
        process.terminate()
    process.wait()


def _reason(output: Path, status: int) -> str:
    """The line that says why a run failed."""
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    how = f"killed by signal {-status}" if status < 0 else f"status {status}"
    return errors[-1] if errors else f"{how}: {lines[-1]}" if lines and status > 0 else how
