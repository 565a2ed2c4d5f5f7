"""
Imitation: the policies of ``RecurrentPPO`` trained on the answers that a world itself knows.

It separates what a memory can hold from what reinforcement can teach: the same policy, rollouts, sequences and kernels, but
with cross-entropy on the right actions in place of PPO's policy loss. The learner acts and the world labels, as in DAgger
(Ross, Gordon and Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning", 2011,
https://arxiv.org/abs/1011.0686), or the expert acts (behavioural cloning).

Shapes: ``T`` steps of a rollout, ``N`` environments, ``n`` steps of a minibatch.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rmc_rl.agents import parallel
from rmc_rl.agents.ppo import RecurrentPPO
from rmc_rl.agents.sequences import Sequences
from rmc_rl.errors import UsageError, require_choice

ACTORS = ("learner", "expert")


class Imitation(RecurrentPPO):
    """
    Trains a policy by cross-entropy on the answers of its environment (Box actions: by their negative log-likelihood).

    The critic is trained as in PPO, so that a policy may go on with ``RecurrentPPO``. Steps without an answer train the critic
    alone. Logged are ``train/imitation_loss`` in nats per answer, ``train/answer_probability`` (the mean probability that the
    policy gives to the answers; not for Box actions), and ``train/value_loss``.

    The arguments ``ent_coef``, ``clip_range``, ``clip_range_vf``, ``normalize_advantage`` and ``target_kl`` have no effect.

    :param args: the positional arguments of :class:`~rmc_rl.RecurrentPPO`
    :param actor: who acts: "learner" (the environment labels what the learner meets) or "expert" (the learner acts only where
        the environment has no answer)
    :param kwargs: the keyword arguments of :class:`~rmc_rl.RecurrentPPO`
    :raises UsageError: for another actor, and when training begins, for an environment that knows no answers
    """

    def __init__(self, *args: Any, actor: str = "learner", **kwargs: Any):
        require_choice("actor", actor, ACTORS)
        self.actor = actor
        super().__init__(*args, **kwargs)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._setup_learn(*args, **kwargs)
        assert self.env is not None
        self._answers(self.env)  # before anything is played
        self.known = torch.zeros(self.n_steps, self.n_envs, dtype=torch.bool, device=self.device)  # where there is an answer
        return result

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "known"]

    @staticmethod
    def _answers(env: VecEnv) -> tuple[np.ndarray, np.ndarray]:
        """The environment's answers ``(N, *action_shape)`` and where they are known ``(N,)``."""
        answers = getattr(env, "answers", None)
        if answers is None:
            raise UsageError(f"imitation needs an environment with answers(), which knows the right actions, got {env}")
        actions, known = answers()
        return np.asarray(actions), np.asarray(known, dtype=bool)

    def _decide(self, env: VecEnv, sampled: Tensor) -> tuple[Tensor, Tensor]:
        actions, known = self._answers(env)
        self.known[self.rollout_buffer.pos] = torch.from_numpy(known).to(self.device)
        labels = torch.as_tensor(actions, device=self.device).to(sampled.dtype).view_as(sampled)
        chosen = self.known[self.rollout_buffer.pos].view(-1, *[1] * (sampled.dim() - 1))
        labels = torch.where(chosen, labels, sampled)
        return (labels if self.actor == "expert" else sampled), labels

    def _loss(self, batch: Sequences, clip_range: float, clip_range_vf: float | None) -> tuple[Tensor, dict[str, Tensor]]:
        values, log_prob, entropy = self.policy.evaluate_sequences(
            batch.observations, batch.actions, batch.states, batch.layout, batch.action_masks
        )
        known = self.known.flatten()[batch.steps].float()
        answers = parallel.total(batch.sum(known)).clamp(min=1)
        imitation_loss = -batch.sum(log_prob * known) / answers
        value_loss = batch.mean((batch.returns - values) ** 2)
        entropy_loss = -batch.mean(-log_prob if entropy is None else entropy)
        loss = imitation_loss + self.vf_coef * value_loss
        found = dict(imitation_loss=imitation_loss, value_loss=value_loss, entropy_loss=entropy_loss, loss=loss)
        if not isinstance(self.action_space, spaces.Box):
            found["answer_probability"] = batch.sum(torch.exp(log_prob) * known) / answers
        return loss, found
