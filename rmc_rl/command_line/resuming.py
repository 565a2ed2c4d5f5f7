"""Which run a command line means: a new one, or one that goes on."""

import re
import shlex
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rmc_rl.command_line.progress import say
from rmc_rl.command_line.schema import TrainKeys, check_keys
from rmc_rl.errors import UsageError, require
from rmc_rl.runs.folder import Run

AUTO = "auto"
# keys that may change when a run goes on; the others decide what is learned
CHANGEABLE = ("total_timesteps", "checkpoint_every", "keep_checkpoints", "num_threads", "device", "patience")
FREE = (*CHANGEABLE, "runs_dir", "name", "resume", "family", "hydra")  # and those that do not belong to the run
GROUPS = ("core", "algo")  # chosen by the name of a YAML file


def given_keys() -> list[str]:
    """The keys that stand on the command line."""
    lines: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [line.lstrip("+~").partition("=")[0] for line in lines]


def find_run(config: DictConfig, given: Iterable[str], command: str | None = None) -> tuple[Run | None, DictConfig]:
    """
    The run that is to go on, with its configuration.

    :param config: what the command line says
    :param given: the keys that stand on the command line
    :param command: the command line; None: there is none
    :return: None and ``config`` for a new run
    :raises UsageError: if the run is missing or damaged, or a key on the command line is not as in the run
    """
    if config.name is not None:
        require(
            bool(re.fullmatch(r"\w[\w.-]*", config.name)), "name must be made of letters, digits, dots and dashes", config.name
        )
    if config.resume is None:
        return None, config
    if config.resume == AUTO:
        run = _find_auto(config, command)
        if run is None:
            config.resume = None
            return None, config
    else:
        run = Run.open(config.resume)
    rule = f"the config.yaml of '{run.path}' must be one that this version can train with"
    saved = run.read_config()
    saved.pop("run", None)
    try:
        saved = check_keys(TrainKeys, _with_defaults(saved))
    except UsageError as error:
        raise UsageError(f"{rule}: {error}") from None
    for key in given:
        if key.split(".")[0] not in FREE:
            _check_same(run, key, saved, config)
        elif key in CHANGEABLE:
            saved[key] = config[key]
    return run, saved


def _find_auto(config: DictConfig, command: str | None) -> Run | None:
    """The run that ``resume=auto`` means: that of the name or, without a name, the newest of the same command."""
    run = Run.named(config.runs_dir, config.env, config.core.name, config.name or "")
    if config.name is not None:
        return run if run.config_path.is_file() else None  # none either if it was killed before it wrote the file
    require(command is not None, "resume=auto needs the name of the run, as in name=first", config.name)
    found = []
    for path in run.path.glob("*/config.yaml"):
        with suppress(UsageError):  # a damaged run is no run to go on with
            record = Run(path.parent).read_config().get("run")
            if OmegaConf.is_dict(record) and _identity(record.get("command")) == _identity(command):
                found.append((str(record.get("started")), str(path.parent)))
    return Run(Path(max(found)[1])) if found else None


def _identity(command: Any) -> frozenset[str] | None:
    """The arguments of a command line without ``resume``; None if there is no command line."""
    if not isinstance(command, str):
        return None
    try:
        return frozenset(word for word in shlex.split(command) if not word.startswith("resume="))
    except ValueError:
        return None


def say_what_changes(run: Run, config: DictConfig, steps: int) -> None:
    """
    Say what another number of steps does to a run.

    :param run: the run
    :param config: with which it goes on
    :param steps: at which it goes on
    """
    before = run.read_config().total_timesteps
    if before == config.total_timesteps:
        return
    say(f"total_timesteps: {config.total_timesteps:,} instead of {before:,}")
    if config.algo.learning_rate_schedule != "constant":
        old, new = (max(0.0, 1 - steps / total) * config.algo.learning_rate for total in (before, config.total_timesteps))
        warnings.warn(
            f"the learning rate of a {config.algo.learning_rate_schedule} schedule jumps from {old:.3g} to {new:.3g}",
            stacklevel=2,
        )


def _with_defaults(saved: DictConfig) -> DictConfig:
    """The configuration of a run, with the keys that older versions did not have."""
    defaults: dict[str, Any] = {
        "init": None,
        "name": None,
        "resume": None,
        "keep_checkpoints": 2,
        "params_of": "policy",
        "callbacks": [],
        "memory_picture_every": None,
        "evaluate_every": None,
        "patience": None,
        "evaluation": {"episodes": 20, "deterministic": True, "env_kwargs": {}, "n_envs": 8, "seed": 2_000_000},
        "curriculum": {},
        "curriculum_return": None,
        "curriculum_draw": "present",
        "policy": {"scale_output": False},
        "partial": {"hide": None, "flicker": 0.0, "noise": 0.0, "drop_sensors": 0.0, "delay": 0},
    }
    return OmegaConf.merge(OmegaConf.create(defaults), saved)  # type: ignore[return-value]


def _check_same(run: Run, key: str, saved: DictConfig, config: DictConfig) -> None:
    names = [f"{key}.name"] if key in GROUPS else [key]
    for name in names:
        before, now = OmegaConf.select(saved, name), OmegaConf.select(config, name)
        if before != now:
            raise UsageError(f"{name} must be {_shown(before)}, as in the run '{run.path}', got {_shown(now)}")


def _shown(value: Any) -> str:
    return str(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else repr(value)


def initial_model(init: str) -> Path:
    """
    The model file from whose weights a run starts.

    :param init: the folder of a run, or a zip
    :raises UsageError: if it is neither
    """
    path = Path(init).expanduser()
    if path.is_dir():
        path = Run.open(path).model_path("last")
    require(path.is_file(), "init must be the folder of a run or a saved model", init)
    return path
