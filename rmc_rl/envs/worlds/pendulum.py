"""
Pendulum without its velocity: swing a pendulum up and hold it there, and observe only its angle.

Task: the equations and numbers of Gymnasium's ``Pendulum-v1``. Without its velocity it is a test of recurrent agents in Meng
et al., "Memory-based deep reinforcement learning for POMDPs", 2021, https://arxiv.org/abs/2102.12344.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import draw_number, draw_whole, number_or_range, whole_or_range

MOST_TORQUE = 2.0  # newton metres
MOST_SPEED = 8.0  # radians per second
SECONDS = 0.05  # per step
FIRST_SPEED = 1.0  # the largest first angular velocity
_SIDE, _ROD = 160, 55  # pixels of a picture and of the pendulum
# of the answers: below this angle the torque holds the pendulum, above it adds energy
_NEAR_TOP, _STIFFNESS, _DAMPING, _PUMPING = 0.5, 8.0, 2.0, 10.0


class PendulumWorld(BatchedWorld):
    """
    Description
    -----------
    A rod of one metre and one kilogram hangs on a pivot. The agent applies a torque to it, so that it stands upright. The
    torque is too weak to lift it at once: it must swing. The agent observes the angle, but not the angular velocity.
    Everything else is as in Gymnasium's ``Pendulum-v1``.

    Action Space
    ------------
    ``Box(-1, 1, (1,))``: the torque, as a fraction of the largest one, 2 newton metres (``Pendulum-v1`` takes newton metres).

    Observation Encoding
    --------------------
    ``Box(-1, 1, (2,))``: cosine and sine of the angle, which is 0 when the pendulum is upright.

    Rewards
    -------
    Minus the square of the angle, minus a tenth of the square of the angular velocity, minus a thousandth of the square of the
    torque.

    Termination
    -----------
    The episode is truncated after ``max_steps`` steps. It does not terminate.

    Memory demand
    -------------
    The velocity follows from the last two observations. With a range of ``gravity`` the agent must also find out how strong it
    is. Mean return of the answers, which are close to the best play: -150. Of a trained memoryless
    player: -1,080. Of random play: -1,230.

    Answers
    -------
    Near the top the torque that holds the pendulum, elsewhere the torque that brings its energy to that of the upright
    position.

    Registered Configurations
    -------------------------
    ``rmc_rl/PendulumAngle-v0``: that of ``Pendulum-v1``.

    :param num_envs: ``B``, number of copies
    :param max_steps: steps after which the episode is truncated; or a range ``[low, high]``, drawn per episode
    :param gravity: metres per second squared; or a range ``[low, high]``
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the pendulum
    :raises UsageError: for ``max_steps`` below 1, or a negative ``gravity``
    """

    family = "pendulum"
    truncates = True
    ranges = ("max_steps", "gravity")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"], "render_fps": 30}

    angle: Tensor  # (B,), 0 is upright
    speed: Tensor  # (B,), radians per second
    pull: Tensor  # (B,), gravity in the episode
    limit: Tensor  # (B,), steps after which the episode is truncated
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        max_steps: int | Sequence[int] = 200,
        gravity: float | Sequence[float] = 10.0,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.max_steps = whole_or_range("max_steps", max_steps)
        self.gravity = number_or_range("gravity", gravity, at_least=0)
        actions = spaces.Box(-1, 1, (1,), np.float32)
        super().__init__(num_envs, spaces.Box(-1, 1, (2,), np.float32), actions, device, render_mode)

    def _draw(self, count: int) -> dict[str, Tensor]:
        drawn = torch.rand(count, 2, generator=self.generator, device=self.device) * 2 - 1
        limit = draw_whole(self.max_steps, count, self.generator)
        pull = draw_number(self.gravity, count, self.generator)
        angle, speed = drawn[:, 0] * math.pi, drawn[:, 1] * FIRST_SPEED
        return {"angle": angle, "speed": speed, "pull": pull, "limit": limit, "time": torch.zeros_like(limit)}

    def _from_top(self) -> Tensor:
        """The angle between -pi and pi, ``(B,)``."""
        return torch.remainder(self.angle + math.pi, 2 * math.pi) - math.pi

    def _answers(self) -> Answers:
        angle = self._from_top()
        hold = -_STIFFNESS * angle - _DAMPING * self.speed
        energy = self.speed**2 / 6 + self.pull / 2 * (torch.cos(angle) - 1)  # 0 at rest at the top
        swing = -_PUMPING * energy * torch.where(self.speed < 0, -1.0, 1.0)
        torque = torch.where(angle.abs() < _NEAR_TOP, hold, swing).clamp(-MOST_TORQUE, MOST_TORQUE)
        return Answers(torque.unsqueeze(1) / MOST_TORQUE, torch.ones_like(angle, dtype=torch.bool))

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torque = MOST_TORQUE * actions[:, 0].float().clamp(-1, 1)
        cost = self._from_top() ** 2 + 0.1 * self.speed**2 + 0.001 * torque**2
        change = (1.5 * self.pull * torch.sin(self.angle) + 3 * torque) * SECONDS
        self.speed = (self.speed + change).clamp(-MOST_SPEED, MOST_SPEED)
        self.angle, self.time = self.angle + SECONDS * self.speed, self.time + 1
        truncated = self.time >= self.limit
        return -cost, torch.zeros_like(truncated), truncated

    def _observe(self) -> Tensor:
        return torch.stack([torch.cos(self.angle), torch.sin(self.angle)], 1)

    def returns(self) -> Returns:
        default = self._has_defaults("max_steps", "gravity")
        return Returns(random=-1230.0, memoryless=-1080.0, perfect=-150.0) if default else Returns()

    def memory_demand(self) -> int:
        return 1

    def _picture(self, index: int) -> np.ndarray:
        angle, middle = float(self.angle[index]), _SIDE / 2
        frame = np.full((_SIDE, _SIDE, 3), drawing.PAPER, dtype=np.uint8)
        # a positive angle is to the left, as in Gymnasium
        tip = middle - _ROD * math.sin(angle), middle - _ROD * math.cos(angle)
        drawing.line(frame, middle, middle, *tip, drawing.FOOD)
        drawing.disc(frame, middle, middle, 4, drawing.DARK)
        return frame
