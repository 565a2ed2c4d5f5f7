"""
Bouncing balls as a reinforcement-learning problem: observe balls, then mark where they are while they are hidden.

Task: after the predictions of Goyal et al., "Recurrent Independent Mechanisms", 2019, https://arxiv.org/abs/1909.10893,
section 4.2 (15 frames observed, then 35 predicted; trained with 4 balls, tested with 6 to 8, and behind a curtain).

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
from rmc_rl.errors import require, require_choice, require_truth

VIEWS = ("occupancy", "pixels", "state")
CURTAIN = (0.35, 0.65)  # from left to right
SMALLEST_IMAGE = 36  # pixels
_SIDE = 160  # pixels of a picture
_BALLS = (drawing.SEEN, drawing.FOOD, drawing.RIGHT, drawing.AGENT)


class BouncingBallsWorld(BatchedWorld):
    """
    Description
    -----------
    Balls of different size and mass bounce elastically off the walls of a box and each other. The agent observes them for
    ``visible_steps`` frames, and does not observe them for ``dark_steps`` more frames. At each dark step it marks the cells of
    a grid that it expects balls in.

    Action Space
    ------------
    ``MultiBinary(grid * grid)``: 1 for each cell that the agent expects a ball in, row by row. No effect while balls are
    visible.

    Observation Encoding
    --------------------
    ``obs="occupancy"``: ``Box(0, 1, (grid * grid + 1,))``, how far balls cover each cell, and a 1 while the balls are visible;
    zeros in the dark. ``obs="state"``: ``Box(0, 1, (3 * N + 1,))``, x, y and radius of each ball instead. ``obs="pixels"``:
    ``Box(0, 255, (1, size, size), uint8)``, white balls on grey, black in the dark.

    Rewards
    -------
    At each dark step the intersection over union of the marked cells and the covered cells, divided by ``dark_steps``. So the
    return is the mean intersection over union.

    Termination
    -----------
    The episode is a trial of ``visible_steps + dark_steps`` steps and terminates after them. It is never truncated: the
    trial's length is a part of the task, and the return is a mean over it.

    Memory demand
    -------------
    The last visible frames are needed for ``dark_steps`` steps, and the agent must predict the motion. Return of perfect play:
    1. Of a memoryless player: all dark steps look alike, so it marks the same cells at each of them, which gives at best 0.13
    for the default, with the four cells in the middle (found by search in the tests). Of random play: 0.09.

    Answers
    -------
    The covered cells, at each dark step.

    Registered Configurations
    -------------------------
    ``rmc_rl/BouncingBalls-v0``: one ball, a grid of 4x4, 4 visible and 10 dark frames. The RIMs paper: ``n_balls=4, grid=8,
    visible_steps=15, dark_steps=35, obs="pixels"``; tests with ``n_balls=[6, 8]``, and 3 balls with ``curtain=True``.

    :param num_envs: ``B``, number of copies
    :param n_balls: number of balls, at most 16; or a range ``[low, high]``, drawn per episode
    :param visible_steps: frames that are shown; or a range ``[low, high]``
    :param dark_steps: frames that are not shown; or a range ``[low, high]``
    :param grid: ``G``, cells along a side
    :param obs: "occupancy", "pixels" or "state", whose size depends on ``n_balls``
    :param size: pixels along a side of images, at least 36
    :param speed: initial speed of each ball, in box lengths per frame, at most 0.07; or a range ``[low, high]``
    :param curtain: whether a strip in the middle hides the balls behind it (not for ``obs="state"``)
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the balls (on a dark ground while they are hidden), and the marked cells, with a
        green edge if right and a red edge if wrong
    :raises UsageError: for numbers outside these limits, or an unknown ``obs``
    """

    ranges = ("n_balls", "visible_steps", "dark_steps", "speed")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    position: Tensor  # (B, N, 2)
    velocity: Tensor  # (B, N, 2)
    radius: Tensor  # (B, N)
    time: Tensor  # (B,), steps since the episode began
    first_dark: Tensor  # (B,), the first dark step
    n_dark: Tensor  # (B,), dark steps of the episode
    marked: Tensor  # (B, G * G) bool, the cells marked in the last step, for pictures
    right: Tensor  # (B, G * G) bool, those of them that were covered, for pictures

    def __init__(
        self,
        num_envs: int = 1,
        n_balls: int | Sequence[int] = 1,
        visible_steps: int | Sequence[int] = 4,
        dark_steps: int | Sequence[int] = 10,
        grid: int = 4,
        obs: str = "occupancy",
        size: int = 64,
        speed: float | Sequence[float] = 0.06,
        curtain: bool = False,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.n_balls = whole_or_range("n_balls", n_balls, at_most=balls.MOST_BALLS)
        self.visible_steps = whole_or_range("visible_steps", visible_steps)
        self.dark_steps = whole_or_range("dark_steps", dark_steps)
        grid, size = whole("grid", grid, at_least=2), whole("size", size, at_least=SMALLEST_IMAGE)
        require_choice("obs", obs, VIEWS)
        self.speed = number_or_range("speed", speed, above=0, at_most=balls.SMALLEST)
        require_truth("curtain", curtain)
        require(not (curtain and obs == "state"), "curtain must be false with obs='state', which hides nothing", curtain)
        num_envs, (_, most) = whole("num_envs", num_envs), bounds(self.n_balls)
        require_memory(4 * num_envs * most * grid**2, num_envs=num_envs, n_balls=n_balls, grid=grid)
        require_memory(num_envs * most * size**2, num_envs=num_envs, n_balls=n_balls, size=size)
        shapes: dict[str, spaces.Space[Any]] = {
            "occupancy": spaces.Box(0, 1, (grid**2 + 1,), np.float32),
            "state": spaces.Box(0, 1, (3 * most + 1,), np.float32),
            "pixels": spaces.Box(0, 255, (1, size, size), np.uint8),
        }
        super().__init__(num_envs, shapes[obs], spaces.MultiBinary(grid**2), device, render_mode)
        self._most_balls = most
        self.grid, self.obs, self.size, self.curtain = grid, obs, size, curtain

    def _draw(self, count: int) -> dict[str, Tensor]:
        speed = draw_number(self.speed, count, self.generator)
        drawn = balls.draw_balls(count, *bounds(self.n_balls), speed, self.generator, places=self._most_balls)
        marked = torch.zeros(count, self.grid**2, dtype=torch.bool, device=self.device)
        first_dark = draw_whole(self.visible_steps, count, self.generator)
        n_dark = draw_whole(self.dark_steps, count, self.generator)
        times = {"first_dark": first_dark, "n_dark": n_dark, "time": torch.zeros_like(first_dark)}
        return drawn | times | {"marked": marked, "right": marked.clone()}

    def covered(self) -> Tensor:
        """Which cells have a ball in them now, ``(B, G * G)`` bool."""
        return (balls.coverage(self.position, self.radius, self.grid) >= 0.5).any(1).flatten(1)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dark = self.time >= self.first_dark
        marked, covered = actions.bool(), self.covered()
        overlap = (marked & covered).sum(1) / (marked | covered).sum(1)  # some cell is always covered
        rewards = overlap * dark / self.n_dark
        self.marked = marked & dark.unsqueeze(-1)
        self.right = self.marked & covered
        self.position, self.velocity = balls.move(self.position, self.velocity, self.radius)
        self.time = self.time + 1
        terminated = self.time == self.first_dark + self.n_dark
        return rewards, terminated, torch.zeros_like(terminated)

    def _answers(self) -> Answers:
        return Answers(self.covered().to(torch.int8), self.time >= self.first_dark)

    def returns(self) -> Returns:
        default = self._has_defaults("n_balls", "visible_steps", "dark_steps", "grid", "speed")
        return Returns(random=0.09, memoryless=0.13, perfect=1.0) if default else Returns(perfect=1.0)

    def memory_demand(self) -> int:
        return bounds(self.dark_steps)[1]

    def _observe(self) -> Tensor:
        visible = self.time < self.first_dark  # (B,)
        if self.obs == "pixels":
            return self._image() * visible.view(-1, 1, 1, 1)
        if self.obs == "state":
            there = (self.radius > 0).unsqueeze(-1)
            seen = (torch.cat([self.position, self.radius.unsqueeze(-1)], -1) * there).clamp(0, 1).flatten(1)
        else:
            cells = balls.coverage(self.position, self.radius, self.grid).amax(1)
            seen = (cells * self._uncovered(self.grid) if self.curtain else cells).flatten(1)
        return torch.cat([seen, torch.ones_like(seen[:, :1])], 1) * visible.unsqueeze(-1)

    def _uncovered(self, columns: int) -> Tensor:
        """1 for columns that the curtain does not hide, ``(columns,)``."""
        centres = (torch.arange(columns, device=self.device) + 0.5) / columns
        return ((centres < CURTAIN[0]) | (centres > CURTAIN[1])).float()

    def _image(self) -> Tensor:
        """``(B, 1, size, size)`` uint8: balls 255, the ground 64, the curtain 128."""
        centres = (torch.arange(self.size, device=self.device) + 0.5) / self.size
        across = (self.position[..., :1] - centres).square().unsqueeze(-2)  # (B, N, 1, size)
        down = (self.position[..., 1:] - centres).square().unsqueeze(-1)
        inside = across + down < self.radius.square().view(*self.radius.shape, 1, 1)
        image = torch.where(inside.any(1, keepdim=True), 255, 64)
        if self.curtain:
            image = torch.where(self._uncovered(self.size) > 0, image, 128)
        return image.byte()

    def _picture(self, index: int) -> np.ndarray:
        dark = bool(self.time[index] >= self.first_dark[index])
        frame = np.full((_SIDE, _SIDE, 3), drawing.DARK if dark else drawing.PAPER, dtype=np.uint8)
        if self.curtain and not dark:
            frame[:, int(CURTAIN[0] * _SIDE) : int(CURTAIN[1] * _SIDE)] = drawing.GRID
        places = zip(self.position[index].tolist(), self.radius[index].tolist(), strict=True)
        for ball, ((x, y), radius) in enumerate(places):
            if radius > 0:
                drawing.disc(frame, x * _SIDE, y * _SIDE, radius * _SIDE, _BALLS[ball % len(_BALLS)])
        for place in self.marked[index].nonzero().flatten().tolist():  # in the previous step, before the balls moved
            colour = drawing.RIGHT if self.right[index, place] else drawing.WRONG
            drawing.outline(frame, divmod(place, self.grid), self.grid, colour)
        return frame
