"""What every world of this package keeps, and what each asks of memory."""

import pickle
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from rmc_rl.envs import WORLDS
from rmc_rl.envs.copy import CopyWorld
from rmc_rl.errors import UsageError

SMALL = {"rmc_rl/Copy-v0": dict(n_symbols=4, length=3, delay=5)}
worlds = pytest.mark.parametrize("world_id", WORLDS)


def play(world, episodes_of, act, n_steps):
    """Step a batched world with ``act(observations)``; returns of the episodes that ended, in order of their ends."""
    observations, _ = world.reset(seed=0)
    running, returns = torch.zeros(world.num_envs), []
    for _ in range(n_steps):
        observations, rewards, terminated, truncated, _ = world.step(act(observations))
        running += rewards
        done = terminated | truncated
        returns += running[done].tolist()
        running[done] = 0
    assert len(returns) >= episodes_of
    return np.array(returns)


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
    batched = gymnasium.make_vec(world_id, num_envs=1, **SMALL[world_id])
    observation, _ = single.reset(seed=3)
    observations, _ = batched.reset(seed=3)
    assert batched.single_observation_space == single.observation_space
    assert batched.single_action_space == single.action_space
    single.action_space.seed(0)
    for _ in range(200):
        np.testing.assert_array_equal(observation, observations[0].numpy())
        action = single.action_space.sample()
        observation, reward, terminated, truncated, _ = single.step(action)
        observations, rewards, ends, cuts, info = batched.step(np.asarray(action)[None])
        assert (reward, terminated, truncated) == (rewards[0].item(), ends[0].item(), cuts[0].item())
        if terminated or truncated:
            np.testing.assert_array_equal(observation, info["final_obs"][0].numpy())
            observation, _ = single.reset()


@worlds
def test_the_seed_decides_everything(world_id):
    def episode(seed):
        world = gymnasium.make_vec(world_id, num_envs=5, **SMALL[world_id])
        observations, _ = world.reset(seed=seed)
        seen = [observations]
        for step in range(60):
            actions = (torch.arange(5) + step) % world.single_action_space.n
            observations, rewards, *_ = world.step(actions)
            seen += [observations, rewards]
        return torch.stack([tensor.float() for tensor in seen])

    assert episode(1).equal(episode(1))
    assert not episode(1).equal(episode(2))


@worlds
def test_two_worlds_without_a_seed_differ(world_id):
    first, second = (gymnasium.make_vec(world_id, num_envs=64) for _ in range(2))
    assert not first.reset()[0].equal(second.reset()[0])


@worlds
def test_a_new_batch_is_a_new_tensor(world_id):
    world = gymnasium.make_vec(world_id, num_envs=3, **SMALL[world_id])
    before, _ = world.reset(seed=0)
    kept = before.clone()
    for _ in range(30):
        world.step(torch.zeros(3, dtype=torch.long))
    assert before.equal(kept)


@worlds
def test_pickles(world_id):
    world = gymnasium.make(world_id, **SMALL[world_id])
    world.reset(seed=1)
    world.step(0)
    copied = pickle.loads(pickle.dumps(world))
    for _ in range(5):
        for one, other in zip(world.step(1), copied.step(1), strict=True):
            np.testing.assert_equal(one, other)


