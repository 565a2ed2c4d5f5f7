"""
Repeat previous: cards are dealt one by one, and the agent names the suit of the card dealt some steps ago.

Task: Morad et al., "POPGym: Benchmarking partially observable reinforcement learning", 2023, https://arxiv.org/abs/2303.01859,
whose code this world follows (popgym/envs/repeat_previous.py).

Shapes: ``B`` worlds, ``D`` cards of the largest deck.
"""

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Returns
from rmc_rl.envs.parts.cards import SUITS, SuitsWorld, shuffled, suit_counts
from rmc_rl.envs.parts.keywords import bounds, draw_whole, require_memory, whole_or_range
from rmc_rl.errors import require


class RepeatPreviousWorld(SuitsWorld):
    """
    Description
    -----------
    A deck of cards is dealt one card per step, and the agent observes the suit of each. At each step it must name the suit of
    the ``k``-th last card. With ``k=2`` it is the card before the one that is shown.

    Action Space
    ------------
    ``Discrete(4)``: a suit. Actions have no effect until ``k`` cards were dealt.

    Observation Encoding
    --------------------
    ``Discrete(4)``: the suit of the present card. A deck has equally many cards of each suit, if 4 divides ``n_cards``.

    Rewards
    -------
    ``1 / (n_cards - k)`` for the right suit, the same with a minus for a wrong one; 0 before ``k`` cards were dealt. So the
    return is between -1 and 1.

    Termination
    -----------
    The episode terminates after ``n_cards - 1`` steps, when the last card is dealt. It is never truncated.

    Memory demand
    -------------
    Each suit is needed ``k - 1`` steps after it was observed, and the last ``k`` suits must be kept in order. Return of
    perfect play: 1. Of random play: -0.5. Of a memoryless player: -0.49 for the default; a card's suit tells that the others
    are more likely among the earlier cards.

    Answers
    -------
    The right suit, once ``k`` cards were dealt.

    Registered Configurations
    -------------------------
    ``rmc_rl/RepeatPrevious-v0``: POPGym's RepeatPreviousEasy, 52 cards, ``k=4``. Its Medium: ``n_cards=104, k=32``. Its Hard:
    ``n_cards=156, k=64``.

    :param num_envs: ``B``, number of copies
    :param k: which card is asked for, counted back from the present one, which is 1; or a range ``[low, high]``, drawn per
        episode (the agent does not observe it: ``policy.previous_action_reward=true`` lets it find out)
    :param n_cards: cards of the deck, one more than the steps of an episode; or a range ``[low, high]``, drawn per episode
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": a column per card with its suit (blue) and, below it, what the agent answered
        when that card was asked for (green: right, red: wrong)
    :raises UsageError: for ``k`` below 2, or fewer than ``k + 1`` cards
    """

    family = "recall"
    ranges = ("k", "n_cards")

    back: Tensor  # (B,), k

    def __init__(
        self,
        num_envs: int = 1,
        k: int | Sequence[int] = 4,
        n_cards: int | Sequence[int] = 52,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.k, self.n_cards = whole_or_range("k", k, 2), whole_or_range("n_cards", n_cards)
        fewest, self._most = bounds(self.n_cards)
        most_back = bounds(self.k)[1]
        require(fewest > most_back, f"n_cards must be at least {most_back + 1}, one more than k", n_cards)
        super().__init__(num_envs, spaces.Discrete(SUITS), spaces.Discrete(SUITS), device, render_mode)
        require_memory(8 * self.num_envs * self._most, num_envs=self.num_envs, n_cards=n_cards)

    def _draw(self, count: int) -> dict[str, Tensor]:
        cards = draw_whole(self.n_cards, count, self.generator)
        suits = shuffled(cards, self._most, self.generator) % SUITS
        return {
            "suits": suits,
            "back": draw_whole(self.k, count, self.generator),
            "cards": cards,
            "time": torch.zeros_like(cards),
            "acted": torch.full_like(suits, -1),
        }

    def _asked(self) -> tuple[Tensor, Tensor]:
        place = self.time + 1 - self.back
        return place >= 0, place.clamp(0, self._most - 1).unsqueeze(-1)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        named = self._name(actions)
        terminated = self.time == self.cards - 1
        return named / (self.cards - self.back), terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        return self.suits.gather(1, self.time.clamp(max=self._most - 1).unsqueeze(-1)).squeeze(-1)

    def returns(self) -> Returns:
        fewest, most = bounds(self.n_cards)
        pairs = []  # probability of an earlier suit (row) together with the present one (column): two cards of the deck
        for size in range(fewest, most + 1):
            counts = suit_counts(size)
            pairs.append((np.outer(counts, counts) - np.diag(counts)) / (size * (size - 1)))
        right = np.mean(pairs, axis=0).max(0).sum()
        return Returns(random=2 / SUITS - 1, memoryless=float(2 * right - 1), perfect=1.0)

    def memory_demand(self) -> int:
        return bounds(self.k)[1] - 1
