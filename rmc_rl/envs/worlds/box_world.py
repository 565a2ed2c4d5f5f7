"""
BoxWorld with a partial view: open boxes, each with a key from another box, until the gem is found.

Task: Zambaldi et al., "Relational deep reinforcement learning", 2018, https://arxiv.org/abs/1806.01830, section 4.1; through a
window in Santoro et al., "Relational recurrent neural networks", 2018, https://arxiv.org/abs/1806.01822, section 4.2.

Shapes: ``B`` worlds, ``N = size**2`` cells of the room, ``n = view_size**2`` cells in view, ``C`` colours.
"""

import colorsys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import embedding, one_hot

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing, grid
from rmc_rl.envs.parts.keywords import WholeOrRange, bounds, draw_whole, require_memory, whole, whole_or_range
from rmc_rl.errors import require, require_choice

# a cell's code is 0 where it is empty, else 1 + role * (C + 1) + colour; the colour C is the gem's
LOOSE, SHUT, LOCK, WRONG_LOCK = range(4)  # roles: can be taken, inside a locked box, lock of a right or of a wrong box
GEM_REWARD, BOX_REWARD, WRONG_REWARD = 10.0, 1.0, -1.0  # of the papers
_ROOM = 15  # places for boxes that one box occupies: its own and those that would touch it
_PIXELS = 8  # along a cell, of observations; a window of 5 and the key above it: 48 rows and 40 columns
_LEAST_PIXELS = 36  # along a side, the smallest image for SB3's convolutional network
_CELL = 20  # pixels, of pictures
_ENOUGH_STEPS = 1.5  # for each cell of the room, with which perfect play reached the gem in all levels of the tests


