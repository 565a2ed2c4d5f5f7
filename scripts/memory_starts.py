"""
Where an agent fails in MiniGrid's memory task: python scripts/memory_starts.py --run runs/MiniGrid-MemoryS7-v0/rmc/<name>

An episode starts at a random place between the left wall of the room, place 1, and the end of the corridor; the agent looks
right, away from the room. The object lies at place 1, and an agent sees what is beside it or before it: only from place 1 it
sees the object without turning. The table has a row for each start: episodes, the share that ended at the right object with
its 95 % interval (bootstrap), the share in which the agent looked left at any time, and the mean number of steps.
"""

import argparse
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from arguments import at_least_one

from rmc_rl import load_policy
from rmc_rl.envs.minigrid import import_minigrid, minigrid_view
from rmc_rl.errors import UsageError
from rmc_rl.studies.statistics import summarise

LEFT = 2  # MiniGrid's number of this direction


class Episode(NamedTuple):
    """How one episode went."""

    start: int
    succeeded: bool
    looked_left: bool
    steps: int


def play(policy: Any, env: gymnasium.Env[Any, Any], seed: int, deterministic: bool) -> Episode:
    """One episode."""
    observation, _ = env.reset(seed=seed)
    world: Any = env.unwrapped
    start, looked_left, steps, state, ended, reward = int(world.agent_pos[0]), False, 0, None, False, 0.0
    while not ended:
        begins = np.array([steps == 0])
        action, state = policy.predict(observation[None], state, begins, deterministic)
        observation, reward, terminated, truncated, _ = env.step(int(action[0]))  # type: ignore[assignment]
        ended, steps = terminated or truncated, steps + 1
        looked_left = looked_left or world.agent_dir == LEFT
    return Episode(start, reward > 0, looked_left, steps)


def table(episodes: list[Episode]) -> list[str]:
    """The lines of the table, in Markdown."""
    lines = ["| start | episodes | success | looked left | steps |", "| --- | --- | --- | --- | --- |"]
    for start in sorted({episode.start for episode in episodes}):
        of_start = [episode for episode in episodes if episode.start == start]
        success = summarise([float(episode.succeeded) for episode in of_start])
        low, high = success["interval"]
        share = f"{success['mean']:.2f} [{low:.2f}, {high:.2f}]"
        looked, steps = np.mean([(episode.looked_left, episode.steps) for episode in of_start], axis=0)
        lines.append(f"| {start} | {len(of_start)} | {share} | {looked:.2f} | {steps:.0f} |")
    return lines


def main() -> None:
    description, _, _ = (__doc__ or "").strip().partition("\n\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", required=True, help="the folder of a run, or one of its models")
    parser.add_argument("--env", default="MiniGrid-MemoryS7-v0", help="of the memory tasks; default: %(default)s")
    parser.add_argument("--episodes", type=at_least_one, default=300)
    parser.add_argument("--sampled", action="store_true", help="sample actions, as in training; otherwise the likeliest ones")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode; the next ones have the next seeds")
    arguments = parser.parse_args()
    if not arguments.env.startswith("MiniGrid-Memory"):
        parser.error(f"--env must be one of MiniGrid-Memory*, got '{arguments.env}'")
    torch.manual_seed(arguments.seed)
    try:
        import_minigrid(arguments.env)
        env = minigrid_view("onehot")(gymnasium.make(arguments.env))
        policy = load_policy(arguments.run)
    except (UsageError, gymnasium.error.Error) as error:
        parser.error(str(error))
    if policy.observation_space != env.observation_space:
        parser.error(f"--run must be an agent of {arguments.env}, one that reads the view alone, got '{arguments.run}'")
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    print("\n".join(table([play(policy, env, seed, not arguments.sampled) for seed in seeds])))


if __name__ == "__main__":
    main()
