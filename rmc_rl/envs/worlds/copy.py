"""
The copying task as a reinforcement-learning problem: observe symbols, wait, then repeat them in order.

Task: Hochreiter & Schmidhuber, "Long short-term memory", 1997; with these sizes in Goyal et al., "Recurrent Independent
Mechanisms", 2019, https://arxiv.org/abs/1909.10893 (10 digits of 8 kinds, a span of 50 in training and of 200 in test).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import bounds, draw_whole, require_memory, whole, whole_or_range

_CELL = 8  # pixels


class CopyWorld(BatchedWorld):
    """
    Description
    -----------
    The agent observes ``length`` symbols, one per step, then blanks, then a marker. After the marker it must repeat the
    symbols in order. An episode has ``2 * length + delay`` steps: ``length`` steps with a symbol each, ``delay`` steps of
    which the last shows the marker and the others are blank, and ``length`` blank steps whose actions count.

    Action Space
    ------------
    ``Discrete(n_symbols)``: a symbol. Actions before the marker have no effect.

    Observation Encoding
    --------------------
    ``Discrete(n_symbols + 2)``: the number of a symbol; ``n_symbols`` is blank, ``n_symbols + 1`` is the marker.

    Rewards
    -------
    ``1 / length`` for each right symbol, otherwise 0. So the return is the fraction of right symbols.

    Termination
    -----------
    The episode terminates after ``2 * length + delay`` steps, when the task is complete. It is never truncated.

    Memory demand
    -------------
    Each symbol is needed ``length + delay`` steps after it was observed. Return of perfect play: 1. Of a memoryless player
    and of random play: ``1 / n_symbols``, because all steps that count look the same.

    Answers
    -------
    The right symbol at each step that counts.

    Registered Configurations
    -------------------------
    ``rmc_rl/Copy-v0``: the sizes of the RIMs paper, 8 symbols, length 10, delay 50 (its test: ``delay=200``).

    :param num_envs: ``B``, number of copies
    :param n_symbols: number of symbols
    :param length: symbols to remember, and steps whose actions count; or a range ``[low, high]``, drawn per episode
    :param delay: steps between the last symbol and the first action that counts; or a range ``[low, high]``
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": a column per step with the observed symbols (blue) and the agent's (green:
        right, red: wrong)
    :raises UsageError: for ``n_symbols`` below 2, or ``length`` or ``delay`` below 1
    """

    family = "recall"
    ranges = ("length", "delay")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    symbols: Tensor  # (B, most), of which the first lengths[b] are used
    lengths: Tensor  # (B,), symbols of the episode
    recall_steps: Tensor  # (B,), the first step whose action counts
    time: Tensor  # (B,), steps since the episode began
    acted: Tensor  # (B, most), the agent's symbols, kept only for pictures; -1: none yet

    def __init__(
        self,
        num_envs: int = 1,
        n_symbols: int = 8,
        length: int | Sequence[int] = 10,
        delay: int | Sequence[int] = 50,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.n_symbols = whole("n_symbols", n_symbols, 2)
        self.length, self.delay = whole_or_range("length", length), whole_or_range("delay", delay)
        super().__init__(num_envs, spaces.Discrete(self.n_symbols + 2), spaces.Discrete(self.n_symbols), device, render_mode)
        self._most = bounds(self.length)[1]
        require_memory(8 * self.num_envs * self._most, num_envs=self.num_envs, length=length)
        self.blank, self.marker = self.n_symbols, self.n_symbols + 1

    def _draw(self, count: int) -> dict[str, Tensor]:
        symbols = torch.randint(self.n_symbols, (count, self._most), generator=self.generator, device=self.device)
        lengths = draw_whole(self.length, count, self.generator)
        return {
            "symbols": symbols,
            "lengths": lengths,
            "recall_steps": lengths + draw_whole(self.delay, count, self.generator),
            "time": torch.zeros_like(lengths),
            "acted": torch.full_like(symbols, -1),
        }

    def _recalled(self) -> tuple[Tensor, Tensor]:
        """Whether the present action counts ``(B,)``, and which symbol it should be, as an index ``(B, 1)``."""
        place = self.time - self.recall_steps
        return place >= 0, place.clamp(0, self._most - 1).unsqueeze(-1)

    def _answers(self) -> Answers:
        counts, index = self._recalled()
        return Answers(self.symbols.gather(1, index).squeeze(-1), counts)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counts, index = self._recalled()
        right = counts & (actions == self.symbols.gather(1, index).squeeze(-1))
        if self.render_mode is not None:
            self.acted = self.acted.scatter(1, index, torch.where(counts, actions, -1).unsqueeze(-1))
        self.time = self.time + 1
        terminated = self.time == self.recall_steps + self.lengths
        return right.float() / self.lengths, terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        symbol = self.symbols.gather(1, self.time.clamp(max=self._most - 1).unsqueeze(-1)).squeeze(-1)
        after = torch.where(self.time == self.recall_steps - 1, self.marker, self.blank)
        return torch.where(self.time < self.lengths, symbol, after)

    def returns(self) -> Returns:
        return Returns(random=1 / self.n_symbols, memoryless=1 / self.n_symbols, perfect=1.0)

    def memory_demand(self) -> int:
        return bounds(self.length)[1] + bounds(self.delay)[1]

    def _picture(self, index: int) -> np.ndarray:
        length, recall, time = (int(tensor[index]) for tensor in (self.lengths, self.recall_steps, self.time))
        columns = bounds(self.delay)[1] + 2 * self._most  # the same in all episodes
        symbols, acted = self.symbols[index].tolist(), self.acted[index].tolist()
        cells = np.full((self.n_symbols, max(columns, recall + length), 3), drawing.PAPER, dtype=np.uint8)
        cells[:, min(time, recall + length - 1)] = drawing.NOW
        for step in range(min(time + 1, length)):
            cells[symbols[step], step] = drawing.SEEN
        for place, symbol in enumerate(acted):
            if symbol >= 0:
                cells[symbol, recall + place] = drawing.RIGHT if symbol == symbols[place] else drawing.WRONG
        return drawing.enlarge(cells, _CELL)
