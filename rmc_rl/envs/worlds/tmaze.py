"""
The T-maze: a sign at the start says which way to turn at the end of a corridor.

Task: Bakker, "Reinforcement learning with long short-term memory", 2001 (section 4, "Long-term dependency T-maze").
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import BatchedWorld
from rmc_rl.envs.parts import drawing
from rmc_rl.errors import require_number, require_whole

UP, RIGHT, DOWN, LEFT = range(4)  # actions
SIGN_UP, SIGN_DOWN, CORRIDOR, JUNCTION = range(4)  # observations
_CELL = 16  # pixels


class TMazeWorld(BatchedWorld):
    """
    Description
    -----------
    The agent stands at the left end of a corridor and sees a sign: up or down. ``length`` steps to the right the corridor ends
    in a junction with two arms, of which the sign named the right one.

    Action Space
    ------------
    ``Discrete(4)``: 0 up, 1 right, 2 down, 3 left. Steps into walls do nothing.

    Observation Encoding
    --------------------
    ``Discrete(4)``: 0 the sign says up, 1 the sign says down, 2 corridor, 3 junction. The sign is seen at the start alone (and
    again by who goes back there).

    Rewards
    -------
    1 for the arm that the sign named, 0 for the other one, ``-penalty`` for a step into a wall.

    Termination
    -----------
    The episode terminates in either arm, or after ``max_steps`` steps. It is never truncated.

    Memory demand
    -------------
    The sign is needed ``length`` steps after it was seen. Return of perfect play: 1, in ``length + 1`` steps. Of a memoryless
    player: 0.5, for the junction always looks the same. Of random play: -0.26 for the default: half of the steps go into
    walls, and few episodes reach an arm.

    Registered Configurations
    -------------------------
    ``rmc_rl/TMaze-v0``: a corridor of 10 steps. Bakker's: ``length`` up to 70, ``penalty=0.025`` (rewards there are four
    times as large, and the wrong arm costs 0.1).

    :param num_envs: ``B``, copies side by side
    :param length: steps from the sign to the junction
    :param max_steps: steps after which the episode ends; None: ``5 * length``
    :param penalty: what a step into a wall costs
    :param device: where the tensors live
    :param render_mode: None, or "rgb_array": the maze from above, the sign's arm in green, the agent in purple
    :raises UsageError: for a ``length`` below 1, ``max_steps`` that do not reach an arm, or a negative penalty
    """

    truncates = True
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    sign: Tensor  # (B,), SIGN_UP or SIGN_DOWN
    place: Tensor  # (B,), steps from the start
    arm: Tensor  # (B,), for pictures: -1 up, 1 down, 0 not in an arm
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        length: int = 10,
        max_steps: int | None = None,
        penalty: float = 0.01,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        require_whole("length", length)
        max_steps = 5 * length if max_steps is None else max_steps
        require_whole("max_steps", max_steps, length + 1)
        require_number("penalty", penalty, at_least=0)
        super().__init__(num_envs, spaces.Discrete(4), spaces.Discrete(4), device, render_mode)
        self.length, self.max_steps, self.penalty = length, max_steps, float(penalty)

    def _draw(self, count: int) -> dict[str, Tensor]:
        sign = torch.randint(2, (count,), generator=self.generator, device=self.device)
        return {"sign": sign, "place": torch.zeros_like(sign), "arm": torch.zeros_like(sign), "time": torch.zeros_like(sign)}

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at_junction = self.place == self.length
        turns = (actions == UP) | (actions == DOWN)
        ends = at_junction & turns
        right = ends & ((actions == DOWN) == (self.sign == SIGN_DOWN))
        move = (actions == RIGHT).long() - (actions == LEFT).long()
        place = (self.place + move).clamp(0, self.length)
        bumps = (place == self.place) & ~ends
        self.place, self.time = place, self.time + 1
        self.arm = torch.where(ends, torch.where(actions == DOWN, 1, -1), 0)
        return right.float() - self.penalty * bumps.float(), ends, self.time == self.max_steps

    def _observe(self) -> Tensor:
        after = torch.where(self.place == self.length, JUNCTION, CORRIDOR)
        return torch.where(self.place == 0, self.sign, after)

    def _picture(self, index: int) -> np.ndarray:
        place, arm, down = int(self.place[index]), int(self.arm[index]), int(self.sign[index]) == SIGN_DOWN
        cells = np.full((5, self.length + 3, 3), drawing.WALL, dtype=np.uint8)
        cells[2, 1:-1] = cells[1:-1, -2] = drawing.PAPER
        cells[3 if down else 1, -2] = drawing.GOAL
        cells[2, 1] = drawing.NOW  # where the sign is
        cells[2 + arm, place + 1] = drawing.AGENT
        return drawing.enlarge(cells, _CELL)
