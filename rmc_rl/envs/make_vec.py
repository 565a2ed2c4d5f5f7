"""Make an SB3 ``VecEnv`` from an environment's id, by the fastest native route."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import ale_py
import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator, parse_env_id
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from rmc_rl.envs.atari import AtariVecEnv, is_atari
from rmc_rl.envs.base import BatchedWorld, check_world_keywords, load_world
from rmc_rl.envs.minatar import PREFIX as MINATAR_PREFIX
from rmc_rl.envs.minatar import import_minatar, is_minatar, make_game
from rmc_rl.envs.minigrid import PREFIXES as MINIGRID_PREFIXES
from rmc_rl.envs.minigrid import import_minigrid, is_minigrid, minigrid_view
from rmc_rl.envs.partial import make_partial
from rmc_rl.envs.parts.keywords import bounds, whole
from rmc_rl.envs.previous_action_reward import PreviousActionReward
from rmc_rl.envs.registration import WORLDS
from rmc_rl.envs.resumable import Resumable
from rmc_rl.envs.vec_env import SameStepVecEnv, check_seed
from rmc_rl.errors import UsageError, check_keywords, require, require_truth, unknown

gymnasium.register_envs(ale_py)


_ATARI_GIVEN = ("self", "spec", "num_envs")  # arguments of AtariVecEnv that are not the user's
DRAWN = "rgb_array"  # the render mode of pictures as arrays
_NEAR = 0.75  # similarity of names that are suggested
MOST_STEPS = 100_000  # of an episode of a world of rmc_rl/*: longer ones would seem to hang


def find_spec(env_id: str) -> EnvSpec:
    """
    Look up an id.

    :param env_id: any registered Gymnasium id, or ``module:id``, whose module is imported first; the module may be in the
        working directory
    :raises UsageError: for an unknown id, with the nearest known one, and for a module that cannot be imported
    """
    require(isinstance(env_id, str) and env_id != "", "env must be the id of an environment", env_id)
    module, _, name = env_id.rpartition(":")
    if module:
        _import_module(module, env_id)
    if name.startswith(MINIGRID_PREFIXES):
        import_minigrid(env_id)
    if name.startswith(MINATAR_PREFIX):
        import_minatar(env_id)
    if name not in gymnasium.registry:
        raise _unknown_id(name, bool(module))
    return gymnasium.registry[name]


def _import_module(module: str, env_id: str) -> None:
    """Import the module of ``module:id``, from the working directory if need be."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it hides no other module; processes of SubprocVecEnv receive the path
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"env '{env_id}' names a module that cannot be imported: {one_line(error)}") from error


def _unknown_id(env_id: str, names_module: bool) -> UsageError:
    """
    The error for an id that is not registered.

    Ids are compared by their names alone: of several versions of the nearest name, the newest is suggested.
    """
    try:
        namespace, name, _ = parse_env_id(env_id)
    except gymnasium.error.Error:
        return unknown("env", env_id, gymnasium.registry)
    by_name: dict[str, list[EnvSpec]] = {}
    for spec in gymnasium.registry.values():
        by_name.setdefault(spec.name.lower(), []).append(spec)
    near = difflib.get_close_matches(name.lower(), by_name, n=1, cutoff=_NEAR)
    if near:
        best = max(by_name[near[0]], key=lambda spec: (spec.namespace == namespace, spec.version or 0))
        return UsageError(f"unknown env '{env_id}'; did you mean '{best.id}'?")
    hint = (
        "its module does not register it"
        if names_module
        else f"to import the module that registers it, write 'module:{env_id}'"
    )
    return UsageError(f"unknown env '{env_id}'; {hint}")


def env_family(env_id: str) -> str:
    """
    The family of environments of an id, which decides its route and its default configuration.

    :param env_id: any registered Gymnasium id
    :return: "atari", "minatar", "minigrid"; for our worlds that of :attr:`rmc_rl.envs.BatchedWorld.family`, as in "recall";
        otherwise "gymnasium"
    :raises UsageError: for an unknown id
    """
    spec = find_spec(env_id)
    if is_atari(spec):
        return "atari"
    if is_minatar(spec):
        return "minatar"
    if is_minigrid(spec):
        return "minigrid"
    world = find_world(env_id)
    return "gymnasium" if world is None else world.family


def find_world(env_id: str) -> type[BatchedWorld] | None:
    """
    The class of a world of this package.

    :param env_id: any registered Gymnasium id
    :return: None for other environments
    :raises UsageError: for an unknown id
    """
    spec = find_spec(env_id)
    return load_world(WORLDS[spec.id]) if spec.id in WORLDS else None


