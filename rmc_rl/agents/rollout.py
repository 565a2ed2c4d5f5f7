"""
Playing: how ``RecurrentPPO`` fills its buffer.

Code it follows: ``sb3_contrib.RecurrentPPO.collect_rollouts``, whose local variables callbacks read by the same names.

Shapes: ``T`` steps of a rollout, ``N`` environments.
"""

from typing import Any, NamedTuple

import numpy as np
import sb3_contrib
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from rmc_rl.agents import parallel
from rmc_rl.agents.checks import check_rollout
from rmc_rl.agents.cores.base import PLAIN, is_plain
from rmc_rl.agents.cores.kernels.dispatch import Decisions
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.agents.sequences import SequenceBuffer
from rmc_rl.agents.state import StatePair
from rmc_rl.errors import require

MASKS = "action_masks"  # the method of an environment that says which actions are valid


class Step(NamedTuple):
    """What one step of all environments returned."""

    clipped_actions: Any  # (N, *action_shape), as the environments took them
    new_obs: Any  # (N, *observation_shape)
    rewards: Any  # (N,)
    dones: Any  # (N,) bool
    infos: list[dict[str, Any]]  # N of them; none for environments on a device


class HostStepper:
    """
    Steps environments through SB3's ``VecEnv``. Actions are the only tensors that leave the policy's device.

    :param algorithm: who plays
    :param env: the environments
    """

    def __init__(self, algorithm: "RolloutCollector", env: VecEnv):
        self.algorithm, self.env = algorithm, env
        # episodes that a time limit ended: step, environment, last observation, critic's state after it
        self.timeouts: list[tuple[int, int, Any, StatePair]] = []

    def step(self, actions: Tensor) -> Step:
        """
        Step all environments.

        :param actions: ``(N, *action_shape)``
        """
        clipped_actions = self.algorithm.policy.within_bounds(actions.cpu().numpy())
        return Step(clipped_actions, *self.env.step(clipped_actions))

    def note_timeouts(self, step: Step, index: int, states: StatePair) -> None:
        """
        Remember the episodes that a time limit ended in a step.

        :param step: the step
        :param index: its place in the rollout
        :param states: the critic's states after it
        """
        for env in np.flatnonzero(step.dones).tolist():
            info = step.infos[env]
            if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None:
                state = tuple(half[:, env] for half in states)
                # copied, because an environment may overwrite its observations in the next step
                self.timeouts.append((index, env, _copy(info["terminal_observation"]), state))

    @torch.no_grad()
    def finish(self, buffer: SequenceBuffer) -> None:
        """
        Add the discounted values of last observations to the rewards of episodes that a time limit ended.

        :param buffer: with the whole rollout
        """
        algorithm, rewards = self.algorithm, buffer.tensors.rewards
        for begin in range(0, len(self.timeouts), algorithm.n_envs):  # in batches no larger than while acting
            steps, envs, observations, states = zip(*self.timeouts[begin : begin + algorithm.n_envs], strict=True)
            obs: Any
            if isinstance(algorithm.observation_space, spaces.Dict):
                obs = {name: np.stack([each[name] for each in observations]) for name in algorithm.observation_space}
            else:
                obs = np.stack(observations)
            halves = tuple(torch.stack(half, dim=1) for half in zip(*states, strict=True))
            no_starts = torch.zeros(len(steps), device=algorithm.device)
            values = algorithm.policy.predict_values(obs_as_tensor(obs, algorithm.device), halves, no_starts)
            rewards[list(steps), list(envs)] += algorithm.gamma * values.flatten()


class DeviceStepper:
    """
    Steps a batched world that lives on the policy's device. Nothing leaves the device during a rollout.

    :param algorithm: who plays
    :param env: a ``VecEnv`` with ``step_on_device`` and ``ended_on_device``
    """

    def __init__(self, algorithm: "RolloutCollector", env: VecEnv):
        self.algorithm, self.env = algorithm, env
        self.truncated: Tensor | None = None
        self.last_obs: Any = None

    def step(self, actions: Tensor) -> Step:
        """
        Step all environments.

        :param actions: ``(N, *action_shape)``
        """
        stepped = self.env.step_on_device(actions)  # type: ignore[attr-defined]
        new_obs, rewards, dones, self.truncated, self.last_obs = stepped
        return Step(actions, new_obs, rewards, dones, [])

    @torch.no_grad()
    def note_timeouts(self, step: Step, index: int, states: StatePair) -> None:
        """
        Add the discounted values of last observations to the rewards of episodes that a time limit ended.

        :param step: the step, whose rewards are changed in place
        :param index: its place in the rollout
        :param states: the critic's states after it
        """
        if self.truncated is not None:  # of all environments, because counting them would wait for the device
            values = self.algorithm.policy.predict_values(self.last_obs, states, torch.zeros_like(step.rewards))
            step.rewards.add_(self.algorithm.gamma * values.flatten() * self.truncated)

    def finish(self, buffer: SequenceBuffer) -> None:
        """
        Add the episodes that ended to the statistics.

        :param buffer: with the whole rollout
        """
        ended = self.env.ended_on_device()  # type: ignore[attr-defined]
        self.algorithm._update_info_buffer(ended, np.ones(len(ended), dtype=bool))


