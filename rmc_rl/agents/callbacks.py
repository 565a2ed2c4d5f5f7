"""Callbacks for SB3's ``learn``."""

import numpy as np
import torch
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor

from rmc_rl.agents.cores.base import scalars
from rmc_rl.agents.policies import MlpMemoryPolicy

STEPS_LOOKED_AT = 256  # of a rollout: the mean of so many numbers in [0, 1] is known to about 0.03


class CoreScalars(BaseCallback):
    """
    Logs how the actor's core is doing, once per rollout: means of gates, entropies of attention, shares of active modules.

    They go to ``core/<name>``; :func:`rmc_rl.agents.cores.scalars` says which there are. It looks at some of the rollout's
    steps, from the states stored with them, so it costs one step of the core. A core that shows nothing logs nothing.
    """

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy, buffer = self.model.policy, self.model.rollout_buffer  # type: ignore[attr-defined]
        assert isinstance(policy, MlpMemoryPolicy)
        assert isinstance(buffer, RecurrentRolloutBuffer | RecurrentDictRolloutBuffer)
        transitions = buffer.buffer_size * buffer.n_envs
        chosen = np.random.default_rng(self.num_timesteps).permutation(transitions)[:STEPS_LOOKED_AT]
        time, env = np.divmod(chosen, buffer.n_envs)
        # one step, (1, B, ...), of as many sequences as there are steps to look at
        observations = buffer.observations
        if isinstance(observations, dict):
            obs = obs_as_tensor({name: part[time, env][None] for name, part in observations.items()}, policy.device)
        else:
            obs = obs_as_tensor(observations[time, env][None], policy.device)
        # (n_steps, 1, n_envs, ceil(S / 2)) -> (1, B, ceil(S / 2))
        halves = (buffer.hidden_states_pi, buffer.cell_states_pi)
        states = tuple(torch.as_tensor(half[time, 0, env][None], device=policy.device) for half in halves)
        starts = torch.as_tensor(buffer.episode_starts[time, env][None], device=policy.device)
        for name, value in scalars(policy.inspect(obs, states, starts)).items():
            self.logger.record(f"core/{name}", value)
