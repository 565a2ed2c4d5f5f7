"""
Whether an exported file computes what the policy does: both act side by side.

Shapes: ``B`` environments; ``S`` numbers of the state of the file; ``N`` number of all discrete actions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.vec_env import VecEnv

from rmc_rl.agents.exporting import (
    ACTION_MASKS,
    EPISODE_START,
    OBSERVATION,
    STATE,
    Arrays,
    Scaling,
    parameters_of,
    parts_of,
    plain_copy,
    scaled,
    sizes_of,
    state_size,
)
from rmc_rl.agents.packing import unroll_sequences
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.agents.rollout import count_masked
from rmc_rl.agents.state import join_state

STEPS, TOLERANCE = 200, 1e-5  # of the check
START_RATE = 0.05  # share of its steps at which an episode starts


class Step(NamedTuple):
    """
    What an environment shows at one step.

    :param observation: by key, ``""`` if the observation is no ``Dict``, each ``(B, *shape)``
    :param action_masks: ``(B, N)`` bool; None: there are no masks
    """

    observation: Arrays
    action_masks: np.ndarray | None


class Parity(NamedTuple):
    """
    What :func:`check` found.

    :param steps: number of steps, each of all environments
    :param starts: number of episodes that started
    :param difference: the largest difference of an output from the policy's, both from the policy's state, relative to the
        output where that is above 1
    :param output: the name of that output
    :param drift: the largest difference if the file keeps its own state. Rounding grows in some memories: after 200 steps an
        RMC in single precision differs by 2e-5 from itself in double precision
    """

    steps: int
    starts: int
    difference: float
    output: str
    drift: float

    @property
    def is_equal(self) -> bool:
        """Whether the file computes what the policy does, within ``TOLERANCE``."""
        return self.steps > 0 and self.difference <= TOLERANCE


def check(
    policy: MlpMemoryPolicy,
    act: Callable[[Arrays], Arrays],
    steps: Iterable[Step],
    scalings: Mapping[str, Scaling] | None = None,
    seed: int = 0,
) -> Parity:
    """
    Let a file and its policy act side by side.

    Every output is compared at each step, from the policy's state and from the state that the file has kept. Where two actions
    are equally likely, within ``TOLERANCE``, either is right.

    :param policy: the policy
    :param act: what :func:`load_exported` returned
    :param steps: what both observe; see :func:`random_steps` and :func:`played_steps`
    :param scalings: see :func:`export_policy`
    :param seed: of the steps at which episodes start; all start at the first step
    """
    policy, rng = plain_copy(policy), np.random.default_rng(seed)
    states: RNNStates | None = None
    own = np.zeros((0, 0), dtype=np.float32)
    worst, drift, count, started = (0.0, ""), 0.0, 0, 0
    for step in steps:
        count += 1
        batch = len(next(iter(step.observation.values())))
        starts = rng.random(batch) < START_RATE if states is not None else np.ones(batch, dtype=bool)
        started += int(starts.sum())
        if states is None:
            states, own = policy.initial_states(batch), np.zeros((batch, state_size(policy)), dtype=np.float32)
        inputs = {f"{OBSERVATION}.{name}" if name else OBSERVATION: part for name, part in step.observation.items()}
        inputs[EPISODE_START] = starts
        if step.action_masks is not None:
            inputs[ACTION_MASKS] = step.action_masks
        found, kept = act(inputs | {STATE: _joined(policy, states)}), act(inputs | {STATE: own})
        expected, states = _act(policy, step, states, starts, scalings or {}, found["action"])
        own = kept["next_state"]
        for name, value in expected.items():
            worst = max(worst, (_difference(found[name], value), name))
            if name != "action":
                drift = max(drift, _difference(kept[name], value))
    return Parity(count, started, *worst, drift)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the expected value where that is above 1; infinite for another shape or NaN."""
    if found.shape != expected.shape:
        return float("inf")
    difference = np.abs(found.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0))


def _joined(policy: MlpMemoryPolicy, states: RNNStates) -> np.ndarray:
    """The state of a file, ``(B, S)``, from that of the policy."""
    joined = [join_state(states.pi, policy.core.state_size, policy.state_layers)]
    if policy.critic_core is not None:
        joined.append(join_state(states.vf, policy.critic_core.state_size, policy.state_layers))
    state: np.ndarray = torch.cat(joined, dim=1).numpy()
    return state


