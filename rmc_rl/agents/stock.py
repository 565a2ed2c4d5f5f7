"""sb3-contrib's own ``RecurrentPPO`` with our checks around it: for comparisons by ``algo=stock`` on the command line."""

from typing import Any

import numpy as np
import sb3_contrib
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from rmc_rl.agents.checks import check_rollout, check_settings, undo_update, weights_of

PARTS = {"reward": "rewards", "value": "values", "log-probability": "log_probs"}  # name in a message -> attribute of a buffer
LOSSES = ("policy_gradient_loss", "value_loss", "entropy_loss", "loss")


class StockRecurrentPPO(sb3_contrib.RecurrentPPO):
    """
    sb3-contrib's ``RecurrentPPO``. It computes nothing differently: settings that make no sense are refused, and a number that
    is not finite stops training, with the policy and the optimizer that were there before the update.

    :param args: the positional arguments of ``sb3_contrib.RecurrentPPO``
    :param kwargs: its keyword arguments
    :raises UsageError: for a setting that makes no sense
    """

    def __init__(self, *args: Any, _init_setup_model: bool = True, **kwargs: Any):
        super().__init__(*args, _init_setup_model=False, **kwargs)  # type: ignore[misc]
        check_settings(self)
        if _init_setup_model:
            self._setup_model()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        check_settings(self)
        return super()._setup_learn(*args, **kwargs)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Play; see ``sb3_contrib.RecurrentPPO.collect_rollouts``.

        :raises NonFiniteError: if an observation, a reward or an output of the policy is not finite
        """
        try:
            goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except (ValueError, RuntimeError) as error:  # distributions refuse what is not finite
            self._check_rollout(rollout_buffer, error)
            raise
        self._check_rollout(rollout_buffer)
        return goes_on

    def _check_rollout(self, buffer: RolloutBuffer, error: Exception | None = None) -> None:
        """Check what a rollout stored, and the observation at which the policy raised an error, if it did."""
        steps = buffer.pos

        def with_last(stored: np.ndarray, last: Any) -> torch.Tensor:
            if error is None or steps == len(stored):
                return torch.as_tensor(stored)
            return torch.as_tensor(np.concatenate([stored[:steps], np.reshape(last, (1, *stored.shape[1:]))]))

        last: Any = self._last_obs
        if isinstance(self.observation_space, spaces.Dict):
            stored: Any = buffer.observations
            observations: Any = {name: with_last(stored[name], last[name]) for name in self.observation_space}
        else:
            observations = with_last(buffer.observations, last)
        parts = {name: torch.as_tensor(getattr(buffer, attribute)) for name, attribute in PARTS.items()}
        check_rollout(self, observations, parts, steps, error)

    def train(self) -> None:
        """
        Update the policy; see ``sb3_contrib.RecurrentPPO.train``.

        :raises NonFiniteError: if a loss or a parameter is not finite; policy and optimizer are then as they were before
        """
        before = weights_of(self)
        try:
            super().train()
        except (ValueError, RuntimeError):  # distributions refuse parameters that are not finite
            if not self._has_finite_weights():
                undo_update(self, before, "a parameter of the policy became not finite")
            raise
        logged = {name: self.logger.name_to_value.get(f"train/{name}", 0.0) for name in LOSSES}
        for name, value in logged.items():
            if not np.isfinite(value):
                undo_update(self, before, f"{name} became {value}")
        if not self._has_finite_weights():
            undo_update(self, before, "a parameter of the policy became not finite")

    def _has_finite_weights(self) -> bool:
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.policy.parameters())
