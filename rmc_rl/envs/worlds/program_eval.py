"""
Evaluation of short programs as a reinforcement-learning problem: read a program, then act out its result.

Tasks: Zaremba & Sutskever, "Learning to execute", 2014, https://arxiv.org/abs/1410.4615; with these sizes in Santoro et al.,
"Relational recurrent neural networks", 2018, https://arxiv.org/abs/1806.01822, section 4.2 and appendix A.2.

Shapes: ``B`` worlds, ``P`` programs, ``T`` steps of the longest episode.
"""

from random import Random
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import BatchedWorld
from rmc_rl.envs.parts import drawing
from rmc_rl.envs.parts.programs import CHARACTERS, MEMORISATION, TASKS, write_program
from rmc_rl.errors import require, require_choice, require_truth, require_whole

_MARKER = len(CHARACTERS)
_NOT_ASKED = 255  # where there is no right action
_CELL = 16  # pixels


class ProgramEvalWorld(BatchedWorld):
    """
    Description
    -----------
    The agent sees a program, a character per step, then a marker for as many steps as the program's result has digits,
    and acts the digits out from the first to the last, one per marker. What there is to evaluate is the ``task``:

    * "addition": nested sums, as ``(12+34)+56``
    * "control": nested choices and loops, as ``(12if34<56else78)if90>12else34`` or ``x=12for[3]x+=45``, which is 12 + 3 * 45
    * "full": those, differences and products
    * "copy", "reverse", "double": the digits of a number, in their order, backwards, or twice

    All numbers have ``length`` digits, there are ``nesting`` operations, of which each takes the one before as its first
    operand, and programs are evaluated modulo ``10 ** (length + 1)``. Episodes draw from a pool of ``n_programs`` programs,
    written once when the world is made (less than a second for the default number); ``pool_seed`` decides which, whatever the
    seed of ``reset``: evaluate with another one than was trained with to see programs that are new (the default has hardly
    any: its pool holds nearly all of 8,100).

    Action Space
    ------------
    ``Discrete(10)``: the digit to act out. Without effect while the program is shown.

    Observation Encoding
    --------------------
    ``Discrete(29)``, the same for all tasks: a character's place in ``0123456789+-*()<>=[]xifelsor``; 28 is the marker.

    Rewards
    -------
    For each digit acted out right, one over the result's number of digits, else 0. So the return is the accuracy per
    character that the papers report.

    Termination
    -----------
    The episode terminates with the result's last digit, after as many steps as program and result have characters. It
    is never truncated.

    Memory demand
    -------------
    Each digit of the program is needed until the result is acted out, and so is the place in the result, for all markers look
    alike. Return of perfect play: 1. Of random play: 0.1. A memoryless player can do no better than act out the same digit
    at each marker: 0.27 for the default (the 1 that sums above 99 begin with), the share of the most frequent digit
    (:meth:`memoryless_return` computes it).

    Registered Configurations
    -------------------------
    ``rmc_rl/ProgramEval-v0``: sums of two numbers of two digits. The RMC paper: ``length=5, nesting=2``, harder
    ``length=6, nesting=3``, each task by itself; ``mix=True`` for training.

    Differences from the papers: the agent is told by markers how many digits there are, where decoders there are told by the
    loss; nothing of its own output is fed back (``previous_action_reward`` does that); the pool.

    :param num_envs: ``B``, copies side by side
    :param task: "addition", "control", "full", "copy", "reverse" or "double"
    :param length: digits of a number
    :param nesting: operations of a program; memorisation has none
    :param mix: each program has a length and a nesting of its own, uniform from 1 to ``length`` and ``nesting``
    :param n_programs: ``P``, the size of the pool
    :param pool_seed: which programs are in the pool
    :param device: where the tensors live
    :param render_mode: None, or "rgb_array": the program as far as it was shown (what is seen now on yellow), under it the
        answers (green right, red wrong)
    :raises UsageError: for an unknown task, a length, nesting or pool below 1, a negative ``pool_seed``, or nesting where a
        number is memorised
    """

    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    program: Tensor  # (B,), an index into the pool
    time: Tensor  # (B,), steps since the episode began
    acted: Tensor  # (B, T) for pictures, else (B, 0); -1: not answered

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "addition",
        length: int = 2,
        nesting: int = 1,
        mix: bool = False,
        n_programs: int = 2**16,
        pool_seed: int = 0,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        require_choice("task", task, TASKS)
        for name, value, least in (
            ("length", length, 1),
            ("nesting", nesting, 1),
            ("n_programs", n_programs, 1),
            ("pool_seed", pool_seed, 0),
        ):
            require_whole(name, value, least)
        require_truth("mix", mix)
        require(nesting == 1 or task not in MEMORISATION, f"nesting must be 1 where task is '{task}'", nesting)
        super().__init__(num_envs, spaces.Discrete(_MARKER + 1), spaces.Discrete(10), device, render_mode)
        random = Random(pool_seed)
        self.pool: list[tuple[str, str]] = []  # program and result
        for _ in range(n_programs):
            sizes = (random.randint(1, length), random.randint(1, nesting)) if mix else (length, nesting)
            self.pool.append(write_program(task, *sizes, random))
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

    def memoryless_return(self) -> float:
        """The best return without memory: that of the digit with the largest share in the pool's results."""
        shares = [sum(result.count(digit) / len(result) for _, result in self.pool) for digit in "0123456789"]
        return max(shares) / len(self.pool)

    def _draw(self, count: int) -> dict[str, Tensor]:
        program = torch.randint(len(self.pool), (count,), generator=self.generator, device=self.device)
        answers = torch.full((count, self.longest), -1, dtype=torch.int8, device=self.device)
        return {"program": program, "time": torch.zeros_like(program), "acted": answers}

    def _place(self) -> Tensor:
        """Where the present step stands in the tables, ``(B,)``."""
        return self.program * self.longest + self.time.clamp(max=self.longest - 1)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        digits = self._digits[self._place()]
        right = actions == digits
        if self.render_mode is not None:
            answer = torch.where(digits == _NOT_ASKED, -1, actions).unsqueeze(-1).to(torch.int8)
            self.acted = self.acted.scatter(1, self.time.unsqueeze(-1), answer)
        self.time = self.time + 1
        terminated = self.time == self._ends[self.program]
        return right * self._rewards[self.program], terminated, torch.zeros_like(terminated)

    def _observe(self) -> Tensor:
        return self._shown[self._place()].long()

    def _picture(self, index: int) -> np.ndarray:
        text, result = self.pool[int(self.program[index])]
        time, answers = int(self.time[index]), self.acted[index].tolist()
        frame = np.full((2 * _CELL + 8, (self.longest + 1) * _CELL, 3), drawing.PAPER, dtype=np.uint8)
        frame[:, time * _CELL : (time + 1) * _CELL] = drawing.NOW

        def write(character: str, step: int, row: int, colour: tuple[int, int, int]) -> None:
            drawing.write(frame, character, (step + 0.5) * _CELL, (row + 0.5) * _CELL + 4, colour)

        for step, character in enumerate((text + "?" * len(result))[: time + 1]):
            write(character, step, 0, drawing.SEEN if step < len(text) else drawing.DARK)
        for step, digit in enumerate(result, start=len(text)):
            if answers[step] >= 0:
                write(str(answers[step]), step, 1, drawing.RIGHT if answers[step] == int(digit) else drawing.WRONG)
        return frame
