"""No memory at all: the control for every claim about memory."""

from torch import Tensor, nn

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import require_whole


@register_core("memoryless")
class Memoryless(Core):
    """
    A linear layer in place of a memory: ``output = W x + b``. Its return shows what a task gives to an agent without memory.

    :param input_size: ``F``, features read per step
    :param width: ``O``, features written per step
    :raises UsageError: if a value is not a whole number of at least 1
    """

    size_arguments = ("width",)

    def __init__(self, input_size: int, width: int = 64):
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        super().__init__(input_size, output_size=width, state_size=0)
        self.linear = nn.Linear(input_size, width)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.linear.weight.new_zeros(batch_size, 0)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), state

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.linear(inputs), state
