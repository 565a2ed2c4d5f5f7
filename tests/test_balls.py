"""Balls in a box: mechanics, and the worlds made of them, with perfect, memoryless and random play."""

import numpy as np
import pytest
import torch
from playing import answering, first_returns, play, random_actions

from rmc_rl import make_vec
from rmc_rl.envs.parts import balls
from rmc_rl.envs.parts.keywords import bounds
from rmc_rl.envs.worlds.ball_tracking import BallTrackingWorld
from rmc_rl.envs.worlds.bouncing_balls import BouncingBallsWorld
from rmc_rl.errors import UsageError


def fly(n_balls, frames, count=256, speed=0.06):
    """Yields position, velocity and radius of each frame."""
    drawn = balls.draw_balls(count, *bounds(n_balls), speed, torch.Generator().manual_seed(0))
    position, velocity, radius = drawn["position"], drawn["velocity"], drawn["radius"]
    for _ in range(frames):
        yield position, velocity, radius
        position, velocity = balls.move(position, velocity, radius)


@pytest.mark.parametrize("n_balls", [1, 4, (6, 8), 16], ids=str)
class TestMechanics:
    def test_energy_is_kept(self, n_balls):
        energies = torch.stack([(r.square() * v.square().sum(-1)).sum(1) for _, v, r in fly(n_balls, 60)])
        assert ((energies - energies[0]).abs() / energies[0]).max() < 1e-4

    def test_balls_stay_in_the_box_and_hardly_overlap(self, n_balls):
        for position, _, radius in fly(n_balls, 60):
            there, edge = radius > 0, radius.unsqueeze(-1)
            assert ((position >= edge - 1e-6) & (position <= 1 - edge + 1e-6))[there].all()
            gap = torch.cdist(position, position) - radius.unsqueeze(1) - radius.unsqueeze(2)
            pairs = there.unsqueeze(1) & there.unsqueeze(2) & ~torch.eye(radius.shape[1], dtype=torch.bool)
            assert (gap[pairs] > -balls.SMALLEST).all()  # so none went through another

    def test_balls_begin_apart(self, n_balls):
        position, _, radius = next(iter(fly(n_balls, 1)))
        gap = torch.cdist(position, position) - radius.unsqueeze(1) - radius.unsqueeze(2)
        there = (radius > 0).unsqueeze(1) & (radius > 0).unsqueeze(2) & ~torch.eye(radius.shape[1], dtype=torch.bool)
        assert (gap[there] >= -1e-6).all()
        least, most = bounds(n_balls)
        assert set((radius > 0).sum(1).tolist()) == set(range(least, most + 1))

    def test_balls_differ_in_size_or_not_at_all(self, n_balls):
        _, _, radius = next(iter(fly(n_balls, 1)))
        sizes = radius[radius > 0]
        assert len(sizes.unique()) > 0.9 * len(sizes)
        assert (sizes >= balls.SMALLEST).all()
        assert (sizes <= balls.LARGEST).all()
        alike = balls.draw_balls(9, *bounds(n_balls), 0.06, torch.Generator().manual_seed(0), same_size=True)["radius"]
        assert alike[alike > 0].unique().tolist() == [pytest.approx(balls.LARGEST)]


def test_a_collision_keeps_momentum_and_exchanges_it():
    position = torch.tensor([[[0.4, 0.5], [0.56, 0.5]]])
    velocity = torch.tensor([[[0.04, 0.01], [-0.02, 0.0]]])
    radius = torch.tensor([[0.07, 0.1]])
    mass = radius.square().unsqueeze(-1)
    _, after = balls.move(position, velocity, radius)
    torch.testing.assert_close((mass * after).sum(1), (mass * velocity).sum(1))
    assert after[0, 0, 0] < 0 < after[0, 1, 0] + 0.02
    # of the same mass, head on, they exchange their velocities
    _, after = balls.move(position, velocity * torch.tensor([1.0, 0.0]), torch.full((1, 2), 0.09))
    torch.testing.assert_close(after[..., 0], velocity[..., 0].flip(1))


