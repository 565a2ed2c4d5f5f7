"""
Recurrent PPO over whole sequences.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017, https://arxiv.org/abs/1707.06347.
Code it follows: ``sb3_contrib.RecurrentPPO``, whose arguments, losses, logged keys and callbacks it keeps.

Shapes: ``N`` environments, ``L`` steps of a sequence, ``B`` sequences of a minibatch.
"""

import math
import warnings
from typing import Any, ClassVar

import numpy as np
import sb3_contrib
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import FloatSchedule, explained_variance, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from rmc_rl.agents.policies import CnnMemoryPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy
from rmc_rl.agents.sequences import SequenceBuffer
from rmc_rl.errors import UsageError, require, require_whole

SHORT = 16  # steps of a sequence that nobody asked for and that hardly trains a memory


class RecurrentPPO(sb3_contrib.RecurrentPPO):
    """
    sb3-contrib's ``RecurrentPPO`` for policies with a core: the same algorithm by a faster route (figures in the README).

    Arguments, defaults, callbacks, logged keys and saved files are those of ``sb3_contrib.RecurrentPPO``: changing the import
    is all it takes. Files load in either class.

    Differences:

    * Minibatches are whole sequences of ``sequence_length`` steps. Where an episode starts inside one, it is cut, and the
      pieces fill the rows of a grid, in which the core starts anew; features extractor, heads and losses see real steps alone.
      sb3-contrib pads every piece to the longest, and runs everything on the padding as well.
    * Core states are kept where a sequence begins, instead of four arrays of them for every step.
    * Gradients reach back ``sequence_length`` steps, or to the episode's start. There, to the start of the episode, of the
      rollout or, at a place drawn at random, of the minibatch.
    * Episodes that a time limit ends are bootstrapped with the value of their last observation in batches, once per rollout;
      there, in a call for each.
    * With gSDE and squashed output actions are scaled to the action space, as in SB3's PPO; there they are not.
    * Worlds of ``rmc_rl/*`` that live on a GPU (``make_vec(..., device="cuda")``) are stepped there: nothing leaves it during
      a rollout, and callbacks get no infos. Other environments cost one exchange per step, of actions for observations.
    * Environments with ``action_masks()`` have invalid actions masked, as in ``sb3_contrib.MaskablePPO``.

    What decides whether memory is learned, and where it is done:

    * The value that bootstraps a cut-off episode or rollout is computed with the state that belongs to it (Pardo et al.,
      "Time Limits in Reinforcement Learning", 2018, https://arxiv.org/abs/1712.00378): :meth:`collect_rollouts`.
    * Advantages are normalised over the minibatch's real transitions; there is no padding: :meth:`train`.
    * A sequence begins from the state that the policy had there when it acted. No burn-in recomputes it (Kapturowski et
      al., "R2D2", 2019, https://openreview.net/forum?id=r1lyTjAqYX): the data are one rollout old, not a replay buffer.
    * Orthogonal initialisation leaves the core's own alone: :class:`~rmc_rl.MlpMemoryPolicy`.

    :param policy: ``MlpMemoryPolicy``, ``CnnMemoryPolicy`` or ``MultiInputMemoryPolicy``, or its name
    :param args: the other positional arguments of ``sb3_contrib.RecurrentPPO``
    :param sequence_length: steps of a training sequence: how far gradients reach back (truncated backpropagation through
        time). It must divide ``n_steps`` and ``batch_size``, which counts transitions; None: the largest that does, so
        ``n_steps`` if that divides ``batch_size``. Shorter ones run faster, as more go through the core at once: 16 to 32 on
        Atari
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: the keyword arguments of ``sb3_contrib.RecurrentPPO``
    :raises UsageError: for a setting that does not divide, with the values that do, or a policy without a core
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpMemoryPolicy": MlpMemoryPolicy,
        "CnnMemoryPolicy": CnnMemoryPolicy,
        "MultiInputMemoryPolicy": MultiInputMemoryPolicy,
    }

    policy: MlpMemoryPolicy
    _last_lstm_states: RNNStates  # type: ignore[assignment]
    rollout_buffer: SequenceBuffer  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[MlpMemoryPolicy],
        *args: Any,
        sequence_length: int | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, *args, _init_setup_model=False, **kwargs)  # type: ignore[misc]
        self.sequence_length = sequence_length
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        known = issubclass(self.policy_class, MlpMemoryPolicy)
        require(known, "policy must be a MlpMemoryPolicy or a subclass of it", self.policy_class.__name__)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        ).to(self.device)
        with torch.no_grad():
            self._last_lstm_states = self.policy.initial_states(self.n_envs)
        self.rollout_buffer = self._make_buffer()
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            if isinstance(self.clip_range_vf, int | float):
                require(self.clip_range_vf > 0, "clip_range_vf must be above 0, or None", self.clip_range_vf)
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Train in another environment from now on; see SB3's ``set_env``.

        :param env: the environment, with the same spaces and number of copies
        :param force_reset: whether the next ``learn`` resets it
        """
        super().set_env(env, force_reset)
        self.rollout_buffer = self._make_buffer()  # it may have action masks where the other had none

    def _make_buffer(self) -> SequenceBuffer:
        return SequenceBuffer(
            self.n_steps,
            self.n_envs,
            self._sequence_length(),
            self.observation_space,
            self.action_space,
            self._last_lstm_states,
            self._num_masked(),
            self.device,
        )

    def _sequence_length(self) -> int:
        """The length of training sequences, checked."""
        require_whole("n_steps", self.n_steps)
        require_whole("batch_size", self.batch_size)
        assert self.batch_size is not None
        transitions, most = self.n_steps * self.n_envs, math.gcd(self.n_steps, self.batch_size)
        if transitions % self.batch_size:
            valid = [size for size in range(1, transitions + 1) if transitions % size == 0]
            rule = f"batch_size must divide the {transitions} transitions of a rollout (n_steps {self.n_steps} * {self.n_envs}"
            raise UsageError(f"{rule} environments): {', '.join(map(str, valid))}, got {self.batch_size}")
        if self.sequence_length is None:
            if most < min(self.n_steps, SHORT):
                rule = f"the largest sequence_length that divides n_steps {self.n_steps} and batch_size {self.batch_size}"
                more = f"batch_size {self.n_steps}, or a multiple of it, lets them reach back a whole rollout"
                warnings.warn(f"gradients reach back {most} steps only, {rule}: {more}", stacklevel=2)
            return most
        require_whole("sequence_length", self.sequence_length)
        if most % self.sequence_length:
            valid = [length for length in range(1, most + 1) if most % length == 0]
            rule = f"sequence_length must divide n_steps {self.n_steps} and batch_size {self.batch_size}"
            raise UsageError(f"{rule}: {', '.join(map(str, valid))}, got {self.sequence_length}")
        return self.sequence_length

    def _num_masked(self) -> int:
        """How many actions the environment's masks cover; 0 where it has none."""
        if self.env is None or not is_masking_supported(self.env):
            return 0
        if isinstance(self.action_space, spaces.Discrete):
            return int(self.action_space.n)
        if isinstance(self.action_space, spaces.MultiDiscrete):
            return int(self.action_space.nvec.sum())
        raise UsageError(f"action_masks() of env needs Discrete or MultiDiscrete actions, got {self.action_space}")

    def collect_rollouts(  # type: ignore[override]  # SB3's buffer is another
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: SequenceBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Play ``n_rollout_steps`` steps in all environments.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: filled with the rollout
        :param n_rollout_steps: steps per environment
        :return: False where the callback ended the training
        """
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()

        # a wrapper would have to see each step
        on_device = not isinstance(env, VecEnvWrapper) and getattr(env, "on_device", False)
        lstm_states, masks = self._last_lstm_states, None
        assert self._last_episode_starts is not None
        all_rewards = np.zeros((n_rollout_steps, env.num_envs), dtype=np.float32)
        cut_off: list[tuple[int, int, Any, tuple[Tensor, ...]]] = []  # step, environment, last observation, critic's state
        for step in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and step % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            if rollout_buffer.action_masks is not None:
                masks = get_action_masks(env)
            obs_tensor, episode_starts, action_masks = rollout_buffer.observe(
                step, self._last_obs, self._last_episode_starts, self._last_lstm_states, masks
            )
            with torch.inference_mode():  # less work than no_grad, for tensors that never meet autograd
                actions, values, log_probs, lstm_states = self.policy(
                    obs_tensor, self._last_lstm_states, episode_starts, action_masks=action_masks
                )
            rollout_buffer.actions[step], rollout_buffer.values[step] = actions, values.flatten()
            rollout_buffer.log_probs[step] = log_probs

            infos: list[dict[str, Any]] = []
            if on_device:
                new_obs, rewards, dones, truncated, last_obs = env.step_on_device(actions)  # type: ignore[attr-defined]
                if truncated is not None:
                    with torch.no_grad():
                        last_values = self.policy.predict_values(last_obs, lstm_states.vf, torch.zeros_like(rewards))
                    rewards = rewards + self.gamma * last_values.flatten() * truncated
                rollout_buffer.rewards[step] = rewards
            else:
                actions = actions.cpu().numpy()
                clipped_actions = self.policy.within_bounds(actions)
                new_obs, rewards, dones, infos = env.step(clipped_actions)
                all_rewards[step] = rewards

            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)  # where there are infos, dones are an array

            for index in np.flatnonzero(dones).tolist() if infos else ():
                info = infos[index]
                if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None:
                    state = tuple(half[:, index] for half in lstm_states.vf)
                    cut_off.append((step, index, info["terminal_observation"], state))
            self._last_obs, self._last_episode_starts, self._last_lstm_states = new_obs, dones, lstm_states

        if on_device:
            ended = env.ended_on_device()  # type: ignore[attr-defined]
            self._update_info_buffer(ended, np.ones(len(ended), dtype=bool))
        else:
            self._bootstrap(all_rewards, cut_off)
            rollout_buffer.rewards.copy_(torch.from_numpy(all_rewards))
            new_obs = obs_as_tensor(new_obs, self.device)
        with torch.no_grad():
            starts = torch.as_tensor(dones, dtype=torch.float32, device=self.device)
            last_values = self.policy.predict_values(new_obs, lstm_states.vf, starts)
        rollout_buffer.compute_advantages(last_values.flatten(), dones, self.gamma, self.gae_lambda)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    @torch.no_grad()
    def _bootstrap(self, rewards: np.ndarray, cut_off: list[tuple[int, int, Any, tuple[Tensor, ...]]]) -> None:
        """
        Add the values of last observations to the rewards of episodes that a time limit ended.

        :param rewards: ``(T, N)``, changed in place
        :param cut_off: for each such episode its last step, its environment, the observation after it, and the critic's state
        """
        for begin in range(0, len(cut_off), self.n_envs):  # no larger a batch than in acting
            steps, envs, observations, states = zip(*cut_off[begin : begin + self.n_envs], strict=True)
            if isinstance(self.observation_space, spaces.Dict):
                obs = obs_as_tensor(
                    {name: np.stack([o[name] for o in observations]) for name in self.observation_space}, self.device
                )
            else:
                obs = obs_as_tensor(np.stack(observations), self.device)
            halves = tuple(torch.stack(half, dim=1) for half in zip(*states, strict=True))
            values = self.policy.predict_values(obs, halves, torch.zeros(len(steps), device=self.device))
            rewards[list(steps), list(envs)] += self.gamma * values.flatten().cpu().numpy()

    def train(self) -> None:
        """Update the policy with the rollout: ``n_epochs`` passes over it in minibatches of whole sequences."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        clip_range_vf = None
        if self.clip_range_vf is not None:
            clip_range_vf = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
        buffer = self.rollout_buffer
        assert self.batch_size is not None
        num_sequences = self.batch_size // buffer.sequence_length
        # kept on the device: a number that is read each time would wait for it each time
        logs: dict[str, list[Tensor]] = {}
        continue_training = True
        for _ in range(self.n_epochs):
            logs["approx_kl"] = []
            for batch in buffer.minibatches(num_sequences):
                values, log_prob, entropy = self.policy.evaluate_sequences(
                    batch.observations, batch.actions, batch.states, batch.layout, batch.action_masks
                )
                advantages = batch.advantages
                if self.normalize_advantage and len(advantages) > 1:
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                log_ratio = log_prob - batch.old_log_prob
                ratio = torch.exp(log_ratio)
                clipped = advantages * torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
                policy_loss = -torch.min(advantages * ratio, clipped).mean()
                if clip_range_vf is not None:
                    values = batch.old_values + torch.clamp(values - batch.old_values, -clip_range_vf, clip_range_vf)
                value_loss = torch.mean((batch.returns - values) ** 2)
                # the estimate where there is no closed form, with gSDE and squashed output
                entropy_loss = -torch.mean(-log_prob if entropy is None else entropy)
                loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss

                with torch.no_grad():  # http://joschu.net/blog/kl-approx.html
                    approx_kl = torch.mean(torch.exp(log_ratio) - 1 - log_ratio)
                    clip_fraction = torch.mean((torch.abs(ratio - 1) > clip_range).float())
                found = dict(entropy_loss=entropy_loss, policy_gradient_loss=policy_loss, value_loss=value_loss)
                for name, value in (found | dict(approx_kl=approx_kl, clip_fraction=clip_fraction, loss=loss)).items():
                    logs.setdefault(name, []).append(value.detach())
                if self.target_kl is not None and approx_kl > 1.5 * self.target_kl:
                    continue_training = False
                    break

                self.policy.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if not continue_training:
                break

        logs["loss"] = logs["loss"][-1:]  # as there: of the last minibatch
        for name, tensors in logs.items():
            self.logger.record(f"train/{name}", torch.stack(tensors).mean().item())
        explained = explained_variance(buffer.values.flatten().cpu().numpy(), buffer.returns.flatten().cpu().numpy())
        self.logger.record("train/explained_variance", explained)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", torch.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """See :meth:`rmc_rl.MlpMemoryPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)
