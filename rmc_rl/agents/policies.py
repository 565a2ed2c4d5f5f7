"""
Policies that think with a core, for sb3-contrib's ``RecurrentPPO``.

Shapes: ``B`` sequences (environments, while acting), ``T`` steps of each, ``F`` features, ``S`` size of a core's state.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from rmc_rl.agents.cores import Core, make_core
from rmc_rl.agents.features import EncodedFeatures, refuse_shifted
from rmc_rl.agents.states import Layout, StatePair, StateShape, join_state, split_state
from rmc_rl.errors import UsageError, require, require_choice, require_whole

CRITICS = ("shared", "separate", "memoryless")


class CoreArguments(NamedTuple):
    """What a policy was told of its core."""

    core: str | type[Core]
    core_kwargs: dict[str, Any]
    critic: str
    encoder: list[int]


class MlpMemoryPolicy(RecurrentActorCriticPolicy):
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

    core: Core
    critic_core: Core | None
    critic: nn.Linear | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        core: str | type[Core] = "rmc",
        core_kwargs: dict[str, Any] | None = None,
        critic: str = "shared",
        encoder: list[int] | None = None,
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
        self._core_arguments = CoreArguments(core, dict(core_kwargs or {}), critic, list(encoder or ()))
        if optimizer_class is torch.optim.Adam:
            optimizer_kwargs = dict(eps=1e-5, fused=True) | (optimizer_kwargs or {})
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
        core, kwargs, critic, _ = self._core_arguments
        self.core = make_core(core, self.features_dim, kwargs)
        self.critic_core = make_core(core, self.features_dim, kwargs) if critic == "separate" else None
        # to the width of the core's output, for actor and critic are built alike from there
        self.critic = nn.Linear(self.features_dim, self.core.output_size) if critic == "memoryless" else None
        self.lstm_output_dim = self.core.output_size
        half = (self.core.state_size + 1) // 2
        self.lstm_actor: Any = StateShape(num_layers=1, hidden_size=half)
        self.lstm_hidden_state_shape = (1, 1, half)
        super()._build(lr_schedule)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """The features extractor, with the encoder's layers where there are any."""
        extractor, sizes = super().make_features_extractor(), self._core_arguments.encoder
        return EncodedFeatures(extractor, sizes, self.activation_fn) if sizes else extractor

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return data | self._core_arguments._asdict() | dict(share_features_extractor=self.share_features_extractor)

    def initial_states(self, n_envs: int) -> RNNStates:
        """
        The states before the first step of an episode.

        :param n_envs: ``B``
        :return: for actor and critic a pair of tensors ``(1, B, ceil(S / 2))`` each
        """
        actor = split_state(self.core.initial_state(n_envs))
        critic = actor if self.critic_core is None else split_state(self.critic_core.initial_state(n_envs))
        return RNNStates(actor, critic)

    @staticmethod
    def _remember(core: Core, features: Tensor, states: StatePair, layout: Layout | Tensor) -> tuple[Tensor, StatePair]:
        """
        Run a core over sequences, or one step.

        :param features: of ``n`` steps, ``(n, F)``
        :param states: before the first step of each row, a pair ``(1, R, ceil(S / 2))``
        :param layout: how the steps lie in rows; or, of one step in each of ``n`` rows, 1 where an episode starts, ``(n,)``
        :return: outputs ``(n, O)`` and the states after the last step
        """
        state = join_state(states, core.state_size)
        if isinstance(layout, Layout):
            outputs, state = core(features[layout.grid], state, layout.starts > 0.5)
            return outputs.flatten(0, 1)[layout.places], split_state(state)  # (T, R, O) -> (T * R, O) -> (n, O)
        outputs, state = core(features.unsqueeze(0), state, layout.unsqueeze(0) > 0.5)
        return outputs[0], split_state(state)

    def _latents(self, obs: PyTorchObs, states: RNNStates, layout: Layout | Tensor) -> tuple[Tensor, Tensor, RNNStates]:
        """Actor's and critic's last hidden layer for ``n`` steps, ``(n, H)`` each, and the states after them."""
        features = self.extract_features(obs)
        actor_features, critic_features = features if isinstance(features, tuple) else (features, features)
        actor, actor_states = self._remember(self.core, actor_features, states.pi, layout)
        critic, critic_states = actor, actor_states
        if self.critic_core is not None:
            critic, critic_states = self._remember(self.critic_core, critic_features, states.vf, layout)
        elif self.critic is not None:
            critic = self.critic(critic_features)
        return (
            self.mlp_extractor.forward_actor(actor),
            self.mlp_extractor.forward_critic(critic),
            RNNStates(actor_states, critic_states),
        )

    def _distribution(self, latent: Tensor, action_masks: Tensor | None = None) -> Distribution:
        """The distribution of actions, from the actor's last hidden layer ``(B, H)``; see :meth:`forward` for the masks."""
        if action_masks is None:
            return self._get_action_dist_from_latent(latent)
        discrete = isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete)
        require(discrete, "action masks need Discrete or MultiDiscrete actions", self.action_space)
        distribution = make_masked_proba_distribution(self.action_space)
        distribution.proba_distribution(self.action_net(latent))
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
        :param lstm_states: the states after the step before
        :param episode_starts: ``(B,)``, not 0 where an observation is an episode's first: the core then starts anew
        :param deterministic: take the likeliest action instead of a sample
        :param action_masks: true for valid actions, ``(B, number of actions)``; of MultiDiscrete, those of all parts in a row
        :return: actions ``(B, *action_shape)``, values ``(B, 1)``, log-probabilities ``(B,)``, next states
        """
        latent_pi, latent_vf, states = self._latents(obs, lstm_states, episode_starts)
        distribution = self._distribution(latent_pi, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape(-1, *(self.action_space.shape or ()))
        return actions, self.value_net(latent_vf), log_prob, states

    def get_distribution(  # type: ignore[override]
        self, obs: PyTorchObs, lstm_states: StatePair, episode_starts: Tensor, action_masks: Tensor | None = None
    ) -> tuple[Distribution, StatePair]:
        """
        The distribution of actions.

        :param obs: observations, ``(B, *observation_shape)``
        :param lstm_states: the actor's states after the step before
        :param episode_starts: ``(B,)``
        :param action_masks: see :meth:`forward`
        :return: distribution and next states of the actor
        """
        features = super(ActorCriticPolicy, self).extract_features(obs, self.pi_features_extractor)
        latent, states = self._remember(self.core, features, lstm_states, episode_starts)
        return self._distribution(self.mlp_extractor.forward_actor(latent), action_masks), states

    def predict_values(self, obs: PyTorchObs, lstm_states: StatePair, episode_starts: Tensor) -> Tensor:  # type: ignore[override]
        """
        The values of observations.

        :param obs: observations, ``(B, *observation_shape)``
        :param lstm_states: the critic's states after the step before
        :param episode_starts: ``(B,)``
        :return: ``(B, 1)``
        """
        features = super(ActorCriticPolicy, self).extract_features(obs, self.vf_features_extractor)
        if self.critic is not None:
            latent = self.critic(features)
        else:
            latent, _ = self._remember(self.critic_core or self.core, features, lstm_states, episode_starts)
        values: Tensor = self.value_net(self.mlp_extractor.forward_critic(latent))
        return values

    def evaluate_actions(  # type: ignore[override]
        self, obs: PyTorchObs, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Values and probabilities of steps that were taken, as sb3-contrib lays them out: sequence after sequence.

        :param obs: observations, ``(B * T, *observation_shape)``, the steps of a sequence one after another
        :param actions: ``(B * T, *action_shape)``
        :param lstm_states: the states before the first step of each sequence
        :param episode_starts: ``(B * T,)``, not 0 where a step opens an episode
        :return: values ``(B * T, 1)``, log-probabilities ``(B * T,)`` and entropies ``(B * T,)``, the last None for gSDE
            with squashed output
        """
        rows = torch.arange(lstm_states.pi[0].shape[1], device=episode_starts.device)
        places = torch.arange(len(episode_starts), device=rows.device).view(len(rows), -1)  # (B, T)
        times = places[:1].T * len(rows)  # (T, 1): where in the grid (T, B) its rows begin
        layout = Layout(places.T, (times + rows).T.flatten(), episode_starts[places.T], rows)
        values, log_prob, entropy = self.evaluate_sequences(obs, actions, lstm_states, layout)
        return values.unsqueeze(1), log_prob, entropy

    def evaluate_sequences(
        self, obs: PyTorchObs, actions: Tensor, states: RNNStates, layout: Layout, action_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Values and probabilities of ``n`` steps that were taken.

        :param obs: observations, ``(n, *observation_shape)``
        :param actions: ``(n, *action_shape)``
        :param states: the states before the first step of each row
        :param layout: how the steps lie in rows
        :param action_masks: ``(n, number of actions)``, see :meth:`forward`
        :return: values, log-probabilities and entropies, ``(n,)`` each, the last None for gSDE with squashed output
        """
        latent_pi, latent_vf, _ = self._latents(obs, states, layout)
        distribution = self._distribution(latent_pi, action_masks)
        if isinstance(self.action_space, spaces.MultiBinary):
            actions = actions.float()
        return self.value_net(latent_vf).flatten(), distribution.log_prob(actions), distribution.entropy()

    @torch.no_grad()
    def inspect(
        self,
        observations: np.ndarray | dict[str, np.ndarray] | PyTorchObs,
        state: tuple[np.ndarray, ...] | StatePair | RNNStates | None = None,
        episode_starts: np.ndarray | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        Look inside the actor's core while it reads observations.

        :param observations: of ``T`` steps of ``B`` environments, ``(T, B, *observation_shape)``, images channels first
        :param state: before the first step, as :meth:`predict` returns it; None: the core's initial state
        :param episode_starts: ``(T, B)``, true where an observation is an episode's first; None: nowhere
        :return: what :meth:`rmc_rl.Core.inspect` returns, tensors ``(T, B, ...)`` by name
        :raises UsageError: where these do not fit together
        """
        parts = observations if isinstance(observations, dict) else {"": observations}
        steps = {name: torch.as_tensor(part, device=self.device) for name, part in parts.items()}
        time, batch = next(iter(steps.values())).shape[:2] if all(part.dim() > 1 for part in steps.values()) else (0, 0)
        require(time * batch > 0, "observations must be (steps, environments, ...)", [p.shape for p in steps.values()])
        flat = {name: part.flatten(0, 1) for name, part in steps.items()}  # (T, B, *shape) -> (T * B, *shape)
        obs: PyTorchObs = flat if isinstance(observations, dict) else flat[""]
        features = super(ActorCriticPolicy, self).extract_features(obs, self.pi_features_extractor)
        halves = self.initial_states(batch).pi if state is None else state.pi if isinstance(state, RNNStates) else state
        pair = join_state(tuple(torch.as_tensor(half, device=self.device) for half in halves), self.core.state_size)
        require(len(pair) == batch, f"state must be that of the {batch} environments observed", len(pair))
        starts = None if episode_starts is None else torch.as_tensor(episode_starts, device=self.device) > 0.5
        if starts is not None:
            require(starts.shape == (time, batch), f"episode_starts must have shape {(time, batch)}", tuple(starts.shape))
        return self.core.inspect(features.view(time, batch, -1), pair, starts)

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
        :param state: what the call before returned; None: the core's initial state
        :param episode_start: ``(B,)`` bool, true where an observation is an episode's first; None: nowhere.
            Without it a state is carried across episodes
        :param deterministic: take the likeliest action instead of a sample
        :param action_masks: true for valid actions, ``(B, number of actions)``; None: all are
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
        starts = torch.zeros(n_envs) if episode_start is None else torch.as_tensor(episode_start, dtype=torch.float32)
        for name, found in (("state", states[0].shape[1]), ("episode_start", starts.numel())):
            if found != n_envs:
                raise UsageError(f"{name} must be that of the {n_envs} environments observed, got that of {found}")
        masks = None if action_masks is None else torch.as_tensor(action_masks, device=self.device)
        distribution, states = self.get_distribution(obs, states, starts.view(-1).to(self.device), masks)
        actions = distribution.get_actions(deterministic=deterministic).cpu().numpy()
        actions = actions.reshape(-1, *(self.action_space.shape or ()))
        if isinstance(self.action_space, spaces.Box):
            clipped = np.clip(actions, self.action_space.low, self.action_space.high)
            actions = self.unscale_action(actions) if self.squash_output else clipped
        return actions if is_batch else actions.squeeze(axis=0), tuple(half.cpu().numpy() for half in states)


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
