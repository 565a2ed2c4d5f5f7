"""Learning: cores and the policies that think with them."""

from rmc_rl.agents.callbacks import CoreScalars
from rmc_rl.agents.evaluation import EvalCallback
from rmc_rl.agents.imitation import Imitation
from rmc_rl.agents.policies import CnnMemoryPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy
from rmc_rl.agents.ppo import RecurrentPPO
from rmc_rl.agents.sizing import match_parameters

__all__ = [
    "CnnMemoryPolicy",
    "CoreScalars",
    "EvalCallback",
    "Imitation",
    "MlpMemoryPolicy",
    "MultiInputMemoryPolicy",
    "RecurrentPPO",
    "match_parameters",
]
