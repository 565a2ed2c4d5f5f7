"""Playing episodes with an agent: its state and the environment's action masks are handed back at each step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common import callbacks
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from rmc_rl.agents.rollout import count_masked
from rmc_rl.errors import require_whole


class Episodes(NamedTuple):
    """What :func:`evaluate_episodes` found, one number for each episode."""

    returns: list[float]
    lengths: list[int]  # steps
    copies: list[int]  # the copy of the environment that played it


class WithMasks:
    """
    A model whose ``predict`` asks an environment for its action masks.

    SB3's ``evaluate_policy`` hands the state back but knows no masks; sb3-contrib's maskable one knows masks but drops the
    state (2.9.2). Given this in place of the model, SB3's does both.

    :param model: an algorithm whose policy has a core, or such a policy
    :param env: the environment that is played
    """

    def __init__(self, model: Any, env: VecEnv):
        self.model, self.env = model, env
        self.policy = getattr(model, "policy", model)  # a policy has none
        self.has_masks: bool | None = None  # unknown until the environment was reset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, observation: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Act; see :meth:`rmc_rl.MlpMemoryPolicy.predict`.

        :param observation: of all copies of the environment
        :param kwargs: ``state``, ``episode_start`` and ``deterministic``
        """
        if self.has_masks is None:
            self.has_masks = count_masked(self.env, getattr(self.model, "use_masking", None)) > 0
        if self.has_masks:
            kwargs["action_masks"] = get_action_masks(self.env)
        found: tuple[np.ndarray, tuple[np.ndarray, ...] | None] = self.policy.predict(observation, **kwargs)
        return found


def evaluate_episodes(
    model: Any,
    env: VecEnv,
    episodes: int,
    deterministic: bool = True,
    at_episode_end: Callable[[], object] | None = None,
) -> Episodes:
    """
    Play episodes with an agent.

    Each copy of the environment plays its share, a number that is fixed beforehand: otherwise short episodes, which end
    first, would count too often.

    :param model: an algorithm whose policy has a core
    :param env: the environment
    :param episodes: how many
    :param deterministic: take the likeliest action instead of a sample
    :param at_episode_end: called at the end of each episode that counts
    :return: returns, lengths and copies of the episodes, in the order in which they ended. If the environment keeps statistics
        (``info["episode"]``), they are taken from there: unclipped rewards and whole games on Atari
    """
    require_whole("episodes", episodes)
    copies: list[int] = []

    def after_step(local: dict[str, Any], _globals: dict[str, Any]) -> None:
        if local["done"] and (not local["is_monitor_wrapped"] or "episode" in local["info"]):
            copies.append(int(local["i"]))
            if at_episode_end is not None:
                at_episode_end()

    returns, lengths = evaluate_policy(
        WithMasks(model, env),  # type: ignore[arg-type]
        env,
        episodes,
        deterministic=deterministic,
        callback=after_step,
        return_episode_rewards=True,
        warn=False,
    )
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    return Episodes([float(value) for value in returns], [int(length) for length in lengths], copies)


class EvalCallback(callbacks.EvalCallback):
    """
    SB3's ``EvalCallback`` for agents with a memory, also on environments with ``action_masks()``.

    SB3's own ignores masks, so that the agent takes invalid actions; ``MaskableEvalCallback`` of sb3-contrib 2.9.2 drops the
    agent's state at every step. Arguments, logged keys and files are those of SB3's.
    """

    def _on_step(self) -> bool:
        assert isinstance(self.eval_env, VecEnv)
        model = self.model
        self.model = WithMasks(model, self.eval_env)  # type: ignore[assignment]  # for the duration of one evaluation
        try:
            return super()._on_step()
        finally:
            self.model = model
