"""The depot as a Gymnasium environment with a Dict observation and action masks."""

import gymnasium
import numpy as np
from depot import BINS, Depot


class DepotEnv(gymnasium.Env):
    """See :class:`depot.Depot`."""

    observation_space = gymnasium.spaces.Dict(
        order=gymnasium.spaces.Discrete(BINS + 1), sensors=gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    )
    action_space = gymnasium.spaces.Discrete(BINS + 1)

    def reset(self, *, seed=None, options=None):
        """Begin an episode."""
        super().reset(seed=seed)
        self.depot = Depot(self.np_random)
        return self.depot.start(), {}

    def step(self, action):
        """Wait or take a box."""
        observation, reward, over = self.depot.act(int(action))
        return observation, reward, over, False, {}

    def action_masks(self):
        """One truth value per action; invalid actions are never taken."""
        return self.depot.valid()


gymnasium.register("Depot-v0", DepotEnv)
