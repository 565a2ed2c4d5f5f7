"""
Mini PacMan with a partial view: eat the food of a maze, flee from ghosts, or hunt them after eating a pill.

Task: Racanière et al., "Imagination-augmented agents for deep reinforcement learning", 2017, https://arxiv.org/abs/1707.06203
(appendix on MiniPacman: rules, levels, modes); with a view of 5x5 cells Santoro et al., "Relational recurrent neural
networks", 2018, https://arxiv.org/abs/1806.01822, section 4.3.

Shapes: ``B`` worlds, ``M`` mazes, ``P`` places of a maze, ``n`` places in view, ``g`` ghosts at most.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rmc_rl.envs.base import Answers, BatchedWorld, Returns
from rmc_rl.envs.parts import drawing, mazes
from rmc_rl.envs.parts.keywords import draw_whole, require_memory, whole, whole_or_range
from rmc_rl.errors import require, require_choice

VIEWS = ("window", "full")
KINDS = 6  # planes: wall, food, Pacman, ghost, edible ghost, pill
_PAINTED = [0, 1, 5, 2, 3, 4]  # planes in the order in which pixels are painted: what moves hides what does not
MOST_GHOSTS = 8  # from level 15 on
N_PILLS, POWER = 2, 20  # pills of a level, steps that one lasts
SPAWN_DISTANCE = 5  # steps between Pacman and a new ghost, at least
MOVES_FIRST, MOVES_MORE = 0.5, 0.1  # probability that a ghost moves at level 1, and the increase per level
ASTRAY = 0.05  # probability of a random turn
_CELL = 8  # pixels, of pictures and of obs="pixels"
_LEAST_PIXELS = 36  # along a side, the smallest image for SB3's convolutional network
_TERROR, _BOREDOM = 1000, 500  # more than any distance: what the scripted player avoids
_PLACES = mazes.HEIGHT * mazes.WIDTH
_COLOURS = (drawing.WALL, drawing.FOOD, drawing.AGENT, drawing.WRONG, drawing.SEEN, drawing.RIGHT)


class Mode(NamedTuple):
    """Rewards, and the end of a level."""

    step: float
    food: float
    pill: float
    ghost: float
    death: float
    ends: str  # "food", "ghosts" or "pills": when none are left; "steps": after LEVEL_STEPS


LEVEL_STEPS = 128
MODES = {
    "regular": Mode(0, 1, 2, 5, 0, "food"),
    "avoid": Mode(0.1, -0.1, -5, -10, -20, "steps"),
    "hunt": Mode(0, 0, 1, 10, -20, "ghosts"),
    "ambush": Mode(0, -0.1, 0, 10, -20, "ghosts"),
    "rush": Mode(0, -0.1, 10, 0, 0, "pills"),
}


class MiniPacmanWorld(BatchedWorld):
    """
    Description
    -----------
    A maze of 15x19 cells, of which 138 are free and contain food. Ghosts (one more every second level) take the shortest way
    to Pacman, faster at each level. After Pacman eats a pill (two in each level), ghosts flee for 20 steps and can be eaten.
    A level ends when its food is eaten (``mode`` decides), and the next one begins at once, with everything in it new.

    Action Space
    ------------
    ``Discrete(5)``: 0 stay, 1 right, 2 up, 3 left, 4 down. Steps into walls have no effect.

    Observation Encoding
    --------------------
    ``Box(0, 1, (150,))``: planes of 5x5 cells around Pacman, flattened: walls, food, Pacman, ghosts, edible ghosts, pills.
    ``view="full"``: planes of all 15x19 cells, ``(1710,)``. ``obs="pixels"``: an image of the same cells,
    ``Box(0, 255, (3, 40, 40), uint8)``.

    Rewards
    -------
    ========  ====  ====  ====  =====  =====  =========================
    mode      step  food  pill  ghost  death  the level ends
    ========  ====  ====  ====  =====  =====  =========================
    regular   0     1     2     5      0      when there is no food
    avoid     0.1   -0.1  -5    -10    -20    after 128 steps
    hunt      0     0     1     10     -20    when there are no ghosts
    ambush    0     -0.1  0     10     -20    when there are no ghosts
    rush      0     -0.1  10    0      0      when there are no pills
    ========  ====  ====  ====  =====  =====  =========================

    Termination
    -----------
    The episode terminates when a ghost catches Pacman. It is truncated after ``max_steps`` steps, because no clock is
    observed.

    Memory demand
    -------------
    Where food and pills are left, for hundreds of steps, and where ghosts went that are not visible. The best return is not
    known. A player that knows everything, goes to the nearest food or pill and avoids ghosts nearby gets 147 for the default.
    A player that knows only what is visible, and otherwise moves at random, gets 120. Random play: 8.

    Answers
    -------
    The actions of the player that gets 147. It is scripted and not perfect: it does not hunt ghosts and does not plan ahead.
    It is made for mode "regular".

    Registered Configurations
    -------------------------
    ``rmc_rl/MiniPacman-v0``: mode "regular", a view of 5x5, 200 steps. The RMC paper: ``max_steps=3000``, and ``view="full"``.
    Harder: ``view_size=3``. Returns are large: if value and policy train one core, use ``algo.vf_coef=0.01``, so that the
    value's loss does not dominate the policy's.

    Differences from the papers: the map is our own, with the same size and number of free cells; the positions of pills and
    Pacman are drawn for each level; ghosts know the shortest way.

    :param num_envs: ``B``, number of copies
    :param mode: "regular", "avoid", "hunt", "ambush" or "rush"
    :param view: "window" around Pacman, or "full"
    :param view_size: cells along the window, odd
    :param obs: "planes" or "pixels"
    :param n_mazes: ``M``, the number of generated mazes, from which each episode draws; 0: the one fixed map
    :param maze_seed: which mazes are generated
    :param max_steps: steps after which the episode is truncated; or a range ``[low, high]``, drawn per episode
    :param device: where the tensors are
    :param render_mode: None, or "rgb_array": the whole maze, the visible part brighter
    :raises UsageError: for an unknown mode, view or obs, an even ``view_size``, or invalid numbers
    """

    truncates = True
    ranges = ("max_steps",)
    metadata: dict[str, Any] = BatchedWorld.metadata | {"render_modes": ["rgb_array"]}

    maze: Tensor  # (B,), an index of the mazes
    pacman: Tensor  # (B,), a place
    food: Tensor  # (B, P) bool
    pills: Tensor  # (B, P) bool
    ghosts: Tensor  # (B, g), places
    alive: Tensor  # (B, g) bool
    power: Tensor  # (B,), steps that a pill still lasts
    level: Tensor  # (B,), from 1
    level_time: Tensor  # (B,), steps since the level began
    limit: Tensor  # (B,), steps after which the episode is truncated
    time: Tensor  # (B,), steps since the episode began

    def __init__(
        self,
        num_envs: int = 1,
        mode: str = "regular",
        view: str = "window",
        view_size: int = 5,
        obs: str = "planes",
        n_mazes: int = 0,
        maze_seed: int = 0,
        max_steps: int | Sequence[int] = 200,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ):
        require_choice("mode", mode, MODES)
        require_choice("view", view, VIEWS)
        require_choice("obs", obs, ("planes", "pixels"))
        num_envs, view_size = whole("num_envs", num_envs), whole("view_size", view_size, 3)
        require(view_size % 2 == 1, "view_size must be odd", view_size)
        n_mazes, maze_seed = whole("n_mazes", n_mazes, 0), whole("maze_seed", maze_seed, 0)
        self.max_steps = whole_or_range("max_steps", max_steps)
        height, width = (view_size, view_size) if view == "window" else (mazes.HEIGHT, mazes.WIDTH)
        rule = "view_size must be at least 5 with obs='pixels'"
        require(obs == "planes" or height * _CELL >= _LEAST_PIXELS, rule, view_size)
        n_bytes = max(8 * _PLACES * height * width, num_envs * MOST_GHOSTS * height * width, 2 * n_mazes * _PLACES**2)
        require_memory(n_bytes, num_envs=num_envs, view_size=view_size, n_mazes=n_mazes)
        planes = spaces.Box(0, 1, (KINDS * height * width,), np.float32)
        pixels = spaces.Box(0, 255, (3, height * _CELL, width * _CELL), np.uint8)
        seen = planes if obs == "planes" else pixels
        super().__init__(num_envs, seen, spaces.Discrete(len(mazes.STEPS)), device, render_mode)
        self.mode, self.rule, self.obs = mode, MODES[mode], obs
        self.view, self.view_size, self.view_shape, self.n_mazes = view, view_size, (height, width), n_mazes
        rng = np.random.default_rng(maze_seed)
        walls = [mazes.random_maze(rng) for _ in range(n_mazes)] or [mazes.fixed_maze()]
        self.walls = self._tensor(np.stack(walls)).flatten(1)  # (M, P)
        # (M, P, 5) -> (M * P, 5); (M, P, P) -> (M * P, P)
        self._neighbours = self._tensor(np.stack([mazes.neighbours(maze) for maze in walls])).flatten(0, 1)
        self._distances = self._tensor(np.stack([mazes.distances(maze) for maze in walls])).flatten(0, 1)
        self._views = self._tensor(_views(view_size) if view == "window" else np.tile(np.arange(_PLACES), (_PLACES, 1)))
        self._numbers = torch.arange(MOST_GHOSTS, device=self.device)
        self._palette = self._tensor(np.array(_COLOURS, dtype=np.uint8))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _draw(self, count: int) -> dict[str, Tensor]:
        maze = torch.randint(len(self.walls), (count,), generator=self.generator, device=self.device)
        level = torch.ones_like(maze)
        limit = draw_whole(self.max_steps, count, self.generator)
        return {"maze": maze, "level": level, "limit": limit, "time": torch.zeros_like(maze)} | self._draw_level(maze, level)

    def _draw_level(self, maze: Tensor, level: Tensor) -> dict[str, Tensor]:
        """The state that is drawn for each level: all but maze, level and time."""
        count, free = len(maze), ~self.walls[maze]

        def shuffled(allowed: Tensor) -> Tensor:
            return torch.rand(count, _PLACES, generator=self.generator, device=self.device) * allowed

        pacman = shuffled(free).argmax(1)
        far = self._distances[maze * _PLACES + pacman]
        pill_places = shuffled(free).topk(N_PILLS).indices
        pills = torch.zeros_like(free).scatter_(1, pill_places, True)
        ghosts = shuffled(free & (far >= SPAWN_DISTANCE)).topk(MOST_GHOSTS).indices
        zeros = torch.zeros_like(maze)
        alive = self._numbers < 1 + (level.unsqueeze(1) - 1) // 2
        return dict(pacman=pacman, food=free, pills=pills, ghosts=ghosts, alive=alive, power=zeros, level_time=zeros.clone())

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rule = self.rule
        self.pacman = self._neighbours[self.maze * _PLACES + self.pacman, actions]
        here = self.pacman.unsqueeze(1)
        ate, took = self.food.gather(1, here).squeeze(1), self.pills.gather(1, here).squeeze(1)
        self.food = self.food.scatter(1, here, False)
        self.pills = self.pills.scatter(1, here, False)
        self.power = torch.where(took, POWER, (self.power - 1).clamp(min=0))
        eaten, caught = self._meet()
        self._move_ghosts()
        eaten_after, caught_after = self._meet()
        eaten, caught = eaten + eaten_after, caught | caught_after
        self.time, self.level_time = self.time + 1, self.level_time + 1
        rewards = rule.step + rule.food * ate + rule.pill * took + rule.ghost * eaten + rule.death * caught
        left = {
            "food": lambda: self.food.any(1),
            "ghosts": lambda: self.alive.any(1),
            "pills": lambda: self.pills.any(1),
            "steps": lambda: self.level_time < LEVEL_STEPS,
        }[rule.ends]()
        cleared = ~left & ~caught
        self.level = self.level + cleared.long()
        self._replace(cleared, lambda copies: self._draw_level(self.maze[copies], self.level[copies]))
        return rewards.float(), caught, self.time == self.limit

    def _answers(self) -> Answers:
        actions = self.greedy(torch.ones_like(self.food), torch.zeros(self.num_envs, 5, device=self.device))
        return Answers(actions, torch.ones_like(self.alive[:, 0]))

    def greedy(self, known: Tensor, otherwise: Tensor) -> Tensor:
        """
        The actions of a player that goes to the nearest food or pill it knows, but not next to a ghost it knows.

        :param known: whose content it knows, ``(B, P)`` bool
        :param otherwise: where it knows no food or pill, it prefers the action with the smallest of these numbers, ``(B, 5)``
        :return: ``(B,)``
        """
        own = self.maze * _PLACES
        wanted = (self.food | self.pills) & known
        distances = self._distances[own + self.pacman].float()
        goal = torch.where(wanted, distances, torch.inf).argmin(1)
        ways = self._neighbours[own + self.pacman]  # (B, 5)
        far = self._distances[own.unsqueeze(1) + ways]  # (B, 5, P)
        towards = far.gather(2, goal.view(-1, 1, 1).expand(-1, 5, 1)).squeeze(2).float()
        towards = torch.where(wanted.any(1, keepdim=True), towards, otherwise)
        feared = self.alive & known.gather(1, self.ghosts) & (self.power == 0).unsqueeze(1)
        near = far.gather(2, self.ghosts.unsqueeze(1).expand(-1, 5, -1)) <= 1
        threatened = (near & feared.unsqueeze(1)).any(2)
        stays = ways == self.pacman.unsqueeze(1)
        return (towards + _TERROR * threatened + _BOREDOM * stays).argmin(1)

    def returns(self) -> Returns:
        default = self._has_defaults("mode", "view", "view_size", "n_mazes", "max_steps")
        return Returns(random=8.0, memoryless=120.0) if default else Returns()

    def _meet(self) -> tuple[Tensor, Tensor]:
        """Ghosts eaten where Pacman is, ``(B,)``, and whether one caught him, ``(B,)`` bool."""
        meets = self.alive & (self.ghosts == self.pacman.unsqueeze(1))
        powered = (self.power > 0).unsqueeze(1)
        self.alive = self.alive & ~(meets & powered)
        return (meets & powered).sum(1), (meets & ~powered).any(1)

    def _move_ghosts(self) -> None:
        """A step of each ghost, towards Pacman or away from him."""
        own = self.maze.unsqueeze(1) * _PLACES
        ways = self._neighbours[own + self.ghosts]  # (B, g, 5)
        far = self._distances[self.maze * _PLACES + self.pacman].gather(1, ways.flatten(1)).view(ways.shape)
        powered = (self.power > 0).unsqueeze(1)
        heading = torch.where(powered.unsqueeze(-1), -far, far).argmin(-1)
        chance = torch.rand(3, *self.ghosts.shape, generator=self.generator, device=self.device)
        heading = torch.where(chance[0] < ASTRAY, 1 + (chance[1] * 4).long(), heading)
        moves = (MOVES_FIRST + MOVES_MORE * (self.level - 1)).clamp(max=1).unsqueeze(1)
        moves = torch.where(powered, moves / 2, moves)
        there = ways.gather(2, heading.unsqueeze(-1)).squeeze(-1)
        self.ghosts = torch.where(chance[2] < moves, there, self.ghosts)

    def planes(self) -> Tensor:
        """The visible cells, ``(B, 6, n)`` bool."""
        view = self._views[self.pacman]  # (B, n)
        # (B, n, 1) == (B, 1, g)
        at = (view.unsqueeze(2) == self.ghosts.unsqueeze(1)) & self.alive.unsqueeze(1)
        ghosts, edible = at.any(2), (self.power > 0).unsqueeze(1)
        walls = self.walls.flatten()[self.maze.unsqueeze(1) * _PLACES + view]
        own = view == self.pacman.unsqueeze(1)
        food, pills = self.food.gather(1, view), self.pills.gather(1, view)
        return torch.stack([walls, food, own, ghosts & ~edible, ghosts & edible, pills], 1)

    def _observe(self) -> Tensor:
        planes = self.planes()
        if self.obs == "planes":
            return planes.flatten(1).float()
        # the last nonzero plane of a cell decides its colour: (B, 6, n) -> (B, n)
        order = torch.arange(1, KINDS + 1, device=self.device).view(1, -1, 1)
        top = (planes[:, _PAINTED] * order).amax(1)
        # (B, n) -> (B, n, 3) -> (B, 3, h, w)
        colours = torch.where(top.unsqueeze(-1) > 0, self._palette[_PAINTED][(top - 1).clamp(min=0)], 0)
        image = colours.transpose(1, 2).reshape(-1, 3, *self.view_shape)
        return image.repeat_interleave(_CELL, 2).repeat_interleave(_CELL, 3)

    def _picture(self, index: int) -> np.ndarray:
        walls = self.walls[self.maze[index]].cpu().numpy()
        cells = np.where(walls[:, None], drawing.WALL, drawing.GRID).astype(np.uint8)
        near = self._views[self.pacman[index]].cpu().numpy()
        cells[near] = np.where(walls[near, None], drawing.WALL, drawing.PAPER)
        frame = drawing.enlarge(cells.reshape(mazes.HEIGHT, mazes.WIDTH, 3), _CELL, lines=None)

        def dot(place: int, radius: float, colour: tuple[int, int, int]) -> None:
            row, column = divmod(place, mazes.WIDTH)
            drawing.disc(frame, (column + 0.5) * _CELL, (row + 0.5) * _CELL, radius, colour)

        for place in self.food[index].nonzero().flatten().tolist():
            dot(place, 1.5, drawing.FOOD)
        for place in self.pills[index].nonzero().flatten().tolist():
            dot(place, 3, drawing.RIGHT)
        for place in self.ghosts[index][self.alive[index]].tolist():
            dot(place, 4, drawing.SEEN if self.power[index] > 0 else drawing.WRONG)
        dot(int(self.pacman[index]), 4, drawing.AGENT)
        return frame


def _views(size: int) -> np.ndarray:
    """The places visible from each place, ``(P, size * size)``; outside the maze a corner, which is a wall."""
    rows, columns = np.divmod(np.arange(_PLACES), mazes.WIDTH)
    reach = np.arange(size) - size // 2
    near_rows = np.broadcast_to(rows[:, None, None] + reach[:, None], (_PLACES, size, size))
    near_columns = np.broadcast_to(columns[:, None, None] + reach, (_PLACES, size, size))
    inside = (near_rows >= 0) & (near_rows < mazes.HEIGHT) & (near_columns >= 0) & (near_columns < mazes.WIDTH)
    return np.where(inside, near_rows * mazes.WIDTH + near_columns, 0).reshape(_PLACES, -1)
