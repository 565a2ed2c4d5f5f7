"""
pufferlib-core: an LSTM whose state is set to zero before each rollout and is kept where an episode ends.

Recommended: PufferLib's ``default.ini``, with minibatches as large as the rollout, which is smaller than its minibatch here,
and Adam at 3e-4 instead of Muon, which needs a package that this one does not install. Matched: segments of 128 steps. The
package demands torch 2.9.0 with CUDA for a kernel that estimates advantages; here is the same recursion in PyTorch. It clips
rewards to [-1, 1] and does not bootstrap the value where a time limit ends an episode.
"""

# mypy: disable-error-code="import-not-found, misc, no-untyped-call, unused-ignore"

from typing import Any

import numpy as np
import pufferlib
import pufferlib.models
import pufferlib.spaces
import torch
from gymnasium import spaces
from pufferlib import pufferl
from torch import Tensor

from peers.common import Clocked, Run, begin

CUDA_KERNEL = "compute_puff_advantage"


class Worlds(pufferlib.PufferEnv):
    """
    Worlds as agents of one environment.

    :param worlds: the copies
    """

    def __init__(self, worlds: Clocked):
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (worlds.num_inputs,), np.float32)
        self.single_action_space = spaces.Discrete(worlds.num_actions)
        self.num_agents = worlds.num_envs
        self.agents_per_batch = worlds.num_envs
        self.worlds = worlds
        super().__init__()

    def reset(self, seed: int | None = None) -> Any:
        self.observations[:] = self.worlds.reset()
        return self.observations, []

    def step(self, actions: Any) -> Any:
        step = self.worlds.step(actions)
        self.observations[:], self.rewards[:] = step.observations, step.rewards
        self.terminals[:], self.truncations[:] = step.terminated | step.truncated, False
        return self.observations, self.rewards, self.terminals, self.truncations, []

    def close(self) -> None:
        pass


def advantages(
    values: Tensor,
    rewards: Tensor,
    terminals: Tensor,
    ratio: Tensor,
    found: Tensor,
    gamma: float,
    gae_lambda: float,
    rho_clip: float,
    c_clip: float,
) -> Tensor:
    """
    Generalised advantages with the clipped ratios of V-trace. A reward belongs to the step before the row in which it lies.

    :param values: ``(segments, steps)``, and so are the other tensors
    :return: advantages; 0 in the last step
    """
    going = 1 - terminals
    rho, trace = ratio.clamp(max=rho_clip), ratio.clamp(max=c_clip)
    delta = rho[:, :-1] * (rewards[:, 1:] + gamma * values[:, 1:] * going[:, 1:] - values[:, :-1])
    decay = gamma * gae_lambda * trace[:, :-1] * going[:, 1:]
    found, last = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    for step in reversed(range(values.shape[1] - 1)):
        last = delta[:, step] + decay[:, step] * last
        found[:, step] = last
    return found


def settings(run: Run) -> tuple[dict[str, Any], int]:
    """Its configuration and the width."""
    horizon, width = 64, 128
    chosen: dict[str, Any] = dict(learning_rate=3e-4, gamma=0.995, gae_lambda=0.90, update_epochs=1, clip_coef=0.2)
    chosen |= dict(vf_coef=2.0, vf_clip_coef=0.2, max_grad_norm=1.5, ent_coef=0.001, minibatch_size=horizon * run.num_envs)
    chosen |= dict(anneal_lr=True, prio_alpha=0.8, prio_beta0=0.2)
    if (same := run.matched) is not None:
        horizon, width = same.n_steps, same.width
        chosen = dict(learning_rate=same.learning_rate, gamma=same.gamma, gae_lambda=same.gae_lambda)
        chosen |= dict(update_epochs=same.n_epochs, clip_coef=same.clip_range, vf_coef=same.vf_coef, vf_clip_coef=1e9)
        chosen |= dict(max_grad_norm=same.max_grad_norm, ent_coef=same.ent_coef, minibatch_size=same.batch_size)
        chosen |= dict(anneal_lr=False, prio_alpha=0.0, prio_beta0=1.0)
    chosen |= dict(batch_size="auto", bptt_horizon=horizon, max_minibatch_size=chosen["minibatch_size"], seed=run.seed)
    chosen |= dict(optimizer="adam", adam_beta1=0.9, adam_beta2=0.999, adam_eps=1e-8, vtrace_rho_clip=1.0, vtrace_c_clip=1.0)
    chosen |= dict(torch_deterministic=True, cpu_offload=False, device="cpu", precision="float32", use_rnn=True, compile=False)
    chosen |= dict(total_timesteps=run.steps, data_dir="puffer", checkpoint_interval=10**9, env="peer", name="peer")
    return chosen, width


def main() -> None:
    run = begin(__doc__)
    run.versions("pufferlib-core", "torch", "numpy", "gymnasium")
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    np.random.seed(run.seed)
    setattr(pufferl, CUDA_KERNEL, advantages)
    chosen, width = settings(run)
    run.clock.rollout = chosen["bptt_horizon"] * run.num_envs
    worlds = Worlds(run.make())
    inner = pufferlib.models.Default(worlds, hidden_size=width)
    policy = pufferlib.models.LSTMWrapper(worlds, inner, input_size=width, hidden_size=width)
    trainer = pufferl.PuffeRL(chosen, worlds, policy)
    trainer.print_dashboard = lambda *_arguments, **_keywords: None
    while True:
        trainer.evaluate()
        trainer.train()


if __name__ == "__main__":
    main()
