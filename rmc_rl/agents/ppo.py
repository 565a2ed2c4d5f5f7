"""
Recurrent PPO over whole sequences.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017, https://arxiv.org/abs/1707.06347.
Code it follows: ``sb3_contrib.RecurrentPPO``, whose arguments, losses, logged keys and callbacks it keeps.
"""

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from torch import Tensor

from rmc_rl import compat
from rmc_rl.agents import parallel
from rmc_rl.agents.checks import Weights, check_settings, undo_update, weights_of
from rmc_rl.agents.lstm_policies import (
    OF_STOCK,
    CnnLstmPolicy,
    MlpLstmPolicy,
    MultiInputLstmPolicy,
)
from rmc_rl.agents.policies import CnnMemoryPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy
from rmc_rl.agents.rollout import RolloutCollector
from rmc_rl.agents.sequences import SequenceBuffer, Sequences
from rmc_rl.errors import check_keywords, require, unknown

SHORT = 16  # steps; sequences that are shorter hardly train a memory
# arguments of a policy that the algorithm passes itself
_GIVEN = ("observation_space", "action_space", "lr_schedule", "use_sde")


class RecurrentPPO(RolloutCollector):
    """
    sb3-contrib's ``RecurrentPPO``, faster, for policies whose memory is a core.

    Arguments, defaults, policy names, callbacks, logged keys and saved files are those of ``sb3_contrib.RecurrentPPO``: to
    switch, change one import. Files load in either class.

    Differences:

    * Minibatches are whole sequences of ``sequence_length`` steps. Where an episode starts inside one, the sequence is cut,
      and the pieces are packed into rows, where the core starts anew; features extractor, heads and losses see real steps
      only. sb3-contrib pads every piece to the longest, and computes everything on the padding as well.
    * Core states are stored where a sequence begins, instead of four arrays of them for every step.
    * Gradients reach back ``sequence_length`` steps, or to the start of the episode. In sb3-contrib they stop at
      the start of the episode or of the rollout, or at a boundary of a minibatch, which is placed at random.
    * Episodes that a time limit ends are bootstrapped with the value of their last observation in batches, once per rollout;
      in sb3-contrib, in one call for each.
    * With gSDE and squashed output actions are scaled to the action space, as in SB3's PPO; in sb3-contrib they are not.
    * Worlds of ``rmc_rl/*`` that live on a GPU (``make_vec(..., device="cuda")``) are stepped there: nothing leaves it during
      a rollout, and callbacks get no infos. Other environments cost one exchange per step, actions for observations.
    * Environments with ``action_masks()`` have invalid actions masked, as in ``sb3_contrib.MaskablePPO``.
    * A number that is not finite stops training with :class:`~rmc_rl.errors.NonFiniteError`; the policy and its optimizer are
      then those before the update.

    * Several processes can train one agent together, see :mod:`rmc_rl.agents.parallel`. Each has its own environments;
      ``batch_size`` and ``num_timesteps`` count the steps of all.

    What decides whether memory is learned, and where it is done:

    * The value that bootstraps a truncated episode or rollout is computed with the state that belongs to it (Pardo et al.,
      "Time Limits in Reinforcement Learning", 2018, https://arxiv.org/abs/1712.00378): :meth:`collect_rollouts`.
    * Advantages are normalised over the minibatch's real transitions; there is no padding: :meth:`train`.
    * A sequence begins from the state that the policy had there when it acted. No burn-in recomputes it (Kapturowski et
      al., "R2D2", 2019, https://openreview.net/forum?id=r1lyTjAqYX): the data are one rollout old, not a replay buffer.
    * Orthogonal initialisation leaves the core's own alone: :class:`~rmc_rl.MlpMemoryPolicy`.

    :param policy: ``MlpMemoryPolicy``, ``CnnMemoryPolicy`` or ``MultiInputMemoryPolicy``, one of sb3-contrib's
        ``MlpLstmPolicy``, ``CnnLstmPolicy`` or ``MultiInputLstmPolicy``, a subclass of ours, or a name of one of these
    :param env: the environment to learn from, or its Gymnasium id
    :param learning_rate: a number, or a function of the remaining progress, which falls from 1 to 0
    :param n_steps: steps of each environment per rollout
    :param batch_size: transitions of a minibatch; None: the whole rollout
    :param n_epochs: passes over each rollout
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: limit of the change of the probability ratio, a number or a function of the remaining progress
    :param clip_range_vf: limit of the change of values, in their own unit; None: no limit
    :param normalize_advantage: whether advantages are normalised in each minibatch
    :param ent_coef: weight of the entropy in the loss. It may also be a schedule, like ``learning_rate``; sb3-contrib's class
        can train only with a number. A large weight at first keeps the policy from becoming deterministic before it knows
        anything
    :param vf_coef: weight of the value loss
    :param max_grad_norm: largest norm of the gradient
    :param use_sde: whether to explore with gSDE instead of independent noise
    :param sde_sample_freq: steps between samples of gSDE's noise; -1: one sample per rollout
    :param target_kl: an update ends when its estimated KL divergence exceeds 1.5 times this; None: no limit
    :param stats_window_size: episodes over which logged returns and lengths are averaged
    :param tensorboard_log: the folder for TensorBoard; None: no logging
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: of the random generators; None: a random one
    :param device: cpu, cuda ...; "auto": the GPU if there is one
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param sequence_length: steps of a training sequence: how far gradients reach back (truncated backpropagation through
        time). None: ``n_steps``, or equal parts of it if ``batch_size``, which counts transitions, is smaller. Shorter
        sequences run faster, because more of them go through the core at once: 16 to 32 on Atari. A minibatch holds as many
        whole sequences as fit into ``batch_size``; the last one of a rollout may be shorter
    :param use_masking: whether invalid actions are masked; None: if the environment answers ``action_masks()`` with masks
    :param kwargs: none; an unknown argument is an error that names the nearest one
    :raises UsageError: for an unknown argument, a setting that makes no sense, or a policy without a core
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpMemoryPolicy": MlpMemoryPolicy,
        "CnnMemoryPolicy": CnnMemoryPolicy,
        "MultiInputMemoryPolicy": MultiInputMemoryPolicy,
        "MlpLstmPolicy": MlpLstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
    }

    def __init__(
        self,
        policy: str | type[MlpMemoryPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        sequence_length: int | None = None,
        use_masking: bool | None = None,
        **kwargs: Any,
    ):
        check_keywords(f"argument of {type(self).__name__}", type(self), kwargs)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,  # type: ignore[arg-type]  # stored, and used by this class alone
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.sequence_length, self.use_masking = sequence_length, use_masking
        self._iterations_before = 0  # rollouts before this call of learn
        check_settings(self)
        if _init_setup_model:
            self._setup_model()

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise unknown("policy", policy_name, self.policy_aliases)
        return self.policy_aliases[policy_name]

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy_class: Any = OF_STOCK.get(self.policy_class, self.policy_class)
        known = isinstance(self.policy_class, type) and issubclass(self.policy_class, MlpMemoryPolicy)
        rule = f"policy must be one of {', '.join(self.policy_aliases)} or a subclass of one in rmc_rl.agents"
        require(known, rule, getattr(self.policy_class, "__name__", self.policy_class))
        kind = f"argument of {self.policy_class.__name__}"
        check_keywords(kind, self.policy_class, self.policy_kwargs, given=_GIVEN)
        self.policy = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        ).to(self.device)
        if self.policy.amp is not None and self.device.type == "cpu" and not compat.cpu_has_bfloat16():
            warnings.warn("amp='bf16' is many times slower here: this processor has no bfloat16 instructions", stacklevel=3)
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        self._setup_rollout(num_masked=0)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Any:
        check_settings(self)
        if self._last_episode_starts is not None and len(self._last_episode_starts) != self.n_envs:
            self._last_obs = None  # of another number of environments: start new episodes
        if not parallel.is_first() and not self._custom_logger:
            self.set_logger(Logger(None, []))  # the first process writes
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self._iterations_before = self.num_timesteps // (self.n_steps * self._all_envs)
        parallel.copy_from_first(self.policy)
        self._is_ended, self._played = False, []
        self._setup_rollout(self._count_masked())
        self._warn_about_sizes()
        return result

    @property
    def _all_envs(self) -> int:
        """The number of environments, those of all processes that train together."""
        return self.n_envs * parallel.size()

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Fix the random numbers; see SB3's ``set_random_seed``. Of processes that train together, each has its own environments.

        :param seed: of the first environment; the others have those after it
        """
        super().set_random_seed(seed)
        if seed is not None and self.env is not None and not parallel.is_first():
            self.env.seed(seed + parallel.rank() * self.n_envs)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Train in another environment from now on; see SB3's ``set_env``.

        :param env: the environment, with the same spaces. Unlike in SB3, the number of copies may differ
        :param force_reset: whether the next ``learn`` resets it
        """
        vec_env = compat.wrap_env(type(self), env, self.verbose)
        self.n_envs = vec_env.num_envs
        super().set_env(vec_env, force_reset)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_is_ended", "_played"]

    def _setup_rollout(self, num_masked: int) -> None:
        """Allocate buffer and states for the present settings, if they do not fit yet."""
        length, buffer = self._effective_sequence_length(), getattr(self, "rollout_buffer", None)
        states = self._last_lstm_states
        if states is None or states.pi[0].shape[1] != self.n_envs or states.pi[0].device.type != self.device.type:
            with torch.no_grad():
                self._last_lstm_states = self.policy.initial_states(self.n_envs)
        wanted = (self.n_steps, self.n_envs, length, num_masked)
        if buffer is None or wanted != (buffer.buffer_size, buffer.n_envs, buffer.sequence_length, buffer.num_masked):
            self.rollout_buffer = SequenceBuffer(
                self.n_steps,
                self.n_envs,
                length,
                self.observation_space,
                self.action_space,
                self._last_lstm_states,
                num_masked,
                self.device,
                self.gamma,
                self.gae_lambda,
                self.policy.next_states,
            )

    def _effective_sequence_length(self) -> int:
        """Steps of a training sequence that follow from ``sequence_length``, ``n_steps`` and ``batch_size``."""
        most = min(self.n_steps, self.batch_size or self.n_steps * self._all_envs)
        if self.sequence_length is not None:
            return min(self.sequence_length, most)
        return -(-self.n_steps // -(-self.n_steps // most))  # equal parts, each rounded up

    def _warn_about_sizes(self) -> None:
        """Warn about sizes that train, but not as one may expect."""
        length, transitions = self.rollout_buffer.sequence_length, self.n_steps * self._all_envs
        if self.sequence_length is None and length < min(self.n_steps, SHORT):
            rule = f"gradients reach back {length} steps only, because batch_size is {self.batch_size}"
            more = f"batch_size={self.n_steps}, or a multiple of it, lets them reach back a whole rollout"
            warnings.warn(f"{rule}: {more}", stacklevel=4)
        elif self.sequence_length is not None and length < self.sequence_length:
            sizes = f"n_steps is {self.n_steps} and batch_size {self.batch_size}"
            warnings.warn(f"sequence_length {self.sequence_length} becomes {length}, because {sizes}", stacklevel=4)
        batch_size = min(self.batch_size or transitions, transitions)
        if batch_size % length or transitions % batch_size:
            used = batch_size // length * length
            warnings.warn(
                f"batch_size {self.batch_size} does not divide a rollout (n_steps {self.n_steps} * {self._all_envs} "
                f"environments) into whole sequences of {length} steps: minibatches have {used}, the last one fewer",
                stacklevel=4,
            )

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log; see SB3's ``dump_logs``. Iterations are counted over all calls of ``learn``.

        :param iteration: of this call of ``learn``
        """
        super().dump_logs(iteration + self._iterations_before if iteration > 0 else 0)

    def train(self) -> None:
        """
        Update the policy with the rollout: ``n_epochs`` passes over it in minibatches of whole sequences.

        :raises NonFiniteError: if a loss or a parameter is not finite; policy and optimizer are then as they were before
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        clip_range_vf = None
        if self.clip_range_vf is not None:
            clip_range_vf = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
        before, parameters = weights_of(self), list(self.policy.parameters())
        # kept on the device: reading a number at each update would wait for the device each time
        logs: dict[str, list[Tensor]] = {}
        continue_training = True
        for epoch in range(self.n_epochs):
            logs["approx_kl"] = []
            for batch in self.rollout_buffer.minibatches(self.batch_size):
                try:
                    loss, found = self._loss(batch, clip_range, clip_range_vf)
                except (ValueError, RuntimeError):  # distributions refuse parameters that are not finite
                    self._check_update(logs, before)
                    raise
                for name, value in found.items():
                    logs.setdefault(name, []).append(value.detach())
                if self.target_kl is not None and "approx_kl" in found:
                    kl = parallel.total(found["approx_kl"])
                    if kl > 1.5 * self.target_kl:
                        continue_training = False
                        if self.verbose >= 1:
                            self.logger.info(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
                        break
                self.policy.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                parallel.add_gradients(parameters, batch.counts)
                norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                logs.setdefault("gradient_norm", []).append(norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if not continue_training:
                break

        logs = {name: self._added(name, values) for name, values in logs.items()}
        self._check_update(logs, before)
        logs["loss"] = logs["loss"][-1:]  # of the last minibatch, as in sb3-contrib
        for name, tensors in logs.items():
            if tensors:
                self.logger.record(f"train/{name}", torch.stack(tensors).mean().item())
        buffer = self.rollout_buffer
        values, returns = (parallel.rows(array.flatten()) for array in (buffer.values, buffer.returns))
        self.logger.record("train/explained_variance", explained_variance(values, returns))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", torch.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if callable(self.ent_coef):
            self.logger.record("train/ent_coef", self._entropy_weight())
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)

    @staticmethod
    def _added(name: str, values: list[Tensor]) -> list[Tensor]:
        """The numbers that were logged of each minibatch, added over all processes; the norm is of all gradients already."""
        if not values or name == "gradient_norm" or parallel.size() == 1:
            return values
        return list(parallel.total(torch.stack(values)))

    def _entropy_weight(self) -> float:
        """``ent_coef`` as it is now."""
        return self.ent_coef(self._current_progress_remaining) if callable(self.ent_coef) else self.ent_coef

    def _loss(self, batch: Sequences, clip_range: float, clip_range_vf: float | None) -> tuple[Tensor, dict[str, Tensor]]:
        """
        PPO's loss of a minibatch, and what is logged of it, by name.

        In a group of processes each has a part of the minibatch, and all these numbers are its parts of sums.
        """
        values, log_prob, entropy = self.policy.evaluate_sequences(
            batch.observations, batch.actions, batch.states, batch.layout, batch.action_masks
        )
        advantages = batch.advantages
        if self.normalize_advantage and batch.total > 1:
            mean, std = parallel.mean_and_std(advantages, batch.counts)
            advantages = (advantages - mean) / (std + 1e-8)
        log_ratio = log_prob - batch.old_log_prob
        ratio = torch.exp(log_ratio)
        clipped = advantages * torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
        policy_loss = -batch.mean(torch.min(advantages * ratio, clipped))
        if clip_range_vf is not None:
            values = batch.old_values + torch.clamp(values - batch.old_values, -clip_range_vf, clip_range_vf)
        value_loss = batch.mean((batch.returns - values) ** 2)
        # an estimate where there is no closed form: gSDE with squashed output
        entropy_loss = -batch.mean(-log_prob if entropy is None else entropy)
        loss = policy_loss + self._entropy_weight() * entropy_loss + self.vf_coef * value_loss
        with torch.no_grad():  # http://joschu.net/blog/kl-approx.html
            approx_kl = batch.mean(torch.exp(log_ratio) - 1 - log_ratio)
            clip_fraction = batch.mean((torch.abs(ratio - 1) > clip_range).float())
        return loss, dict(
            entropy_loss=entropy_loss,
            policy_gradient_loss=policy_loss,
            value_loss=value_loss,
            approx_kl=approx_kl,
            clip_fraction=clip_fraction,
            loss=loss,
        )

    def _check_update(self, logs: dict[str, list[Tensor]], before: Weights) -> None:
        """
        Check that an update left only finite numbers, with one wait for the device.

        :param logs: the numbers of each minibatch, by name
        :param before: parameters and optimizer state before the update, restored if it failed
        :raises NonFiniteError: for the first number that is not finite
        """
        finite = [torch.isfinite(parameter).all() for parameter in self.policy.parameters()]
        finite += [torch.isfinite(value) for name in ("loss", "gradient_norm") for value in logs.get(name, [])]
        if torch.stack(finite).all():
            return
        names = ("policy_gradient_loss", "imitation_loss", "value_loss", "entropy_loss", "loss", "gradient_norm")
        bad = [(int(np.flatnonzero(wrong)[0]), name) for name in names if (wrong := _not_finite(logs.get(name, []))).any()]
        what = "a parameter of the policy is not finite"
        if bad:
            index, name = min(bad, key=lambda each: each[0])
            what = f"{name} became {logs[name][index].item()} at minibatch {index} of the update"
        undo_update(self, before, what)

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


def _not_finite(values: list[Tensor]) -> np.ndarray:
    """Which of some numbers are not finite."""
    return ~np.isfinite(torch.stack(values).cpu().numpy()) if values else np.zeros(0, dtype=bool)
