"""The copying task: its layout, perfect and random play, and that the steps that count give nothing away."""

import numpy as np
import pytest
import torch
from playing import play

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
