"""
Evaluation of short programs as a reinforcement-learning problem: observe a program, then act the digits of its result.

Tasks: Zaremba & Sutskever, "Learning to execute", 2014, https://arxiv.org/abs/1410.4615; with these sizes in Santoro et al.,
"Relational recurrent neural networks", 2018, https://arxiv.org/abs/1806.01822, section 4.2 and appendix A.2.

Shapes: ``B`` worlds, ``P`` programs.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmc_rl.envs.base import BatchedWorld
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.keywords import bounds, draw_whole, require_memory, whole, whole_or_range
from rmc_rl.envs.parts.programs import CHARACTERS, MEMORISATION, TASKS, write_program
from rmc_rl.envs.parts.texts import TextWorld, group_bounds
from rmc_rl.errors import require, require_choice, require_truth

_MARKER = len(CHARACTERS)
DIGITS = 10
MOST_DIGITS, MOST_NESTING = 1000, 100  # Python converts numbers of at most 4,300 digits to text
_NUMBERS_PER_OPERATION, _SIGNS_PER_OPERATION = 3, 12  # besides the previous operation, at most
_CELL = 16  # pixels


class ProgramEvalWorld(TextWorld):
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

    ranges = ("length", "nesting")
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

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
        random, first = Random(pool_seed), group_bounds(n_programs, n_groups)
        self.pool: list[tuple[str, str]] = []  # program and result
        sizes = [(int(digits), int(operations)) for digits in lengths for operations in nestings]
        for each, count in zip(sizes, np.diff(first), strict=True):
            self.pool += [write_program(task, *each, random) for _ in range(count)]
        self._smallest, self._n_nestings = (int(lengths[0]), int(nestings[0])), len(nestings)
        code = {character: index for index, character in enumerate(CHARACTERS)}
        texts, results = ([[code[character] for character in each] for each in part] for part in zip(*self.pool, strict=True))
        super().__init__(num_envs, texts, results, first, _MARKER, DIGITS, device, render_mode)

    def _group(self, length: Any, nesting: Any) -> Any:
        """The number of the group of programs of these sizes, numbers or tensors."""
        return (length - self._smallest[0]) * self._n_nestings + nesting - self._smallest[1]

    def _draw_groups(self, count: int) -> Tensor:
        group: Tensor = self._group(*(draw_whole(sizes, count, self.generator) for sizes in (self.length, self.nesting)))
        return group

    def _present_groups(self) -> list[int]:
        (shortest, longest), (least, most) = bounds(self.length), bounds(self.nesting)
        pairs = [(digits, operations) for digits in range(shortest, longest + 1) for operations in range(least, most + 1)]
        return [self._group(*pair) for pair in pairs]

    def _picture(self, index: int) -> np.ndarray:
        text, result = self.pool[int(self.text[index])]
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
