"""Recurrent cores: plain torch modules that know nothing of reinforcement learning."""

from rmc_rl.agents.cores.base import Core, core_class, core_names, make_core, register_core
from rmc_rl.agents.cores.brims import BRIMs
from rmc_rl.agents.cores.memoryless import Memoryless
from rmc_rl.agents.cores.rims import RIMs
from rmc_rl.agents.cores.rmc import RMC

__all__ = ["RMC", "BRIMs", "Core", "Memoryless", "RIMs", "core_class", "core_names", "make_core", "register_core"]
