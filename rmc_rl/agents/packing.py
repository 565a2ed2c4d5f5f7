"""
The packing of sequences into rows, and running a core over them.

Shapes: ``B`` sequences and ``n`` steps of a minibatch, ``R`` rows that they are packed into, ``L'`` steps of a row;
``F`` features, ``O`` features that a core writes, ``S`` size of its state.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rmc_rl.agents.cores import Core
from rmc_rl.agents.state import StatePair, join_state, split_state

# runs a core: features (n, F) and states before -> outputs (n, O) and states after
Unroll = Callable[[Core, Tensor, StatePair], tuple[Tensor, StatePair]]


class Layout(NamedTuple):
    """
    Where each step of a minibatch stands in the grid ``(L', R)`` that a core runs through.

    Episodes are packed end to end into rows; only the end of a row is padded. The core takes ``L'`` steps in time, as many as
    the longest piece of an episode has. Only the core computes on the padding.
    """

    steps: Tensor  # (L', R), index of the step at each place of the grid; any valid index where the grid is padded
    places: Tensor  # (n,), index of each step's place in the flattened grid
    episode_starts: Tensor  # (L', R), 1 where an episode starts
    sequences: Tensor  # (R,), index of the sequence whose state starts this row; unused if the row starts with a new episode


def pack(episode_starts: np.ndarray, lengths: np.ndarray) -> Layout:
    """
    Cut sequences where episodes start, and pack the pieces into rows as long as the longest piece.

    A piece that continues the episode in which its sequence began always starts a new row, because it needs the stored state.
    The other pieces start from the core's initial state: they fill the rows, the longest first, each into the row with the
    most room.

    :param episode_starts: ``(n,)`` bool, true where an episode starts, sequence after sequence
    :param lengths: ``(B,)`` int, steps of each sequence
    :return: where each step stands
    """
    total = len(episode_starts)
    ends = np.cumsum(lengths)
    cuts = episode_starts.copy()
    cuts[ends - lengths] = True
    begins = np.flatnonzero(cuts)  # first step of each piece
    sizes = np.diff(np.append(begins, total))
    continues = ~episode_starts[begins]
    longest = int(sizes.max())
    row, time = np.zeros_like(sizes), np.zeros_like(sizes)  # of each piece
    first_pieces = np.flatnonzero(continues).tolist()  # the piece at the start of each row
    row[continues] = np.arange(len(first_pieces))
    # a heap has its smallest element first: the room of a row is kept as a negative number
    room = [(int(sizes[piece]) - longest, index) for index, piece in enumerate(first_pieces)]
    heapq.heapify(room)
    others = np.flatnonzero(~continues)
    for piece in others[np.argsort(-sizes[others], kind="stable")].tolist():
        size = int(sizes[piece])
        if room and -room[0][0] >= size:
            free, index = heapq.heappop(room)
        else:
            free, index = -longest, len(first_pieces)
            first_pieces.append(piece)
        row[piece], time[piece] = index, longest + free
        heapq.heappush(room, (free + size, index))

    num_rows, steps = len(first_pieces), np.arange(total)
    times = np.repeat(time - begins, sizes) + steps  # of each step in its row
    places = times * num_rows + np.repeat(row, sizes)
    grid = np.zeros(longest * num_rows, dtype=np.int64)
    grid[places] = steps
    starts = np.zeros((longest, num_rows), dtype=np.float32)
    starts[time, row] = ~continues
    sequences = np.searchsorted(ends, begins[first_pieces], side="right")
    return Layout(*map(torch.from_numpy, (grid.reshape(longest, num_rows), places, starts, sequences)))


def unroll_sequences(core: Core, features: Tensor, states: StatePair, episode_starts: Tensor) -> tuple[Tensor, StatePair]:
    """
    Run a core over ``B`` sequences of equal length ``T``; while acting ``T`` is 1.

    :param features: sequence after sequence, ``(B * T, F)``
    :param states: before the first step of each sequence, a pair ``(layers, B, width)``, see :mod:`rmc_rl.agents.state`
    :param episode_starts: not 0 where a step starts an episode, ``(B * T,)``
    :return: outputs ``(B * T, O)`` and the states after the last step
    """
    num_layers = len(states[0])
    state = join_state(states, core.state_size, num_layers)
    batch = len(state)
    # (B * T, F) -> (T, B, F), and (B * T,) -> (T, B)
    steps = features.view(batch, -1, features.shape[1]).transpose(0, 1)
    starts = episode_starts.view(batch, -1).T > 0.5
    outputs, state = core(steps, state, starts)
    return outputs.transpose(0, 1).flatten(0, 1), split_state(state, num_layers)  # (T, B, O) -> (B * T, O)


def unroll_packed(core: Core, features: Tensor, states: StatePair, layout: Layout) -> tuple[Tensor, StatePair]:
    """
    Run a core over ``n`` steps that are packed into ``R`` rows.

    :param features: ``(n, F)``
    :param states: before the first step of each row, a pair ``(layers, R, width)``
    :param layout: where each step stands
    :return: outputs ``(n, O)`` and the states after the last step of each row
    """
    num_layers = len(states[0])
    state = join_state(states, core.state_size, num_layers)
    # index_select, because the gradient of indexing is slow; (n, F) -> (L, R, F)
    rows = features.index_select(0, layout.steps.flatten()).view(*layout.steps.shape, -1)
    outputs, state = core(rows, state, layout.episode_starts > 0.5)
    return outputs.flatten(0, 1).index_select(0, layout.places), split_state(state, num_layers)  # (L, R, O) -> (n, O)
