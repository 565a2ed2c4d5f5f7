"""From a configuration to an agent and its environment."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import sb3_contrib
import torch
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf, open_dict
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from rmc_rl.agents import Imitation, MlpMemoryPolicy, RecurrentPPO, match_parameters, parallel
from rmc_rl.agents.encoder import check_spaces
from rmc_rl.agents.policies import choose_policy
from rmc_rl.agents.stock import StockRecurrentPPO
from rmc_rl.command_line.curriculum import check_curriculum, widest
from rmc_rl.command_line.devices import find_device, require_memory
from rmc_rl.command_line.progress import EPISODES_FOR_BEST
from rmc_rl.command_line.signals import ignored_interrupts
from rmc_rl.compat import wrap_env
from rmc_rl.envs import make_vec
from rmc_rl.envs.base import Returns
from rmc_rl.envs.make_vec import env_family, find_world
from rmc_rl.errors import UsageError, require, require_choice, require_number
from rmc_rl.runs.normalization import normalize

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
PROCESS = 150_000_000  # bytes that a process with one copy of an environment takes, at least: torch and its libraries


def make_env(config: DictConfig) -> VecEnv:
    """
    The training environment.

    :param config: checked; see ``configs/train.yaml``
    :raises UsageError: for a mistake in the configuration
    """
    transitions = config.n_envs * config.algo.n_steps
    require_memory("a rollout of n_envs * algo.n_steps steps", transitions * NUMBERS_PER_STEP * FLOAT, torch.device("cpu"))
    keywords = {str(key): value for key, value in plain(config.env_kwargs).items()}
    curriculum = plain(config.curriculum)
    check_curriculum(curriculum, find_world(config.env), config.env)
    if config.processes:
        require_memory("a process for each of the n_envs copies", config.n_envs * PROCESS, torch.device("cpu"))
    own = parallel.share("n_envs", config.n_envs)
    env = _make_copies(config, own, config.seed + parallel.rank() * own, keywords | widest(curriculum))
    check_spaces(env.observation_space, env.action_space)
    if config.algo.use_sde:
        require(isinstance(env.action_space, spaces.Box), "algo.use_sde needs Box actions", env.action_space)
    if config.env_kwargs:
        _try(env, config)
    return normalize(env, config.normalize, config.algo.gamma)


def make_evaluation_env(config: DictConfig, trained: VecEnv, n_envs: int) -> VecEnv:
    """
    An environment in which an agent plays while it trains, with the keywords of ``evaluation.env_kwargs``.

    If observations are normalised, the statistics are those of the training environment at every moment. Rewards are not
    normalised.

    :param config: checked; see ``configs/train.yaml``
    :param trained: the training environment, as the agent has it
    :param n_envs: copies
    :raises UsageError: for a mistake in the keywords, or an environment with other spaces than the one of training
    """
    env_kwargs = plain(config.env_kwargs) | plain(config.evaluation.env_kwargs)
    env = normalize(_make_copies(config, n_envs, config.evaluation.seed, env_kwargs), config.normalize, config.algo.gamma)
    if isinstance(env, VecNormalize):
        env.training, env.norm_reward = False, False
        if env.norm_obs:
            env.obs_rms = unwrap_vec_normalize(trained).obs_rms  # type: ignore[union-attr]  # one object for both
    wrapped: VecEnv = wrap_env(RecurrentPPO, env)
    for name in ("observation_space", "action_space"):
        found, needed = getattr(wrapped, name), getattr(trained, name)
        require(found == needed, f"evaluation.env_kwargs must leave the {name} as it is in training, {needed}", found)
    return wrapped


def _make_copies(config: DictConfig, n_envs: int, seed: int, env_kwargs: dict[str, Any]) -> VecEnv:
    """Copies of the environment that a configuration names."""
    with ignored_interrupts() if config.processes else nullcontext():
        env: VecEnv = make_vec(
            config.env,
            n_envs,
            seed=seed,
            env_kwargs={str(key): value for key, value in env_kwargs.items()},
            processes=config.processes,
            device=find_device(config.env_device, "env_device"),
            previous_action_reward=config.policy.previous_action_reward,
            partial=plain(config.partial),
        )
    return env


def reference_returns(env: VecEnv) -> Returns:
    """
    Mean returns of random, memoryless and perfect play, as far as a world states them.

    :param env: copies of any environment
    """
    try:
        found = env.env_method("returns")[0] if env.has_attr("returns") else None
    except Exception:  # an attribute of a user's environment that happens to have this name
        found = None
    return found if isinstance(found, Returns) else Returns()


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
    if name == "stock":
        require(parallel.size() == 1, "algo=stock must be trained by one process", parallel.size())
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
        matched = match_parameters(
            policy, seen.observation_space, seen.action_space, policy_kwargs, config.params, config.params_of
        )
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
    if env_family(config.env) not in ("gymnasium", "minatar", "minigrid"):
        return
    try:
        env.reset()
        env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"env_kwargs must be values with which {config.env} can be played, got {why}") from error
    env.seed(config.seed + parallel.rank() * env.num_envs)  # so that training starts as it would without this


def _check_sizes(
    config: DictConfig, policy: type[MlpMemoryPolicy], env: VecEnv, policy_kwargs: dict[str, Any], device: torch.device
) -> None:
    """Check that the policy and its rollouts fit into memory, before any is taken."""
    step = bytes_of(env.observation_space) + bytes_of(env.action_space) + NUMBERS_PER_STEP * FLOAT
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


def bytes_of(space: spaces.Space[Any]) -> int:
    """
    The bytes of one observation or action.

    :param space: its space
    """
    if isinstance(space, spaces.Dict):
        return sum(map(bytes_of, space.spaces.values()))
    return math.prod(space.shape or ()) * np.dtype(space.dtype or np.int64).itemsize


def _is_net_arch(value: Any) -> bool:
    """Whether SB3 can build the layers after the core from a value."""
    if isinstance(value, dict):
        return set(value) <= {"pi", "vf"} and all(isinstance(sizes, list) and _is_net_arch(sizes) for sizes in value.values())
    sizes = [] if value is None else value
    return isinstance(sizes, list) and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
