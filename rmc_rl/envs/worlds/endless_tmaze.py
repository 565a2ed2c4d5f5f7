"""
The endless T-maze: corridor after corridor, each with a sign of its own, so that the memory must be rewritten.

Task: "Memory Retention Is Not Enough to Master Memory Tasks in Reinforcement Learning", 2026, https://arxiv.org/abs/2601.15086.

Shapes: ``B`` worlds, ``N`` corridors of the longest episode.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import bounds, draw_number, draw_whole, number_or_range, require_memory, whole_or_range

FORWARD, LEFT, RIGHT = range(3)  # actions
_STEPS_PER_CELL = 6  # of the default time limit, as in the authors' code
_CELL = 16  # pixels


class EndlessTMazeWorld(BatchedWorld):
    """
    Description
    -----------
    The agent starts at one end of a corridor and observes a sign: left or right. After ``length`` steps forward the corridor
    ends at a junction, where the agent must turn as the sign said. A right turn leads to the start of the next corridor, with
    a new sign, which makes the old one worthless. The maze has ``n_corridors`` corridors.

    Action Space
    ------------
    ``Discrete(3)``: 0 forward, 1 left, 2 right. Turns inside a corridor and steps forward at a junction have no effect.

    Observation Encoding
    --------------------
    ``Box(0, 1, (3,))``: the position as a fraction of the present corridor (0 its start, 1 the junction), and two numbers for
    the sign, one-hot (left, right). Both are 0 except at the start of a corridor.

    Rewards
    -------
    1 for a right turn at a junction, -1 for a wrong one, ``-penalty`` for any other step.

    Termination
    -----------
    The episode terminates at a wrong turn, or after the right turn in the last corridor. It is truncated after ``max_steps``
    steps, because no clock is observed.

    Memory demand
    -------------
    A sign is needed ``length`` steps after it was observed, and must then be forgotten. Return of perfect play:
    ``n_corridors * (1 - length * penalty)``, 4.5 for the default. Of a memoryless player, whose every turn is right in half of
    the cases: -0.19. Of random play: -0.59.

    Answers
    -------
    Forward in the corridor, and at the junction the turn that the last sign showed.

    Registered Configurations
    -------------------------
    ``rmc_rl/EndlessTMaze-v0``: 5 corridors of 10 steps. The paper has two regimes: "Fixed", with one length, and "Uniform",
    ``length=[1,10]``, where each corridor draws its own length; it trains and tests with other numbers of corridors.

    Differences from the paper: the rules are those of its description. In the authors' code a step forward at a junction ends
    the episode, and steps forward in a corridor are free; there the position is a fraction of the longest corridor, which
    hides where a shorter one ends.

    :param num_envs: ``B``, number of copies
    :param length: steps from a sign to its junction; or a range ``[low, high]``, drawn for each corridor
    :param n_corridors: corridors of an episode; or a range ``[low, high]``, drawn per episode
    :param max_steps: steps after which the episode is truncated; or a range; None: six times those of perfect play
    :param penalty: cost of a step that is no turn at a junction; or a range ``[low, high]``
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": a row for each corridor with its sign (blue: seen), the right arms of the
        corridors so far in green, and the agent in purple
    :raises UsageError: for a ``length`` or ``n_corridors`` below 1, ``max_steps`` too small for perfect play, or a negative
        penalty
    """

    truncates = True
    ranges = ("length", "n_corridors", "max_steps", "penalty")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    signs: Tensor  # (B, N), LEFT or RIGHT
    lengths: Tensor  # (B, N), steps from the start of a corridor to its junction
    corridors: Tensor  # (B,), corridors of the episode
    corridor: Tensor  # (B,), the agent's corridor, from 0 on
    place: Tensor  # (B,), steps from the start of the corridor to the agent
    limit: Tensor  # (B,), steps after which the episode is truncated
    cost: Tensor  # (B,), of a step that is no turn at a junction
    time: Tensor  # (B,), steps since the episode began
    wrong: Tensor  # (B,), for pictures: whether the agent is in a wrong arm

    def __init__(
        self,
        num_envs: int = 1,
        length: int | Sequence[int] = 10,
        n_corridors: int | Sequence[int] = 5,
        max_steps: int | Sequence[int] | None = None,
        penalty: float | Sequence[float] = 0.01,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.length, self.n_corridors = whole_or_range("length", length), whole_or_range("n_corridors", n_corridors)
        self._most = bounds(self.n_corridors)[1]  # N
        fewest = (bounds(self.length)[1] + 1) * self._most
        self.max_steps = None if max_steps is None else whole_or_range("max_steps", max_steps, fewest)
        self.penalty = number_or_range("penalty", penalty, at_least=0)
        super().__init__(num_envs, spaces.Box(0, 1, (3,), np.float32), spaces.Discrete(3), device, render_mode)
        require_memory(8 * self.num_envs * self._most, num_envs=self.num_envs, n_corridors=n_corridors)

    def _draw(self, count: int) -> dict[str, Tensor]:
        shape = (count, self._most)
        signs = torch.randint(LEFT, RIGHT + 1, shape, generator=self.generator, device=self.device)
        # (count * N,) -> (count, N)
        lengths = draw_whole(self.length, count * self._most, self.generator).view(shape)
        corridors = draw_whole(self.n_corridors, count, self.generator)
        if self.max_steps is None:
            limit = _STEPS_PER_CELL * (bounds(self.length)[1] + 1) * corridors
        else:
            limit = draw_whole(self.max_steps, count, self.generator)
        zeros = {name: torch.zeros_like(corridors) for name in ("corridor", "place", "time")}
        cost = draw_number(self.penalty, count, self.generator)
        wrong = torch.zeros(count, dtype=torch.bool, device=self.device)
        return {
            **zeros,
            "signs": signs,
            "lengths": lengths,
            "corridors": corridors,
            "limit": limit,
            "cost": cost,
            "wrong": wrong,
        }

    def _of_corridor(self, table: Tensor) -> Tensor:
        """The present corridor's number in a table ``(B, N)``, as ``(B,)``."""
        return table.gather(1, self.corridor.clamp(max=self._most - 1).unsqueeze(-1)).squeeze(-1)

    def _answers(self) -> Answers:
        at_junction = self.place == self._of_corridor(self.lengths)
        actions = torch.where(at_junction, self._of_corridor(self.signs), FORWARD)
        return Answers(actions, torch.ones_like(at_junction))

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length, sign = self._of_corridor(self.lengths), self._of_corridor(self.signs)
        turns = (self.place == length) & (actions != FORWARD)
        right = turns & (actions == sign)
        self.wrong = turns & ~right
        self.corridor = self.corridor + right.long()
        forward = torch.minimum(self.place + (actions == FORWARD).long(), length)
        self.place = torch.where(right, 0, forward)
        self.time = self.time + 1
        rewards = torch.where(turns, torch.where(right, 1.0, -1.0), -self.cost)
        return rewards, self.wrong | (self.corridor == self.corridors), self.time == self.limit

    def _observe(self) -> Tensor:
        position, sign = self.place / self._of_corridor(self.lengths), self._of_corridor(self.signs)
        shown = (self.place == 0) & (self.corridor < self.corridors)
        return torch.stack([position, (shown & (sign == LEFT)).float(), (shown & (sign == RIGHT)).float()], -1)

    def returns(self) -> Returns:
        (low, high), (fewest, most) = bounds(self.n_corridors), bounds(self.length)
        penalty, length = sum(bounds(self.penalty)) / 2, (fewest + most) / 2
        counts = range(low, high + 1)

        def guessing(steps: float) -> float:
            """The return of a player that turns either way after some steps of a corridor."""
            # v(n) = -steps * penalty + (1 + v(n - 1)) / 2 - 1 / 2
            return float(np.mean([-steps * penalty * 2 * (1 - 0.5**count) for count in counts]))

        # random play steps forward at each third step, and at the junction once in two turns. The default limit hardly ever
        # stops it; one of the user's own may
        random = guessing(3 * length + 0.5) if self.max_steps is None else None
        return Returns(random, guessing(length), float(np.mean(counts)) * (1 - length * penalty))

    def memory_demand(self) -> int:
        return bounds(self.length)[1]

    def _picture(self, index: int) -> np.ndarray:
        signs, lengths = self.signs[index].tolist(), self.lengths[index].tolist()
        count, corridor, place = (int(tensor[index]) for tensor in (self.corridors, self.corridor, self.place))
        # in each row: the sign, the corridor, and at its end the arms above (left) and below (right) the junction
        cells = np.full((4 * self._most + 1, max(lengths) + 3, 3), drawing.WALL, dtype=np.uint8)
        for number in range(count):
            row, end = 4 * number + 2, lengths[number] + 1
            cells[row, 1 : end + 1] = cells[row - 1 : row + 2, end] = drawing.PAPER
            if number <= corridor:
                cells[row, 1] = drawing.SEEN
                cells[row + (1 if signs[number] == RIGHT else -1), end] = drawing.GOAL
            if number == corridor:
                side = 0 if not self.wrong[index] else -1 if signs[number] == RIGHT else 1
                cells[row + side, place + 1] = drawing.AGENT
        return drawing.enlarge(cells, _CELL)
