"""Mini PacMan: the maze, the rules mode by mode, players that know more and less, and what is in view."""

import numpy as np
import pytest
import torch
from playing import answering, first_returns, random_actions

from rmc_rl.envs.parts import mazes
from rmc_rl.envs.worlds.mini_pacman import MODES, MiniPacmanWorld
from rmc_rl.errors import UsageError

STAY, RIGHT, UP, LEFT, DOWN = range(5)
P = mazes.HEIGHT * mazes.WIDTH


def place(row, column):
    return row * mazes.WIDTH + column


@pytest.mark.parametrize("walls", [mazes.fixed_maze(), *(mazes.random_maze(np.random.default_rng(k)) for k in range(5))])
def test_mazes_are_what_they_say(walls):
    free = ~walls
    assert walls.shape == (15, 19)
    assert free.sum() == 138
    assert walls[[0, -1]].all()
    assert walls[:, [0, -1]].all()
    assert (walls == walls[:, ::-1]).all()
    distances = mazes.distances(walls)
    inside = np.flatnonzero(free)
    assert (distances[np.ix_(inside, inside)] < P).all()  # connected
    ways = mazes.neighbours(walls)
    assert ((ways[inside] != inside[:, None]).sum(1) >= 2).all()  # no dead ends
    for step, (down, across) in enumerate(mazes.STEPS):
        for here in inside[::7]:
            there = here + down * mazes.WIDTH + across
            assert ways[here, step] == (there if free.flat[there] else here)
    # a neighbour is one step nearer or further
    assert set(np.unique(distances[inside[:, None], inside] - distances[ways[inside, 1][:, None], inside])) <= {-1, 0, 1}


def empty(mode="regular", **kwargs):
    """A world whose ghost stands still, far away; food and pills are there too, and Pacman is at (1, 1)."""
    world = MiniPacmanWorld(1, mode=mode, **kwargs)
    world.reset(seed=0)
    world._move_ghosts = lambda: None
    world.pacman[:], world.ghosts[:] = place(1, 1), place(13, 17)
    world.food[:], world.pills[:] = False, False
    world.food[0, place(13, 9)] = world.pills[0, place(13, 9)] = True
    return world


def step(world, action):
    """Reward, and whether the episode terminated."""
    rewards, terminated, truncated = world._advance(torch.tensor([action]))
    assert not truncated.any()
    return pytest.approx(rewards.item(), abs=1e-5), terminated.item()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_rewarded(mode):
    rule, world = MODES[mode], empty(mode)
    world.food[0, place(1, 2)] = world.pills[0, place(1, 3)] = True
    assert step(world, STAY) == (rule.step, False)
    assert step(world, UP) == (rule.step, False)  # a wall
    assert world.pacman == place(1, 1)
    assert step(world, RIGHT) == (rule.step + rule.food, False)
    assert step(world, RIGHT) == (rule.step + rule.pill, False)
    assert world.power == 20
    world.ghosts[0, 0], world.alive[0, 1] = place(1, 4), True  # the other ghost keeps the level from ending
    assert step(world, RIGHT) == (rule.step + rule.ghost, False)
    assert world.alive[0].tolist()[:2] == [False, True]
    world.power[:] = 0
    world.ghosts[0, 1] = place(1, 3)
    assert step(world, LEFT) == (rule.step + rule.death, True)


def test_a_pill_lasts_for_twenty_steps():
    world = empty()
    world.pills[0, place(1, 2)] = True
    step(world, RIGHT)
    powered = []
    for _ in range(21):
        powered.append(bool(world.power > 0))
        step(world, STAY)
    assert powered == [True] * 20 + [False]


@pytest.mark.parametrize(
    ("mode", "clear"),
    [("regular", "food"), ("hunt", "alive"), ("ambush", "alive"), ("rush", "pills"), ("avoid", None)],
)
def test_what_ends_a_level(mode, clear):
    world = empty(mode, max_steps=1000)
    step(world, STAY)
    assert world.level == 1
    if clear is None:
        world.level_time[:] = 127
    else:
        getattr(world, clear)[:] = False
    _, terminated = step(world, STAY)
    assert not terminated
    assert world.level == 2
    assert world.food.sum() == 138  # everything is new
    assert world.pills.sum() == 2
    assert world.alive.sum() == 1
    assert world.level_time == 0


def test_a_level_of_avoid_lasts_for_128_steps():
    world = empty("avoid", max_steps=1000)
    for level in (1, 2):
        for _ in range(128):
            assert world.level == level
            step(world, STAY)
            world._move_ghosts, world.ghosts[:] = (lambda: None), place(13, 17)


def test_pacman_and_ghosts_cannot_pass_each_other():
    rule = MODES["regular"]
    for power in (0, 9):
        world = empty()
        world.power[:], world.ghosts[0, 0] = power, place(1, 2)
        world._move_ghosts = lambda world=world: world.ghosts.fill_(place(1, 1))
        met = rule.ghost if power else rule.death
        assert step(world, RIGHT) == (rule.step + met, not power)  # he walked into it, before it went where he was
        world = empty()
        world.power[:] = power
        world._move_ghosts = lambda world=world: world.ghosts.fill_(place(1, 1))
        assert step(world, STAY) == (rule.step + met, not power)  # it walked into him


