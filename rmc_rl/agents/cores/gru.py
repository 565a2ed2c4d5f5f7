"""
GRU: a gated memory with one state.

Paper: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", 2014,
https://arxiv.org/abs/1406.1078. Code: ``torch.nn.GRU``, which applies the reset gate after the hidden product.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width.
"""

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import register_core
from rmc_rl.agents.cores.lstm import TorchRNN
from rmc_rl.errors import require_whole


@register_core("gru")
class GRU(TorchRNN):
    """
    Gated recurrent unit. The state is ``h`` of each layer, the output the last layer's.

    :meth:`inspect` shows ``reset_gate`` and ``update_gate`` (the share of the old state that stays), each ``(T, B, L, W)``.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``
    :param initial_state: "zeros" or "learned"
    :raises UsageError: for a value outside these rules
    """

    size_arguments = ("width",)

    def __init__(self, input_size: int, width: int = 64, num_layers: int = 1, initial_state: str = "zeros"):
        require_whole("width", width)
        require_whole("num_layers", num_layers)
        super().__init__(nn.GRU(input_size, width, num_layers), state_parts=1, initial_state=initial_state)

    def _show_gates(self, x: Tensor, before: Tensor, after: Tensor) -> None:
        gates = []
        for layer in range(self.rnn.num_layers):
            gates.append(self._gate_inputs(layer, x, before[0, layer]))
            x = after[0, layer]
        # the third part is the candidate's, which the reset gate enters
        r, z, _ = torch.sigmoid(torch.stack(gates, dim=1)).chunk(3, dim=-1)
        self.show("reset_gate", r)
        self.show("update_gate", z)
