"""The endless T-maze: perfect, memoryless and random play, what is seen where, and that only the last sign counts."""

import re

import numpy as np
import pytest
import torch
from playing import answering, first_returns, random_actions

from rmc_rl.envs.worlds.endless_tmaze import FORWARD, LEFT, RIGHT, EndlessTMazeWorld
from rmc_rl.errors import UsageError


def guesses(observations):
    """Goes to the junction and turns left, whatever the sign was."""
    return torch.where(observations[:, 0] == 1, LEFT, FORWARD)


def reads_the_signs(world, first=False):
    """Goes to the junction and turns as the last sign showed, or as the first one of the episode did."""
    turn = torch.zeros(world.num_envs, dtype=torch.long)

    def act(observations):
        shown = observations[:, 1] + observations[:, 2] > 0
        keep = turn > 0 if first else torch.zeros_like(shown)
        turn[:] = torch.where(shown & ~keep, torch.where(observations[:, 1] == 1, LEFT, RIGHT), turn)
        return torch.where(observations[:, 0] == 1, turn, FORWARD)

    return act


@pytest.mark.parametrize(
    "kwargs",
    [dict(), dict(n_corridors=1), dict(length=[1, 10]), dict(length=1, n_corridors=[1, 4], penalty=0.1)],
    ids=str,
)
def test_perfect_memoryless_and_random_play(kwargs):
    world = EndlessTMazeWorld(4096, **kwargs)
    random, memoryless, perfect = world.returns()
    for act in (reads_the_signs(world), answering(world)):
        found = first_returns(world, act)
        assert abs(found.mean() - perfect) < 4 * found.std() / 64 + 1e-5
    for act, expected in ((guesses, memoryless), (random_actions(world), random)):
        found = first_returns(world, act)
        assert abs(found.mean() - expected) < 4 * found.std() / 64
    if not kwargs:
        assert [round(value, 2) for value in world.returns()] == [-0.59, -0.19, 4.5]


def test_a_memory_that_is_not_rewritten_is_worth_little():
    world = EndlessTMazeWorld(2048, n_corridors=8, penalty=0)
    found = first_returns(world, reads_the_signs(world, first=True))
    # the first turn is right, each of the others in half of the cases
    assert abs(found.mean() - 1) < 4 * found.std() / len(found) ** 0.5
    assert first_returns(world, reads_the_signs(world)).mean() == 8


def test_what_is_seen_where():
    world = EndlessTMazeWorld(1, length=2, n_corridors=2)
    world.reset(seed=0)
    world.signs[:] = torch.tensor([[LEFT, RIGHT]])
    seen = [world._observe()[0].tolist()]
    steps = [
        (LEFT, [0, 1, 0], -0.01, False),  # no turn inside a corridor
        (FORWARD, [0.5, 0, 0], -0.01, False),
        (FORWARD, [1, 0, 0], -0.01, False),
        (FORWARD, [1, 0, 0], -0.01, False),  # no way on at the junction
        (LEFT, [0, 0, 1], 1, False),
        (FORWARD, [0.5, 0, 0], -0.01, False),
        (FORWARD, [1, 0, 0], -0.01, False),
        (RIGHT, [0, 0, 0], 1, True),
    ]
    assert seen[0] == [0, 1, 0]
    for action, expected, reward, over in steps:
        observations, rewards, terminated, truncated, info = world.step(torch.tensor([action]))
        last = info["final_obs"] if over else observations
        np.testing.assert_allclose(last[0].tolist(), expected)
        np.testing.assert_allclose(rewards.item(), reward, rtol=1e-6)
        assert (terminated.item(), truncated.item()) == (over, False)


def test_a_wrong_turn_ends_the_episode():
    world = EndlessTMazeWorld(2, length=1)
    world.reset(seed=0)
    world.signs[:] = LEFT
    world.step(torch.tensor([FORWARD, FORWARD]))
    _, rewards, terminated, truncated, _ = world.step(torch.tensor([LEFT, RIGHT]))
    assert (rewards.tolist(), terminated.tolist(), truncated.any().item()) == ([1, -1], [False, True], False)


def test_the_time_limit():
    world = EndlessTMazeWorld(2, length=[1, 2], n_corridors=2)
    world.reset(seed=0)
    cuts = [world.step(torch.tensor([LEFT, FORWARD]))[2:4] for _ in range(36)]
    assert not any((terminated | truncated).any() for terminated, truncated in cuts[:-1])
    assert cuts[-1][1].all()
    assert not cuts[-1][0].any()


def test_each_corridor_draws_its_length():
    world = EndlessTMazeWorld(256, length=[1, 3], n_corridors=[2, 4])
    world.reset(seed=0)
    assert set(world.lengths.flatten().tolist()) == {1, 2, 3}
    assert set(world.corridors.tolist()) == {2, 3, 4}
    assert (world.lengths.min(1).values < world.lengths.max(1).values).any()
    share = (world.signs == LEFT).float().mean()
    assert abs(share - 0.5) < 0.1
    assert world.memory_demand() == 3
    world.length = 2  # holds for the episodes that begin now
    world.reset()
    assert (world.lengths == 2).all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(length=0), "length must be a whole number of at least 1, got 0"),
        (dict(n_corridors=[0, 2]), "n_corridors must be a whole number or a range"),
        (dict(max_steps=54), "max_steps must be a whole number of at least 55, got 54"),
        (dict(penalty=-1), "penalty must be a finite number at least 0, got -1"),
    ],
)
def test_mistakes(keywords, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        EndlessTMazeWorld(**keywords)
