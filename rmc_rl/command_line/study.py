"""
A study of :mod:`rmc_rl.tune` that many processes, on one or several machines, share: Optuna's journal, and who works on what.

    <study>/journal.log    all trials, by Optuna; optuna-dashboard reads it
    <study>/workers/       a file for each process that works on the study, which it touches every ``HEARTBEAT`` seconds
    <study>/runs/          the runs of all trials, <env>/<core>/trial-<number>-seed<k>
    <study>/output/        what each run printed
    <study>/tuned/best.yaml  the best trial, for ``--config-dir=<study> +tuned=best``

A trial whose process has stopped or died, also by ``kill -9``, is marked as failed, and a new trial with the same values takes
its runs and goes on with them. Optuna itself retries such trials with a database only, not with a journal.
"""

import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

if sys.platform != "win32":
    import fcntl

from rmc_rl.errors import UsageError

JOURNAL = "journal.log"
NAME = "rmc_rl"  # of the study in the journal: there is one
HEARTBEAT, DEAD_AFTER = 10, 60  # seconds
PATIENCE = 20  # seconds that the process that made the study has to say what it is about
SETTINGS, WORKER, SURPLUS, RUNS_OF, GOES_ON_WITH = "settings", "worker", "surplus", "runs_of", "goes_on_with"  # attributes


