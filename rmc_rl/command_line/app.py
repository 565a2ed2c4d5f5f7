"""What the verbs (``rmc_rl.train``, ``rmc_rl.evaluate``) share: Hydra, with a user's mistakes told in one line."""

import ctypes.util
import itertools
import re
import signal
import sys
import textwrap
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmc_rl.errors import UsageError, require, unknown

CONFIGS = "rmc_rl.configs"
OPEN_KEYS = ("env_kwargs",)  # nodes that take keys unknown to us
PATHS = ("run", "runs_dir")  # keys whose values are paths
MOST_CHECKED = 100  # runs of a sweep that are checked before the first begins
MISTAKE = 2  # exit status
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_BLOCK = 1 << 30  # bytes


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
    parser = get_args_parser()
    arguments = sys.argv[1:]
    try:
        parser.error = _refuse  # type: ignore[method-assign]  # argparse would print its whole usage
        flags = parser.parse_intermixed_args(arguments)
        lines = [_open(line, bool(flags.multirun)) for line in flags.overrides]
        require(
            not (flags.multirun and flags.cfg), "--cfg shows the configuration of one run, so it goes without -m", arguments
        )
        # what shows no configuration of ours, or reads one of the user's own, is left to Hydra
        if not (flags.hydra_help or flags.shell_completion or flags.config_name or flags.config_path):
            choices = _check(lines, bool(flags.multirun), config_name, family_of, own_files=bool(flags.config_dir))
            if flags.help:
                say(_help(config_name, description, choices))
                return
            if not any(line.lstrip("+").startswith("family=") for line in lines) and "family" in choices:
                lines.append(f"family={choices['family']}")
    except UsageError as error:
        sys.exit(tell(error))
    # Hydra wants its flags before the overrides, or after them, but not between
    sys.argv[1:] = [argument for argument in arguments if argument not in flags.overrides] + lines

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

    try:
        job()
    except KeyboardInterrupt:  # before there was anything to save
        sys.exit(128 + signal.SIGINT)


def tell(error: UsageError) -> int:
    """
    Print a mistake in one line.

    :param error: the mistake
    :return: the exit status for it
    """
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return MISTAKE


def say(text: str = "") -> None:
    """
    Print for the person at the terminal.

    :param text: one line or several
    """
    print(text, flush=True)


