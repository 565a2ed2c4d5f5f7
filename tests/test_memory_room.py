"""MemoryRoom: the same task as MiniGrid's, step by step; perfect, memoryless and random play."""

import gymnasium
import numpy as np
import pytest
import torch
from playing import answering, first_returns, random_actions

from rmc_rl.envs.worlds import memory_room
from rmc_rl.envs.worlds.memory_room import (
    BALL,
    EAST,
    FLOOR,
    FORWARD,
    KEY,
    LEFT,
    NORTH,
    RIGHT,
    SOUTH,
    UNSEEN,
    WALL,
    MemoryRoomWorld,
)
from rmc_rl.errors import UsageError

# (object, what it is here) of MiniGrid's encoding; the agent's own cell is empty
MINIGRID_KINDS = {0: UNSEEN, 1: FLOOR, 2: WALL, 5: KEY, 6: BALL}


@pytest.mark.parametrize("size", [7, 9, 13])
@pytest.mark.parametrize(("random_length", "limit"), [(False, None), (True, None), (False, 25)])
def test_equals_minigrid(size, random_length, limit):
    pytest.importorskip("minigrid")
    limits = {} if limit is None else {"max_steps": limit}
    theirs = gymnasium.make("MiniGrid-MemoryS7-v0", size=size, random_length=random_length, **limits).unwrapped
    world = MemoryRoomWorld(1, size=size, random_length=random_length, **limits)
    rng = np.random.default_rng(0)
    rewards, ends = set(), set()
    for episode in range(30):
        observation, _ = theirs.reset(seed=episode)
        ours, _ = world.reset(seed=0)
        # the same episode
        end = theirs.success_pos[0] - 1
        column, row = theirs.agent_pos
        room = theirs.grid.get(1, size // 2 - 1).type
        room_is_north = theirs.success_pos[1] < theirs.failure_pos[1]
        north_is_ball = (room == "ball") == room_is_north
        world.layout[:] = world._ends.tolist().index(end)
        world.row[:], world.column[:], world.objects[:] = int(row), int(column), (room == "ball") + 2 * north_is_ball
        assert theirs.agent_dir == 0
        assert world.direction == EAST
        ours = world._observe()
        for _ in range(200):
            cells = ours.view(memory_room.KINDS, 7, 7).argmax(0).numpy()
            expected = np.vectorize(MINIGRID_KINDS.get)(observation["image"][:, :, 0].T)
            np.testing.assert_array_equal(cells, expected)
            action = int(rng.choice(3, p=[0.2, 0.2, 0.6]))
            observation, reward, terminated, truncated, _ = theirs.step(action)
            our_reward, our_end, our_cut = world._advance(torch.tensor([action]))
            assert our_reward.item() == pytest.approx(reward)
            assert (our_end.item(), our_cut.item()) == (terminated, truncated)
            rewards.add(reward > 0)
            ends.add((terminated, truncated))
            if terminated or truncated:
                break
            ours = world._observe()
    assert rewards == {True, False}
    assert (False, True) in ends or limit is None


def guessing(world):
    """Goes to one side of the crossing by chance, without a look at the object in the room."""
    sides = torch.where(torch.rand(world.num_envs, generator=torch.Generator().manual_seed(0)) < 0.5, NORTH, SOUTH)

    def act(_):
        at_crossing = world.column == world._ends[world.layout] + 1
        turn = (torch.where(at_crossing, sides, EAST) - world.direction) % 4
        return torch.where(turn == 0, FORWARD, torch.where(turn == 3, LEFT, RIGHT))

    return act


def test_perfect_play():
    world = MemoryRoomWorld(256)
    returns = first_returns(world, answering(world))
    assert returns.min() > 0.97
    assert abs(returns.mean() - world.returns().perfect) < 0.01


@pytest.mark.parametrize("sizes", [dict(), dict(size=17), dict(size=13, random_length=True), dict(start="sign")], ids=str)
def test_the_answers_look_before_they_choose(sizes):
    world = MemoryRoomWorld(256, **sizes)
    world.reset(seed=0)
    running, longest = torch.ones(256, dtype=torch.bool), 0
    looked_at = torch.full((256,), -1)  # the last step at which the object in the room was visible
    for step in range(4 * world.size):
        looked_at = torch.where(running & world._shows_room[world._view()], step, looked_at)
        _, rewards, terminated, _, _ = world.step(world.answers().actions)
        assert (rewards[terminated] > 0).all()
        assert (looked_at[terminated & running] >= 0).all()
        longest = max([longest, *(step - looked_at)[terminated & running].tolist()])
        running &= ~terminated
        if not running.any():
            break
    assert not running.any()
    assert longest == world.memory_demand() + 1  # the object decides the turn at the crossing; a step forward follows
    other = MemoryRoomWorld(64, **sizes)  # two worlds that differ in the object in the room, until it has been visible
    other.reset(seed=0)
    hidden = ~other.has_looked
    before = other.answers().actions
    other.objects ^= 1
    assert before[hidden].equal(other.answers().actions[hidden])


def test_answers_from_anywhere():
    # also from where a learner leads it: with the answers from there, it arrives
    world = MemoryRoomWorld(512)
    world.reset(seed=0)
    act = random_actions(world)
    for _ in range(40):
        world.step(act(None))
    reached = torch.zeros(512, dtype=torch.bool)
    for _ in range(40):
        _, rewards, terminated, _, _ = world.step(world.answers().actions)
        assert (rewards[terminated] > 0).all()
        reached |= terminated
    assert reached.all()


def test_a_player_that_does_not_know_gets_half():
    world = MemoryRoomWorld(1024)
    returns = first_returns(world, guessing(world))
    assert abs(returns.mean() - world.returns().memoryless) < 0.05


def test_random_play():
    world = MemoryRoomWorld(512)
    returns = first_returns(world, random_actions(world))
    assert abs(returns.mean() - world.returns().random) < 0.06


@pytest.mark.parametrize(("sizes", "together"), [(dict(), False), (dict(size=17), False), (dict(size=9), True)], ids=str)
def test_whether_the_object_and_those_at_the_crossing_are_in_view_together(sizes, together):
    # where they are not, no single observation tells where to go
    world = MemoryRoomWorld(1, **sizes)
    size = world.size
    views = world._views.view(len(world._ends), 4, size * size * 4, -1)
    by_room = [[views[:, [objects]] for objects in range(4) if objects & 1 == bit] for bit in (0, 1)]
    shows_room = (torch.cat(by_room[0], 1) != torch.cat(by_room[1], 1)).any(-1).any(1)
    shows_crossing = (views[:, 0] != views[:, 2]).any(-1) | (views[:, 1] != views[:, 3]).any(-1)
    assert shows_room.any()
    assert shows_crossing.any()
    assert (shows_room & shows_crossing).any() == together
    columns = torch.where(shows_room.view(-1, size, size, 4)[-1, size // 2])[0]
    # from there two turns and the rest of the corridor lead to the crossing, size - 7 steps
    assert (columns.max(), world._ends[-1] + 1) == (7, size - 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(size=8), "size must be odd, got 8"),
        (dict(size=5), "size must be a whole number of at least 7, got 5"),
        (dict(start="room"), "unknown start 'room'"),
        (dict(max_steps=0), "max_steps must be a whole number of at least 1, got 0"),
        (dict(random_length=1), "random_length must be true or false, got 1"),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(UsageError, match=message):
        MemoryRoomWorld(1, **kwargs)


def test_at_the_sign_the_object_is_in_view():
    world = MemoryRoomWorld(64, start="sign")
    observations, _ = world.reset(seed=0)
    planes = observations.view(64, memory_room.KINDS, 7, 7)
    assert (planes[:, [KEY, BALL]].sum((1, 2, 3)) == 1).all()
    assert planes[:, BALL].sum((1, 2)).equal((world.objects & 1).float())
