"""
A core's flat state as the pair of tensors that sb3-contrib carries.

sb3-contrib carries the state of a recurrent policy as a pair of tensors ``(n_layers, B, hidden_size)``. The flat state of a
core is cut into two halves of shape ``(1, B, ceil(S / 2))``, so that every core fits.

Shapes: ``B`` sequences (environments, during a rollout), ``S`` size of a core's state.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rmc_rl.errors import require

StatePair = tuple[Tensor, ...]  # two halves of a flat state, each (1, B, ceil(S / 2))


class StateShape(NamedTuple):
    """What sb3-contrib's algorithm reads from ``policy.lstm_actor`` to allocate its storage."""

    num_layers: int
    hidden_size: int


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
    Check the shapes of a pair.

    :param pair: the pair, see :func:`split_state`
    :param state_size: ``S``
    :raises UsageError: if it is not two tensors ``(1, B, ceil(S / 2))``
    """
    expected = (state_size + 1) // 2
    fits = len(pair) == 2 and all(half.dim() == 3 and half.shape[::2] == (1, expected) for half in pair)
    require(fits, f"a state must be a pair of arrays (1, n_envs, {expected})", tuple(tuple(half.shape) for half in pair))


def join_state(pair: StatePair, state_size: int) -> Tensor:
    """
    The inverse of :func:`split_state`.

    :param pair: two tensors ``(1, B, ceil(S / 2))``
    :param state_size: ``S``
    :return: ``(B, S)``
    :raises UsageError: if the pair does not have this shape
    """
    check_state(pair, state_size)
    first, second = pair
    return torch.cat([first[0], second[0]], dim=-1)[:, :state_size]
