"""
Memory of a fixed length: the last k inputs, without recurrence.

Paper: Mnih et al., "Human-level control through deep reinforcement learning", 2015, https://doi.org/10.1038/nature14236, which
stacks the last four frames.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``k`` frames.
"""

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Axis, Core
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.scan import steps_since_start
from rmc_rl.errors import require_whole


@register_core("framestack")
class FrameStack(Core):
    """
    A linear layer over the last ``k`` inputs. Inputs before the start of an episode are zeros.

    It remembers the last ``k - 1`` inputs exactly, and nothing older. The state is these ``k - 1`` inputs, the oldest first.
    An input is the output of the features extractor, not the image itself. With ``k = 1`` the core equals
    :class:`~rmc_rl.agents.cores.memoryless.Memoryless`.

    :param input_size: ``F``, features read per step
    :param num_frames: ``k``, number of inputs, the present one included
    :param width: ``O``, features written per step
    :raises UsageError: if a value is not a whole number of at least 1
    """

    size_arguments = ("width",)

    def __init__(self, input_size: int, num_frames: int = 4, width: int = 64):
        input_size = require_whole("input_size", input_size)
        num_frames = require_whole("num_frames", num_frames)
        width = require_whole("width", width)
        super().__init__(input_size, output_size=width, state_size=(num_frames - 1) * input_size)
        self.num_frames = num_frames
        self.linear = nn.Linear(num_frames * input_size, width)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.linear.weight.new_zeros(batch_size, self.state_size)

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        if self.state_size == 0:
            return {}
        return {"memory": state.reshape(*state.shape[:-1], self.num_frames - 1, self.input_size)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        return {"memory": ([f"{ago} ago" for ago in range(self.num_frames - 2, -1, -1)], "unit")}

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        stack = torch.cat([state, x], dim=1)  # (B, k F)
        return self.linear(stack), stack[:, self.input_size :]

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _, batch, features = inputs.shape
        # (B, (k - 1) F) -> (k - 1, B, F)
        before = state.view(batch, self.num_frames - 1, features).transpose(0, 1)
        # all windows of k frames, the oldest first: (T + k - 1, B, F) -> (T, B, F, k) -> (T, B, k, F)
        stacks = torch.cat([before, inputs]).unfold(0, self.num_frames, 1).transpose(-1, -2)
        if starts is not None:
            age = steps_since_start(starts, torch.full((batch,), self.num_frames, device=starts.device))  # (T, B)
            steps_ago = torch.arange(self.num_frames - 1, -1, -1, device=starts.device)  # (k,)
            stacks = torch.where((steps_ago <= age.unsqueeze(-1)).unsqueeze(-1), stacks, 0)
        stacks = stacks.flatten(2)  # (T, B, k, F) -> (T, B, k F)
        return self.linear(stacks), stacks[-1, :, features:]
