"""A depot: an order names a bin, the robot drives for a while, and then takes a box from a bin. NumPy alone."""

import numpy as np

BINS = 3
WAIT = 0  # the action before the robot has arrived; 1 to BINS take a box


class Depot:
    """
    The order is shown at the first step only. The robot arrives when its position passes 550 mm.

    Observations are ``order`` (0: none, otherwise the bin) and ``sensors``: position in mm and battery in mV, with noise. The
    return is 1 for the right bin, 0 for another one.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def start(self) -> dict[str, np.ndarray]:
        """Begin an episode."""
        self.bin, self.position = int(self.rng.integers(1, BINS + 1)), 500.0
        self.empty = int(self.rng.choice([each for each in range(1, BINS + 1) if each != self.bin]))  # a bin without boxes
        return self._observe(self.bin)

    def act(self, action: int) -> tuple[dict[str, np.ndarray], float, bool]:
        """Wait or take a box; returns observation, reward and whether the episode has ended."""
        assert self.valid()[action]
        over = self.has_arrived
        self.position += self.rng.uniform(8, 16)
        return self._observe(0), float(over and action == self.bin), over

    @property
    def has_arrived(self) -> bool:
        """Whether the robot stands in front of the bins."""
        return self.position > 550

    def valid(self) -> np.ndarray:
        """Which actions are possible: to wait on the way, to take a box from a bin that has some at the end."""
        bins = [self.has_arrived and each != self.empty for each in range(1, BINS + 1)]
        return np.array([not self.has_arrived, *bins])

    def _observe(self, order: int) -> dict[str, np.ndarray]:
        sensors = [self.position, self.rng.normal(12000, 300)]
        return {"order": np.int64(order), "sensors": np.array(sensors, dtype=np.float32)}
