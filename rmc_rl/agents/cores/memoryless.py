"""No memory at all: the control that every claim about memory needs."""

from torch import Tensor, nn

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import require_whole


@register_core("memoryless")
class Memoryless(Core):
    """
    A linear layer in the place of a memory: ``output = W x + b``. What an agent with it reaches, a task gives without memory.

    :param input_size: ``F``, features read per step
    :param width: ``O``, features written per step
    :raises UsageError: for a width that is not a whole number of at least 1
    """

    size_arguments = ("width",)

    def __init__(self, input_size: int, width: int = 64):
        require_whole("width", width)
        super().__init__(input_size, output_size=width, state_size=0)
        self.linear = nn.Linear(input_size, width)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.linear.weight.new_zeros(batch_size, 0)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), state

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.linear(inputs), state
