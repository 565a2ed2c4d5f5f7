"""From a configuration to an agent and its environment."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import sb3_contrib
import torch
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf, open_dict
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from rmc_rl.agents import Imitation, MlpMemoryPolicy, RecurrentPPO, match_parameters
from rmc_rl.agents.encoder import check_spaces
from rmc_rl.agents.policies import choose_policy
from rmc_rl.agents.stock import StockRecurrentPPO
from rmc_rl.command_line.devices import find_device, require_memory
from rmc_rl.command_line.progress import EPISODES_FOR_BEST
from rmc_rl.command_line.signals import ignored_interrupts
from rmc_rl.compat import wrap_env
from rmc_rl.envs import make_vec
from rmc_rl.envs.make_vec import env_family
from rmc_rl.envs.previous_action_reward import PREVIOUS
from rmc_rl.errors import UsageError, require, require_choice, require_number
from rmc_rl.runs.normalization import load_normalization, normalization_path, normalize

# what algo.name may be
ALGORITHMS: dict[str, type[sb3_contrib.RecurrentPPO]] = {
    "imitation": Imitation,
    "ppo": RecurrentPPO,
    "stock": StockRecurrentPPO,
}
SCHEDULES = ("constant", "linear")
# keys that other algorithms have, by the name of the algorithm that ignores them
OF_OTHERS: dict[str, tuple[str, ...]] = {"imitation": (), "ppo": ("actor",), "stock": ("sequence_length", "actor")}
FLOAT = 4  # bytes
NUMBERS_PER_STEP = 6  # reward, value, log-probability, advantage, return and episode start
COPIES_OF_WEIGHTS = 4  # weights, gradients and Adam's two averages
COPIES_OF_STEP = 4  # while playing: of states and observations, before and after a step, on both sides of the policy
PROCESS = 150_000_000  # bytes that a process with one copy of an environment takes, at least: torch and its libraries


def make_env(config: DictConfig) -> VecEnv:
    """
    The training environment.

    :param config: checked; see ``configs/train.yaml``
    :raises UsageError: for a mistake in the configuration
    """
    transitions = config.n_envs * config.algo.n_steps
    require_memory("a rollout of n_envs * algo.n_steps steps", transitions * NUMBERS_PER_STEP * FLOAT, torch.device("cpu"))
    if config.processes:
        require_memory("a process for each of the n_envs copies", config.n_envs * PROCESS, torch.device("cpu"))
    with ignored_interrupts() if config.processes else nullcontext():
        env = make_vec(
            config.env,
            config.n_envs,
            seed=config.seed,
            env_kwargs={str(key): value for key, value in plain(config.env_kwargs).items()},
            processes=config.processes,
            device=find_device(config.env_device, "env_device"),
            previous_action_reward=config.policy.previous_action_reward,
        )
    check_spaces(env.observation_space, env.action_space)
    if config.algo.use_sde:
        require(isinstance(env.action_space, spaces.Box), "algo.use_sde needs Box actions", env.action_space)
    if config.env_kwargs:
        _try(env, config)
    return normalize(env, config.normalize, config.algo.gamma)


def make_playing_env(
    env_id: str, env_kwargs: dict[str, Any], n_envs: int, seed: int, model: BaseAlgorithm | BasePolicy, model_path: Path
) -> VecEnv:
    """
    An environment to play in with a trained agent, wrapped as it was in training.

    :param env_id: any Gymnasium id, or ``module:id``
    :param env_kwargs: the environment's keywords
    :param n_envs: copies
    :param seed: of the copies
    :param model: the agent
    :param model_path: its file, beside which the statistics of normalised observations lie
    :raises UsageError: for a mistake in the keywords, an environment with other spaces than the agent's, or more copies than
        fit into memory
    """
    seen = model.observation_space
    policy: Any = getattr(model, "policy", model)
    state = 2 * math.prod(policy.lstm_hidden_state_shape) * FLOAT  # two halves of one copy
    size = n_envs * (_bytes(seen) + state) * COPIES_OF_STEP
    require_memory("the observations and states of n_envs copies", size, torch.device("cpu"))
    previous = isinstance(seen, spaces.Dict) and PREVIOUS in seen.spaces
    keywords = {str(key): value for key, value in env_kwargs.items()}
    env: VecEnv = make_vec(env_id, n_envs, seed=seed, env_kwargs=keywords, previous_action_reward=previous)
    if (statistics := normalization_path(model_path)).is_file():
        env = load_normalization(statistics, env)
    env = wrap_env(RecurrentPPO, env)
    for name in ("observation_space", "action_space"):
        found, needed = getattr(env, name), getattr(model, name)
        require(found == needed, f"env and env_kwargs must leave the {name} as it was in training, {needed}", found)
    return env


def make_model(config: DictConfig, env: VecEnv) -> sb3_contrib.RecurrentPPO:
    """
    The agent.

    :param config: checked; see ``configs/train.yaml``. With ``params`` the sizes that follow for the core are written into it
    :param env: the training environment
    :raises UsageError: for a mistake in the configuration
    """
    device, policy_kwargs, algo = find_device(config.device), plain(config.policy), plain(config.algo)
    del policy_kwargs["previous_action_reward"]  # the environment's business
    core_kwargs = plain(config.core)
    policy_kwargs |= dict(core=core_kwargs.pop("name", None), core_kwargs=core_kwargs)
    net_arch = policy_kwargs["net_arch"]
    rule = "policy.net_arch must be null, sizes of layers as [64, 64], or {pi: [64], vf: [64]}"
    require(_is_net_arch(net_arch), rule, net_arch)
    name = algo.pop("name")
    schedules = {key: algo.pop(f"{key}_schedule") for key in ("learning_rate", "ent_coef")}
    require_choice("algo.name", name, ALGORITHMS)
    for key, schedule in schedules.items():
        require_choice(f"algo.{key}_schedule", schedule, SCHEDULES)
    for key in OF_OTHERS[name]:
        algo.pop(key, None)
    if name == "stock":
        schedules["ent_coef"] = "constant"  # sb3-contrib's class takes a number
    for key in (key for key, schedule in schedules.items() if schedule == "linear"):
        require_number(f"algo.{key}", algo[key], above=0)
        algo[key] = LinearSchedule(algo[key], 0.0, 1.0)
    policy, seen = choose_policy(env.observation_space), wrap_env(RecurrentPPO, env)
    if config.params is not None:
        matched = match_parameters(policy, seen.observation_space, seen.action_space, policy_kwargs, config.params)
        policy_kwargs = matched
        with open_dict(config.core):  # the YAML of a user's own core may leave the sizes out
            config.core.update(matched["core_kwargs"])
    _check_sizes(config, policy, seen, policy_kwargs, device)
    try:
        return ALGORITHMS[name](
            policy,
            env,
            seed=config.seed,
            device=device,
            policy_kwargs=policy_kwargs,
            stats_window_size=EPISODES_FOR_BEST,
            **algo,
        )
    except Exception as error:
        refused = isinstance(error, AssertionError | ValueError | MemoryError) or _is_too_large(error)  # SB3 asserts its rules
        if isinstance(error, UsageError) or not refused:
            raise
        raise UsageError(f"an agent cannot be built from these settings: {' '.join(str(error).split())}") from error


def parameter_counts(model: BaseAlgorithm) -> dict[str, int]:
    """
    How many trainable numbers each part of a policy has.

    :param model: the agent
    :return: name of the part -> count; parts without any are left out
    """
    counts: dict[str, int] = {}
    for name, parameter in model.policy.named_parameters():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def plain(node: DictConfig) -> dict[str, Any]:
    """
    A node of the configuration as plain dictionaries and lists, which models are saved with.

    :param node: resolved
    """
    return dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]


def _try(env: VecEnv, config: DictConfig) -> None:
    """
    Play one step: many environments find out only then that a keyword has the wrong type.

    Worlds of rmc_rl/* and Atari check their keywords themselves.
    """
    if env_family(config.env) != "gymnasium":
        return
    try:
        env.reset()
        env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"env_kwargs must be values with which {config.env} can be played, got {why}") from error
    env.seed(config.seed)  # so that training starts as it would without this


def _check_sizes(
    config: DictConfig, policy: type[MlpMemoryPolicy], env: VecEnv, policy_kwargs: dict[str, Any], device: torch.device
) -> None:
    """Check that the policy and its rollouts fit into memory, before any is taken."""
    step = _bytes(env.observation_space) + _bytes(env.action_space) + NUMBERS_PER_STEP * FLOAT
    state = 0
    try:
        with torch.device("meta"):  # shapes without memory
            built = policy(env.observation_space, env.action_space, lambda _: 0.0, **(policy_kwargs | dict(ortho_init=False)))
    except UsageError:
        raise
    except Exception as error:  # a core whose constructor reads its tensors cannot be built on "meta"
        core, why = policy_kwargs["core"], " ".join(str(error).split())
        require(not _is_too_large(error), f"the sizes of core {core} must be sizes that a tensor can have", why)
        built = None
    if built is not None:
        weights = sum(parameter.numel() for parameter in built.parameters()) * FLOAT * COPIES_OF_WEIGHTS
        require_memory(f"the policy of core {policy_kwargs['core']}, its gradients and its optimizer", weights, device)
        state = built.core.state_size * FLOAT
    # sb3-contrib keeps the states of actor and critic at every step, ours where a sequence starts
    kept = config.n_envs * (2 * config.algo.n_steps if config.algo.name == "stock" else 2)
    size = config.n_envs * config.algo.n_steps * step + kept * state
    require_memory("a rollout (n_envs * algo.n_steps observations, actions and states)", size, device)


def _is_too_large(error: Exception) -> bool:
    """Whether torch or NumPy refused a tensor because of its size."""
    text = str(error).lower()
    return any(words in text for words in ("can't allocate memory", "out of memory", "unable to allocate", "overflow"))


def _bytes(space: spaces.Space[Any]) -> int:
    """The bytes of one observation or action."""
    if isinstance(space, spaces.Dict):
        return sum(map(_bytes, space.spaces.values()))
    return math.prod(space.shape or ()) * np.dtype(space.dtype or np.int64).itemsize


def _is_net_arch(value: Any) -> bool:
    """Whether SB3 can build the layers after the core from a value."""
    if isinstance(value, dict):
        return set(value) <= {"pi", "vf"} and all(isinstance(sizes, list) and _is_net_arch(sizes) for sizes in value.values())
    sizes = [] if value is None else value
    return isinstance(sizes, list) and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