def test_a_wall_mirrors():
    position, velocity = balls.move(torch.tensor([[[0.12, 0.5]]]), torch.tensor([[[-0.06, 0.03]]]), torch.tensor([[0.1]]))
    torch.testing.assert_close(position, torch.tensor([[[0.14, 0.53]]]))
    torch.testing.assert_close(velocity, torch.tensor([[[0.06, 0.03]]]))


@pytest.mark.parametrize("grid", [2, 4, 8, 32])
def test_a_ball_covers_a_cell_at_least_and_the_right_ones(grid):
    for position, _, radius in fly(1, 3):
        cells = balls.coverage(position, radius, grid)[:, 0] >= 0.5
        assert cells.flatten(1).any(1).all()
        own = (position[:, 0] * grid).long()  # column and row of the ball's centre
        assert cells[torch.arange(len(own)), own[:, 1], own[:, 0]].all()


class TestBouncingBalls:
    @pytest.mark.parametrize("obs", ["occupancy", "pixels", "state"])
    def test_balls_are_seen_and_then_not(self, obs):
        world = BouncingBallsWorld(8, n_balls=2, visible_steps=3, dark_steps=2, obs=obs)
        observations, _ = world.reset(seed=0)
        seen = []
        for _ in range(5):
            seen.append(observations.flatten(1).float().abs().amax(1) > 0)
            observations, *_, info = world.step(torch.zeros(8, 16))
        assert torch.stack(seen).all(1).tolist() == [True, True, True, False, False]
        assert not info["final_obs"].any()

    def test_perfect_play(self):
        for kwargs in (dict(), dict(n_balls=[6, 8], grid=8, visible_steps=15, dark_steps=35)):
            world = BouncingBallsWorld(16, **kwargs)
            np.testing.assert_allclose(first_returns(world, answering(world)), 1, atol=1e-5)

    def test_memoryless_and_random_play(self):
        world = BouncingBallsWorld(1024)
        assert abs(first_returns(world, random_actions(world)).mean() - world.returns().random) < 0.02
        covered = []
        play(world, 0, lambda _: covered.append(world.covered()) or torch.zeros(1024, 16), 13)
        # all dark steps look alike, so the same cells are said at each: the best of all 2**16 answers
        truth = torch.cat(covered[world.visible_steps :])[::5].float()
        answers = (torch.arange(1, 2**16).unsqueeze(1) >> torch.arange(16) & 1).float()
        both = answers @ truth.T
        overlap = both / (answers.sum(1, keepdim=True) + truth.sum(1) - both)
        assert abs(overlap.mean(1).max() - world.returns().memoryless) < 0.01

    def test_rewards_count_in_the_dark_alone(self):
        world = BouncingBallsWorld(4, visible_steps=2, dark_steps=2)
        world.reset(seed=0)
        rewards = [world.step(world.covered())[1] for _ in range(4)]
        assert torch.stack(rewards).T.tolist() == [[0, 0, 0.5, 0.5]] * 4

    def test_the_curtain_hides_the_middle(self):
        for obs in ("occupancy", "pixels"):
            world = BouncingBallsWorld(64, n_balls=8, obs=obs, grid=8, curtain=True)
            observations, _ = world.reset(seed=0)
            if obs == "pixels":
                assert (observations[:, 0, :, 24:40] == 128).all()
                assert (observations[:, 0, :, :20] == 255).any()
            else:
                cells = observations[:, :-1].view(64, 8, 8)
                assert not cells[:, :, 3:5].any()
                assert cells[:, :, :2].any()

    def test_through_make_vec(self):
        env = make_vec("rmc_rl/BouncingBalls-v0", 2, seed=0, env_kwargs=dict(n_balls=[1, 2]))
        env.reset()
        assert env.step(np.ones((2, 16), dtype=np.int8))[0].shape == (2, 17)


def follow_the_nearest(world):
    """Moves the cursor towards the nearest ball: what a player can do that does not remember the mark."""

    def act(_):
        cursor = (world.cursor.float().flip(-1) + 0.5) / world.grid  # x and y
        nearest = (world.position - cursor.unsqueeze(1)).norm(dim=-1).argmin(1)
        goal = world.position[torch.arange(world.num_envs), nearest]
        cells = (world.cursor.unsqueeze(1) + world._moves).clamp(0, world.grid - 1)  # of each action
        return ((cells.float().flip(-1) + 0.5) / world.grid - goal.unsqueeze(1)).norm(dim=-1).argmin(1)

    return act


