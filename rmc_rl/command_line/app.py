"""
How a verb (``rmc_rl.train``, ``rmc_rl.evaluate``) is run: through Hydra, with a user's mistakes explained in one line.

Exit status: 0; 1 if something outside the program failed (a full disk, a worker process); 2 after a mistake of the user; 3
after a number that is not finite; 128 and the number of the signal that stopped it. A traceback means a bug.
"""

import importlib
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rmc_rl.agents import parallel
from rmc_rl.command_line.help import CONFIGS, help_text
from rmc_rl.command_line.overrides import as_typed, check_overrides, env_keywords, first_line, missing_launcher
from rmc_rl.command_line.progress import say, told
from rmc_rl.command_line.schema import check_keys
from rmc_rl.command_line.sweep import Job, current_sweep, end_sweep, is_sweeping, run_job, with_resume
from rmc_rl.compat import hydra_arguments
from rmc_rl.errors import UsageError, require

FAILED, MISTAKE, NOT_FINITE = 1, 2, 3  # exit statuses
STARTED_BY = "RMC_RL_COMMAND"  # the environment variable with which scripts/rmc says how it was started
# flags that show no configuration of ours, or read one of the user's own: Hydra checks these command lines alone
LEFT_TO_HYDRA = ("hydra_help", "shell_completion", "config_name", "config_path", "info")


