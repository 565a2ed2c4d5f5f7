"""
Rollout storage in whole sequences, and the minibatches that are drawn from it.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``L`` steps of a sequence, ``B`` sequences of a minibatch, ``n`` steps of
a minibatch, ``R`` rows that they are packed into, ``L'`` steps of a row; ``F`` features, ``O`` features that a core writes,
``S`` size of its state.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.type_aliases import (
    RecurrentDictRolloutBufferSamples,
    RecurrentRolloutBufferSamples,
    RNNStates,
)
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rmc_rl.agents import parallel
from rmc_rl.agents.cores.scan import scan
from rmc_rl.agents.packing import Layout, pack
from rmc_rl.agents.state import StatePair
from rmc_rl.errors import require

# what sb3-contrib's buffer samples with; there is nothing like it here
_OF_STOCK_ONLY = ("generator_ready", "seq_start_indices", "seq_end_indices", "pad", "pad_and_flatten")


class ActedOn(NamedTuple):
    """What a policy acted on in its last step."""

    observations: PyTorchObs  # (B, *observation_shape)
    states: RNNStates  # before the step
    episode_starts: Tensor  # (B,)


class Sequences(NamedTuple):
    """
    A minibatch of ``n`` steps: sequence after sequence, each in the order of time.

    In a group of processes (:mod:`rmc_rl.agents.parallel`) it is the part of one process.
    """

    steps: Tensor  # (n,), index of each step in the flattened rollout (T * N,)
    observations: PyTorchObs  # (n, *observation_shape)
    actions: Tensor  # (n, action_dim)
    layout: Layout
    states: RNNStates  # before the first step of each row, pairs as of split_state
    action_masks: Tensor | None  # (n, number of actions)
    old_values: Tensor  # (n,)
    old_log_prob: Tensor  # (n,)
    advantages: Tensor  # (n,)
    returns: Tensor  # (n,)
    total: int  # steps of the minibatch in all processes; n in a single one
    counts: bool  # False: the minibatch has no sequence of this process, and another one stands in for it, with weight 0

    def mean(self, values: Tensor) -> Tensor:
        """
        This process's part of the mean over a minibatch: the parts of all processes add up to it.

        :param values: one for each step, ``(n,)``
        """
        return self.sum(values) / self.total

    def sum(self, values: Tensor) -> Tensor:
        """
        This process's part of the sum over a minibatch.

        :param values: one for each step, ``(n,)``
        """
        return values.sum() if self.counts else values.sum() * 0


class _Drawn(NamedTuple):
    """The sequences of a minibatch, or of one process's part of it, before they are packed."""

    sequences: np.ndarray  # (B,)
    steps: np.ndarray  # (n,), in the flattened rollout
    lengths: np.ndarray  # (B,), in steps
    total: int  # see Sequences
    counts: bool


class RolloutTensors(NamedTuple):
    """What is stored of a rollout, on the policy's device."""

    observations: PyTorchObs  # (T, N, *observation_shape), in the dtype of the space; float64 becomes float32
    actions: Tensor  # (T, N, action_dim)
    action_masks: Tensor | None  # (T, N, number of actions) bool
    episode_starts: Tensor  # (T, N), 1 where the observation is an episode's first
    rewards: Tensor  # (T, N)
    values: Tensor  # (T, N)
    log_probs: Tensor  # (T, N)
    advantages: Tensor  # (T, N)
    returns: Tensor  # (T, N)
    pi_states: StatePair  # of the actor where a sequence begins, pair (ceil(T / L), layers, N, width)
    vf_states: StatePair  # of the critic; the same tensors if they share a core


def _allocate(shape: tuple[int, ...], space: spaces.Space[Any], device: torch.device) -> Tensor:
    """Zeros for elements of a space, in its dtype; float64 becomes float32, as in SB3."""
    assert space.shape is not None
    dtype = torch.from_numpy(np.zeros(0, dtype=space.dtype)).dtype
    return torch.zeros(*shape, *space.shape, dtype=torch.float32 if dtype == torch.float64 else dtype, device=device)


