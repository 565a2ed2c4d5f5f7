"""Signals that ask a verb to stop: it finishes what must not be interrupted, saves the model and ends."""

import signal
import threading
from types import FrameType
from typing import Any

# Ctrl-C, `kill`, a terminal that was closed, and what Slurm can send before a time limit; Windows has only the first two
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


class Stopped(Exception):
    """The user, or the system, asked training to stop."""


class StopSignals:
    """
    Collects the signals of :data:`STOPPING` inside a ``with`` block.

    The first signal is stored until :meth:`check` is called, at a moment when stopping is safe. A second signal stops at once.
    A signal that was ignored before, as SIGHUP is under ``nohup``, stays ignored. Python sets signal handlers in the main
    thread only; in another thread this class does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
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

    def check(self, *_: object) -> None:
        """
        Stop here if a signal was received.

        :raises Stopped: after a signal
        """
        if self.received is not None:
            raise Stopped(self.name)

    def ignore(self) -> None:
        """Ignore further signals, for work that must not be interrupted."""
        self._set(dict.fromkeys(self._before, signal.SIG_IGN))

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        again, self.received = self.received is not None, signum
        if again:
            self.ignore()
            self.check()

    @staticmethod
    def _set(handlers: dict[int, Any]) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
