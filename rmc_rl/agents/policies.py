"""
Policies that think with a core, for sb3-contrib's ``RecurrentPPO``.

How they act and are trained is in :mod:`rmc_rl.agents.core_policy`; here is how they are built.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from rmc_rl.agents.core_policy import CorePolicy
from rmc_rl.agents.cores import Core, make_core
from rmc_rl.agents.encoder import EncodedFeatures, refuse_shifted
from rmc_rl.agents.state import StateShape
from rmc_rl.errors import UsageError, require, require_choice, require_truth, require_whole

AMP = {None: None, "bf16": torch.bfloat16}
COMPILE = (None, "default", "reduce-overhead", "max-autotune")
CRITICS = ("shared", "separate", "memoryless")


class CoreArguments(NamedTuple):
    """What a policy was told of its core."""

    core: str | type[Core]
    core_kwargs: dict[str, Any]
    critic: str
    encoder: list[int]
    channels_last: bool
    amp: str | None
    compile_mode: str | None


class MlpMemoryPolicy(CorePolicy):
    """
    Actor and critic that read a core's output; the core reads the features of the observation.

    Used as ``RecurrentPPO(MlpMemoryPolicy, env, policy_kwargs=dict(core="rmc", core_kwargs=dict(num_slots=4)))``.
    Code it follows: ``sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy``, whose LSTMs it replaces.

    Differences from sb3-contrib's policies:

    * ``critic`` takes the place of ``shared_lstm`` and ``enable_critic_lstm``. With "shared" both losses train the core
      (there, the critic's gradient is cut off).
    * An episode starts from the core's own initial state, in training and in :meth:`predict`; there, from zeros.
    * MultiBinary actions work: the buffer keeps them as int8, which the Bernoulli distribution does not take.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param core: a registered name ("rmc", "lstm" ...), "module:name" for one that importing the module registers, or a
        subclass of :class:`~rmc_rl.agents.cores.Core`
    :param core_kwargs: the core's own arguments
    :param critic: "shared" (one core for actor and critic), "separate" (a core of its own) or "memoryless" (a linear layer)
    :param encoder: sizes of layers between features and core, none by default. A core that normalises what it reads, as
        RMC does, sees of few numbers their direction more than their size; our tests use ``[64]`` on CartPole
    :param channels_last: keep the weights of convolutions with their channels last; the same numbers up to rounding
    :param amp: "bf16": the features extractor computes in bfloat16, with three significant digits, faster where the processor
        has it (the README has figures); None: in single precision
    :param compile_mode: run features extractors and the layers after the core through ``torch.compile`` in this mode:
        "default", "reduce-overhead" (CUDA graphs on a GPU) or "max-autotune"; None: not at all. It needs a C++ compiler and
        half a minute, and changes nothing but speed, up to rounding. On a CPU we found no gain
    :param net_arch: layers after the core, as in SB3. Default: two layers of 64 each for actor and critic,
        none after a ``NatureCNN``
    :param activation_fn: Activation function
    :param ortho_init: Whether to use or not orthogonal initialization; the core keeps its own, whatever this says
    :param use_sde: Whether to use State Dependent Exploration or not
    :param log_std_init: Initial value for the log standard deviation
    :param full_std: Whether to use (n_features x n_actions) parameters for the std instead of only (n_features,) with gSDE
    :param use_expln: Use ``expln()`` instead of ``exp()`` to ensure a positive standard deviation
    :param squash_output: Whether to squash the output using a tanh function, with gSDE
    :param features_extractor_class: Features extractor to use. Default: flattens the observation
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor
    :param share_features_extractor: If True, actor and critic share the features extractor
    :param normalize_images: Whether to divide images by 255
    :param optimizer_class: The optimizer to use, ``torch.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer. Default for
        Adam: eps 1e-5, as in SB3, and torch's fused kernel
    :raises UsageError: for an unknown core, core argument or critic, a value that breaks the core's rules, a shared
        critic with two features extractors, or a discrete space that does not start from 0
    """

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        core: str | type[Core] = "rmc",
        core_kwargs: dict[str, Any] | None = None,
        critic: str = "shared",
        encoder: list[int] | None = None,
        channels_last: bool = True,
        amp: str | None = None,
        compile_mode: str | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        require_choice("critic", critic, CRITICS)
        if critic == "shared" and not share_features_extractor:
            raise UsageError("critic must be 'separate' or 'memoryless' with share_features_extractor=False, got 'shared'")
        for space in (observation_space, action_space):
            refuse_shifted(space)
        for size in encoder or ():
            require_whole("each size in encoder", size)
        require_truth("channels_last", channels_last)
        require(amp in AMP, "amp must be 'bf16' or None", amp)
        self.amp = AMP[amp]
        require(compile_mode in COMPILE, f"compile_mode must be one of {', '.join(map(str, COMPILE))}", compile_mode)
        self._core_arguments = CoreArguments(
            core, dict(core_kwargs or {}), critic, list(encoder or ()), channels_last, amp, compile_mode
        )
        if optimizer_class is torch.optim.Adam:
            optimizer_kwargs = dict(eps=1e-5) if optimizer_kwargs is None else dict(optimizer_kwargs)
            if optimizer_kwargs.keys().isdisjoint(("foreach", "differentiable")):  # these exclude it
                optimizer_kwargs.setdefault("fused", True)
        # Not RecurrentActorCriticPolicy's, which would build LSTMs
        super(RecurrentActorCriticPolicy, self).__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch,
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            use_sde=use_sde,
            log_std_init=log_std_init,
            full_std=full_std,
            use_expln=use_expln,
            squash_output=squash_output,
            features_extractor_class=features_extractor_class or self.default_features_extractor,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        # before super()'s, which builds the layers after the core and the optimizer of all parameters
        core, kwargs, critic, *_ = self._core_arguments
        self.core = make_core(core, self.features_dim, kwargs)
        self.critic_core = make_core(core, self.features_dim, kwargs) if critic == "separate" else None
        # to the width of the core's output, for actor and critic are built alike from there
        self.critic = nn.Linear(self.features_dim, self.core.output_size) if critic == "memoryless" else None
        self.lstm_output_dim = self.core.output_size
        half = (self.core.state_size + 1) // 2
        self.lstm_actor: Any = StateShape(num_layers=1, hidden_size=half)
        self.lstm_hidden_state_shape = (1, 1, half)
        super()._build(lr_schedule)
        if self._core_arguments.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if (mode := self._core_arguments.compile_mode) is not None:
            parts: list[nn.Module] = [self.pi_features_extractor]
            if not self.share_features_extractor:
                parts.append(self.vf_features_extractor)
            for part in (*parts, self.mlp_extractor.policy_net, self.mlp_extractor.value_net):
                part.compile(mode=mode)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """The features extractor, with the encoder's layers where there are any."""
        extractor, sizes = super().make_features_extractor(), self._core_arguments.encoder
        return EncodedFeatures(extractor, sizes, self.activation_fn) if sizes else extractor

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return data | self._core_arguments._asdict() | dict(share_features_extractor=self.share_features_extractor)


class CnnMemoryPolicy(MlpMemoryPolicy):
    """
    :class:`MlpMemoryPolicy` for images: the core reads the features of a ``NatureCNN``.

    Its parameters are those of :class:`MlpMemoryPolicy`, ``features_extractor_class`` has another default.
    """

    default_features_extractor = NatureCNN


class MultiInputMemoryPolicy(MlpMemoryPolicy):
    """
    :class:`MlpMemoryPolicy` for ``Dict`` observations: the core reads the features of a ``CombinedExtractor``.

    Its parameters are those of :class:`MlpMemoryPolicy`, ``features_extractor_class`` has another default.
    """

    default_features_extractor = CombinedExtractor
