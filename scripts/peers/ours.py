"""
rmc_rl.RecurrentPPO with a GRU, or with ``--variant rmc``.

Recommended: the defaults of ``python -m rmc_rl.train`` for these worlds, configs/family/recall.yaml and control.yaml.
"""

from typing import Any

import torch
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from peers.common import begin
from peers.sb3_worlds import ClockedVecEnv
from rmc_rl import MlpMemoryPolicy, RecurrentPPO
from rmc_rl.command_line.devices import keep_freed_memory


def main() -> None:
    run = begin(__doc__)
    torch.set_num_threads(run.threads)
    keep_freed_memory()
    run.versions("torch", "numpy", "stable-baselines3")
    core: dict[str, Any] = dict(core=run.variant or "gru")
    policy_kwargs = core | dict(net_arch=[], ortho_init=False)
    arguments: dict[str, Any]
    if run.matched is not None:
        arguments = run.matched._asdict()
        width = arguments.pop("width")
        policy_kwargs |= dict(encoder=[width])
        if run.variant != "rmc":  # whose width is 64 as well: 4 slots of 64
            policy_kwargs |= dict(core_kwargs=dict(width=width))
    elif run.task == "copy":
        arguments = dict(learning_rate=LinearSchedule(4e-3, 0.0, 1.0), n_steps=128, batch_size=1024, n_epochs=8)
        arguments |= dict(gamma=0.0, clip_range=0.1, ent_coef=LinearSchedule(0.5, 0.0, 1.0))
    else:
        arguments = dict(learning_rate=LinearSchedule(1e-3, 0.0, 1.0), n_steps=128, batch_size=256, n_epochs=10)
        arguments |= dict(gae_lambda=0.98, max_grad_norm=1.0, target_kl=0.03)
        policy_kwargs |= dict(encoder=[64], scale_output=True, net_arch=dict(pi=[], vf=[64]))
    run.clock.rollout = arguments["n_steps"] * run.num_envs
    env: Any = ClockedVecEnv(run.make())
    if run.task == "cartpole":
        env = VecNormalize(env)
    model = RecurrentPPO(MlpMemoryPolicy, env, policy_kwargs=policy_kwargs, seed=run.seed, device="cpu", **arguments)
    model.learn(run.steps + run.clock.rollout)


if __name__ == "__main__":
    main()
