"""
The curves of a run: ``progress.csv`` and TensorBoard's events, which go on where they were when the run is resumed.

SB3's own CSV starts an empty file each time, and rewrites it in place when a new name appears; here a row is appended, and a
file with a new column replaces the old one whole.
"""

import csv
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, filter_excluded_keys

from rmc_rl import compat
from rmc_rl.errors import UsageError

STEPS = "time/total_timesteps"  # the column by which rows are cut


class ProgressFile(KVWriter):
    """
    A CSV file with a row for each time that something is logged, and a column for each name.

    :param path: the file
    :param resumed_at: steps at which the run goes on: later rows are cut, and columns that are empty without them. None: the
        file is new
    :raises UsageError: if the file of a resumed run is damaged
    """

    def __init__(self, path: str | Path, resumed_at: int | None = None):
        self.path = Path(path)
        self.columns: list[str] = []
        rows: list[dict[str, str]] = []
        if resumed_at is not None and self.path.exists():
            rows = self._read(resumed_at)
            self.columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
        self._replace(rows)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Append a row; see SB3's ``KVWriter``. Only numbers and text are written.

        :param key_values: value of each name
        :param key_excluded: for each name the outputs that do not write it
        :param step: unused
        """
        known = filter_excluded_keys(key_values, key_excluded, "csv")
        values = {name: str(value) for name, value in known.items() if isinstance(value, str) or hasattr(value, "__float__")}
        new = sorted(values.keys() - set(self.columns))
        if new:
            self.columns += new
            self.file.close()
            self._replace(list(csv.DictReader(io.StringIO(self.path.read_text(), newline=""))))
        csv.DictWriter(self.file, self.columns, restval="", lineterminator="\n").writerow(values)
        self.file.flush()

    def sync(self) -> None:
        """Write to the disk what the system still holds in memory."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _read(self, resumed_at: int) -> list[dict[str, str]]:
        """The rows up to a step. The last one may be cut, if the process was killed."""
        try:
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
            return [row for row in rows if float(row[STEPS]) <= resumed_at]
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise UsageError(f"'{self.path}' must be the progress file of a run: {error!r}") from None

    def _replace(self, rows: list[dict[str, str]]) -> None:
        """Replace the file by one with these rows, whole, and keep it open."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
            if self.columns:
                writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        self.file = self.path.open("a", newline="")


def make_logger(folder: str | Path, resumed_at: int | None = None) -> Logger:
    """
    A logger for ``model.set_logger`` that writes ``progress.csv`` and TensorBoard's events.

    :param folder: the run's folder
    :param resumed_at: steps at which the run goes on: rows and events after it are cut. None: a new run
    :raises UsageError: if the progress file of a resumed run is damaged
    """
    progress = ProgressFile(Path(folder) / "progress.csv", resumed_at)
    events = TensorBoardOutputFormat(str(folder))
    if resumed_at is not None:
        compat.purge_events(events.writer, resumed_at + 1)
    return Logger(str(folder), [progress, events])


@contextmanager
def told_once() -> Iterator[None]:
    """
    Inside a ``with`` block, an error that stops TensorBoard's writer, which is a thread, is not printed there: TensorBoard
    raises it again in the thread that logs.
    """
    before = threading.excepthook

    def of_other_threads(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            before(arguments)

    threading.excepthook = of_other_threads
    try:
        yield
    finally:
        threading.excepthook = before
