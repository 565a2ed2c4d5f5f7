"""
What gridworlds share: moves, views of a map of cells, and shortest ways.

Shapes: ``B`` worlds, ``H`` rows and ``W`` columns of the map, ``h`` and ``w`` of a view, ``S`` states and ``A`` actions of an
agent.
"""

import torch
from torch import Tensor

# (row, column) of a step up, right, down, left: clockwise, as directions are counted
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


def look(cells: Tensor, rows: Tensor, columns: Tensor, outside: int) -> Tensor:
    """
    The content of some cells.

    :param cells: ``(B, H, W)``, the content of each cell
    :param rows: ``(B, ...)``, may be outside the map
    :param columns: ``(B, ...)``
    :param outside: the content of cells outside the map
    :return: ``(B, ...)``
    """
    height, width = cells.shape[1:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # (B, ...) -> (B, places), and back
    index = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
    return torch.where(inside, cells.flatten(1).gather(1, index).view(rows.shape), outside)


def ahead(cells: Tensor, row: Tensor, column: Tensor, direction: Tensor, size: int, outside: int) -> Tensor:
    """
    The square in front of an agent, rotated so that the agent is in the middle of the last row and looks up.

    :param cells: ``(B, H, W)``
    :param row: of the agent, ``(B,)``
    :param column: of the agent, ``(B,)``
    :param direction: in which it looks, ``(B,)``, an index of :data:`MOVES`
    :param size: cells along the square, odd
    :param outside: the content of cells outside the map
    :return: ``(B, size, size)``
    """
    forward = torch.arange(size - 1, -1, -1, device=cells.device).view(1, -1, 1)  # the last row is the agent's
    sideways = (torch.arange(size, device=cells.device) - size // 2).view(1, 1, -1)
    moves = torch.tensor(MOVES, device=cells.device)
    up, right = moves[direction], moves[(direction + 1) % len(MOVES)]  # (B, 2)
    rows, columns = (
        place.view(-1, 1, 1) + forward * up[:, axis].view(-1, 1, 1) + sideways * right[:, axis].view(-1, 1, 1)
        for axis, place in enumerate((row, column))
    )
    return look(cells, rows, columns, outside)


def planes(cells: Tensor, kinds: int) -> Tensor:
    """
    A plane for each kind of cell, flattened.

    :param cells: ``(B, h, w)``, whole numbers below ``kinds``
    :param kinds: how many kinds of cells there are
    :return: ``(B, kinds * h * w)`` float32, 1 where a cell is of the plane's kind
    """
    kind = torch.arange(kinds, device=cells.device).view(1, -1, 1, 1)
    return (cells.unsqueeze(1) == kind).float().flatten(1)


def steps_to(goals: Tensor, free: Tensor, ways: Tensor) -> Tensor:
    """
    Steps from each state to the nearest goal, on a shortest way through free states.

    :param goals: which states are goals, ``(B, S)`` bool
    :param free: which states a way may pass, ``(B, S)`` bool
    :param ways: the state after each action, ``(S, A)``
    :return: ``(B, S)`` float32; infinite if there is no way
    """
    steps = torch.where(goals, 0.0, torch.inf)
    while True:
        nearer = torch.where(free & ~goals, 1 + steps[:, ways].amin(-1), steps)  # (B, S, A) -> (B, S)
        if nearer.equal(steps):
            return steps
        steps = nearer


def first_action(steps: Tensor, ways: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """
    The first action of a shortest way.

    :param steps: of :func:`steps_to`, ``(B, S)``
    :param ways: the state after each action, ``(S, A)``
    :param state: the present state, ``(B,)``
    :return: the action ``(B,)``, and whether there is a way ``(B,)`` bool
    """
    fewest, action = steps.gather(1, ways[state]).min(1)
    return action, fewest.isfinite()