def make_vec(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    processes: bool = False,
    device: torch.device | str = "cpu",
    previous_action_reward: bool = False,
    pictures: bool = False,
    partial: Mapping[str, Any] | None = None,
) -> VecEnv:
    """
    Copies of an environment as an SB3 ``VecEnv`` with episode statistics.

    Ids of ale-py run on :class:`~rmc_rl.envs.atari.AtariVecEnv` and ``rmc_rl/*`` on their batched world. Any other Gymnasium
    id runs on SB3's ``DummyVecEnv`` or ``SubprocVecEnv``. MiniGrid's environments are wrapped and have one more keyword,
    ``view``, see :func:`~rmc_rl.envs.minigrid.minigrid_view`; MinAtar's are wrapped by
    :class:`~rmc_rl.envs.minatar.MinAtarGame`.

    :param env_id: any registered Gymnasium id, or ``module:id``; the module may be in the working directory
    :param n_envs: number of copies
    :param seed: fixes all randomness of the copies; None: different in each call
        (ids without a batched form draw from NumPy's global generator, as in SB3)
    :param env_kwargs: keywords of the environment
    :param processes: whether each copy runs in its own process instead of a loop; only for ids that are neither ``ALE/*`` nor
        ``rmc_rl/*``
    :param device: where a batched world of ``rmc_rl/*`` keeps its tensors
    :param previous_action_reward: whether observations also contain the previous action and reward, see
        :class:`~rmc_rl.envs.previous_action_reward.PreviousActionReward`
    :param pictures: draw the copies, where they can be drawn: ``get_images()`` returns their pictures, and
        ``info["final_frame"]`` is the last picture of an episode
    :param partial: what hides or disturbs the observations, as in ``{"hide": [1, 3]}``; the arguments of
        :class:`~rmc_rl.envs.partial.PartialObservation`
    :raises UsageError: for an unknown id or keyword, or an invalid value
    """
    n_envs = whole("n_envs", n_envs)
    if seed is not None:
        seed = whole("seed", seed, at_least=0)
        check_seed(seed, n_envs)
    require_truth("processes", processes)
    require_truth("previous_action_reward", previous_action_reward)
    spec, keywords, kind = find_spec(env_id), dict(env_kwargs or {}), f"keyword of {env_id}"
    on_cpu = torch.device(device).type == "cpu"
    alone = not is_atari(spec) and spec.id not in WORLDS
    require(alone or not processes, f"processes must be false for {env_id}, whose copies are stepped together", processes)
    require(on_cpu or spec.id in WORLDS, f"device must be cpu for {env_id}, which is no world of rmc_rl/*", str(device))
    vec_env: VecEnv
    if pictures and (is_atari(spec) or (spec.id in WORLDS and DRAWN in load_world(WORLDS[spec.id]).metadata["render_modes"])):
        keywords["render_mode"] = DRAWN
    if is_atari(spec):
        check_keywords(kind, AtariVecEnv.__init__, keywords, given=_ATARI_GIVEN)
        vec_env = AtariVecEnv(spec, n_envs, **keywords)
    elif spec.id in WORLDS:
        world: Any = load_world(WORLDS[spec.id])
        check_world_keywords(kind, world, keywords, given=("num_envs", "device"))
        batch = world(n_envs, device=device, **keywords)
        steps = max(batch.memory_demand() or 0, bounds(getattr(batch, "max_steps", None) or 0)[1])
        rule = f"keywords of {env_id} must make episodes of at most {MOST_STEPS:,} steps"
        require(steps <= MOST_STEPS, f"{rule}, not of about {steps:,}", keywords)
        vec_env = SameStepVecEnv(batch)
    else:
        vec_env = _make_gymnasium(spec, env_id, n_envs, keywords, processes, pictures)
    vec_env = make_partial(vec_env, partial)
    vec_env.seed(seed)
    return PreviousActionReward(vec_env) if previous_action_reward else vec_env


class FinalFrame(gymnasium.Wrapper[Any, Any, Any, Any]):
    """
    Keeps the last picture of an episode in ``info["final_frame"]``: SB3's vector environments reset at once.

    :param env: the environment
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            with suppress(Exception):  # whatever an environment raises that cannot be drawn
                info = {**info, "final_frame": self.render()}
        return observation, reward, terminated, truncated, info


def _make_gymnasium(
    spec: EnvSpec, env_id: str, n_envs: int, keywords: dict[str, Any], processes: bool, pictures: bool
) -> VecEnv:
    """Copies of an environment that has no batched form. SB3 makes them with ``render_mode="rgb_array"`` in any case."""
    wrapper: Any = None
    name: str | Callable[..., gymnasium.Env[Any, Any]] = env_id
    if is_minigrid(spec):
        wrapper = minigrid_view(keywords.pop("view", "onehot"))
        name = env_id if ":" in env_id else f"minigrid:{env_id}"  # a new process imports the module before the colon
    elif is_minatar(spec):
        name = partial(make_game, env_id)
    vec_env_cls = SubprocVecEnv if processes else DummyVecEnv
    if processes:
        view = wrapper
        wrapper = Resumable if view is None else lambda env: Resumable(view(env))
    if pictures:
        inner = wrapper
        wrapper = FinalFrame if inner is None else lambda env: FinalFrame(inner(env))
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        if creator is not None:
            named = {key: value for key, value in keywords.items() if key != "max_episode_steps"}  # gymnasium.make's own
            check_keywords(f"keyword of {env_id}", creator, named)
        return make_vec_env(name, n_envs, vec_env_cls=vec_env_cls, env_kwargs=keywords, wrapper_class=wrapper)
    except UsageError:
        raise
    except Exception as error:
        with_keywords = f" with {keywords}" if keywords else ""
        raise UsageError(f"env '{env_id}' cannot be made{with_keywords}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error of someone else's code in one line: its message, and for a mistake in that code its type and where it is."""
    text = " ".join(str(error).split())
    if text and isinstance(error, ImportError | gymnasium.error.Error):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text or place.line} ({os.path.basename(place.filename)}, line {place.lineno})"