def test_trials_of_different_lengths():
    world = BouncingBallsWorld(64, visible_steps=[1, 3], dark_steps=[2, 4])
    world.reset(seed=0)
    lengths = world.first_dark + world.n_dark
    assert set(lengths.tolist()) == {3, 4, 5, 6, 7}
    np.testing.assert_allclose(first_returns(world, answering(world)), 1, atol=1e-5)
    world = BallTrackingWorld(64, hold_steps=[0, 2], marked_steps=1, free_steps=3)
    world.reset(seed=0)
    assert set(world.first_free.tolist()) == {1, 2, 3}
    world.step(torch.full((64,), 4))
    world.step(torch.full((64,), 4))
    assert (world.cursor[:, 1] == torch.where(world.first_free == 1, 1, 2)).all()


class TestBallTracking:
    def test_perfect_memoryless_and_random_play(self):
        world = BallTrackingWorld(1024)
        random, memoryless, perfect = world.returns()
        assert abs(first_returns(world, answering(world)).mean() - perfect) < 0.02
        assert abs(first_returns(world, follow_the_nearest(world)).mean() - memoryless) < 0.04
        assert abs(first_returns(world, random_actions(world)).mean() - random) < 0.01

    def test_after_the_mark_balls_look_alike(self):
        world = BallTrackingWorld(32, n_balls=3, marked_steps=2)
        observations, _ = world.reset(seed=0)
        cells = world.grid**2
        for step in range(4):
            assert observations[:, cells : 2 * cells].any(1).all() == (step < 2)
            observations, *_ = world.step(torch.zeros(32, dtype=torch.long))
        # with the balls in another order, so another one marked, the same is seen
        for name in ("position", "velocity", "radius"):
            setattr(world, name, getattr(world, name).flip(1))
        assert world._observe().equal(observations)

    def test_the_cursor_is_held_and_then_moves(self):
        world = BallTrackingWorld(1, marked_steps=1, hold_steps=2, free_steps=5)
        world.reset(seed=0)
        places = []
        for _ in range(5):
            world.step(torch.tensor([4]))
            places.append(world.cursor[0].tolist())
        assert places == [[2, 2], [2, 2], [2, 2], [2, 1], [2, 0]]

    def test_dark_frames(self):
        world = BallTrackingWorld(4, marked_steps=1, hold_steps=0, free_steps=25, dark_steps=3)
        observations, _ = world.reset(seed=0)
        seen = []
        for _ in range(21):
            seen.append(bool(observations[:, : world.grid**2].any()))
            observations, *_ = world.step(torch.zeros(4, dtype=torch.long))
        assert seen == [True] + ([True] * 7 + [False] * 3) * 2


@pytest.mark.parametrize(
    ("world", "kwargs", "message"),
    [
        (BouncingBallsWorld, dict(n_balls=0), "n_balls must be a whole number of at least 1, got 0"),
        (
            BouncingBallsWorld,
            dict(n_balls=[3]),
            r"n_balls must be a whole number or a range \[low, high\] of whole numbers of at least 1, got \[3\]",
        ),
        (BouncingBallsWorld, dict(n_balls=[3, 17]), r"n_balls must be at most 16, got \[3, 17\]"),
        (BouncingBallsWorld, dict(obs="pixel"), "unknown obs 'pixel'; did you mean 'pixels'"),
        (BouncingBallsWorld, dict(speed=0.5), "speed must be a finite number above 0 and at most 0.07, got 0.5"),
        (BouncingBallsWorld, dict(curtain=True, obs="state"), "curtain must be false with obs='state'"),
        (BouncingBallsWorld, dict(size=20), "size must be a whole number of at least 36, got 20"),
        (BallTrackingWorld, dict(dark_steps=10), "dark_steps must be below the 10 frames of a period, got 10"),
        (BallTrackingWorld, dict(free_steps=0), "free_steps must be a whole number of at least 1, got 0"),
        (BallTrackingWorld, dict(n_balls=17), "n_balls must be at most 16, got 17"),
    ],
)
def test_mistakes(world, kwargs, message):
    with pytest.raises(UsageError, match=message):
        world(1, **kwargs)
