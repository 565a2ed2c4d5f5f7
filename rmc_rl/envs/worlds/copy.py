"""
The copying task as a reinforcement-learning problem: see symbols, wait, act them out in order.

Task: Hochreiter & Schmidhuber, "Long short-term memory", 1997; with these sizes in Goyal et al., "Recurrent Independent
Mechanisms", 2019, https://arxiv.org/abs/1909.10893 (10 digits of 8 kinds, a span of 50 in training and of 200 in test).
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import BatchedWorld
from rmc_rl.envs.parts import drawing
from rmc_rl.errors import require_whole

_CELL = 8  # pixels


class CopyWorld(BatchedWorld):
    """
    Description
    -----------
    The agent sees ``length`` symbols, one per step, then blanks, then a marker, and must then act the symbols out in
    their order. An episode has ``2 * length + delay`` steps: ``length`` with a symbol each, ``delay`` of which the last
    shows the marker and the others are blank, and ``length`` blank ones in which actions count.

    Action Space
    ------------
    ``Discrete(n_symbols)``: the symbol to act out. Without effect before the marker has been seen.

    Observation Encoding
    --------------------
    ``Discrete(n_symbols + 2)``: a symbol's number; ``n_symbols`` is blank, ``n_symbols + 1`` the marker.

    Rewards
    -------
    ``1 / length`` for each symbol acted out right, else 0. So the return is the fraction of symbols right.

    Termination
    -----------
    The episode terminates after ``2 * length + delay`` steps. It is never truncated.

    Memory demand
    -------------
    Each symbol is needed ``length + delay`` steps after it was seen. Return of perfect play: 1. Of a memoryless player
    and of random play: ``1 / n_symbols``, for every step that counts looks the same.

    Registered Configurations
    -------------------------
    ``rmc_rl/Copy-v0``: the sizes of the RIMs paper, 8 symbols, length 10, delay 50 (its test: ``delay=200``).

    :param num_envs: ``B``, copies side by side
    :param n_symbols: how many symbols there are
    :param length: symbols to remember, so also steps in which actions count
    :param delay: steps between the last symbol and the first action that counts
    :param device: where the tensors live
    :param render_mode: None, or "rgb_array": what was seen (blue) and acted out (green right, red wrong), a column per step
    :raises UsageError: for ``n_symbols`` below 2, ``length`` or ``delay`` below 1
    """

    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    symbols: Tensor  # (B, length)
    time: Tensor  # (B,), steps since the episode began
    acted: Tensor  # (B, length), kept for pictures alone; -1: not answered yet

    def __init__(
        self,
        num_envs: int = 1,
        n_symbols: int = 8,
        length: int = 10,
        delay: int = 50,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        for name, value, least in (("n_symbols", n_symbols, 2), ("length", length, 1), ("delay", delay, 1)):
            require_whole(name, value, least)
        super().__init__(num_envs, spaces.Discrete(n_symbols + 2), spaces.Discrete(n_symbols), device, render_mode)
        self.n_symbols, self.length, self.delay = n_symbols, length, delay
        self.blank, self.marker = n_symbols, n_symbols + 1
        self.recall_step = length + delay  # the first step whose action counts

    def _draw(self, count: int) -> dict[str, Tensor]:
        symbols = torch.randint(self.n_symbols, (count, self.length), generator=self.generator, device=self.device)
        time = torch.zeros(count, dtype=torch.long, device=self.device)
        return {"symbols": symbols, "time": time, "acted": torch.full_like(symbols, -1)}

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place = self.time - self.recall_step
        counts = place >= 0
        index = place.clamp(min=0).unsqueeze(-1)
        right = counts & (actions == self.symbols.gather(1, index).squeeze(-1))
        if self.render_mode is not None:
            answer = torch.where(counts, actions, -1).unsqueeze(-1)
            self.acted = self.acted.scatter(1, index, answer)
        self.time = self.time + 1
        terminated = self.time == self.recall_step + self.length
        return right.float() / self.length, terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        symbol = self.symbols.gather(1, self.time.clamp(max=self.length - 1).unsqueeze(-1)).squeeze(-1)
        after = torch.where(self.time == self.recall_step - 1, self.marker, self.blank)
        return torch.where(self.time < self.length, symbol, after)

    def _picture(self, index: int) -> np.ndarray:
        columns = self.recall_step + self.length
        symbols, answers, time = self.symbols[index].tolist(), self.acted[index].tolist(), int(self.time[index])
        cells = np.full((self.n_symbols, columns, 3), drawing.PAPER, dtype=np.uint8)
        cells[:, min(time, columns - 1)] = drawing.NOW
        for step in range(min(time + 1, self.length)):
            cells[symbols[step], step] = drawing.SEEN
        for place, answer in enumerate(answers):
            if answer >= 0:
                cells[answer, self.recall_step + place] = drawing.RIGHT if answer == symbols[place] else drawing.WRONG
        return drawing.enlarge(cells, _CELL)
