"""From an environment's id to an SB3 ``VecEnv``, by the fastest native route."""

import importlib
import traceback
from collections.abc import Mapping
from typing import Any

import ale_py
import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from rmc_rl.envs.atari import AtariVecEnv, is_atari
from rmc_rl.envs.minigrid import PREFIXES as MINIGRID_PREFIXES
from rmc_rl.envs.minigrid import import_minigrid, is_minigrid, minigrid_view
from rmc_rl.envs.previous_action_reward import PreviousActionReward
from rmc_rl.envs.registration import WORLDS
from rmc_rl.envs.vec_env import SameStepVecEnv, check_seed
from rmc_rl.errors import UsageError, check_keywords, require, require_whole, unknown

gymnasium.register_envs(ale_py)


# arguments of AtariVecEnv that are not the user's
_ATARI_GIVEN = ("self", "spec", "num_envs")


def find_spec(env_id: str) -> EnvSpec:
    """
    Look an id up.

    :param env_id: any registered Gymnasium id, or ``module:id``, whose module is imported first
    :raises UsageError: for an unknown id, with the nearest known one
    """
    require(isinstance(env_id, str) and env_id != "", "env must be the id of an environment", env_id)
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise UsageError(f"env '{env_id}' names a module that cannot be imported: {error}") from None
    if name.startswith(MINIGRID_PREFIXES):
        import_minigrid(env_id)
    if name not in gymnasium.registry:
        raise unknown("env", name, gymnasium.registry)
    return gymnasium.registry[name]


def env_family(env_id: str) -> str:
    """
    The family of worlds that an id belongs to, which decides its route and its default configuration.

    :param env_id: any registered Gymnasium id
    :return: "atari", "rmc_rl" or "gymnasium"
    :raises UsageError: for an unknown id
    """
    spec = find_spec(env_id)
    if is_atari(spec):
        return "atari"
    return "rmc_rl" if spec.id in WORLDS else "gymnasium"


def make_vec(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    processes: bool = False,
    device: torch.device | str = "cpu",
    previous_action_reward: bool = False,
) -> VecEnv:
    """
    Copies of an environment as an SB3 ``VecEnv`` with episode statistics.

    Ids of ale-py run on :class:`~rmc_rl.envs.atari.AtariVecEnv`, ``rmc_rl/*`` on their batched world, any other
    Gymnasium id on SB3's ``DummyVecEnv`` or ``SubprocVecEnv``; MiniGrid's are wrapped, see
    :func:`~rmc_rl.envs.minigrid.minigrid_view`, whose ``view`` is a keyword of theirs.

    :param env_id: any registered Gymnasium id, or ``module:id``
    :param n_envs: copies
    :param seed: fixes everything random in the copies; None: another sequence each time
        (ids without a batched form: drawn from NumPy's global generator, as in SB3)
    :param env_kwargs: keywords of the environment
    :param processes: a process for each copy instead of a loop; only for ids that are neither ``ALE/*`` nor ``rmc_rl/*``
    :param device: where a batched world of ``rmc_rl/*`` keeps its tensors
    :param previous_action_reward: whether observations hold the previous action and reward as well, see
        :class:`~rmc_rl.envs.previous_action_reward.PreviousActionReward`
    :raises UsageError: for an unknown id or keyword, or a value the environment does not take
    """
    require_whole("n_envs", n_envs)
    if seed is not None:
        require_whole("seed", seed, at_least=0)
        check_seed(seed, n_envs)
    spec, keywords, kind = find_spec(env_id), dict(env_kwargs or {}), f"keyword of {env_id}"
    on_cpu = torch.device(device).type == "cpu"
    alone = not is_atari(spec) and spec.id not in WORLDS
    require(alone or not processes, f"processes must be false for {env_id}, whose copies step as one", processes)
    require(on_cpu or spec.id in WORLDS, f"device must be cpu for {env_id}, which is no world of rmc_rl/*", str(device))
    vec_env: VecEnv
    if is_atari(spec):
        check_keywords(kind, AtariVecEnv.__init__, keywords, given=_ATARI_GIVEN)
        vec_env = AtariVecEnv(spec, n_envs, **keywords)
    elif spec.id in WORLDS:
        module, _, batched = WORLDS[spec.id]
        world = getattr(importlib.import_module(module), batched)
        check_keywords(kind, world, keywords, given=("num_envs", "device"))
        vec_env = SameStepVecEnv(world(n_envs, device=device, **keywords))
    else:
        vec_env = _make_gymnasium(spec, env_id, n_envs, keywords, processes)
    vec_env.seed(seed)
    return PreviousActionReward(vec_env) if previous_action_reward else vec_env


def _make_gymnasium(spec: EnvSpec, env_id: str, n_envs: int, keywords: dict[str, Any], processes: bool) -> VecEnv:
    """Copies of an environment that has no batched form."""
    wrapper, name = None, env_id
    if is_minigrid(spec):
        wrapper = minigrid_view(keywords.pop("view", "onehot"))
        name = env_id if ":" in env_id else f"minigrid:{env_id}"  # a new process imports what stands before the colon
    vec_env_cls = SubprocVecEnv if processes else DummyVecEnv
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        if creator is not None:
            named = {key: value for key, value in keywords.items() if key != "max_episode_steps"}  # gymnasium.make's own
            check_keywords(f"keyword of {env_id}", creator, named)
        return make_vec_env(name, n_envs, vec_env_cls=vec_env_cls, env_kwargs=keywords, wrapper_class=wrapper)
    except (ImportError, gymnasium.error.Error) as error:
        raise UsageError(f"env '{env_id}' cannot be made: {_one_line(error)}") from None
    except Exception as error:
        if isinstance(error, UsageError) or not keywords:
            raise
        raise UsageError(f"env '{env_id}' cannot be made with {keywords}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    # an assertion without words: what it asserts
    return text or f"{type(error).__name__}: {traceback.extract_tb(error.__traceback__)[-1].line}"
