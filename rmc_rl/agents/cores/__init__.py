"""Recurrent cores: plain torch modules, independent of reinforcement learning."""

from rmc_rl.agents.cores.aft import AFT
from rmc_rl.agents.cores.attention import Attention
from rmc_rl.agents.cores.base import Core, scalars
from rmc_rl.agents.cores.brims import BRIMs
from rmc_rl.agents.cores.framestack import FrameStack
from rmc_rl.agents.cores.gtrxl import GTrXL
from rmc_rl.agents.cores.linear_attention import DeltaNet, LinearAttention
from rmc_rl.agents.cores.lru import LRU
from rmc_rl.agents.cores.memoryless import Memoryless
from rmc_rl.agents.cores.mingru import MinGRU
from rmc_rl.agents.cores.nbrc import NBRC
from rmc_rl.agents.cores.ntm import NTM
from rmc_rl.agents.cores.published_weights import brims_from_official, rims_from_dido, rims_from_official, rmc_from_sonnet
from rmc_rl.agents.cores.registry import core_class, core_names, make_core, register_core
from rmc_rl.agents.cores.rims import RIMs
from rmc_rl.agents.cores.rmc import RMC
from rmc_rl.agents.cores.rnn import GRU, LSTM
from rmc_rl.agents.cores.titans import Titans

__all__ = [
    "AFT",
    "GRU",
    "LRU",
    "LSTM",
    "NBRC",
    "NTM",
    "RMC",
    "Attention",
    "BRIMs",
    "Core",
    "DeltaNet",
    "FrameStack",
    "GTrXL",
    "LinearAttention",
    "Memoryless",
    "MinGRU",
    "RIMs",
    "Titans",
    "brims_from_official",
    "core_class",
    "core_names",
    "make_core",
    "register_core",
    "rims_from_dido",
    "rims_from_official",
    "rmc_from_sonnet",
    "scalars",
]
