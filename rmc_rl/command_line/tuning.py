"""From a command line of :mod:`rmc_rl.tune` to what is searched and fixed, and the best trial as arguments and as YAML."""

import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rmc_rl.command_line.help import CONFIGS, GROUPS, group_options
from rmc_rl.command_line.overrides import first_line, given_key
from rmc_rl.command_line.schema import TrainKeys, TuneKeys, check_keys
from rmc_rl.envs.make_vec import env_family
from rmc_rl.errors import UsageError, require, unknown
from rmc_rl.runs.folder import written_whole
from rmc_rl.studies.search_space import Parameter, as_override, flat_space, make_parameter

# nodes and keys that may be searched: what decides how an agent learns, not what it learns
SEARCHED = ("algo", "core", "policy", "n_envs", "normalize", "params")
NOT_SEARCHED = ("algo.name", "core.name")
OF_TUNE = tuple(TuneKeys.__annotations__)
OF_EACH_RUN = ("seed", "runs_dir", "name", "resume")  # keys of train that tune sets for each run
FREE = ("checkpoint_every", "device", "keep_checkpoints", "num_threads")  # may differ between the processes of a study
SHIPPED = "the shipped space"


def split_command(command: str) -> tuple[list[str], list[str]]:
    """
    What a command line of ``tune`` says for ``train``.

    :param command: ``python -m rmc_rl.tune ...``
    :return: its flags, and its arguments ``key=value`` without the keys of ``tune`` and those of each run
    """
    words = shlex.split(command)[3:]
    own = (*OF_TUNE, *OF_EACH_RUN)
    flags = [word for word in words if word.startswith("-")]
    return flags, [word for word in words if word not in flags and given_key(word).split(".")[0] not in own]


def find_space(config: DictConfig, fixed: Sequence[str]) -> list[Parameter]:
    """
    What the study searches: the user's file, or the shipped files and the user's keys.

    :param config: checked; see ``configs/tune.yaml``
    :param fixed: the arguments for all runs; a key that stands there is not searched
    :raises UsageError: for a mistake in the space
    """
    known = searchable(config)
    typed = {given_key(line) for line in fixed}
    if isinstance(config.space, str | int | float):
        own, where, shipped = _read(str(config.space)), f"'{config.space}'", {}
    else:
        require(OmegaConf.is_dict(config.space), "space must hold keys, or be the path of a YAML file", config.space)
        own, where = flat_space(_plain(config.space), "space"), "space"
        shipped = {key: entry for key, entry in _shipped(config).items() if key in known}
        if config.params is not None:  # which sets the size of the core
            shipped = {key: entry for key, entry in shipped.items() if not key.startswith("core.")}
    for key in own:
        if key not in known:
            raise unknown(f"key of {where}", key, known)
        require(key not in typed, f"{key} must be fixed or searched, not both", own[key])
    entries = {key: (entry, SHIPPED) for key, entry in shipped.items() if key not in typed and key not in own}
    entries |= {key: (entry, where) for key, entry in own.items()}
    space = [make_parameter(key, entry, origin) for key, (entry, origin) in entries.items() if entry is not None]
    require(bool(space), "space must have at least one key", list(own))
    for parameter in space:
        for value in parameter.extremes:
            _check_value(config, parameter.key, value)
    return sorted(space, key=lambda parameter: parameter.key)


def searchable(config: DictConfig) -> list[str]:
    """
    The keys that may be searched, dotted.

    :param config: checked; see ``configs/tune.yaml``
    """
    found: list[str] = []
    for key in SEARCHED:
        node = config[key]
        found += [f"{key}.{name}" for name in map(str, node)] if isinstance(node, DictConfig) else [key]
    return [key for key in found if key not in NOT_SEARCHED]


def _shipped(config: DictConfig) -> dict[str, Any]:
    """The shipped space: that of all cores, of the family of the world, and of the core."""
    folder = Path(str(resources.files(CONFIGS))) / "tune"
    names = ["space.yaml", f"family/{env_family(config.env)}.yaml", f"core/{config.core.name}.yaml"]
    found: dict[str, Any] = {}
    for path in (folder / name for name in names):
        if path.is_file():
            found |= _read(str(path))
    if config.algo.name == "stock":
        found.pop("algo.sequence_length", None)
    return found


