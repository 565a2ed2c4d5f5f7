"""
sb3-contrib's LSTM policies by their own names and arguments, as policies with the core "lstm".

Code they follow: ``sb3_contrib.common.recurrent.policies``. States, names and order of parameters are those of its classes,
so that what one saved loads in the other.
"""

import inspect
from typing import Any

from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from rmc_rl.agents.encoder import DictExtractor
from rmc_rl.agents.policies import CoreArguments, MlpMemoryPolicy
from rmc_rl.errors import UsageError, unknown

MAPPED = ("dropout",)  # arguments of torch.nn.LSTM that the core has as well
# arguments of torch.nn.LSTM that change the network, with the values that leave it as it is
UNMAPPED = {"bias": True, "batch_first": False, "bidirectional": False, "proj_size": 0, "device": None, "dtype": None}


NAMES = {"lstm_actor.": "core.rnn.", "lstm_critic.": "critic_core.rnn."}  # of modules: sb3-contrib's -> ours


class CriticChoiceError(UsageError, AssertionError):
    """A choice of the critic that excludes itself. sb3-contrib raises an AssertionError there."""


def critic_of(shared_lstm: bool, enable_critic_lstm: bool, share_features_extractor: bool = True) -> str:
    """
    The ``critic`` that sb3-contrib's two truths mean.

    :param shared_lstm: whether actor and critic share one LSTM
    :param enable_critic_lstm: whether the critic has an LSTM of its own
    :param share_features_extractor: whether they share the features extractor
    :raises UsageError: for a combination that sb3-contrib forbids
    """
    if shared_lstm and enable_critic_lstm:
        raise CriticChoiceError("shared_lstm and enable_critic_lstm exclude each other, got True and True")
    if shared_lstm and not share_features_extractor:
        raise CriticChoiceError("shared_lstm needs share_features_extractor=True, got False")
    return "shared" if shared_lstm else "separate" if enable_critic_lstm else "memoryless"


class MlpLstmPolicy(MlpMemoryPolicy):
    """
    sb3-contrib's ``MlpLstmPolicy``: :class:`~rmc_rl.MlpMemoryPolicy` with the core "lstm" and sb3-contrib's arguments.

    With ``shared_lstm`` both losses train the LSTM; in sb3-contrib the critic's gradient is cut off.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param lstm_hidden_size: Number of hidden units for each LSTM layer
    :param n_lstm_layers: Number of LSTM layers
    :param shared_lstm: Whether the LSTM is shared between the actor and the critic
    :param enable_critic_lstm: Use a separate LSTM for the critic; a linear layer if this and ``shared_lstm`` are False
    :param lstm_kwargs: arguments of ``torch.nn.LSTM``; only ``dropout`` may differ from its default
    :param kwargs: the other arguments of :class:`~rmc_rl.MlpMemoryPolicy`, which are those of SB3's policies
    :raises UsageError: for an argument that cannot be mapped
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        shared_lstm: bool = False,
        enable_critic_lstm: bool = True,
        lstm_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.lstm_hidden_size, self.state_layers = lstm_hidden_size, n_lstm_layers
        self.shared_lstm, self.enable_critic_lstm, self.lstm_kwargs = shared_lstm, enable_critic_lstm, lstm_kwargs or {}
        core_kwargs: dict[str, Any] = dict(width=lstm_hidden_size, num_layers=n_lstm_layers, first_gates="standard")
        for name, value in self.lstm_kwargs.items():
            if name in MAPPED:
                core_kwargs[name] = value
            elif name not in UNMAPPED:
                raise unknown("argument in lstm_kwargs", name, (*MAPPED, *UNMAPPED))
            elif value != UNMAPPED[name]:
                raise UsageError(f"lstm_kwargs must leave {name} at {UNMAPPED[name]}, got {value!r}")
        critic = critic_of(shared_lstm, enable_critic_lstm, kwargs.get("share_features_extractor", True))
        for name in ("core", "core_kwargs", "critic"):
            if name in kwargs:
                raise UsageError(f"{type(self).__name__} sets {name} itself: use MlpMemoryPolicy, got {name}={kwargs[name]!r}")
        super().__init__(
            observation_space, action_space, lr_schedule, core="lstm", core_kwargs=core_kwargs, critic=critic, **kwargs
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        # an optimizer numbers the parameters in the order of the modules: in sb3-contrib the LSTMs are the last ones
        for name in ("core", "critic", "critic_core"):
            if name in self._modules:
                self._modules[name] = self._modules.pop(name)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self.register_state_dict_post_hook(_rename_for_stock)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_rename_from_stock)  # type: ignore[no-untyped-call]

    @property
    def lstm_actor(self) -> Any:  # type: ignore[override]
        """The actor's ``torch.nn.LSTM``."""
        return self.core.rnn

    @property
    def lstm_critic(self) -> Any:  # type: ignore[override]
        """The critic's own ``torch.nn.LSTM``, or None."""
        return None if self.critic_core is None else self.critic_core.rnn

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # sb3-contrib's class, which may load the file, knows none of our own arguments
        defaults = {name: parameter.default for name, parameter in inspect.signature(MlpMemoryPolicy).parameters.items()}
        for name in CoreArguments._fields:
            if name in ("core", "core_kwargs", "critic") or data[name] in (defaults[name], []):
                data.pop(name)
        return data | dict(
            lstm_hidden_size=self.lstm_hidden_size,
            n_lstm_layers=self.state_layers,
            shared_lstm=self.shared_lstm,
            enable_critic_lstm=self.enable_critic_lstm,
            lstm_kwargs=self.lstm_kwargs,
        )


class CnnLstmPolicy(MlpLstmPolicy):
    """:class:`MlpLstmPolicy` for images: the LSTM reads the features of a ``NatureCNN``. Its parameters are the same."""

    default_features_extractor = NatureCNN


class MultiInputLstmPolicy(MlpLstmPolicy):
    """:class:`MlpLstmPolicy` for ``Dict`` observations: the LSTM reads the features of all parts."""

    default_features_extractor = DictExtractor


# sb3-contrib's class -> ours
OF_STOCK: dict[type, type[MlpMemoryPolicy]] = {
    RecurrentActorCriticPolicy: MlpLstmPolicy,
    RecurrentActorCriticCnnPolicy: CnnLstmPolicy,
    RecurrentMultiInputActorCriticPolicy: MultiInputLstmPolicy,
}


def _rename(state_dict: dict[str, Any], prefix: str, names: dict[str, str]) -> None:
    """Rename the parameters of modules in place; their order stays."""
    for name in list(state_dict):
        value, renamed = state_dict.pop(name), name
        for old, new in names.items():
            if name.startswith(prefix + old):
                renamed = prefix + new + name.removeprefix(prefix + old)
        state_dict[renamed] = value


def _rename_for_stock(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state_dict, prefix, {ours: theirs for theirs, ours in NAMES.items()})


def _rename_from_stock(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state_dict, prefix, NAMES)
