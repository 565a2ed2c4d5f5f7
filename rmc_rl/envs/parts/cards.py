"""
Decks of cards: card ``i`` has suit ``i % 4``, so a deck of 52 has 13 cards of each, as in POPGym.

Shapes: ``D`` cards of the largest deck.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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