class BoxWorld(BatchedWorld):
    """
    Description
    -----------
    A room contains a loose key and boxes. A box has two cells: the right one is its lock, with the colour of the key that
    opens it; the left one is its content, a key or the gem. The loose key opens the first box, which contains the key to the
    second, and so on to the gem: these 1 to ``max_length`` boxes are the right ones. Up to ``max_distractors`` other boxes
    have the lock of a right box, but contain a key that opens nothing. A key opens one box and is then gone, so an agent that
    opens a wrong box has lost. The agent sees the 5x5 cells around it, and the colour of the key it holds.

    Action Space
    ------------
    ``Discrete(4)``: a step 0 up, 1 right, 2 down, 3 left. A step onto a loose key, or onto the content of an open box, takes
    it. A step onto a lock with the right key opens the box. A step onto another lock, a wall or the content of a locked box
    has no effect.

    Observation Encoding
    --------------------
    ``Box(0, 1, (25 * (C + 2) + C,))``, 154 numbers of 0 or 1 for four colours: for each of the 5x5 cells, row by row,
    ``C + 2``: wall, each colour, gem (a lock and a key of a colour look alike, as in the papers); then the colour of the key
    held, one-hot. ``obs="pixels"``: ``(3, 48, 40)`` uint8, RGB, a square of 8 pixels for each cell, and above them a row whose
    first square has the colour of the key held.

    Rewards
    -------
    10 for the gem, 1 for opening a right box, -1 for opening a wrong one.

    Termination
    -----------
    The episode terminates when the gem is taken or a wrong box is opened. It is truncated after ``max_steps`` steps, because
    no clock is observed.

    Memory demand
    -------------
    The positions of boxes and keys outside the window, and the lock that the key in hand is for, for tens of steps. (The key
    in hand is always shown.) Return of perfect play: 10 plus the number of right boxes, 11.5 on average for the default. The
    best memoryless return is not known: trained memoryless agents got 4.4. Of random play: 0.44.

    Answers
    -------
    A shortest way to the gem, for a player that knows the whole room and which boxes are right.

    Registered Configurations
    -------------------------
    ``rmc_rl/BoxWorld-v0``: a room of 8x8, 1 or 2 right boxes, 0 or 1 wrong ones, 4 colours, 100 steps. The RMC paper's:
    ``size=14, max_length=5, max_distractors=5, n_colours=20``; it reports 98 % of levels solved by RMC and 73 % by a ConvLSTM.
    It does not report after how many steps a level ends.

    :param num_envs: ``B``, number of copies
    :param size: cells along a side of the room
    :param max_length: the largest number of right boxes; the number is uniform from 1 on. Or a range ``[low, high]``, from
        which each episode draws the largest number
    :param max_distractors: the largest number of wrong boxes; the number is uniform from 0 on. Or a range ``[low, high]``
    :param n_colours: ``C``; every key of a room has its own colour
    :param view_size: cells along the window, odd
    :param obs: "planes", or "pixels": an image
    :param max_steps: steps after which the episode is truncated; or a range ``[low, high]``, drawn per episode
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the room, the visible cells on yellow, the key held in the corner
    :raises UsageError: for too few colours, too small a room, an even ``view_size``, or an unknown ``obs``
    """

    truncates = True
    ranges = ("max_length", "max_distractors", "max_steps")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    cells: Tensor  # (B, N), codes
    place: Tensor  # (B,), the agent's cell
    held: Tensor  # (B,), the colour of the key held; C: none
    limit: Tensor  # (B,), steps after which the episode is truncated
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 8,
        max_length: int | Sequence[int] = 2,
        max_distractors: int | Sequence[int] = 1,
        n_colours: int = 4,
        view_size: int = 5,
        obs: str = "planes",
        max_steps: int | Sequence[int] = 100,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        num_envs, size = whole("num_envs", num_envs), whole("size", size, 3)
        self.max_steps = whole_or_range("max_steps", max_steps)
        self.max_length = whole_or_range("max_length", max_length)
        self.max_distractors = whole_or_range("max_distractors", max_distractors, 0)
        n_colours, view_size = whole("n_colours", n_colours), whole("view_size", view_size)
        require(view_size % 2 == 1, "view_size must be odd", view_size)
        require_choice("obs", obs, ("planes", "pixels"))
        boxes, most = bounds(self.max_length)[1] + bounds(self.max_distractors)[1], (size * (size - 1) - 1) // _ROOM
        require(boxes <= most, f"max_length + max_distractors must be at most {most} in a room of {size}x{size}", boxes)
        require(boxes <= n_colours, "max_length + max_distractors must be at most n_colours", boxes)
        n_bytes = max(
            size**4, 8 * num_envs * size**2, 8 * size**2 * view_size**2, 4 * num_envs * view_size**2 * (n_colours + 2)
        )
        require_memory(n_bytes, num_envs=num_envs, size=size, view_size=view_size, n_colours=n_colours)
        self.size, self.n_colours, self.view_size, self.obs = size, n_colours, view_size, obs
        self.gem = self.none = n_colours  # as a colour: the gem's, and that of no key
        shown: spaces.Space[Any] = spaces.Box(0, 1, (view_size**2 * (n_colours + 2) + n_colours,), np.float32)
        self._scale = max(_PIXELS, -(-_LEAST_PIXELS // view_size))
        if obs == "pixels":
            shown = spaces.Box(0, 255, (3, (view_size + 1) * self._scale, view_size * self._scale), np.uint8)
        super().__init__(num_envs, shown, spaces.Discrete(len(grid.MOVES)), device, render_mode)
        self._lay_tables()

    def _lay_tables(self) -> None:
        """The tables that depend only on the sizes."""
        size, colours, device = self.size, self.n_colours, self.device
        cells = torch.arange(size**2)
        rows, columns = (cells // size).unsqueeze(1), (cells % size).unsqueeze(1)
        down, across = torch.tensor(grid.MOVES).T
        self._to = ((rows + down).clamp(0, size - 1) * size + (columns + across).clamp(0, size - 1)).to(device)  # (N, 4)
        # which pairs of boxes, by their left cells, do not touch
        apart = ((rows - rows.T).abs() > 1) | ((columns - columns.T).abs() > 2)
        self._fits = (apart & (columns < size - 1).T).to(device)  # (N, N)
        self._is_left = (columns.squeeze(1) < size - 1).to(device)  # (N,)
        # the look of each code: 0 wall, 1 + colour, 2 + C nothing; the wall has its own code, the last
        self._wall = 1 + 4 * (colours + 1)
        codes = torch.arange(self._wall + 1)
        looks = 1 + (codes - 1) % (colours + 1)
        looks[0], looks[self._wall] = colours + 2, 0
        self._roles = torch.where(codes > 0, (codes - 1) // (colours + 1), -1).to(device)
        self._colours = ((codes - 1) % (colours + 1)).to(device)
        self._looks = one_hot(looks, colours + 3)[:, :-1].float().to(device)
        self._keys = torch.eye(colours + 1)[:, :-1].to(device)
        # the cells in view of each cell, N beyond the wall
        reach = torch.arange(self.view_size) - self.view_size // 2
        row, column = rows.unsqueeze(2) + reach.unsqueeze(1), columns.unsqueeze(2) + reach
        inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
        self._views = torch.where(inside, row * size + column, size**2).flatten(1).to(device)  # (N, n)
        self._rgb = _palette(colours)[looks].to(device)

    def _draw(self, count: int) -> dict[str, Tensor]:
        def chance(n: int) -> Tensor:
            return torch.rand(count, n, generator=self.generator, device=self.device)

        def number(most: WholeOrRange) -> Tensor:
            return (chance(1).squeeze(1) * draw_whole(most, count, self.generator)).long().unsqueeze(1)

        (_, longest), (low, more) = bounds(self.max_length), bounds(self.max_distractors)
        length, n_distractors = 1 + number(self.max_length), number((low + 1, more + 1))
        right, wrong = torch.arange(longest, device=self.device), torch.arange(more, device=self.device)
        keys = chance(self.n_colours).argsort(1)  # the loose one, then those in right boxes, then those in wrong boxes
        held = torch.where(right < length - 1, keys[:, (right + 1).clamp(max=self.n_colours - 1)], self.gem)
        held = torch.cat([held, keys[:, longest : longest + more]], 1)  # (count, boxes)
        copied = (chance(more) * length).long()  # the right box whose lock a wrong one has
        locks = torch.cat([keys[:, :longest], self._code(WRONG_LOCK - LOCK, keys.gather(1, copied)) - 1], 1)
        is_there = torch.cat([right < length, wrong < n_distractors], 1)
        left, right_cells = self._code(SHUT, held) * is_there, self._code(LOCK, locks) * is_there
        places = self._places(chance, 1 + longest + more)
        cells = torch.zeros(count, self.size**2, dtype=torch.long, device=self.device)
        cells.scatter_(1, places, torch.cat([self._code(LOOSE, keys[:, :1]), left], 1))
        cells.scatter_(1, places[:, 1:] + 1, right_cells)
        place = (chance(self.size**2) - (cells > 0).float()).argmax(1)
        times = {"limit": draw_whole(self.max_steps, count, self.generator), "time": torch.zeros_like(place)}
        return {"cells": cells, "place": place, "held": torch.full_like(place, self.none)} | times

    def _code(self, role: int, colour: Tensor) -> Tensor:
        return 1 + role * (self.n_colours + 1) + colour

    def _places(self, chance: Callable[[int], Tensor], n_boxes: int) -> Tensor:
        """
        Left cells of boxes that do not touch, not even at corners, so that every cell around them can be reached.

        :param chance: n -> ``(count, n)``, random numbers from 0 to 1
        :param n_boxes: number of boxes
        :return: ``(count, n_boxes)``
        """
        places = [(chance(self.size**2) * self._is_left).argmax(1)]
        fits = self._fits[places[0]]
        while len(places) < n_boxes:
            places.append((chance(self.size**2) - (~fits).float()).argmax(1))
            fits = fits & self._fits[places[-1]]
        return torch.stack(places, 1)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.time = self.time + 1
        to = self._to[self.place, actions]
        there, beside = to.unsqueeze(1), (to - 1).clamp(min=0).unsqueeze(1)
        code = self.cells.gather(1, there).squeeze(1)
        role, colour = self._roles[code], self._colours[code]
        takes = role == LOOSE
        opens = (role >= LOCK) & (colour == self.held)
        wrong = opens & (role == WRONG_LOCK)
        gem = takes & (colour == self.gem)
        changes = takes | opens
        # the content of an opened box can be taken from now on
        content = self.cells.gather(1, beside) - opens.unsqueeze(1) * (SHUT - LOOSE) * (self.n_colours + 1)
        self.cells.scatter_(1, beside, content)
        self.cells.scatter_(1, there, (code * ~changes).unsqueeze(1))
        self.place = torch.where(changes | (code == 0), to, self.place)
        self.held = torch.where(changes, torch.where(takes, colour, self.none), self.held)
        rewards = GEM_REWARD * gem + BOX_REWARD * (opens & ~wrong) + WRONG_REWARD * wrong
        return rewards, gem | wrong, self.time == self.limit

    def _answers(self) -> Answers:
        roles, colours = self._roles[self.cells], self._colours[self.cells]  # (B, N)
        held = self.held.unsqueeze(1)
        # without a key the next goal is what can be taken, with a key it is the right lock
        goals = torch.where(held == self.none, roles == LOOSE, (roles == LOCK) & (colours == held))
        return Answers(*grid.first_action(grid.steps_to(goals, self.cells == 0, self._to), self._to, self.place))

    def returns(self) -> Returns:
        default = self._has_defaults("size", "max_length", "max_distractors", "n_colours", "view_size", "max_steps")
        mean_length = (1 + sum(bounds(self.max_length)) / 2) / 2
        enough = bounds(self.max_steps)[0] >= _ENOUGH_STEPS * self.size**2
        # a tighter time limit than the default may be too short for a way to the gem
        perfect = GEM_REWARD + BOX_REWARD * mean_length if enough else None
        return Returns(random=0.44 if default else None, perfect=perfect)

    def _seen(self) -> Tensor:
        """Codes of the cells in view, ``(B, n)``."""
        view = self._views[self.place]
        codes = self.cells.gather(1, view.clamp(max=self.size**2 - 1))
        return torch.where(view < self.size**2, codes, self._wall)

    def _observe(self) -> Tensor:
        codes = self._seen()
        if self.obs == "planes":
            return torch.cat([embedding(codes, self._looks).flatten(1), self._keys[self.held]], 1)
        # the row of the key, and below it the window: (B, w + n, 3) -> (B, 3, h, w)
        rows = torch.zeros(len(codes), self.view_size, dtype=torch.long, device=self.device)
        rows[:, 0] = torch.where(self.held == self.none, 0, self._code(LOOSE, self.held))
        cells = self._rgb[torch.cat([rows, codes], 1)].view(-1, self.view_size + 1, self.view_size, 3)
        image: Tensor = cells.permute(0, 3, 1, 2)
        return image.repeat_interleave(self._scale, 2).repeat_interleave(self._scale, 3)

    def _picture(self, index: int) -> np.ndarray:
        size, place, held = self.size, int(self.place[index]), int(self.held[index])
        codes = self.cells[index].cpu().numpy()
        cells = self._rgb[self.cells[index]].cpu().numpy()
        view = self._views[place].cpu().numpy()
        view = view[view < size**2]
        cells[view[codes[view] == 0]] = drawing.NOW
        board = np.full((size + 2, size + 2, 3), drawing.WALL, dtype=np.uint8)
        board[1:-1, 1:-1] = cells.reshape(size, size, 3)
        if held != self.none:
            board[0, 0] = self._rgb[self._code(LOOSE, torch.tensor(held))].cpu().numpy()
        frame = drawing.enlarge(board, _CELL)
        row, column = divmod(place, size)
        drawing.disc(frame, (column + 1.5) * _CELL, (row + 1.5) * _CELL, _CELL / 3, drawing.DARK)
        for lock in np.flatnonzero(codes >= int(self._code(LOCK, torch.tensor(0)))):
            row, column = divmod(int(lock), size)  # a keyhole
            drawing.disc(frame, (column + 1.5) * _CELL, (row + 1.5) * _CELL, _CELL / 8, drawing.DARK)
        return frame


def _palette(n_colours: int) -> Tensor:
    """RGB of the wall, of each colour, of the gem and of nothing, ``(C + 3, 3)`` uint8."""
    keys = [colorsys.hsv_to_rgb(colour / n_colours, 1, 1 - 0.4 * (colour % 2)) for colour in range(n_colours)]
    rows = [drawing.WALL, *(tuple(round(255 * part) for part in key) for key in keys), drawing.DARK, drawing.GRID]
    return torch.tensor(rows, dtype=torch.uint8)