class Acting:
    """
    The steps of a policy in one rollout, for which kernels are found and their weights are prepared once.

    Torch's inference mode takes less time than ``no_grad``, but a tensor that a module keeps from it cannot be used in
    training. So it is used only if all modules are of torch, Stable-Baselines3, sb3-contrib or this package, and its tensors
    are copied.

    :param policy: who acts
    """

    def __init__(self, policy: MlpMemoryPolicy):
        self.policy, self.decisions = policy, Decisions()
        self.infers = is_plain(policy, (*PLAIN, "stable_baselines3.", "sb3_contrib."))

    def __call__(
        self, obs: PyTorchObs, states: RNNStates, episode_starts: Tensor, action_masks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """See :meth:`~rmc_rl.MlpMemoryPolicy.forward`."""
        with torch.inference_mode() if self.infers else torch.no_grad(), self.decisions:
            actions, values, log_probs, after = self.policy(obs, states, episode_starts, action_masks=action_masks)
        if self.infers:
            pi = tuple(half.clone() for half in after.pi)
            vf = pi if after.vf is after.pi else tuple(half.clone() for half in after.vf)
            actions, values, log_probs, after = actions.clone(), values.clone(), log_probs.clone(), RNNStates(pi, vf)
        return actions, values, log_probs, after


class RolloutCollector(sb3_contrib.RecurrentPPO):
    """The half of :class:`~rmc_rl.RecurrentPPO` that plays: from observations to a full buffer."""

    policy: MlpMemoryPolicy
    use_masking: bool | None
    _last_lstm_states: RNNStates  # type: ignore[assignment]
    rollout_buffer: SequenceBuffer
    _is_ended: bool  # whether a callback has ended the training of a group of processes
    _played: list[tuple[list[dict[str, Any]], np.ndarray | None]]  # infos and dones of the rollout, in a group of processes

    def collect_rollouts(  # type: ignore[override]  # SB3's buffer is of another class
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: SequenceBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Play ``n_rollout_steps`` steps in all environments.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: filled with the rollout
        :param n_rollout_steps: steps per environment, as many as the buffer has
        :return: False if the callback ended the training. In a group of processes, a callback ends it at the first step of a
            rollout: this one, or the next one
        :raises NonFiniteError: if an observation, a reward or an output of the policy is not finite
        """
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        rollout_buffer.gamma, rollout_buffer.gae_lambda = self.gamma, self.gae_lambda
        all_envs = env.num_envs * parallel.size()
        if self.use_sde:
            self.policy.reset_noise(all_envs)
        callback.on_rollout_start()

        # a wrapper would have to see each step
        on_device = not isinstance(env, VecEnvWrapper) and getattr(env, "on_device", False)
        stepper = DeviceStepper(self, env) if on_device else HostStepper(self, env)
        lstm_states, act = self._last_lstm_states, Acting(self.policy)
        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(all_envs)
            masks = get_action_masks(env) if rollout_buffer.num_masked else None
            obs_tensor, episode_starts, action_masks = rollout_buffer.add_observation(
                self._last_obs, self._last_episode_starts, self._last_lstm_states, masks
            )
            try:
                sampled, values, log_probs, lstm_states = act(obs_tensor, self._last_lstm_states, episode_starts, action_masks)
            except (ValueError, RuntimeError) as error:  # distributions refuse what is not finite
                self._check_finite(rollout_buffer, error)
                raise
            taken, stored = self._decide(env, sampled)
            step = stepper.step(taken)
            actions = taken if on_device else taken.cpu().numpy()
            clipped_actions, new_obs, rewards, dones, infos = step

            self.num_timesteps += all_envs
            callback.update_locals(locals())
            if not callback.on_step():
                if parallel.size() == 1:
                    return False
                self._is_ended = True  # at the first step of the next rollout, where all processes ask
            if n_steps == 0 and parallel.any_of(self._is_ended):
                return False
            if infos:
                self._update_info_buffer(infos, dones)
            stepper.note_timeouts(step, n_steps, lstm_states.vf)
            rollout_buffer.add_outcome(stored, values, log_probs, rewards)
            n_steps += 1
            self._last_obs, self._last_episode_starts, self._last_lstm_states = new_obs, dones, lstm_states

        self._check_finite(rollout_buffer)
        stepper.finish(rollout_buffer)
        self._exchange_episodes()
        with torch.no_grad():
            episode_starts = torch.as_tensor(dones, device=self.device).to(torch.float32)
            obs_tensor = new_obs if on_device else obs_as_tensor(new_obs, self.device)
            values = self.policy.predict_values(obs_tensor, lstm_states.vf, episode_starts)
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _decide(self, env: VecEnv, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """
        What is done with the actions that the policy sampled. Subclasses may override it.

        :param env: the training environment
        :param sampled: ``(N, *action_shape)``
        :return: the actions to take, and those to store in the buffer
        """
        return sampled, sampled

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        # statistics are kept for many episodes, and an environment may write to the same dictionary again
        ended = {index: info["episode"] for index, info in enumerate(infos) if info.get("episode") is not None}
        if ended:
            infos = [info | dict(episode=dict(ended[index])) if index in ended else info for index, info in enumerate(infos)]
        if parallel.size() == 1:
            super()._update_info_buffer(infos, dones)
        else:
            self._played.append((infos, dones))

    def _exchange_episodes(self) -> None:
        """In a group of processes: count the episodes of all of them, in the order in which one process would."""
        if parallel.size() == 1:
            return
        ended = []
        for step, (infos, dones) in enumerate(self._played):
            for copy, info in enumerate(infos):
                told: dict[str, Any] = {name: info[name] for name in ("episode", "is_success") if name in info}
                if told:
                    ended.append((step, parallel.rank(), copy, told, dones is not None and bool(dones[copy])))
        self._played.clear()
        every = sorted((each for part in parallel.gather(ended) for each in part), key=lambda each: each[:3])
        for _, _, _, told, done in every:
            super()._update_info_buffer([told], np.array([done]))

    def _check_finite(self, buffer: SequenceBuffer, error: Exception | None = None) -> None:
        """
        Check what a rollout stored, once per rollout.

        :param buffer: with the rollout, whole or in part
        :param error: what the policy raised at the last step, if it did
        :raises NonFiniteError: for the first number that is not finite
        """
        stored = buffer.tensors
        parts = {"reward": stored.rewards, "value": stored.values, "log-probability": stored.log_probs}
        check_rollout(self, stored.observations, parts, buffer.pos, error)

    def _count_masked(self) -> int:
        """The number of actions that the environment's masks cover, see :func:`count_masked`."""
        return 0 if self.env is None else count_masked(self.env, self.use_masking)


def count_masked(env: VecEnv, use_masking: bool | None = None) -> int:
    """
    The number of actions that an environment's masks cover; 0 if there are none.

    Unless ``use_masking`` is true, whatever does not answer with masks counts as an environment without them: many ``VecEnv``
    answer unknown names with an error, a stub or a property.

    :param env: the environment, after its reset
    :param use_masking: whether invalid actions are masked; None: if the environment has masks
    :raises UsageError: with ``use_masking=True`` if there are no masks of the right size
    """
    if use_masking is False:
        return 0
    space = env.action_space
    count = 0
    if isinstance(space, spaces.Discrete):
        count = int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        count = int(space.nvec.sum())
    elif isinstance(space, spaces.MultiBinary):
        count = 2 * int(space.n)  # type: ignore[arg-type]  # off and on of each action
    answer: Any = None
    try:
        if env.has_attr(MASKS):
            answer = np.asarray(get_action_masks(env))
    except Exception as error:  # whatever a user's class raises
        answer = error
    fits = isinstance(answer, np.ndarray) and answer.dtype.kind in "biuf" and answer.size == env.num_envs * count > 0
    if use_masking:
        got = answer.shape if isinstance(answer, np.ndarray) else answer
        require(fits, f"use_masking needs an env whose {MASKS}() returns {count} truths for each copy", got)
    return count if fits else 0


def _copy(observation: Any) -> Any:
    """An observation, or a dictionary of them, in memory of its own."""
    if isinstance(observation, dict):
        return {name: np.array(part) for name, part in observation.items()}
    return np.array(observation)
