"""
Keywords of worlds: checks that also convert to Python's own types, ranges that are drawn per episode, and limits of memory.

NumPy's integers are valid keywords, but not all of torch accepts them. So a world keeps what these functions return.
"""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from rmc_rl.errors import UsageError, require, require_number, require_whole

MOST_BYTES = 8 * 2**30  # of one tensor of a world

# a number for all episodes, or the smallest and the largest number, from which each episode draws its own
WholeOrRange = int | tuple[int, int]
NumberOrRange = float | tuple[float, float]


def whole(name: str, value: Any, at_least: int = 1, at_most: int | None = None) -> int:
    """
    Check a whole number.

    :param name: the keyword's name
    :param value: the value received
    :param at_least: the smallest valid value
    :param at_most: the largest valid value; None: there is none
    :return: the value as an ``int``
    :raises UsageError: for another value
    """
    require_whole(name, value, at_least)
    require(at_most is None or value <= at_most, f"{name} must be at most {at_most}", value)
    return int(value)


def number(name: str, value: Any, **bounds: float) -> float:
    """
    Check a number.

    :param name: the keyword's name
    :param value: the value received
    :param bounds: as of :func:`~rmc_rl.errors.require_number`
    :return: the value as a ``float``
    :raises UsageError: for another value
    """
    require_number(name, value, **bounds)
    return float(value)


def whole_or_range(name: str, value: Any, at_least: int = 1, at_most: int | None = None) -> WholeOrRange:
    """
    Check a whole number, or a range from which each episode draws its own number.

    :param name: the keyword's name
    :param value: the value received: a number, or ``[low, high]``
    :param at_least: the smallest valid number
    :param at_most: the largest valid number; None: there is none
    :return: the number as an ``int``, or the range as a tuple of two
    :raises UsageError: for another value
    """
    if not isinstance(value, list | tuple | np.ndarray):
        return whole(name, value, at_least, at_most)
    rule = f"{name} must be a whole number or a range [low, high] of whole numbers of at least {at_least}"
    try:
        low, high = (whole(name, bound, at_least) for bound in value)
    except ValueError:
        raise UsageError(f"{rule}, got {value!r}") from None
    require(low <= high, rule, value)
    require(at_most is None or high <= at_most, f"{name} must be at most {at_most}", value)
    return low, high


def number_or_range(name: str, value: Any, **bounds: float) -> NumberOrRange:
    """
    Check a number, or a range from which each episode draws its own number.

    :param name: the keyword's name
    :param value: the value received: a number, or ``[low, high]``
    :param bounds: as of :func:`~rmc_rl.errors.require_number`
    :return: the number as a ``float``, or the range as a tuple of two
    :raises UsageError: for another value
    """
    if not isinstance(value, list | tuple | np.ndarray):
        return number(name, value, **bounds)
    require(len(value) == 2, f"{name} must be a number or a range [low, high] of numbers", value)
    low, high = (number(name, bound, **bounds) for bound in value)
    require(low <= high, f"{name} must be a number or a range [low, high], the lower number first", value)
    return low, high


@overload
def bounds(value: WholeOrRange) -> tuple[int, int]: ...
@overload
def bounds(value: NumberOrRange) -> tuple[float, float]: ...
def bounds(value: Any) -> Any:
    """The smallest and the largest number of a keyword."""
    return value if isinstance(value, tuple | list) else (value, value)


def draw_whole(value: WholeOrRange | Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """
    A keyword's number in each of some episodes.

    :param value: a number, which is used in all episodes, or a range ``(low, high)``, from which each episode draws evenly
    :param count: how many episodes
    :param generator: the source of randomness; its device is the result's
    :return: ``(count,)`` int64
    """
    if isinstance(value, int):
        return torch.full((count,), value, device=generator.device)
    low, high = value
    return torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)


def draw_number(value: NumberOrRange, count: int, generator: torch.Generator) -> Tensor:
    """
    A keyword's number in each of some episodes.

    :param value: a number, which is used in all episodes, or a range ``(low, high)``, from which each episode draws evenly
    :param count: how many episodes
    :param generator: the source of randomness; its device is the result's
    :return: ``(count,)`` float32
    """
    low, high = bounds(value)
    if low == high:
        return torch.full((count,), float(low), device=generator.device)
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def require_memory(n_bytes: int, **sizes: object) -> None:
    """
    Refuse sizes before a world allocates memory that a computer does not have.

    :param n_bytes: the size of the largest tensor
    :param sizes: the keywords that decide it
    :raises UsageError: for more than 8 GiB
    """
    if n_bytes > MOST_BYTES:
        received = ", ".join(f"{name}={value!r}" for name, value in sizes.items())
        limit, needed = (f"{size / 2**30:,.0f} GiB" for size in (MOST_BYTES, n_bytes))
        raise UsageError(f"{', '.join(sizes)} must need at most {limit} of memory, got {received} ({needed})")
