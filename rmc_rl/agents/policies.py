"""
Policies whose memory is a core, for sb3-contrib's ``RecurrentPPO`` and for ours.

Code they follow: ``sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy``.

Shapes: ``B`` environments or sequences; ``T`` steps of each; ``F`` features, ``O`` features that a core writes, ``S`` size of
its state; ``n`` steps packed into ``R`` rows, in training, see :class:`~rmc_rl.agents.packing.Layout`.
"""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.distributions import Categorical

from rmc_rl.agents import parallel
from rmc_rl.agents.adam import Adam
from rmc_rl.agents.cores import Core, make_core
from rmc_rl.agents.encoder import SMALLEST_CNN_IMAGE, DictExtractor, EncodedFeatures, check_spaces, fits_cnn
from rmc_rl.agents.heads import ScaledMlpExtractor
from rmc_rl.agents.packing import Layout, Unroll, unroll_packed, unroll_sequences
from rmc_rl.agents.sequences import ActedOn
from rmc_rl.agents.state import StatePair, StateShape, check_state, join_state, split_state
from rmc_rl.errors import UsageError, check_keywords, require, require_choice, require_truth, require_whole

AMP = {None: None, "bf16": torch.bfloat16}
COMPILE = (None, "default", "reduce-overhead", "max-autotune")
CRITICS = ("shared", "separate", "memoryless")


class CoreArguments(NamedTuple):
    """A policy's own arguments, which SB3's policies do not have."""

    core: str | type[Core]
    core_kwargs: dict[str, Any]
    critic: str
    encoder: list[int]
    channels_last: bool
    amp: str | None
    compile_mode: str | None
    scale_output: bool


