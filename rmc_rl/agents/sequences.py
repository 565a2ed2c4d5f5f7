"""
Rollout storage for whole sequences.

Shapes: ``T`` steps of a rollout, ``N`` environments, ``L`` steps of a sequence, ``B`` sequences of a minibatch, ``R`` rows
that they are laid out in, ``S`` size of a core's state.
"""

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rmc_rl.agents.cores.scan import scan
from rmc_rl.agents.state import Layout, StatePair


def pack(starts: np.ndarray) -> Layout:
    """
    Cut sequences where episodes start and put the pieces into rows as long as the longest of them.

    A piece that goes on with the state its sequence began with opens a row. The others fill the rows, the longest first, each
    into the row with most room left, or a new one where it has no room there.

    :param starts: ``(L, B)`` bool, true where an episode starts
    :return: for the ``L * B`` steps, all sequences at the first, then all at the second ...
    """
    length, count = starts.shape
    cuts = starts.copy()
    cuts[0] = True
    env, begin = np.nonzero(cuts.T)  # sequence after sequence
    end = np.where(np.append(env[1:], -1) == env, np.append(begin[1:], 0), length)
    sizes, carried = end - begin, ~starts[begin, env]
    longest = int(sizes.max())
    row, at = np.zeros_like(sizes), np.zeros_like(sizes)  # of each piece: its row, and its place there
    opened = np.flatnonzero(carried).tolist()  # the piece that opens each row
    row[carried] = np.arange(len(opened))
    room = [(int(sizes[piece]) - longest, index) for index, piece in enumerate(opened)]  # negative: a heap has the least first
    heapq.heapify(room)
    fresh = np.flatnonzero(~carried)
    for piece in fresh[np.argsort(-sizes[fresh], kind="stable")].tolist():
        size = int(sizes[piece])
        if room and -room[0][0] >= size:
            free, index = heapq.heappop(room)
        else:
            free, index = -longest, len(opened)
            opened.append(piece)
        row[piece], at[piece] = index, longest + free
        heapq.heappush(room, (free + size, index))

    within = np.arange(length * count) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each step in its piece
    steps = (np.repeat(begin, sizes) + within) * count + np.repeat(env, sizes)
    rows, times = np.repeat(row, sizes), np.repeat(at, sizes) + within
    grid = np.zeros((longest, len(opened)), dtype=np.int64)
    grid[times, rows] = steps
    places = np.empty(length * count, dtype=np.int64)
    places[steps] = times * len(opened) + rows
    begins = np.zeros((longest, len(opened)), dtype=np.float32)
    begins[at, row] = ~carried
    return Layout(*map(torch.from_numpy, (grid, places, begins, env[opened])))


class Sequences(NamedTuple):
    """A minibatch: ``B`` sequences of ``L`` steps, all at the first step, then all at the second ..."""

    observations: PyTorchObs  # (L * B, *observation_shape)
    actions: Tensor  # (L * B, *action_shape)
    layout: Layout
    states: RNNStates  # before the first step of each row, pairs (1, R, ceil(S / 2))
    action_masks: Tensor | None  # (L * B, number of actions)
    old_values: Tensor  # (L * B,) and so the rest
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor


def _zeros(shape: tuple[int, ...], space: spaces.Space[Any], device: torch.device) -> Tensor:
    """Room for elements of a space, in their own type; float64 becomes float32, as in SB3."""
    assert space.shape is not None
    dtype = torch.from_numpy(np.zeros(0, dtype=space.dtype)).dtype
    return torch.zeros(*shape, *space.shape, dtype=torch.float32 if dtype == torch.float64 else dtype, device=device)


