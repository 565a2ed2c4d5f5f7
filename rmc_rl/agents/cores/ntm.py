"""
Neural Turing Machine: a controller that reads and writes a memory by content and by location.

Paper: Graves et al., "Neural Turing Machines", 2014, https://arxiv.org/abs/1410.5401 (section 3).

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``N`` memory slots of size ``M``, ``R`` read heads,
``Z`` all heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Axis, Core
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.errors import require_whole

SHIFTS = (-1, 0, 1)  # slots that a head's weights may shift by at each step (section 3.3.2)
EPSILON = 1e-6  # added to weights before their logarithm, which is not finite at 0


@register_core("ntm")
class NTM(Core):
    r"""
    Neural Turing Machine (Graves et al. 2014) with a feed-forward controller.

    From the controller :math:`q_t = \tanh(W [x_t, r_{t-1}] + b)`, linear layers compute for each head a key :math:`k`, its
    strength :math:`\beta \ge 0`, a gate :math:`g`, a distribution :math:`s` over shifts and a power :math:`\gamma \ge 1`, and
    for each write head an erase vector :math:`e` and an add vector :math:`a`:

    .. math::

        w^c &= softmax(\beta \cos(k, M_{t-1})), \quad w^g = g w^c + (1 - g) w_{t-1} \\
        w_t &\propto (\textstyle\sum_j s_j w^g_{i - j})^\gamma \\
        M_t &= M_{t-1} \odot (1 - w_t e^T) + w_t a^T \text{ for each write head}, \quad r_t = w_t^T M_t

    The output is :math:`[q_t, r_t]`. The state is the memory, the weights of all heads, and the vectors read :math:`r_t`. The
    initial memory is learned. Initially, all heads have their weight on the first slot, and the vectors read are zeros.

    :meth:`inspect` shows the weights of the heads, ``read_attention`` ``(T, B, R, N)`` and ``write_attention``
    ``(T, B, Z - R, N)``, and the gates :math:`g`, ``interpolation_gate`` ``(T, B, Z)``.

    Differences from the paper:

    * The paper leaves some choices open. Here, keys and add vectors pass a tanh, the vectors read are part of the output, and
      the initial state is the one described above.
    * 1e-6 is added to weights before they are raised to the power :math:`\gamma`.

    :param input_size: ``F``, features read per step
    :param width: number of units of the controller
    :param num_slots: ``N``, number of memory slots
    :param slot_size: ``M``, size of a slot
    :param read_heads: ``R``, number of read heads
    :param write_heads: ``Z - R``, number of write heads
    :raises UsageError: if a value is not a whole number of at least 1
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
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_slots = require_whole("num_slots", num_slots)
        slot_size = require_whole("slot_size", slot_size)
        read_heads = require_whole("read_heads", read_heads)
        write_heads = require_whole("write_heads", write_heads)
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
        weights = torch.eye(1, self.num_slots, dtype=self.memory.dtype, device=self.memory.device).expand(self.heads, -1)
        state = torch.cat([self.memory.flatten(), weights.flatten(), self.memory.new_zeros(self.sizes[2])])
        return state.expand(batch_size, -1)

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        return {"memory": state[..., : self.sizes[0]].reshape(*state.shape[:-1], self.num_slots, self.slot_size)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        writes = [f"write head {index + 1}" for index in range(self.heads - self.read_heads)]
        reads = [f"read head {index + 1}" for index in range(self.read_heads)]
        return {
            "memory": ("slot", "unit"),
            "read_attention": (reads, "slot"),
            "write_attention": (writes, "slot"),
            "interpolation_gate": (reads + writes,),
        }

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        memory, weights, read = torch.split(state, self.sizes, dim=1)
        memory = memory.view(-1, self.num_slots, self.slot_size)  # (B, N M) -> (B, N, M)
        hidden = torch.tanh(self.controller(torch.cat([x, read], dim=1)))
        weights = self._address(hidden, memory, weights.view(-1, self.heads, self.num_slots))
        read_weights, write_weights = weights[:, : self.read_heads], weights[:, self.read_heads :]
        # (B, (Z - R) 2M) -> (B, Z - R, 1, M) each
        erase, add = self.writing(hidden).view(-1, self.heads - self.read_heads, 1, 2 * self.slot_size).chunk(2, dim=-1)
        per_slot = write_weights.unsqueeze(-1)  # (B, Z - R, N, 1)
        memory = memory * (1 - per_slot * torch.sigmoid(erase)).prod(1) + (per_slot * torch.tanh(add)).sum(1)
        read = (read_weights @ memory).flatten(1)  # (B, R, M) -> (B, R M)
        self.show("read_attention", read_weights)
        self.show("write_attention", write_weights)
        return torch.cat([hidden, read], dim=1), torch.cat([memory.flatten(1), weights.flatten(1), read], dim=1)

    def _address(self, hidden: Tensor, memory: Tensor, previous: Tensor) -> Tensor:
        """The heads' weights ``(B, Z, N)`` from the controller, the memory ``(B, N, M)`` and the previous weights."""
        # (B, Z (M + 6)) -> (B, Z, M + 6)
        addressing = self.addressing(hidden).view(-1, self.heads, self.addressing.out_features // self.heads)
        key, strength, gate, shift, power = addressing.split([self.slot_size, 1, 1, len(SHIFTS), 1], dim=-1)
        # (B, Z, M), (B, N, M) -> (B, Z, N)
        similarity = functional.normalize(torch.tanh(key), dim=-1) @ functional.normalize(memory, dim=-1).transpose(1, 2)
        content = torch.softmax(functional.softplus(strength) * similarity, dim=-1)
        gate = torch.sigmoid(gate)
        self.show("interpolation_gate", gate.squeeze(-1))
        weights = gate * content + (1 - gate) * previous
        shift = torch.softmax(shift, dim=-1)
        shifted = torch.stack([weights.roll(by, dims=-1) for by in SHIFTS], dim=-1)  # (B, Z, N, shifts)
        weights = (shifted @ shift.unsqueeze(-1)).squeeze(-1)
        # w^gamma divided by its sum, computed with logarithms so that it neither underflows nor divides 0 by 0
        return torch.softmax((1 + functional.softplus(power)) * torch.log(weights + EPSILON), dim=-1)
