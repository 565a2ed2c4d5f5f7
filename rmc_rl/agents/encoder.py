"""What a core reads: the features extractor, and layers after it."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from rmc_rl.errors import require


class EncodedFeatures(BaseFeaturesExtractor):
    """
    A features extractor followed by fully connected layers.

    :param extractor: the features extractor
    :param sizes: of the layers, each followed by the activation function
    :param activation_fn: Activation function
    """

    def __init__(self, extractor: BaseFeaturesExtractor, sizes: list[int], activation_fn: type[nn.Module]):
        super().__init__(extractor._observation_space, sizes[-1])
        self.extractor = extractor
        self.layers = nn.Sequential(*create_mlp(extractor.features_dim, -1, sizes, activation_fn))

    def forward(self, observations: PyTorchObs) -> Tensor:
        encoded: Tensor = self.layers(self.extractor(observations))
        return encoded


def refuse_shifted(space: spaces.Space[Any]) -> None:
    """
    SB3 counts the values of discrete spaces from 0, whatever the space says.

    :param space: of observations or actions
    :raises UsageError: where a discrete space, or one in a ``Dict``, does not start from 0
    """
    if isinstance(space, spaces.Dict):
        for part in space.spaces.values():
            refuse_shifted(part)
    shifted = isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start)
    require(not shifted, "a discrete space must start from 0", space)
