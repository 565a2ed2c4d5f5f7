"""
Decks of cards, and what worlds share that ask for the suits of dealt cards.

Card ``i`` has suit ``i % 4``, so a deck of 52 has 13 cards of each, as in POPGym.

Shapes: ``B`` worlds, ``D`` cards of the largest deck.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld
from rmc_rl.envs.parts import drawing

SUITS = 4
_CELL = 8  # pixels


def shuffled(sizes: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """
    Decks in a random order.

    :param sizes: cards of each deck, ``(count,)``
    :param most: ``D``
    :param generator: the source of randomness; its device is the result's
    :return: the cards' numbers ``(count, D)``; the first ``sizes`` of a row are the deck, the others are unused
    """
    keys = torch.rand(len(sizes), most, generator=generator, device=generator.device)
    unused = torch.arange(most, device=generator.device) >= sizes.unsqueeze(-1)
    return (keys + 2 * unused).argsort(1)


def suit_counts(size: int) -> np.ndarray:
    """Cards of each suit in a deck, ``(SUITS,)``."""
    return np.bincount(np.arange(size) % SUITS, minlength=SUITS)


def table(suits: Sequence[int], answers: Sequence[int], present: int) -> np.ndarray:
    """
    A picture of dealt cards and of what the agent answered for each.

    :param suits: of all cards, in the order in which they are dealt, ``D`` of them
    :param answers: the agent's suit for each card; -1: none yet
    :param present: the last card that was dealt, whose column is yellow
    :return: a column per card: above its suit (blue), below the answer (green: right, red: wrong)
    """
    cells = np.full((2 * SUITS + 1, len(suits), 3), drawing.PAPER, dtype=np.uint8)
    cells[SUITS] = drawing.WALL
    cells[:SUITS, present] = drawing.NOW
    for column, (suit, answer) in enumerate(zip(suits, answers, strict=True)):
        if column <= present:
            cells[suit, column] = drawing.SEEN
        if answer >= 0:
            cells[SUITS + 1 + answer, column] = drawing.RIGHT if answer == suit else drawing.WRONG
    return drawing.enlarge(cells, _CELL)


class SuitsWorld(BatchedWorld):
    """Cards are dealt one by one, and the agent names the suit of one of them at each step that counts."""

    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    suits: Tensor  # (B, D), in the order in which they are dealt
    cards: Tensor  # (B,), cards of the deck
    time: Tensor  # (B,), steps since the episode began
    acted: Tensor  # (B, D), the agent's suits for each card, kept only for pictures; -1: none yet

    @abstractmethod
    def _asked(self) -> tuple[Tensor, Tensor]:
        """Whether the present action counts ``(B,)``, and the index of the card asked for ``(B, 1)``."""

    def _answers(self) -> Answers:
        counts, index = self._asked()
        return Answers(self.suits.gather(1, index).squeeze(-1), counts)

    def _name(self, actions: Tensor) -> Tensor:
        """Let the agent name suits, and go on to the next step; returns 1, -1 or, where the action does not count, 0."""
        counts, index = self._asked()
        right = actions == self.suits.gather(1, index).squeeze(-1)
        if self.render_mode is not None:
            present = self.acted.gather(1, index).squeeze(-1)
            self.acted = self.acted.scatter(1, index, torch.where(counts, actions, present).unsqueeze(-1))
        self.time = self.time + 1
        return counts * (2 * right.float() - 1)

    def _picture(self, index: int) -> np.ndarray:
        suits, acted, time = self.suits[index].tolist(), self.acted[index].tolist(), int(self.time[index])
        return table(suits, acted, min(time, int(self.cards[index]) - 1))