def open_study(
    folder: Path, settings: Mapping[str, Any], first: Mapping[str, Any], pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """
    Open a study, or make it.

    :param folder: of the study
    :param settings: what must be the same in every process: plain data
    :param first: the values of the first trial of a new study, as Optuna stores them; the others are drawn
    :param pruner: ends trials
    :raises UsageError: if the folder cannot be written to, the journal cannot be read, or the study has other settings
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / JOURNAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(str(path))
        _mend(path, lock)
        backend = JournalFileBackend(str(path), lock_obj=lock)
    except (OSError, ValueError) as error:
        raise UsageError(f"study must be a folder that can be written to, got '{folder}': {error}") from None
    try:
        storage = JournalStorage(backend)
        try:
            study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize", pruner=pruner)
        except DuplicatedStudyError:
            study = optuna.load_study(storage=storage, study_name=NAME, pruner=pruner)
            _check_settings(folder, _settings_of(study, settings), settings)
        else:
            study.set_user_attr(SETTINGS, dict(settings))
            study.enqueue_trial(dict(first))
    except UsageError:
        raise
    except Exception as error:  # whatever a damaged line leads to
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"the study's journal must be one that Optuna can read, got '{path}': {why}") from None
    return study


def _mend(path: Path, lock: JournalFileOpenLock) -> None:
    """Cut a line that a process did not finish when it died: the next one would be appended to it."""
    if not path.exists():
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _settings_of(study: optuna.Study, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a study that exists; another process may be about to write them."""
    until = time.monotonic() + PATIENCE
    while SETTINGS not in study.user_attrs and time.monotonic() < until:
        time.sleep(0.1)
    if SETTINGS not in study.user_attrs:  # that process was killed
        study.set_user_attr(SETTINGS, dict(settings))
    found: Mapping[str, Any] = study.user_attrs[SETTINGS]
    return found


def _check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a study goes on with what it began with."""
    for key in dict.fromkeys([*before, *now]):
        found, given = before.get(key), now.get(key)
        if found == given:
            continue
        if isinstance(found, dict) and isinstance(given, dict):
            key, found, given = next(
                (f"{key}: {name}", found.get(name), given.get(name))
                for name in sorted({*found, *given})
                if found.get(name) != given.get(name)
            )
        raise UsageError(f"{key} must be {found!r}, as in the study '{folder}', got {given!r}; study=<folder> makes a new one")


class Worker:
    """
    This process as the others see it: a file that it locks and touches every ``HEARTBEAT`` seconds, inside ``with``.

    :param folder: of the study
    """

    def __init__(self, folder: Path):
        self.folder = folder / "workers"
        self.name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._ended = threading.Event()

    def __enter__(self) -> "Worker":
        self.folder.mkdir(exist_ok=True)
        self._file = (self.folder / self.name).open("a")
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._file.close()
        with suppress(OSError):
            (self.folder / self.name).unlink()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with suppress(OSError):  # a disk that is full, or away for a while
                os.utime(self.folder / self.name)

    def is_alive(self, name: str) -> bool:
        """
        Whether a process works on the study.

        On this machine the system tells at once, by the lock. Of another machine the file must have been touched within
        ``DEAD_AFTER`` seconds, on the clock of the file system.

        :param name: of its file
        """
        path = self.folder / name
        try:
            if sys.platform != "win32" and name.startswith(f"{platform.node()}-") and name != self.name:
                with path.open("a") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return True
                    path.unlink(missing_ok=True)
                    return False
            os.utime(self.folder / self.name)
            return (self.folder / self.name).stat().st_mtime - path.stat().st_mtime < DEAD_AFTER
        except OSError:
            return False


def retry_dead(study: optuna.Study, worker: Worker) -> list[int]:
    """
    Mark the trials whose process has died, and queue them again.

    :param study: the study
    :param worker: this process
    :return: the numbers of these trials
    """
    found = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = trial.user_attrs.get(WORKER)
        if name is None:  # its process writes its name right after it has taken the trial
            age = (datetime.now() - (trial.datetime_start or datetime.now())).total_seconds()
            alive = age < DEAD_AFTER
        else:
            alive = name == worker.name or worker.is_alive(name)
        if not alive and requeue(study, trial.number):
            found.append(trial.number)
    return found


def requeue(study: optuna.Study, number: int) -> bool:
    """
    Mark a trial as failed, and queue a new one that goes on with its runs.

    :param study: the study
    :param number: of a trial that was stopped, or whose process has died
    :return: False if another process has done so
    """
    trial = study.trials[number]
    try:
        study.tell(number, state=TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):
        return False
    values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    study.enqueue_trial(values, user_attrs={RUNS_OF: runs_of(trial), GOES_ON_WITH: number})
    return True


def runs_of(trial: FrozenTrial | optuna.Trial) -> int:
    """
    The number in the names of a trial's runs: that of the trial that began them.

    :param trial: the trial
    """
    return int(trial.user_attrs.get(RUNS_OF, trial.number))


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """
    The trials that count: those that run or have ended by themselves.

    :param trials: all of the study
    """
    again = {each.user_attrs.get(GOES_ON_WITH) for each in trials}
    waiting = TrialState.WAITING
    return [each for each in trials if each.state != waiting and each.number not in again and SURPLUS not in each.user_attrs]


def take_trial(study: optuna.Study, worker: Worker, num_trials: int) -> optuna.Trial | None:
    """
    Take the next trial.

    :param study: the study
    :param worker: this process
    :param num_trials: of the whole study
    :return: None if the study has them all
    """
    if len(counted(study.get_trials(deepcopy=False))) >= num_trials:
        return None
    trial = study.ask()
    trial.set_user_attr(WORKER, worker.name)
    before = [each for each in counted(study.get_trials(deepcopy=False)) if each.number < trial.number]
    if len(before) < num_trials:
        return trial
    trial.set_user_attr(SURPLUS, True)  # another process took the last one at the same moment
    study.tell(trial, state=TrialState.FAIL)
    return None


def seeded_sampler(seed: int, number: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """
    The sampler of a trial: its numbers follow from the trial's, so that no two processes draw the same.

    :param seed: of the study
    :param number: of the trial
    :param startup_trials: that are drawn at random
    """
    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=drawn, n_startup_trials=startup_trials, constant_liar=True)


class TakenOver(Exception):
    """Another process goes on with a trial of this one, which slept for longer than ``DEAD_AFTER``."""


@contextmanager
def taken_over() -> Iterator[None]:
    """
    Find out whether a trial that is reported or told inside a ``with`` block still is that of this process.

    :raises TakenOver: if it is not
    """
    try:
        yield
    except (UpdateFinishedTrialError, ValueError) as error:
        if isinstance(error, UpdateFinishedTrialError) or str(error).startswith("Cannot tell a"):
            raise TakenOver from error
        raise


def make_pruner(name: str, after: int) -> optuna.pruners.BasePruner:
    """
    What ends hopeless trials.

    :param name: "median" or "none"
    :param after: so many finished trials
    """
    return optuna.pruners.MedianPruner(n_startup_trials=after) if name == "median" else optuna.pruners.NopPruner()
