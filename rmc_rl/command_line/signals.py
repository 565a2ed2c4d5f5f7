"""Signals that ask a verb to stop: it finishes what must not be interrupted, saves the model and ends."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rmc_rl.agents import parallel

# Ctrl-C, `kill`, a terminal that was closed, and what Slurm can send before a time limit; Windows has only the first two
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


STOPPING_SOON = b"\nstopping after this update, with a checkpoint; another signal stops at once\n"
STOPPING_SOON_PATIENTLY = b"\nstopping after this update, with a checkpoint\n"


def requeue_signal() -> int | None:
    """
    The signal at which submitit queues the job that runs in this process again: SIGUSR2, or what ``SUBMITIT_PREEMPT_SIGNAL``
    names. submitit lets Slurm send it before the time limit, and when the job must make room for others.

    :return: None: this process is no job of submitit, or something else handles the signal
    """
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", None)
    if "SUBMITIT_EXECUTOR" not in os.environ or number is None or not callable(signal.getsignal(number)):
        return None
    return int(number)


class Stopped(Exception):
    """The user, or the system, asked training to stop."""


class StopSignals:
    """
    Collects the signals of :data:`STOPPING` inside a ``with`` block.

    The first signal is stored: training ends after the present update, with a checkpoint. A second signal stops at once.
    A signal that was ignored before, as SIGHUP is under ``nohup``, stays ignored. Python sets signal handlers in the main
    thread only; in another thread this class does nothing.

    In a job of submitit, :func:`requeue_signal` is collected too, and a second signal does not stop at once: Slurm may send
    SIGTERM shortly before it.

    :param is_patient: a second signal does not stop at once: a terminal and ``torchrun`` both send one
    """

    def __init__(self, is_patient: bool = False) -> None:
        self.is_patient = is_patient
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._requeue: int | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._requeue = requeue_signal()
            self.is_patient = self.is_patient or self._requeue is not None
            for number in {*STOPPING, *([] if self._requeue is None else [self._requeue])}:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    @property
    def name(self) -> str:
        """The name of the signal that was received."""
        assert self.received is not None
        return signal.Signals(self.received).name

    def should_stop(self) -> bool:
        """Whether a signal was received."""
        return self.received is not None

    def ignore(self) -> None:
        """Ignore further signals, for work that must not be interrupted."""
        self._set(dict.fromkeys(self._before, signal.SIG_IGN))

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        again = self.received is not None
        if again and self.is_patient:
            if signum == self._requeue:
                self.received = signum
            return
        self.received = signum
        if again:
            self.ignore()
            raise Stopped(self.name)
        with suppress(OSError):  # not print, which a signal may have interrupted
            if parallel.is_first():
                os.write(sys.stderr.fileno(), STOPPING_SOON_PATIENTLY if self.is_patient else STOPPING_SOON)

    @staticmethod
    def _set(handlers: dict[int, Any]) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """
    Ignore Ctrl-C inside a ``with`` block. Processes that are started there ignore it for good: a terminal sends it to them
    too, and an environment must live until the run has been saved.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """
    Raise ``TimeoutError`` inside a ``with`` block that takes too long.

    There is no limit in another thread than the main one, and on Windows. Code in C is interrupted when it returns to Python.

    :param seconds: how long it may take
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
