"""The layers between a core and the heads for actions and values."""

from typing import Any

from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor


class ScaledMlpExtractor(MlpExtractor):
    """
    SB3's layers after the core, which read its output times a factor.

    :param scale: the factor
    :param args: see SB3's ``MlpExtractor``
    :param kwargs: see SB3's ``MlpExtractor``
    """

    def __init__(self, scale: float, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scale = scale

    def forward_actor(self, features: Tensor) -> Tensor:
        """The actor's last hidden layer: ``(B, O)`` -> ``(B, H)``."""
        return super().forward_actor(self.scale * features)

    def forward_critic(self, features: Tensor) -> Tensor:
        """The critic's last hidden layer: ``(B, O)`` -> ``(B, H)``."""
        return super().forward_critic(self.scale * features)
