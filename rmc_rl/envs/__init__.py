"""Environments: worlds, one per file, which know no agent. Importing this package registers them with Gymnasium."""

from rmc_rl.envs.base import Answers, BatchedWorld, Returns, SingleWorld
from rmc_rl.envs.make_vec import make_vec
from rmc_rl.envs.registration import WORLDS, register_worlds

__all__ = ["WORLDS", "Answers", "BatchedWorld", "Returns", "SingleWorld", "make_vec"]

register_worlds()
