"""BoxWorld: every level has a solution, found by search in a simulator of its own, which the batched world agrees with."""

from collections import deque

import numpy as np
import pytest
import torch
from playing import first_returns, random_actions

from rmc_rl.envs.parts import grid
from rmc_rl.envs.worlds.box_world import _ENOUGH_STEPS, LOCK, LOOSE, SHUT, WRONG_LOCK, BoxWorld
from rmc_rl.errors import UsageError

PAPER = dict(size=14, max_length=5, max_distractors=5, n_colours=20, max_steps=1000)


class Level:
    """The rules in plain Python. Objects are ``{(row, column): (role, colour)}``; a state is (place, objects, held)."""

    def __init__(self, world, index):
        self.size, self.gem = world.size, world.n_colours
        codes = world.cells[index].view(world.size, world.size).tolist()
        self.objects = {
            (row, column): divmod(code - 1, world.n_colours + 1)
            for row, line in enumerate(codes)
            for column, code in enumerate(line)
            if code
        }
        self.start = divmod(int(world.place[index]), world.size)

    def step(self, state, action):
        """The state after an action, its reward, and whether the episode ends."""
        (row, column), objects, held = state
        down, across = grid.MOVES[action]
        to = (row + down, column + across)
        if not (0 <= to[0] < self.size and 0 <= to[1] < self.size):
            return state, 0, False
        if to not in objects:
            return (to, objects, held), 0, False
        role, colour = objects[to]
        objects = dict(objects)
        del objects[to]
        if role == LOOSE:
            return (to, objects, colour), 10 * (colour == self.gem), colour == self.gem
        if role == SHUT or colour != held:
            return state, 0, False
        left = (to[0], to[1] - 1)
        objects[left] = (LOOSE, objects[left][1])
        return (to, objects, None), -1 if role == WRONG_LOCK else 1, role == WRONG_LOCK

    def solve(self):
        """The actions of a shortest way to the gem, by search; None where there is none."""
        begin = (self.start, self.objects, None)
        queue, seen = deque([(begin, ())]), {(self.start, len(self.objects), None)}
        while queue:
            state, actions = queue.popleft()
            for action in range(4):
                after, reward, ends = self.step(state, action)
                if reward == 10:
                    way = [action]
                    while actions:
                        action, actions = actions
                        way.append(action)
                    return way[::-1]
                # a place, what is left and what is held: enough to know a state, for there is one key at a time
                key = (after[0], len(after[1]), after[2])
                if not ends and key not in seen:
                    seen.add(key)
                    queue.append((after, (action, actions)))
        return None


def boxes(level):
    """(row, column of the lock), role and colour of the lock, colour of what the box holds."""
    return [
        (place, role, colour, level.objects[place[0], place[1] - 1][1])
        for place, (role, colour) in level.objects.items()
        if role >= LOCK
    ]


@pytest.mark.parametrize("sizes", [dict(), pytest.param(PAPER, marks=pytest.mark.slow)], ids=["default", "paper"])
def test_the_answers_to_a_thousand_levels_are_as_short_as_those_found_by_search(sizes):
    world = BoxWorld(1000, **sizes)
    world.reset(seed=0)
    levels = [Level(world, index) for index in range(1000)]
    ways = [level.solve() for level in levels]
    assert all(ways)
    longest = max(map(len, ways))
    assert longest <= _ENOUGH_STEPS * world.size**2 <= world.max_steps
    lengths = torch.tensor([sum(role == LOCK for _, role, *_ in boxes(level)) for level in levels])
    returns, ended = torch.zeros(1000), torch.zeros(1000, dtype=torch.long)
    for step in range(longest):
        actions, known = world.answers()
        assert known.all()
        _, rewards, terminated, *_ = world.step(actions)
        returns += rewards * (ended == 0)
        ended[terminated & (ended == 0)] = step + 1
    assert ended.tolist() == [len(way) for way in ways]
    assert returns.tolist() == (10 + lengths).tolist()
    assert abs(returns.mean() - world.returns().perfect) < 0.15


def test_levels_are_as_drawn():
    world = BoxWorld(2000, **PAPER)
    world.reset(seed=0)
    lengths, distractors = np.zeros(6), np.zeros(6)
    for index in range(2000):
        level = Level(world, index)
        (loose,) = (colour for role, colour in level.objects.values() if role == LOOSE)
        found = boxes(level)
        chain = {colour: held for _, role, colour, held in found if role == LOCK}
        lengths[len(chain)] += 1
        distractors[len(found) - len(chain)] += 1
        key, path = loose, []
        while key != world.gem:  # the key opens one right box, which holds the next one
            path.append(key)
            key = chain.pop(key)
        assert not chain
        dead = [held for _, role, _, held in found if role == WRONG_LOCK]
        assert len({*path, *dead}) == len(path) + len(dead)  # what a wrong box holds opens nothing
        assert all(colour in path for _, role, colour, _ in found if role == WRONG_LOCK)
        corners = [place for place, (role, _) in level.objects.items() if role in (SHUT, LOOSE)]
        for i, (row, column) in enumerate(corners):
            assert all(abs(row - other) > 1 or abs(column - across) > 2 for other, across in corners[:i])
        assert level.start not in level.objects
    assert np.abs(lengths[1:] / 2000 - 1 / 5).max() < 0.04
    assert np.abs(distractors / 2000 - 1 / 6).max() < 0.04


