"""What the keys of ``configs/train.yaml`` may be, but for those that the core and the environment check themselves."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import sb3_contrib
from omegaconf import DictConfig, OmegaConf

from rmc_rl.agents import RecurrentPPO
from rmc_rl.agents.policies import COMPILE
from rmc_rl.errors import UsageError, require

# what algo.name may be
ALGORITHMS: dict[str, type[sb3_contrib.RecurrentPPO]] = {"ppo": RecurrentPPO, "stock": sb3_contrib.RecurrentPPO}
SCHEDULES = ("constant", "linear")

Rule = tuple[Callable[[Any], bool], str]  # whether a value is valid, and how to say what is


def _whole(least: int) -> Rule:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least, f"a whole number of at least {least}"


def _number(low: float, high: float = np.inf, open_low: bool = False) -> Rule:
    def valid(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and (value > low if open_low else value >= low) and value <= high

    rule = "a number " + ("above" if open_low else "of at least") + f" {low:g}"
    return valid, rule if high == np.inf else f"{rule} and at most {high:g}"


def _or_null(rule: Rule) -> Rule:
    return lambda v: v is None or rule[0](v), f"{rule[1]}, or null"


_TRUTH: Rule = (lambda v: isinstance(v, bool), "true or false")


def _is_layers(value: Any) -> bool:
    return value is None or (OmegaConf.is_list(value) and all(_whole(1)[0](item) for item in value))


def _is_net_arch(value: Any) -> bool:
    if OmegaConf.is_dict(value):
        return set(value) <= {"pi", "vf"} and all(OmegaConf.is_list(item) and _is_net_arch(item) for item in value.values())
    return _is_layers(value)


# key -> what its value must be; keys of the core and of the environment are checked by these themselves
RULES: dict[str, Rule] = {
    "core.name": (lambda v: isinstance(v, str), "the name of a core"),
    "runs_dir": (lambda v: isinstance(v, str) and v != "", "a folder"),
    "n_envs": _whole(1),
    "processes": _TRUTH,
    "num_threads": _or_null(_whole(1)),
    "total_timesteps": _whole(1),
    "params": _or_null(_whole(1)),
    "seed": _whole(0),
    "checkpoint_every": _or_null(_whole(1)),
    "policy.encoder": (_is_layers, "null or sizes of layers, as in [64]"),
    "policy.channels_last": _TRUTH,
    "policy.amp": (lambda v: v in (None, "bf16"), "bf16 or null"),
    "policy.compile_mode": (lambda v: v in COMPILE, ", ".join(map(str, COMPILE[1:])) + " or null"),
    "policy.net_arch": (_is_net_arch, "null, sizes of layers as [64, 64], or {pi: [64], vf: [64]}"),
    "policy.ortho_init": _TRUTH,
    "policy.log_std_init": _number(-np.inf),
    "policy.previous_action_reward": _TRUTH,
    "algo.name": (lambda v: v in ALGORITHMS, " or ".join(ALGORITHMS)),
    "algo.learning_rate": _number(0, open_low=True),
    "algo.learning_rate_schedule": (lambda v: v in SCHEDULES, " or ".join(SCHEDULES)),
    "algo.sequence_length": _or_null(_whole(1)),
    "algo.n_steps": _whole(1),
    "algo.batch_size": _whole(2),
    "algo.n_epochs": _whole(1),
    "algo.gamma": _number(0, 1),
    "algo.gae_lambda": _number(0, 1),
    "algo.clip_range": _number(0, open_low=True),
    "algo.clip_range_vf": _or_null(_number(0, open_low=True)),
    "algo.normalize_advantage": _TRUTH,
    "algo.ent_coef": _number(0),
    "algo.vf_coef": _number(0),
    "algo.max_grad_norm": _number(0, open_low=True),
    "algo.use_sde": _TRUTH,
    "algo.sde_sample_freq": _whole(-1),
    "algo.target_kl": _or_null(_number(0, open_low=True)),
}


def check_config(config: DictConfig) -> None:
    """
    Check every value that neither the core nor the environment checks.

    :param config: resolved
    :raises UsageError: for the first value that breaks its rule
    """
    for node in ("algo", "policy", "core", "env_kwargs"):
        require(OmegaConf.is_dict(config[node]), f"{node} must hold keys, as in {node}.key=value", config[node])
    for key, (valid, rule) in RULES.items():
        value = OmegaConf.select(config, key)  # None where the algorithm has no such key
        require(valid(value), f"{key} must be {rule}", value)
    transitions = config.n_envs * config.algo.n_steps
    require(transitions >= 2, "n_envs * algo.n_steps must be at least 2", transitions)
    if transitions % config.algo.batch_size:
        divisors = [size for size in range(2, transitions + 1) if transitions % size == 0]
        near = sorted(sorted(divisors, key=lambda size: abs(size - config.algo.batch_size))[:4])
        raise UsageError(
            f"algo.batch_size must divide the {transitions} transitions of a rollout (n_envs {config.n_envs} * "
            f"algo.n_steps {config.algo.n_steps}), got {config.algo.batch_size}; near it: {', '.join(map(str, near))}"
        )
