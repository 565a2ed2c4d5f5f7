"""
Ball tracking: one of several balls is marked, then all look alike; keep an eye on it, and follow it with a cursor.

After multiple object tracking, Pylyshyn & Storm, "Tracking multiple independent targets", 1988, with the bouncing balls of
:mod:`rmc_rl.envs.parts.balls`.

Shapes: ``B`` worlds, ``N`` balls, ``G`` cells along the grid.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import BatchedWorld
from rmc_rl.envs.parts import balls, drawing
from rmc_rl.errors import require, require_whole

PERIOD = 10  # frames, of which the last dark_steps hide the balls
_SIDE = 160  # pixels of a picture
_MOVES = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))  # (row, column) of each action


class BallTrackingWorld(BatchedWorld):
    """
    Description
    -----------
    Balls of the same size bounce in a box. For ``marked_steps`` frames one of them is marked, then all look alike. After
    ``hold_steps`` more frames a cursor in the middle of the box can be moved, and should be on the ball that was marked.

    Action Space
    ------------
    ``Discrete(5)``: 0 stay, 1 up, 2 right, 3 down, 4 left, by a cell of the grid. Without effect while the cursor is held.

    Observation Encoding
    --------------------
    ``Box(0, 1, (3 * grid * grid + 1,))``: how far each cell is covered by balls, and by the marked one (zeros later), the cell
    of the cursor, and a 1 when it can be moved. Of every 10 frames the last ``dark_steps`` show no balls.

    Rewards
    -------
    ``1 / free_steps`` for each step after which the cursor's cell is covered by the ball that was marked. So the return is the
    share of the time on the ball.

    Termination
    -----------
    The episode terminates after ``marked_steps + hold_steps + free_steps`` steps. It is never truncated.

    Memory demand
    -------------
    Which ball was marked is needed for ``hold_steps`` steps at least, and changes its place all the time; where balls meet, so
    is the way they went. Return of perfect play: 0.94 for the default (the cursor has to get there). Of a memoryless player
    that follows the nearest ball: 0.49. Of random play: 0.10.

    Registered Configurations
    -------------------------
    ``rmc_rl/BallTracking-v0``: 2 balls, a grid of 4x4. Harder: more balls (up to 16), a finer ``grid``, ``hold_steps``,
    ``dark_steps``.

    :param num_envs: ``B``, copies side by side
    :param n_balls: ``N``, the marked one and the distractors
    :param marked_steps: frames with the mark
    :param hold_steps: frames after that in which the cursor does not move
    :param free_steps: frames after that, which count
    :param dark_steps: frames of every 10 in which no balls are seen, not counting the marked ones
    :param grid: ``G``, cells along a side
    :param speed: of each ball at first, in box lengths per frame
    :param device: where the tensors live
    :param render_mode: None, or "rgb_array": the balls (in the dark on a dark ground), the one to follow in green, the cursor
    :raises UsageError: for numbers outside of these rules
    """

    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    position: Tensor  # (B, N, 2), the marked ball first
    velocity: Tensor  # (B, N, 2)
    radius: Tensor  # (B, N)
    cursor: Tensor  # (B, 2), row and column
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        n_balls: int = 2,
        marked_steps: int = 2,
        hold_steps: int = 4,
        free_steps: int = 12,
        dark_steps: int = 0,
        grid: int = 4,
        speed: float = 0.04,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        for name, value, at_least in (
            ("n_balls", n_balls, 1),
            ("marked_steps", marked_steps, 1),
            ("hold_steps", hold_steps, 0),
            ("free_steps", free_steps, 1),
            ("dark_steps", dark_steps, 0),
            ("grid", grid, 2),
        ):
            require_whole(name, value, at_least)
        balls.ball_range(n_balls)
        require(dark_steps < PERIOD, f"dark_steps must be below the {PERIOD} frames of a period", dark_steps)
        rule = f"speed must be a number above 0 and at most {balls.SMALLEST}"
        require(isinstance(speed, int | float) and 0 < speed <= balls.SMALLEST, rule, speed)
        seen = spaces.Box(0, 1, (3 * grid**2 + 1,), np.float32)
        super().__init__(num_envs, seen, spaces.Discrete(5), device, render_mode)
        self.n_balls, self.marked_steps, self.free_steps, self.dark_steps = n_balls, marked_steps, free_steps, dark_steps
        self.grid, self.speed = grid, float(speed)
        self.first_free = marked_steps + hold_steps  # the first step at which the cursor moves
        self._moves = torch.tensor(_MOVES, device=self.device)
        self._own = torch.arange(num_envs, device=self.device)

    def _draw(self, count: int) -> dict[str, Tensor]:
        drawn = balls.draw_balls(count, self.n_balls, self.n_balls, self.speed, self.generator, same_size=True)
        time = torch.zeros(count, dtype=torch.long, device=self.device)
        return drawn | {"time": time, "cursor": torch.full((count, 2), self.grid // 2, device=self.device)}

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        free = self.time >= self.first_free
        self.cursor = (self.cursor + self._moves[actions] * free.unsqueeze(-1)).clamp(0, self.grid - 1)
        self.position, self.velocity = balls.move(self.position, self.velocity, self.radius)
        self.time = self.time + 1
        marked = balls.coverage(self.position[:, :1], self.radius[:, :1], self.grid)[:, 0]
        on_ball = marked[self._own, self.cursor[:, 0], self.cursor[:, 1]] >= 0.5
        terminated = self.time == self.first_free + self.free_steps
        return (free & on_ball).float() / self.free_steps, terminated, torch.zeros_like(terminated)

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
        colour = drawing.AGENT if self.time[index] >= self.first_free else drawing.WALL
        drawing.outline(frame, self.cursor[index].tolist(), self.grid, colour)
        return frame
