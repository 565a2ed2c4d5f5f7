"""
MiniGrid and BabyAI environments with observations that networks can read.

Environments: Chevalier-Boisvert et al., "Minigrid & Miniworld", 2023, https://arxiv.org/abs/2306.13831. The package minigrid
is optional: ``pip install rmc-rl[minigrid]``.
"""

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import FlattenObservation

from rmc_rl.errors import UsageError, require_choice

PREFIXES = ("MiniGrid-", "BabyAI-")
VIEWS = ("onehot", "flat", "pixels")


def import_minigrid(env_id: str) -> None:
    """
    Register MiniGrid's environments.

    :param env_id: the id that needs them
    :raises UsageError: if minigrid is not installed
    """
    try:
        importlib.import_module("minigrid")
    except ImportError as error:
        raise UsageError(f"env '{env_id}' needs minigrid: pip install 'rmc-rl[minigrid]' ({error})") from None


def is_minigrid(spec: EnvSpec) -> bool:
    """Whether an environment belongs to MiniGrid, whose observations are dictionaries that contain text."""
    return isinstance(spec.entry_point, str) and spec.entry_point.startswith("minigrid.")


def minigrid_view(view: str) -> Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]:
    """
    A wrapper that combines MiniGrid's own wrappers.

    :param view: "onehot": the cells in view as one-hots of object, colour and state, flattened to ``(h * w * 20,)``; "flat":
        the cells in view and the letters of the mission, flattened; "pixels": an image of the cells, ``(8 h, 8 w, 3)``, for a
        CNN. Only "flat" contains the text of the mission
    :return: function from an environment to the wrapped one
    :raises UsageError: for another view
    """
    require_choice("view", view, VIEWS)

    def wrap(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        wrappers: Any = importlib.import_module("minigrid.wrappers")
        wrapped: gymnasium.Env[Any, Any]
        if view == "flat":
            wrapped = wrappers.FlatObsWrapper(env)
        elif view == "onehot":
            wrapped = FlattenObservation(wrappers.ImgObsWrapper(wrappers.OneHotPartialObsWrapper(env)))
        else:
            wrapped = wrappers.ImgObsWrapper(wrappers.RGBImgPartialObsWrapper(env))
        return wrapped

    return wrap
