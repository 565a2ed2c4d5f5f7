"""
rl_games: an LSTM, whose worlds step as a batch.

Recommended: the project's ``ppo_cartpole_masked_velocity_rnn.yaml``, which trains on CartPole without velocities, with as many
copies as the task has; torch.compile stays on, which is its default. For copy the same, but with sequences of 16 steps instead
of 4, and without the scale of rewards. Matched: sequences as long as the rollout, a shared network, no torch.compile.
"""

# mypy: disable-error-code="import-not-found, misc, no-untyped-call, unused-ignore"

from typing import Any

import numpy as np
from gymnasium import spaces
from rl_games.common import env_configurations, vecenv
from rl_games.common.ivecenv import IVecEnv
from rl_games.torch_runner import Runner

from peers.common import Clocked, Run, begin
from peers.worlds import Array


class Worlds(IVecEnv):
    """
    Worlds under the clock.

    :param worlds: the copies
    """

    def __init__(self, worlds: Clocked):
        self.worlds = worlds

    def reset(self) -> Array:
        return self.worlds.reset()

    def step(self, actions: Array) -> tuple[Array, Array, Array, dict[str, Any]]:
        step = self.worlds.step(actions)
        return step.observations, step.rewards, step.terminated | step.truncated, {"time_outs": step.truncated}

    def get_env_info(self) -> dict[str, Any]:
        box = spaces.Box(-np.inf, np.inf, (self.worlds.num_inputs,), np.float32)
        return {"observation_space": box, "action_space": spaces.Discrete(self.worlds.num_actions), "agents": 1}


def settings(run: Run) -> dict[str, Any]:
    """The configuration."""
    rnn: dict[str, Any] = dict(name="lstm", units=64, layers=2, before_mlp=False, concat_input=True, layer_norm=True)
    mlp: dict[str, Any] = dict(units=[64, 64], activation="relu", normalization="layer_norm", norm_only_first_layer=True)
    config: dict[str, Any] = dict(
        reward_shaper=dict(scale_value=0.1 if run.task == "cartpole" else 1),
        **dict(normalize_advantage=True, gamma=0.99, tau=0.9, learning_rate=1e-4, grad_norm=0.5, entropy_coef=0.01),
        **dict(truncate_grads=True, e_clip=0.2, clip_value=True, horizon_length=256, minibatch_size=2048, mini_epochs=4),
        **dict(critic_coef=1, lr_schedule=None, kl_threshold=0.008, normalize_input=False),
        seq_length=4 if run.task == "cartpole" else 16,
    )
    if (same := run.matched) is not None:
        rnn = dict(name="lstm", units=same.width, layers=1, before_mlp=False)
        mlp = dict(units=[same.width], activation="tanh")
        config |= dict(gamma=same.gamma, tau=same.gae_lambda, learning_rate=same.learning_rate, grad_norm=same.max_grad_norm)
        config |= dict(entropy_coef=same.ent_coef, e_clip=same.clip_range, clip_value=False, horizon_length=same.n_steps)
        config |= dict(minibatch_size=same.batch_size, mini_epochs=same.n_epochs, seq_length=same.n_steps)
        # it halves the squared error and the weight once more than the others do
        config |= dict(critic_coef=2 * same.vf_coef, normalize_input=run.task == "cartpole", torch_compile=False)
    mlp |= dict(initializer=dict(name="default"), regularizer=dict(name="None"))
    config |= dict(name="peer", env_name="peer", num_actors=run.num_envs, score_to_win=1e9, max_frames=10 * run.steps)
    config |= dict(device="cpu", device_name="cpu", print_stats=False, save_best_after=10**9, value_bootstrap=True)
    network = dict(name="actor_critic", separate=run.matched is None, space=dict(discrete=None), mlp=mlp, rnn=rnn)
    return dict(
        params=dict(
            seed=run.seed + 1,  # 0 stands for the time
            torch_threads=run.threads,
            algo=dict(name="a2c_discrete"),
            model=dict(name="discrete_a2c"),
            network=network,
            load_checkpoint=False,
            config=config,
        )
    )


def main() -> None:
    run = begin(__doc__)
    run.versions("rl_games", "torch", "numpy", "gymnasium")
    chosen = settings(run)
    run.clock.rollout = chosen["params"]["config"]["horizon_length"] * run.num_envs
    vecenv.register("PEER", lambda _name, _actors, **_kwargs: Worlds(run.make()))
    env_configurations.register("peer", {"vecenv_type": "PEER", "env_creator": None})
    runner = Runner()
    runner.load(chosen)
    runner.run({"train": True, "play": False})


if __name__ == "__main__":
    main()
