"""
Checkpoints: everything that a training run needs to go on exactly as if it had never been stopped.

A checkpoint is a folder, named after the steps of the environment that were taken before it:

    checkpoints/<steps>/
      manifest.json      format, versions, and for each part its file's size and SHA-256, whether it is exact, and why not
      policy.pt          parameters and buffers
      optimizer.pt       the optimizer's tensors
      progress.pt        counters, statistics of episodes, numbers that are recorded but not logged yet, last observations,
                         core states
      random.pt          generators of Python, NumPy and torch (each device), and gSDE's exploration matrices
      environment.pt     worlds and wrappers
      callbacks.pt       what callbacks carry
      environment.pickle the copies of an environment that has no other way to be saved; only if such environments exist

Where several processes train one agent together (:mod:`rmc_rl.agents.parallel`), the first one writes. ``progress.1.pt``,
``random.1.pt``, ``environment.1.pt``, ``callbacks.1.pt`` and ``environment.1.pickle`` are those of the process with number 1.

The ``.pt`` files hold plain data and load with ``weights_only=True``. The pickle is executed when a run is resumed: resume
your own runs only. A folder is written under another name, synced to disk and renamed, so that a checkpoint is either complete
or absent.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rmc_rl import compat
from rmc_rl.agents import parallel
from rmc_rl.errors import UsageError, require, require_whole
from rmc_rl.runs.environment import EnvironmentState, put_state, take_state
from rmc_rl.runs.folder import sync_folder, versions
from rmc_rl.runs.generators import read_exploration, read_generators, set_exploration, set_generators
from rmc_rl.runs.plain import from_plain, to_plain

FORMAT = 1  # of the folder; a program reads its own format only
PACKAGES = ("rmc-rl", "torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "sb3-contrib")
PARTS = ("policy", "optimizer", "progress", "random", "environment", "callbacks")
OF_EACH_PROCESS = ("progress", "random", "environment", "callbacks")  # the others are the same in all processes
MANIFEST = "manifest.json"
PARTIAL = ".partial-"  # prefix of a folder that is being written
_LARGEST_MANIFEST = 1 << 20  # bytes


class Stateful(Protocol):
    """A callback that carries something from one rollout to the next."""

    def state_dict(self) -> dict[str, Any]:
        """What it carries: plain data and arrays."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""


