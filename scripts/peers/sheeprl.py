"""
sheeprl: an LSTM, environments of Gymnasium stepped one by one in one process.

Recommended: its experiment ``ppo_recurrent`` as it is, with as many copies as the task has. Matched: sequences are cut where
episodes end, so a minibatch holds as many transitions as the others' only in the mean.
"""

# mypy: disable-error-code="import-not-found, misc, no-untyped-call, unused-ignore"

import sys

import torch
from sheeprl.cli import run as train

from peers import gym_worlds
from peers.common import Run, begin


def settings(run: Run) -> tuple[list[str], int]:
    """Keys of its command line, and the steps of all copies in a rollout."""
    if (same := run.matched) is None:
        return [], 512 * run.num_envs
    batches = same.n_steps * run.num_envs // same.batch_size
    keys: dict[str, object] = dict(rollout_steps=same.n_steps, per_rank_sequence_length=same.n_steps)
    keys |= dict(per_rank_num_batches=batches, update_epochs=same.n_epochs, gamma=same.gamma, gae_lambda=same.gae_lambda)
    keys |= dict(ent_coef=same.ent_coef, clip_coef=same.clip_range, vf_coef=same.vf_coef, max_grad_norm=same.max_grad_norm)
    keys |= {"optimizer.lr": same.learning_rate, "dense_units": same.width, "encoder.dense_units": same.width}
    keys |= {"rnn.lstm.hidden_size": same.width, "normalize_advantages": True}
    return [f"algo.{name}={value}" for name, value in keys.items()], same.n_steps * run.num_envs


def main() -> None:
    run = begin(__doc__)
    run.versions("sheeprl", "torch", "lightning", "numpy", "gymnasium")
    torch.set_num_threads(run.threads)
    keys, run.clock.rollout = settings(run)
    gym_worlds.serve(run)
    keys += ["exp=ppo_recurrent", "env.id=peer", "env.wrapper._target_=peers.gym_worlds.SingleWorld", "env.sync_env=True"]
    keys += [f"env.num_envs={run.num_envs}", "env.capture_video=False", "env.mask_velocities=False", f"seed={run.seed}"]
    keys += [f"num_threads={run.threads}", f"algo.total_steps={10 * run.steps}", "checkpoint.every=1000000000"]
    keys += ["fabric.accelerator=cpu", "metric.log_level=0", "checkpoint.save_last=False"]
    sys.argv[1:] = keys
    train()


if __name__ == "__main__":
    main()