class SequenceBuffer:
    """
    A rollout, time first, on the policy's device, in tensors that are allocated once.

    Observations keep their own type (images: uint8). A core's states are kept where a sequence begins, nowhere else.

    :param n_steps: ``T``
    :param n_envs: ``N``
    :param sequence_length: ``L``, a divisor of ``T``
    :param observation_space: Observation space
    :param action_space: Action space
    :param states: of all environments, for their shapes
    :param num_masked: how many actions a mask covers; 0: there are no masks
    :param device: where the tensors live
    """

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
    ):
        self.n_steps, self.n_envs, self.sequence_length, self.device = n_steps, n_envs, sequence_length, device
        shape = (n_steps, n_envs)
        self.observations: PyTorchObs
        if isinstance(observation_space, spaces.Dict):
            self.observations = {name: _zeros(shape, space, device) for name, space in observation_space.items()}
        else:
            self.observations = _zeros(shape, observation_space, device)
        # actions as the policy returns them: samples of a normal distribution, for a Box of whole numbers as well
        self.actions = _zeros(shape, action_space, device)
        if isinstance(action_space, spaces.Box | spaces.MultiBinary):
            self.actions = self.actions.float()
        self.action_masks = torch.ones(*shape, num_masked, dtype=torch.bool, device=device) if num_masked else None
        self.starts, self.rewards, self.values, self.log_probs, self.advantages = torch.zeros(5, *shape, device=device)
        # (T / L, 1, N, ceil(S / 2)) each; a shared core has one pair for actor and critic
        chunks = n_steps // sequence_length
        self.pi_states = tuple(torch.zeros(chunks, *half.shape, device=device) for half in states.pi)
        shared = states.vf is states.pi
        self.vf_states = (
            self.pi_states if shared else tuple(torch.zeros(chunks, *half.shape, device=device) for half in states.vf)
        )

    @property
    def returns(self) -> Tensor:
        """``(T, N)``: what the values are trained towards."""
        returns: Tensor = self.advantages + self.values
        return returns

    def observe(
        self, step: int, obs: Any, starts: np.ndarray, states: RNNStates, action_masks: np.ndarray | None = None
    ) -> tuple[PyTorchObs, Tensor, Tensor | None]:
        """
        Keep what the policy is about to act on.

        :param step: of the rollout
        :param obs: ``(N, *observation_shape)``, an array or a dictionary of them
        :param starts: ``(N,)``, true where an episode starts
        :param states: before this step
        :param action_masks: ``(N, number of actions)``
        :return: observations, starts and masks on the device, as they were kept
        """
        kept: PyTorchObs
        if isinstance(self.observations, dict):
            kept = {name: room[step].copy_(torch.as_tensor(obs[name])) for name, room in self.observations.items()}
        else:
            kept = self.observations[step].copy_(torch.as_tensor(obs))
        if step % self.sequence_length == 0:
            chunk = step // self.sequence_length
            for room, halves in ((self.pi_states, states.pi), (self.vf_states, states.vf)):
                for part, half in zip(room, halves, strict=True):
                    part[chunk].copy_(half)
        masks = None
        if self.action_masks is not None:
            masks = self.action_masks[step].copy_(torch.as_tensor(action_masks).view(self.n_envs, -1))
        return kept, self.starts[step].copy_(torch.as_tensor(starts)), masks

    def compute_advantages(self, last_values: Tensor, dones: np.ndarray, gamma: float, gae_lambda: float) -> None:
        """
        Generalized advantage estimates (Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 16), of all steps at once.

        :param last_values: of the observations after the last step, ``(N,)``
        :param dones: ``(N,)``, true where the last step ended an episode
        :param gamma: Discount factor
        :param gae_lambda: Factor for trade-off of bias vs variance
        """
        over = torch.cat([self.starts[1:], torch.as_tensor(dones, dtype=torch.float32, device=self.device)[None]])
        next_values = torch.cat([self.values[1:], last_values[None]])
        deltas = self.rewards + gamma * next_values * (1 - over) - self.values
        # backwards in time: A_t = delta_t + gamma lambda A_{t+1} within an episode
        self.advantages = scan((gamma * gae_lambda * (1 - over)).flip(0), deltas.flip(0)).flip(0)

    def minibatches(self, num_sequences: int) -> Iterator[Sequences]:
        """
        The rollout's sequences in random order.

        :param num_sequences: ``B``
        """
        chunks, returns, all_starts = self.n_steps // self.sequence_length, self.returns, self.starts.cpu().numpy() > 0
        within = np.arange(self.sequence_length)[:, None]
        for chosen in np.split(np.random.permutation(chunks * self.n_envs), chunks * self.n_envs // num_sequences):
            chunk, env = np.divmod(chosen, self.n_envs)
            time = chunk * self.sequence_length + within  # (L, B)
            layout = Layout(*(part.to(self.device) for part in pack(all_starts[time, env])))
            index = torch.from_numpy((time * self.n_envs + env).ravel()).to(self.device)
            first = torch.from_numpy(chosen).to(self.device)[layout.rows]

            def pick(stored: Tensor, index: Tensor = index) -> Tensor:
                return stored.flatten(0, 1)[index]  # (T, N, ...) -> (L * B, ...)

            def pick_states(halves: StatePair, first: Tensor = first) -> StatePair:
                # (T / L, 1, N, S / 2) -> (T / L * N, S / 2) -> (1, R, S / 2)
                return tuple(half.flatten(0, 2)[first].unsqueeze(0) for half in halves)

            observations = self.observations
            if isinstance(observations, dict):
                observations = {name: pick(part) for name, part in observations.items()}
            else:
                observations = pick(observations)
            pi_states = pick_states(self.pi_states)
            yield Sequences(
                observations,
                pick(self.actions),
                layout,
                RNNStates(pi_states, pi_states if self.vf_states is self.pi_states else pick_states(self.vf_states)),
                None if self.action_masks is None else pick(self.action_masks),
                pick(self.values),
                pick(self.log_probs),
                pick(self.advantages),
                pick(returns),
            )
