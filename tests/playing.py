"""How tests play the worlds of this package."""

import gymnasium
import numpy as np
import torch


def batched(world_id, num_envs=1, **kwargs):
    """A batched world that returns tensors."""
    return gymnasium.make_vec(world_id, num_envs=num_envs, array="torch", **kwargs)


def play(world, episodes, act, n_steps, seed=0):
    """
    Step a batched world for ``n_steps`` with ``act(observations)``, which returns actions ``(B, *action_shape)``.

    The result is the returns of the episodes that ended, in the order of their ends, at least ``episodes`` of them.
    """
    observations, _ = world.reset(seed=seed)
    running, returns = torch.zeros(world.num_envs), []
    for _ in range(n_steps):
        observations, rewards, terminated, truncated, _ = world.step(act(observations))
        running += rewards
        done = terminated | truncated
        returns += running[done].tolist()
        running[done] = 0
    assert len(returns) >= episodes
    return np.array(returns)


def first_returns(world, act, seed=0):
    """
    Returns ``(B,)`` of each copy's first episode. Unlike those of a fixed number of steps, none is missing for being long.
    """
    observations, _ = world.reset(seed=seed)
    returns, running = torch.zeros(world.num_envs), torch.ones(world.num_envs, dtype=torch.bool)
    while running.any():
        observations, rewards, terminated, truncated, _ = world.step(act(observations))
        returns += rewards * running
        running &= ~(terminated | truncated)
    return returns.numpy()


def random_actions(world, seed=0):
    """An ``act`` for :func:`play` that draws from the world's action space."""
    world.action_space.seed(seed)
    return lambda _: torch.as_tensor(world.action_space.sample())


def answering(world, seed=0):
    """An ``act`` that takes the world's answers where they are known, and random actions elsewhere."""
    act = random_actions(world, seed)

    def answer(observations):
        actions, known = world.answers()
        others = act(observations).to(actions.dtype)
        return torch.where(known.view(-1, *[1] * (actions.dim() - 1)), actions, others)

    return answer
