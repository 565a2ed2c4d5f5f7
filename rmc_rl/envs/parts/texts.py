"""
Worlds whose episodes show a text, symbol by symbol, and ask for its answer: what program evaluation and stories share.

Shapes: ``B`` worlds, ``P`` texts, ``T`` steps of the longest episode, ``G`` groups of texts.
"""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns

_NOT_ASKED = -1  # where there is no right action


class TextWorld(BatchedWorld):
    """
    ``B`` copies of a world that draws each episode from a pool of texts.

    An episode shows the symbols of a text, then the marker for as many steps as its answer has symbols. The actions at the
    markers should be the answer, each in turn. They change only the reward: 1 divided by the length of the answer for each
    right one. The texts are in groups; a subclass says from which group each episode draws.

    :param num_envs: ``B``
    :param texts: of each text its symbols, as indices
    :param results: of each text its answer, as actions
    :param first: the first text of each group, and the end of the last, ``(G + 1,)``
    :param marker: the symbol that asks; all others are smaller
    :param n_actions: actions are smaller
    :param device: where the tensors are
    :param render_mode: None or one of ``metadata["render_modes"]``
    """

    family = "recall"

    text: Tensor  # (B,), an index into the pool
    time: Tensor  # (B,), steps since the episode began
    acted: Tensor  # (B, T), the agent's actions at markers, kept only for pictures; -1: none yet

    def __init__(
        self,
        num_envs: int,
        texts: Sequence[Sequence[int]],
        results: Sequence[Sequence[int]],
        first: np.ndarray,
        marker: int,
        n_actions: int,
        device: torch.device | str,
        render_mode: str | None,
    ):
        super().__init__(num_envs, spaces.Discrete(marker + 1), spaces.Discrete(n_actions), device, render_mode)
        lengths = [(len(text), len(result)) for text, result in zip(texts, results, strict=True)]
        self.longest = max(map(sum, lengths))  # T
        shown = np.full((len(texts), self.longest), marker, dtype=np.uint8 if marker < 2**8 else np.int32)
        asked = np.full((len(texts), self.longest), _NOT_ASKED, dtype=np.int16)
        for row, (text, result) in enumerate(zip(texts, results, strict=True)):
            shown[row, : len(text)] = text
            asked[row, len(text) : len(text) + len(result)] = result
        # (P, T) -> (P * T,)
        self._shown, self._asked = (torch.from_numpy(table).to(self.device).flatten() for table in (shown, asked))
        self._ends = torch.tensor([sum(each) for each in lengths], device=self.device)
        self._rewards = torch.tensor([1 / length for _, length in lengths], device=self.device)
        self._first = torch.from_numpy(first).to(self.device)

    @abstractmethod
    def _draw_groups(self, count: int) -> Tensor:
        """The group from which each of some episodes draws its text, ``(count,)``."""

    @abstractmethod
    def _present_groups(self) -> Sequence[int]:
        """The groups from which episodes draw at present, evenly."""

    def returns(self) -> Returns:
        n_actions = int(self.action_space[0].n)  # type: ignore[index]
        return Returns(random=1 / n_actions, memoryless=self._guess(), perfect=1.0)

    def _guess(self) -> float:
        """The best return of a player that always acts alike. All markers look alike, so without memory there is no better."""
        asked, rewards = self._asked.view(-1, self.longest).cpu().numpy(), self._rewards.cpu().numpy()
        first, shares = self._first.tolist(), []
        for group in self._present_groups():
            rows = slice(first[group], first[group + 1])
            known = asked[rows] != _NOT_ASKED
            weights = np.broadcast_to(rewards[rows, None], known.shape)[known]
            counts = np.bincount(asked[rows][known], weights, minlength=asked.max() + 1)
            shares.append(counts / len(known))
        return float(np.mean(shares, axis=0).max())

    def memory_demand(self) -> int:
        return self.longest - 1

    def _answers(self) -> Answers:
        asked = self._asked[self._place()]
        known = asked != _NOT_ASKED
        return Answers(torch.where(known, asked, 0).long(), known)

    def _draw(self, count: int) -> dict[str, Tensor]:
        group = self._draw_groups(count)
        first, end = self._first[group], self._first[group + 1]
        share = torch.rand(count, generator=self.generator, dtype=torch.float64, device=self.device)
        text = first + (share * (end - first)).long()
        acted = torch.full((count, self.longest), -1, dtype=torch.int16, device=self.device)
        return {"text": text, "time": torch.zeros_like(text), "acted": acted}

    def _place(self) -> Tensor:
        """The index of the present step in the tables, ``(B,)``."""
        return self.text * self.longest + self.time.clamp(max=self.longest - 1)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        asked = self._asked[self._place()]
        right = actions == asked
        if self.render_mode is not None:
            acted = torch.where(asked == _NOT_ASKED, -1, actions).unsqueeze(-1).to(torch.int16)
            self.acted = self.acted.scatter(1, self.time.unsqueeze(-1), acted)
        self.time = self.time + 1
        terminated = self.time == self._ends[self.text]
        return right * self._rewards[self.text], terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        return self._shown[self._place()].long()


def group_bounds(n_texts: int, n_groups: int) -> np.ndarray:
    """
    Cuts a pool into groups of nearly the same size.

    :param n_texts: ``P``
    :param n_groups: ``G``
    :return: the first text of each group, and the end of the last, ``(G + 1,)``
    """
    bounds: np.ndarray = np.linspace(0, n_texts, n_groups + 1).round().astype(int)
    return bounds
