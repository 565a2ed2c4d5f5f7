"""
What ours learns against the stock class: python scripts/compare_stock.py [--tasks copy cartpole minigrid] [--seeds 5] ...

sb3-contrib's RecurrentPPO with its own policy (MlpLstmPolicy, two LSTMs of 256), ours with the same policy, and ours with an
LSTM of 256, an RMC and without memory, with the same arguments, steps and seeds. After training, each plays episodes on unseen
seeds with its most probable actions. A table of the mean over seeds, with a 95 % bootstrap interval over seeds, and of the
median seconds that training took: on the clock, and of the processor, which do not count what other programs did meanwhile.
Every seed's numbers go to --out as JSON as soon as they are there, and what is found there is not run again.

Tasks: "copy", rmc_rl/Copy-v0 with n_symbols=4, length=3, delay=5 (at most 1; without memory 0.25); "cartpole", CartPole-v1
without velocities (at most 500); "minigrid", MiniGrid-MemoryS7-v0 (at most just under 1; all objects are visible from the
crossing, so that it hardly needs memory).
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sb3_contrib
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rmc_rl import MlpMemoryPolicy, RecurrentPPO, make_vec
from rmc_rl.studies.statistics import summarise

STOCK = "stock, two LSTM (256)"
AGENTS: dict[str, dict[str, Any] | None] = {  # None: MlpLstmPolicy by its name
    STOCK: None,
    "ours, two LSTM (256)": None,
    "LSTM (256)": dict(core="lstm", core_kwargs=dict(width=256)),
    "RMC (width 64)": dict(core="rmc"),
    "RMC (width 64), linear policy": dict(core="rmc", net_arch=dict(pi=[], vf=[64]), ortho_init=False),
    "memoryless": dict(core="memoryless"),
}


def copy(n_envs: int, seed: int) -> VecEnv:
    """The small copy task."""
    return make_vec("rmc_rl/Copy-v0", n_envs, seed=seed, env_kwargs=dict(n_symbols=4, length=3, delay=5))


def minigrid(n_envs: int, seed: int) -> VecEnv:
    """MiniGrid's memory task."""
    return make_vec("MiniGrid-MemoryS7-v0", n_envs, seed=seed)


def cartpole(n_envs: int, seed: int) -> VecEnv:
    """CartPole without velocities, normalised."""
    return VecNormalize(make_vec("rmc_rl/CartPolePositions-v0", n_envs, seed=seed))


class Task(NamedTuple):
    """An environment and how agents are trained on it."""

    make: Callable[[int, int], VecEnv]
    n_envs: int
    timesteps: int
    learning_rate: float  # falls linearly to 0
    arguments: dict[str, Any]
    policy_kwargs: dict[str, Any] = {}  # of our policies


TASKS = {
    "copy": Task(copy, 64, 500_000, 3e-3, dict(n_steps=128, batch_size=512, n_epochs=4)),
    "cartpole": Task(
        cartpole,
        8,
        100_000,
        1e-3,
        dict(n_steps=128, batch_size=256, n_epochs=10, gae_lambda=0.98, max_grad_norm=1, target_kl=0.03),
        dict(encoder=[64]),
    ),
    "minigrid": Task(minigrid, 64, 300_000, 1e-3, dict(n_steps=128, batch_size=512, n_epochs=4)),
}


class Trained(NamedTuple):
    """What came of one agent with one seed."""

    mean_return: float  # of its most probable actions, on unseen seeds
    wall_seconds: float  # of learn
    cpu_seconds: float  # of learn: time of this process on a core


def train(task_name: str, agent: str, timesteps: int, seed: int, episodes: int) -> Trained:
    """Train one agent on one thread and evaluate it."""
    torch.set_num_threads(1)
    task, policy_kwargs = TASKS[task_name], AGENTS[agent]
    env = task.make(task.n_envs, seed)
    arguments = task.arguments | dict(learning_rate=LinearSchedule(task.learning_rate, 0.0, 1.0), seed=seed, device="cpu")
    if policy_kwargs is None:
        algorithm = sb3_contrib.RecurrentPPO if agent == STOCK else RecurrentPPO
        model = algorithm("MlpLstmPolicy", env, **arguments)
    else:
        model = RecurrentPPO(MlpMemoryPolicy, env, policy_kwargs=task.policy_kwargs | policy_kwargs, **arguments)
    wall, cpu = time.perf_counter(), time.process_time()
    model.learn(timesteps)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    unseen = task.make(task.n_envs, 1000 + seed)
    if isinstance(unseen, VecNormalize):
        assert isinstance(env, VecNormalize)
        unseen.obs_rms, unseen.training, unseen.norm_reward = env.obs_rms, False, False
    mean, _ = evaluate_policy(model, unseen, episodes)
    assert isinstance(mean, float)
    return Trained(mean, wall, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--timesteps", type=int, help="default: those of each task")
    parser.add_argument("--episodes", type=int, default=100, help="to play after training")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_stock.json"), help="every seed's numbers")
    arguments = parser.parse_args()
    stored = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    found = {key: Trained(**numbers) for key, numbers in stored.items()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    seeds = range(arguments.seeds)
    kinds = [
        (task, agent, arguments.timesteps or TASKS[task].timesteps) for task in arguments.tasks for agent in arguments.agents
    ]
    keys = {(kind, seed): "/".join(map(str, (*kind, seed))) for seed in seeds for kind in kinds}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        runs = {
            pool.submit(train, *kind, seed, arguments.episodes): key for (kind, seed), key in keys.items() if key not in found
        }
        for run in as_completed(runs):
            found[runs[run]] = run.result()
            arguments.out.write_text(json.dumps({key: trained._asdict() for key, trained in found.items()}, indent=1))
    print("| task | steps | agent | return | by seed | seconds | processor seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in kinds:
        returns, wall, cpu = zip(*(found[keys[kind, seed]] for seed in seeds), strict=True)
        summary = summarise(list(returns))
        low, high = summary["interval"]
        interval = f"{summary['mean']:.3f} [{low:.3f}, {high:.3f}]"
        by_seed = ", ".join(f"{value:.2f}" for value in returns)
        task, agent, timesteps = kind
        print(f"| {task} | {timesteps:,} | {agent} | {interval} | {by_seed} | {np.median(wall):.0f} | {np.median(cpu):.0f} |")


if __name__ == "__main__":
    main()