def find_device(name: object, key: str = "device") -> torch.device:
    """
    The device a configuration names.

    :param name: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" ...
    :param key: what it is called in the configuration
    :raises UsageError: for an unknown device or one that this machine lacks
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    present = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if torch.backends.mps.is_available():
        present.append("mps")
    require(name in present, f"{key} must be one this machine has ({', '.join(present)})", name)
    return torch.device(str(name))


def keep_freed_memory() -> None:
    """
    Let glibc keep large blocks that were freed, where there is a glibc.

    By default it gives a block above 32 MB back as soon as it is freed, and maps the next one afresh, page by page.
    """
    name = ctypes.util.find_library("c")
    if sys.platform == "linux" and name is not None and hasattr(libc := ctypes.CDLL(name), "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        libc.mallopt(TRIM_THRESHOLD, LARGEST_BLOCK)


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message}; --help lists what there is")


def _open(line: str, multirun: bool) -> str:
    """
    Save a user two details of Hydra's grammar.

    ``env_kwargs.delay=5`` becomes ``++env_kwargs.delay=5``, Hydra's way to set a key that may be new; a path with
    characters that mean something to Hydra gets quotes.
    """
    key, equals, value = line.partition("=")
    if key.split(".")[0] in OPEN_KEYS:
        return f"++{line}"
    if key in PATHS and not multirun and re.search(r"[^\w./:-]", value) and value[0] not in "\"'$":
        value = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{key}{equals}"{value}"'
    return line


def _check(
    lines: list[str], multirun: bool, config_name: str, family_of: Callable[[str], str] | None, own_files: bool
) -> dict[str, str]:
    """
    Find mistakes before Hydra does, which would answer in many lines.

    :param own_files: the user has added a folder of YAML files, so names and keys may be new
    :return: what the command line chooses of each group of YAML files, for the first run of a sweep
    :raises UsageError: for the first mistake
    """
    try:
        GlobalHydra.instance().clear()
        with initialize_config_module(CONFIGS, version_base="1.3"):
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            overrides = [_parse(parser, line) for line in lines]
            multirun = multirun or any(override.key_or_group == "hydra.mode" for override in overrides)
            if own_files:  # then only the environment's own part matters
                lines = [line for line in lines if line.startswith("env=")]
                overrides = [_parse(parser, line) for line in lines]
            for override in overrides:
                if override.is_sweep_override():
                    rule = f"{override.key_or_group} must have one value; a sweep over several needs -m"
                    require(multirun, rule, override.input_line)
            jobs = itertools.product(*(_runs(override) for override in overrides))
            checked = [_check_run(list(job), config_name, family_of) for job in itertools.islice(jobs, MOST_CHECKED)]
            require(bool(checked), "a sweep must have at least one run, so each pattern a match", lines)
            given = any(override.key_or_group == "family" for override in overrides)
            families = sorted({choices["family"] for choices in checked if "family" in choices})
            require(given or len(families) < 2, "the environments of a sweep must be of one family of worlds", families)
            return checked[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_first_line(error)) from None


def _runs(override: Override) -> list[str]:
    """An override as it stands for each run of a sweep."""
    if override.is_sweep_override():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [str(override.input_line)]


def _check_run(lines: list[str], config_name: str, family_of: Callable[[str], str] | None) -> dict[str, str]:
    """Find the mistakes in the command line of one run; returns its choices of YAML files."""
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create().parse_overrides(lines)
    choices, chosen = {}, []
    for override in overrides:
        key, value = str(override.key_or_group), override.value()
        options = loader.get_group_options(key)
        if options:
            choices[key] = str(getattr(value, "text", value))
            chosen.append(str(override.input_line))
            if choices[key] not in options:
                raise unknown(key, choices[key], options)
    known = _keys(OmegaConf.to_container(compose(config_name, overrides=chosen)))
    for override in overrides:
        key = str(override.key_or_group)
        if key not in choices and key not in known and key.split(".")[0] not in (*OPEN_KEYS, "hydra"):
            node, _, leaf = key.rpartition(".")
            siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == node]
            raise unknown(f"key of {node}", leaf, siblings) if node and siblings else unknown("key", key, known)
    config = compose(config_name, overrides=lines)
    if family_of is not None:
        choices.setdefault("family", family_of(config.env))
        for group in ("core", "algo"):
            choices.setdefault(group, str(OmegaConf.select(config, f"{group}.name")))
    return choices


def _help(config_name: str, description: str, choices: dict[str, str]) -> str:
    """What ``--help`` prints: the description and the YAML files that a command line reads, with their comments."""
    files = {f"Keys and their defaults ({config_name}.yaml)": f"{config_name}.yaml"}
    for group in ("algo", "family", "core"):
        if group in choices:
            options = ", ".join(sorted(path.stem for path in (_config_folder() / group).glob("*.yaml")))
            of = "" if group == "family" else f" of {group}"
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


def _parse(parser: OverridesParser, line: str) -> Override:
    try:
        return parser.parse_overrides([line])[0]  # parse_override leaves out what glob() needs
    except HydraException:
        rule = "an argument must read key=value, with brackets and quotes closed, and quotes around a value with = or commas"
        raise UsageError(f"{rule}, as in 'key=\"a=b\"'; got '{line.removeprefix('++')}'") from None


def _keys(node: Any, prefix: str = "") -> list[str]:
    """All keys of a configuration, dotted."""
    keys = []
    for key, value in node.items() if isinstance(node, dict) else ():
        keys += [f"{prefix}{key}", *_keys(value, f"{prefix}{key}.")]
    return keys


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
