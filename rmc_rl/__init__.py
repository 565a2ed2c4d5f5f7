"""Recurrent PPO agents that remember, with Relational Memory Cores, for Stable-Baselines3."""

from rmc_rl import envs as envs  # registers the worlds
from rmc_rl.agents import (
    CnnMemoryPolicy,
    CoreScalars,
    MlpMemoryPolicy,
    MultiInputMemoryPolicy,
    RecurrentPPO,
    match_parameters,
)
from rmc_rl.agents.cores import Core, register_core
from rmc_rl.envs import make_vec

__all__ = [
    "CnnMemoryPolicy",
    "Core",
    "CoreScalars",
    "MlpMemoryPolicy",
    "MultiInputMemoryPolicy",
    "RecurrentPPO",
    "__version__",
    "make_vec",
    "match_parameters",
    "register_core",
]
__version__ = "0.1.0"