def run_verb(
    verb: Callable[[DictConfig, str | None], int],
    name: str,
    description: str,
    schema: type,
    family_of: Callable[[str], str] | None = None,
    at_sweep_end: Callable[[Sequence[Job]], None] | None = None,
) -> None:
    """
    Run a verb (``train``, ``evaluate`` ...); exit the process if it fails.

    :param verb: takes the checked configuration and the command line that repeats it; returns the exit status
    :param name: of the verb and its YAML file, as in "train"
    :param description: the text of ``--help`` before the keys
    :param schema: the types of its keys
    :param family_of: from an environment's id to the name of its defaults in ``configs/family``; None: the verb has none
    :param at_sweep_end: tells what follows from the jobs of a sweep that are done or failed, once it has ended
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see rmc_rl/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not getattr(sys.flags, "safe_path", False) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, so that modules of the user are found from a script as well
    typed, status = sys.argv[1:], 0
    try:
        _join(name)
        if _prepare(name, description, schema, family_of):
            status = _run(_importable(verb, name), name, schema)
    except UsageError as error:
        status = tell(error)
    except parallel.LostProcess as error:
        status = tell(error, FAILED)
    except KeyboardInterrupt:  # before there was anything to save, or between two jobs
        status = 128 + signal.SIGINT
    finally:
        again = with_resume(how_to_run(name), typed) if "resume" in schema.__annotations__ else None
        ended = end_sweep(again, at_sweep_end)
        status = status or ended
    if status:
        sys.exit(status)
    parallel.stop()


def _join(name: str) -> None:
    """Join the processes that ``torchrun`` has started together with this one, if it has."""
    parallel.start()
    require(parallel.size() == 1 or name == "train", "of the verbs, torchrun must start rmc_rl.train only", f"rmc_rl.{name}")


def tell(error: Exception, status: int = MISTAKE) -> int:
    """
    Print an error in one line. Of several processes that end by it the first one to come prints.

    :param error: the error
    :param status: the exit status for it
    :return: ``status``
    """
    line = " ".join(str(error).split())
    told["error"] = line
    with suppress(OSError):  # the terminal was closed
        if parallel.may_tell():
            print(f"error: {line}", file=sys.stderr)
    return status


def how_to_run(verb: str) -> str:
    """
    A command that runs a verb in the way in which this program was started.

    :param verb: as in "evaluate"
    :return: ``scripts/rmc evaluate``, ``rmc-rl evaluate`` or ``python -m rmc_rl.evaluate``
    """
    if started_by := os.environ.get(STARTED_BY):
        return f"{shlex.quote(started_by)} {verb}"
    return f"rmc-rl {verb}" if os.path.basename(sys.argv[0]) == "rmc-rl" else f"python -m rmc_rl.{verb}"


def _prepare(name: str, description: str, schema: type, family_of: Callable[[str], str] | None) -> bool:
    """Check the command line and put it into ``sys.argv`` as Hydra wants it; returns whether there is anything to run."""
    parser, arguments = hydra_arguments(), sys.argv[1:]
    if parser is None:
        return True
    parser.error = _refuse  # argparse would print its whole usage
    parser.add_argument("--help-all", action="store_true")
    flags = parser.parse_intermixed_args(arguments)
    require(not (flags.multirun and flags.cfg), "--cfg shows the configuration of one run: use it without -m", arguments)
    alone = parallel.size() == 1
    require(alone or not flags.multirun, "processes of torchrun train one agent together: use them without -m", arguments)
    require(not flags.resolve or flags.cfg, "--resolve needs --cfg job", arguments)
    if flags.config_dir is not None:
        require(os.path.isdir(flags.config_dir), "--config-dir must be a folder", flags.config_dir)
    lines = list(flags.overrides)
    if flags.hydra_help:
        lines = []
    elif not any(getattr(flags, flag, None) for flag in LEFT_TO_HYDRA):
        checked = check_overrides(lines, bool(flags.multirun), name, schema, family_of, own_files=bool(flags.config_dir))
        if flags.help or flags.help_all:
            say(help_text(name, description, checked.choices, env_keywords(checked.choices.get("env")), flags.help_all))
            return False
        lines = checked.lines
        if checked.num_jobs is not None:
            lines.append(f"hydra.callbacks.sweep.num_jobs={checked.num_jobs}")
    # Hydra wants its flags before the overrides or after them, but not between
    sys.argv[1:] = [argument for argument in arguments if argument not in flags.overrides] + lines
    return True


def _importable(verb: Callable[[DictConfig, str | None], int], name: str) -> Callable[[DictConfig, str | None], int]:
    """The verb as other processes import it: a function of ``__main__`` would be copied into them, with its globals."""
    if verb.__module__ != "__main__":
        return verb
    imported: Callable[[DictConfig, str | None], int] = getattr(importlib.import_module(f"rmc_rl.{name}"), verb.__name__)
    return imported


def _run(verb: Callable[[DictConfig, str | None], int], name: str, schema: type) -> int:
    """Hand over to Hydra, which calls the verb once for each job; returns the exit status if a sweep broke off."""
    running = False

    def checked(config: DictConfig) -> int:
        try:
            OmegaConf.resolve(config)
            return verb(check_keys(schema, config), _command(name))
        except UsageError as error:
            return tell(error)
        except parallel.LostProcess as error:
            return tell(error, FAILED)
        except OmegaConfBaseException as error:
            return tell(UsageError(first_line(error)))

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name=name)
    def job(config: DictConfig) -> None:  # in a sweep perhaps in another process
        nonlocal running
        running = True
        warnings.formatwarning = _format_warning
        _warn_once()
        sweep = current_sweep()
        if sweep is not None:
            run_job(sweep, lambda: checked(config))
        elif status := checked(config):
            sys.exit(status)

    format_before = warnings.formatwarning
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come out of Hydra instead of being printed there
    try:
        job()
    except Exception as error:
        if is_sweeping():  # a job keeps its own exceptions: this one is of the launcher, whose process may have been killed
            return tell(OSError(f"the sweep broke off: {type(error).__name__}: {first_line(error)}"), FAILED)
        if running:
            raise
        refused = UsageError(f"Hydra refused the command line: {first_line(error)}")
        raise missing_launcher(str(error)) or refused from None
    finally:
        warnings.formatwarning = format_before
    return 0


def _warn_once() -> None:
    """Of processes that train together only the first one warns."""
    if not parallel.is_first():
        warnings.simplefilter("ignore")


def _format_warning(message: Warning | str, *_args: object, **_kwargs: object) -> str:
    return f"warning: {message}\n"


def _command(verb: str) -> str:
    """The command line that repeats the present job alone, also if it is one of a sweep."""
    hydra_config = HydraConfig.get()
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    flags = [f"--config-dir={os.path.relpath(folder)}" for folder in folders]
    lines = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    assert isinstance(lines, list)
    return shlex.join(["python", "-m", f"rmc_rl.{verb}", *flags, *map(as_typed, lines)])


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message}; --help-all lists the keys and flags")
