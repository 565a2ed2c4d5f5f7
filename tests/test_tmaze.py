"""The T-maze: perfect, memoryless and random play, and what is seen where."""

import pytest
import torch
from playing import answering, first_returns, random_actions

from rmc_rl.envs.worlds.tmaze import CORRIDOR, DOWN, JUNCTION, LEFT, RIGHT, SIGN_DOWN, UP, TMazeWorld
from rmc_rl.errors import UsageError


def always_up(observations):
    """Goes to the junction and turns up, whatever the sign was."""
    return torch.where(observations == JUNCTION, UP, RIGHT)


def reads_the_sign(world):
    """Goes to the junction and turns as the sign showed."""
    signs = torch.zeros(world.num_envs, dtype=torch.long)

    def act(observations):
        signs[:] = torch.where(observations < CORRIDOR, observations, signs)
        return torch.where(observations == JUNCTION, torch.where(signs == SIGN_DOWN, DOWN, UP), RIGHT)

    return act


@pytest.mark.parametrize("kwargs", [dict(length=1), dict(), dict(length=70), dict(length=[2, 9], penalty=0.1)], ids=str)
def test_perfect_memoryless_and_random_play(kwargs):
    world = TMazeWorld(2048, **kwargs)
    random, memoryless, perfect = world.returns()
    assert (first_returns(world, reads_the_sign(world)) == perfect).all()
    assert (first_returns(world, answering(world)) == perfect).all()
    assert abs(first_returns(world, always_up).mean() - memoryless) < 0.05
    found = first_returns(world, random_actions(world))
    assert abs(found.mean() - random) < 4 * found.std() / len(found) ** 0.5
    if not kwargs:
        assert round(random, 2) == -0.25


def test_each_episode_draws_its_length():
    world = TMazeWorld(64, length=[2, 4])
    world.reset(seed=0)
    lengths = world.junction.clone()
    assert set(lengths.tolist()) == {2, 3, 4}
    for step in range(1, 5):
        seen = world.step(torch.full((64,), RIGHT))[0]
        assert (seen == JUNCTION).equal(lengths <= step)
    idle = [world.step(torch.full((64,), RIGHT))[3] for _ in range(16)]
    assert torch.stack(idle).int().argmax(0).equal(5 * lengths - 5)  # the limit follows the length
    world.length = 3  # holds for the episodes that begin now
    world.reset()
    assert (world.junction == 3).all()


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
