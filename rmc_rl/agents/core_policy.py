"""
How a policy with a core acts, judges sequences, and shows what it remembers.

Shapes: ``B`` environments, while acting; ``T`` steps of each; ``F`` features, ``O`` features that a core writes, ``S`` size of
its state; ``n`` steps laid out in ``R`` rows, while training, see :class:`~rmc_rl.agents.state.Layout`.
"""

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from rmc_rl.agents.cores import Core
from rmc_rl.agents.state import Layout, StatePair, check_state, join_state, split_state
from rmc_rl.errors import UsageError, require


class CorePolicy(RecurrentActorCriticPolicy):
    """
    Actor and critic that read the output of a core; :class:`~rmc_rl.MlpMemoryPolicy` builds one.

    Code it follows: ``sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy``.
    """

    core: Core
    critic_core: Core | None  # the critic's own
    critic: nn.Linear | None  # in its place, for a critic without memory
    amp: torch.dtype | None  # of the features extractors, where it is not float32

    def _features(self, obs: PyTorchObs, extractor: BaseFeaturesExtractor) -> Tensor:
        """What an extractor makes of observations: ``(n, *observation_shape)`` -> ``(n, F)``."""
        extract = super(ActorCriticPolicy, self).extract_features  # the other one asks whether actor and critic share it
        if self.amp is None:
            return extract(obs, extractor)
        with torch.autocast(self.device.type, self.amp):
            return extract(obs, extractor).float()

    def initial_states(self, n_envs: int) -> RNNStates:
        """
        The states before the first step of an episode.

        :param n_envs: ``B``
        :return: for actor and critic a pair of tensors ``(1, B, ceil(S / 2))`` each
        """
        # detached, for a learned one is a view of its parameter
        actor = split_state(self.core.initial_state(n_envs).detach())
        critic = actor if self.critic_core is None else split_state(self.critic_core.initial_state(n_envs).detach())
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
            # index_select, for the gradient of indexing is slow
            rows = features.index_select(0, layout.grid.flatten()).view(*layout.grid.shape, -1)  # (n, F) -> (T, R, F)
            outputs, state = core(rows, state, layout.starts > 0.5)
            return outputs.flatten(0, 1).index_select(0, layout.places), split_state(state)  # (T, R, O) -> (n, O)
        outputs, state = core(features.unsqueeze(0), state, layout.unsqueeze(0) > 0.5)
        return outputs[0], split_state(state)

    def _latents(self, obs: PyTorchObs, states: RNNStates, layout: Layout | Tensor) -> tuple[Tensor, Tensor, RNNStates]:
        """Actor's and critic's last hidden layer for ``n`` steps, ``(n, H)`` each, and the states after them."""
        critic_features = actor_features = self._features(obs, self.pi_features_extractor)
        if not self.share_features_extractor:
            critic_features = self._features(obs, self.vf_features_extractor)
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
        features = self._features(obs, self.pi_features_extractor)
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
        features = self._features(obs, self.vf_features_extractor)
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
        batch = lstm_states.pi[0].shape[1]
        order = torch.arange(len(episode_starts), device=episode_starts.device)
        by_sequence, by_step = order.view(batch, -1).T, order.view(-1, batch).T  # (T, B), (B, T)
        layout = Layout(by_sequence, by_step.flatten(), episode_starts.view(batch, -1).T, order[:batch])
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
        elif isinstance(self.action_space, spaces.Box):
            actions = actions.flatten(1)  # as the distribution has them
        return self.value_net(latent_vf).flatten(), distribution.log_prob(actions), distribution.entropy()

    def within_bounds(self, actions: np.ndarray) -> np.ndarray:
        """
        Actions as an environment takes them.

        :param actions: as the policy samples them, ``(B, *action_shape)``
        :return: Box actions clipped to the space or, with squashed output, scaled to it; others as they are
        """
        if not isinstance(self.action_space, spaces.Box):
            return actions
        bounded: np.ndarray
        if self.squash_output:
            bounded = self.unscale_action(actions)
        else:
            bounded = np.clip(actions, self.action_space.low, self.action_space.high)
        return bounded

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
        features = self._features(obs, self.pi_features_extractor)
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
            check_state(states, self.core.state_size)
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
