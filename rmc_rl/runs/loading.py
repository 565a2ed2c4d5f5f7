"""
Models read back from files that may be damaged, or come from a stranger.

:func:`load_policy` reads a run as data: it builds the policy from ``config.yaml`` and fills it with the tensors of the zip,
which load with ``weights_only=True``. It unpickles nothing and imports nothing that the run names. :func:`load_model` is SB3's
``load``, which executes what the zip holds.
"""

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import torch
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf

from rmc_rl.agents import MlpMemoryPolicy, RecurrentPPO
from rmc_rl.agents.policies import choose_policy
from rmc_rl.compat import unchecked_distributions, wrap_env
from rmc_rl.envs import make_vec
from rmc_rl.errors import UsageError, require
from rmc_rl.runs.folder import Run, find_model
from rmc_rl.runs.normalization import load_normalization, normalization_path
from rmc_rl.runs.sharing import HUB, download, read_weights
from rmc_rl.runs.signature import is_own

MOST_GROWTH = 50  # times a file may grow when it is unpacked; a saved model hardly does, its parts are not compressed
LEAST_REFUSED = 100_000_000  # bytes that may be unpacked in any case
OVERHEAD = 1 << 16  # bytes of a file of tensors beside the tensors, and
OVERHEAD_PER_TENSOR = 1 << 10  # for each of them
LARGEST_DATA = 1 << 24  # bytes of a zip's JSON
# packages whose modules a run may name
TRUSTED = ("rmc_rl", "gymnasium", "ale_py", "minigrid", "minatar")
# those that acting depends on
POLICY_KEYS = ("critic", "encoder", "channels_last", "amp", "scale_output", "net_arch", "log_std_init")


class LoadedPolicy(NamedTuple):
    """
    A policy that was loaded from a run.

    :param policy: the policy; its ``predict`` acts
    :param num_timesteps: steps of the environment that it was trained for; None if the zip does not state it
    :param config: the run's configuration
    """

    policy: MlpMemoryPolicy
    num_timesteps: int | None
    config: DictConfig


def load_policy(
    run: str | Path, model: str = "last", trust: bool = False, device: torch.device | str = "cpu"
) -> MlpMemoryPolicy:
    """
    Load the policy of a run, without executing anything that lies in its folder.

    The policy acts with ``policy.predict(observation, state, episode_start, deterministic)``.

    :param run: the folder of a run, or one of its models: ``config.yaml`` must lie beside ``model.zip`` or one folder above.
        Also a folder that ``rmc_rl.share`` made, and ``hf://user/name``, where one was uploaded to the Hugging Face Hub
        (``pip install 'rmc-rl[hub]'``)
    :param model: "last" or "best", if ``run`` is a folder
    :param trust: whether modules of other packages than this one, Gymnasium, ale-py and MiniGrid are imported if the run's
        configuration names them, as in ``core: module:name``. They may execute anything. For a run that this user made on
        this machine they are imported anyway, see :mod:`rmc_rl.runs.signature`
    :param device: where the policy lies
    :raises UsageError: in one line, if the run is damaged, or names such a module without ``trust``
    """
    path = download(str(run)) if str(run).startswith(HUB) else Path(run)
    is_model = path.suffix in (".zip", ".safetensors") and not path.is_dir()
    folder, file = find_model(None if is_model else str(path), str(path) if is_model else model)
    return read_policy(folder, file, trust, device).policy


def read_policy(run: Run, path: Path, trust: bool = False, device: torch.device | str = "cpu") -> LoadedPolicy:
    """
    Like :func:`load_policy`, with the number of timesteps and the configuration.

    :param run: the run
    :param path: the file of one of its models
    :param trust: see :func:`load_policy`
    :param device: where the policy lies
    :raises UsageError: see :func:`load_policy`
    """
    config = run.read_config()
    trust = trust or is_own(run.config_path)
    if not trust:
        _check_names(config)
    rule = f"the run '{run.path}' must be one that this version can rebuild"
    try:
        observation_space, action_space = _spaces(config)
        arguments = _policy_arguments(config)
        policy_class = choose_policy(observation_space)
        given: dict[str, Any] = dict(observation_space=observation_space, action_space=action_space, lr_schedule=_no_schedule)
        shapes = _shapes(policy_class, given | arguments, trust)
        tensors, num_timesteps = _read_zip(path, shapes)
        policy = policy_class(**given, **arguments).to(device)
        policy.load_state_dict(tensors)
    except UsageError:
        raise
    except Exception as error:  # what a configuration of wrong types makes others raise
        raise UsageError(f"{rule}, got {type(error).__name__}: {' '.join(str(error).split())}") from error
    if arguments["use_sde"]:
        policy.reset_noise()
    policy.set_training_mode(False)
    return LoadedPolicy(policy, num_timesteps, config)


