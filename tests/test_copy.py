"""The copying task: its layout, perfect and random play, and that the steps that count give nothing away."""

import re

import numpy as np
import pytest
import torch
from playing import play

from rmc_rl import make_vec
from rmc_rl.envs.worlds.copy import CopyWorld
from rmc_rl.errors import UsageError


@pytest.mark.parametrize(
    "sizes", [dict(), dict(n_symbols=4, length=3, delay=5), dict(n_symbols=2, length=1, delay=1)], ids=str
)
class TestCopy:
    def test_layout_of_an_episode(self, sizes):
        world = CopyWorld(2, **sizes)
        observations, _ = world.reset(seed=5)
        seen, ends = [observations], []
        for _ in range(2 * world.length + world.delay):
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
            cue = len(memory) - 1 - (world.length + world.delay)
            return memory[cue] if cue >= 0 else torch.zeros(16, dtype=torch.long)

        episode = 2 * world.length + world.delay
        np.testing.assert_allclose(play(world, 16, act, episode), 1, atol=1e-6)

    def test_random_play_gets_one_symbol_in_n(self, sizes):
        world = CopyWorld(512, **sizes)
        torch.manual_seed(0)
        returns = play(world, 512, lambda _: torch.randint(world.n_symbols, (512,)), 2 * world.length + world.delay)
        assert abs(returns.mean() - 1 / world.n_symbols) < 4 * 0.5 / np.sqrt(512 * world.length)

    def test_the_steps_that_count_all_look_the_same(self, sizes):
        # so a memoryless player answers every one of them alike, and is right in one of n_symbols
        world = CopyWorld(512, **sizes)
        observations, _ = world.reset(seed=1)
        for step in range(2 * world.length + world.delay):
            if step >= (world.length + world.delay):
                assert (observations == world.blank).all()
            if step == (world.length + world.delay):
                symbols = world.symbols
            observations, *_ = world.step(torch.zeros(512, dtype=torch.long))
        share = torch.nn.functional.one_hot(symbols, world.n_symbols).float().mean((0, 1))
        torch.testing.assert_close(share, torch.full_like(share, 1 / world.n_symbols), rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ["n_symbols", "length", "delay"])
def test_copy_sizes_are_checked(name):
    with pytest.raises(UsageError, match=f"{name} must be a whole number of at least [12], got 0"):
        CopyWorld(**{name: 0})


def test_each_episode_draws_its_length_and_delay():
    world = CopyWorld(256, n_symbols=3, length=[1, 3], delay=(2, 4), render_mode="rgb_array")
    observations, _ = world.reset(seed=0)
    lengths, delays, symbols = world.lengths.clone(), world.recall_steps - world.lengths, world.symbols.clone()
    assert set(lengths.tolist()) == {1, 2, 3}
    assert set(delays.tolist()) == {2, 3, 4}
    returns, running = torch.zeros(256), torch.ones(256, dtype=torch.bool)
    for step in range(10):
        shows_symbol = step < lengths
        assert observations[shows_symbol & running].equal(symbols[:, min(step, 2)][shows_symbol & running])
        assert ((observations == world.marker) == (step == lengths + delays - 1))[running].all()
        answers = world.answers()
        assert answers.known[running].equal((step >= lengths + delays)[running])
        observations, rewards, terminated, _, _ = world.step(answers.actions)
        returns += rewards * running
        assert (terminated == (step == 2 * lengths + delays - 1))[running].all()
        running &= ~terminated
    assert not running.any()
    torch.testing.assert_close(returns, torch.ones(256))
    assert len({frame.shape for frame in world.render()}) == 1
    assert world.memory_demand() == 7


def test_a_new_range_holds_for_the_episodes_that_begin_after_it():
    env = make_vec("rmc_rl/Copy-v0", 2, seed=0, env_kwargs=dict(length=1, delay=2))
    env.reset()
    env.set_attr("delay", (5, 5))
    lengths = [info["episode"]["l"] for _ in range(11) for info in env.step(np.zeros(2, dtype=int))[3] if info]
    assert lengths == [4, 4, 7, 7]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([5, 2], "delay must be a whole number or a range [low, high] of whole numbers of at least 1, got [5, 2]"),
        ([0, 2], "got [0, 2]"),
        ([2, 3, 4], "got [2, 3, 4]"),
        ([], "got []"),
        ([1, True], "got [1, True]"),
        ([1.5, 3], "got [1.5, 3]"),
        ("5", "delay must be a whole number of at least 1, got '5'"),
        (True, "delay must be a whole number of at least 1, got True"),
    ],
)
def test_ranges_are_checked(value, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        CopyWorld(delay=value)
