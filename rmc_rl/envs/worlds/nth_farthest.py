"""
Nth Farthest as a reinforcement-learning problem: which vector is the nth farthest from vector m?

Task: Santoro et al., "Relational recurrent neural networks", 2018, https://arxiv.org/abs/1806.01822, section 4.1 and
appendix A.1 (8 vectors of 16 dimensions).

Shapes: ``B`` worlds, ``N`` vectors of an episode, ``D`` dimensions.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import one_hot

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import require_memory, whole

MEMORYLESS = 0.71  # of the default
_SIDE, _LINE, _DISC = 200, 24, 11  # pixels: of the plane, of the line of text under it, radius of a vector


class NthFarthestWorld(BatchedWorld):
    """
    Description
    -----------
    The agent observes ``n_vectors`` vectors, one per step, each with its label, and at every step the same question: which
    vector is the ``n``-th farthest from the vector with label ``m``? It answers with a label at the last vector. Vectors are
    uniform in ``[-1, 1]`` in each dimension. Labels are drawn without replacement, so a label is not the order of
    appearance. ``n`` and ``m`` are uniform. Vector ``m`` is ranked too, as in the paper: its distance is 0, so it is the
    answer if ``n`` is ``n_vectors``.

    Action Space
    ------------
    ``Discrete(n_vectors)``: the answer, a label. Actions before the last vector have no effect.

    Observation Encoding
    --------------------
    ``Box(-1, 1, (dim + 3 * n_vectors,))``: a vector, its label one-hot, ``n`` one-hot (first: the farthest), ``m`` one-hot.

    Rewards
    -------
    1 for the right answer at the last step, otherwise 0.

    Termination
    -----------
    The episode terminates after ``n_vectors`` steps, with the answer. It is never truncated.

    Memory demand
    -------------
    Every vector is needed up to ``n_vectors - 1`` steps after it was observed, and distances between pairs of them: a
    relation, not a single memory. Return of perfect play: 1. Of random play: ``1 / n_vectors``. A memoryless player sees the
    question and the last vector. It answers ``m`` if ``n`` is ``n_vectors``, and otherwise any other label: this gives
    ``2 / n_vectors``, the plateau of 25 % that people report at the paper's sizes. The position of the last vector helps a
    little, because vectors near a corner are more often far: 0.71 is the best memoryless return for the default, found by
    integration in the tests.

    Answers
    -------
    The right label at the last step.

    Registered Configurations
    -------------------------
    ``rmc_rl/NthFarthest-v0``: 3 vectors of 2 dimensions. The paper: ``n_vectors=8, dim=16`` (its authors' example code, Sonnet
    v1, counts ``n`` from the nearest: the same questions with other names).

    :param num_envs: ``B``, number of copies
    :param n_vectors: ``N``, also the steps of an episode
    :param dim: ``D``, dimensions of a vector
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the first two dimensions (if there is one: it and time) of the observed vectors,
        the last vector on yellow, ``m`` with a ring, the question, and the answer (green: right, red: wrong)
    :raises UsageError: for ``n_vectors`` below 2 or ``dim`` below 1
    """

    family = "recall"
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    shown: Tensor  # (B, N, D + 3N), the observations of an episode
    target: Tensor  # (B,), the label that answers the question
    time: Tensor  # (B,), steps since the episode began
    answer: Tensor  # (B,), kept only for pictures; -1: not answered yet

    def __init__(
        self,
        num_envs: int = 1,
        n_vectors: int = 3,
        dim: int = 2,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        self.n_vectors, self.dim = whole("n_vectors", n_vectors, 2), whole("dim", dim)
        num_envs, features = whole("num_envs", num_envs), self.dim + 3 * self.n_vectors
        require_memory(4 * num_envs * self.n_vectors * features, num_envs=num_envs, n_vectors=n_vectors, dim=dim)
        seen = spaces.Box(-1, 1, (features,), np.float32)
        super().__init__(num_envs, seen, spaces.Discrete(self.n_vectors), device, render_mode)
        self._rows = torch.arange(num_envs, device=self.device)

    def _draw(self, count: int) -> dict[str, Tensor]:
        size, random, device = self.n_vectors, self.generator, self.device
        vectors = 2 * torch.rand(count, size, self.dim, generator=random, device=device) - 1
        labels = torch.rand(count, size, generator=random, device=device).argsort(1)
        # place: of vector m in the order of appearance
        n, place = torch.randint(size, (2, count, 1), generator=random, device=device)
        # (count, 1) -> (count, 1, D)
        centre = vectors.gather(1, place.unsqueeze(-1).expand(-1, -1, self.dim))
        farthest_first = (vectors - centre).square().sum(-1).argsort(1, descending=True)
        target = labels.gather(1, farthest_first.gather(1, n)).squeeze(1)
        question = one_hot(torch.cat([n, labels.gather(1, place)], 1), size).flatten(1).unsqueeze(1)
        parts = (vectors, one_hot(labels, size), question.expand(-1, size, -1))
        shown = torch.cat([part.float() for part in parts], -1)
        time = torch.zeros(count, dtype=torch.long, device=device)
        return {"shown": shown, "target": target, "time": time, "answer": torch.full_like(time, -1)}

    def _answers(self) -> Answers:
        return Answers(self.target.clone(), self.time == self.n_vectors - 1)

    def returns(self) -> Returns:
        memoryless = MEMORYLESS if self._has_defaults("n_vectors", "dim") else None
        return Returns(random=1 / self.n_vectors, memoryless=memoryless, perfect=1.0)

    def memory_demand(self) -> int:
        return self.n_vectors - 1

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.time = self.time + 1
        terminated = self.time == self.n_vectors
        if self.render_mode is not None:
            self.answer = torch.where(terminated, actions, self.answer)
        right = terminated & (actions == self.target)
        return right.float(), terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        return self.shown[self._rows, self.time.clamp(max=self.n_vectors - 1)]

    def _picture(self, index: int) -> np.ndarray:
        shown, time = self.shown[index].cpu().numpy(), int(self.time[index])
        answer, target = int(self.answer[index]), int(self.target[index])
        # (N, D + 3N) -> (N, D), and N each
        vectors, labels, (n, m) = (
            shown[:, : self.dim],
            shown[:, self.dim : self.dim + self.n_vectors].argmax(1),
            shown[0, self.dim + self.n_vectors :].reshape(2, -1).argmax(1),
        )
        frame = np.full((_SIDE + _LINE, _SIDE, 3), drawing.PAPER, dtype=np.uint8)
        last = min(time, self.n_vectors - 1)
        for step, (vector, label) in enumerate(zip(vectors[: last + 1], labels, strict=False)):
            down = vector[1] if self.dim > 1 else 2 * step / (self.n_vectors - 1) - 1
            x, y = (_SIDE / 2 + (_SIDE / 2 - 2 * _DISC) * place for place in (vector[0], down))
            if step == last:
                drawing.disc(frame, x, y, _DISC + 6, drawing.NOW)
            if label == m:
                drawing.disc(frame, x, y, _DISC + 3, drawing.DARK)
            chosen = drawing.RIGHT if answer == target else drawing.WRONG
            drawing.disc(frame, x, y, _DISC, chosen if label == answer else drawing.SEEN)
            drawing.write(frame, str(label), x, y, drawing.PAPER)
        drawing.write(frame, f"farthest no. {n + 1} from {m}", _SIDE / 2, _SIDE + _LINE / 2, drawing.DARK)
        return frame
