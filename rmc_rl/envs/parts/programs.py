"""
Short programs and their results, as text.

Tasks: Zaremba & Sutskever, "Learning to execute", 2014, https://arxiv.org/abs/1410.4615; in the form in which Santoro et al.,
"Relational recurrent neural networks", 2018, https://arxiv.org/abs/1806.01822, section 4.2, used them: nested expressions of
DeepMind's data set, Sonnet v1, sonnet/examples/learn_to_execute.py.
"""

from collections.abc import Callable
from random import Random

CHARACTERS = "0123456789+-*()<>=[]xifelsor"
MOST_ROUNDS = 9  # of a loop

# (value, text)
Operand = tuple[int, str]


def _add(_: Random, operands: list[Operand]) -> Operand:
    (a, left), (b, right) = operands
    return a + b, f"{left}+{right}"


def _subtract(_: Random, operands: list[Operand]) -> Operand:
    (a, left), (b, right) = operands
    return a - b, f"{left}-{right}"


def _multiply(_: Random, operands: list[Operand]) -> Operand:
    (a, left), (b, right) = operands
    return a * b, f"{left}*{right}"


def _choose(random: Random, operands: list[Operand]) -> Operand:
    (a, then), (b, left), (c, right), (d, other) = operands
    is_less = random.random() < 0.5
    value = a if (b < c if is_less else b > c) else d
    return value, f"{then}if{left}{'<' if is_less else '>'}{right}else{other}"


def _loop(random: Random, operands: list[Operand]) -> Operand:
    (a, start), (b, step) = operands
    rounds = random.randint(1, MOST_ROUNDS)
    return a + rounds * b, f"x={start}for[{rounds}]x+={step}"


# (how many operands, operation)
Operation = tuple[int, Callable[[Random, list[Operand]], Operand]]
_ALGEBRA: list[Operation] = [(2, _add), (2, _subtract), (2, _multiply)]
_CONTROL: list[Operation] = [(4, _choose), (2, _loop)]
PROGRAMS: dict[str, list[Operation]] = {"addition": [(2, _add)], "control": _CONTROL, "full": _ALGEBRA + _CONTROL}

MEMORISATION: dict[str, Callable[[str], str]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits[::-1],
    "double": lambda digits: digits + digits,
}

TASKS = (*PROGRAMS, *MEMORISATION)


def write_program(task: str, length: int, nesting: int, random: Random) -> tuple[str, str]:
    """
    A program and its result.

    Each operation takes the previous one as its first operand, in brackets, and numbers as the others. Results of programs
    are taken modulo ``10 ** (length + 1)``, so they are never negative. Memorisation tasks have one number.

    :param task: one of :data:`TASKS`
    :param length: digits of a number
    :param nesting: number of operations; memorisation has none
    :param random: the source of randomness
    :return: the program's text, of :data:`CHARACTERS`, and its result, of digits
    """

    def number() -> Operand:
        value = random.randint(10 ** (length - 1), 10**length - 1)
        return value, str(value)

    if task in MEMORISATION:
        _, digits = number()
        return digits, MEMORISATION[task](digits)
    operands = [number()]
    for depth in range(nesting):
        count, operation = random.choice(PROGRAMS[task])
        value, text = operation(random, operands + [number() for _ in range(count - 1)])
        operands = [(value, text if depth == nesting - 1 else f"({text})")]
    return text, str(value % 10 ** (length + 1))