def _array(name: str) -> Any:
    """A property: a stored tensor as a NumPy array, and assignment to it."""

    def read(self: "SequenceBuffer") -> Any:
        stored = getattr(self.tensors, name)
        if isinstance(stored, dict):
            return {key: part.cpu().numpy() for key, part in stored.items()}
        array = stored.cpu().numpy()
        # sb3-contrib adds a dimension to Discrete observations
        return array.reshape(*array.shape[:2], *self.obs_shape) if name == "observations" else array

    def write(self: "SequenceBuffer", value: Any) -> None:
        stored = getattr(self.tensors, name)
        parts = (
            {key: (part, value[key]) for key, part in stored.items()} if isinstance(stored, dict) else {"": (stored, value)}
        )
        for part, new in parts.values():
            part.copy_(torch.as_tensor(new).reshape(part.shape))

    return property(read, write, doc=f"``{name}`` as NumPy array, see :class:`RolloutTensors`.")


def _states_array(of: str, half: int) -> Any:
    """A read-only property: states before each step, as a NumPy array."""

    def read(self: "SequenceBuffer") -> Any:
        return getattr(self._recomputed_states(), of)[half].copy()

    return property(read, doc=f"States before each step, ``(T, layers, N, width)``: half {half} of ``{of}``, computed anew.")