@dataclass(frozen=True)
class Checkpoint:
    """
    A checkpoint that is whole: each of its files has the size and the checksum that the manifest states.

    :param path: its folder
    :param manifest: the content of ``manifest.json``
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """
        Check a checkpoint.

        :param path: its folder
        :raises UsageError: in one line, if it is missing, damaged or of another format
        """
        path = Path(path)
        rule = f"checkpoint '{path}' must be whole"
        try:
            file = path / MANIFEST
            require(file.stat().st_size <= _LARGEST_MANIFEST, f"{rule}: {MANIFEST} must be small", file.stat().st_size)
            manifest = json.loads(file.read_text())
            require(isinstance(manifest, dict), f"{rule}: {MANIFEST} must hold keys", type(manifest).__name__)
            rule_of_format = f"checkpoint '{path}' must have format {FORMAT}, that of this version of rmc-rl"
            require(manifest.get("format") == FORMAT, rule_of_format, manifest.get("format"))
            require(type(manifest["steps"]) is int, f"{rule}: steps must be a whole number", manifest["steps"])
            files = dict(manifest["files"])
            processes = manifest.get("processes", 1)
            require(type(processes) is int and processes > 0, f"{rule}: processes must be a whole number", processes)
            known = {_file(part, rank) for rank in range(processes) for part in (OF_EACH_PROCESS if rank else PARTS)}
            pickles = {_pickle(rank) for rank in range(processes)}
            require(files.keys() - pickles == known, f"{rule}: its files must be {', '.join(sorted(known))}", sorted(files))
            for name, expected in files.items():
                size = (path / name).stat().st_size
                require(size == expected["bytes"], f"{rule}: {name} must have {expected['bytes']} bytes", size)
                found = _sha256((path / name).read_bytes())
                require(found == expected["sha256"], f"{rule}: {name} must have checksum {expected['sha256']}", found)
        except OSError as error:
            raise UsageError(f"{rule}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{rule}: {MANIFEST} is damaged ({type(error).__name__}: {error})") from None
        return cls(path, manifest)

    @property
    def steps(self) -> int:
        """Steps of the environment before the checkpoint, all copies together."""
        return int(self.manifest["steps"])

    @property
    def inexact(self) -> dict[str, str]:
        """The parts that cannot be resumed exactly, and why."""
        return {name: part["why"] for name, part in self.manifest["parts"].items() if not part["exact"]}


def find_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """
    The whole checkpoints in a folder, the newest first. A damaged one is skipped with a warning.

    :param folder: the folder of checkpoints
    """
    found = []
    for path in sorted(_checkpoint_folders(Path(folder)), key=lambda path: int(path.name), reverse=True):
        try:
            found.append(Checkpoint.open(path))
        except UsageError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    return found


def save_checkpoint(
    folder: str | Path, model: OnPolicyAlgorithm, callbacks: Mapping[str, Stateful] | None = None, keep: int = 2
) -> Path:
    """
    Write a checkpoint, whole or not at all, and delete the oldest ones.

    It must be called between two rollouts, after the update: :class:`Checkpoints` does it at the right moment. All processes
    that train together must call it; the first one writes.

    :param folder: the folder of checkpoints; it is made if it is missing, but not the folder around it
    :param model: the agent, while it learns or after it has learned
    :param callbacks: what else the run carries, by name
    :param keep: how many checkpoints are kept
    :return: the checkpoint's folder
    :raises UsageError: in the middle of a rollout, or if a callback carries what is not plain data
    :raises OSError: if it cannot be written
    """
    require_whole("keep", keep)
    position, size = model.rollout_buffer.pos, model.rollout_buffer.buffer_size
    require(position in (0, size), "a checkpoint must be written between two rollouts", f"step {position} of {size}")
    env = model.get_env()
    assert env is not None
    environment = take_state(env)
    contents: dict[str, Any] = {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "progress": {**compat.algorithm_state(model), "recorded": _recorded(model.logger)},
        "random": {**read_generators(), "exploration": read_exploration(model)},
        "environment": environment.layers,
        "callbacks": {name: callback.state_dict() for name, callback in (callbacks or {}).items()},
    }
    rank = parallel.rank()
    own = {_file(name, rank): _packed(contents[name]) for name in (OF_EACH_PROCESS if rank else PARTS)}
    if environment.pickled is not None:
        own[_pickle(rank)] = environment.pickled
    files = {name: data for part in parallel.to_first(own) for name, data in part.items()}
    path = Path(folder) / str(model.num_timesteps)
    if not parallel.is_first():
        return path
    parts = {name: {"exact": True, "why": ""} for name in PARTS}
    parts["environment"] = {
        "exact": not environment.inexact,
        "why": "; ".join(environment.inexact),
        "pickle": environment.pickled is not None,
    }
    manifest = {
        "format": FORMAT,
        "steps": model.num_timesteps,
        "processes": parallel.size(),
        "made_with": _made_with(model),
        "settings": _settings(model),
        "parts": parts,
        "files": {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()},
    }
    files[MANIFEST] = json.dumps(manifest, indent=1).encode()
    _write_folder(path, files)
    for old in sorted(_checkpoint_folders(path.parent), key=lambda old: int(old.name))[:-keep]:
        if old != path:
            _delete(old)
    return path


def load_checkpoint(
    checkpoint: Checkpoint | str | Path, model: OnPolicyAlgorithm, callbacks: Mapping[str, Stateful] | None = None
) -> Callable[[], None]:
    """
    Put an agent, its environment and callbacks into the state of a checkpoint.

    Use :meth:`Checkpoints.resume`, which also calls what this function returns.

    The environment's pickle is executed: load checkpoints of your own runs only.

    :param checkpoint: the checkpoint or its folder
    :param model: an agent made with the settings of the run, with an environment made with the same settings
    :param callbacks: those that were given when it was saved, by the same names
    :return: puts the random generators back; to be called when the first rollout starts, because ``learn`` draws before
    :raises UsageError: in one line, if it is damaged or does not fit; the agent is then unchanged, apart from an environment
        that does not fit
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    rule = f"checkpoint '{checkpoint.path}' must be of a run with the same"
    expected, callbacks, rank = _settings(model), callbacks or {}, parallel.rank()
    processes = checkpoint.manifest.get("processes", 1)
    require(processes == parallel.size(), f"{rule} number of processes, {processes}", parallel.size())
    for name, saved in checkpoint.manifest.get("settings", {}).items():
        require(saved == expected.get(name), f"{rule} {name}, {saved}", expected.get(name))
    saved, present = checkpoint.manifest["made_with"], _made_with(model)
    changed = [f"{name} {saved.get(name)}, now {present[name]}" for name in present if saved.get(name) != present[name]]
    if changed:
        warnings.warn(
            f"numbers may differ from those of a run that was not stopped: it had {'; '.join(changed)}", stacklevel=2
        )
    contents = {part: _unpacked(checkpoint.path / _file(part, rank if part in OF_EACH_PROCESS else 0)) for part in PARTS}
    _check_policy(contents["policy"], model, f"{rule} policy")
    names = sorted(contents["callbacks"]) if isinstance(contents["callbacks"], dict) else None
    require(sorted(callbacks) == names, f"{rule} named callbacks, {names}", sorted(callbacks))
    pickle_of_envs = _pickle(rank)
    has_pickle = pickle_of_envs in checkpoint.manifest["files"]
    pickled = (checkpoint.path / pickle_of_envs).read_bytes() if has_pickle else None
    env = model.get_env()
    assert env is not None
    try:
        progress, generators = contents["progress"], contents["random"]
        recorded, exploration = progress["recorded"], generators["exploration"]
        state = EnvironmentState(contents["environment"], pickled, [])
        seed = int(np.random.SeedSequence([model.seed or 0, checkpoint.steps]).generate_state(1)[0])
        observations = put_state(env, state, seed + rank * model.n_envs)
        model.policy.load_state_dict(contents["policy"])
        model.policy.optimizer.load_state_dict(contents["optimizer"])
        compat.set_algorithm_state(model, progress, observations)
        for name, callback in callbacks.items():
            callback.load_state_dict(contents["callbacks"][name])
        set_generators(generators)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"{rule} settings and versions, got one that does not fit ({why})") from error

    def at_rollout_start() -> None:
        set_generators(generators)
        set_exploration(model, exploration)
        _set_recorded(model.logger, recorded)

    return at_rollout_start