def load_weights(path: Path, model: Any) -> None:
    """
    Start an agent from the weights of another one, without executing anything that the file holds.

    :param path: a zip that ``save`` has written, of a policy with the same tensors. The statistics of normalised observations
        that lie beside it are loaded too, if the agent's environment normalises
    :param model: the agent
    :raises UsageError: if the file is damaged, or its tensors are others
    """
    tensors, _ = _read_zip(path, model.policy.state_dict())
    model.policy.load_state_dict(tensors)
    normalized = model.get_vec_normalize_env()
    if normalized is not None and (statistics := normalization_path(path)).is_file():
        saved = load_normalization(statistics, normalized.venv)
        normalized.ret_rms = saved.ret_rms
        if normalized.norm_obs and saved.norm_obs:
            normalized.obs_rms = saved.obs_rms


def saved_steps(path: Path, model: Any) -> int | None:
    """
    The steps that a saved model was trained for.

    :param path: ``model.zip``
    :param model: an algorithm with a policy of the same shapes
    :return: None if there is no such file, or it is of another policy
    """
    try:
        return _read_zip(path, model.policy.state_dict())[1]
    except UsageError:
        return None


def load_model(path: Path, device: torch.device) -> RecurrentPPO:
    """
    Load a model.

    This executes what the file holds, as every ``load`` of Stable-Baselines3 does: only load files that you trust.

    :param path: a zip that ``save`` has written
    :param device: where the policy will lie
    :raises UsageError: in one line for a file that is missing, damaged or no model
    """
    rule = f"model must be a file that RecurrentPPO.save has written, got '{path}'"
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
            damaged = archive.testzip() if unpacked < LEAST_REFUSED else None
        limit = max(LEAST_REFUSED, MOST_GROWTH * path.stat().st_size)
        require(unpacked <= limit, f"{rule}: its size when unpacked must be at most {limit:,} bytes", unpacked)
        require(damaged is None, f"{rule}: each part must be whole", damaged)
        return RecurrentPPO.load(path, device=device)
    except UsageError:
        raise
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{rule}: {' '.join(str(error).split())}") from None
    except Exception as error:  # pickled data that is cut or of other versions raises anything
        raise UsageError(f"{rule}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _check_names(config: DictConfig) -> None:
    """
    Refuse names that would import a module of a stranger.

    :raises UsageError: for the first one
    """
    names = {"env": config.env, "core": OmegaConf.select(config, "core.name")}
    for key, name in names.items():
        rule = f"{key} of the run must be a name of rmc_rl or gymnasium; trust=true imports the module it names"
        require(isinstance(name, str), f"{key} of the run must be a name", name)
        module = name.rpartition(":")[0]
        require(module == "" or _is_trusted(module), rule, name)
    spec = gymnasium.registry.get(config.env.rpartition(":")[2])
    if spec is not None and isinstance(spec.entry_point, str):
        module = spec.entry_point.partition(":")[0]
        rule = "env of the run must come from rmc_rl or gymnasium; trust=true imports the module of its entry point"
        require(_is_trusted(module), rule, spec.entry_point)


def _is_trusted(module: str) -> bool:
    """Whether a module belongs to a known package, or is imported already, so that naming it executes nothing."""
    return module.partition(".")[0] in TRUSTED or module in sys.modules


def _spaces(config: DictConfig) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """The observation and action space of a run, as its policy sees them."""
    env_kwargs: Any = OmegaConf.to_container(config.env_kwargs, resolve=True)
    previous = OmegaConf.select(config, "policy.previous_action_reward", default=False)  # older runs have no such key
    require(isinstance(previous, bool), "policy.previous_action_reward must be true or false", previous)
    keywords = {str(key): value for key, value in env_kwargs.items()}
    made = make_vec(config.env, 1, env_kwargs=keywords, previous_action_reward=previous, partial=partial_of(config))
    env = wrap_env(RecurrentPPO, made)
    try:
        return env.observation_space, env.action_space
    finally:
        env.close()


def partial_of(config: DictConfig) -> dict[str, Any]:
    """
    What hides or disturbs the observations in a run.

    :param config: of the run; those of older versions have no such node
    :return: for ``make_vec``
    """
    partial: Any = OmegaConf.to_container(OmegaConf.select(config, "partial", default=OmegaConf.create({})), resolve=True)
    require(isinstance(partial, dict), "partial of the run must hold keys", partial)
    return dict(partial)


def _policy_arguments(config: DictConfig) -> dict[str, Any]:
    """The arguments of a run's policy. What affects training or speed alone is left out."""
    core: Any = OmegaConf.to_container(config.core, resolve=True)
    policy: Any = OmegaConf.to_container(OmegaConf.select(config, "policy", default=OmegaConf.create({})), resolve=True)
    require(isinstance(policy, dict), "policy of the run must hold keys", policy)
    use_sde = OmegaConf.select(config, "algo.use_sde", default=False)
    require(isinstance(use_sde, bool), "algo.use_sde of the run must be true or false", use_sde)
    name = core.pop("name", None)
    arguments = {key: policy[key] for key in POLICY_KEYS if policy.get(key) is not None}
    return dict(core=name, core_kwargs=core, use_sde=use_sde, ortho_init=False, **arguments)


def _no_schedule(_progress_remaining: float) -> float:
    return 0.0


def _shapes(policy: type[MlpMemoryPolicy], arguments: dict[str, Any], trust: bool) -> dict[str, torch.Tensor]:
    """
    The tensors of a policy without their memory.

    :raises UsageError: if they can only be known by allocating them, unless the run is trusted
    """
    try:
        with torch.device("meta"), unchecked_distributions():  # gSDE makes one
            return policy(**arguments).state_dict()
    except UsageError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        require(trust, "the policy of the run must be one that can be built without memory; trust=true allocates it", why)
        return policy(**arguments).state_dict()


def _read_zip(path: Path, expected: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int | None]:
    """
    The tensors of a policy, and the steps that it was trained for.

    :param path: a zip that ``save`` has written, or the safetensors of ``rmc_rl.share``
    :param expected: tensors with the names, shapes and types that the policy has
    :raises UsageError: if it holds others
    """
    rule = f"model must be a file that save has written, got '{path}'"
    size = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    limit = size + OVERHEAD + OVERHEAD_PER_TENSOR * len(expected)
    if path.suffix == ".safetensors":
        tensors, num_timesteps = read_weights(path, limit)
        _check_tensors(tensors, expected, f"model must be a file that rmc_rl.share has written, got '{path}'")
        return tensors, num_timesteps
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {part.filename: part for part in archive.infolist()}
            for name in ("policy.pth", "data"):
                require(name in parts, f"{rule}: it must hold {name}", sorted(parts)[:10])
            unpacked = parts["policy.pth"].file_size
            require(
                unpacked <= limit, f"{rule}: policy.pth must have at most {limit:,} bytes, as the run's policy has", unpacked
            )
            weights = archive.read("policy.pth")
            data = archive.read("data") if parts["data"].file_size <= LARGEST_DATA else b"{}"
        with zipfile.ZipFile(io.BytesIO(weights)) as inner:  # torch.load unpacks the parts of this zip as well
            unpacked = sum(part.file_size for part in inner.infolist())
        require(unpacked <= limit, f"{rule}: its tensors must have at most {limit:,} bytes, as the run's policy has", unpacked)
        tensors = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        numbers = json.loads(data)  # pickled values are text in it, which stays text
    except UsageError:
        raise
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise UsageError(f"{rule}: {' '.join(str(error).split())}") from None
    except pickle.UnpicklingError:
        raise UsageError(f"{rule}: policy.pth must hold tensors by name and nothing else") from None
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise UsageError(f"{rule}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    _check_tensors(tensors, expected, rule)
    num_timesteps = numbers.get("num_timesteps") if isinstance(numbers, dict) else None
    return tensors, num_timesteps if type(num_timesteps) is int else None


def _check_tensors(tensors: Any, expected: Mapping[str, torch.Tensor], rule: str) -> None:
    """Check that a policy can be filled with some tensors."""
    known = isinstance(tensors, dict) and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    require(known, f"{rule}: policy.pth must hold tensors by name", type(tensors).__name__)
    missing = sorted(map(str, expected.keys() ^ tensors.keys()))
    require(not missing, f"{rule}: it must hold the tensors of the run's policy", missing[:3])
    for name, tensor in expected.items():
        found = tensors[name]
        same = found.shape == tensor.shape and found.dtype == tensor.dtype and found.layout == tensor.layout
        expectation, present = (f"{tuple(each.shape)} {each.dtype} {each.layout}" for each in (tensor, found))
        require(same, f"{rule}: {name} must be {expectation}", present)
        require(bool(torch.isfinite(found).all()), f"{rule}: {name} must be finite", "a number that is not")
