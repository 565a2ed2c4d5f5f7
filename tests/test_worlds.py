"""What every world of this package keeps, and what each asks of memory."""

import pickle
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from playing import batched
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from rmc_rl import make_vec
from rmc_rl.envs import WORLDS
from rmc_rl.errors import UsageError

# keywords of a small and quick version of each world
SMALL = {
    "rmc_rl/BallTracking-v0": dict(hold_steps=2, free_steps=4, dark_steps=3),
    "rmc_rl/BouncingBalls-v0": dict(dark_steps=3, n_balls=[2, 3], curtain=True),
    "rmc_rl/BoxWorld-v0": dict(view_size=3, obs="pixels", max_length=1, n_colours=4, max_steps=20),
    "rmc_rl/Copy-v0": dict(n_symbols=4, length=3, delay=5),
    "rmc_rl/MemoryRoom-v0": dict(random_length=True, size=9, max_steps=30),
    "rmc_rl/MiniPacman-v0": dict(max_steps=20, mode="hunt", n_mazes=2),
    "rmc_rl/NthFarthest-v0": dict(n_vectors=3, dim=1),
    "rmc_rl/ObjectPick-v0": dict(n_distractors=1, size=4, max_steps=20),
    "rmc_rl/ProgramEval-v0": dict(nesting=2, task="full", n_programs=100),
    "rmc_rl/SequentialDigits-v0": dict(size=4, pixels_per_step=4),
    "rmc_rl/TMaze-v0": dict(length=3),
}
worlds = pytest.mark.parametrize("world_id", WORLDS)


@worlds
@pytest.mark.parametrize("size", ["default", "small"])
def test_checkers_are_silent(world_id, size):
    kwargs = SMALL[world_id] if size == "small" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(world_id, **kwargs).unwrapped, skip_render_check=False)
        check_env_sb3(gymnasium.make(world_id, **kwargs).unwrapped)


@worlds
def test_single_and_batched_are_the_same_world(world_id):
    single = gymnasium.make(world_id, **SMALL[world_id])
    batch = batched(world_id, num_envs=1, **SMALL[world_id])
    observation, _ = single.reset(seed=3)
    observations, _ = batch.reset(seed=3)
    assert batch.single_observation_space == single.observation_space
    assert batch.single_action_space == single.action_space
    single.action_space.seed(0)
    for _ in range(200):
        np.testing.assert_array_equal(observation, observations[0].numpy())
        action = single.action_space.sample()
        observation, reward, terminated, truncated, _ = single.step(action)
        observations, rewards, ends, cuts, info = batch.step(np.asarray(action)[None])
        assert (reward, terminated, truncated) == (rewards[0].item(), ends[0].item(), cuts[0].item())
        if terminated or truncated:
            np.testing.assert_array_equal(observation, info["final_obs"][0].numpy())
            observation, _ = single.reset()


@worlds
def test_the_seed_decides_everything(world_id):
    def episode(seed):
        world = batched(world_id, num_envs=5, **SMALL[world_id])
        world.action_space.seed(0)
        observations, _ = world.reset(seed=seed)
        seen = [observations]
        for _ in range(60):
            observations, rewards, *_ = world.step(world.action_space.sample())
            seen += [observations, rewards]
        return torch.cat([tensor.float().flatten() for tensor in seen])

    assert episode(1).equal(episode(1))
    assert not episode(1).equal(episode(2))


@worlds
def test_two_worlds_without_a_seed_differ(world_id):
    first, second = (batched(world_id, num_envs=64) for _ in range(2))
    first.action_space.seed(0)
    seen = [(first.reset()[0], second.reset()[0])]
    for _ in range(30):  # the first of them may be alike: the corners of digits are empty
        actions = first.action_space.sample()
        seen.append((first.step(actions)[0], second.step(actions)[0]))
    assert not all(one.equal(other) for one, other in seen)


@worlds
def test_off_the_cpu_episodes_begin_alike(world_id):
    # there, counting the ended episodes would wait for the device: all copies are drawn, and the ended ones chosen
    worlds = [batched(world_id, num_envs=4, **SMALL[world_id]) for _ in range(2)]
    for world in worlds:
        world.reset(seed=0)
    drawn = worlds[0]._draw(4)
    before = {name: getattr(worlds[0], name).clone() for name in drawn}
    rows = torch.tensor([True, False, False, True])
    worlds[1]._is_on_cpu = False
    for world in worlds:
        world._replace(rows, lambda copies: {name: tensor[copies] for name, tensor in drawn.items()})
        for name, tensor in drawn.items():
            assert getattr(world, name)[rows].equal(tensor[rows])
            assert getattr(world, name)[~rows].equal(before[name][~rows])
    worlds[1].action_space.seed(0)
    for _ in range(100):  # and it steps
        assert worlds[1].step(worlds[1].action_space.sample())[0].shape[0] == 4