class Checkpoints(BaseCallback):
    """
    Writes checkpoints while an agent learns, and goes on from them. It must be the first callback.

    A new run::

        checkpoints = Checkpoints("run/checkpoints", every=100_000)
        model.learn(1_000_000, callback=checkpoints)

    The same run after it was stopped, in another process, with the model and the environment made as before::

        checkpoints = Checkpoints("run/checkpoints", every=100_000)
        remaining = checkpoints.resume(model)
        model.learn(remaining, callback=checkpoints, reset_num_timesteps=False)

    :param folder: the folder of checkpoints
    :param every: steps of the environment, all copies together, between two checkpoints. They are written at the first start
        of a rollout after so many steps, and at the end of training. None: only when asked to stop, and at the end
    :param keep: how many are kept
    :param callbacks: callbacks that carry something from rollout to rollout, by name. They are put back by :meth:`resume`,
        before ``learn`` initialises them. Those that are not named start afresh
    :param should_stop: asked when a rollout starts; if it returns true, a checkpoint is written and training ends
    :param after_save: called after each checkpoint, in the first of several processes
    """

    def __init__(
        self,
        folder: str | Path,
        every: int | None = 250_000,
        keep: int = 2,
        callbacks: Mapping[str, Stateful] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        after_save: Callable[[], None] = lambda: None,
    ):
        super().__init__()
        if every is not None:
            require_whole("every", every)
        require_whole("keep", keep)
        self.folder, self.every, self.keep = Path(folder), every, keep
        self.callbacks = dict(callbacks or {})
        self.should_stop, self.after_save = should_stop, after_save
        self.saved_at = 0  # steps at the newest checkpoint
        self._at_first_rollout: Callable[[], None] | None = None
        self._is_stopping = False

    def resume(self, model: OnPolicyAlgorithm, checkpoint: Checkpoint | None = None) -> int:
        """
        Put an agent into the state of a checkpoint.

        :param model: made with the settings of the run, with its environment
        :param checkpoint: None: the newest whole one in the folder
        :return: the steps that remain until the run's ``total_timesteps``
        :raises UsageError: if there is no whole checkpoint, or it is of other settings
        """
        if checkpoint is None:
            found = parallel.from_first(find_checkpoints(self.folder))
            require(len(found) > 0, "there must be a whole checkpoint to resume from", str(self.folder))
            checkpoint = found[0]
        _delete_partial(self.folder)
        self._at_first_rollout = load_checkpoint(checkpoint, model, self.callbacks)
        self.saved_at = checkpoint.steps
        return max(0, model._total_timesteps - model.num_timesteps)

    def save(self) -> Path:
        """Write a checkpoint now; see :func:`save_checkpoint`."""
        for output in self.logger.output_formats:
            if hasattr(output, "sync"):
                output.sync()
        path = save_checkpoint(self.folder, self.model, self.callbacks, self.keep)  # type: ignore[arg-type]
        self.saved_at = self.model.num_timesteps
        if parallel.is_first():
            self.after_save()
        return path

    def _on_training_start(self) -> None:
        if parallel.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)

    def _on_rollout_start(self) -> None:
        steps = self.model.num_timesteps
        if self._at_first_rollout is not None:
            self._at_first_rollout()
            self._at_first_rollout = None
        self._is_stopping = parallel.any_of(self.should_stop())
        is_due = self.every is not None and steps // self.every > self.saved_at // self.every
        if steps > self.saved_at and (is_due or self._is_stopping):
            self.save()

    def _on_step(self) -> bool:
        return not self._is_stopping

    def _on_training_end(self) -> None:
        model: Any = self.model
        if model.rollout_buffer.pos == model.rollout_buffer.buffer_size:  # not interrupted in a rollout
            if model.use_sde:  # as the next rollout would begin
                model.policy.reset_noise(model.n_envs * parallel.size())
            self.save()


