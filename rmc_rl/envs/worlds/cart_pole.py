"""
CartPole without velocities: balance a pole on a cart, and observe only where they are.

Task: Barto, Sutton and Anderson, "Neuronlike adaptive elements that can solve difficult learning control problems", 1983, with
the equations and numbers of Gymnasium's ``CartPole-v1``. Without its velocities it is a standard test of recurrent agents, for
example in Wierstra et al., "Recurrent policy gradients", 2010, and Meng et al., "Memory-based deep reinforcement learning for
POMDPs", 2021, https://arxiv.org/abs/2102.12344.
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

GRAVITY = 9.8  # metres per second squared
CART, POLE = 1.0, 0.1  # kilograms
FORCE = 10.0  # newtons
SECONDS = 0.02  # per step
MOST_X, MOST_ANGLE = 2.4, 12 * math.pi / 180  # metres and radians, beyond which the episode ends
FIRST = 0.05  # the largest first position, angle and velocity
_BALANCE = (0.1, 0.3, 1.0, 0.5)  # weights of position, velocity, angle and angular velocity in the answer
_WIDTH, _HEIGHT, _SCALE = 240, 100, 45  # pixels, and pixels per metre


class CartPoleWorld(BatchedWorld):
    """
    Description
    -----------
    A pole stands on a cart that moves along a line. The agent pushes the cart to the left or to the right, so that the pole
    does not fall. It observes the positions, but no velocities. Everything else is as in Gymnasium's ``CartPole-v1``.

    Action Space
    ------------
    ``Discrete(2)``: 0 push to the left, 1 push to the right.

    Observation Encoding
    --------------------
    ``Box((2,))``: the position of the cart in metres, and the angle of the pole in radians.

    Rewards
    -------
    1 for each step.

    Termination
    -----------
    The episode terminates when the cart is more than 2.4 metres from the middle, or the pole more than 12 degrees from
    upright. It is truncated after ``max_steps`` steps, because no clock is observed.

    Memory demand
    -------------
    Velocities follow from the last two observations, so the present observation and the one before are enough. With a range
    of ``half_length`` the agent must also find out how long the pole is. Return of perfect play: 500, the time limit. Of the
    best memoryless player known, which learned it: 44. Of random play: 22.

    Answers
    -------
    A push to the right where a weighted sum of positions and velocities is positive.

    Registered Configurations
    -------------------------
    ``rmc_rl/CartPolePositions-v0``: that of ``CartPole-v1``.

    :param num_envs: ``B``, number of copies
    :param max_steps: steps after which the episode is truncated; or a range ``[low, high]``, drawn per episode
    :param half_length: half the length of the pole, in metres; or a range ``[low, high]``
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the cart and the pole
    :raises UsageError: for ``max_steps`` below 1, or ``half_length`` not above 0
    """

    family = "control"
    truncates = True
    ranges = ("max_steps", "half_length")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"], "render_fps": 50}

    state: Tensor  # (B, 4): position, velocity, angle, angular velocity
    half_lengths: Tensor  # (B,), of the episode's pole
    limit: Tensor  # (B,), steps after which the episode is truncated
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        max_steps: int | Sequence[int] = 500,
        half_length: float | Sequence[float] = 0.5,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.max_steps = whole_or_range("max_steps", max_steps)
        self.half_length = number_or_range("half_length", half_length, above=0)
        # twice the limits, so that the last observation is within the bounds, as in Gymnasium
        high = np.array([2 * MOST_X, 2 * MOST_ANGLE], dtype=np.float32)
        super().__init__(num_envs, spaces.Box(-high, high, dtype=np.float32), spaces.Discrete(2), device, render_mode)
        self._balance = torch.tensor(_BALANCE, device=self.device)

    def _draw(self, count: int) -> dict[str, Tensor]:
        state = (torch.rand(count, 4, generator=self.generator, device=self.device) * 2 - 1) * FIRST
        limit = draw_whole(self.max_steps, count, self.generator)
        half_lengths = draw_number(self.half_length, count, self.generator)
        return {"state": state, "half_lengths": half_lengths, "limit": limit, "time": torch.zeros_like(limit)}

    def _answers(self) -> Answers:
        actions = (self.state @ self._balance > 0).long()
        return Answers(actions, torch.ones_like(actions, dtype=torch.bool))

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, speed, angle, spin = self.state.unbind(1)
        force = FORCE * (2.0 * actions - 1)
        sine, cosine = torch.sin(angle), torch.cos(angle)
        push = (force + POLE * self.half_lengths * spin**2 * sine) / (CART + POLE)
        bending = (GRAVITY * sine - cosine * push) / (self.half_lengths * (4 / 3 - POLE * cosine**2 / (CART + POLE)))
        acceleration = push - POLE * self.half_lengths * bending * cosine / (CART + POLE)
        rates = torch.stack([speed, acceleration, spin, bending], 1)
        self.state, self.time = self.state + SECONDS * rates, self.time + 1
        terminated = (self.state[:, 0].abs() > MOST_X) | (self.state[:, 2].abs() > MOST_ANGLE)
        return torch.ones_like(x), terminated, self.time >= self.limit

    def _observe(self) -> Tensor:
        return self.state[:, ::2].clone()

    def returns(self) -> Returns:
        default = self._has_defaults("max_steps", "half_length")
        return Returns(random=22.2, memoryless=44.0, perfect=500.0) if default else Returns()

    def memory_demand(self) -> int:
        return 1

    def _picture(self, index: int) -> np.ndarray:
        x, _, angle, _ = self.state[index].tolist()
        middle, ground = _WIDTH / 2 + x * _SCALE, 0.8 * _HEIGHT
        frame = np.full((_HEIGHT, _WIDTH, 3), drawing.PAPER, dtype=np.uint8)
        frame[int(ground) + 7] = drawing.WALL
        frame[int(ground) - 6 : int(ground) + 7, max(0, int(middle) - 14) : max(0, int(middle) + 14)] = drawing.SEEN
        length = 2 * float(self.half_lengths[index]) * _SCALE
        drawing.line(frame, middle, ground, middle + length * math.sin(angle), ground - length * math.cos(angle), drawing.FOOD)
        return frame
