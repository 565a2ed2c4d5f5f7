"""
The T-maze: a sign at the start tells which way to turn at the end of a corridor.

Task: Bakker, "Reinforcement learning with long short-term memory", 2001 (section 4, "Long-term dependency T-maze").
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import bounds, draw_number, draw_whole, number_or_range, whole_or_range

UP, RIGHT, DOWN, LEFT = range(4)  # actions
SIGN_UP, SIGN_DOWN, CORRIDOR, JUNCTION = range(4)  # observations
_STEPS_PER_LENGTH = 5  # of the default time limit
_CELL = 16  # pixels


class TMazeWorld(BatchedWorld):
    """
    Description
    -----------
    The agent starts at the left end of a corridor and observes a sign: up or down. After ``length`` steps to the right the
    corridor ends at a junction with two arms. The sign tells which arm is the right one.

    Action Space
    ------------
    ``Discrete(4)``: 0 up, 1 right, 2 down, 3 left. Steps into walls have no effect.

    Observation Encoding
    --------------------
    ``Discrete(4)``: 0 the sign shows up, 1 the sign shows down, 2 corridor, 3 junction. The sign is visible only at the start
    of the corridor, also when the agent returns there.

    Rewards
    -------
    1 for the right arm, 0 for the other arm, ``-penalty`` for a step into a wall.

    Termination
    -----------
    The episode terminates in either arm. It is truncated after ``max_steps`` steps, because no clock is observed.

    Memory demand
    -------------
    The sign is needed ``length`` steps after it was observed. Return of perfect play: 1, in ``length + 1`` steps. Of a
    memoryless player: 0.5, because the junction always looks the same. Of random play: -0.25 for the default, because half
    of the steps are into walls and few episodes reach an arm.

    Answers
    -------
    Right in the corridor and the right arm at the junction.

    Registered Configurations
    -------------------------
    ``rmc_rl/TMaze-v0``: a corridor of 10 steps. Bakker's: ``length`` up to 70, ``penalty=0.025`` (his rewards are four times
    as large, and the wrong arm costs 0.1).

    :param num_envs: ``B``, number of copies
    :param length: steps from the sign to the junction; or a range ``[low, high]``, drawn per episode
    :param max_steps: steps after which the episode is truncated; or a range; None: five times the episode's length
    :param penalty: cost of a step into a wall; or a range ``[low, high]``
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the maze from above, the right arm in green, the agent in purple
    :raises UsageError: for a ``length`` below 1, ``max_steps`` too small to reach an arm, or a negative penalty
    """

    truncates = True
    ranges = ("length", "max_steps", "penalty")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    sign: Tensor  # (B,), SIGN_UP or SIGN_DOWN
    junction: Tensor  # (B,), steps from the start to the junction
    place: Tensor  # (B,), steps from the start to the agent
    arm: Tensor  # (B,), for pictures: -1 up, 1 down, 0 not in an arm
    limit: Tensor  # (B,), steps after which the episode is truncated
    cost: Tensor  # (B,), of a step into a wall
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        length: int | Sequence[int] = 10,
        max_steps: int | Sequence[int] | None = None,
        penalty: float | Sequence[float] = 0.01,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.length = whole_or_range("length", length)
        longest = bounds(self.length)[1]
        self.max_steps = None if max_steps is None else whole_or_range("max_steps", max_steps, longest + 1)
        self.penalty = number_or_range("penalty", penalty, at_least=0)
        super().__init__(num_envs, spaces.Discrete(4), spaces.Discrete(4), device, render_mode)

    def _draw(self, count: int) -> dict[str, Tensor]:
        sign = torch.randint(2, (count,), generator=self.generator, device=self.device)
        zeros = {name: torch.zeros_like(sign) for name in ("place", "arm", "time")}
        junction = draw_whole(self.length, count, self.generator)
        limit = _STEPS_PER_LENGTH * junction
        if self.max_steps is not None:
            limit = draw_whole(self.max_steps, count, self.generator)
        cost = draw_number(self.penalty, count, self.generator)
        return {"sign": sign, "junction": junction, "limit": limit, "cost": cost, **zeros}

    def _answers(self) -> Answers:
        turn = torch.where(self.sign == SIGN_DOWN, DOWN, UP)
        actions = torch.where(self.place == self.junction, turn, RIGHT)
        return Answers(actions, torch.ones_like(actions, dtype=torch.bool))

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at_junction = self.place == self.junction
        turns = (actions == UP) | (actions == DOWN)
        ends = at_junction & turns
        right = ends & ((actions == DOWN) == (self.sign == SIGN_DOWN))
        move = (actions == RIGHT).long() - (actions == LEFT).long()
        place = torch.minimum((self.place + move).clamp(min=0), self.junction)
        bumps = (place == self.place) & ~ends
        self.place, self.time = place, self.time + 1
        self.arm = torch.where(ends, torch.where(actions == DOWN, 1, -1), 0)
        return right.float() - self.cost * bumps.float(), ends, self.time == self.limit

    def _observe(self) -> Tensor:
        after = torch.where(self.place == self.junction, JUNCTION, CORRIDOR)
        return torch.where(self.place == 0, self.sign, after)

    def returns(self) -> Returns:
        low, high = bounds(self.length)
        limit, random = self.max_steps, None
        if not isinstance(limit, tuple):
            random = float(np.mean([self._random_return(length, limit) for length in range(low, high + 1)]))
        return Returns(random=random, memoryless=0.5, perfect=1.0)

    def _random_return(self, length: int, limit: int | None) -> float:
        """The mean return of random play in a corridor of this length."""
        at = np.zeros(length + 1)  # probability of being at each place
        at[0], total, penalty = 1, 0.0, float(np.mean(bounds(self.penalty)))
        for _ in range(_STEPS_PER_LENGTH * length if limit is None else limit):
            # at the junction one of four actions enters the right arm and one, right, is into a wall; elsewhere up and down
            # are into walls, and so is left at the start
            total += at[-1] / 4 - penalty * (at[-1] / 4 + at[:-1].sum() / 2 + at[0] / 4)
            moved = np.zeros_like(at)
            moved[1:] += at[:-1] / 4
            moved[:-1] += at[1:] / 4
            moved[:-1] += at[:-1] / 2
            moved[0] += at[0] / 4
            moved[-1] += at[-1] / 4
            at = moved
        return total

    def memory_demand(self) -> int:
        return bounds(self.length)[1]

    def _picture(self, index: int) -> np.ndarray:
        place, arm, length, sign = (int(tensor[index]) for tensor in (self.place, self.arm, self.junction, self.sign))
        columns = max(length, bounds(self.length)[1]) + 3  # the same in all episodes
        cells = np.full((5, columns, 3), drawing.WALL, dtype=np.uint8)
        cells[2, 1 : length + 2] = cells[1:-1, length + 1] = drawing.PAPER
        cells[3 if sign == SIGN_DOWN else 1, length + 1] = drawing.GOAL
        cells[2, 1] = drawing.NOW  # where the sign is
        cells[2 + arm, place + 1] = drawing.AGENT
        return drawing.enlarge(cells, _CELL)
