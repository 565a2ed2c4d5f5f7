"""
What of a run leaves the machine, and how it comes back: a folder as the Hugging Face Hub expects it.

    README.md                  the model card: YAML for the Hub, then text
    config.yaml                the run's configuration, without paths of the machine
    model.safetensors          the tensors of the policy
    model.normalization.json   of a run with normalize: the statistics of observations
    evaluation.json            the evaluation that the card states
    model.zip                  the model as Stable-Baselines3 saves it, for its own load, which executes what the file holds
    replay.mp4                 or .gif: a film, if the run has one

Tensors are read and written by the package safetensors, whose files hold nothing that can be executed:
https://huggingface.co/docs/safetensors.
"""

import base64
import importlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from rmc_rl.errors import UsageError, require
from rmc_rl.runs.folder import Run, written_whole

HUB = "hf://"
WEIGHTS, ZIP, CARD, CONFIG, EVALUATION = "model.safetensors", "model.zip", "README.md", "config.yaml", "evaluation.json"
DOWNLOADED = (CONFIG, WEIGHTS, "model.normalization.json")  # what loading needs: no zip
FILMS = (".mp4", ".gif")  # that the Hub shows, the first kind first
OF_THE_MACHINE = ("runs_dir", "name", "resume", "init")  # keys that say where files lie, which acting does not depend on
LARGEST_EVALUATION = 1 << 26  # bytes
SERIALIZED = re.compile(rb'":serialized:": "([A-Za-z0-9+/=]+)"')  # SB3's base64 of pickled values


def shareable(config: DictConfig) -> dict[str, Any]:
    """
    A run's configuration as plain data, without paths of the machine that trained it.

    Keys that say where files lie are left out, and so is the command line. Of an absolute path that is the value of another
    key, as in ``env_kwargs.data``, only the last part stays.

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


def find_evaluation(
    run: Run, model: str, env: str, env_kwargs: Mapping[str, Any], timesteps: int | None
) -> dict[str, Any] | None:
    """
    The newest evaluation of a model in the environment that it was trained in.

    :param run: the run
    :param model: "last" or "best"
    :param env: the environment's id
    :param env_kwargs: its keywords
    :param timesteps: steps that the model was trained for: an evaluation of an earlier one does not count
    :return: what ``rmc_rl.evaluate`` has written; None if there is none
    """
    wanted = dict(model=model, env=env, env_kwargs=env_kwargs, timesteps_trained=timesteps)
    for path in sorted((run.path / "evaluations").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            found = json.loads(path.read_text()) if path.stat().st_size <= LARGEST_EVALUATION else None
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items()):
            return found
    return None


def find_film(run: Run) -> Path | None:
    """
    The newest film of a run that the Hub can show; None if there is none.

    :param run: the run
    """
    films = [
        path for kind in FILMS for path in sorted((run.path / "films").glob(f"*{kind}"), key=lambda path: path.stat().st_mtime)
    ]
    return next((path for kind in FILMS for path in reversed(films) if path.suffix == kind), None)


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """
    Write plain data as YAML.

    :param path: the file
    :param data: the data
    """
    with written_whole(path) as file:
        file.write(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True).encode())


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], timesteps: int | None) -> None:
    """
    Write the tensors of a policy as safetensors.

    :param path: the file
    :param tensors: by name
    :param timesteps: steps of the environment that the policy was trained for
    :raises UsageError: if safetensors is not installed
    """
    about = {"format": "pt"} | ({} if timesteps is None else {"num_timesteps": str(timesteps)})
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    _safetensors(".torch").save_file(plain, path, about)


def read_weights(path: Path, limit: int) -> tuple[dict[str, torch.Tensor], int | None]:
    """
    The tensors of a policy, and the steps that it was trained for.

    :param path: a file that :func:`write_weights` has written, or a stranger
    :param limit: bytes that it may have
    :raises UsageError: if it is damaged, or safetensors is not installed
    """
    rule = f"model must be a file of safetensors, got '{path}'"
    library = _safetensors()
    try:
        require(path.stat().st_size <= limit, f"{rule}: it must have at most {limit:,} bytes", path.stat().st_size)
        with library.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
            stated = (file.metadata() or {}).get("num_timesteps", "")
    except UsageError:
        raise
    except Exception as error:  # SafetensorError, OSError ...
        raise UsageError(f"{rule}: {' '.join(str(error).split())}") from None
    return tensors, int(stated) if stated.isdecimal() else None


def download(address: str) -> Path:
    """
    Download a shared policy from the Hugging Face Hub, or find it in the Hub's cache.

    :param address: ``hf://user/name`` or ``hf://user/name@revision``
    :return: the folder
    :raises UsageError: if huggingface_hub is not installed, or there is no such repository
    """
    repository, _, revision = address.removeprefix(HUB).partition("@")
    require(repository.count("/") == 1, "run must be hf://user/name or hf://user/name@revision", address)
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UsageError(f"'{address}' needs huggingface_hub: pip install 'rmc-rl[hub]' ({error})") from None
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(DOWNLOADED)))
    except Exception as error:  # no network, no such repository, no permission ...
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"run must be a repository of the Hub that can be reached, got '{address}': {why}") from error


def check_no_paths(folder: Path, run: Run) -> None:
    """
    Check that no file names a folder of this machine: the user's home, the working directory, the run or this package.

    Parts of zip files and the values that Stable-Baselines3 has pickled in them are searched too.

    :param folder: what will be shared
    :param run: the run it comes from
    :raises UsageError: for the first file that does
    """
    places = {Path.home(), Path.cwd(), run.path.absolute(), run.path.resolve(), Path(__file__).resolve().parents[2]}
    words = {str(place).encode() for place in places if len(place.parts) > 1}
    for path in sorted(folder.iterdir()):
        if path.suffix in FILMS:
            continue
        for data in _contents(path):
            found = next((word for word in words if re.search(re.escape(word) + rb"(?![A-Za-z0-9])", data)), None)
            rule = f"{path.name} must hold no path of this machine" + ("; zip=false leaves it out" if path.name == ZIP else "")
            require(found is None, rule, found and found.decode())


def _contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file; of a zip, of each part and of the values pickled in it."""
    if path.suffix != ".zip":
        yield path.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            data = archive.read(part)
            yield data
            yield from map(base64.b64decode, SERIALIZED.findall(data))


def _safetensors(module: str = "") -> Any:
    """The package safetensors, or one of its modules."""
    try:
        return importlib.import_module(f"safetensors{module}")
    except ImportError as error:
        raise UsageError(f"weights as safetensors need more packages: pip install 'rmc-rl[hub]' ({error})") from None
