"""The T-maze: perfect, memoryless and random play, and what is seen where."""

import pytest
import torch
from playing import first_returns, random_actions

from rmc_rl.envs.worlds.tmaze import CORRIDOR, DOWN, JUNCTION, LEFT, RIGHT, SIGN_DOWN, UP, TMazeWorld
from rmc_rl.errors import UsageError


def player(world, remembers):
    """Goes right and turns at the junction: as the sign said, or up."""
    signs = torch.zeros(world.num_envs, dtype=torch.long)

    def act(observations):
        signs[:] = torch.where(observations < CORRIDOR, observations, signs)
        turn = torch.where(signs == SIGN_DOWN, DOWN, UP) if remembers else torch.full_like(signs, UP)
        return torch.where(observations == JUNCTION, turn, RIGHT)

    return act


@pytest.mark.parametrize("length", [1, 10, 70])
def test_perfect_memoryless_and_random_play(length):
    world = TMazeWorld(2048, length=length)
    assert (first_returns(world, player(world, remembers=True)) == 1).all()
    assert abs(first_returns(world, player(world, remembers=False)).mean() - 0.5) < 0.05
    if length == 10:
        assert abs(first_returns(world, random_actions(world)).mean() + 0.255) < 0.02


def test_the_sign_is_seen_at_the_start_alone():
    world = TMazeWorld(64, length=2)
    seen = [world.reset(seed=0)[0]]
    assert set(seen[0].tolist()) == {0, 1}
    for action in (RIGHT, RIGHT, RIGHT, LEFT, LEFT):
        seen.append(world.step(torch.full((64,), action))[0])
    expected = [seen[0], CORRIDOR, JUNCTION, JUNCTION, CORRIDOR, seen[0]]
    assert all((observation == what).all() for observation, what in zip(seen, expected, strict=True))


def test_rewards_and_ends():
    world = TMazeWorld(2, length=2, penalty=0.25, max_steps=4)
    world.reset(seed=0)
    world.sign[:] = SIGN_DOWN
    for step, (actions, rewards, ends) in enumerate(
        [
            ((UP, LEFT), (-0.25, -0.25), (False, False)),
            ((RIGHT, RIGHT), (0, 0), (False, False)),
            ((RIGHT, RIGHT), (0, 0), (False, False)),
            ((DOWN, UP), (1, 0), (True, True)),
        ]
    ):
        _, found, terminated, truncated, _ = world.step(torch.tensor(actions))
        assert found.tolist() == list(rewards)
        assert terminated.tolist() == list(ends)
        assert truncated.tolist() == [step == 3] * 2  # at the limit an episode may end for both reasons
    for step in range(4):
        _, _, terminated, truncated, _ = world.step(torch.tensor([LEFT, LEFT]))
        assert not terminated.any()
        assert truncated.tolist() == [step == 3] * 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(length=0), "length must be a whole number of at least 1, got 0"),
        (dict(length=5, max_steps=5), "max_steps must be a whole number of at least 6, got 5"),
        (dict(penalty=-1), "penalty must be a finite number at least 0, got -1"),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(UsageError, match=message):
        TMazeWorld(1, **kwargs)
