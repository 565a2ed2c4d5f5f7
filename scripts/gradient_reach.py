"""
How far back gradients reach in the memory of an agent: python scripts/gradient_reach.py <folder of a run> [--steps 64]

The agent's core reads the observations of random play. Printed is the norm of the gradient of its last output with respect to
what it read some steps before, relative to what it read last: the mean over copies. A ratio near 0 at the number of steps over
which the task asks to remember says that this core cannot learn the task by gradients with these weights.
"""

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmc_rl import MlpMemoryPolicy, load_policy, make_vec
from rmc_rl.command_line.agent import plain
from rmc_rl.runs.folder import Run
from rmc_rl.runs.loading import partial_of

COPIES = 16


def reach(policy: MlpMemoryPolicy, observations: list[Any]) -> torch.Tensor:
    """The norm of the gradient at each step ``(T,)``, for observations of ``T`` steps, each ``(B, *observation_shape)``."""
    with torch.no_grad():
        seen = [policy.extract_features(policy.obs_to_tensor(each)[0], policy.features_extractor) for each in observations]
    features = torch.stack([each if isinstance(each, torch.Tensor) else each[0] for each in seen]).requires_grad_()
    state = policy.core.initial_state(features.shape[1])
    outputs, _ = policy.core(features, state)
    noise = torch.randn(outputs.shape[1:], generator=torch.Generator().manual_seed(0))  # no direction is preferred
    (gradient,) = torch.autograd.grad((outputs[-1] * noise).sum(), features)
    norms: torch.Tensor = gradient.norm(dim=-1).mean(1)
    return norms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--model", default="last", choices=["last", "best"])
    parser.add_argument("--steps", type=int, default=64)
    arguments = parser.parse_args()
    policy, config = load_policy(arguments.run, arguments.model), Run.open(arguments.run).read_config()
    keywords = {str(key): value for key, value in plain(config.env_kwargs).items()}
    previous = config.policy.previous_action_reward
    made = make_vec(
        config.env, COPIES, seed=1, env_kwargs=keywords, previous_action_reward=previous, partial=partial_of(config)
    )
    with closing(made) as env:
        env.action_space.seed(1)
        observations: list[Any] = [env.reset()]
        for _ in range(arguments.steps):
            observations.append(env.step(np.stack([env.action_space.sample() for _ in range(COPIES)]))[0])
    norms = reach(policy, observations)
    print("| steps back | gradient, relative |\n| --- | --- |")
    back = 0
    while back <= arguments.steps:
        print(f"| {back} | {norms[-1 - back] / norms[-1]:.2g} |")
        back = max(1, 2 * back)


if __name__ == "__main__":
    main()
