"""
Cores made of residual blocks: a mixer, which carries the state over time, and an MLP.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width, ``M`` numbers of a mixer's state.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.layers import COMPUTING
from rmc_rl.agents.cores.scan import steps_since_start

MLP_FACTOR = 2  # hidden units of the MLP, relative to the width
NORM_EPSILON = 1e-5  # added to the mean square in RMSNorm
LONGEST_WAVE = 10_000  # of the encoding of positions, in steps divided by 2 pi (Vaswani et al. 2017)


class Mixer(nn.Module):
    """
    A layer that mixes the steps of a sequence: the part of a block that has a state.

    :param state_size: ``M``
    """

    def __init__(self, state_size: int):
        super().__init__()
        self.state_size = state_size

    def initial_state(self, like: Tensor) -> Tensor:
        """
        The state before the first step of an episode.

        :param like: a tensor of the mixer's device and dtype
        :return: ``(M,)``
        """
        return like.new_zeros(self.state_size)

    @abstractmethod
    def forward(
        self, x: Tensor, state: Tensor, starts: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """
        All steps of a sequence.

        :param x: normalised features, ``(T, B, W)``
        :param state: before the first step, ``(B, M)``
        :param starts: ``(T, B)`` bool; true where an episode starts
        :param age: number of steps of the episode before each step, ``(T, B)``; None if the core does not count steps
        :return: output ``(T, B, W)``, the state after the last step ``(B, M)``, and the tensors to look at of the last step,
            each ``(B, ...)``
        """


class BlockCore(Core):
    r"""
    Residual blocks, each with a mixer and an MLP (pre-norm, as in GPT-2):

    .. math::

        x \leftarrow x + Mixer(LN(x)), \quad x \leftarrow x + MLP(LN(x))

    The state is that of each mixer, and the number of steps of the episode, if the core counts them.

    :param input_size: ``F``
    :param width: ``W``
    :param mixers: one for each block
    :param mlp: whether blocks have an MLP
    :param positions: whether sines and cosines of the number of the step in its episode are added to the embedded input
    :param counts: whether the state holds the number of steps; positions need it
    """

    size_arguments: ClassVar[tuple[str, ...]] = ("width",)

    waves: Tensor

    def __init__(
        self,
        input_size: int,
        width: int,
        mixers: Sequence[Mixer],
        mlp: bool = True,
        positions: bool = False,
        counts: bool = False,
    ):
        self.sizes = [mixer.state_size for mixer in mixers]
        self.counts = counts or positions
        super().__init__(input_size, output_size=width, state_size=sum(self.sizes) + self.counts)
        self.embedding = nn.Linear(input_size, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in mixers)
        self.mixers = nn.ModuleList(mixers)
        hidden = MLP_FACTOR * width
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in (mixers if mlp else ())
        )
        self.norm = nn.LayerNorm(width)
        self.positions = positions
        halves = torch.arange(0, width, 2, device=COMPUTING)
        self.register_buffer("waves", LONGEST_WAVE ** (-halves / width), persistent=False)

    def initial_state(self, batch_size: int) -> Tensor:
        like = self.embedding.weight
        parts = [mixer.initial_state(like) for mixer in self.mixers]  # type: ignore[operator]
        if self.counts:
            parts.append(like.new_zeros(1))
        return torch.cat(parts).expand(batch_size, -1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self(x.unsqueeze(0), state)
        return outputs[0], state

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if starts is None:
            starts = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        states = torch.split(state, [*self.sizes, *([1] if self.counts else [])], dim=1)
        x, age = self.embedding(inputs), None
        if self.counts:
            age = steps_since_start(starts, states[-1][:, 0])
        if self.positions and age is not None:
            angles = age.unsqueeze(-1) * self.waves
            x = x + torch.cat([angles.sin(), angles.cos()], dim=-1)[..., : self.output_size]
        last_states, shown = [], []
        for index, (norm, mixer) in enumerate(zip(self.norms, self.mixers, strict=True)):
            y, last, looks = mixer(norm(x), states[index], starts, age)
            x = x + y
            if self.mlps:
                x = x + self.mlps[index](x)
            last_states.append(last)
            shown.append(looks)
        if self._looks is not None:
            for name in shown[0]:
                self.show(name, torch.stack([looks[name] for looks in shown], dim=1))  # (B, L, ...)
        if age is not None:
            last_states.append(age[-1].unsqueeze(1) + 1)
        return self.norm(x), torch.cat(last_states, dim=1)

    def layers(self, state: Tensor) -> Tensor:
        """
        The states of the mixers, which are of one size: ``(..., S)`` -> ``(..., L, M)``.

        :param state: ``(..., S)``
        """
        size = self.sizes[0]
        return state[..., : size * len(self.sizes)].reshape(*state.shape[:-1], len(self.sizes), size)


class RMSNorm(nn.Module):
    """
    Divide by the root of the mean square: torch's ``RMSNorm``, but for an operation named "mean", as which an exported policy
    with continuous actions has an output.

    :param size: of the last dimension
    """

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., V)`` -> ``(..., V)``."""
        square = x.square().sum(-1, keepdim=True) / x.shape[-1]
        return x * torch.rsqrt(square + NORM_EPSILON) * self.weight


def split_last(x: Tensor, parts: int) -> Tensor:
    """
    Split the last dimension in parts of the same size: ``(..., H V)`` -> ``(..., H, V)``.

    :param x: ``(..., H V)``
    :param parts: ``H``
    """
    return x.reshape(*x.shape[:-1], parts, x.shape[-1] // parts)


def layer_names(num_layers: int, parts: Sequence[str]) -> list[str]:
    """
    Names of the parts of each layer, for pictures.

    :param num_layers: ``L``
    :param parts: names of the parts of a layer
    """
    return [f"layer {layer} {part}" if num_layers > 1 else part for layer in range(1, num_layers + 1) for part in parts]
