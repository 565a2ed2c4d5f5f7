"""Learning: cores and the policies that think with them."""

from rmc_rl.agents.policies import CnnMemoryPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy

__all__ = ["CnnMemoryPolicy", "MlpMemoryPolicy", "MultiInputMemoryPolicy"]