class SequenceBuffer(RecurrentRolloutBuffer):
    """
    One rollout in time-major order, on the policy's device, in tensors that are allocated once.

    Callbacks use it as they use sb3-contrib's ``RecurrentRolloutBuffer``: ``rewards``, ``values``, ``episode_starts`` ... are
    NumPy arrays ``(T, N, ...)``, and a callback may assign to them (``buffer.rewards -= 1``). On the CPU they share memory
    with the stored tensors, so a callback may also change them in place; on a GPU they are copies. The algorithm itself works
    with :attr:`tensors`. Core states are stored only where a sequence begins: ``hidden_states_pi``, ``cell_states_pi``,
    ``hidden_states_vf`` and ``cell_states_vf``, which have those before every step, are computed anew when they are read.

    Unlike sb3-contrib's buffer, :meth:`get` leaves these arrays as they are; there, it flattens them.

    :param n_steps: ``T``
    :param n_envs: ``N``
    :param sequence_length: ``L``; the last sequence of an environment is shorter if ``L`` does not divide ``T``
    :param observation_space: Observation space
    :param action_space: Action space
    :param states: of all environments, for their shapes
    :param num_masked: number of actions that a mask covers; 0: there are no masks
    :param device: where the tensors live
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param next_states: from observations, states and episode starts of a step to the states after it, for the arrays of
        states; None: there are no such arrays
    """

    hidden_states_pi = _states_array("pi", 0)
    cell_states_pi = _states_array("pi", 1)
    hidden_states_vf = _states_array("vf", 0)
    cell_states_vf = _states_array("vf", 1)
    observations = _array("observations")
    actions = _array("actions")
    episode_starts = _array("episode_starts")
    rewards = _array("rewards")
    values = _array("values")
    log_probs = _array("log_probs")
    advantages = _array("advantages")
    returns = _array("returns")

    def __init__(
        self,
        n_steps: int,
        n_envs: int,
        sequence_length: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        states: RNNStates,
        num_masked: int,
        device: torch.device,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        next_states: Callable[[PyTorchObs, RNNStates, Tensor], RNNStates] | None = None,
    ):
        # not RecurrentRolloutBuffer's constructor, which would allocate its arrays; pos counts the steps stored so far
        BaseBuffer.__init__(self, n_steps, observation_space, action_space, device, n_envs)
        self.sequence_length, self.num_masked, self.next_states = sequence_length, num_masked, next_states
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.hidden_state_shape = (n_steps, *states.pi[0].shape)
        self._states: RNNStates | None = None  # before each step, NumPy arrays
        shape = (n_steps, n_envs)
        observations: PyTorchObs
        if isinstance(observation_space, spaces.Dict):
            observations = {name: _allocate(shape, space, device) for name, space in observation_space.items()}
        else:
            observations = _allocate(shape, observation_space, device)
        # samples of a normal distribution are stored as they are, also for a Box of whole numbers
        discrete = isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete)
        action_dtype = torch.int64 if discrete else torch.float32
        chunks = -(-n_steps // sequence_length)  # rounded up
        pi_states = tuple(torch.zeros(chunks, *half.shape, device=device) for half in states.pi)
        vf_states = pi_states
        if states.vf is not states.pi:
            vf_states = tuple(torch.zeros(chunks, *half.shape, device=device) for half in states.vf)
        starts, rewards, values, log_probs, advantages, returns = torch.zeros(6, *shape, device=device)
        self.tensors = RolloutTensors(
            observations,
            actions=torch.zeros(*shape, self.action_dim, dtype=action_dtype, device=device),
            action_masks=torch.ones(*shape, num_masked, dtype=torch.bool, device=device) if num_masked else None,
            episode_starts=starts,
            rewards=rewards,
            values=values,
            log_probs=log_probs,
            advantages=advantages,
            returns=returns,
            pi_states=pi_states,
            vf_states=vf_states,
        )

    def __getattr__(self, name: str) -> Any:  # for what is not found otherwise
        if name in _OF_STOCK_ONLY:
            raise AttributeError(f"{name} is of sb3-contrib's buffer only: use get(), which returns samples in its form")
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def reset(self) -> None:
        """Start a new rollout; what is stored is overwritten."""
        self.pos, self.full, self._states = 0, False, None

    def add_observation(
        self, obs: Any, episode_starts: Any, states: RNNStates, action_masks: np.ndarray | None = None
    ) -> tuple[PyTorchObs, Tensor, Tensor | None]:
        """
        Store what the policy is about to act on. The rest of the step follows with :meth:`add`.

        :param obs: ``(N, *observation_shape)``, an array or a dictionary of arrays
        :param episode_starts: ``(N,)``, true where the observation is an episode's first
        :param states: before this step
        :param action_masks: ``(N, number of actions)``
        :return: observations, episode starts and masks, as stored on the device
        """
        step, tensors = self.pos, self.tensors
        stored: PyTorchObs
        if isinstance(tensors.observations, dict):
            stored = {name: part[step].copy_(torch.as_tensor(obs[name])) for name, part in tensors.observations.items()}
        else:
            stored = tensors.observations[step].copy_(torch.as_tensor(obs))
        if step % self.sequence_length == 0:
            chunk = step // self.sequence_length
            for storage, halves in ((tensors.pi_states, states.pi), (tensors.vf_states, states.vf)):
                for part, half in zip(storage, halves, strict=True):
                    part[chunk].copy_(half)
        masks = None
        if tensors.action_masks is not None:
            masks = tensors.action_masks[step].copy_(torch.as_tensor(action_masks).view(self.n_envs, -1))
        return stored, tensors.episode_starts[step].copy_(torch.as_tensor(episode_starts)), masks

    def add_outcome(self, actions: Any, values: Tensor, log_probs: Tensor, rewards: Any) -> None:
        """
        Store the rest of a step.

        :param actions: ``(N, *action_shape)``, an array or a tensor
        :param values: ``(N, 1)``
        :param log_probs: ``(N,)``
        :param rewards: ``(N,)``, an array or a tensor
        """
        step, tensors = self.pos, self.tensors
        tensors.actions[step] = torch.as_tensor(actions).reshape(self.n_envs, -1)
        tensors.values[step], tensors.log_probs[step] = values.flatten(), log_probs.flatten()
        tensors.rewards[step].copy_(torch.as_tensor(rewards))
        self.pos += 1
        self.full = self.pos == self.buffer_size
        self._states = None

    def add(  # type: ignore[override]  # sb3-contrib's own names no arguments
        self,
        obs: Any,
        action: Any,
        reward: Any,
        episode_start: Any,
        value: Tensor,
        log_prob: Tensor,
        *,
        lstm_states: RNNStates,
        action_masks: np.ndarray | None = None,
    ) -> None:
        """
        Store a step, as sb3-contrib's buffer does: for a ``collect_rollouts`` of your own.

        :param obs: ``(N, *observation_shape)``, an array or a dictionary of arrays
        :param action: ``(N, *action_shape)``
        :param reward: ``(N,)``
        :param episode_start: ``(N,)``, true where the observation is an episode's first
        :param value: ``(N, 1)``
        :param log_prob: ``(N,)``
        :param lstm_states: before this step
        :param action_masks: ``(N, number of actions)``; None: all actions are valid
        """
        if action_masks is None and self.num_masked:
            action_masks = np.ones((self.n_envs, self.num_masked), dtype=bool)
        self.add_observation(obs, episode_start, lstm_states, action_masks)
        self.add_outcome(action, value, log_prob, reward)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: Any) -> None:
        """
        Generalized advantage estimates (Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 16) and returns, of all
        steps.

        :param last_values: of the observations after the last step, ``(N,)`` or ``(N, 1)``
        :param dones: ``(N,)``, true where the last step ended an episode
        """
        tensors = self.tensors
        last_dones = torch.as_tensor(dones, device=self.device).to(torch.float32)
        last_values = last_values.detach().to(self.device).flatten()
        continues = 1 - torch.cat([tensors.episode_starts[1:], last_dones[None]])
        next_values = torch.cat([tensors.values[1:], last_values[None]])
        deltas = tensors.rewards + self.gamma * next_values * continues - tensors.values
        # backwards in time: A_t = delta_t + gamma lambda A_{t+1} within an episode
        tensors.advantages.copy_(scan((self.gamma * self.gae_lambda * continues).flip(0), deltas.flip(0)).flip(0))
        torch.add(tensors.advantages, tensors.values, out=tensors.returns)

    def _recomputed_states(self) -> RNNStates:
        """
        The states before each stored step, pairs of arrays ``(T, layers, N, width)``; zeros for steps that are not stored.

        They are computed with the policy's present weights, from the stored states with which sequences begin.
        """
        if self._states is None:
            require(self.next_states is not None, "the states of a buffer without a policy cannot be computed", None)
            assert self.next_states is not None
            stored, tensors = (self.tensors.pi_states, self.tensors.vf_states), self.tensors
            found = [[np.zeros((self.buffer_size, *half.shape[1:]), dtype=np.float32) for half in pair] for pair in stored]
            states = RNNStates((), ())
            for step in range(self.pos):
                if step % self.sequence_length == 0:
                    states = RNNStates(*(tuple(half[step // self.sequence_length] for half in pair) for pair in stored))
                for arrays, pair in zip(found, states, strict=True):
                    for array, half in zip(arrays, pair, strict=True):
                        array[step] = half.cpu().numpy()
                obs = tensors.observations
                obs = {name: part[step] for name, part in obs.items()} if isinstance(obs, dict) else obs[step]
                states = self.next_states(obs, states, tensors.episode_starts[step])
            self._states = RNNStates(*(tuple(arrays) for arrays in found))  # type: ignore[arg-type]
        return self._states

    def minibatches(self, batch_size: int | None) -> Iterator[Sequences]:
        """
        The rollout's sequences in random order, packed; of a group of processes, this one's part of each minibatch.

        :param batch_size: transitions of a minibatch; as many whole sequences as fit, at least one. None: all. The last
            minibatch is shorter if this does not divide the rollout
        """
        all_starts = self.episode_starts > 0
        tensors = self.tensors
        for sequences, index, lengths, total, counts in self._batches(batch_size, parallel.rank(), parallel.size()):
            packed = pack(all_starts.ravel()[index], lengths)
            layout = Layout(*(part.to(self.device) for part in packed))
            steps = torch.from_numpy(index).to(self.device)
            rows = torch.from_numpy(sequences).to(self.device)[layout.sequences]
            yield Sequences(
                steps,
                self._pick(tensors.observations, steps),
                self._pick(tensors.actions, steps),
                layout,
                self._pick_states(rows),
                None if tensors.action_masks is None else self._pick(tensors.action_masks, steps),
                self._pick(tensors.values, steps),
                self._pick(tensors.log_probs, steps),
                self._pick(tensors.advantages, steps),
                self._pick(tensors.returns, steps),
                total,
                counts,
            )

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """
        Minibatches in sb3-contrib's form: sequence after sequence, each padded to the longest, with ``mask`` 1 for real steps.

        For callbacks: the algorithm itself trains on :meth:`minibatches`, which contain no padding.

        :param batch_size: see :meth:`minibatches`
        :raises UsageError: before the rollout is whole
        """
        require(self.full, f"a rollout must have all its {self.buffer_size} steps before it is sampled", self.pos)
        tensors = self.tensors
        is_dict = isinstance(tensors.observations, dict)
        samples: Any = RecurrentDictRolloutBufferSamples if is_dict else RecurrentRolloutBufferSamples
        for sequences, index, lengths, _, _ in self._batches(batch_size):
            longest = int(lengths.max())
            real = np.arange(longest) < lengths[:, None]  # (B, longest)
            padded = np.zeros(real.shape, dtype=np.int64)
            padded[real] = index
            steps = torch.from_numpy(padded.ravel()).to(self.device)
            mask = torch.from_numpy(real.ravel().astype(np.float32)).to(self.device)
            yield samples(
                observations=self._pick(tensors.observations, steps),
                actions=self._pick(tensors.actions, steps),
                old_values=self._pick(tensors.values, steps),
                old_log_prob=self._pick(tensors.log_probs, steps),
                advantages=self._pick(tensors.advantages, steps),
                returns=self._pick(tensors.returns, steps),
                lstm_states=self._pick_states(torch.from_numpy(sequences).to(self.device)),
                episode_starts=self._pick(tensors.episode_starts, steps) * mask,
                mask=mask,
            )

    def _get_samples(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("samples of single steps are of sb3-contrib's buffer only: use get()")

    def _batches(self, batch_size: int | None, rank: int = 0, size: int = 1) -> Iterator[_Drawn]:
        """
        What process ``rank`` of ``size`` computes of each minibatch.

        The sequences of all processes are drawn together; a process takes those of its own environments.
        """
        length, n_envs, chunks = self.sequence_length, self.n_envs * size, -(-self.buffer_size // self.sequence_length)
        per_batch = max(1, (batch_size or self.buffer_size * n_envs) // length)
        order = np.random.permutation(chunks * n_envs)
        if size > 1:
            order = parallel.from_first(order)
        for begin in range(0, len(order), per_batch):
            chunk, env = np.divmod(order[begin : begin + per_batch], n_envs)
            total = int(np.minimum(length, self.buffer_size - chunk * length).sum())
            own = env // self.n_envs == rank
            counts = bool(own.any())
            chunk, env = (chunk[own], env[own] % self.n_envs) if counts else np.zeros((2, 1), dtype=np.int64)
            firsts = chunk * length
            lengths = np.minimum(length, self.buffer_size - firsts)
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            index = (np.repeat(firsts, lengths) + within) * self.n_envs + np.repeat(env, lengths)
            yield _Drawn(chunk * self.n_envs + env, index, lengths, total, counts)

    @staticmethod
    def _pick(stored: Any, steps: Tensor) -> Any:
        """``(T, N, ...)`` -> ``(n, ...)``."""
        if isinstance(stored, dict):
            return {name: part.flatten(0, 1)[steps] for name, part in stored.items()}
        return stored.flatten(0, 1)[steps]  # (T, N, ...) -> (T * N, ...) -> (n, ...)

    def _pick_states(self, sequences: Tensor) -> RNNStates:
        """The states with which some sequences begin, pairs ``(layers, B, width)``."""

        def pick(halves: StatePair) -> StatePair:
            # (chunks, layers, N, width) -> (chunks * N, layers, width) -> (B, layers, width) -> (layers, B, width)
            return tuple(half.transpose(1, 2).flatten(0, 1)[sequences].transpose(0, 1).contiguous() for half in halves)

        pi_states = pick(self.tensors.pi_states)
        shared = self.tensors.vf_states is self.tensors.pi_states
        return RNNStates(pi_states, pi_states if shared else pick(self.tensors.vf_states))
