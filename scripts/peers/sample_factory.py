"""
Sample Factory: a GRU, all in one process (serial mode), the copies as one batched environment.

Recommended: the defaults of its command line, apart from serial mode and batched sampling, with which it uses one core as the
others do; its asynchronous mode is made for more. Matched: its loss clips the ratio between 1 / (1 + c) and 1 + c.
"""

# mypy: disable-error-code="import-not-found, misc, no-untyped-call, unused-ignore"

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import run_rl

from peers.common import TASKS, Run, begin
from peers.worlds import Array

RUN: list[Run] = []  # empty in the process that it starts to look at the environment's spaces


class Worlds(gymnasium.Env[Array, Any]):
    """
    Worlds as agents of one environment.

    :param task: its name
    """

    is_multiagent = True
    render_mode = None

    def __init__(self, task: str):
        world = TASKS[task].world
        self.num_agents = TASKS[task].num_envs
        self.observation_space = spaces.Box(-np.inf, np.inf, (world.num_inputs,), np.float32)
        self.action_space = spaces.Discrete(world.num_actions)
        self.infos: list[dict[str, Any]] = [{} for _ in range(self.num_agents)]
        self.worlds: Any = RUN[0].make() if RUN else world(self.num_agents, 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.worlds.reset(), self.infos

    def step(self, action: Any) -> Any:
        step = self.worlds.step(np.asarray(action).reshape(-1))
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_agents)]
        return step.observations, step.rewards, step.terminated, step.truncated, infos


def make(name: str, *_arguments: Any, **_keywords: Any) -> Worlds:
    """What Sample Factory calls."""
    return Worlds(name.removeprefix("peer_"))


def settings(run: Run) -> tuple[list[str], int]:
    """Its arguments, and the steps of all copies before the first update."""
    chosen: dict[str, Any] = dict(rollout=32, batch_size=1024, num_batches_per_epoch=1)
    if (same := run.matched) is not None:
        steps = same.n_steps * run.num_envs
        chosen = dict(rollout=same.n_steps, recurrence=same.n_steps, batch_size=same.batch_size, num_epochs=same.n_epochs)
        chosen |= dict(num_batches_per_epoch=steps // same.batch_size, learning_rate=same.learning_rate, gamma=same.gamma)
        chosen |= dict(gae_lambda=same.gae_lambda, exploration_loss_coeff=same.ent_coef, ppo_clip_ratio=same.clip_range)
        chosen |= dict(value_loss_coeff=same.vf_coef, max_grad_norm=same.max_grad_norm, rnn_size=same.width)
        chosen |= dict(shuffle_minibatches=True, value_bootstrap=True, nonlinearity="tanh")
    arguments = [f"--{name}={value}" for name, value in chosen.items()]
    arguments += [f"--encoder_mlp_layers={same.width}"] if same is not None else []
    rollouts = chosen["batch_size"] * chosen["num_batches_per_epoch"]
    return arguments, max(rollouts, chosen["rollout"] * run.num_envs)


def main() -> None:
    run = begin(__doc__)
    run.versions("sample-factory", "torch", "numpy", "gymnasium")
    RUN.append(run)
    name = f"peer_{run.task}"
    register_env(name, make)
    arguments, run.clock.rollout = settings(run)
    arguments += [f"--env={name}", "--experiment=peer", "--train_dir=train", f"--seed={run.seed}", "--device=cpu"]
    arguments += ["--serial_mode=True", "--async_rl=False", "--batched_sampling=True", "--num_workers=1"]
    arguments += ["--num_envs_per_worker=1", "--worker_num_splits=1", "--set_workers_cpu_affinity=False"]
    arguments += [f"--train_for_env_steps={10 * run.steps}", "--log_to_file=False"]
    parser, _ = parse_sf_args(arguments)
    cfg = parse_full_cfg(parser, arguments)

    run_rl(cfg)


if __name__ == "__main__":
    main()
