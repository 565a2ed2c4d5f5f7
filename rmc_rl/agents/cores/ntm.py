"""
Neural Turing Machine: a controller that reads and writes a memory by content and by location.

Paper: Graves et al., "Neural Turing Machines", 2014, https://arxiv.org/abs/1410.5401 (section 3).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``N`` memory slots of size ``M``, ``R`` read heads,
``Z`` all heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import require_whole

SHIFTS = (-1, 0, 1)  # slots that the focus may move by at each step (section 3.3.2)
SMALLEST = 1e-6  # added to weights before their power, which has no gradient at 0


@register_core("ntm")
class NTM(Core):
    r"""
    Neural Turing Machine (Graves et al. 2014) with a feed-forward controller.

    The controller :math:`q_t = \tanh(W [x_t, r_{t-1}] + b)` sets, for each head, a key :math:`k`, its strength
    :math:`\beta \ge 0`, a gate :math:`g`, a distribution :math:`s` over shifts and a power :math:`\gamma \ge 1`, and for each
    write head what to erase, :math:`e`, and what to add, :math:`a`:

    .. math::

        w^c &= softmax(\beta \cos(k, M_{t-1})), \quad w^g = g w^c + (1 - g) w_{t-1} \\
        w_t &\propto (\textstyle\sum_j s_j w^g_{i - j})^\gamma \\
        M_t &= M_{t-1} \odot (1 - w_t e^T) + w_t a^T \text{ for each write head}, \quad r_t = w_t^T M_t

    The output is :math:`[q_t, r_t]`. The state is the memory, the weights of all heads and what was read. An episode starts
    with a learned memory, every head at the first slot, and nothing read.

    :meth:`inspect` shows ``read_attention`` ``(T, B, R, N)`` and ``write_attention`` ``(T, B, Z - R, N)``, the heads' weights,
    and ``interpolation_gate`` ``(T, B, Z)``, :math:`g`.

    Differences from the paper:

    * What it leaves open: keys and what is added pass a tanh; what was read is part of this step's output and of the
      controller's input at the next; an episode starts as said above.
    * 1e-6 is added to weights before their power.

    :param input_size: ``F``, features read per step
    :param width: units of the controller
    :param num_slots: ``N``
    :param slot_size: ``M``
    :param read_heads: ``R``
    :param write_heads: ``Z - R``
    :raises UsageError: for a value that is not a whole number of at least 1
    """

    size_arguments = ("width",)

    def __init__(
        self,
        input_size: int,
        width: int = 64,
        num_slots: int = 16,
        slot_size: int = 16,
        read_heads: int = 1,
        write_heads: int = 1,
    ):
        sizes = dict(width=width, num_slots=num_slots, slot_size=slot_size, read_heads=read_heads, write_heads=write_heads)
        for name, value in sizes.items():
            require_whole(name, value)
        heads, read = read_heads + write_heads, read_heads * slot_size
        self.sizes = [num_slots * slot_size, heads * num_slots, read]
        super().__init__(input_size, output_size=width + read, state_size=sum(self.sizes))
        self.num_slots, self.slot_size, self.read_heads, self.heads = num_slots, slot_size, read_heads, heads
        self.controller = nn.Linear(input_size + read, width)
        # key, strength, gate, shifts and power of each head
        self.addressing = nn.Linear(width, heads * (slot_size + 3 + len(SHIFTS)))
        self.writing = nn.Linear(width, write_heads * 2 * slot_size)
        bound = slot_size**-0.5
        self.memory = nn.Parameter(torch.empty(num_slots, slot_size).uniform_(-bound, bound))

    def initial_state(self, batch_size: int) -> Tensor:
        first = torch.eye(1, self.num_slots, dtype=self.memory.dtype, device=self.memory.device).expand(self.heads, -1)
        state = torch.cat([self.memory.flatten(), first.flatten(), self.memory.new_zeros(self.sizes[2])])
        return state.expand(batch_size, -1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        memory, weights, read = torch.split(state, self.sizes, dim=1)
        memory = memory.view(-1, self.num_slots, self.slot_size)  # (B, N M) -> (B, N, M)
        hidden = torch.tanh(self.controller(torch.cat([x, read], dim=1)))
        weights = self._address(hidden, memory, weights.view(-1, self.heads, self.num_slots))
        reading, writing = weights[:, : self.read_heads], weights[:, self.read_heads :]
        # (B, (Z - R) 2M) -> (B, Z - R, 1, M) each
        erase, add = self.writing(hidden).view(len(x), -1, 1, 2 * self.slot_size).chunk(2, dim=-1)
        spread = writing.unsqueeze(-1)  # (B, Z - R, N, 1)
        memory = memory * (1 - spread * torch.sigmoid(erase)).prod(1) + (spread * torch.tanh(add)).sum(1)
        read = (reading @ memory).flatten(1)  # (B, R, M) -> (B, R M)
        self.show("read_attention", reading)
        self.show("write_attention", writing)
        return torch.cat([hidden, read], dim=1), torch.cat([memory.flatten(1), weights.flatten(1), read], dim=1)

    def _address(self, hidden: Tensor, memory: Tensor, before: Tensor) -> Tensor:
        """The heads' weights ``(B, Z, N)`` from the controller, the memory ``(B, N, M)`` and the weights before."""
        addressing = self.addressing(hidden).view(len(hidden), self.heads, -1)
        key, strength, gate, shift, power = addressing.split([self.slot_size, 1, 1, len(SHIFTS), 1], dim=-1)
        # (B, Z, M), (B, N, M) -> (B, Z, N)
        likeness = functional.normalize(torch.tanh(key), dim=-1) @ functional.normalize(memory, dim=-1).transpose(1, 2)
        content = torch.softmax(functional.softplus(strength) * likeness, dim=-1)
        gate = torch.sigmoid(gate)
        self.show("interpolation_gate", gate.squeeze(-1))
        weights = gate * content + (1 - gate) * before
        shift = torch.softmax(shift, dim=-1)
        moved = torch.stack([weights.roll(by, dims=-1) for by in SHIFTS], dim=-1)  # (B, Z, N, shifts)
        weights = (moved @ shift.unsqueeze(-1)).squeeze(-1)
        # w^gamma over its sum, by logarithms: it neither underflows nor divides 0 by 0
        return torch.softmax((1 + functional.softplus(power)) * torch.log(weights + SMALLEST), dim=-1)
