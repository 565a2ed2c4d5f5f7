"""
A core's flat state as the pair of tensors that sb3-contrib carries.

sb3-contrib carries the state of a recurrent policy as a pair of tensors ``(n_layers, B, hidden_size)``. The flat state of a
core is cut into two halves, so that every core fits: ``L`` is 1 and ``W`` is ``ceil(S / 2)``. Only sb3-contrib's LSTM
policies have more layers: their halves are ``h`` and ``c`` of ``L`` layers.

Shapes: ``B`` sequences (environments, during a rollout), ``S`` size of a core's state, ``L`` layers of ``W`` numbers.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rmc_rl.errors import UsageError

StatePair = tuple[Tensor, ...]  # two halves of a flat state, each (L, B, W), with L * W = ceil(S / 2)


class StateShape(NamedTuple):
    """What sb3-contrib's algorithm reads from ``policy.lstm_actor`` to allocate its storage."""

    num_layers: int
    hidden_size: int


def split_state(state: Tensor, num_layers: int = 1) -> StatePair:
    """
    Cut flat states into the pair that sb3-contrib carries.

    :param state: ``(B, S)``
    :param num_layers: ``L``
    :return: two tensors ``(L, B, W)``; an odd ``S`` is padded with one zero
    """
    if state.shape[1] % 2:
        state = nn.functional.pad(state, (0, 1))
    halves = state.chunk(2, dim=-1) if state.shape[1] else (state,) * 2
    if num_layers == 1:
        return halves[0].unsqueeze(0).contiguous(), halves[1].unsqueeze(0).contiguous()  # (B, W) -> (1, B, W)
    width = halves[0].shape[1] // num_layers
    # (B, L * W) -> (B, L, W) -> (L, B, W)
    first, second = (half.reshape(len(state), num_layers, width).transpose(0, 1) for half in halves)
    return first.contiguous(), second.contiguous()


def check_state(pair: StatePair, state_size: int, num_layers: int = 1) -> None:
    """
    Check the shapes of a pair.

    :param pair: the pair, see :func:`split_state`
    :param state_size: ``S``
    :param num_layers: ``L``
    :raises UsageError: if it is not two tensors ``(L, B, W)``
    """
    shape = (num_layers, (state_size + 1) // 2 // num_layers)
    fits = len(pair) == 2 and all(half.dim() == 3 and half.shape[::2] == shape for half in pair)
    if not fits:
        found = tuple(tuple(half.shape) for half in pair)
        raise UsageError(f"a state must be a pair of arrays ({shape[0]}, n_envs, {shape[1]}), got {found}")


def join_state(pair: StatePair, state_size: int, num_layers: int = 1) -> Tensor:
    """
    The inverse of :func:`split_state`.

    :param pair: two tensors ``(L, B, W)``
    :param state_size: ``S``
    :param num_layers: ``L``
    :return: ``(B, S)``
    :raises UsageError: if the pair does not have this shape
    """
    check_state(pair, state_size, num_layers)
    # (L, B, W) -> (B, L, W) -> (B, L * W)
    halves = [half[0] if num_layers == 1 else half.transpose(0, 1).flatten(1) for half in pair]
    return torch.cat(halves, dim=-1)[:, :state_size]
