"""
Ball tracking: one of several balls is marked, then all look alike; follow the marked ball with a cursor.

After multiple object tracking, Pylyshyn & Storm, "Tracking multiple independent targets", 1988, with the bouncing balls of
:mod:`rmc_rl.envs.parts.balls`.

Shapes: ``B`` worlds, ``N`` places for balls, ``G`` cells along the grid.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import balls, drawing
from rmc_rl.envs.parts.keywords import (
    bounds,
    draw_number,
    draw_whole,
    number_or_range,
    require_memory,
    whole,
    whole_or_range,
)
from rmc_rl.errors import require

PERIOD = 10  # frames, of which the last dark_steps hide the balls
_SIDE = 160  # pixels of a picture
_KEYWORDS = ("n_balls", "marked_steps", "hold_steps", "free_steps", "dark_steps", "grid", "speed")
_MOVES = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))  # (row, column) of each action


class BallTrackingWorld(BatchedWorld):
    """
    Description
    -----------
    Balls of the same size bounce in a box. For ``marked_steps`` frames one of them is marked; afterwards all look alike. After
    ``hold_steps`` more frames the agent can move a cursor, which starts in the middle of the box, and should keep it on the
    ball that was marked.

    Action Space
    ------------
    ``Discrete(5)``: 0 stay, 1 up, 2 right, 3 down, 4 left, by one cell of the grid. No effect while the cursor is held.

    Observation Encoding
    --------------------
    ``Box(0, 1, (3 * grid * grid + 1,))``: how far balls cover each cell, how far the marked ball covers it (later zeros), the
    cell of the cursor, and a 1 when the cursor can be moved. Of every 10 frames the last ``dark_steps`` show no balls.

    Rewards
    -------
    ``1 / free_steps`` for each step after which the ball that was marked covers the cursor's cell. So the return is the
    fraction of the time on the ball.

    Termination
    -----------
    The episode is a trial of ``marked_steps + hold_steps + free_steps`` steps and terminates after them. It is never
    truncated: the trial's length is a part of the task, and the return is a fraction of it.

    Memory demand
    -------------
    Which ball was marked is needed until the end, ``hold_steps + free_steps`` steps later, and its position changes all the
    time. If balls meet, their directions are needed too. Return of perfect play: 0.94 for the default (the cursor needs time
    to reach the ball). Of a memoryless player that follows the nearest ball: 0.49. Of random play: 0.10.

    Answers
    -------
    The action that brings the cursor nearest to where the marked ball will be, while the cursor can be moved.

    Registered Configurations
    -------------------------
    ``rmc_rl/BallTracking-v0``: 2 balls, a grid of 4x4. Harder: more balls (up to 16), a finer ``grid``, ``hold_steps``,
    ``dark_steps``.

    :param num_envs: ``B``, number of copies
    :param n_balls: the marked ball and the others, at most 16; or a range ``[low, high]``, drawn per episode
    :param marked_steps: frames with the mark
    :param hold_steps: frames after them in which the cursor does not move; or a range ``[low, high]``
    :param free_steps: frames after them, which count; or a range ``[low, high]``
    :param dark_steps: frames of every 10 in which no balls are shown, not counting the marked frames
    :param grid: ``G``, cells along a side
    :param speed: initial speed of each ball, in box lengths per frame, at most 0.07; or a range ``[low, high]``
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the balls (on a dark ground while they are hidden), the marked ball in green, the
        cursor
    :raises UsageError: for numbers outside these limits
    """

    ranges = ("n_balls", "hold_steps", "free_steps", "speed")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    position: Tensor  # (B, N, 2), the marked ball first
    velocity: Tensor  # (B, N, 2)
    radius: Tensor  # (B, N)
    cursor: Tensor  # (B, 2), row and column
    first_free: Tensor  # (B,), the first step at which the cursor moves
    n_free: Tensor  # (B,), steps after which the trial ends from there on
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        n_balls: int | Sequence[int] = 2,
        marked_steps: int = 2,
        hold_steps: int | Sequence[int] = 4,
        free_steps: int | Sequence[int] = 12,
        dark_steps: int = 0,
        grid: int = 4,
        speed: float | Sequence[float] = 0.04,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.n_balls = whole_or_range("n_balls", n_balls, at_most=balls.MOST_BALLS)
        self._most_balls = bounds(self.n_balls)[1]
        self.marked_steps, self.free_steps = whole("marked_steps", marked_steps), whole_or_range("free_steps", free_steps)
        self.hold_steps = whole_or_range("hold_steps", hold_steps, at_least=0)
        self.dark_steps, self.grid = whole("dark_steps", dark_steps, at_least=0), whole("grid", grid, at_least=2)
        require(self.dark_steps < PERIOD, f"dark_steps must be below the {PERIOD} frames of a period", dark_steps)
        self.speed = number_or_range("speed", speed, above=0, at_most=balls.SMALLEST)
        num_envs = whole("num_envs", num_envs)
        require_memory(4 * num_envs * (self._most_balls + 3) * self.grid**2, num_envs=num_envs, grid=grid)
        seen = spaces.Box(0, 1, (3 * self.grid**2 + 1,), np.float32)
        super().__init__(num_envs, seen, spaces.Discrete(5), device, render_mode)
        self._moves = torch.tensor(_MOVES, device=self.device)
        self._own = torch.arange(num_envs, device=self.device)

    def _draw(self, count: int) -> dict[str, Tensor]:
        speed = draw_number(self.speed, count, self.generator)
        least, most = bounds(self.n_balls)
        drawn = balls.draw_balls(count, least, most, speed, self.generator, same_size=True, places=self._most_balls)
        first_free = self.marked_steps + draw_whole(self.hold_steps, count, self.generator)
        cursor = torch.full((count, 2), self.grid // 2, device=self.device)
        times = {"first_free": first_free, "n_free": draw_whole(self.free_steps, count, self.generator)}
        return drawn | times | {"time": torch.zeros_like(first_free), "cursor": cursor}

    def _answers(self) -> Answers:
        ahead, _ = balls.move(self.position, self.velocity, self.radius)
        cells = (self.cursor.unsqueeze(1) + self._moves).clamp(0, self.grid - 1)  # after each action, (B, 5, 2)
        centres = (cells.float().flip(-1) + 0.5) / self.grid  # x and y
        return Answers((centres - ahead[:, :1]).norm(dim=-1).argmin(1), self.time >= self.first_free)

    def returns(self) -> Returns:
        default = self._has_defaults(*_KEYWORDS)
        return Returns(random=0.10, memoryless=0.49, perfect=0.94) if default else Returns()

    def memory_demand(self) -> int:
        return bounds(self.hold_steps)[1] + bounds(self.free_steps)[1]

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        free = self.time >= self.first_free
        self.cursor = (self.cursor + self._moves[actions] * free.unsqueeze(-1)).clamp(0, self.grid - 1)
        self.position, self.velocity = balls.move(self.position, self.velocity, self.radius)
        self.time = self.time + 1
        marked = balls.coverage(self.position[:, :1], self.radius[:, :1], self.grid)[:, 0]
        on_ball = marked[self._own, self.cursor[:, 0], self.cursor[:, 1]] >= 0.5
        terminated = self.time == self.first_free + self.n_free
        return (free & on_ball).float() / self.n_free, terminated, torch.zeros_like(terminated)

    def visible(self) -> Tensor:
        """Which copies show their balls now, ``(B,)`` bool."""
        since = self.time - self.marked_steps
        return (since < 0) | (since % PERIOD < PERIOD - self.dark_steps)

    def _observe(self) -> Tensor:
        cover = balls.coverage(self.position, self.radius, self.grid).flatten(2)  # (B, N, G * G)
        marked = cover[:, 0] * (self.time < self.marked_steps).unsqueeze(-1)
        cursor = torch.nn.functional.one_hot(self.cursor[:, 0] * self.grid + self.cursor[:, 1], self.grid**2)
        free = (self.time >= self.first_free).float().unsqueeze(-1)
        return torch.cat([cover.amax(1) * self.visible().unsqueeze(-1), marked, cursor.float(), free], 1)

    def _picture(self, index: int) -> np.ndarray:
        ground = drawing.PAPER if self.visible()[index] else drawing.DARK
        frame = np.full((_SIDE, _SIDE, 3), ground, dtype=np.uint8)
        places = zip(self.position[index].tolist(), self.radius[index].tolist(), strict=True)
        for ball, ((x, y), radius) in enumerate(places):
            drawing.disc(frame, x * _SIDE, y * _SIDE, radius * _SIDE, drawing.SEEN if ball else drawing.GOAL)
            if ball == 0 and self.time[index] < self.marked_steps:
                drawing.disc(frame, x * _SIDE, y * _SIDE, radius * _SIDE / 2, drawing.NOW)
        colour = drawing.AGENT if self.time[index] >= self.first_free[index] else drawing.WALL
        drawing.outline(frame, self.cursor[index].tolist(), self.grid, colour)
        return frame
