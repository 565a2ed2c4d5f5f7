"""
Between a core's flat state and the pair that sb3-contrib carries.

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


def join_state(pair: StatePair, state_size: int) -> Tensor:
    """
    The reverse of :func:`split_state`.

    :param pair: two tensors ``(1, B, ceil(S / 2))``
    :param state_size: ``S``
    :return: ``(B, S)``
    :raises UsageError: where the pair is not of this shape
    """
    first, second = pair
    expected = (state_size + 1) // 2
    fits = all(half.dim() == 3 and half.shape[0] == 1 and half.shape[2] == expected for half in pair)
    require(fits, f"a state must be a pair of arrays (1, n_envs, {expected})", tuple(tuple(half.shape) for half in pair))
    return torch.cat([first[0], second[0]], dim=-1)[:, :state_size]
