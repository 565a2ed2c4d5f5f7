"""What the verbs (``rmc_rl.train``, ``rmc_rl.evaluate``) share: Hydra, with a user's mistakes told in one line."""

import re
import sys
import textwrap
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmc_rl.errors import UsageError, require, unknown

CONFIGS = "rmc_rl.configs"
OPEN_KEYS = ("env_kwargs",)  # nodes that take keys unknown to us
MISTAKE = 2  # exit status


def run_verb(
    verb: Callable[[DictConfig], int], config_name: str, description: str, family_of: Callable[[str], str] | None = None
) -> None:
    """
    Run a verb of the command line.

    :param verb: takes the resolved configuration and returns the exit status
    :param config_name: the verb's YAML file, without its ending
    :param description: what ``--help`` says before the keys
    :param family_of: from an environment's id to the name of its defaults in ``configs/family``; None: the verb has none
    """
    arguments = sys.argv[1:]
    flags = get_args_parser().parse_intermixed_args(arguments)
    overrides = [_open(override) for override in flags.overrides]
    try:
        # a configuration of the user's own is Hydra's to check
        if not (flags.hydra_help or flags.config_dir or flags.config_name):
            choices = _check(overrides, bool(flags.multirun), config_name, family_of)
            if flags.help:
                say(_help(config_name, description, choices))
                return
            if "family" in choices:
                overrides.append(f"family={choices['family']}")
    except UsageError as error:
        sys.exit(tell(error))
    # Hydra wants its flags before the overrides, or after them, but not between
    sys.argv[1:] = [argument for argument in arguments if argument not in flags.overrides] + overrides

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name=config_name)
    def job(config: DictConfig) -> None:
        try:
            OmegaConf.resolve(config)
            status = verb(config)
        except UsageError as error:
            status = tell(error)
        except OmegaConfBaseException as error:
            status = tell(UsageError(_first_line(error)))
        if status:
            sys.exit(status)

    job()


def tell(error: UsageError) -> int:
    """
    Print a mistake in one line.

    :param error: the mistake
    :return: the exit status for it
    """
    print(f"error: {error}", file=sys.stderr)
    return MISTAKE


def say(text: str = "") -> None:
    """
    Print for the person at the terminal.

    :param text: one line or several
    """
    print(text, flush=True)


def find_device(name: object) -> torch.device:
    """
    The device a configuration names.

    :param name: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" ...
    :raises UsageError: for an unknown device or one that this machine lacks
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    present = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if torch.backends.mps.is_available():
        present.append("mps")
    require(name in present, f"device must be one this machine has ({', '.join(present)})", name)
    return torch.device(str(name))


def _open(argument: str) -> str:
    """``env_kwargs.delay=5`` -> ``++env_kwargs.delay=5``: Hydra's way to set a key that may be new."""
    return f"++{argument}" if argument.split("=")[0].split(".")[0] in OPEN_KEYS else argument


def _check(lines: list[str], multirun: bool, config_name: str, family_of: Callable[[str], str] | None) -> dict[str, str]:
    """
    Find mistakes before Hydra does, which would answer in many lines.

    :return: what the command line chooses of each group of YAML files; in a sweep its first choice
    :raises UsageError: for the first mistake
    """
    try:
        overrides = [_parse(line) for line in lines]
        GlobalHydra.instance().clear()
        with initialize_config_module(CONFIGS, version_base="1.3"):
            base, loader = compose(config_name), GlobalHydra.instance().config_loader()
            given = {str(override.key_or_group): _values(override) for override in overrides}
            groups = {key: loader.get_group_options(key) for key in (*given, "core", "family")}
            choices = {"core": base.core.name} if "core" in base else {}
            for override in overrides:
                key, values = str(override.key_or_group), _values(override)
                for value in values if groups[key] else ():
                    if value not in groups[key]:
                        raise unknown(key, value, groups[key])
                if override.is_sweep_override():
                    require(multirun, f"{key} must have one value; a sweep over several needs -m", override.input_line)
                if groups[key]:
                    choices[key] = str(values[0])
            if family_of is not None and "family" not in given:
                families = sorted({family_of(str(env_id)) for env_id in given.get("env", [base.env])})
                require(len(families) == 1, "the environments of a sweep must be of one family of worlds", families)
                choices["family"] = families[0]
            chosen = [f"{group}={choice}" for group, choice in choices.items()]
            known = _keys(OmegaConf.to_container(compose(config_name, overrides=chosen)))
            for key in given:
                if not (groups[key] or key in known or key.split(".")[0] in (*OPEN_KEYS, "hydra")):
                    node, _, leaf = key.rpartition(".")
                    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == node]
                    raise unknown(f"key of {node}", leaf, siblings) if node and siblings else unknown("key", key, known)
            single = [o for o in overrides if not (o.is_sweep_override() or groups[str(o.key_or_group)])]
            compose(config_name, overrides=[*chosen, *(str(override.input_line) for override in single)])
            return choices
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_first_line(error)) from None


def _help(config_name: str, description: str, choices: dict[str, str]) -> str:
    """What ``--help`` prints: the description and the YAML files that a command line reads, with their comments."""
    files = {f"Keys and their defaults ({config_name}.yaml)": f"{config_name}.yaml"}
    for group in ("family", "core"):
        if group in choices:
            options = ", ".join(sorted(path.stem for path in (_config_folder() / group).glob("*.yaml")))
            of = " of core" if group == "core" else ""
            title = f"{group}={choices[group]} sets these keys{of} ({group} is one of {options})"
            files[title] = f"{group}/{choices[group]}.yaml"
    parts = [description.strip()]
    for title, name in files.items():
        # blocks begin at lines that are not indented
        blocks = re.split(r"\n(?=\S)", (_config_folder() / name).read_text().strip())
        shown = [block.rstrip() for block in blocks if not block.startswith(("defaults:", "hydra:", "# @package"))]
        parts.append(f"{title}:\n\n" + textwrap.indent("\n".join(shown), "  "))
    parts.append(
        "Precedence, low to high: these files in this order, then the command line.\n"
        "env_kwargs takes any keyword of the environment.\n"
        "--cfg job prints the configuration and ends. -m runs every combination of key=a,b,c. --hydra-help tells the rest."
    )
    return "\n\n".join(parts)


def _config_folder() -> Path:
    return Path(str(resources.files(CONFIGS)))


def _parse(line: str) -> Override:
    try:
        return OverridesParser.create().parse_override(line)
    except HydraException:
        raise UsageError(f"an argument must read key=value, with Hydra's grammar for the value, got '{line}'") from None


def _values(override: Override) -> list[Any]:
    """The values an override gives its key: several in a sweep."""
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    return [getattr(item, "text", item) for item in values]


def _keys(node: Any, prefix: str = "") -> list[str]:
    """All keys of a configuration, dotted."""
    keys = []
    for key, value in node.items() if isinstance(node, dict) else ():
        keys += [f"{prefix}{key}", *_keys(value, f"{prefix}{key}.")]
    return keys


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