def _read(path: str) -> dict[str, Any]:
    rule = "space must be a YAML file with keys, as in rmc_rl/configs/tune/space.yaml"
    try:
        config = OmegaConf.load(Path(path).expanduser())  # it reads 1e-4 as a number
        content = OmegaConf.to_container(config, resolve=True)
    except (OSError, ValueError, RuntimeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{rule}, got '{path}': {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{rule}, got '{path}'")
    return flat_space({str(key): value for key, value in content.items()}, f"'{path}'")


def _check_value(config: DictConfig, key: str, value: Any) -> None:
    """Check that a value has the type that its key needs."""
    trial = OmegaConf.masked_copy(config, [str(name) for name in config if name not in OF_TUNE])
    try:
        with open_dict(trial):
            OmegaConf.update(trial, key, value, merge=False)
        check_keys(TrainKeys, trial)
    except (UsageError, OmegaConfBaseException) as error:
        raise UsageError(f"{key} cannot be searched with the value {as_override(value)}: {first_line(error)}") from None


def first_trial(config: DictConfig, space: Sequence[Parameter]) -> dict[str, Any]:
    """
    The trial that the study begins with: the configuration without tuning, or what is nearest to it in the space.

    :param config: checked; see ``configs/tune.yaml``
    :param space: what is searched
    :return: what Optuna stores; a key whose value is none of its choices is left out
    """
    found = {}
    for parameter in space:
        value = OmegaConf.select(config, parameter.key)
        stored = parameter.nearest(_plain(value))
        if stored is not None or (parameter.choices and value is None and None in parameter.choices):
            found[parameter.name] = stored
    return found


def settings(config: DictConfig, fixed: Sequence[str], space: Sequence[Parameter]) -> dict[str, Any]:
    """
    What must be the same in every process of a study.

    :param config: checked; see ``configs/tune.yaml``
    :param fixed: the arguments for all runs
    :param space: what is searched
    """
    arguments = dict(sorted(line.lstrip("+").partition("=")[::2] for line in fixed))
    named = {"env": config.env, "core": config.core.name}
    rest = {key: value for key, value in arguments.items() if key not in (*FREE, *named, "family")}
    numbers = {"seeds": config.seeds, "seed": config.seed, "total_timesteps": config.total_timesteps}
    searched = {parameter.key: parameter.describe() for parameter in space}
    return {**named, **numbers, "arguments": rest, "space": searched}


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """
    The values of a trial for the command line of ``train``.

    :param values: key -> value
    """
    return [f"{key}={as_override(value)}" for key, value in values.items()]


def write_best(folder: Path, config: DictConfig, fixed: Sequence[str], values: Mapping[str, Any], comment: str) -> list[str]:
    """
    Write a trial as a YAML file for ``--config-dir``.

    :param folder: of the study
    :param config: checked; see ``configs/tune.yaml``
    :param fixed: the arguments for all runs
    :param values: of the trial, key -> value
    :param comment: the first line of the file
    :return: the arguments with which ``train`` reads the file
    """
    keys = {given_key(line) for line in fixed} - {"family"}
    content: Any = OmegaConf.create({"env": config.env, "total_timesteps": config.total_timesteps})
    for key in sorted(keys - set(GROUPS)):
        OmegaConf.update(content, key, OmegaConf.select(config, key), merge=False)
    for key, value in values.items():
        OmegaConf.update(content, key, value, merge=False)
    chosen = {"family": env_family(config.env), "algo": config.algo.name, "core": config.core.name}
    named = {group: name for group, name in chosen.items() if name in group_options(group)}
    defaults = ["_self_", *({f"override /{group}": name} for group, name in named.items())]
    text = yaml.safe_dump({"defaults": defaults}, sort_keys=False) + OmegaConf.to_yaml(content)
    path = folder / "tuned" / "best.yaml"
    path.parent.mkdir(exist_ok=True)
    with written_whole(path) as file:
        file.write(f"# @package _global_\n# {comment}\n{text}".encode())
    own = [] if "core" in named else [f"core={config.core.name}"]  # of a module: Hydra knows it by the command line alone
    return [f"--config-dir={folder}", "+tuned=best", *own]


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