class MlpMemoryPolicy(RecurrentActorCriticPolicy):
    """
    Actor and critic that read a core's output; the core reads the features of the observation.

    Used as ``RecurrentPPO(MlpMemoryPolicy, env, policy_kwargs=dict(core="rmc", core_kwargs=dict(num_slots=4)))``.

    Differences from sb3-contrib's policies:

    * ``critic`` replaces ``shared_lstm`` and ``enable_critic_lstm``. With "shared" both losses train the core
      (in sb3-contrib, the critic's gradient is cut off).
    * Episodes start from the core's own initial state, in training and in :meth:`predict`; in sb3-contrib, from zeros.
    * MultiBinary actions work. In sb3-contrib the buffer stores them as int8, which the Bernoulli distribution does not take.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param core: a registered name ("rmc", "lstm" ...), "module:name" for one that importing the module registers, or a
        subclass of :class:`~rmc_rl.agents.cores.Core`
    :param core_kwargs: the core's own arguments
    :param critic: "shared" (one core for actor and critic), "separate" (a core of its own) or "memoryless" (a linear layer)
    :param encoder: sizes of layers between features and core, none by default. A core that normalises its input, as RMC does,
        loses the scale of low-dimensional observations: ``[64]`` helps there
    :param channels_last: store the weights of convolutions channels-last
    :param amp: "bf16": the features extractor computes in bfloat16 (three significant digits), faster only on processors with
        bfloat16 instructions; None: in single precision
    :param compile_mode: run features extractors and the layers after the core through ``torch.compile`` in this mode:
        "default", "reduce-overhead" (CUDA graphs on a GPU) or "max-autotune"; None: no compilation. It needs a C++ compiler
    :param scale_output: the layers after a core multiply its output by its ``output_scale``, which is less than 1 for the RMC:
        its output is wide and large, so that each step of Adam changes the actions much more than with other cores
    :param net_arch: layers after the core, as in SB3. Default: two layers of 64 each for actor and critic,
        none after a ``NatureCNN``
    :param activation_fn: Activation function
    :param ortho_init: Whether to use or not orthogonal initialization; the core always keeps its own
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
    :param optimizer_kwargs: Additional keyword arguments of the optimizer. Default for Adam: eps 1e-5 and torch's fused kernel
    :raises UsageError: for an unknown argument, core, core argument or critic, a value that breaks the core's rules, a shared
        critic with two features extractors, or a space that SB3's layers do not support
    """

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    state_layers = 1  # layers of the pair that carries a core's state, see rmc_rl.agents.state
    core: Core
    critic_core: Core | None  # the critic's own
    critic: nn.Linear | None  # of a critic without memory
    acted_on: ActedOn | None = None  # set by each forward pass

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
        scale_output: bool = False,
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
        check_spaces(observation_space, action_space)
        features_extractor_class = features_extractor_class or self.default_features_extractor
        if features_extractor_class is NatureCNN:
            normalized = not normalize_images or bool((features_extractor_kwargs or {}).get("normalized_image"))
            rule = f"a CNN policy needs images (uint8, 0 to 255) of at least {SMALLEST_CNN_IMAGE} pixels; try MlpMemoryPolicy"
            require(fits_cnn(observation_space, normalized), rule, observation_space)
        for size in encoder or ():
            require_whole("each size in encoder", size)
        require_truth("channels_last", channels_last)
        require_truth("scale_output", scale_output)
        require(amp in AMP, "amp must be 'bf16' or None", amp)
        self.amp = AMP[amp]  # dtype of the features extractors; None: float32
        require(compile_mode in COMPILE, f"compile_mode must be one of {', '.join(map(str, COMPILE))}", compile_mode)
        self._core_arguments = CoreArguments(
            core, dict(core_kwargs or {}), critic, list(encoder or ()), channels_last, amp, compile_mode, scale_output
        )
        if optimizer_class is torch.optim.Adam:
            optimizer_kwargs = dict(eps=1e-5) if optimizer_kwargs is None else dict(optimizer_kwargs)
            if optimizer_kwargs.keys().isdisjoint(("foreach", "differentiable")):  # these exclude it
                optimizer_kwargs.setdefault("fused", True)
        # Not RecurrentActorCriticPolicy's constructor, which would build LSTMs
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
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        # before super()'s, which builds the layers after the core and the optimizer of all parameters
        core, kwargs, critic, *_ = self._core_arguments
        features_dim = int(self.features_dim)
        self.core = make_core(core, features_dim, kwargs)
        self.critic_core = make_core(core, features_dim, kwargs) if critic == "separate" else None
        # as wide as the core's output, because the layers after it are alike for actor and critic
        self.critic = nn.Linear(features_dim, self.core.output_size) if critic == "memoryless" else None
        self.lstm_output_dim = self.core.output_size
        self.lstm_hidden_state_shape = (self.state_layers, 1, (self.core.state_size + 1) // 2 // self.state_layers)
        optimizer_class = self.optimizer_class
        if optimizer_class is torch.optim.Adam and not self.optimizer_kwargs.get("differentiable"):
            self.optimizer_class = Adam  # saved models name torch's
        super()._build(lr_schedule)
        self.optimizer_class = optimizer_class
        if self._core_arguments.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if (mode := self._core_arguments.compile_mode) is not None:
            parts: list[nn.Module] = [self.pi_features_extractor]
            if not self.share_features_extractor:
                parts.append(self.vf_features_extractor)
            for part in (*parts, self.mlp_extractor.policy_net, self.mlp_extractor.value_net):
                part.compile(mode=mode)

    def _build_mlp_extractor(self) -> None:
        if not self._core_arguments.scale_output or self.core.output_scale == 1:
            super()._build_mlp_extractor()
            return
        layers = dict(net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device)
        self.mlp_extractor = ScaledMlpExtractor(self.core.output_scale, self.lstm_output_dim, **layers)

    @property
    def lstm_actor(self) -> Any:  # type: ignore[override]
        """What sb3-contrib's algorithm reads the shape of states from."""
        num_layers, _, hidden_size = self.lstm_hidden_state_shape
        return StateShape(num_layers, hidden_size)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """The features extractor, followed by the encoder's layers if there are any."""
        check_keywords(
            f"argument of {self.features_extractor_class.__name__}",
            self.features_extractor_class,
            self.features_extractor_kwargs,
            given=("observation_space",),
        )
        extractor, sizes = super().make_features_extractor(), self._core_arguments.encoder
        return EncodedFeatures(extractor, sizes, self.activation_fn) if sizes else extractor

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return data | self._core_arguments._asdict() | dict(share_features_extractor=self.share_features_extractor)

    def initial_states(self, n_envs: int) -> RNNStates:
        """
        The states before the first step of an episode.

        :param n_envs: ``B``
        :return: for actor and critic a pair of tensors each, see :mod:`rmc_rl.agents.state`
        """
        # detached, because a learned one is a view of its parameter
        actor = critic = split_state(self.core.initial_state(n_envs).detach(), self.state_layers)
        if self.critic_core is not None:
            critic = split_state(self.critic_core.initial_state(n_envs).detach(), self.state_layers)
        return RNNStates(actor, critic)

    def _features(self, obs: PyTorchObs, extractor: BaseFeaturesExtractor) -> Tensor:
        """The features of observations: ``(n, *observation_shape)`` -> ``(n, F)``."""
        # ActorCriticPolicy's own method would extract the features of actor and critic at once
        extract = super(ActorCriticPolicy, self).extract_features
        if self.amp is None:
            return extract(obs, extractor)
        with torch.autocast(self.device.type, self.amp):
            return extract(obs, extractor).float()

    def _latents(self, obs: PyTorchObs, states: RNNStates, unroll: Unroll) -> tuple[Tensor, Tensor, RNNStates]:
        """Actor's and critic's last hidden layer for ``n`` steps, ``(n, H)`` each, and the states after them."""
        critic_features = actor_features = self._features(obs, self.pi_features_extractor)
        if not self.share_features_extractor:
            critic_features = self._features(obs, self.vf_features_extractor)
        actor, actor_states = unroll(self.core, actor_features, states.pi)
        critic, critic_states = actor, actor_states
        if self.critic_core is not None:
            critic, critic_states = unroll(self.critic_core, critic_features, states.vf)
        elif self.critic is not None:
            critic = self.critic(critic_features)
        return (
            self.mlp_extractor.forward_actor(actor),
            self.mlp_extractor.forward_critic(critic),
            RNNStates(actor_states, critic_states),
        )

    def _distribution(self, latent: Tensor, action_masks: Tensor | None = None, unchecked: bool = False) -> Distribution:
        """
        The distribution of actions.

        :param latent: the actor's last hidden layer, ``(B, H)``
        :param action_masks: see :meth:`forward`
        :param unchecked: torch need not look for parameters that are not finite, because something else does: on the CPU
            ``torch.multinomial``, which samples, refuses them, and our algorithm undoes an update whose loss is not finite
        """
        if action_masks is None:
            usual = type(self)._get_action_dist_from_latent is ActorCriticPolicy._get_action_dist_from_latent
            if unchecked and usual and type(self.action_dist) is CategoricalDistribution and latent.is_cpu:
                self.action_dist.distribution = Categorical(logits=self.action_net(latent), validate_args=False)
                return self.action_dist
            return self._get_action_dist_from_latent(latent)
        require(not isinstance(self.action_space, spaces.Box), "action masks need discrete actions", self.action_space)
        logits = self.action_net(latent)
        if isinstance(self.action_space, spaces.MultiBinary):
            # a Bernoulli distribution is a softmax over (0, logit): (B, n) -> (B, 2 n), off and on of each action
            logits = torch.stack([torch.zeros_like(logits), logits], dim=-1).flatten(1)
        distribution = make_masked_proba_distribution(self.action_space)
        distribution.proba_distribution(logits)
        distribution.apply_masking(action_masks)
        return distribution

    def forward(  # type: ignore[override]  # as in sb3-contrib: a recurrent policy returns its states as well
        self,
        obs: PyTorchObs,
        lstm_states: RNNStates,
        episode_starts: Tensor,
        deterministic: bool = False,
        action_masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """
        Act.

        :param obs: observations, ``(B, *observation_shape)``
        :param lstm_states: the states after the previous step
        :param episode_starts: ``(B,)``, not 0 where an observation is an episode's first: the core then starts anew
        :param deterministic: take the most likely action instead of a sample
        :param action_masks: true for valid actions, ``(B, number of actions)``. MultiDiscrete: the actions of all parts, one
            part after another; MultiBinary: off and on of each action, ``(B, 2 n)``
        :return: actions ``(B, *action_shape)``, values ``(B, 1)``, log-probabilities ``(B,)``, next states
        """
        self.acted_on = ActedOn(obs, lstm_states, episode_starts)
        unroll = partial(unroll_sequences, episode_starts=episode_starts)
        latent_pi, latent_vf, states = self._latents(obs, lstm_states, unroll)
        own = parallel.own_rows(len(latent_pi))
        if action_masks is not None:
            action_masks = parallel.among_all(action_masks, filling=True)
        distribution = self._distribution(parallel.among_all(latent_pi), action_masks, unchecked=not deterministic)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)[own]
        actions = actions.reshape(-1, *(self.action_space.shape or ()))[own]
        return actions, self.value_net(latent_vf), log_prob, states

    @torch.no_grad()
    def next_states(self, obs: PyTorchObs, lstm_states: RNNStates, episode_starts: Tensor) -> RNNStates:
        """
        The states after a step, as :meth:`forward` returns them while acting, but without an action.

        :param obs: observations, ``(B, *observation_shape)``
        :param lstm_states: the states after the previous step
        :param episode_starts: ``(B,)``
        """
        training = self.training
        self.set_training_mode(False)
        states = self._latents(obs, lstm_states, partial(unroll_sequences, episode_starts=episode_starts))[2]
        self.set_training_mode(training)
        return states

    def get_distribution(  # type: ignore[override]
        self, obs: PyTorchObs, lstm_states: StatePair, episode_starts: Tensor, action_masks: Tensor | None = None
    ) -> tuple[Distribution, StatePair]:
        """
        The distribution of actions.

        :param obs: observations, ``(B, *observation_shape)``
        :param lstm_states: the actor's states after the previous step
        :param episode_starts: ``(B,)``
        :param action_masks: see :meth:`forward`
        :return: distribution and next states of the actor
        """
        features = self._features(obs, self.pi_features_extractor)
        latent, states = unroll_sequences(self.core, features, lstm_states, episode_starts)
        return self._distribution(self.mlp_extractor.forward_actor(latent), action_masks), states

    def predict_values(self, obs: PyTorchObs, lstm_states: StatePair, episode_starts: Tensor) -> Tensor:  # type: ignore[override]
        """
        The values of observations.

        :param obs: observations, ``(B, *observation_shape)``
        :param lstm_states: the critic's states after the previous step
        :param episode_starts: ``(B,)``
        :return: ``(B, 1)``
        """
        features = self._features(obs, self.vf_features_extractor)
        if self.critic is not None:
            latent = self.critic(features)
        else:
            latent, _ = unroll_sequences(self.critic_core or self.core, features, lstm_states, episode_starts)
        return self.value_net(self.mlp_extractor.forward_critic(latent))  # type: ignore[no-any-return]

    def evaluate_actions(  # type: ignore[override]
        self, obs: PyTorchObs, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Values and log-probabilities of steps in sb3-contrib's order: sequence after sequence.

        :param obs: observations, ``(B * T, *observation_shape)``
        :param actions: ``(B * T, *action_shape)``
        :param lstm_states: the states before the first step of each sequence
        :param episode_starts: ``(B * T,)``, not 0 where a step starts an episode
        :return: values ``(B * T, 1)``, log-probabilities ``(B * T,)`` and entropies ``(B * T,)`` (None: gSDE, squashed output)
        """
        unroll = partial(unroll_sequences, episode_starts=episode_starts)
        values, log_prob, entropy = self._evaluate(obs, actions, lstm_states, unroll, None)
        return values.unsqueeze(1), log_prob, entropy

    def evaluate_sequences(
        self, obs: PyTorchObs, actions: Tensor, states: RNNStates, layout: Layout, action_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Values and log-probabilities of ``n`` steps that are packed into rows.

        :param obs: observations, ``(n, *observation_shape)``
        :param actions: ``(n, action_dim)``
        :param states: the states before the first step of each row
        :param layout: where each step stands
        :param action_masks: ``(n, number of actions)``, see :meth:`forward`
        :return: values, log-probabilities and entropies, ``(n,)`` each; the entropies are None for gSDE with squashed output
        """
        return self._evaluate(obs, actions, states, partial(unroll_packed, layout=layout), action_masks, unchecked=True)

    def _evaluate(
        self,
        obs: PyTorchObs,
        actions: Tensor,
        states: RNNStates,
        unroll: Unroll,
        action_masks: Tensor | None,
        unchecked: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        latent_pi, latent_vf, _ = self._latents(obs, states, unroll)
        distribution = self._distribution(latent_pi, action_masks, unchecked)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        else:  # one dimension after the batch, as the distributions have it
            actions = actions.flatten(1) if actions.dim() > 1 else actions.unsqueeze(1)
            if isinstance(self.action_space, spaces.MultiBinary):
                actions = actions.float()
        return self.value_net(latent_vf).flatten(), distribution.log_prob(actions), distribution.entropy()

    def within_bounds(self, actions: np.ndarray) -> np.ndarray:
        """
        Actions as an environment takes them.

        :param actions: as the policy samples them, ``(B, *action_shape)``
        :return: Box actions clipped to the space or, with squashed output, scaled to it; other actions unchanged
        """
        if not isinstance(self.action_space, spaces.Box):
            return actions
        low, high = self.action_space.low, self.action_space.high
        return self.unscale_action(actions) if self.squash_output else np.clip(actions, low, high)

    @torch.no_grad()
    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Act on observations of one environment or several.

        :param observation: of one environment, or a batch of ``B``
        :param state: what the previous call returned; None: the core's initial state
        :param episode_start: ``(B,)`` bool, true where an observation is an episode's first; None: nowhere.
            Without it a state is carried across episodes
        :param deterministic: take the most likely action instead of a sample
        :param action_masks: true for valid actions, ``(B, number of actions)``; None: all are valid
        :return: actions, and the state to pass with the next observation
        :raises UsageError: for the state of another core or another number of environments
        """
        if isinstance(observation, tuple):  # type: ignore[unreachable]
            raise UsageError("observation must be an array or a dict, got a tuple: unpack it, `obs, info = env.reset()`")
        self.set_training_mode(False)
        obs, is_batch = self.obs_to_tensor(observation)
        n_envs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        if state is None:
            states = self.initial_states(n_envs).pi
        else:
            states = tuple(torch.as_tensor(half, dtype=torch.float32, device=self.device) for half in state)
            check_state(states, self.core.state_size, self.state_layers)
        starts = torch.zeros(n_envs) if episode_start is None else torch.as_tensor(episode_start, dtype=torch.float32)
        for name, found in (("state", states[0].shape[1]), ("episode_start", starts.numel())):
            if found != n_envs:
                raise UsageError(f"{name} must be that of the {n_envs} environments observed, got that of {found}")
        masks = None if action_masks is None else torch.as_tensor(action_masks, device=self.device)
        distribution, states = self.get_distribution(obs, states, starts.view(-1).to(self.device), masks)
        actions = distribution.get_actions(deterministic=deterministic).cpu().numpy()
        actions = actions.reshape(-1, *(self.action_space.shape or ()))
        actions = self.within_bounds(actions)
        return actions if is_batch else actions.squeeze(axis=0), tuple(half.cpu().numpy() for half in states)

    @torch.no_grad()
    def inspect(
        self,
        observations: np.ndarray | dict[str, np.ndarray] | PyTorchObs,
        state: tuple[np.ndarray, ...] | StatePair | RNNStates | None = None,
        episode_starts: np.ndarray | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        Look inside the actor's core while it reads observations.

        :param observations: of ``T`` steps of ``B`` environments, ``(T, B, *observation_shape)``: arrays as the environment
            returns them (images with their channels first or last), or tensors as the policy takes them
        :param state: before the first step, as :meth:`predict` returns it; None: the core's initial state
        :param episode_starts: ``(T, B)``, true where an observation is an episode's first; None: nowhere
        :return: what :meth:`rmc_rl.Core.inspect` returns, tensors ``(T, B, ...)`` by name
        :raises UsageError: if the shapes do not fit together
        """
        parts: dict[str, Any] = observations if isinstance(observations, dict) else {"": observations}
        shapes = [tuple(np.shape(part)) for part in parts.values()]
        time, batch = shapes[0][:2] if all(len(shape) > 1 for shape in shapes) else (0, 0)
        require(time * batch > 0, "observations must be (steps, environments, ...)", shapes)
        flat = {name: part.reshape(-1, *part.shape[2:]) for name, part in parts.items()}  # (T, B, ...) -> (T * B, ...)
        if isinstance(next(iter(flat.values())), np.ndarray):
            obs, _ = self.obs_to_tensor(flat if isinstance(observations, dict) else flat[""])
        else:
            tensors = {name: part.to(self.device) for name, part in flat.items()}
            obs = tensors if isinstance(observations, dict) else tensors[""]
        features = self._features(obs, self.pi_features_extractor)
        halves = self.initial_states(batch).pi if state is None else getattr(state, "pi", state)
        halves = tuple(torch.as_tensor(half, device=self.device) for half in halves)
        before = join_state(halves, self.core.state_size, self.state_layers)
        require(len(before) == batch, f"state must be that of the {batch} environments observed", len(before))
        starts = None if episode_starts is None else torch.as_tensor(episode_starts, device=self.device) > 0.5
        if starts is not None:
            require(starts.shape == (time, batch), f"episode_starts must have shape {(time, batch)}", tuple(starts.shape))
        return self.core.inspect(features.view(time, batch, -1), before, starts)

    def inspect_last_step(self) -> dict[str, Tensor]:
        """
        Look inside the actor's core at the step that the policy took last.

        :return: see :meth:`inspect`, tensors ``(1, B, ...)``
        :raises UsageError: before the first step
        """
        if self.acted_on is None:
            raise UsageError("inspect_last_step needs a step of the policy first")
        obs, states, starts = self.acted_on
        steps = {name: part.unsqueeze(0) for name, part in obs.items()} if isinstance(obs, dict) else obs.unsqueeze(0)
        return self.inspect(steps, states, starts.unsqueeze(0))


class CnnMemoryPolicy(MlpMemoryPolicy):
    """:class:`MlpMemoryPolicy` for images: the core reads the features of a ``NatureCNN``. The parameters are the same."""

    default_features_extractor = NatureCNN


class MultiInputMemoryPolicy(MlpMemoryPolicy):
    """
    :class:`MlpMemoryPolicy` for ``Dict`` observations: the core reads the features of a ``CombinedExtractor``, in which
    images under 36 pixels are flattened. The parameters are the same.
    """

    default_features_extractor = DictExtractor


def choose_policy(space: spaces.Space[Any]) -> type[MlpMemoryPolicy]:
    """
    The policy for an observation space.

    :param space: the space; images may have their channels first or last
    :return: ``MultiInputMemoryPolicy`` for ``Dict``, ``CnnMemoryPolicy`` for images that are large enough for its
        convolutions, ``MlpMemoryPolicy`` for everything else, small images included
    """
    if isinstance(space, spaces.Dict):
        return MultiInputMemoryPolicy
    return CnnMemoryPolicy if fits_cnn(space) else MlpMemoryPolicy
