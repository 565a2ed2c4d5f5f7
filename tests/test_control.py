"""CartPole and Pendulum without velocities are those of Gymnasium."""

import gymnasium
import numpy as np
import pytest
import torch
from playing import answering, batched, first_returns

SAME = {"rmc_rl/CartPolePositions-v0": "CartPole-v1", "rmc_rl/PendulumAngle-v0": "Pendulum-v1"}


@pytest.mark.parametrize("world_id", SAME)
def test_they_move_as_gymnasiums(world_id):
    world, original = batched(world_id, num_envs=20), [gymnasium.make(SAME[world_id]) for _ in range(20)]
    world.reset(seed=0)
    world.action_space.seed(0)
    is_cart_pole = "CartPole" in world_id
    for index, env in enumerate(original):
        env.reset(seed=0)
        state = world.state[index] if is_cart_pole else torch.stack([world.angle, world.speed], 1)[index]
        env.unwrapped.state = state.double().numpy()
    running = np.ones(20, dtype=bool)
    for _ in range(210):
        actions = world.action_space.sample()
        _, rewards, terminated, truncated, info = world.step(actions)
        seen = info["final_obs"].numpy() if (terminated | truncated).any() else world._observe().numpy()
        for index in np.flatnonzero(running):
            action = actions[index] if is_cart_pole else 2 * actions[index]
            expected, reward, end, cut, _ = original[index].step(action)
            np.testing.assert_allclose(seen[index], expected[::2] if is_cart_pole else expected[:2], atol=0.02)
            np.testing.assert_allclose(rewards[index], reward, rtol=0.01, atol=0.05)
            assert (bool(terminated[index]), bool(truncated[index])) == (end, cut)
            running[index] = not (end or cut)
    assert not running.any()


def test_a_longer_pole_falls_later():
    returns = []
    for length in (0.1, [2.0, 3.0]):
        world = batched("rmc_rl/CartPolePositions-v0", num_envs=200, half_length=length)
        returns.append(first_returns(world, lambda observations: torch.ones(len(observations), dtype=torch.long)).mean())
    assert returns[0] < returns[1]
    assert 2 <= world.half_lengths.min() < world.half_lengths.max() <= 3


def test_without_velocities_the_answers_are_lost():
    world = batched("rmc_rl/CartPolePositions-v0", num_envs=50)
    assert first_returns(world, answering(world)).mean() == 500
    blind = first_returns(world, lambda observations: (observations[:, 1] > 0).long()).mean()
    assert blind < 60


@pytest.mark.parametrize(("world_id", "keyword"), [(world, key) for world in SAME for key in ("max_steps",)])
def test_time_limits_are_drawn(world_id, keyword):
    world = batched(world_id, num_envs=50, **{keyword: [3, 6]})
    world.reset(seed=0)
    assert set(world.limit.tolist()) == {3, 4, 5, 6}
    ends = [world.step(world.action_space.sample())[3] for _ in range(6)]
    assert [bool(cut.any()) for cut in ends] == [False, False, True, True, True, True]
