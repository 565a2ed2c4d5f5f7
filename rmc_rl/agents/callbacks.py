"""Callbacks for SB3's ``learn``."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from rmc_rl.agents.cores import scalars
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.errors import require

LOOKS = 8  # steps of a rollout; each costs one more step of the core


class CoreScalars(BaseCallback):
    """
    Logs the state of the actor's core once per rollout: means of gates, entropies of attention, shares of active modules.

    They are logged as ``core/<name>``; :func:`rmc_rl.agents.cores.scalars` documents them. The callback looks at a few steps
    of each rollout, chosen at random, in all environments. A core that shows nothing logs nothing.

    :raises UsageError: when training begins, for a policy without a core
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
            for name, value in scalars(policy.inspect_last_step()).items():
                self.found.setdefault(name, []).append(value)
        self.step += 1
        return True

    def _on_rollout_end(self) -> None:
        for name, values in self.found.items():
            self.logger.record(f"core/{name}", float(np.mean(values)))