def test_the_world_agrees_with_the_simulator():
    small = BoxWorld(200, max_steps=10_000, size=5, max_length=1, max_distractors=0, n_colours=2)
    act, kinds = random_actions(small), set()
    for world in (small, BoxWorld(200, max_steps=10_000)):
        world.reset(seed=1)
        levels = [Level(world, index) for index in range(200)]
        states = [(level.start, level.objects, None) for level in levels]
        for _ in range(300):
            actions = act(None)
            _, rewards, terminated, *_ = world.step(actions)
            for index, action in enumerate(actions.tolist()):
                states[index], reward, ends = levels[index].step(states[index], action)
                kinds.add(reward)
                assert (reward, ends) == (rewards[index], terminated[index])
                if ends:
                    levels[index] = Level(world, index)
                    states[index] = (levels[index].start, levels[index].objects, None)
            for index, (place, objects, held) in enumerate(states):
                level = Level(world, index)
                assert (level.start, level.objects) == (place, objects)
                assert world.held[index] == (world.none if held is None else held)
    assert kinds == {0, 1, 10, -1}


def test_what_is_seen_does_not_tell_right_from_wrong_nor_what_is_far():
    world = BoxWorld(500)
    before, _ = world.reset(seed=0)
    code = world._code(LOCK, torch.tensor(0))
    locks = world.cells >= code
    assert locks.any()
    world.cells = torch.where(
        locks, code + (world.cells - code + world.n_colours + 1) % (2 * world.n_colours + 2), world.cells
    )
    assert before.equal(world._observe())  # right and wrong locks exchanged
    rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
    row, column = (world.place // 8).unsqueeze(1), (world.place % 8).unsqueeze(1)
    far = ((rows - row).abs() > 2) | ((columns - column).abs() > 2)
    world.cells = torch.where(far, 7, world.cells)
    assert before.equal(world._observe())
    world.cells = torch.where(far, world.cells, 7)
    assert (before != world._observe()).any(1).all()


def test_the_observation_by_hand():
    world = BoxWorld(1, n_colours=3, view_size=3)
    world.reset(seed=0)
    world.cells[:] = 0
    world.cells[0, 1], world.cells[0, 2], world.cells[0, 8] = (
        world._code(role, torch.tensor(colour)) for role, colour in ((SHUT, world.gem), (LOCK, 2), (LOOSE, 1))
    )
    world.place[:] = 1 + 8  # row 1, column 1
    world.held[:] = 0
    seen = world._observe()[0]
    wall, one, two, gem = torch.eye(5)[[0, 2, 3, 4]]
    empty = torch.zeros(5)
    rows = [empty, gem, two, one, empty, empty, empty, empty, empty]
    assert seen.equal(torch.cat([*rows, torch.tensor([1.0, 0, 0])]))
    world.place[:], world.held[:] = 0, world.none
    rows = [wall, wall, wall, wall, empty, gem, wall, one, empty]
    assert world._observe()[0].equal(torch.cat([*rows, torch.zeros(3)]))


def test_pixels_show_what_planes_show():
    planes, pixels = BoxWorld(50, n_colours=20), BoxWorld(50, n_colours=20, obs="pixels")
    for world in (planes, pixels):
        world.reset(seed=3)
    act = random_actions(planes)
    pairs = set()
    for _ in range(100):
        actions = act(None)
        flat, image = planes.step(actions)[0], pixels.step(actions)[0]
        assert image.shape == (50, 3, 48, 40)
        cells = image[:, :, 4::8, 4::8].flatten(2).transpose(1, 2)  # (B, 30, 3)
        looks = flat[:, :550].view(50, 25, 22)
        shown = torch.where(looks.any(2), looks.argmax(2), 22)
        held = torch.where(flat[:, 550:].any(1), 1 + flat[:, 550:].argmax(1), 22).unsqueeze(1)
        colours = torch.cat([cells[:, 5:], cells[:, :1]], 1).flatten(0, 1).tolist()
        pairs |= set(zip(torch.cat([shown, held], 1).flatten().tolist(), map(tuple, colours), strict=True))
    assert len(pairs) == len({look for look, _ in pairs}) == len({colour for _, colour in pairs}) == 23


def test_random_play():
    world = BoxWorld(4096)
    assert abs(first_returns(world, random_actions(world)).mean() - world.returns().random) < 0.2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(view_size=4), "view_size must be odd, got 4"),
        (dict(size=4), "max_length \\+ max_distractors must be at most 0 in a room of 4x4, got 3"),
        (dict(n_colours=2), "max_length \\+ max_distractors must be at most n_colours, got 3"),
        (dict(max_distractors=-1), "max_distractors must be a whole number of at least 0, got -1"),
        (dict(obs="pixel"), "did you mean 'pixels'"),
    ],
    ids=str,
)
def test_mistakes_of_sizes(kwargs, message):
    with pytest.raises(UsageError, match=message):
        BoxWorld(**kwargs)


def test_box_world_draws_what_is_held():
    world = BoxWorld(1, render_mode="rgb_array")
    world.reset(seed=0)
    (frame,) = world.render()
    assert frame.shape == (200, 200, 3)
    world.held[:] = 3
    (other,) = world.render()
    assert (frame[:20, :20] != other[:20, :20]).any()
    assert (frame[20:] == other[20:]).all()
