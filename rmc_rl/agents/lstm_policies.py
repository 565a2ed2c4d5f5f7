"""
sb3-contrib's LSTM policies by their own names and arguments, as policies with the core "lstm".

Code they follow: ``sb3_contrib.common.recurrent.policies``. Parameters that its classes saved can be loaded.
"""

from typing import Any

from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import Schedule

from rmc_rl.agents.encoder import DictExtractor
from rmc_rl.agents.policies import MlpMemoryPolicy
from rmc_rl.errors import UsageError, unknown

LSTM_ARGUMENTS = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")
MAPPED = ("dropout",)  # arguments of torch.nn.LSTM that the core has as well
# arguments of torch.nn.LSTM that change the network, with the values that leave it as it is
UNMAPPED = {"bias": True, "batch_first": False, "bidirectional": False, "proj_size": 0, "device": None, "dtype": None}


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
        values = (lstm_hidden_size, n_lstm_layers, shared_lstm, enable_critic_lstm, lstm_kwargs)
        self._lstm_arguments = dict(zip(LSTM_ARGUMENTS, values, strict=True))
        core_kwargs: dict[str, Any] = dict(width=lstm_hidden_size, num_layers=n_lstm_layers)
        for name, value in (lstm_kwargs or {}).items():
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

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for name in ("core", "core_kwargs", "critic"):
            data.pop(name)
        return data | self._lstm_arguments


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


def convert_stock_parameters(parameters: dict[str, Any], policy: MlpMemoryPolicy) -> dict[str, Any]:
    """
    What sb3-contrib's LSTM policies saved, by our names.

    :param parameters: ``policy`` and ``policy.optimizer``, as SB3's ``get_parameters`` returns them
    :param policy: the policy that they are for
    :return: parameters that are not theirs are returned unchanged
    """
    weights = parameters.get("policy", {})
    if not any(name.startswith("lstm_actor.") for name in weights):
        return parameters
    renamed = {_our_name(name): value for name, value in weights.items()}
    # the optimizer numbers parameters in the order of the modules, which differs; a shared extractor counts once
    shared = policy.share_features_extractor
    skipped = ("pi_features_extractor.", "vf_features_extractor.") if shared else ("pi_features_extractor.",)
    theirs = [_our_name(name) for name in weights if not name.startswith(skipped)]
    ours = [name for name, _ in policy.named_parameters()]
    converted = parameters | {"policy": renamed}
    if "policy.optimizer" in parameters and sorted(theirs) == sorted(ours):
        saved = parameters["policy.optimizer"]
        states = {ours.index(theirs[index]): state for index, state in saved["state"].items()}
        groups = [{**group, "params": sorted(group["params"])} for group in saved["param_groups"]]
        converted["policy.optimizer"] = {"state": dict(sorted(states.items())), "param_groups": groups}
    return converted


def _our_name(name: str) -> str:
    for theirs, ours in (("lstm_actor.", "core.rnn."), ("lstm_critic.", "critic_core.rnn.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
