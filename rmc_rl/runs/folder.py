"""
A run's folder: what lies in it, how it is written and read back.

    runs/<env>/<core>/<stamp>-seed<k>/
      config.yaml            the resolved configuration, and under ``run`` versions, git commit and command line
      .signature             of config.yaml: the run is the user's own, see :mod:`rmc_rl.runs.signature`
      model.zip              the last policy; beside each model trained with ``normalize``, its ``.normalization.json``
      best/model.zip         the policy with the highest mean return over the last 100 training episodes, once there were 100;
                             with ``evaluate_every`` the one with the highest evaluation
      checkpoints/<steps>/   what exact resume needs, every ``checkpoint_every`` steps: :mod:`rmc_rl.runs.checkpoint`
      events.out.tfevents*   TensorBoard; progress.csv holds the same numbers
      evaluations/           what ``rmc_rl.evaluate`` found: JSON, and beside it a CSV with a row for each episode
      films/                 what ``rmc_rl.watch`` filmed
      exports/               what ``rmc_rl.export`` wrote: the policy as one file that acts without this package
      lock                   held by the process that trains the run

``runs/sweeps/`` holds no runs, but what Hydra and :mod:`rmc_rl.command_line.sweep` write about sweeps.
"""

import glob
import io
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from stable_baselines3.common.base_class import BaseAlgorithm

if sys.platform != "win32":
    import fcntl

import rmc_rl
from rmc_rl.errors import UsageError, require, require_choice
from rmc_rl.runs import signature
from rmc_rl.runs.normalization import normalization_path, statistics

