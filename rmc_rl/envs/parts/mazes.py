"""
Mazes of corridors without dead ends, for MiniPacman: one fixed map, and random maps.

A maze is a box of pillars, two cells apart, some of which are joined by walls. Its left half mirrors its right half.

Shapes: ``H`` rows and ``W`` columns, walls around it included; ``P = H * W`` places, counted row by row.
"""

import numpy as np

HEIGHT, WIDTH = 15, 19
FREE_CELLS = 138  # as in the map of Racanière et al. 2017, which Santoro et al. 2018 also use
# stay, right, up, left, down: (row, column)
STEPS = ((0, 0), (0, 1), (-1, 0), (0, -1), (1, 0))

MAP = """
###################
#.....#.....#.....#
#.#.#.#.###.#.#.#.#
#...#.#.....#.#...#
#.###.###.###.###.#
#...#.........#...#
#.#.###########.#.#
#.#...#.....#...#.#
#.#.#.#.#.#.#.#.#.#
#...#.#.....#.#...#
###.#.###.###.#.###
#...#.........#...#
#.###.#.###.#.###.#
#.................#
###################
"""


def fixed_maze() -> np.ndarray:
    """The map above, ``(H, W)`` bool, true for walls."""
    return np.array([[character == "#" for character in line] for line in MAP.split()])


def random_maze(rng: np.random.Generator) -> np.ndarray:
    """
    A random maze with the same number of free cells. Walls are added as long as there is no dead end and all cells stay
    connected.

    :param rng: the source of randomness
    :return: ``(H, W)`` bool, true for walls
    """
    while True:
        walls = np.ones((HEIGHT, WIDTH), dtype=bool)
        walls[1:-1, 1:-1] = False
        walls[2:-1:2, 2:-1:2] = True  # pillars
        rows, columns = np.nonzero(~walls & (np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) % 2 == 1))
        for index in rng.permutation(len(rows)):
            left = (walls.size - walls.sum()) - FREE_CELLS
            row, column = rows[index], columns[index]
            added = {(row, column), (row, WIDTH - 1 - column)}
            if left == 0:
                return walls
            if walls[row, column] or len(added) > left:
                continue
            for place in added:
                walls[place] = True
            if not _is_good(walls):
                for place in added:
                    walls[place] = False


def _is_good(walls: np.ndarray) -> bool:
    """Whether each free cell has two free neighbours, and all are connected."""
    free = ~walls
    beside = np.stack([np.roll(free, step, axis=(0, 1)) for step in STEPS[1:]]).sum(0)
    if (beside[free] < 2).any():
        return False
    reached = np.zeros_like(free)
    reached.flat[np.flatnonzero(free)[0]] = True
    while True:
        grown = free & np.logical_or.reduce([np.roll(reached, step, axis=(0, 1)) for step in STEPS])
        if (grown == reached).all():
            return bool((reached == free).all())
        reached = grown


def neighbours(walls: np.ndarray) -> np.ndarray:
    """
    The place after a step in each direction: the next cell, or the same cell if there is a wall.

    :param walls: ``(H, W)`` bool
    :return: places ``(P, 5)``, in the order of :data:`STEPS`
    """
    places = np.arange(walls.size).reshape(walls.shape)
    ahead = np.stack([np.roll(places, (-down, -across), axis=(0, 1)) for down, across in STEPS], axis=-1).reshape(-1, 5)
    return np.where(walls.ravel()[ahead], np.arange(walls.size)[:, None], ahead)


def distances(walls: np.ndarray) -> np.ndarray:
    """
    Steps from each free cell to each other.

    :param walls: ``(H, W)`` bool
    :return: ``(P, P)`` int16; ``P`` where there is no way
    """
    size = walls.size
    near = np.zeros((size, size), dtype=np.float32)
    near[np.arange(size)[:, None], neighbours(walls)] = 1
    found = np.full((size, size), size, dtype=np.int16)
    reached = np.eye(size, dtype=np.float32)
    for steps in range(size):
        new = (reached > 0) & (found == size)
        if not new.any():
            break
        found[new] = steps
        reached = np.minimum(reached @ near, 1)
    return found
