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


@register_core("gru")
class GRU(TorchRNN):
    """
    Gated recurrent unit. The state is ``h`` of each layer, the output the last layer's.

    :meth:`inspect` shows ``reset_gate`` and ``update_gate`` (the share of the old state that stays), each ``(T, B, L, W)``.
    The arguments are those of :class:`~rmc_rl.agents.cores.lstm.TorchRNN`.
    """

    network = nn.GRU
    state_parts = 1
    gate_names = ("reset_gate", "update_gate", None)  # the candidate is no gate: the reset gate enters it
    torch_is_fused = False

    def _cell(self, x: Tensor, parts: list[Tensor], weights: list[Tensor]) -> Tensor:
        return torch.gru_cell(x, parts[0], *weights).unsqueeze(0)
