"""
The last k inputs: memory of a fixed length, without recurrence.

Paper: Mnih et al., "Human-level control through deep reinforcement learning", 2015, https://doi.org/10.1038/nature14236, which
stacks the last four frames.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``k`` frames.
"""

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import steps_since_start
from rmc_rl.errors import require_whole


@register_core("framestack")
class FrameStack(Core):
    """
    A linear layer over the last ``k`` inputs, zeros before an episode's first. With ``k = 1`` it is :class:`Memoryless`.

    What was seen up to ``k - 1`` steps ago is remembered exactly, all else not at all. The state is the last ``k - 1``
    inputs, the oldest first; it stacks what the features extractor made of the frames.

    :param input_size: ``F``, features read per step
    :param num_frames: ``k``
    :param width: ``O``, features written per step
    :raises UsageError: for a value that is not a whole number of at least 1
    """

    size_arguments = ("width",)

    def __init__(self, input_size: int, num_frames: int = 4, width: int = 64):
        require_whole("num_frames", num_frames)
        require_whole("width", width)
        super().__init__(input_size, output_size=width, state_size=(num_frames - 1) * input_size)
        self.num_frames = num_frames
        self.linear = nn.Linear(num_frames * input_size, width)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.linear.weight.new_zeros(batch_size, self.state_size)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        stack = torch.cat([state, x], dim=1)  # (B, k F)
        return self.linear(stack), stack[:, self.input_size :]

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        time, batch, features = inputs.shape
        # (B, (k - 1) F) -> (k - 1, B, F)
        before = state.view(batch, self.num_frames - 1, features).transpose(0, 1)
        # all windows of k frames, the oldest first: (T + k - 1, B, F) -> (T, B, F, k) -> (T, B, k, F)
        stacks = torch.cat([before, inputs]).unfold(0, self.num_frames, 1).transpose(-1, -2)
        if starts is not None:
            known = steps_since_start(starts, torch.full((batch,), self.num_frames, device=starts.device))
            ago = torch.arange(self.num_frames - 1, -1, -1, device=starts.device)
            stacks = torch.where((ago <= known.unsqueeze(-1)).unsqueeze(-1), stacks, 0)
        stacks = stacks.reshape(time, batch, -1)
        return self.linear(stacks), stacks[-1, :, features:]
