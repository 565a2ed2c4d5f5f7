"""
sb3_contrib.RecurrentPPO: an LSTM each for policy and value.

Recommended: copy, the defaults of the class (no project publishes settings for this task); CartPole, the tuned entry
``CartPoleNoVel-v1`` of rl-zoo3's ``ppo_lstm.yml``.
"""

from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from peers.common import begin
from peers.sb3_worlds import ClockedVecEnv


def main() -> None:
    run = begin(__doc__)
    torch.set_num_threads(run.threads)
    run.versions("sb3-contrib", "stable-baselines3", "torch", "numpy")
    policy_kwargs: dict[str, Any] = {}
    arguments: dict[str, Any] = dict(n_steps=128)
    if run.matched is not None:
        arguments = run.matched._asdict()
        width = arguments.pop("width")
        policy_kwargs = dict(lstm_hidden_size=width, net_arch=[width])
    elif run.task == "cartpole":
        arguments = dict(n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20)
        arguments |= dict(learning_rate=LinearSchedule(1e-3, 0.0, 1.0), clip_range=LinearSchedule(0.2, 0.0, 1.0))
        heads = dict(pi=[64], vf=[64])
        policy_kwargs = dict(ortho_init=False, activation_fn=torch.nn.ReLU, lstm_hidden_size=64, net_arch=heads)
    run.clock.rollout = arguments["n_steps"] * run.num_envs
    env: Any = ClockedVecEnv(run.make())
    if run.task == "cartpole":
        env = VecNormalize(env)
    model = RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=policy_kwargs, seed=run.seed, device="cpu", **arguments)
    model.learn(run.steps + run.clock.rollout)


if __name__ == "__main__":
    main()
