"""
MinAtar's games, Atari in miniature, with observations that networks can read and pictures that people can see.

Environments: Young and Tian, "MinAtar: An Atari-inspired testbed for thorough and reproducible reinforcement learning
experiments", 2019, https://arxiv.org/abs/1903.03176. The package minatar is optional: ``pip install rmc-rl[minatar]``.
"""

import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rmc_rl.envs.parts import drawing
from rmc_rl.errors import UsageError

PREFIX = "MinAtar/"
_CELL = 24  # pixels


def import_minatar(env_id: str) -> None:
    """
    Register MinAtar's environments.

    :param env_id: the id that needs them
    :raises UsageError: if minatar is not installed
    """
    try:
        module: Any = importlib.import_module("minatar.gym")
    except ImportError as error:
        raise UsageError(f"env '{env_id}' needs minatar: pip install 'rmc-rl[minatar]' ({error})") from None
    if not any(name.startswith(PREFIX) for name in gymnasium.registry):
        module.register_envs()


def is_minatar(spec: EnvSpec) -> bool:
    """Whether an environment is a game of MinAtar."""
    return isinstance(spec.entry_point, str) and spec.entry_point.startswith("minatar.")


def make_game(env_id: str, **keywords: Any) -> gymnasium.Env[Any, Any]:
    """
    A wrapped game, also in a process that has not registered MinAtar's environments.

    :param env_id: its id
    :param keywords: of the game
    """
    import_minatar(env_id)
    return MinAtarGame(gymnasium.make(env_id, render_mode="rgb_array", **keywords))


class MinAtarGame(gymnasium.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """
    A game of MinAtar. An observation has a plane of 10x10 cells for each kind of object, which contains 0 and 1.

    MinAtar's observations are of type bool, and its pictures are floats of one pixel per cell. Here observations are float32
    and pictures uint8.

    :param env: the game
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, Any]):
        super().__init__(env)
        self.observation_space = spaces.Box(0, 1, env.observation_space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation.astype(np.float32), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation.astype(np.float32), float(reward), bool(terminated), truncated, info

    def render(self) -> Any:
        """The cells as MinAtar colours them, enlarged."""
        cells: Any = self.unwrapped.render()  # Gymnasium warns of pictures that are not uint8
        if not isinstance(cells, np.ndarray) or self.render_mode != "rgb_array":
            return cells
        return drawing.enlarge((255 * cells).round().astype(np.uint8), _CELL, lines=None)
