"""
Reading ``key=value`` before Hydra does: Hydra explains a mistake in many lines, this in one.

Each job of a sweep is composed once, up to a limit.
"""

import importlib.util
import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

from gymnasium.envs.registration import load_env_creator
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmc_rl.agents.cores import core_class
from rmc_rl.command_line.help import CONFIGS, GROUPS, group_options
from rmc_rl.command_line.schema import check_keys
from rmc_rl.compat import forget_hydra, hydra_launchers, hydra_overrides_parser
from rmc_rl.envs import WORLDS
from rmc_rl.envs.atari import AtariVecEnv, is_atari
from rmc_rl.envs.make_vec import find_spec
from rmc_rl.errors import UsageError, require, unknown

OPEN_KEYS = ("env_kwargs", "evaluation.env_kwargs", "curriculum", "space")  # nodes that take keys unknown to us
NO_KEYWORDS = ("self", "spec", "num_envs", "device", "args", "kwargs")  # parameters of environments' classes that are none
LISTS = ("runs", "by")  # keys whose values may be several names, with commas between them or as a list in brackets
PATHS = (*LISTS, "run", "out", "runs_dir", "model", "resume", "init", "study")  # keys whose values are paths
MOST_CHECKED = 100  # jobs of a sweep that are checked before the first begins
MOST_JOBS = 10_000  # of a sweep
LAUNCHERS = {  # hydra/launcher -> its module, and the extra of ours that installs it
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "sweeps"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
GRAMMAR = "an argument must read key=value, with brackets and quotes closed, and quotes around a value with = or commas"


class Checked(NamedTuple):
    """A command line without mistakes."""

    lines: list[str]  # for Hydra
    choices: dict[str, str]  # of each group of YAML files, and "env", for the first job
    num_jobs: int | None = None  # of a sweep; None: this is none, or a sweeper of its own decides


def check_overrides(
    lines: Sequence[str],
    multirun: bool,
    config_name: str,
    schema: type[Any],
    family_of: Callable[[str], str] | None,
    own_files: bool,
) -> Checked:
    """
    Find mistakes before Hydra does.

    :param lines: the arguments ``key=value``
    :param multirun: whether this is a sweep
    :param config_name: the verb's YAML file, without its ending
    :param schema: the types of its keys
    :param family_of: from an environment's id to the name of its defaults in ``configs/family``; None: the verb has none
    :param own_files: the user has added a folder of YAML files, so that names and keys may be new
    :return: the lines for Hydra, with the environment's family
    :raises UsageError: for the first mistake
    """
    opened = [_open(line, multirun) for line in lines]
    try:
        forget_hydra()
        with initialize_config_module(CONFIGS, version_base="1.3"):
            parser = hydra_overrides_parser()
            if parser is None:  # then Hydra finds the mistakes itself
                return Checked(opened, {})
            overrides = [_parse(parser, line) for line in opened]
            _require_launcher(overrides, own_files)
            multirun = multirun or any(each.key_or_group == "hydra.mode" for each in overrides)
            for each in overrides:
                rule = f"{each.key_or_group} must have one value; a sweep over several needs -m"
                require(multirun or not each.is_sweep_override(), rule, each.input_line)
            jobs = _jobs(overrides)
            checked = [_check_job(parser, job, config_name, schema, family_of, own_files) for job in jobs]
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(first_line(error)) from None
    families = sorted({choices["family"] for choices in checked if "family" in choices})
    require(len(families) < 2, "the environments of a sweep must be of one family of worlds", families)
    named = {each.key_or_group for each in overrides}
    # Hydra first composes a sweep without the swept choices: core.width of -m core=lstm,gru is a new key there
    swept = {each.key_or_group for each in overrides if each.is_sweep_override()} & set(GROUPS)
    opened = [f"++{line}" if line.split(".")[0] in swept else line for line in opened]
    if families and "env" in named and "family" not in named:
        opened.append(f"family={families[0]}")
    own_sweeper = any(each.key_or_group == "hydra/sweeper" for each in overrides)
    num_jobs = math.prod(map(_num_values, overrides)) if multirun and not own_sweeper else None
    return Checked(opened, checked[0], num_jobs)


def first_line(error: Exception) -> str:
    """
    What an exception says, in one line.

    :param error: the exception
    :return: the first line of its text that is not empty
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def as_typed(line: str) -> str:
    """
    A line for Hydra as a person types it.

    :param line: ``key=value``, perhaps with the ``++`` that :func:`check_overrides` adds
    """
    typed = line.removeprefix("++")
    return typed if _is_open(given_key(typed)) or typed.split(".")[0] in GROUPS else line


def given_key(line: str) -> str:
    """
    The key of an argument.

    :param line: ``key=value``, perhaps with the signs of Hydra's grammar before it
    """
    return line.lstrip("+~").partition("=")[0]


def _is_open(key: str) -> bool:
    """Whether a key lies in a node that takes keys unknown to us, or is such a node."""
    return any(key == node or key.startswith(f"{node}.") for node in OPEN_KEYS)


def _open(line: str, multirun: bool) -> str:
    """
    Spare the user two details of Hydra's grammar.

    ``env_kwargs.delay=5`` becomes ``++env_kwargs.delay=5``, Hydra's way to set a key that may be new; a path with
    characters that mean something to Hydra gets quotes, but not a list in brackets.
    """
    key, equals, value = line.partition("=")
    if _is_open(key):
        return f"++{line}"
    if key in PATHS and not multirun and re.search(r"[^\w./:-]", value) and value[0] not in "\"'$":
        if key in LISTS and value[0] == "[":
            return line
        value = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{key}{equals}"{value}"'
    return line


def _parse(parser: Any, line: str) -> Any:
    try:
        return parser.parse_overrides([line])[0]  # parse_override leaves out what glob() needs
    except HydraException:
        raise UsageError(f"{GRAMMAR}, as in 'key=\"a=b\"'; got '{as_typed(line)}'") from None


def _require_launcher(overrides: Sequence[Any], own_files: bool) -> None:
    """Check that the launcher of a sweep exists and is installed."""
    launcher = next((each.value() for each in overrides if each.key_or_group == "hydra/launcher"), None)
    if launcher is None:
        return
    if missing := missing_launcher(f"hydra/launcher/{launcher}"):
        raise missing
    known = {*LAUNCHERS, *hydra_launchers()}
    if not own_files and launcher not in known:
        raise unknown("hydra/launcher", launcher, known)


def missing_launcher(text: str) -> UsageError | None:
    """
    The error for a launcher that an extra of ours would install.

    :param text: that names it as Hydra does, ``hydra/launcher/<name>``; perhaps a message of Hydra about a YAML file of the
        user that builds on it
    :return: None: the text names no such launcher, or it is installed
    """
    for name, (module, extra) in LAUNCHERS.items():
        if re.search(rf"hydra/launcher/{name}\b", text) and not _is_installed(module):
            return UsageError(f"hydra/launcher={name} needs a package that is missing: pip install 'rmc-rl[{extra}]'")
    return None


def _is_installed(module: str) -> bool:
    with suppress(ModuleNotFoundError):  # of the package around it
        return importlib.util.find_spec(module) is not None
    return False


def _jobs(overrides: Sequence[Any]) -> list[list[str]]:
    """The overrides of each job of a sweep, of the first ``MOST_CHECKED``."""
    total = math.prod(map(_num_values, overrides))
    require(total <= MOST_JOBS, f"a sweep must have at most {MOST_JOBS:,} jobs", total)
    values = [
        [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        if each.is_sweep_override()
        else [str(each.input_line)]
        for each in overrides
    ]
    jobs = [list(job) for job in itertools.islice(itertools.product(*values), MOST_CHECKED)]
    require(bool(jobs), "a sweep must have at least one job, so each pattern a match", [each.input_line for each in overrides])
    return jobs


def _num_values(override: Any) -> int:
    """How many values an override has, without making them: a range may have billions."""
    value: Any = override.value()
    if not hasattr(value, "range"):
        return 1 if not hasattr(value, "list") else len(value.list)
    if value.start is None or not value.step:
        raise UsageError(f"a range must have a start, an end and a step above 0, got '{override.input_line}'")
    num_values: int = math.ceil((value.stop - value.start) / value.step)
    return max(0, num_values)


def _check_job(
    parser: Any,
    lines: list[str],
    config_name: str,
    schema: type[Any],
    family_of: Callable[[str], str] | None,
    own_files: bool,
) -> dict[str, str]:
    """Find the mistakes in the command line of one job; returns its choices of YAML files and, as "env", the environment."""
    overrides = [_parse(parser, line) for line in lines]
    choices: dict[str, str] = {}
    for each in overrides:
        rule = "family_core follows from family and core; set the keys of core instead"
        require(own_files or each.key_or_group != "family_core", rule, each.input_line)
        options = group_options(each.key_or_group)
        if not options or each.is_delete():
            continue
        chosen = each.value()
        if each.key_or_group == "core" and isinstance(chosen, str) and ":" in chosen:
            _register_core(chosen)
        elif not own_files and chosen not in options:
            raise unknown(each.key_or_group, chosen, options)
        choices[each.key_or_group] = str(chosen)
    env = next((each.value() for each in reversed(overrides) if each.key_or_group == "env"), None)
    if family_of is not None and "family" not in choices and (env is not None or any(line == "env=null" for line in lines)):
        env = OmegaConf.create({"env": env}).env  # may be a ${...}
        choices["family"] = family_of(env)
    if own_files:
        return choices
    family = [f"family={choices['family']}"] if "family" in choices else []
    try:
        config = compose(config_name, overrides=[*lines, *family])
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides, config_name, choices, env) from None
    with suppress(OmegaConfBaseException, ValueError) if _looks_up_hydra(lines) else nullcontext():
        OmegaConf.resolve(config)
        check_keys(schema, config)
    for group in ("core", "algo"):
        if OmegaConf.select(config, group) is not None:
            choices.setdefault(group, str(OmegaConf.select(config, f"{group}.name")))
    if family_of is not None:
        choices.setdefault("family", family_of(config.env))
        choices["env"] = str(config.env)
    return choices


def _looks_up_hydra(lines: list[str]) -> bool:
    """Whether values depend on the job's number or the like, which is unknown before Hydra runs the job."""
    return any("${hydra:" in line for line in lines)


def _register_core(name: str) -> None:
    """Make ``core=module:name`` known to Hydra, with the arguments of its class as keys."""
    keys: dict[str, Any] = {"name": name}
    for parameter in inspect.signature(core_class(name)).parameters.values():
        default = MISSING if parameter.default is parameter.empty else parameter.default
        if parameter.name != "input_size" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            keys[parameter.name] = list(default) if isinstance(default, tuple) else default
    ConfigStore.instance().store(name=name, node=OmegaConf.create(keys), group="core", provider="rmc_rl")


def _explain(
    error: Exception, overrides: Sequence[Any], config_name: str, choices: dict[str, str], env: str | None
) -> UsageError:
    """The one line for a configuration that Hydra could not compose."""
    chosen = [str(each.input_line) for each in overrides if each.key_or_group in choices]
    try:
        known = _keys(OmegaConf.to_container(compose(config_name, overrides=chosen)))
    except (HydraException, OmegaConfBaseException):
        return UsageError(first_line(error))
    for each in overrides:
        key = str(each.key_or_group)
        node, _, leaf = key.rpartition(".")
        if key in known or key in choices or _is_open(key) or key.split(".")[0] == "hydra" or key.startswith("hydra/"):
            continue
        siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == node]
        if node and siblings:
            return unknown(f"key of {node}", leaf, siblings)
        elsewhere = [name for name in known if name.rpartition(".")[2] == key]
        env = env or OmegaConf.select(compose(config_name), "env")
        if key in env_keywords(env):
            elsewhere = [f"env_kwargs.{key}"]
        if elsewhere:
            return UsageError(f"unknown key '{key}'; did you mean '{elsewhere[0]}'?")
        hint = "" if env is not None or node else f", or 'env_kwargs.{key}', a keyword of the environment"
        return UsageError(f"{unknown('key', key, known)}{hint}")
    return UsageError(first_line(error))


def env_keywords(env: str | None) -> dict[str, Any]:
    """
    The keywords of an environment with their defaults, as far as its class names them.

    :param env: its id; None: none
    :return: empty if they are not known
    """
    if env is None:
        return {}
    with suppress(Exception):  # a hint is not worth an error
        spec = find_spec(env)
        creator: Any = AtariVecEnv if is_atari(spec) else WORLDS.get(spec.id, spec.entry_point)
        parameters = inspect.signature(load_env_creator(creator) if isinstance(creator, str) else creator).parameters
        own = [each for name, each in parameters.items() if name not in NO_KEYWORDS and each.kind is not each.VAR_KEYWORD]
        return {each.name: spec.kwargs.get(each.name, each.default) for each in own}
    return {}


def _keys(node: Any, prefix: str = "") -> list[str]:
    """All keys of a configuration, dotted."""
    keys = []
    for key, value in node.items() if isinstance(node, dict) else ():
        keys += [f"{prefix}{key}", *_keys(value, f"{prefix}{key}.")]
    return keys
