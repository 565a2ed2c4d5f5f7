"""Recurrent PPO agents that remember, with Relational Memory Cores, for Stable-Baselines3."""

# ruff: noqa: E402  # something must happen before the imports that take time

import signal
import sys

# Importing torch takes seconds. Until a verb has started, Ctrl-C ends `python -m rmc_rl...` without a traceback.
_module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv[:-1] else ""
if _module.split(".")[0] == __name__ and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from rmc_rl import envs as envs  # registers the worlds
from rmc_rl.agents import (
    CnnMemoryPolicy,
    CoreScalars,
    EvalCallback,
    Imitation,
    MlpMemoryPolicy,
    MultiInputMemoryPolicy,
    RecurrentPPO,
    match_parameters,
)
from rmc_rl.agents.cores import Core, register_core
from rmc_rl.envs import make_vec
from rmc_rl.runs.checkpoint import Checkpoints
from rmc_rl.runs.loading import load_policy

__all__ = [
    "Checkpoints",
    "CnnMemoryPolicy",
    "Core",
    "CoreScalars",
    "EvalCallback",
    "Imitation",
    "MlpMemoryPolicy",
    "MultiInputMemoryPolicy",
    "RecurrentPPO",
    "__version__",
    "load_policy",
    "make_vec",
    "match_parameters",
    "register_core",
]
__version__ = "0.1.0"
