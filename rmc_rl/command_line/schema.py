"""
The keys of the command line: their types, and the ranges of those that nobody else checks.

The arguments of the core, of the environment and most of those of the policy are checked by the classes that receive them.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from rmc_rl.errors import UsageError, require, require_number, require_truth, require_whole, unknown

# bounds of numbers, as rmc_rl.errors.require_number takes them
FROM_0, FROM_1 = {"at_least": 0}, {"at_least": 1}


@dataclass
class PolicyKeys:
    """Keys of the node ``policy``."""

    previous_action_reward: bool
    critic: str
    encoder: list[Any] | None
    channels_last: bool
    amp: str | None
    compile_mode: str | None
    scale_output: bool
    net_arch: Any
    ortho_init: bool
    log_std_init: float


@dataclass
class AlgoKeys:
    """Keys of the node ``algo``, whose ranges ``RecurrentPPO`` checks."""

    name: str
    learning_rate: float
    learning_rate_schedule: str
    n_steps: int
    batch_size: int | None
    n_epochs: int
    gamma: float
    gae_lambda: float
    clip_range: float
    clip_range_vf: float | None
    normalize_advantage: bool
    ent_coef: float
    ent_coef_schedule: str
    vf_coef: float
    max_grad_norm: float
    use_sde: bool
    sde_sample_freq: int
    target_kl: float | None
    sequence_length: int | None = None  # a key of algo=ppo and algo=imitation only
    actor: str | None = None  # a key of algo=imitation only


@dataclass
class EvaluationKeys:
    """Keys of the node ``evaluation``."""

    episodes: int = field(metadata=FROM_1)
    deterministic: bool
    env_kwargs: dict[str, Any]
    n_envs: int = field(metadata=FROM_1)
    seed: int = field(metadata=FROM_0)


@dataclass
class PartialKeys:
    """Keys of the node ``partial``, whose ranges ``PartialObservation`` checks. None: the default, or as in the run."""

    hide: list[Any] | None
    flicker: float | None
    noise: float | None
    drop_sensors: float | None
    delay: int | None


@dataclass
class TrainKeys:
    """Keys of ``configs/train.yaml``."""

    env: str
    env_kwargs: dict[str, Any]
    curriculum: dict[str, Any]
    curriculum_return: float | None
    curriculum_draw: str
    partial: PartialKeys
    n_envs: int = field(metadata=FROM_1)
    processes: bool
    normalize: Any
    total_timesteps: int = field(metadata=FROM_1)
    params: int | None = field(metadata=FROM_1)
    params_of: str
    seed: int = field(metadata=FROM_0)
    num_threads: int | None = field(metadata=FROM_1)
    device: str
    env_device: str
    runs_dir: str
    name: str | None
    resume: str | None
    init: str | None
    checkpoint_every: int | None = field(metadata=FROM_1)
    keep_checkpoints: int = field(metadata=FROM_1)
    callbacks: Any
    memory_picture_every: int | None = field(metadata=FROM_1)
    evaluate_every: int | None = field(metadata=FROM_1)
    patience: int | None = field(metadata=FROM_1)
    evaluation: EvaluationKeys
    policy: PolicyKeys
    algo: AlgoKeys
    core: dict[str, Any]


@dataclass
class TuneKeys(TrainKeys):
    """Keys of ``configs/tune.yaml`` beside those of ``configs/train.yaml``."""

    trials: int = field(metadata=FROM_1)
    seeds: int = field(metadata=FROM_1)
    study: str | None
    space: Any
    startup_trials: int = field(metadata=FROM_1)
    pruner: str
    prune_after: int = field(metadata=FROM_1)
    report_every: int | None = field(metadata=FROM_1)


@dataclass
class PlayerKeys:
    """Which trained agent plays, and where: keys of the verbs that call :func:`~rmc_rl.command_line.player.find_player`."""

    run: str | None
    model: str
    env: str | None
    env_kwargs: dict[str, Any]
    partial: PartialKeys
    trust: bool


@dataclass
class EvaluateKeys(PlayerKeys):
    """Keys of ``configs/evaluate.yaml``."""

    deterministic: Any
    episodes: int = field(metadata=FROM_1)
    n_envs: int = field(metadata=FROM_1)
    seed: int = field(metadata=FROM_0)
    device: str


@dataclass
class CompareKeys:
    """Keys of ``configs/compare.yaml``."""

    runs: Any
    by: Any
    threshold: float | None
    x: str
    metric: str
    unfinished: bool
    mix: bool
    out: str | None


@dataclass
class WatchKeys(PlayerKeys):
    """Keys of ``configs/watch.yaml``."""

    deterministic: bool
    episodes: int = field(metadata=FROM_1)
    max_steps: int = field(metadata=FROM_1)
    why: int | None = field(metadata=FROM_0)
    format: str
    fps: float | None = field(metadata={"above": 0, "at_most": 100})
    seed: int = field(metadata=FROM_0)
    device: str


@dataclass
class ExportKeys:
    """Keys of ``configs/export.yaml``."""

    run: str | None
    model: str
    format: str
    masks: bool | None
    trust: bool
    n_envs: int = field(metadata=FROM_1)
    seed: int = field(metadata=FROM_0)


@dataclass
class ShareKeys:
    """Keys of ``configs/share.yaml``."""

    run: str | None
    model: str
    to: str | None
    repository: str | None
    license: str | None
    zip: bool
    trust: bool


def check_keys(schema: type[Any], config: DictConfig) -> DictConfig:
    """
    Check the types and ranges of a configuration.

    :param schema: one of the dataclasses above
    :param config: resolved
    :return: the configuration, with values of the types that the schema states
    :raises UsageError: for the first value that breaks its rule, or an unknown key
    """
    config = config.copy()
    OmegaConf.set_struct(config, False)
    _check_node(schema, config, "")
    try:
        return OmegaConf.merge(OmegaConf.structured(schema), config)  # type: ignore[return-value]
    except ConfigKeyError as error:
        node, _, name = str(error.full_key).rpartition(".")
        known = OmegaConf.structured(schema)
        raise unknown(f"key of {node}" if node else "key", name, OmegaConf.select(known, node) if node else known) from None
    except OmegaConfBaseException as error:
        raise UsageError(" ".join(str(error).split())) from None


def _check_node(schema: Any, node: DictConfig, prefix: str) -> None:
    """Check the values of a node against its dataclass; whole numbers that were written as 1e6 become integers."""
    for each in fields(schema):
        name, value = f"{prefix}{each.name}", node.get(each.name)
        if is_dataclass(each.type):
            require(OmegaConf.is_dict(value), f"{name} must hold keys, as in {name}.key=value", value)
            _check_node(each.type, value, f"{name}.")
            continue
        union = get_origin(each.type) in (Union, types.UnionType)
        members = [member for member in get_args(each.type) if member is not type(None)] if union else [each.type]
        kind = get_origin(members[0]) or members[0]
        if kind is int and isinstance(value, float) and value.is_integer():
            value = node[each.name] = int(value)
        if value is not None or not union:
            _check(name, kind, value, " or null" if union else "", each.metadata)


def _check(name: str, kind: Any, value: Any, or_null: str, bounds: Mapping[str, Any]) -> None:
    """Check one value; ``kind`` is its type, ``Any`` for one that is checked elsewhere."""
    if kind is int and bounds:
        require_whole(name, value, **bounds)
    elif kind is int:
        require(isinstance(value, int) and not isinstance(value, bool), f"{name} must be a whole number{or_null}", value)
    elif kind is float:
        require_number(name, value, **bounds)
    elif kind is bool:
        require_truth(name, value)
    elif kind is str:  # 3 is a name as well
        require(isinstance(value, str | int | float) and value != "", f"{name} must be text{or_null}", value)
    elif kind is list:
        require(OmegaConf.is_list(value), f"{name} must be a list{or_null}, as in [64]", value)
    elif kind is dict:
        require(OmegaConf.is_dict(value), f"{name} must hold keys, as in {name}.key=value", value)