def _file(part: str, rank: int) -> str:
    """The file of a part, of the process with this number."""
    return f"{part}.{rank}.pt" if rank else f"{part}.pt"


def _pickle(rank: int) -> str:
    """The file of the pickled copies of the process with this number."""
    return f"environment.{rank}.pickle" if rank else "environment.pickle"


def _check_policy(saved: Any, model: OnPolicyAlgorithm, rule: str) -> None:
    """Check that saved tensors are those of a policy, by names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.policy.state_dict().items()}
    known = isinstance(saved, dict) and all(isinstance(tensor, torch.Tensor) for tensor in saved.values())
    require(known, f"{rule}, by name", type(saved).__name__)
    saved_shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    different = sorted(name for name in shapes | saved_shapes if shapes.get(name) != saved_shapes.get(name))
    if different:
        name = different[0]
        raise UsageError(f"{rule}, with {name} of shape {saved_shapes.get(name)}, got {shapes.get(name)}")


def _settings(model: Any) -> dict[str, Any]:
    """What may not change between a checkpoint and the run that goes on from it, as text."""
    names = ("n_envs", "n_steps", "use_sde")
    return {
        "policy class": type(model.policy).__name__,
        "observation space": str(model.observation_space),
        "action space": str(model.action_space),
        **{name: getattr(model, name) for name in names},
    }


def _recorded(logger: Logger) -> dict[str, Any]:
    """What an update recorded: it is logged at the end of the next rollout."""
    values, excluded = logger.name_to_value, logger.name_to_excluded
    return {name: (values[name], logger.name_to_count.get(name, 0), excluded[name]) for name in excluded}


def _set_recorded(logger: Logger, recorded: dict[str, Any]) -> None:
    for name, (value, count, excluded) in recorded.items():
        logger.name_to_value[name], logger.name_to_excluded[name] = value, excluded
        if count:
            logger.name_to_count[name] = count


def _packed(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(to_plain(content), file)
    return file.getvalue()


def _unpacked(path: Path) -> Any:
    try:
        return from_plain(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UsageError(f"checkpoint '{path.parent}' must be whole: {path.name}: {' '.join(str(error).split())}") from None


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder whole or not at all, synced to disk; one of the same name is replaced."""
    parent = path.parent
    parent.mkdir(exist_ok=True)
    _delete_partial(parent)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=parent))
    try:
        partial.chmod(0o777 & ~_umask())
        for name, data in files.items():
            with (partial / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(partial)
        if path.exists():
            path.rename(Path(tempfile.mkdtemp(prefix=PARTIAL, dir=parent)) / path.name)
        partial.rename(path)
        sync_folder(parent)
    finally:
        _delete_partial(parent)


def _delete_partial(parent: Path) -> None:
    """Delete what a process that was killed has left unfinished."""
    for stale in parent.glob(f"{PARTIAL}*"):
        shutil.rmtree(stale, ignore_errors=True)


def _delete(path: Path) -> None:
    """Delete a checkpoint. It loses its name first: whoever is killed meanwhile leaves no checkpoint that is damaged."""
    with suppress(OSError):
        path = path.rename(path.with_name(f"{PARTIAL}{path.name}"))
    shutil.rmtree(path, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _checkpoint_folders(folder: Path) -> list[Path]:
    """The folders in a folder of checkpoints whose names are steps; none if the folder is missing."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit() and path.is_dir()]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _made_with(model: Any) -> dict[str, str]:
    """What decides how numbers are computed, apart from the settings."""
    return {**_versions(), "device": str(model.device), "num_threads": str(torch.get_num_threads())}


@cache
def _versions() -> dict[str, str]:
    """The versions of the packages that decide how numbers are computed."""
    found = versions()
    return {package: found[package] or "not installed" for package in PACKAGES}