@worlds
def test_a_new_batch_is_a_new_tensor(world_id):
    world = batched(world_id, num_envs=3, **SMALL[world_id])
    before, _ = world.reset(seed=0)
    kept = before.clone()
    for _ in range(30):
        world.step(world.action_space.sample())
    assert before.equal(kept)


@worlds
@pytest.mark.parametrize("size", ["default", "small"])
def test_types_and_shapes(world_id, size):
    world = batched(world_id, num_envs=4, **(SMALL[world_id] if size == "small" else {}))
    observations, _ = world.reset(seed=0)
    for _ in range(60):
        assert world.observation_space.contains(observations.numpy())
        observations, rewards, terminated, truncated, _ = world.step(world.action_space.sample())
        assert (rewards.dtype, rewards.shape) == (torch.float32, (4,))
        assert {(ends.dtype, ends.shape) for ends in (terminated, truncated)} == {(torch.bool, (4,))}
        assert world.truncates or not truncated.any()


@worlds
def test_pickles(world_id):
    world = gymnasium.make(world_id, **SMALL[world_id])
    world.reset(seed=1)
    world.step(world.action_space.sample())
    copied = pickle.loads(pickle.dumps(world))
    for _ in range(5):
        action = world.action_space.sample()
        results = [each.step(action) for each in (world, copied)]
        np.testing.assert_equal(*results)
        if results[0][2] or results[0][3]:
            np.testing.assert_equal(world.reset(), copied.reset())


@pytest.mark.parametrize("name", ["BoxWorld", "MemoryRoom", "MiniPacman", "ObjectPick", "TMaze"])
def test_the_time_limit(name):
    kwargs = dict(length=3) if name == "TMaze" else {}
    world = batched(f"rmc_rl/{name}-v0", num_envs=64, max_steps=9, **kwargs)
    world.reset(seed=0)
    idle = torch.zeros(64, dtype=torch.long)
    ends = [world.step(idle)[2:4] for _ in range(9)]
    assert all(not truncated.any() for _, truncated in ends[:-1])
    # no clock is observed, so the limit is not an end that an agent could learn: the value goes on
    assert ends[-1][1].float().mean() > 0.5
    assert sum(terminated.float().mean() for terminated, _ in ends) < 0.5


@worlds
def test_whole_numbers_of_any_type_are_actions(world_id):
    world = batched(world_id, num_envs=2, render_mode="rgb_array", **SMALL[world_id])
    world.reset(seed=0)
    for dtype in (np.int32, np.uint8):
        world.step(world.action_space.sample().astype(dtype))


@worlds
def test_pictures_of_a_world_that_had_none(world_id):
    env = make_vec(world_id, 2, seed=0, env_kwargs=SMALL[world_id])
    env.reset()
    for _ in range(2):
        env.step(np.array([env.action_space.sample() for _ in range(2)]))
        env.set_attr("render_mode", "rgb_array")
        assert env.get_images()[0].ndim == 3


@worlds
def test_step_before_reset(world_id):
    world = batched(world_id, num_envs=2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        world.step(world.action_space.sample())


@worlds
def test_mistakes(world_id):
    with pytest.raises(UsageError, match="num_envs must be a whole number of at least 1, got 0"):
        batched(world_id, num_envs=0)
    keyword = next(iter(SMALL[world_id]))
    with pytest.raises(UsageError, match=rf"unknown keyword of .*; did you mean '{keyword}'"):
        gymnasium.make(world_id, **{keyword + "x": 3})
    with pytest.raises(UsageError, match="render_mode must be one of"):
        batched(world_id, num_envs=1, render_mode="rgb").render()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@worlds
def test_on_cuda(world_id):
    world = batched(world_id, num_envs=8, device="cuda")
    observations, _ = world.reset(seed=0)
    for _ in range(200):
        observations, rewards, *_, info = world.step(world.action_space.sample())
    assert {tensor.device.type for tensor in (observations, rewards, info["final_obs"])} == {"cuda"}
