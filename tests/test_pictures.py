"""What the pictures of the worlds show, in which colour and where."""

import numpy as np
import pytest
import torch

from rmc_rl.envs.parts import drawing
from rmc_rl.envs.worlds.ball_tracking import BallTrackingWorld
from rmc_rl.envs.worlds.bouncing_balls import BouncingBallsWorld
from rmc_rl.envs.worlds.box_world import BoxWorld
from rmc_rl.envs.worlds.copy import CopyWorld
from rmc_rl.envs.worlds.memory_room import MemoryRoomWorld
from rmc_rl.envs.worlds.mini_pacman import MiniPacmanWorld
from rmc_rl.envs.worlds.object_pick import ObjectPickWorld
from rmc_rl.envs.worlds.tmaze import DOWN, RIGHT, SIGN_DOWN, TMazeWorld


def begin(world, **kwargs):
    drawn = world(1, render_mode="rgb_array", **kwargs)
    drawn.reset(seed=0)
    return drawn


def count(picture, colour):
    return int((picture == np.array(colour)).all(-1).sum())


def cells(world, size):
    """``(rows, columns, 3)``: the colour in the middle of each cell of ``size`` pixels."""
    return world._picture(0)[size // 2 :: size, size // 2 :: size]


def where(picture, colour):
    return list(zip(*(place.tolist() for place in (picture == np.array(colour)).all(-1).nonzero()), strict=True))


def test_disc_and_outline():
    frame = np.zeros((40, 40, 3), dtype=np.uint8)
    drawing.disc(frame, 10, 30, 5, drawing.SEEN)
    rows, columns = zip(*where(frame, drawing.SEEN), strict=True)
    assert (min(rows), max(rows), min(columns), max(columns)) == (25, 34, 5, 14)
    assert len(rows) == pytest.approx(np.pi * 25, rel=0.1)


@pytest.mark.parametrize("number", [2, 4, 7, 24, 32, 60, 200])
def test_outlines_lie_side_by_side(number):
    frame = np.zeros((160, 160, 3), dtype=np.uint8)
    drawing.outline(frame, (number - 1, 0), number, drawing.RIGHT)
    rows, columns = zip(*where(frame, drawing.RIGHT), strict=True)
    assert (max(rows), min(columns)) == (159, 0)
    assert min(rows) == (number - 1) * 160 // number
    if number <= 32:
        assert count(frame, drawing.RIGHT) < (160 / number) ** 2  # something is left inside


def test_copy():
    world = begin(CopyWorld, n_symbols=3, length=2, delay=1)
    symbols = world.symbols[0].tolist()
    assert where(cells(world, 8), drawing.SEEN) == [(symbols[0], 0)]
    for action in (0, 0, 0, symbols[0]):
        world._advance(torch.tensor([action]))
    assert {row for row, column in where(cells(world, 8), drawing.NOW) if column == 4} == {0, 1, 2}
    world._advance(torch.tensor([(symbols[1] + 1) % 3]))
    assert where(cells(world, 8), drawing.RIGHT) == [(symbols[0], 3)]
    assert where(cells(world, 8), drawing.WRONG) == [((symbols[1] + 1) % 3, 4)]
    assert sorted(where(cells(world, 8), drawing.SEEN)) == sorted((symbol, step) for step, symbol in enumerate(symbols))


def test_nothing_is_drawn_unasked():
    assert CopyWorld(1).render() is None


def test_tmaze():
    world = begin(TMazeWorld, length=2)
    down = int(world.sign[0]) == SIGN_DOWN
    assert where(cells(world, 16), drawing.GOAL) == [(3 if down else 1, 3)]
    assert where(cells(world, 16), drawing.AGENT) == [(2, 1)]
    for _ in range(2):
        world._advance(torch.tensor([RIGHT]))
    assert where(cells(world, 16), drawing.AGENT) == [(2, 3)]
    world._advance(torch.tensor([DOWN]))
    assert where(cells(world, 16), drawing.AGENT) == [(3, 3)]


def test_memory_room():
    world = begin(MemoryRoomWorld)
    for objects, goal in ((0, 4), (3, 4), (1, 6), (2, 6)):
        world.objects[:] = objects
        picture = world._picture(0)
        assert set(where(picture[::12, ::12], drawing.GOAL)) == {(goal, 9)}
        rows, columns = zip(*where(picture, drawing.AGENT), strict=True)
        assert {row // 12 for row in rows} == {int(world.row[0])}
        assert {column // 12 for column in columns} == {int(world.column[0])}


def test_bouncing_balls():
    world = begin(BouncingBallsWorld, dark_steps=3)
    assert count(world._picture(0), drawing.DARK) == 0
    for _ in range(4):
        world._advance(torch.ones(1, 16))
    assert count(world._picture(0), drawing.DARK) > 1000
    truth = world.covered()
    world._advance(truth.int())  # right where the balls were when it was said, whatever they did since
    assert count(world._picture(0), drawing.RIGHT) > 0
    assert count(world._picture(0), drawing.WRONG) == 0
    world._advance((~world.covered()).int())
    assert count(world._picture(0), drawing.RIGHT) == 0
    assert count(world._picture(0), drawing.WRONG) > 0


def test_ball_tracking():
    world = begin(BallTrackingWorld)
    x, y = (world.position[0, 0] * 160).int().tolist()
    assert tuple(world._picture(0)[y, x]) == drawing.NOW  # the mark, on
    world.time[:] = world.marked_steps
    assert tuple(world._picture(0)[y, x]) == drawing.GOAL  # people still see which one it is
    x, y = (world.position[0, 1] * 160).int().tolist()
    assert tuple(world._picture(0)[y, x]) == drawing.SEEN
    assert tuple(world._picture(0)[80, 80]) == drawing.WALL  # the cursor, not yet free
    world.time[:] = world.first_free
    assert tuple(world._picture(0)[80, 80]) == drawing.AGENT


def test_mini_pacman():
    world = begin(MiniPacmanWorld)
    world.pacman[:], world.ghosts[:] = 20, 13 * 19 + 17
    picture = world._picture(0)
    assert tuple(picture[13 * 8 + 4, 17 * 8 + 4]) == drawing.WRONG
    assert tuple(picture[12, 12]) == drawing.AGENT
    world.power[:] = 3
    assert tuple(world._picture(0)[13 * 8 + 4, 17 * 8 + 4]) == drawing.SEEN
    assert count(picture, drawing.PAPER) > 0  # what is in view
    assert count(picture, drawing.FOOD) > count(picture, drawing.RIGHT) > 0


def test_object_pick():
    world = begin(ObjectPickWorld)
    before = world._picture(0)
    assert 0 < count(before, drawing.NOW) < 24**2
    named = world.target.clone()
    others = set(world.cells[0][world.cells[0] >= 2].tolist()) - {2 + int(named[0])}
    world.target[:] = min(others) - 2
    assert set(where(before, drawing.NOW)).isdisjoint(where(world._picture(0), drawing.NOW))


def test_box_world():
    world = begin(BoxWorld, view_size=3)
    assert 0 < count(world._picture(0), drawing.NOW) <= 9 * 20**2
    row, column = divmod(int(world.place[0]), world.size)
    rows, columns = zip(*where(world._picture(0), drawing.NOW), strict=True)
    size = len(world._picture(0)) // (world.size + 2)
    assert {number // size - 1 for number in rows} <= {row - 1, row, row + 1}
    assert {number // size - 1 for number in columns} <= {column - 1, column, column + 1}
