"""Worlds: one per file, none knows an agent. Importing this registers them with Gymnasium."""

from rmc_rl.envs.base import BatchedWorld, SingleWorld
from rmc_rl.envs.make_vec import make_vec
from rmc_rl.envs.registration import WORLDS, register_worlds

__all__ = ["WORLDS", "BatchedWorld", "SingleWorld", "make_vec"]

register_worlds()
