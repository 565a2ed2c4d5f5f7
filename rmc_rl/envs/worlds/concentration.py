"""
Concentration: find pairs of cards that lie face down, two flips at a time.

Task: Morad et al., "POPGym: Benchmarking partially observable reinforcement learning", 2023, https://arxiv.org/abs/2303.01859,
whose code this world follows (popgym/envs/concentration.py).

Shapes: ``B`` worlds, ``D`` cards, ``K`` kinds.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import require_memory, whole
from rmc_rl.errors import require

NONE = -1  # no card
_CELL = 32  # pixels
_COLUMNS = 13  # of cards in pictures, at most


class ConcentrationWorld(BatchedWorld):
    """
    Description
    -----------
    ``n_cards`` cards lie face down, equally many of each of ``n_kinds`` kinds. At each step the agent flips one card. After
    two flips, the two cards stay face up if they are of the same kind; otherwise they are turned down again. The agent sees
    all cards that are face up.

    Action Space
    ------------
    ``Discrete(n_cards)``: the card to flip. A flip of a card that is face up already ends the turn, and the card that the turn
    began with is turned down. So does a second flip of the same card.

    Observation Encoding
    --------------------
    ``MultiDiscrete([n_kinds + 1] * n_cards)``: the kind of each card that is face up, ``n_kinds`` for the others. The two
    cards of a turn are shown until the next flip.

    Rewards
    -------
    ``2 / n_cards`` for a pair. ``-1 / (2 * n_cards)`` for each flip of a turn without one, given when the turn ends.

    Termination
    -----------
    The episode terminates when all cards are face up. It is truncated after ``2 * n_cards`` steps, as in POPGym, although no
    clock is observed.

    Memory demand
    -------------
    Where the cards are that were seen before, for as long as they are face down. The best returns with and without memory are
    not known. The scripted player of the answers, which forgets nothing, gets 0.81 for the default. A scripted player without
    memory, which flips cards at random among those face down, gets 0.45. Random play gets -0.19.

    Answers
    -------
    A known pair, if there is one. Otherwise a card that was never seen, and then its mate, if that was seen before; if not,
    another card that was never seen.

    Registered Configurations
    -------------------------
    ``rmc_rl/Concentration-v0``: POPGym's ConcentrationEasy, 52 cards of 2 kinds. Its Medium: ``n_cards=104``. Its Hard:
    ``n_kinds=13``. Easier to learn: ``n_cards=8, n_kinds=4``, the children's game with four pairs.

    :param num_envs: ``B``, number of copies
    :param n_cards: ``D``
    :param n_kinds: ``K``; twice this number must divide ``n_cards``, so that each card has a mate
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the cards, with the numbers of the kinds; grey: face down (pale: never seen),
        green: found, yellow: flipped
    :raises UsageError: for fewer than two kinds, or cards that cannot all be paired
    """

    truncates = True
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    kinds: Tensor  # (B, D)
    found: Tensor  # (B, D) bool, cards of pairs
    seen: Tensor  # (B, D) bool, cards that were face up at some time
    first: Tensor  # (B,), the card that the present turn began with; NONE: the turn has not begun
    shown: Tensor  # (B, 2), cards that the present turn, or the one that just ended, shows beside pairs; NONE: fewer
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        n_cards: int = 52,
        n_kinds: int = 2,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.n_cards, self.n_kinds = whole("n_cards", n_cards), whole("n_kinds", n_kinds, 2)
        rule = f"n_cards must be a multiple of {2 * self.n_kinds}, twice n_kinds"
        require(self.n_cards % (2 * self.n_kinds) == 0, rule, n_cards)
        num_envs = whole("num_envs", num_envs)
        require_memory(8 * num_envs * self.n_cards * self.n_kinds, num_envs=num_envs, n_cards=n_cards, n_kinds=n_kinds)
        seen = spaces.MultiDiscrete([self.n_kinds + 1] * self.n_cards)
        super().__init__(num_envs, seen, spaces.Discrete(self.n_cards), device, render_mode)
        self.limit = 2 * self.n_cards
        self._rows = torch.arange(num_envs, device=self.device)

    def _draw(self, count: int) -> dict[str, Tensor]:
        keys = torch.rand(count, self.n_cards, generator=self.generator, device=self.device)
        kinds = keys.argsort(1) % self.n_kinds
        nothing = torch.zeros_like(kinds, dtype=torch.bool)
        return {
            "kinds": kinds,
            "found": nothing,
            "seen": nothing.clone(),
            "first": torch.full_like(kinds[:, 0], NONE),
            "shown": torch.full_like(kinds[:, :2], NONE),
            "time": torch.zeros_like(kinds[:, 0]),
        }

    def _with(self, cards: Tensor, these: Tensor) -> Tensor:
        """
        A set of cards together with one more.

        :param cards: ``(B, D)`` bool
        :param these: a card of each copy, or NONE ``(B,)``
        """
        one = torch.zeros_like(cards)
        one[self._rows, these.clamp(min=0)] = these != NONE
        return cards | one

    def _answers(self) -> Answers:
        known, unseen = self.seen & ~self.found, ~self.seen
        begun = self.first != NONE
        # cards of each kind that are known and face down, (B, K)
        numbers = torch.zeros(self.num_envs, self.n_kinds, dtype=torch.long, device=self.device)
        numbers.scatter_add_(1, self.kinds, known.long())
        of_a_pair = known & (numbers.gather(1, self.kinds) > 1)
        same = self.kinds == self.kinds.gather(1, self.first.clamp(min=0).unsqueeze(-1))
        others = torch.arange(self.n_cards, device=self.device) != self.first.unsqueeze(-1)
        wanted = torch.where(begun.unsqueeze(-1), known & same & others, of_a_pair)
        # the first card that is wanted, or else the first that was never seen
        choices = torch.where(wanted.any(1, keepdim=True), wanted, unseen)
        return Answers(choices.byte().argmax(1), torch.ones_like(begun))

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        was_up = self.found[self._rows, actions]
        begun = self.first != NONE
        kind, first_kind = (self.kinds[self._rows, card] for card in (actions, self.first.clamp(min=0)))
        pair = begun & ~was_up & (kind == first_kind) & (actions != self.first)
        fails = (was_up | begun) & ~pair
        self.shown = torch.stack([self.first, actions], -1)
        self.seen = self._with(self.seen, actions)
        self.found = self._with(self._with(self.found, torch.where(pair, actions, NONE)), torch.where(pair, self.first, NONE))
        self.first = torch.where(pair | fails, NONE, actions)
        self.time = self.time + 1
        flips = 1 + begun.long()
        rewards = pair * (2 / self.n_cards) - fails * flips / (2 * self.n_cards)
        return rewards, self.found.all(1), self.time == self.limit

    def _observe(self) -> Tensor:
        up = self._with(self._with(self.found, self.shown[:, 0]), self.shown[:, 1])
        return torch.where(up, self.kinds, self.n_kinds)

    def returns(self) -> Returns:
        default = self._has_defaults("n_cards", "n_kinds")
        return Returns(random=-0.19) if default else Returns()

    def memory_demand(self) -> int:
        return self.limit - 1

    def _picture(self, index: int) -> np.ndarray:
        rows = -(-self.n_cards // _COLUMNS)
        columns = -(-self.n_cards // rows)
        cells = np.full((rows, columns, 3), drawing.PAPER, dtype=np.uint8)
        shown = self.shown[index].tolist()
        for card in range(self.n_cards):
            colour = drawing.WALL if self.seen[index, card] else drawing.GRID
            colour = drawing.GOAL if self.found[index, card] else colour
            cells[divmod(card, columns)] = drawing.NOW if card in shown else colour
        frame = drawing.enlarge(cells, _CELL, drawing.PAPER)
        for card in range(self.n_cards):
            if card in shown or self.found[index, card]:
                row, column = divmod(card, columns)
                text = str(int(self.kinds[index, card]))
                drawing.write(frame, text, (column + 0.5) * _CELL, (row + 0.5) * _CELL, drawing.DARK)
        return frame
