"""
A run's folder: what lies in it, how it is written and read back.

    runs/<env>/<core>/<stamp>-seed<k>/
      config.yaml            the resolved configuration, and under ``run`` versions, git commit and command line
      model.zip              the last policy
      best/model.zip         the policy with the highest mean return over the last 100 training episodes, once there were 100
      checkpoints/           one model every ``checkpoint_every`` steps
      events.out.tfevents*   TensorBoard; progress.csv holds the same numbers
      evaluations/           what ``rmc_rl.evaluate`` found
"""

import itertools
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm
from yaml import YAMLError

from rmc_rl.errors import UsageError, require_choice

PACKAGES = ("rmc-rl", "torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "sb3-contrib", "hydra-core")
MODELS = ("last", "best")


def stamp() -> str:
    """The local time as it stands in names of files, to the second."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")


@dataclass(frozen=True)
class Run:
    """
    A run's folder.

    :param path: the folder
    """

    path: Path

    @classmethod
    def create(cls, root: str | Path, env: str, core: str, seed: int) -> "Run":
        """
        Make the folder of a new run.

        :param root: the folder of all runs
        :param env: the environment's id; ``/`` and ``:`` become ``-`` in its folder's name
        :param core: the core's name, treated alike
        :param seed: the run's seed
        :raises UsageError: where the folder cannot be made
        """
        parent = Path(root).joinpath(*(name.replace("/", "-").replace(":", "-") for name in (env, core)))
        name = f"{stamp()}-seed{seed}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            return cls(_claim(parent / name, Path.mkdir))
        except OSError as error:
            raise UsageError(f"runs_dir must be a folder that can be written to, got '{root}': {error}") from None

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """
        An existing run.

        :param path: its folder
        :raises UsageError: where it is no run's folder
        """
        run = cls(Path(path))
        if not run.config_path.is_file():
            raise UsageError(f"run must be the folder of a run, one with a config.yaml, got '{path}'")
        return run

    @property
    def config_path(self) -> Path:
        """Where the resolved configuration lies."""
        return self.path / "config.yaml"

    def model_path(self, which: str = "last") -> Path:
        """
        Where a model lies.

        :param which: "last" or "best"
        :raises UsageError: for another word
        """
        require_choice("model", which, MODELS)
        return self.path / "model.zip" if which == "last" else self.path / "best" / "model.zip"

    def checkpoint_path(self, timesteps: int) -> Path:
        """
        Where the checkpoint after so many steps lies.

        :param timesteps: environment steps
        """
        return self.path / "checkpoints" / f"model_{timesteps}_steps.zip"

    def new_evaluation(self) -> Path:
        """An empty file for the result of an evaluation."""
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        return _claim(folder / f"{stamp()}.json", lambda path: path.touch(exist_ok=False))

    def write_config(self, config: DictConfig) -> None:
        """
        Keep a configuration, with what is needed to repeat the run.

        :param config: resolved
        """
        record = {
            "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        }
        keys = OmegaConf.to_container(config, resolve=True)
        with written_whole(self.config_path) as file:
            file.write(OmegaConf.to_yaml({**keys, "run": record}).encode())  # type: ignore[dict-item]

    def read_config(self) -> DictConfig:
        """
        The configuration the run was made with.

        :raises UsageError: where the file is not one of ours
        """
        try:
            config = OmegaConf.load(self.config_path)
        except (YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"a run's config.yaml must be YAML, got '{self.config_path}': {error}") from None
        if not (isinstance(config, DictConfig) and {"env", "env_kwargs", "core"} <= set(config)):
            raise UsageError(f"a run's config.yaml must hold env, env_kwargs and core, got '{self.config_path}'")
        return config


@contextmanager
def written_whole(path: Path) -> Iterator[BufferedIOBase]:
    """
    A file that is written whole or not at all: what is there under its name is never half of it.

    :param path: the file, whose folder is made where it is missing
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """
    Save a model whole or not at all.

    :param model: the model
    :param path: the file, whose folder is made where it is missing
    """
    with written_whole(path) as file:
        model.save(file)


def _claim(path: Path, make: Callable[[Path], None]) -> Path:
    """Make a file or folder under a name, or the name with a number where it is taken."""
    for attempt in itertools.count(2):
        try:
            make(path)
            return path
        except FileExistsError:
            path = path.with_name(f"{path.stem.split('_')[0]}_{attempt}{path.suffix}")
    raise AssertionError("there is always another number")


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with ``-dirty`` after changes; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> Any:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
