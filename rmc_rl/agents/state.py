"""
Between a core's flat state and the pair that sb3-contrib carries, and between steps and the rows that a core runs through.

Shapes: ``B`` sequences (environments, while acting), ``S`` size of a core's state.

sb3-contrib carries the state of a recurrent policy as a pair of tensors ``(n_layers, B, hidden_size)``. The flat state
of a core is cut in two halves to fill it, ``(1, B, ceil(S / 2))`` each, so that any core fits.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rmc_rl.errors import require

StatePair = tuple[Tensor, ...]  # two halves of a flat state, each (1, B, ceil(S / 2))


class StateShape(NamedTuple):
    """What sb3-contrib's algorithm reads off ``policy.lstm_actor`` to lay out its storage."""

    num_layers: int
    hidden_size: int


class Layout(NamedTuple):
    """
    How the steps of sequences lie in the grid ``(T, R)`` that a core runs through: rows of whole episodes, one after another.

    A core that reads ``n`` steps in ``R`` rows takes ``T`` steps in time, as many as the longest piece of an episode, however
    long the sequences are. What is left over at the ends of rows is padding, which costs the core alone.
    """

    grid: Tensor  # (T, R), which of the n steps stands where; in padding any
    places: Tensor  # (n,), where in the flattened grid each step stands
    starts: Tensor  # (T, R), 1 where an episode starts
    rows: Tensor  # (R,), whose state a row begins with: a sequence; of a row that begins with an episode's start, any


def split_state(state: Tensor) -> StatePair:
    """
    Cut flat states into the pair that sb3-contrib carries.

    :param state: ``(B, S)``
    :return: two tensors ``(1, B, ceil(S / 2))``; an odd ``S`` is padded with one zero
    """
    if state.shape[1] % 2:
        state = nn.functional.pad(state, (0, 1))
    first, second = state.unsqueeze(0).chunk(2, dim=-1) if state.shape[1] else (state.unsqueeze(0),) * 2
    return first.contiguous(), second.contiguous()


def check_state(pair: StatePair, state_size: int) -> None:
    """
    Check a pair.

    :param pair: what :func:`split_state` should have made
    :param state_size: ``S``
    :raises UsageError: where it is not two tensors ``(1, B, ceil(S / 2))``
    """
    expected = (state_size + 1) // 2
    fits = len(pair) == 2 and all(half.dim() == 3 and half.shape[::2] == (1, expected) for half in pair)
    require(fits, f"a state must be a pair of arrays (1, n_envs, {expected})", tuple(tuple(half.shape) for half in pair))


def join_state(pair: StatePair, state_size: int) -> Tensor:
    """
    The reverse of :func:`split_state`.

    :param pair: two tensors ``(1, B, ceil(S / 2))``
    :param state_size: ``S``
    :return: ``(B, S)``
    :raises UsageError: where the pair is not of this shape
    """
    check_state(pair, state_size)
    first, second = pair
    return torch.cat([first[0], second[0]], dim=-1)[:, :state_size]