PACKAGES = ("rmc-rl", "torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "sb3-contrib", "hydra-core")
MODELS = ("last", "best")
LARGEST_CONFIG = 1 << 16  # bytes; ours have about 3,000
DEEPEST_CONFIG = 16  # levels
LOCK = "lock"  # the file whose lock is held by the process that trains the run


def stamp() -> str:
    """The local time to the second, as it is written in names of files."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")


@dataclass(frozen=True)
class Run:
    """
    A run's folder.

    :param path: the folder
    """

    path: Path

    @classmethod
    def create(
        cls, root: str | Path, env: str, core: str, seed: int, name: str | None = None, started: str | None = None
    ) -> "Run":
        """
        Make the folder of a new run.

        :param root: the folder of all runs; ``~`` is the user's home
        :param env: the environment's id; ``/`` and ``:`` become ``-`` in the folder's name
        :param core: the core's name, changed in the same way
        :param seed: the run's seed
        :param name: of its folder, which may exist if it holds no run yet; None: the time and the seed
        :param started: the time in that name, as :func:`stamp` writes it; None: now
        :raises UsageError: if the folder cannot be made
        """
        try:
            if name is None:
                run = cls.named(root, env, core, f"{started or stamp()}-seed{seed}")
                run.path.parent.mkdir(parents=True, exist_ok=True)
                return cls(_claim(run.path, Path.mkdir))
            run = cls.named(root, env, core, name)
            run.path.mkdir(parents=True, exist_ok=True)  # a run that was killed at once has left it empty
            return run
        except (OSError, ValueError, RuntimeError) as error:  # a null byte, an unknown user after ~
            raise UsageError(f"runs_dir must be a folder that can be written to, got {str(root)!r}: {error}") from None

    @classmethod
    def named(cls, root: str | Path, env: str, core: str, name: str) -> "Run":
        """
        A run with a name of its own, which may not exist yet.

        :param root: the folder of all runs; ``~`` is the user's home
        :param env: the environment's id; ``/`` and ``:`` become ``-`` in the folder's name
        :param core: the core's name, changed in the same way
        :param name: the name of its folder
        """
        return cls(Path(root).expanduser().joinpath(*(part.replace("/", "-").replace(":", "-") for part in (env, core)), name))

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """
        An existing run.

        :param path: its folder, or a pattern that matches the folder of one run alone; ``~`` is the user's home
        :raises UsageError: if it is not a folder, or the pattern matches no run or several
        """
        if not _is_folder(path) and glob.has_magic(str(path)):
            runs = _matching_runs(str(path))[0]
            if len(runs) != 1:
                found = f"matches {len(runs)}" + (f": {', '.join(runs[:3])}{' ...' if len(runs) > 3 else ''}" if runs else "")
                raise UsageError(
                    f"run must be the folder of a run, or a pattern that matches one, got '{path}', which {found}"
                )
            path = runs[0]
        require(_is_folder(path), "run must be the folder of a run", str(path))
        return cls(Path(path).expanduser())

    @classmethod
    def of_file(cls, path: Path) -> "Run":
        """
        The run that a model file belongs to.

        :param path: the file: ``model.zip`` of the run, or one in its ``best`` or ``checkpoints``
        :return: the run; the file's folder if no ``config.yaml`` is near
        """
        folder = path.absolute().parent
        return next((run for run in (cls(folder), cls(folder.parent)) if run.config_path.is_file()), cls(path.parent))

    @property
    def config_path(self) -> Path:
        """The file of the resolved configuration."""
        return self.path / "config.yaml"

    def model_path(self, which: str = "last") -> Path:
        """
        The file of a model.

        :param which: "last" or "best"
        :raises UsageError: for another name
        """
        require_choice("model", which, MODELS)
        return self.path / "model.zip" if which == "last" else self.path / "best" / "model.zip"

    @property
    def checkpoints_path(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Keep other processes from training this run inside a ``with`` block.

        The system releases the lock when the process dies, also by ``kill -9``. Windows, and a file system that knows no
        locks, have none.

        :raises UsageError: if another process trains this run, or the folder cannot be written to
        """
        if sys.platform == "win32":
            yield
            return
        path = self.path / LOCK
        try:
            file = path.open("a+", errors="replace")  # the text of another process stays until the lock is ours
        except OSError as error:
            raise UsageError(f"the run's folder must be one that can be written to, got '{self.path}': {error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(100).strip() or "another process"
                raise UsageError(f"a run must be trained by one process at a time: {holder} trains '{self.path}'") from None
            except OSError as error:
                warnings.warn(f"'{self.path}' is not locked, so that only one process may train it: {error}", stacklevel=3)
            with suppress(OSError):  # a full disk
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}")
                file.flush()
            yield

    def check_is_new(self) -> None:
        """
        Check that the folder holds no run yet; to be called with the lock.

        :raises UsageError: if it does
        """
        rule = "name must be that of no other run; resume=auto goes on with the run of this name"
        require(not self.config_path.exists(), rule, str(self.path))

    def check_writable(self, name: str = "evaluations") -> None:
        """
        Find out whether results can be written, before work is spent on them.

        :param name: of the folder in the run's folder
        :raises UsageError: if no file can be made in it
        """
        folder = self.path / name
        try:
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UsageError(f"the folder of {name} must be one that can be written to, got '{folder}': {error}") from None

    def new_path(self, folder: str, name: str) -> Path:
        """
        Claim the name of a new file, by an empty file.

        :param folder: its folder in the run's folder, which exists
        :param name: its name; one that is taken gets a number
        :raises UsageError: if the file cannot be made
        """
        try:
            return _claim(self.path / folder / name, lambda path: path.touch(exist_ok=False))
        except OSError as error:
            raise UsageError(f"'{folder}' must be a folder that can be written to, got '{self.path}': {error}") from None

    def write_evaluation(self, text: str, episodes: str | None = None) -> Path:
        """
        Keep the result of an evaluation.

        :param text: the result as JSON
        :param episodes: a CSV with a row for each episode, which is kept beside it under the same name
        :return: the new file of the result
        :raises UsageError: if it cannot be written
        """
        folder = self.path / "evaluations"
        try:
            folder.mkdir(exist_ok=True)
            path = _claim(folder / f"{stamp()}.json", lambda path: path.touch(exist_ok=False))
            if episodes is not None:
                with written_whole(path.with_suffix(".csv")) as file:
                    file.write(episodes.encode())
            with written_whole(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise UsageError(f"the result above could not be written to '{folder}': {error}") from None
        return path

    def write_config(self, config: DictConfig, command: str | None) -> None:
        """
        Keep a configuration, with what is needed to repeat the run.

        :param config: resolved
        :param command: the command line that started the run; None if it was started from Python
        """
        record = {
            # what Hydra would look up stays text when the file is read
            "command": None if command is None else command.replace("${", "\\${"),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "versions": versions(),
        }
        keys = OmegaConf.to_container(config, resolve=True)
        with written_whole(self.config_path) as file:
            file.write(OmegaConf.to_yaml({**keys, "run": record}).encode())  # type: ignore[dict-item]
        signature.sign(self.config_path)

    def read_config(self) -> DictConfig:
        """
        The configuration of the run.

        :raises UsageError: if the file is missing, damaged or not one of ours
        """
        path = self.config_path
        try:
            size = path.stat().st_size
            require(size <= LARGEST_CONFIG, f"it must have at most {LARGEST_CONFIG:,} bytes", size)
            text = path.read_text()
            _check_yaml(text)
            config = OmegaConf.create(text)
            plain = OmegaConf.to_container(config)
        except (OSError, yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
            why = " ".join(str(error).split())
            raise UsageError(f"a run's config.yaml must be YAML, got '{path}': {why}") from None
        kinds = {"env": str, "env_kwargs": dict, "core": dict}
        known = isinstance(plain, dict) and all(isinstance(plain.get(key), kind) for key, kind in kinds.items())
        require(known, "a run's config.yaml must hold env, env_kwargs and core", str(path))
        require(_is_resolved(plain, "run"), "a run's config.yaml must hold values, nothing to look up by ${...}", str(path))
        assert isinstance(config, DictConfig)
        return config


@contextmanager
def written_whole(path: Path) -> Iterator[BufferedIOBase]:
    """
    A file that is written whole or not at all: an older one under the same name is kept until the new one is complete.

    It is synced to disk before it gets its name, so that a loss of power leaves one of the two as well.

    :param path: the file, in a folder that exists: one that was deleted while a run trained must not come back without it
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """
    Sync the names in a folder to disk, where the system can.

    :param path: the folder
    """
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """
    Save a model whole or not at all, and beside it the statistics of a normalised environment.

    :param model: the model
    :param path: the file, in a folder that exists: one that was deleted while a run trained must not come back without it
    """
    normalized = model.get_vec_normalize_env()
    if normalized is not None:
        with written_whole(normalization_path(path)) as file:
            file.write(statistics(normalized).encode())
    content = io.BytesIO()  # torch would hide an error of the disk behind one of its own
    model.save(content)
    with written_whole(path) as file:
        file.write(content.getbuffer())


class FoundRuns(NamedTuple):
    """
    The folders that :func:`find_runs` found.

    :param runs: folders of runs, as texts that :meth:`Run.open` takes
    :param others: what else a pattern matched, which holds no ``config.yaml``
    """

    runs: list[str]
    others: list[str]


def find_runs(text: str) -> FoundRuns:
    """
    The runs that a text names.

    :param text: the folder of a run, a pattern as in ``runs/*/*/*``, or several of these with commas between them
    :return: each run once, in the order of the text; what a pattern matches is sorted
    :raises UsageError: if a pattern or a folder of several matches no run
    """
    if _is_folder(text):
        return FoundRuns([text], [])
    rule = "run must be the folder of a run, a pattern as in 'runs/*/*/*', or several of these with commas between them"
    runs: dict[Path, str] = {}
    others: list[str] = []
    for part in text.split(","):
        found = [part]
        if not _is_folder(part):
            require(glob.has_magic(part), rule, part)
            found, rest = _matching_runs(part)
            others += rest
            what = f"matches {len(rest)} paths, none of which is the folder of a run" if rest else "matches nothing"
            if not found:
                raise UsageError(f"{rule}, got '{part}', which {what}")
        for path in found:
            runs.setdefault(Path(path).expanduser().resolve(), path)
    return FoundRuns(list(runs.values()), others)


def _matching_runs(pattern: str) -> tuple[list[str], list[str]]:
    """The folders of runs that a pattern matches, and what else it matches, both sorted."""
    try:
        matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    except ValueError:  # a null byte
        matches = []
    runs = [path for path in matches if (Path(path) / "config.yaml").is_file()]
    return runs, [path for path in matches if path not in runs]


def _is_folder(text: str | Path) -> bool:
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def find_model(run: str | None, model: str) -> tuple[Run, Path]:
    """
    The file of a model, and the run it belongs to.

    :param run: the folder of a run; None: the one around the file
    :param model: "last", "best" or the path of a file
    :raises UsageError: if there is no such file
    """
    path = Path(model)
    if model in MODELS or not (path.suffix or len(path.parts) > 1):  # a name, no path
        require(run is not None, "run must be the folder of a run, as in run=runs/<env>/<core>/<stamp>-seed0", run)
        found = Run.open(str(run))
        path = found.model_path(model)
        if model == "last" and not path.is_file() and path.with_suffix(".safetensors").is_file():
            path = path.with_suffix(".safetensors")  # what rmc_rl.share wrote
        if not path.is_file():
            raise UsageError(f"model must have been saved by the run, got '{model}', and there is no {path}")
        return found, path
    try:
        path = path.expanduser()
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError):
        is_file = False
    require(is_file, "model must be last, best or the file of a saved model", model)
    return (Run.of_file(path) if run is None else Run.open(run)), path


def _claim(path: Path, make: Callable[[Path], None]) -> Path:
    """Make a file or folder under a name, or under the name with a number if it is taken."""
    for attempt in itertools.count(2):
        try:
            make(path)
            return path
        except FileExistsError:
            path = path.with_name(f"{path.stem.split('_')[0]}_{attempt}{path.suffix}")
    raise AssertionError("there is always another number")


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that a run depends on; None for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with ``-dirty`` after changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    if package == "rmc-rl":  # which also runs from a checkout that is not installed
        return rmc_rl.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_yaml(text: str) -> None:
    """
    Check that YAML stands for no more values than it shows, and that it can be read quickly.

    :raises UsageError: for aliases, a few of which can stand for billions of values, and for many levels, because the time to
        read them grows with their square
    """
    depth = 0
    for event in yaml.parse(text):
        require(not isinstance(event, yaml.AliasEvent), "it must have no aliases", getattr(event, "anchor", None))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        require(depth <= DEEPEST_CONFIG, f"it must have at most {DEEPEST_CONFIG} levels", depth)


def _is_resolved(node: Any, open_key: str | None = None) -> bool:
    """Whether no text in a configuration asks to look something up, apart from the node ``open_key``."""
    if isinstance(node, dict):
        return all(_is_resolved(value) for key, value in node.items() if key != open_key)
    if isinstance(node, list):
        return all(map(_is_resolved, node))
    return not (isinstance(node, str) and "${" in node)
