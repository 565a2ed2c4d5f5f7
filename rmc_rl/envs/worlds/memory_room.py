"""
MiniGrid's memory task, batched: look at an object, go through a corridor, turn to the side with the same object.

Task: ``MiniGrid-Memory*`` of Chevalier-Boisvert et al., "Minigrid & Miniworld", 2023, https://arxiv.org/abs/2306.13831, with
the same maps, moves, views, rewards and ends (the tests compare them).

Shapes: ``B`` worlds, ``L`` lengths of the corridor, ``V = 7`` cells along the view, ``K`` kinds of cells.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing, grid
from rmc_rl.envs.parts.keywords import draw_whole, require_memory, whole, whole_or_range
from rmc_rl.errors import require, require_choice, require_truth

LEFT, RIGHT, FORWARD = range(3)  # actions
NORTH, EAST, SOUTH, WEST = range(4)  # of grid.MOVES
UNSEEN, FLOOR, WALL, KEY, BALL = range(5)  # kinds of cells
KINDS = 5
VIEW = 7
SMALLEST = 7  # sides of the map
STARTS = ("anywhere", "sign")
_SHORTEST = 4  # the first column where a corridor of random length may end
_CELL = 12  # pixels
_COLOURS = {UNSEEN: drawing.DARK, FLOOR: drawing.PAPER, WALL: drawing.WALL, KEY: drawing.FOOD, BALL: drawing.SEEN}


def visible(opaque: np.ndarray) -> np.ndarray:
    """
    Which cells in front of an agent it sees: light spreads from its cell forwards and sideways, not through walls.

    :param opaque: ``(V, V)`` bool, the agent in the middle of the last row
    :return: ``(V, V)`` bool
    """
    size = len(opaque)
    seen = np.zeros_like(opaque)
    seen[-1, size // 2] = True
    for row in range(size - 1, -1, -1):
        for columns, step in ((range(size - 1), 1), (range(size - 1, 0, -1), -1)):
            for column in columns:
                if seen[row, column] and not opaque[row, column]:
                    seen[row, column + step] = True
                    if row > 0:
                        seen[row - 1, column] = seen[row - 1, column + step] = True
    return seen


class MemoryRoomWorld(BatchedWorld):
    """
    Description
    -----------
    In a room at the west end is a key or a ball. A corridor leads east to a crossing, with a key and a ball to the north and
    to the south. The agent must step next to the object that is the same as the one in the room. It sees the 7x7 cells in
    front of it, as far as walls allow. It starts anywhere in the room or the corridor and looks east, so in most episodes it
    must first turn back and look.

    Action Space
    ------------
    ``Discrete(3)``: 0 turn left, 1 turn right, 2 go forward. (MiniGrid's other four actions have no use here.)

    Observation Encoding
    --------------------
    ``Box(0, 1, (245,))``: five planes of 7x7 cells, flattened: unseen, floor, wall, key, ball. The agent is in the middle of
    the last row and looks up.

    Rewards
    -------
    ``1 - 0.9 * steps / max_steps`` for the right object, 0 for the other one.

    Termination
    -----------
    The episode terminates next to either object. It is truncated after ``max_steps`` steps, as in MiniGrid, because no clock
    is observed.

    Memory demand
    -------------
    An agent that starts in the room needs the object ``size - 3`` steps later, at the crossing; one that turns back in the
    corridor sees the object from as far as column 7 and needs it at least ``size - 7`` steps later. Return of perfect play:
    0.98 for the default. Of a memoryless player: half of it, because the object in the room and those at the crossing are
    never visible together. (Below ``size=11``, and in short corridors of random length, the room is visible from the crossing:
    the smaller MiniGrid tasks need less memory.) Of random play: 0.27.

    Answers
    -------
    Until the object in the room has been visible: turn west and go there. Afterwards: the shortest way to the right object.
    So an agent that imitates them also learns to look.

    Registered Configurations
    -------------------------
    ``rmc_rl/MemoryRoom-v0``: ``MiniGrid-MemoryS11``. The other MiniGrid tasks: ``size`` 7, 9, 13 and 17, and 13 and 17 with
    ``random_length=True``. Easier: ``start="sign"``, where the object is visible at first.

    :param num_envs: ``B``, number of copies
    :param size: cells along a side of the map, odd
    :param random_length: whether the length of the corridor is drawn in each episode
    :param start: "anywhere" in the room or the corridor, as in MiniGrid, or "sign", where the object in the room is visible
    :param max_steps: steps after which the episode is truncated; None: ``5 * size ** 2``, as in MiniGrid; or a range
        ``[low, high]``, drawn per episode
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the map from above, the agent in purple, its goal in green
    :raises UsageError: for an even ``size`` or one below 7, an unknown start, or ``max_steps`` below 1
    """

    truncates = True
    ranges = ("max_steps",)
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    layout: Tensor  # (B,), an index of a length of the corridor
    row: Tensor  # (B,), of the agent
    column: Tensor  # (B,)
    direction: Tensor  # (B,), an index of grid.MOVES
    objects: Tensor  # (B,), bit 0: the one in the room is a ball; bit 1: the northern one is
    has_looked: Tensor  # (B,) bool, whether an observation of this episode has shown the object in the room
    limit: Tensor  # (B,), steps after which the episode is truncated
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 11,
        random_length: bool = False,
        start: str = "anywhere",
        max_steps: int | Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.size = size = whole("size", size, SMALLEST)
        require(size % 2 == 1, "size must be odd", size)
        require_truth("random_length", random_length)
        require_choice("start", start, STARTS)
        self.random_length, self.start = bool(random_length), start
        self.max_steps = 5 * size**2 if max_steps is None else whole_or_range("max_steps", max_steps)
        ends = range(_SHORTEST, size - 2) if random_length else [size - 3]
        n_views = len(ends) * 4 * size**2 * 4
        require_memory(4 * n_views * KINDS * VIEW**2, size=size, random_length=random_length)
        seen = spaces.Box(0, 1, (KINDS * VIEW * VIEW,), np.float32)
        super().__init__(num_envs, seen, spaces.Discrete(3), device, render_mode)
        self._maps = np.stack([[self._map(end, objects) for objects in range(4)] for end in ends])  # (L, 4, size, size)
        self._ends = torch.tensor(list(ends), device=self.device)  # column where the corridor ends
        self._walls = torch.from_numpy(self._maps[:, 0] == WALL).to(self.device).flatten()
        self._moves = torch.tensor(grid.MOVES, device=self.device)
        self._views = self._all_views()
        # whether a view differs by the object in the room, so shows it: (L * 4 * size * size * 4,)
        by_objects = self._views.view(len(ends), 4, 4 * size**2, -1)
        shows = (by_objects != by_objects[:, [1, 0, 3, 2]]).any(-1)
        self._shows_room = shows.flatten()

    def _map(self, end: int, objects: int) -> np.ndarray:
        """``(size, size)``; see ``objects`` of the class."""
        size, middle = self.size, self.size // 2
        cells = np.full((size, size), FLOOR)
        cells[0] = cells[-1] = WALL
        cells[:, 0] = cells[:, -1] = WALL
        cells[[middle - 2, middle + 2], 1:5] = WALL  # the room, three cells wide and high, and its door
        cells[[middle - 1, middle + 1], 4] = WALL
        cells[[middle - 1, middle + 1], 5:end] = WALL  # the corridor
        cells[:, end + 2] = WALL  # the crossing
        cells[np.arange(size) != middle, end] = WALL
        room, north = (BALL if objects >> bit & 1 else KEY for bit in (0, 1))
        cells[middle - 1, 1] = room
        cells[middle - 2, end + 1], cells[middle + 2, end + 1] = north, KEY + BALL - north
        return cells

    def _all_views(self) -> Tensor:
        """The view from every place, ``(L * 4 * size * size * 4, K * V * V)`` uint8, in the order of :meth:`_view`."""
        maps = torch.from_numpy(self._maps).flatten(0, 1)  # (L * 4, size, size)
        sides = [torch.arange(self.size)] * 2
        row, column, direction = (each.flatten() for each in torch.meshgrid(*sides, torch.arange(4), indexing="ij"))
        views = []
        for cells in maps:
            around = grid.ahead(cells.expand(len(row), -1, -1), row, column, direction, VIEW, outside=WALL)
            around[:, -1, VIEW // 2] = FLOOR  # the agent's own cell
            seen = torch.from_numpy(np.stack([visible(view) for view in (around == WALL).numpy()]))
            views.append(grid.planes(torch.where(seen, around, UNSEEN), KINDS).byte())
        return torch.cat(views).to(self.device)

    def _draw(self, count: int) -> dict[str, Tensor]:
        def draw(most: int) -> Tensor:
            return torch.randint(most, (count,), generator=self.generator, device=self.device)

        layout, objects = draw(len(self._ends)), draw(4)
        share = torch.rand(count, generator=self.generator, device=self.device)
        column = 1 + (share * self._ends[layout]).long() if self.start == "anywhere" else torch.ones_like(layout)
        return {
            "layout": layout,
            "row": torch.full_like(layout, self.size // 2),
            "column": column,
            "direction": torch.full_like(layout, EAST),
            "objects": objects,
            "has_looked": torch.zeros_like(layout, dtype=torch.bool),
            "limit": draw_whole(self.max_steps, count, self.generator),
            "time": torch.zeros_like(layout),
        }

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turn = (actions == RIGHT).long() - (actions == LEFT).long()
        self.direction = (self.direction + turn) % 4
        ahead = self._moves[self.direction] * (actions == FORWARD).long().unsqueeze(-1)  # (B, 2)
        row, column = self.row + ahead[:, 0], self.column + ahead[:, 1]
        middle, crossing = self.size // 2, self._ends[self.layout] + 1
        in_room = (row == middle - 1) & (column == 1)  # where the object lies; the episode ends before the others
        free = ~self._walls[(self.layout * self.size + row) * self.size + column] & ~in_room
        self.row, self.column = torch.where(free, row, self.row), torch.where(free, column, self.column)
        self.time = self.time + 1
        at_crossing = self.column == crossing
        north, south = (at_crossing & (self.row == middle + side) for side in (-1, 1))
        room_is_north = (self.objects == 0) | (self.objects == 3)
        right = torch.where(room_is_north, north, south)
        return right * (1 - 0.9 * self.time / self.limit), north | south, self.time == self.limit

    def _view(self) -> Tensor:
        """The index of the present view in the tables, ``(B,)``."""
        place = (self.row * self.size + self.column) * 4 + self.direction
        return (self.layout * 4 + self.objects) * (4 * self.size**2) + place

    def _observe(self) -> Tensor:
        view = self._view()
        self.has_looked = self.has_looked | self._shows_room[view]
        return self._views[view].float()

    def _answers(self) -> Answers:
        middle, at_crossing = self.size // 2, self.column == self._ends[self.layout] + 1
        side = torch.where((self.objects == 0) | (self.objects == 3), NORTH, SOUTH)
        to_corridor = torch.where(self.row < middle, SOUTH, NORTH)
        onward = torch.where(at_crossing, side, torch.where(self.row == middle, EAST, to_corridor))
        turn = (torch.where(self.has_looked, onward, WEST) - self.direction) % 4
        # a half turn goes left: from the east over the north, where the object in the room is
        actions = torch.where(turn == 0, FORWARD, torch.where(turn == 1, RIGHT, LEFT))
        return Answers(actions, torch.ones_like(self.has_looked))

    def returns(self) -> Returns:
        default = self._has_defaults("size", "random_length", "start") and self.max_steps == 5 * self.size**2
        return Returns(random=0.27, memoryless=0.49, perfect=0.98) if default else Returns()

    def memory_demand(self) -> int:
        return self.size - 3

    def _picture(self, index: int) -> np.ndarray:
        layout, objects, row, column, direction = (
            int(tensor[index]) for tensor in (self.layout, self.objects, self.row, self.column, self.direction)
        )
        cells = self._maps[layout, objects]
        colours = np.array([_COLOURS[kind] for kind in range(KINDS)], dtype=np.uint8)[cells]
        middle, crossing = self.size // 2, int(self._ends[layout]) + 1
        frame = drawing.enlarge(colours, _CELL, lines=None)
        goal = middle - 1 if objects in (0, 3) else middle + 1
        frame[goal * _CELL : (goal + 1) * _CELL, crossing * _CELL : (crossing + 1) * _CELL] = drawing.GOAL
        x, y = (column + 0.5) * _CELL, (row + 0.5) * _CELL
        down, across = grid.MOVES[direction]
        drawing.disc(frame, x, y, _CELL / 2 - 1, drawing.AGENT)
        drawing.disc(frame, x + across * _CELL / 4, y + down * _CELL / 4, _CELL / 6, drawing.DARK)
        return frame
