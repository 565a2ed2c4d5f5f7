"""Callbacks for SB3's ``learn``."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from rmc_rl.agents.cores import scalars
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.errors import require

LOOKS = 8  # steps of a rollout; each costs a step of the core


class CoreScalars(BaseCallback):
    """
    Logs how the actor's core is doing, once per rollout: means of gates, entropies of attention, shares of active modules.

    They go to ``core/<name>``; :func:`rmc_rl.agents.cores.scalars` says which there are. It looks at a few steps of each
    rollout, chosen at random, of all environments. A core that shows nothing logs nothing.

    :raises UsageError: as training begins, for a policy without a core
    """

    def _init_callback(self) -> None:
        policy = self.model.policy
        require(isinstance(policy, MlpMemoryPolicy), "CoreScalars needs a policy with a core", type(policy).__name__)

    def _on_rollout_start(self) -> None:
        n_steps = self.model.n_steps  # type: ignore[attr-defined]
        self.chosen = set(np.random.default_rng(self.num_timesteps).permutation(n_steps)[:LOOKS].tolist())
        self.step = 0
        self.found: dict[str, list[float]] = {}

    def _on_step(self) -> bool:
        if self.step in self.chosen:
            policy: MlpMemoryPolicy = self.model.policy  # type: ignore[assignment]
            # the algorithm's variables: what the policy has just acted on
            obs, starts = self.locals["obs_tensor"], self.locals["episode_starts"]
            obs = {name: part.unsqueeze(0) for name, part in obs.items()} if isinstance(obs, dict) else obs.unsqueeze(0)
            looks = policy.inspect(obs, self.model._last_lstm_states.pi, starts.unsqueeze(0))  # type: ignore[attr-defined]
            for name, value in scalars(looks).items():
                self.found.setdefault(name, []).append(value)
        self.step += 1
        return True

    def _on_rollout_end(self) -> None:
        for name, values in self.found.items():
            self.logger.record(f"core/{name}", float(np.mean(values)))