@worlds
def test_step_before_reset(world_id):
    world = gymnasium.make_vec(world_id, num_envs=2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        world.step(torch.zeros(2, dtype=torch.long))


@worlds
def test_mistakes(world_id):
    with pytest.raises(UsageError, match="num_envs must be a whole number of at least 1, got 0"):
        gymnasium.make_vec(world_id, num_envs=0)
    with pytest.raises(UsageError, match=r"unknown keyword of .*; did you mean 'delay'"):
        gymnasium.make(world_id, dealy=3)
    with pytest.raises(UsageError, match="render_mode must be one of"):
        gymnasium.make_vec(world_id, num_envs=1, render_mode="rgb").render()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@worlds
def test_on_cuda(world_id):
    world = gymnasium.make_vec(world_id, num_envs=8, device="cuda")
    observations, _ = world.reset(seed=0)
    for _ in range(200):
        observations, rewards, *_, info = world.step(torch.zeros(8, dtype=torch.long, device="cuda"))
    assert {tensor.device.type for tensor in (observations, rewards, info["final_obs"])} == {"cuda"}


@pytest.mark.parametrize("sizes", [dict(), SMALL["rmc_rl/Copy-v0"], dict(n_symbols=2, length=1, delay=1)], ids=str)
class TestCopy:
    def test_layout_of_an_episode(self, sizes):
        world = CopyWorld(2, **sizes)
        observations, _ = world.reset(seed=5)
        seen, ends = [observations], []
        for _ in range(world.recall_step + world.length):
            observations, _, terminated, _, info = world.step(torch.zeros(2, dtype=torch.long))
            seen.append(observations)
            ends.append(terminated)
        shown = torch.stack(seen)[:, 0].tolist()
        length, blank, marker = world.length, world.n_symbols, world.n_symbols + 1
        assert all(symbol < world.n_symbols for symbol in shown[:length])
        assert shown[length : length + world.delay] == [blank] * (world.delay - 1) + [marker]
        assert shown[length + world.delay : -1] == [blank] * length
        assert torch.stack(ends).sum(0).tolist() == [1, 1]
        assert ends[-1].all()
        assert info["_final_obs"].all()
        assert (info["final_obs"] == blank).all()
        assert (seen[-1] < world.n_symbols).all()  # the new episode's first symbol

    def test_perfect_play_gets_one(self, sizes):
        world = CopyWorld(16, **sizes)
        memory = []

        def act(observations):
            memory.append(observations)
            cue = len(memory) - 1 - world.recall_step
            return memory[cue] if cue >= 0 else torch.zeros(16, dtype=torch.long)

        episode = world.recall_step + world.length
        np.testing.assert_allclose(play(world, 16, act, episode), 1, atol=1e-6)

    def test_random_play_gets_one_symbol_in_n(self, sizes):
        world = CopyWorld(512, **sizes)
        torch.manual_seed(0)
        returns = play(world, 512, lambda _: torch.randint(world.n_symbols, (512,)), world.recall_step + world.length)
        assert abs(returns.mean() - 1 / world.n_symbols) < 4 * 0.5 / np.sqrt(512 * world.length)

    def test_the_steps_that_count_all_look_the_same(self, sizes):
        # so a memoryless player answers every one of them alike, and is right in one of n_symbols
        world = CopyWorld(512, **sizes)
        observations, _ = world.reset(seed=1)
        for step in range(world.recall_step + world.length):
            if step >= world.recall_step:
                assert (observations == world.blank).all()
            if step == world.recall_step:
                symbols = world.symbols
            observations, *_ = world.step(torch.zeros(512, dtype=torch.long))
        share = torch.nn.functional.one_hot(symbols, world.n_symbols).float().mean((0, 1))
        torch.testing.assert_close(share, torch.full_like(share, 1 / world.n_symbols), rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ["n_symbols", "length", "delay"])
def test_copy_sizes_are_checked(name):
    with pytest.raises(UsageError, match=f"{name} must be a whole number of at least [12], got 0"):
        CopyWorld(**{name: 0})


def test_copy_draws_what_was_seen_and_answered():
    world = CopyWorld(1, n_symbols=3, length=2, delay=1, render_mode="rgb_array")
    world.reset(seed=0)
    (empty,) = world.render()
    assert empty.shape == (3 * 8, 5 * 8, 3)
    first, second = world.symbols[0].tolist()
    for action in (0, 0, 0, first):
        world.step(torch.tensor([action]))
    (frame,) = world.render()
    blue, green = frame[first * 8 + 4, 4], frame[first * 8 + 4, 3 * 8 + 4]
    assert blue.argmax() == 2
    assert green.argmax() == 1
    assert frame[second * 8 + 4, 8 + 4].argmax() == 2
    world.step(torch.tensor([(second + 1) % 3]))  # wrong; the new episode is drawn from here on
    assert (world.render()[0] != frame).any()
    assert CopyWorld(1).render() is None
