"""
Balls that bounce in a box without friction: mechanics that several worlds share.

After the bouncing balls of Sutskever & Hinton, 2007, in the form of van Steenkiste et al., "Relational neural expectation
maximization", 2018, https://arxiv.org/abs/1802.10353 (balls of different mass, a curtain), as Goyal et al. 2019 use them.

Shapes: ``B`` worlds, ``N`` places for balls, of which some may be empty. The box is the unit square; the unit of time is a
frame.
"""

import torch
from torch import Tensor

SMALLEST, LARGEST = 0.07, 0.1  # radii
MOST_BALLS = 16  # that fit in a grid of 4x4
SUBSTEPS = 8  # of a frame, if balls can meet: a ball moves a small part of its radius in each


def draw_balls(
    count: int,
    least: int,
    most: int,
    speed: float | Tensor,
    generator: torch.Generator,
    same_size: bool = False,
    places: int | None = None,
) -> dict[str, Tensor]:
    """
    Draw balls that do not touch, each with its own direction.

    :param count: ``B``
    :param least: the smallest number of balls in a world
    :param most: the largest number of balls in a world
    :param speed: in box lengths per frame; or that of each world, ``(B,)``
    :param generator: the source of randomness; its device is the tensors' device
    :param same_size: whether all balls have the same size and mass
    :param places: ``N``, places for balls; None: ``most``
    :return: ``position`` and ``velocity`` ``(B, N, 2)``, ``radius`` ``(B, N)``, 0 where there is no ball
    """
    device, places = generator.device, most if places is None else places

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    side = 1
    while side**2 < places:
        side += 1
    n_balls = least + (uniform(1) * (most - least + 1)).long()
    present = torch.arange(places, device=device) < n_balls  # (B, N)
    radius = (LARGEST if same_size else SMALLEST + (LARGEST - SMALLEST) * uniform(places)) * present
    # each ball has its own cell of a grid, and is anywhere in it
    cell = uniform(side**2).argsort(1)[:, :places]
    corner = torch.stack([cell % side, cell // side], -1) / side
    room = 1 / side - 2 * radius.unsqueeze(-1)
    position = corner + radius.unsqueeze(-1) + room * uniform(places, 2)
    angle = 2 * torch.pi * uniform(places)
    each = speed.view(-1, 1, 1) if isinstance(speed, Tensor) else speed
    velocity = each * torch.stack([angle.cos(), angle.sin()], -1) * present.unsqueeze(-1)
    return {"position": position, "velocity": velocity, "radius": radius}


def move(position: Tensor, velocity: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """
    Advance the balls by one frame. They move straight, and bounce elastically off walls and each other. Their mass is
    proportional to their area.

    Each substep moves the balls, reflects them at the walls, and exchanges momentum between pairs of balls that touch and
    approach. If a ball touches several balls, it collides with the nearest one, if it is also the nearest of that one. So each
    collision conserves energy and momentum up to rounding.

    :param position: ``(B, N, 2)``
    :param velocity: ``(B, N, 2)``, box lengths per frame
    :param radius: ``(B, N)``, 0 where there is no ball
    :return: position and velocity after the frame
    """
    there = radius > 0
    mass = radius.square()
    pairs = there.unsqueeze(1) & there.unsqueeze(2) & ~torch.eye(radius.shape[1], dtype=torch.bool, device=radius.device)
    touch = radius.unsqueeze(1) + radius.unsqueeze(2)  # (B, N, N)
    low = radius.unsqueeze(-1)
    own = torch.arange(radius.shape[1], device=radius.device)
    substeps = SUBSTEPS if radius.shape[1] > 1 else 1
    for _ in range(substeps):
        position = position + velocity / substeps
        below, above = position < low, position > 1 - low
        position = torch.where(below, 2 * low - position, torch.where(above, 2 * (1 - low) - position, position))
        velocity = torch.where(below, velocity.abs(), torch.where(above, -velocity.abs(), velocity))
        if substeps == 1:
            break
        apart = position.unsqueeze(1) - position.unsqueeze(2)  # (B, N, N, 2), from the first to the second
        gap = apart.square().sum(-1).sqrt() - touch
        closing = ((velocity.unsqueeze(1) - velocity.unsqueeze(2)) * apart).sum(-1) < 0
        nearest, partner = torch.where(pairs & closing & (gap < 0), gap, torch.inf).min(-1)  # (B, N)
        hits = (nearest < 0) & (partner.gather(1, partner) == own)
        index = partner.unsqueeze(-1).expand(-1, -1, 2)
        normal = torch.nn.functional.normalize(position.gather(1, index) - position, dim=-1)
        approach = ((velocity.gather(1, index) - velocity) * normal).sum(-1)
        other = mass.gather(1, partner)
        change = torch.where(hits, 2 * other / (mass + other).clamp(min=1e-12) * approach, 0)
        velocity = velocity + change.unsqueeze(-1) * normal
    return position, velocity


def coverage(position: Tensor, radius: Tensor, grid: int) -> Tensor:
    """
    How far balls cover the cells of a grid: 0.5 if the edge of a ball passes through a cell's centre, 1 half a cell further in

    A ball that is smaller than a cell is enlarged to reach from a cell's centre to its corners, so that it covers at least one
    cell.

    :param position: ``(B, N, 2)``, x to the right and y downwards
    :param radius: ``(B, N)``
    :param grid: cells along a side
    :return: for each ball ``(B, N, grid, grid)``, rows and columns, 0 to 1
    """
    centres = (torch.arange(grid, device=radius.device) + 0.5) / grid
    across = (position[..., :1] - centres).square().unsqueeze(-2)  # (B, N, 1, grid)
    down = (position[..., 1:] - centres).square().unsqueeze(-1)  # (B, N, grid, 1)
    reach = radius.clamp(min=0.5**0.5 / grid) * (radius > 0) - (radius <= 0).float()
    return (0.5 + (reach.view(*reach.shape, 1, 1) - (across + down).sqrt()) * grid).clamp(0, 1)
