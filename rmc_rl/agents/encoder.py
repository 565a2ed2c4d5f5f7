"""
From observations to the features that a core reads: which spaces are supported, and the layers before the core.

Code it follows: ``stable_baselines3.common.torch_layers``.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from rmc_rl.errors import require

ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
SMALLEST_CNN_IMAGE = 36  # pixels, of height and width: what the three convolutions of a NatureCNN need


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Check that a policy can be built for these spaces.

    :param observation_space: Observation space
    :param action_space: Action space
    :raises UsageError: for a space that SB3's layers or distributions do not support, with the rule
    """
    _check_space("action", action_space)
    if not isinstance(observation_space, spaces.Dict):
        _check_space("observation", observation_space)
        return
    for name, part in observation_space.spaces.items():
        _check_space(f"observation '{name}'", part)


def _check_space(kind: str, space: spaces.Space[Any]) -> None:
    names = ", ".join(each.__name__ for each in ACTION_SPACES)
    rule = f"the {kind} space must be one of {names}" + (", or a Dict of these" if kind == "observation" else "")
    require(isinstance(space, ACTION_SPACES), rule, space)
    # SB3 counts the values of discrete spaces from 0, whatever the space says
    shifted = isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start)
    require(not shifted, f"the {kind} space must start from 0", space)
    assert space.shape is not None
    if isinstance(space, spaces.MultiDiscrete):
        require(len(space.shape) == 1, f"the {kind} space must have one dimension: flatten it", space)
    if isinstance(space, spaces.Box):
        require(0 not in space.shape, f"the {kind} space must not be empty", space)
    if kind == "action":
        flat = not isinstance(space, spaces.MultiBinary) or len(space.shape) == 1
        require(flat, "the action space must have one dimension: flatten it", space)
    elif isinstance(space, spaces.Box):
        rule = f"the {kind} space must have at least one dimension: gymnasium.wrappers.ReshapeObservation(env, (1,)) adds it"
        require(len(space.shape) > 0, rule, space)


def fits_cnn(space: spaces.Space[Any], normalized_image: bool = False) -> bool:
    """
    Whether a ``NatureCNN`` can read a space.

    :param space: the space; images may have their channels first or last
    :param normalized_image: whether images are floats in [0, 1]
    :return: False for what is not an image, and for images that are too small for its convolutions
    """
    if not is_image_space(space, normalized_image=normalized_image):
        return False
    assert space.shape is not None
    return sorted(space.shape)[1] >= SMALLEST_CNN_IMAGE  # the channels are the smallest dimension


class DictExtractor(CombinedExtractor):
    """
    SB3's ``CombinedExtractor``, which also takes images that are too small for a ``NatureCNN``: it flattens them.

    :param observation_space: Observation space
    :param cnn_output_dim: number of features of each larger image
    :param normalized_image: whether images are floats in [0, 1]
    """

    def __init__(self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False):
        # to the parent class a small image is a vector, so that it builds no NatureCNN for it
        large = {
            name: part
            if fits_cnn(part, normalized_image) or not is_image_space(part, normalized_image=normalized_image)
            else spaces.Box(0, 1, part.shape, np.float32)
            for name, part in observation_space.spaces.items()
        }
        super().__init__(spaces.Dict(large), cnn_output_dim, normalized_image)
        self._observation_space = observation_space
        self._features_dim = int(self._features_dim)


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
