"""Nth Farthest: its layout, perfect, memoryless and random play, and what a picture shows."""

import math

import numpy as np
import pytest
import torch
from playing import play, random_actions

from rmc_rl.envs.parts import drawing
from rmc_rl.envs.worlds.nth_farthest import NthFarthestWorld
from rmc_rl.errors import UsageError

SIZES = [dict(), dict(n_vectors=8, dim=16), dict(n_vectors=2, dim=1)]


def parts(observations, world):
    """Vectors, and the labels, n and m of their one-hots."""
    vectors, *codes = observations.split([world.dim] + [world.n_vectors] * 3, dim=-1)
    assert all((code.sum(-1) == 1).all() and (code.max(-1).values == 1).all() for code in codes)
    return vectors, *(code.argmax(-1) for code in codes)


def answers(vectors, labels, n, m):
    """The answer of each episode, by sorting in plain Python; ``(B, N, D)``, ``(B, N)``, ``(B,)``, ``(B,)``."""
    found = []
    for points, names, rank, name in zip(vectors.tolist(), labels.tolist(), n.tolist(), m.tolist(), strict=True):
        centre = points[names.index(name)]
        ordered = sorted(zip(points, names, strict=True), key=lambda pair: -math.dist(pair[0], centre))
        found.append(ordered[rank][1])
    return torch.tensor(found)


def memoryless_ceiling(n_vectors, dim, grid=30):
    """
    The best return of a player that sees the question and the last vector.

    Where n is N it answers m; where the last vector is m, any other label. Else it knows the last vector x, but not m's
    vector u: x has rank n if n - 1 of the other N - 2 are farther from u, and is the answer then. All others are alike.
    """
    axis = (torch.arange(grid) + 0.5) / grid * 2 - 1
    points = torch.cartesian_prod(*[axis] * dim).view(-1, dim)
    distances = torch.cdist(points, points)
    farther = torch.stack([(row.unsqueeze(0) > row.unsqueeze(1)).float().mean(1) for row in distances])  # (u, x)
    others, found = n_vectors - 2, 0.0
    for rank in range(n_vectors - 1):
        chance = (math.comb(others, rank) * farther**rank * (1 - farther) ** (others - rank)).mean(0)  # (x,)
        best = torch.maximum(chance, (1 - chance) / others) if others else chance
        found += best.mean().item() / n_vectors
    return 1 / n_vectors + 1 / n_vectors**2 + (1 - 1 / n_vectors) * found


@pytest.mark.parametrize("sizes", SIZES, ids=str)
class TestNthFarthest:
    def test_layout_of_an_episode(self, sizes):
        world = NthFarthestWorld(64, **sizes)
        observations, _ = world.reset(seed=0)
        seen = [parts(observations, world)]
        for step in range(world.n_vectors):
            observations, _, terminated, truncated, _ = world.step(torch.zeros(64, dtype=torch.long))
            assert (terminated == (step == world.n_vectors - 1)).all()
            assert not truncated.any()
            seen.append(parts(observations, world))
        vectors, labels, n, m = (torch.stack(part, 1) for part in zip(*seen[:-1], strict=True))
        assert labels.sort(1).values.equal(torch.arange(world.n_vectors).expand(64, -1))
        assert not labels.equal(labels[:1].expand(64, -1))
        assert (n == n[:, :1]).all()
        assert (m == m[:, :1]).all()
        assert vectors.abs().max() > 0.9
        assert vectors[:, 0].ne(vectors[:, 1]).all()

    def test_perfect_play_gets_one(self, sizes):
        world, memory = NthFarthestWorld(64, **sizes), []

        def act(observations):
            memory.append(parts(observations, world))
            vectors, labels, n, m = (torch.stack(part, 1) for part in zip(*memory[-world.n_vectors :], strict=True))
            return answers(vectors, labels, n[:, -1], m[:, -1]) if len(memory) % world.n_vectors == 0 else labels[:, -1]

        np.testing.assert_array_equal(play(world, 128, act, 2 * world.n_vectors), 1)

    def test_random_play(self, sizes):
        world = NthFarthestWorld(1024, **sizes)
        returns = play(world, 4096, random_actions(world), 4 * world.n_vectors)
        assert abs(returns.mean() - 1 / world.n_vectors) < 4 * 0.5 / np.sqrt(4096)

    def test_a_memoryless_player_that_knows_the_rules(self, sizes):
        # m where n is N, else any other label: the plateau that people report
        world = NthFarthestWorld(1024, **sizes)

        def act(observations):
            _, _, n, m = parts(observations, world)
            return torch.where(n == world.n_vectors - 1, m, (m + 1) % world.n_vectors)

        returns = play(world, 4096, act, 4 * world.n_vectors)
        assert abs(returns.mean() - 2 / world.n_vectors) < 4 * 0.5 / np.sqrt(4096)


def test_the_last_vector_tells_little():
    # the best memoryless play for the default: a last vector far from the middle is likelier the farther one of two
    ceiling = memoryless_ceiling(3, 2)
    assert round(ceiling, 2) == NthFarthestWorld().returns().memoryless == 0.71
    assert memoryless_ceiling(2, 1) == 1
    world = NthFarthestWorld(4096)

    def act(observations):
        vector, label, n, m = parts(observations, world)
        last_is_it = (vector.norm(dim=-1) > 0.75) == (n == 0)
        third = torch.where(label == m, (m + 1) % 3, 3 - m - label)
        return torch.where(n == 2, m, torch.where(last_is_it & (label != m), label, third))

    returns = play(world, 40960, act, 30)
    assert 2 / 3 + 0.02 < returns.mean() < ceiling + 3 * 0.5 / np.sqrt(len(returns))


@pytest.mark.parametrize(("name", "least"), [("n_vectors", 2), ("dim", 1)])
def test_sizes_are_checked(name, least):
    with pytest.raises(UsageError, match=f"{name} must be a whole number of at least {least}, got 0"):
        NthFarthestWorld(**{name: 0})


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_picture_shows_vectors_and_answer(dim):
    def pixels(colour):
        return int((world._picture(0) == np.array(colour)).all(-1).sum())

    world = NthFarthestWorld(1, dim=dim, render_mode="rgb_array")
    world.reset(seed=1)
    one = pixels(drawing.SEEN)
    assert one > 100
    for _ in range(2):
        world.step(torch.tensor([0]))
    assert pixels(drawing.SEEN) > one
    assert pixels(drawing.RIGHT) == pixels(drawing.WRONG) == 0
    world._advance(world.target)
    assert pixels(drawing.RIGHT) > 100
    world.answer = (world.target + 1) % 3
    assert pixels(drawing.WRONG) > 100
