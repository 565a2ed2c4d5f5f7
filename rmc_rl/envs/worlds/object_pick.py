"""
Object picking: fetch the object that was named at the start, among others that are not it.

Task: after BabyAI's object picking, as in Goyal et al., "Recurrent Independent Mechanisms", 2019,
https://arxiv.org/abs/1909.10893, section 4.3 (trained with known distractors, tested with more and unseen ones).

Shapes: ``B`` worlds, ``M`` objects, ``V = 7`` cells along the view.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import embedding, one_hot

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing, grid
from rmc_rl.envs.parts.keywords import bounds, draw_whole, require_memory, whole, whole_or_range
from rmc_rl.errors import require, require_truth

LEFT, RIGHT, FORWARD = range(3)  # actions
FLOOR, WALL, FIRST_OBJECT = range(3)  # cells; an object is FIRST_OBJECT + shape * N_COLOURS + colour
SHAPES, COLOURS = ("ball", "box", "key"), ("blue", "green", "orange", "purple")
N_SHAPES, N_COLOURS = len(SHAPES), len(COLOURS)
N_OBJECTS = N_SHAPES * N_COLOURS
VIEW = 7
_LOOKS = 2 + N_SHAPES + N_COLOURS
_CELL = 24  # pixels
_RGB = (drawing.SEEN, drawing.RIGHT, drawing.FOOD, drawing.AGENT)


class ObjectPickWorld(BatchedWorld):
    """
    Description
    -----------
    A room contains ``1 + n_distractors`` different objects, each a ball, a box or a key in one of four colours. One of them is
    named in the first step. The agent must go there: it picks the first object that it walks into. It sees the 7x7 cells in
    front of it.

    Action Space
    ------------
    ``Discrete(3)``: 0 turn left, 1 turn right, 2 go forward.

    Observation Encoding
    --------------------
    ``Box(0, 1, (448,))``: for each of the 7x7 cells, row by row, nine numbers of 0 or 1: floor, wall, the three shapes, the
    four colours (the agent is in the middle of the last row and looks up). Then the shape and the colour of the named object,
    one-hot, zeros while they are not shown.

    Rewards
    -------
    ``1 - 0.5 * steps / max_steps`` for the named object, 0 for another one.

    Termination
    -----------
    The episode terminates when an object is picked. It is truncated after ``max_steps`` steps, because no clock is observed.

    Memory demand
    -------------
    The name is needed until the object is found, a few steps later, and so is what was visible on the way. Return of perfect
    play: 0.95. A memoryless player knows the name only in the first step and can at most turn to the object then. A player
    that does so and then takes the nearest visible object gets 0.62. Of random play: 0.21.

    Answers
    -------
    A shortest way to the named object around the others, for a player that knows the whole room. Unknown if there is no way.

    Registered Configurations
    -------------------------
    ``rmc_rl/ObjectPick-v0``: one distractor in a room of 5x5. Train with few and test with many: ``n_distractors`` up to 11.
    With new ones: ``held_out=3`` removes the last three of the twelve objects from training, ``only_held_out=True`` uses only
    them as distractors.

    :param num_envs: ``B``, number of copies
    :param size: cells along a side of the room
    :param n_distractors: objects besides the named one; or a range ``[low, high]``, drawn per episode
    :param held_out: how many of the twelve objects never appear
    :param only_held_out: whether the distractors are those held out, instead
    :param show_always: whether the name is shown at every step, so that it need not be remembered
    :param max_steps: steps after which the episode is truncated; or a range ``[low, high]``
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the room from above, the named object on yellow, the agent dark
    :raises UsageError: for a ``size`` below 3, or too few objects or places
    """

    truncates = True
    ranges = ("n_distractors", "max_steps")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    cells: Tensor  # (B, size, size)
    target: Tensor  # (B,), the named object, of N_OBJECTS
    row: Tensor  # (B,), of the agent
    column: Tensor  # (B,)
    direction: Tensor  # (B,), an index of grid.MOVES
    limit: Tensor  # (B,), steps after which the episode is truncated
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 5,
        n_distractors: int | Sequence[int] = 1,
        held_out: int = 0,
        only_held_out: bool = False,
        show_always: bool = False,
        max_steps: int | Sequence[int] = 50,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        size, held_out = whole("size", size, 3), whole("held_out", held_out, 0)
        self.max_steps = whole_or_range("max_steps", max_steps)
        self.n_distractors = whole_or_range("n_distractors", n_distractors)
        self._most_distractors = bounds(self.n_distractors)[1]
        require_truth("only_held_out", only_held_out)
        require_truth("show_always", show_always)
        known = N_OBJECTS - held_out
        require(known >= 1, f"held_out must leave one of the {N_OBJECTS} objects", held_out)
        most = held_out if only_held_out else known - 1
        require(self._most_distractors <= most, f"n_distractors must be at most the {most} objects there are", n_distractors)
        room = size**2 - 2  # for distractors, beside agent and object
        require(
            self._most_distractors <= room, f"n_distractors must be at most {room} in a room of {size}x{size}", n_distractors
        )
        num_envs = whole("num_envs", num_envs)
        require_memory(8 * num_envs * size**2, num_envs=num_envs, size=size)
        features = _LOOKS * VIEW**2 + N_SHAPES + N_COLOURS
        super().__init__(num_envs, spaces.Box(0, 1, (features,), np.float32), spaces.Discrete(3), device, render_mode)
        self.size, self.show_always = size, show_always
        self.held_out, self.known, self.only_held_out = held_out, known, only_held_out
        self._moves = torch.tensor(grid.MOVES, device=self.device)
        looks = torch.zeros(FIRST_OBJECT + N_OBJECTS, _LOOKS)  # of each kind of cell
        looks[FLOOR, FLOOR] = looks[WALL, WALL] = 1
        kinds = torch.arange(N_OBJECTS)
        looks[FIRST_OBJECT:, 2 : 2 + N_SHAPES] = one_hot(kinds // N_COLOURS, N_SHAPES).float()
        looks[FIRST_OBJECT:, 2 + N_SHAPES :] = one_hot(kinds % N_COLOURS, N_COLOURS).float()
        self._looks = looks.to(self.device)
        self._names = self._looks[FIRST_OBJECT:, 2:].contiguous()
        self._ways = self._all_ways()

    def _all_ways(self) -> Tensor:
        """The state after each action, ``(S, 3)``. A state is a cell times four plus a direction: ``S = 4 * size ** 2``."""
        states = torch.arange(4 * self.size**2, device=self.device)
        cell, direction = states // 4, states % 4
        ahead = self._moves[direction]
        row = (cell // self.size + ahead[:, 0]).clamp(0, self.size - 1)
        column = (cell % self.size + ahead[:, 1]).clamp(0, self.size - 1)
        turned = [cell * 4 + (direction + turn) % 4 for turn in (-1, 1)]
        return torch.stack([*turned, (row * self.size + column) * 4 + direction], 1)

    def _answers(self) -> Answers:
        cells = self.cells.flatten(1).repeat_interleave(4, 1)  # (B, S)
        steps = grid.steps_to(cells == FIRST_OBJECT + self.target.unsqueeze(1), cells == FLOOR, self._ways)
        state = (self.row * self.size + self.column) * 4 + self.direction
        return Answers(*grid.first_action(steps, self._ways, state))

    def returns(self) -> Returns:
        default = self._has_defaults("size", "n_distractors", "held_out", "only_held_out", "show_always", "max_steps")
        return Returns(random=0.21, memoryless=0.62, perfect=0.95) if default else Returns()

    def _draw(self, count: int) -> dict[str, Tensor]:
        def shuffled(most: int) -> Tensor:
            return torch.rand(count, most, generator=self.generator, device=self.device).argsort(1)

        order = shuffled(self.known)
        others = self.known + shuffled(N_OBJECTS - self.known) if self.only_held_out else order[:, 1:]
        most = self._most_distractors
        objects = torch.cat([order[:, :1], others[:, :most]], 1)  # (count, M), the named one first
        places = shuffled(self.size**2)[:, : 2 + most]
        is_there = torch.arange(most + 1, device=self.device) <= draw_whole(self.n_distractors, count, self.generator)[:, None]
        cells = torch.full((count, self.size**2), FLOOR, device=self.device)
        cells.scatter_(1, places[:, 1:], torch.where(is_there, FIRST_OBJECT + objects, FLOOR))
        direction = torch.randint(4, (count,), generator=self.generator, device=self.device)
        return {
            "cells": cells.view(-1, self.size, self.size),
            "target": objects[:, 0].clone(),
            "row": places[:, 0] // self.size,
            "column": places[:, 0] % self.size,
            "direction": direction,
            "limit": draw_whole(self.max_steps, count, self.generator),
            "time": torch.zeros_like(direction),
        }

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turn = (actions == RIGHT).long() - (actions == LEFT).long()
        self.direction = (self.direction + turn) % 4
        ahead = self._moves[self.direction] * (actions == FORWARD).long().unsqueeze(-1)  # (B, 2)
        self.row = (self.row + ahead[:, 0]).clamp(0, self.size - 1)
        self.column = (self.column + ahead[:, 1]).clamp(0, self.size - 1)
        self.time = self.time + 1
        place = (self.row * self.size + self.column).unsqueeze(-1)
        found = self.cells.flatten(1).gather(1, place).squeeze(-1) - FIRST_OBJECT
        rewards = (found == self.target) * (1 - 0.5 * self.time / self.limit)
        return rewards, found >= 0, self.time == self.limit

    def _observe(self) -> Tensor:
        around = grid.ahead(self.cells, self.row, self.column, self.direction, VIEW, WALL)
        cells = embedding(around, self._looks)  # (B, V, V, 9)
        name = self._names[self.target]
        if not self.show_always:
            name = name * (self.time == 0).unsqueeze(-1)
        return torch.cat([cells.flatten(1), name], 1)

    def _picture(self, index: int) -> np.ndarray:
        cells = self.cells[index].cpu().numpy()
        colours = np.full((self.size, self.size, 3), drawing.PAPER, dtype=np.uint8)
        colours[cells == FIRST_OBJECT + int(self.target[index])] = drawing.NOW
        frame = drawing.enlarge(colours, _CELL)
        for row, column in np.argwhere(cells >= FIRST_OBJECT).tolist():
            shape, colour = divmod(int(cells[row, column]) - FIRST_OBJECT, N_COLOURS)
            x, y = (column + 0.5) * _CELL, (row + 0.5) * _CELL
            top, left = row * _CELL, column * _CELL
            if SHAPES[shape] == "ball":
                drawing.disc(frame, x, y, _CELL / 3, _RGB[colour])
            elif SHAPES[shape] == "box":
                frame[top + 4 : top + _CELL - 3, left + 4 : left + _CELL - 3] = _RGB[colour]
            else:  # a key: a ring, a stem and two teeth
                drawing.disc(frame, x, y - 4, 5, _RGB[colour])
                drawing.disc(frame, x, y - 4, 2, drawing.PAPER)
                frame[top + 12 : top + 21, left + 11 : left + 14] = _RGB[colour]
                frame[top + 16 : top + 20 : 3, left + 11 : left + 18] = _RGB[colour]
        down, across = grid.MOVES[int(self.direction[index])]
        x, y = (int(self.column[index]) + 0.5) * _CELL, (int(self.row[index]) + 0.5) * _CELL
        drawing.disc(frame, x, y, _CELL / 3, drawing.DARK)
        drawing.disc(frame, x + across * _CELL / 4, y + down * _CELL / 4, _CELL / 8, drawing.WRONG)
        return frame
