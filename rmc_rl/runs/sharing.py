"""What of a run may leave the machine: its configuration without paths."""

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from omegaconf import DictConfig, OmegaConf

OF_THE_MACHINE = ("runs_dir", "name", "resume", "init")  # keys that say where files lie, which acting does not depend on


def shareable(config: DictConfig) -> dict[str, Any]:
    """
    A run's configuration as plain data, without paths of the machine that trained it.

    Keys that say where files lie are left out, and so is the command line. Of a path that is the value of another key, as in
    ``env_kwargs.data``, only the last part stays.

    :param config: the run's configuration
    """
    plain: Any = OmegaConf.to_container(config)
    kept = {key: value for key, value in plain.items() if key not in OF_THE_MACHINE}
    kept["run"] = {key: value for key, value in (kept.get("run") or {}).items() if key != "command"}
    return without_paths(kept)  # type: ignore[no-any-return]


def without_paths(value: Any) -> Any:
    """
    Plain data in which only the last part of absolute paths is left.

    :param value: any nesting of lists and dictionaries
    """
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(without_paths, value))
    if isinstance(value, str) and "\n" not in value:
        windows = PureWindowsPath(value)
        if value.startswith(("/", "~")):
            return PurePosixPath(value).name
        if windows.drive and windows.root:
            return windows.name
    return value
