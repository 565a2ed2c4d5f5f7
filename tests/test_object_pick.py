"""ObjectPick: an oracle's, a memoryless and random play, and what is shown when."""

import numpy as np
import pytest
import torch
from playing import answering, first_returns, random_actions

from rmc_rl.envs.worlds.object_pick import FIRST_OBJECT, FLOOR, FORWARD, LEFT, N_OBJECTS, RIGHT, VIEW, WALL, ObjectPickWorld
from rmc_rl.errors import UsageError


def towards(places):
    """Goes or turns to the nearest of some places in view, ``(k, 2)`` rows and columns; turns right where there is none."""
    if not len(places):
        return RIGHT
    ahead, aside = VIEW - 1 - places[:, 0], places[:, 1] - VIEW // 2
    nearest = np.argmin(ahead + np.abs(aside) + (ahead == 0))
    if ahead[nearest] > 0:
        return FORWARD
    return RIGHT if aside[nearest] > 0 else LEFT


def memoryless(observations):
    """Turns to the named object in the first step, and then goes to the nearest object in view."""
    seen = observations[:, : 9 * VIEW**2].view(-1, VIEW, VIEW, 9)[..., 2:]
    names = observations[:, 9 * VIEW**2 :]
    actions = []
    for looks, name in zip(seen.numpy(), names.numpy(), strict=True):
        wanted = (looks * name).sum(-1) == 2 if name.any() else looks.any(-1)
        actions.append(towards(np.argwhere(wanted)))
    return torch.tensor(actions)


def test_perfect_memoryless_and_random_play():
    world = ObjectPickWorld(512)
    expected = world.returns()
    assert abs(first_returns(world, answering(world)).mean() - expected.perfect) < 0.01
    assert abs(first_returns(world, memoryless).mean() - expected.memoryless) < 0.06
    assert abs(first_returns(world, random_actions(world)).mean() - expected.random) < 0.06


def test_the_answers_are_a_shortest_way_around_the_others():
    world = ObjectPickWorld(1, size=4, n_distractors=2)
    world.reset(seed=0)
    world.target[:] = 0
    world.cells[:] = FLOOR
    world.cells[0, 1, 0] = FIRST_OBJECT + 1  # between the agent and the named object
    world.cells[0, 0, 0] = FIRST_OBJECT
    world.row[:], world.column[:], world.direction[:] = 2, 0, 0
    actions = []
    for _ in range(7):
        action = world.answers().actions
        actions.append(int(action))
        reward, ended, _ = world._advance(action)
    assert actions == [RIGHT, FORWARD, LEFT, FORWARD, FORWARD, LEFT, FORWARD]
    assert reward > 0
    assert ended
    world.reset(seed=0)
    world.target[:] = 0
    world.cells[:] = FIRST_OBJECT + 1  # shut in: no way
    world.cells[0, 0, 0], world.cells[0, 3, 3] = FIRST_OBJECT, FLOOR
    world.row[:], world.column[:] = 3, 3
    assert not world.answers().known


def test_the_name_is_shown_once_and_what_is_seen_does_not_tell_it():
    world = ObjectPickWorld(256)
    observations, _ = world.reset(seed=0)
    assert (observations[:, -7:].sum(1) == 2).all()
    state = {name: getattr(world, name).clone() for name in ("cells", "row", "column", "direction", "time")}
    after, *_ = world.step(torch.full((256,), LEFT))
    for name, tensor in state.items():
        setattr(world, name, tensor)
    objects = world.cells.flatten(1).topk(2).values - FIRST_OBJECT  # the same room, another name
    world.target = torch.where(objects[:, 0] == world.target, objects[:, 1], objects[:, 0])
    assert world.step(torch.full((256,), LEFT))[0].equal(after)
    assert (after[:, -7:] == 0).all()
    always = ObjectPickWorld(8, show_always=True)
    always.reset(seed=0)
    assert (always.step(torch.full((8,), LEFT))[0][:, -7:].sum(1) == 2).all()


def test_the_named_object_is_there_and_all_are_different():
    world = ObjectPickWorld(512, n_distractors=7)
    world.reset(seed=0)
    objects = world.cells.flatten(1).sort(1).values[:, -8:] - FIRST_OBJECT
    assert (objects >= 0).all()
    assert (objects.diff(dim=1) > 0).all()
    assert (objects == world.target.unsqueeze(1)).any(1).all()
    assert set(world.target.tolist()) == set(range(N_OBJECTS))
    assert (world.cells[torch.arange(512), world.row, world.column] == FLOOR).all()


def test_held_out_objects():
    world = ObjectPickWorld(512, held_out=4)
    world.reset(seed=0)
    assert world.cells.max() < FIRST_OBJECT + 8
    world = ObjectPickWorld(512, held_out=4, only_held_out=True)
    world.reset(seed=0)
    assert world.target.max() < 8
    assert ((world.cells >= FIRST_OBJECT + 8).flatten(1).sum(1) == 1).all()


def test_the_view_turns_with_the_agent():
    world = ObjectPickWorld(1, size=3, n_distractors=1)
    world.reset(seed=0)
    world.cells[:] = FLOOR
    world.cells[0, 0, 0] = FIRST_OBJECT
    world.row[:], world.column[:], world.direction[:] = 1, 1, 0  # in the middle, looking up: the object is left in front
    for place in ([5, 2], None, None, [5, 4]):  # after each right turn
        seen = world._observe()[0, :441].view(VIEW, VIEW, 9)
        assert np.argwhere(seen[..., 2:].any(-1).numpy()).tolist() == ([] if place is None else [place])
        assert seen[0, 0, WALL] == 1
        world.step(torch.tensor([RIGHT]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(size=2), "size must be a whole number of at least 3, got 2"),
        (dict(n_distractors=12), "n_distractors must be at most the 11 objects there are, got 12"),
        (dict(size=3, n_distractors=8), "n_distractors must be at most 7 in a room of 3x3, got 8"),
        (dict(held_out=12), "held_out must leave one of the 12 objects, got 12"),
        (dict(only_held_out=True), "n_distractors must be at most the 0 objects there are, got 1"),
        (dict(show_always="no"), "show_always must be true or false, got 'no'"),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(UsageError, match=message):
        ObjectPickWorld(1, **kwargs)
