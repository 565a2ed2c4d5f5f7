"""
Bouncing balls as a reinforcement-learning problem: watch balls, then say where they are while it is dark.

Task: after the predictions of Goyal et al., "Recurrent Independent Mechanisms", 2019, https://arxiv.org/abs/1909.10893,
section 4.2 (15 frames seen, then 35 predicted; trained with 4 balls, tested with 6 to 8, and behind a curtain).

Shapes: ``B`` worlds, ``N`` places for balls, ``G`` cells along the grid.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import BatchedWorld
from rmc_rl.envs.parts import balls, drawing
from rmc_rl.errors import require, require_choice, require_truth, require_whole

VIEWS = ("occupancy", "pixels", "state")
CURTAIN = (0.35, 0.65)  # from left to right
SMALLEST_IMAGE = 36  # pixels
_SIDE = 160  # pixels of a picture
_BALLS = (drawing.SEEN, drawing.FOOD, drawing.RIGHT, drawing.AGENT)


class BouncingBallsWorld(BatchedWorld):
    """
    Description
    -----------
    Balls of different size and mass bounce elastically off the walls of a box and each other. For ``visible_steps`` frames the
    agent sees them, for ``dark_steps`` more it does not. At each dark step it says which cells of a grid have a ball in them.

    Action Space
    ------------
    ``MultiBinary(grid * grid)``: 1 where the agent thinks a ball is, row by row. Without effect while balls are visible.

    Observation Encoding
    --------------------
    ``obs="occupancy"``: ``Box(0, 1, (grid * grid + 1,))``, how far each cell is covered, and a 1 that says that the balls are
    visible; zeros in the dark. ``obs="state"``: ``Box(0, 1, (3 * N + 1,))``, x, y and radius of each ball instead.
    ``obs="pixels"``: ``Box(0, 255, (1, size, size), uint8)``, white balls on grey, black in the dark.

    Rewards
    -------
    At each dark step the intersection over union of the cells said and the cells covered, divided by ``dark_steps``. So the
    return is the mean intersection over union.

    Termination
    -----------
    The episode terminates after ``visible_steps + dark_steps`` steps. It is never truncated.

    Memory demand
    -------------
    The last frames that were seen are needed for ``dark_steps`` steps, and the balls must be moved on in the mind. Return of
    perfect play: 1. Of a memoryless player: all dark steps look alike to it, so it says the same cells at each: at best
    0.13 for the default, the four cells in the middle (found by search in the tests). Of random play: 0.09.

    Registered Configurations
    -------------------------
    ``rmc_rl/BouncingBalls-v0``: one ball, a grid of 4x4, 4 frames seen and 10 predicted. The RIMs paper: ``n_balls=4, grid=8,
    visible_steps=15, dark_steps=35, obs="pixels"``; tests with ``n_balls=[6, 8]``, and 3 balls with ``curtain=True``.

    :param num_envs: ``B``, copies side by side
    :param n_balls: how many balls, or the least and the most, as in ``[6, 8]``
    :param visible_steps: frames that are seen
    :param dark_steps: frames that are not
    :param grid: ``G``, cells along a side
    :param obs: "occupancy", "pixels" or "state"; the last one has a size that goes with ``n_balls``
    :param size: pixels along a side of images
    :param speed: of each ball at first, in box lengths per frame
    :param curtain: whether a strip in the middle hides what is behind it (not for ``obs="state"``)
    :param device: where the tensors live
    :param render_mode: None, or "rgb_array": the balls (in the dark on a dark ground), and the cells that were said, ringed
        green where right and red where wrong
    :raises UsageError: for numbers below 1, more than 16 balls, or an unknown ``obs``
    """

    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    position: Tensor  # (B, N, 2)
    velocity: Tensor  # (B, N, 2)
    radius: Tensor  # (B, N)
    time: Tensor  # (B,), steps since the episode began
    said: Tensor  # (B, G * G), for pictures

    def __init__(
        self,
        num_envs: int = 1,
        n_balls: int | Sequence[int] = 1,
        visible_steps: int = 4,
        dark_steps: int = 10,
        grid: int = 4,
        obs: str = "occupancy",
        size: int = 64,
        speed: float = 0.06,
        curtain: bool = False,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.least, self.most = balls.ball_range(n_balls)
        for name, value, at_least in (
            ("visible_steps", visible_steps, 1),
            ("dark_steps", dark_steps, 1),
            ("grid", grid, 2),
            ("size", size, SMALLEST_IMAGE),
        ):
            require_whole(name, value, at_least)
        require_choice("obs", obs, VIEWS)
        rule = f"speed must be a number above 0 and at most {balls.SMALLEST}"
        require(isinstance(speed, int | float) and 0 < speed <= balls.SMALLEST, rule, speed)
        require_truth("curtain", curtain)
        require(not (curtain and obs == "state"), "curtain must be false with obs='state', which hides nothing", curtain)
        shapes: dict[str, spaces.Space[Any]] = {
            "occupancy": spaces.Box(0, 1, (grid**2 + 1,), np.float32),
            "state": spaces.Box(0, 1, (3 * self.most + 1,), np.float32),
            "pixels": spaces.Box(0, 255, (1, size, size), np.uint8),
        }
        super().__init__(num_envs, shapes[obs], spaces.MultiBinary(grid**2), device, render_mode)
        self.visible_steps, self.dark_steps, self.grid = visible_steps, dark_steps, grid
        self.obs, self.size, self.speed, self.curtain = obs, size, float(speed), curtain

    def _draw(self, count: int) -> dict[str, Tensor]:
        drawn = balls.draw_balls(count, self.least, self.most, self.speed, self.generator)
        time = torch.zeros(count, dtype=torch.long, device=self.device)
        said = torch.zeros(count, self.grid**2, dtype=torch.bool, device=self.device)
        return drawn | {"time": time, "said": said, "right": said.clone()}

    def covered(self) -> Tensor:
        """Which cells have a ball in them now, ``(B, G * G)`` bool."""
        return (balls.coverage(self.position, self.radius, self.grid) >= 0.5).any(1).flatten(1)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dark = self.time >= self.visible_steps
        said, covered = actions.bool(), self.covered()
        overlap = (said & covered).sum(1) / (said | covered).sum(1)  # some cell is always covered
        rewards = overlap * dark / self.dark_steps
        self.said = said & dark.unsqueeze(-1)
        self.right = self.said & covered
        self.position, self.velocity = balls.move(self.position, self.velocity, self.radius)
        self.time = self.time + 1
        terminated = self.time == self.visible_steps + self.dark_steps
        return rewards, terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        visible = self.time < self.visible_steps  # (B,)
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
        """1 for columns that the curtain leaves free, ``(columns,)``."""
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
        dark = int(self.time[index]) >= self.visible_steps
        frame = np.full((_SIDE, _SIDE, 3), drawing.DARK if dark else drawing.PAPER, dtype=np.uint8)
        if self.curtain and not dark:
            frame[:, int(CURTAIN[0] * _SIDE) : int(CURTAIN[1] * _SIDE)] = drawing.GRID
        places = zip(self.position[index].tolist(), self.radius[index].tolist(), strict=True)
        for ball, ((x, y), radius) in enumerate(places):
            if radius > 0:
                drawing.disc(frame, x * _SIDE, y * _SIDE, radius * _SIDE, _BALLS[ball % len(_BALLS)])
        for place in self.said[index].nonzero().flatten().tolist():  # of the step before, when the balls were elsewhere
            drawing.outline(
                frame, divmod(place, self.grid), self.grid, drawing.RIGHT if self.right[index, place] else drawing.WRONG
            )
        return frame
