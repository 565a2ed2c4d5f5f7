"""
The two tasks, as batches of copies in NumPy: one file that every peer's Python can import, so that all meet the same worlds.

Shapes: ``B`` copies. An episode that ends begins anew in the same step. The worlds are those of ``rmc_rl/Copy-v0`` (4 symbols,
length 3, delay 5; a symbol observed as a one-hot vector) and of ``rmc_rl/CartPolePositions-v0``.
"""

import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Step(NamedTuple):
    """What a step returns."""

    observations: Array  # (B, num_inputs) float32; where an episode ended, the first ones of the next
    rewards: Array  # (B,) float32
    terminated: Array  # (B,) bool
    truncated: Array  # (B,) bool, ended by the time limit
    last: Array  # (B, num_inputs) float32, the last observations of the episodes that ended, elsewhere the present ones


class World:
    """
    Copies of a task.

    :param num_envs: ``B``
    :param seed: of all draws
    """

    num_inputs: int
    num_actions: int

    def __init__(self, num_envs: int, seed: int):
        self.num_envs = num_envs
        self.rng = np.random.default_rng(seed)

    def reset(self) -> Array:
        """Begin new episodes in all copies; their first observations."""
        raise NotImplementedError

    def step(self, actions: Array) -> Step:
        """
        Advance all copies.

        :param actions: ``(B,)`` whole numbers
        """
        raise NotImplementedError


class CopyWorld(World):
    """Observe symbols, wait, and repeat them in order: ``1 / length`` for each right symbol. All episodes are equally long."""

    n_symbols, length, delay = 4, 3, 5
    num_inputs, num_actions = n_symbols + 2, n_symbols  # also blank and the marker

    def reset(self) -> Array:
        self.time = 0
        self.symbols = self.rng.integers(self.n_symbols, size=(self.num_envs, self.length))
        return self._observe()

    def _observe(self) -> Array:
        seen = np.zeros((self.num_envs, self.num_inputs), dtype=np.float32)
        if self.time < self.length:
            seen[np.arange(self.num_envs), self.symbols[:, self.time]] = 1
        else:
            seen[:, self.n_symbols + (self.time == self.length + self.delay - 1)] = 1
        return seen

    def step(self, actions: Array) -> Step:
        place = self.time - self.length - self.delay
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        if place >= 0:
            rewards[actions == self.symbols[:, place]] = 1 / self.length
        self.time += 1
        last = self._observe()
        ended = place == self.length - 1
        done, never = np.full(self.num_envs, ended), np.zeros(self.num_envs, dtype=bool)
        return Step(self.reset() if ended else last, rewards, done, never, last)


class CartPoleWorld(World):
    """Gymnasium's CartPole-v1 without its velocities."""

    num_inputs, num_actions = 2, 2
    most_steps = 500

    def reset(self) -> Array:
        self.state = self._draw(self.num_envs)
        self.time = np.zeros(self.num_envs, dtype=np.int64)
        return self._observe()

    def _draw(self, count: int) -> Array:
        return self.rng.uniform(-0.05, 0.05, (count, 4))

    def _observe(self) -> Array:
        return self.state[:, [0, 2]].astype(np.float32)

    def step(self, actions: Array) -> Step:
        gravity, mass, pole_mass, half_length, seconds = 9.8, 1.1, 0.1, 0.5, 0.02
        _, speed, angle, turning = self.state.T
        force = np.where(actions == 1, 10.0, -10.0)
        cos, sin = np.cos(angle), np.sin(angle)
        push = (force + pole_mass * half_length * turning**2 * sin) / mass
        turn = (gravity * sin - cos * push) / (half_length * (4 / 3 - pole_mass * cos**2 / mass))
        pull = push - pole_mass * half_length * turn * cos / mass
        change = np.stack((speed, pull, turning, turn), axis=1)
        self.state = self.state + seconds * change
        self.time += 1
        terminated = (np.abs(self.state[:, 0]) > 2.4) | (np.abs(self.state[:, 2]) > 12 * math.pi / 180)
        truncated = (self.time >= self.most_steps) & ~terminated
        last = self._observe()
        ended = terminated | truncated
        if ended.any():
            self.state[ended] = self._draw(int(ended.sum()))
            self.time[ended] = 0
        return Step(self._observe(), np.ones(self.num_envs, dtype=np.float32), terminated, truncated, last)
