"""One copy of a world as an environment of Gymnasium, for projects that step their environments one by one."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from peers.common import Clocked, Run
from peers.worlds import Array

_runs: list[Run] = []  # of this process; a project imports this module by itself and makes environments without arguments
_made: list["SingleWorld"] = []


def serve(run: Run) -> None:
    """Let :class:`SingleWorld` make worlds of this run."""
    _runs[:] = [run]


class SingleWorld(gymnasium.Env[Array, Any]):
    """A copy, with a seed of its own."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, **_keywords: Any):
        run = _runs[0]
        self.worlds = Clocked(run.clock, 1, run.seed * 1000 + len(_made))
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.worlds.num_inputs,), np.float32)
        self.action_space = spaces.Discrete(self.worlds.num_actions)
        self.render_mode = "rgb_array"
        _made.append(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        return self.worlds.reset()[0], {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        step = self.worlds.step(np.asarray(action).reshape(1))
        return step.last[0], float(step.rewards[0]), bool(step.terminated[0]), bool(step.truncated[0]), {}

    def render(self) -> Any:
        return np.zeros((64, 64, 3), dtype=np.uint8)