def test_ghosts_go_astray_now_and_then():
    world = MiniPacmanWorld(4096)
    world.reset(seed=0)
    world.level[:] = 9  # all move
    distance = world._distances[world.pacman].gather(1, world.ghosts[:, :1])
    world._move_ghosts()
    further = (world._distances[world.pacman].gather(1, world.ghosts[:, :1]) > distance).float().mean()
    assert 0.01 < further < 0.05  # one in 20, where that leads away


def test_pixels():
    world = empty(obs="pixels")

    def near():
        """Colours of the cells around Pacman, ``(5, 5, 3)``."""
        return world._observe()[0, :, 4::8, 4::8].permute(1, 2, 0)

    blank, own, wall = near()[2, 3], near()[2, 2], near()[1, 1]
    here, kinds = place(1, 2), [own, wall, blank]
    world.food[0, here] = True
    kinds.append(near()[2, 3])
    world.pills[0, here] = True
    kinds.append(near()[2, 3])
    world.ghosts[0, 0] = here  # hides what lies there
    kinds.append(near()[2, 3])
    world.power[:] = 3
    kinds.append(near()[2, 3])
    assert len({tuple(kind.tolist()) for kind in kinds}) == 7
    assert blank.eq(0).all()


def test_one_more_ghost_every_second_level():
    world = MiniPacmanWorld(9)
    world.reset(seed=0)
    drawn = world._draw_level(torch.zeros(9, dtype=torch.long), torch.arange(1, 10))
    assert drawn["alive"].sum(1).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5]
    far = world._distances[drawn["pacman"]].gather(1, drawn["ghosts"])
    assert (far >= 5).all()


def test_ghosts_come_nearer_and_flee_from_a_powered_pacman():
    world = MiniPacmanWorld(512)
    world.reset(seed=0)

    def mean_distance():
        return world._distances[world.pacman].gather(1, world.ghosts[:, :1]).float().mean()

    before = mean_distance()
    world._move_ghosts()
    # one in two moves, and of those one in 20 goes astray
    assert abs((before - mean_distance()) - 0.5) < 0.1
    world.power[:] = 5
    before = mean_distance()
    world._move_ghosts()
    assert 0.1 < mean_distance() - before < 0.3
    world.power[:], world.level[:] = 0, 6
    before = world.ghosts.clone()
    world._move_ghosts()
    assert ((before != world.ghosts)[:, 0]).float().mean() > 0.97  # at level 6 it moves always


def test_what_is_in_view():
    world = empty()
    world.food[0, place(2, 1)], world.pills[0, place(3, 3)], world.ghosts[0, 0] = True, True, place(1, 3)
    planes = world._observe().view(6, 5, 5)
    assert np.argwhere(planes[1].numpy()).tolist() == [[3, 2]]
    assert np.argwhere(planes[2].numpy()).tolist() == [[2, 2]]
    assert np.argwhere(planes[3].numpy()).tolist() == [[2, 4]]
    assert np.argwhere(planes[5].numpy()).tolist() == [[4, 4]]
    assert planes[0, :2].all()  # beyond the maze
    assert planes[0, :, :2].all()
    walls = mazes.fixed_maze()
    assert planes[0, 2:, 2:].bool().numpy().tolist() == walls[1:4, 1:4].tolist()
    world.power[:] = 3
    assert world._observe().view(6, 5, 5)[4, 2, 4] == 1
    full = MiniPacmanWorld(1, view="full")
    full.reset(seed=0)
    planes = full._observe().view(6, 15, 19)
    assert planes[0].bool().numpy().tolist() == walls.tolist()
    assert planes[1].sum() == 138
    pixels = MiniPacmanWorld(2, obs="pixels")
    assert pixels.reset(seed=0)[0].shape == (2, 3, 40, 40)


def seeing(world, seed=0):
    """The world's scripted player if it knows only what is visible, and otherwise moves at random."""
    rng = torch.Generator().manual_seed(seed)

    def act(_):
        seen = torch.zeros_like(world.food).scatter_(1, world._views[world.pacman], True)
        return world.greedy(seen, torch.rand(world.num_envs, 5, generator=rng))

    return act


def test_players_that_know_more_get_more():
    world = MiniPacmanWorld(256)
    assert abs(first_returns(world, answering(world)).mean() - 147) < 8
    assert abs(first_returns(world, seeing(world)).mean() - world.returns().memoryless) < 8
    assert abs(first_returns(world, random_actions(world)).mean() - world.returns().random) < 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(mode="hunting"), "unknown mode 'hunting'; did you mean 'hunt'"),
        (dict(view_size=4), "view_size must be odd, got 4"),
        (dict(view_size=3, obs="pixels"), "view_size must be at least 5 with obs='pixels', got 3"),
        (dict(n_mazes=-1), "n_mazes must be a whole number of at least 0, got -1"),
        (dict(max_steps=0), "max_steps must be a whole number of at least 1, got 0"),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(UsageError, match=message):
        MiniPacmanWorld(1, **kwargs)


def test_episodes_draw_from_the_mazes():
    world = MiniPacmanWorld(64, n_mazes=3)
    world.reset(seed=0)
    assert set(world.maze.tolist()) == {0, 1, 2}
    assert len(np.unique(world.walls.numpy(), axis=0)) == 3
    assert not MiniPacmanWorld(1, n_mazes=3, maze_seed=1).walls.equal(world.walls)
    assert not world.walls[world.maze, world.pacman].any()
