"""
A run's folder: what lies in it, how it is written and read back.

    runs/<env>/<core>/<stamp>-seed<k>/
      config.yaml            the resolved configuration, and under ``run`` versions, git commit and command line
      model.zip              the last policy
      best/model.zip         the policy with the highest mean return over 100 training episodes, the ones before it was saved
      checkpoints/           one model every ``checkpoint_every`` steps
      events.out.tfevents*   TensorBoard; progress.csv holds the same numbers
      evaluations/           what ``rmc_rl.evaluate`` found
"""

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.base_class import BaseAlgorithm

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
        :param core: the core's name
        :param seed: the run's seed
        """
        parent = Path(root) / env.replace("/", "-").replace(":", "-") / core
        name = f"{stamp()}-seed{seed}"
        for attempt in range(1, 1000):  # two runs may start in the same second
            path = parent / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                continue
        raise RuntimeError(f"no free name for a run in {parent}")

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
        write_atomically(self.config_path, OmegaConf.to_yaml({**keys, "run": record}).encode())  # type: ignore[dict-item]

    def read_config(self) -> DictConfig:
        """The configuration the run was made with."""
        config = OmegaConf.load(self.config_path)
        if not isinstance(config, DictConfig):
            raise UsageError(f"a run's config.yaml must hold keys and values, got '{self.config_path}'")
        return config


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """
    Save a model whole or not at all: a file that is there is never half written.

    :param model: the model
    :param path: the file, whose folder is made where it is missing
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        model.save(file)
    os.replace(partial, path)


def write_atomically(path: Path, data: bytes) -> None:
    """
    Write a file whole or not at all.

    :param path: the file, whose folder is made where it is missing
    :param data: its content
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


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
