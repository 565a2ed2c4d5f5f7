"""
Evaluation of short programs as a reinforcement-learning problem: observe a program, then act the digits of its result.

Tasks: Zaremba & Sutskever, "Learning to execute", 2014, https://arxiv.org/abs/1410.4615; with these sizes in Santoro et al.,
"Relational recurrent neural networks", 2018, https://arxiv.org/abs/1806.01822, section 4.2 and appendix A.2.

Shapes: ``B`` worlds, ``P`` programs, ``T`` steps of the longest episode.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import bounds, draw_whole, require_memory, whole, whole_or_range
from rmc_rl.envs.parts.programs import CHARACTERS, MEMORISATION, TASKS, write_program
from rmc_rl.errors import require, require_choice, require_truth

_MARKER = len(CHARACTERS)
_NOT_ASKED = 255  # where there is no right action
MOST_DIGITS, MOST_NESTING = 1000, 100  # Python converts numbers of at most 4,300 digits to text
_NUMBERS_PER_OPERATION, _SIGNS_PER_OPERATION = 3, 12  # besides the previous operation, at most
_CELL = 16  # pixels


class ProgramEvalWorld(BatchedWorld):
    """
    Description
    -----------
    The agent observes a program, one character per step, then a marker for as many steps as the program's result has digits.
    At the markers it must act the digits of the result, from the first to the last. The ``task`` decides what the programs
    are:

    * "addition": nested sums, such as ``(12+34)+56``
    * "control": nested choices and loops, such as ``(12if34<56else78)if90>12else34`` or ``x=12for[3]x+=45``, which is
      12 + 3 * 45
    * "full": those, differences and products
    * "copy", "reverse", "double": the digits of a number, in order, backwards, or twice

    All numbers have ``length`` digits. A program has ``nesting`` operations, each of which takes the previous one as its
    first operand. Results are taken modulo ``10 ** (length + 1)``. Episodes draw from a pool of ``n_programs`` programs, which
    are written when the world is made (in less than a second for the default number). ``pool_seed`` decides which programs
    they are, independently of the seed of ``reset``. To evaluate on new programs, use another ``pool_seed`` than in training
    (for the default hardly any program is new: its pool contains nearly all of 8,100).

    Action Space
    ------------
    ``Discrete(10)``: a digit. Actions have no effect while the program is shown.

    Observation Encoding
    --------------------
    ``Discrete(29)``, the same for all tasks: the index of a character in ``0123456789+-*()<>=[]xifelsor``; 28 is the marker.

    Rewards
    -------
    For each right digit 1 divided by the number of digits of the result, otherwise 0. So the return is the accuracy per
    character that the papers report.

    Termination
    -----------
    The episode terminates with the last digit of the result, after as many steps as program and result have characters. It
    is never truncated.

    Memory demand
    -------------
    Each digit of the program is needed until the result is acted, and so is the position in the result, because all markers
    look alike. Return of perfect play: 1. Of random play: 0.1. The best a memoryless player can do is to act the same digit
    at each marker: 0.27 for the default (the 1 that sums above 99 begin with), the share of the most frequent digit.

    Answers
    -------
    The right digit at each marker.

    Registered Configurations
    -------------------------
    ``rmc_rl/ProgramEval-v0``: sums of two numbers of two digits. The RMC paper: ``length=5, nesting=2``, harder
    ``length=6, nesting=3``, each task by itself; ``mix=True`` for training.

    Differences from the papers: markers tell the agent how many digits there are, where the loss tells the decoders there; the
    agent does not observe its own output (``previous_action_reward`` adds it); the pool.

    :param num_envs: ``B``, number of copies
    :param task: "addition", "control", "full", "copy", "reverse" or "double"
    :param length: digits of a number, at most 1,000; or a range ``[low, high]``, drawn per episode
    :param nesting: operations of a program, at most 100; 1 for "copy", "reverse" and "double"; or a range ``[low, high]``
    :param mix: the same as ranges from 1 to ``length`` and from 1 to ``nesting``
    :param n_programs: ``P``, the size of the pool, of which each length and nesting has an equal part
    :param pool_seed: which programs are in the pool
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the program as far as it was shown (the present character on yellow), and below
        it the agent's digits (green: right, red: wrong)
    :raises UsageError: for an unknown task, sizes outside these limits, or a pool that needs too much memory
    """

    family = "recall"
    ranges = ("length", "nesting")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    program: Tensor  # (B,), an index into the pool
    time: Tensor  # (B,), steps since the episode began
    acted: Tensor  # (B, T), the agent's digits, kept only for pictures; -1: none yet

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "addition",
        length: int | Sequence[int] = 2,
        nesting: int | Sequence[int] = 1,
        mix: bool = False,
        n_programs: int = 2**16,
        pool_seed: int = 0,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        require_choice("task", task, TASKS)
        self.length = whole_or_range("length", length, at_most=MOST_DIGITS)
        self.nesting = whole_or_range("nesting", nesting, at_most=MOST_NESTING)
        (_, longest), (_, deepest) = bounds(self.length), bounds(self.nesting)
        n_programs, pool_seed = whole("n_programs", n_programs), whole("pool_seed", pool_seed, at_least=0)
        require_truth("mix", mix)
        if mix:
            self.length, self.nesting = (1, longest), (1, deepest)
        require(deepest == 1 or task not in MEMORISATION, f"nesting must be 1 if task is '{task}'", nesting)
        characters = (_NUMBERS_PER_OPERATION * deepest + 3) * longest + _SIGNS_PER_OPERATION * deepest  # at most
        require_memory(8 * n_programs * characters, n_programs=n_programs, length=length, nesting=nesting)
        self.task, self.mix = task, mix
        lengths, nestings = (np.arange(low, high + 1) for low, high in (bounds(self.length), bounds(self.nesting)))
        n_groups = len(lengths) * len(nestings)
        require(n_programs >= n_groups, f"n_programs must be at least {n_groups}, one for each length and nesting", n_programs)
        super().__init__(num_envs, spaces.Discrete(_MARKER + 1), spaces.Discrete(10), device, render_mode)
        random = Random(pool_seed)
        self.pool: list[tuple[str, str]] = []  # program and result
        # the first program of each group of one length and nesting, and the end of the last
        first = np.linspace(0, n_programs, n_groups + 1).round().astype(int)
        sizes = [(int(digits), int(operations)) for digits in lengths for operations in nestings]
        for each, count in zip(sizes, np.diff(first), strict=True):
            self.pool += [write_program(task, *each, random) for _ in range(count)]
        self._smallest, self._n_nestings = (int(lengths[0]), int(nestings[0])), len(nestings)
        self._first = torch.from_numpy(first).to(self.device)
        self.longest = max(len(text) + len(result) for text, result in self.pool)  # T
        code = {character: index for index, character in enumerate(CHARACTERS)}
        shown = np.full((n_programs, self.longest), _MARKER, dtype=np.uint8)
        digits = np.full((n_programs, self.longest), _NOT_ASKED, dtype=np.uint8)
        for row, (text, result) in enumerate(self.pool):
            shown[row, : len(text)] = [code[character] for character in text]
            digits[row, len(text) : len(text) + len(result)] = [code[character] for character in result]
        ends = [len(text) + len(result) for text, result in self.pool]
        rewards = [1 / len(result) for _, result in self.pool]
        # (P, T) -> (P * T,)
        self._shown, self._digits = (torch.from_numpy(table).to(self.device).flatten() for table in (shown, digits))
        self._ends, self._rewards = torch.tensor(ends, device=self.device), torch.tensor(rewards, device=self.device)

    def returns(self) -> Returns:
        (shortest, longest), (least, most) = bounds(self.length), bounds(self.nesting)  # as they are now
        pairs = [(digits, operations) for digits in range(shortest, longest + 1) for operations in range(least, most + 1)]
        groups = [self._group(*pair) for pair in pairs]
        pool = [each for group in groups for each in self.pool[self._first[group] : self._first[group + 1]]]
        # all markers look alike, so without memory one digit is the best answer to each
        shares = [sum(result.count(digit) / len(result) for _, result in pool) for digit in "0123456789"]
        return Returns(random=0.1, memoryless=max(shares) / len(pool), perfect=1.0)

    def memory_demand(self) -> int:
        return self.longest - 1

    def _answers(self) -> Answers:
        digits = self._digits[self._place()]
        known = digits != _NOT_ASKED
        return Answers(torch.where(known, digits, 0).long(), known)

    def _group(self, length: Any, nesting: Any) -> Any:
        """The number of the group of programs of these sizes, numbers or tensors."""
        return (length - self._smallest[0]) * self._n_nestings + nesting - self._smallest[1]

    def _draw(self, count: int) -> dict[str, Tensor]:
        group = self._group(*(draw_whole(sizes, count, self.generator) for sizes in (self.length, self.nesting)))
        first, end = self._first[group], self._first[group + 1]
        share = torch.rand(count, generator=self.generator, dtype=torch.float64, device=self.device)
        program = first + (share * (end - first)).long()
        acted = torch.full((count, self.longest), -1, dtype=torch.int8, device=self.device)
        return {"program": program, "time": torch.zeros_like(program), "acted": acted}

    def _place(self) -> Tensor:
        """The index of the present step in the tables, ``(B,)``."""
        return self.program * self.longest + self.time.clamp(max=self.longest - 1)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        digits = self._digits[self._place()]
        right = actions == digits
        if self.render_mode is not None:
            acted = torch.where(digits == _NOT_ASKED, -1, actions).unsqueeze(-1).to(torch.int8)
            self.acted = self.acted.scatter(1, self.time.unsqueeze(-1), acted)
        self.time = self.time + 1
        terminated = self.time == self._ends[self.program]
        return right * self._rewards[self.program], terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        return self._shown[self._place()].long()

    def _picture(self, index: int) -> np.ndarray:
        text, result = self.pool[int(self.program[index])]
        time, acted = int(self.time[index]), self.acted[index].tolist()
        frame = np.full((2 * _CELL + 8, (self.longest + 1) * _CELL, 3), drawing.PAPER, dtype=np.uint8)
        frame[:, time * _CELL : (time + 1) * _CELL] = drawing.NOW

        def write(character: str, step: int, row: int, colour: tuple[int, int, int]) -> None:
            drawing.write(frame, character, (step + 0.5) * _CELL, (row + 0.5) * _CELL + 4, colour)

        for step, character in enumerate((text + "?" * len(result))[: time + 1]):
            write(character, step, 0, drawing.SEEN if step < len(text) else drawing.DARK)
        for step, digit in enumerate(result, start=len(text)):
            if acted[step] >= 0:
                write(str(acted[step]), step, 1, drawing.RIGHT if acted[step] == int(digit) else drawing.WRONG)
        return frame
