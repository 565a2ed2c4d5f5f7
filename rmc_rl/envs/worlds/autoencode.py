"""
Autoencode: cards are dealt one by one, then the agent names their suits in reverse order.

Task: Morad et al., "POPGym: Benchmarking partially observable reinforcement learning", 2023, https://arxiv.org/abs/2303.01859,
whose code this world follows (popgym/envs/autoencode.py).

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

WATCH, PLAY = 1, 0  # the first number of an observation


class AutoencodeWorld(SuitsWorld):
    """
    Description
    -----------
    A deck of cards is dealt one card per step, and the agent observes the suit of each. When all are dealt, it must name
    their suits in reverse order: the last one first.

    Action Space
    ------------
    ``Discrete(4)``: a suit. Actions have no effect until the last card is shown.

    Observation Encoding
    --------------------
    ``MultiDiscrete([2, 4])``: whether cards are still dealt (1) or the agent must answer (0), and the suit of the present
    card. The last card is shown together with the first 0. After it the suit is always 0.

    Rewards
    -------
    ``1 / n_cards`` for each right suit, the same with a minus for a wrong one. So the return is between -1 and 1.

    Termination
    -----------
    The episode terminates after ``2 * n_cards - 1`` steps, with the last answer. It is never truncated.

    Memory demand
    -------------
    The first card is needed ``2 * n_cards - 2`` steps after it was observed, the second two steps less, and so on. Return of
    perfect play: 1. Of random play: -0.5. Of a memoryless player: -0.47 for the default. It sees the last card while it
    answers for it; at all other steps that count it must always answer alike.

    Answers
    -------
    The right suit at each step that counts.

    Registered Configurations
    -------------------------
    ``rmc_rl/Autoencode-v0``: POPGym's AutoencodeEasy, 52 cards. Its Medium and Hard: ``n_cards=104`` and 156. Easier: fewer.

    :param num_envs: ``B``, number of copies
    :param n_cards: cards of the deck; or a range ``[low, high]``, drawn per episode
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": a column per card with its suit (blue) and, below it, the agent's answer (green:
        right, red: wrong)
    :raises UsageError: for fewer than two cards
    """

    family = "recall"
    ranges = ("n_cards",)

    def __init__(
        self,
        num_envs: int = 1,
        n_cards: int | Sequence[int] = 52,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.n_cards = whole_or_range("n_cards", n_cards, 2)
        self._most = bounds(self.n_cards)[1]
        super().__init__(num_envs, spaces.MultiDiscrete([2, SUITS]), spaces.Discrete(SUITS), device, render_mode)
        require_memory(8 * self.num_envs * self._most, num_envs=self.num_envs, n_cards=n_cards)

    def _draw(self, count: int) -> dict[str, Tensor]:
        cards = draw_whole(self.n_cards, count, self.generator)
        suits = shuffled(cards, self._most, self.generator) % SUITS
        return {"suits": suits, "cards": cards, "time": torch.zeros_like(cards), "acted": torch.full_like(suits, -1)}

    def _asked(self) -> tuple[Tensor, Tensor]:
        # the last card is asked for while it is shown, at step n_cards - 1
        place = 2 * (self.cards - 1) - self.time
        return self.time >= self.cards - 1, place.clamp(0, self._most - 1).unsqueeze(-1)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        named = self._name(actions)
        terminated = self.time == 2 * self.cards - 1
        return named / self.cards, terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        suit = self.suits.gather(1, self.time.clamp(max=self._most - 1).unsqueeze(-1)).squeeze(-1)
        mode = torch.where(self.time < self.cards - 1, WATCH, PLAY)
        return torch.stack([mode, torch.where(self.time < self.cards, suit, 0)], -1)

    def returns(self) -> Returns:
        fewest, most = bounds(self.n_cards)
        shares = []
        for size in range(fewest, most + 1):
            counts = suit_counts(size)
            # the last card is named as it is seen. A suit that is answered at the other steps is right for those of its cards
            # that are not the last one. They look like a last card of suit 0, so another answer there costs that case
            others = counts * (1 - 1 / size)
            last = np.where(np.arange(SUITS) == 0, 1, 1 - counts[0] / size)
            shares.append((others + last) / size)
        share = np.mean(shares, axis=0).max()
        return Returns(random=2 / SUITS - 1, memoryless=float(2 * share - 1), perfect=1.0)

    def memory_demand(self) -> int:
        return 2 * bounds(self.n_cards)[1] - 2
