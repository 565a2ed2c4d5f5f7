"""
An episode of an agent, step by step: what it saw, did, expected and got, and what its core showed.

:func:`influence` answers which earlier step decided an action: the gradient of the action's log-probability with respect to
the observations, as in the saliency maps of Simonyan et al., "Deep Inside Convolutional Networks", 2013,
https://arxiv.org/abs/1312.6034.

Shapes: ``T`` steps of the episode, ``A`` actions of all parts of the action space.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.distributions import Bernoulli, Categorical

from rmc_rl.agents.packing import unroll_sequences
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.agents.rollout import count_masked
from rmc_rl.agents.state import join_state
from rmc_rl.errors import require, require_whole


class Recording(NamedTuple):
    """
    One episode of one copy of an environment.

    :param frames: the picture before each action and, if the episode ended, after the last one; empty if the environment
        cannot be drawn
    :param not_drawn: why not; empty if it was drawn
    :param observations: as the policy takes them, ``(T, *observation_shape)``, or a dictionary of such tensors
    :param starts: ``(T,)`` bool, where the core began anew: at the first step, and after a lost life if that ends an episode
        for the agent
    :param actions: as the policy chose them, ``(T, *action_shape)``
    :param masks: valid actions, ``(T, A)`` bool (MultiBinary: off and on of each action, ``(T, 2 A)``); None: the environment
        has no masks
    :param probabilities: of each action, ``(T, A)``; for MultiDiscrete the actions of all parts, one part after another; for
        MultiBinary the probability of "on"; None for Box actions
    :param means: of Box actions, before clipping, ``(T, numbers)``; None for other actions
    :param values: what the critic expected, ``(T,)``
    :param rewards: ``(T,)``, unclipped on Atari
    :param looks: what :meth:`rmc_rl.Core.inspect` returns for the actor's core, tensors ``(T, ...)``
    :param ended: whether the episode ended; false if it was cut
    """

    frames: list[np.ndarray]
    not_drawn: str
    observations: Any
    starts: Tensor
    actions: Tensor
    masks: Tensor | None
    probabilities: np.ndarray | None
    means: np.ndarray | None
    values: np.ndarray
    rewards: np.ndarray
    looks: dict[str, Tensor]
    ended: bool

    @property
    def length(self) -> int:
        """``T``"""
        return len(self.rewards)


@torch.no_grad()
def record_episode(
    policy: MlpMemoryPolicy,
    env: VecEnv,
    deterministic: bool = True,
    max_steps: int = 1000,
    keep: Callable[[np.ndarray], np.ndarray] = np.array,
    after_step: Callable[[], object] | None = None,
) -> Recording:
    """
    Play the next episode and keep everything that can be watched.

    :param policy: the agent's policy
    :param env: one copy of the environment, wrapped as in training
    :param deterministic: take the likeliest action instead of a sample
    :param max_steps: the episode is cut after so many steps
    :param keep: from a picture to what is kept of it
    :param after_step: called after each step
    :raises UsageError: for more than one copy, or ``max_steps`` below 1
    """
    require(env.num_envs == 1, "the environment to watch must be one copy", env.num_envs)
    require_whole("max_steps", max_steps)
    policy.set_training_mode(False)
    observation: Any = env.reset()
    has_masks = count_masked(env) > 0
    states, start = policy.initial_states(1), True
    frame, not_drawn = picture(env)
    frames = [] if frame is None else [keep(frame)]
    steps: dict[str, list[Any]] = {name: [] for name in ("obs", "start", "action", "mask", "shown", "value", "reward")}
    ended = False
    while not ended and len(steps["obs"]) < max_steps:
        obs = _cloned(policy.obs_to_tensor(observation)[0])
        mask = torch.as_tensor(np.asarray(get_action_masks(env)), device=policy.device) if has_masks else None
        starts = torch.full((1,), float(start), device=policy.device)
        # what the policy's forward does, which does not return the distribution
        latent_pi, latent_vf, states = policy._latents(obs, states, partial(unroll_sequences, episode_starts=starts))
        distribution = policy._distribution(latent_pi, mask)
        action = distribution.get_actions(deterministic=deterministic).reshape(1, *(env.action_space.shape or ()))
        value = policy.value_net(latent_vf)
        observation, reward, done, infos = env.step(policy.within_bounds(action.cpu().numpy()))
        found = (obs, start, action[0], mask, _shown(distribution, env.action_space), value.item())
        for name, part in zip(steps, (*found, float(infos[0].get("unclipped_reward", reward[0]))), strict=True):
            steps[name].append(part)
        start = bool(done[0])
        # a lost life is an end for the agent, but the game goes on, as in evaluation
        ended = start and ("episode" in infos[0] or not _has_statistics(env))
        if not not_drawn:
            frame = infos[0].get("final_frame") if ended else picture(env)[0]
            frames += [] if frame is None else [keep(frame)]
        if after_step is not None:
            after_step()
    observations = _joined(steps["obs"])
    begins = torch.tensor(steps["start"], device=policy.device)
    parts = observations if isinstance(observations, dict) else {"": observations}
    unsqueezed = {name: part.unsqueeze(1) for name, part in parts.items()}  # (T, ...) -> (T, 1, ...)
    looks = policy.inspect(unsqueezed if isinstance(observations, dict) else unsqueezed[""], None, begins.unsqueeze(1))
    shown = np.stack(steps["shown"])
    is_box = isinstance(env.action_space, spaces.Box)
    return Recording(
        frames,
        not_drawn,
        observations,
        begins,
        torch.stack(steps["action"]),
        torch.cat(steps["mask"]).view(len(begins), -1).bool() if has_masks else None,
        None if is_box else shown,
        shown if is_box else None,
        np.array(steps["value"]),
        np.array(steps["reward"]),
        {name: look.squeeze(1) for name, look in looks.items()},
        ended,
    )


def influence(policy: MlpMemoryPolicy, recording: Recording, step: int) -> np.ndarray:
    """
    How much each observation up to a step decided the action taken there.

    It is the norm of the gradient of the action's log-probability with respect to the observation as the first layer reads it:
    normalised images, one-hot discrete values. One backward pass gives all of them. A gradient tells what a small change would
    do, not what would have happened with another observation.

    :param policy: the policy that played the episode
    :param recording: the episode
    :param step: the action's step, from 0
    :return: ``(step + 1,)``, one number for each observation; 0 before the last start of an episode
    :raises UsageError: for a step that the episode does not have
    """
    last = recording.length - 1
    valid = isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= last
    require(valid, f"why must be a step of the episode, 0 to {last}", step)
    parts = recording.observations if isinstance(recording.observations, dict) else {"": recording.observations}
    until = {name: part[: step + 1] for name, part in parts.items()}
    obs = preprocess_obs(
        until if isinstance(recording.observations, dict) else until[""],
        policy.observation_space,
        normalize_images=policy.normalize_images,
    )
    # clones, because a float observation may come back as it was
    read = {name: part.clone().requires_grad_() for name, part in (obs if isinstance(obs, dict) else {"": obs}).items()}
    policy.set_training_mode(False)
    with torch.enable_grad():
        features = policy.pi_features_extractor(read if isinstance(obs, dict) else read[""])
        state = join_state(policy.initial_states(1).pi, policy.core.state_size, policy.state_layers)
        # (step + 1, F) -> (step + 1, 1, F)
        outputs, _ = policy.core(features.unsqueeze(1), state, recording.starts[: step + 1].unsqueeze(1))
        mask = None if recording.masks is None else recording.masks[step : step + 1]
        distribution = policy._distribution(policy.mlp_extractor.forward_actor(outputs[-1]), mask)
        action = recording.actions[step].flatten()
        action = action if isinstance(policy.action_space, spaces.Discrete) else action.unsqueeze(0)
        gradients = torch.autograd.grad(distribution.log_prob(action).sum(), list(read.values()), allow_unused=True)
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum(0).sqrt().cpu().numpy() if squares else np.zeros(step + 1)


def picture(env: VecEnv) -> tuple[np.ndarray | None, str]:
    """
    The present picture of an environment.

    :param env: one copy
    :return: ``(height, width, 3)`` uint8 and "", or None and why there is no picture
    """
    inner: Any = env.unwrapped
    if getattr(inner, "render_mode", None) != "rgb_array":
        return None, "it has no render mode rgb_array"
    try:
        (frame,) = inner.get_images()
    except Exception as error:  # whatever an environment raises that cannot be drawn
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"
    frame = np.asarray(frame)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or frame.size == 0:
        return None, "its render() returns no picture (height, width, 3) of uint8"
    return frame, ""


def _has_statistics(env: VecEnv) -> bool:
    """Whether the environment says when an episode ends, with ``info["episode"]``."""
    return bool(env.env_is_wrapped(Monitor)[0])


def _shown(distribution: Distribution, space: spaces.Space[Any]) -> np.ndarray:
    """The probabilities ``(A,)`` of a distribution of one copy, or the means of continuous actions."""
    of_parts: Any = getattr(distribution, "distributions", None)
    parts = of_parts if isinstance(of_parts, list) else getattr(distribution, "distribution", None)
    parts = parts if isinstance(parts, list) else [parts]
    if all(isinstance(part, Categorical) for part in parts):
        # masked MultiBinary actions are pairs, off and on
        on = slice(1, None) if isinstance(space, spaces.MultiBinary) else slice(None)
        return torch.cat([part.probs[0, on] for part in parts]).cpu().numpy()
    if isinstance(parts[0], Bernoulli):
        return parts[0].probs[0].cpu().numpy()
    return distribution.mode()[0].flatten().cpu().numpy()


def _cloned(obs: PyTorchObs) -> Any:
    """Observations in their own memory: an environment may reuse it."""
    return {name: part.clone() for name, part in obs.items()} if isinstance(obs, dict) else obs.clone()


def _joined(observations: list[Any]) -> Any:
    """Observations of one step each, ``(1, ...)``, as those of all steps, ``(T, ...)``."""
    if isinstance(observations[0], dict):
        return {name: torch.cat([obs[name] for obs in observations]) for name in observations[0]}
    return torch.cat(observations)