@torch.no_grad()
def _act(
    policy: MlpMemoryPolicy,
    step: Step,
    states: RNNStates,
    starts: np.ndarray,
    scalings: Mapping[str, Scaling],
    action: np.ndarray,
) -> tuple[Arrays, RNNStates]:
    """
    What the policy computes at a step, by its usual methods.

    :param action: of the file. It is expected itself if the actions are discrete and it is as likely as the likeliest one
    :return: the expected outputs and the next states
    """
    obs, _ = policy.obs_to_tensor(scaled(step.observation, scalings))
    first = torch.as_tensor(starts, dtype=torch.float32)
    masks = None if step.action_masks is None else torch.as_tensor(step.action_masks)
    latent_actor, latent_critic, states = policy._latents(obs, states, partial(unroll_sequences, episode_starts=first))
    distribution = policy._distribution(latent_actor, masks)
    actions = distribution.mode()
    log_prob, values = distribution.log_prob(actions), policy.value_net(latent_critic)
    expected = policy.within_bounds(actions.reshape(-1, *(policy.action_space.shape or ())).numpy())
    if not isinstance(policy.action_space, spaces.Box) and action.shape == expected.shape:
        chosen = torch.as_tensor(action)
        chosen = chosen.float() if isinstance(policy.action_space, spaces.MultiBinary) else chosen
        as_likely = (log_prob - distribution.log_prob(chosen)).abs().numpy() <= TOLERANCE
        expected = np.where(as_likely.reshape(-1, *[1] * (expected.ndim - 1)), action, expected)
    outputs = dict(log_prob=log_prob, **parameters_of(distribution, policy.action_space), value=values.flatten())
    arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
    return dict(action=expected, **arrays, next_state=_joined(policy, states)), states


def random_steps(
    policy: MlpMemoryPolicy,
    observation_space: spaces.Space[Any] | None = None,
    scalings: Mapping[str, Scaling] | None = None,
    masked: bool = False,
    batch: int = 7,
    steps: int = STEPS,
    seed: int = 0,
) -> Iterator[Step]:
    """
    Random samples of the observation space, and random masks that leave at least one action of each part valid.

    :param policy: the policy that acts on them
    :param observation_space: see :func:`export_policy`
    :param scalings: see :func:`export_policy`; samples of these parts are normal with the mean and deviation stated there
    :param masked: whether there are masks
    :param batch: ``B``
    :param steps: how many
    :param seed: of the samples
    """
    rng = np.random.default_rng(seed)
    parts = parts_of(policy.observation_space if observation_space is None else observation_space)
    for part in parts.values():
        part.seed(int(rng.integers(1 << 31)))
    for _ in range(steps):
        observation = {name: np.stack([part.sample() for _ in range(batch)]) for name, part in parts.items()}
        for name, scaling in (scalings or {}).items():
            noise = scaling.mean + scaling.std * rng.standard_normal(observation[name].shape)
            observation[name] = noise.astype(observation[name].dtype)
        masks = None
        if masked:
            masks = rng.random((batch, sum(sizes_of(policy.action_space)))) < 0.5
            for begin in np.cumsum([0, *sizes_of(policy.action_space)[:-1]]):
                masks[:, begin] |= ~masks[:, begin + 1]  # one of the first two
        yield Step(observation, masks)


def played_steps(
    policy: MlpMemoryPolicy, env: VecEnv, scalings: Mapping[str, Scaling] | None = None, steps: int = STEPS
) -> Iterator[Step]:
    """
    What the policy meets in an environment, where it samples its actions.

    :param policy: the policy
    :param env: the environment as it is, neither normalised nor with its images' channels moved
    :param scalings: see :func:`export_policy`
    :param steps: how many
    """
    observation: Any = env.reset()
    state, starts, masked = None, np.ones(env.num_envs, dtype=bool), count_masked(env) > 0
    for _ in range(steps):
        parts = dict(observation) if isinstance(observation, dict) else {"": observation}
        masks = np.asarray(get_action_masks(env), dtype=bool).reshape(env.num_envs, -1) if masked else None
        yield Step({name: np.array(part) for name, part in parts.items()}, masks)
        action, state = policy.predict(scaled(parts, scalings or {}), state, starts, action_masks=masks)
        observation, _, starts, _ = env.step(action)
