"""
The arguments of the C++ kernels of LSTM and GRU, which compute one layer per call: ``src/rnn.cpp`` and its headers.

Shapes: those of ``rnn.py`` of the cores.
"""

from ctypes import Structure, c_int64
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from rmc_rl.agents.cores.kernels.cpu import calling
from rmc_rl.agents.cores.kernels.cpu.library import about, why_not

if TYPE_CHECKING:
    from rmc_rl.agents.cores.rnn import TorchRNN

__all__ = ["about", "unroll", "why_not"]


class Sizes(Structure):
    """``rnn::Sizes`` in ``src/rnn.cpp``."""

    _fields_ = [("width", c_int64)]


def unroll(core: "TorchRNN", inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """
    All steps of an LSTM or a GRU.

    :param core: the core
    :param inputs: ``(T, B, F)``
    :param state: ``(B, S)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: outputs ``(T, B, W)`` and the state after the last step ``(B, S)``; None if the kernel does not support these
        tensors
    """
    if inputs.ndim != 3 or not calling.takes(
        inputs, state, starts, core.state_size, calling.Parameters(dict(core.rnn.named_parameters()))
    ):
        return None
    width, parts = core.rnn.hidden_size, core.state_parts
    initial_state = None if starts is None else core.initial_state(len(state))
    kernel = calling.Kernel("lstm" if parts == 2 else "gru", Sizes(width=width), work=parts * 2 * width**2)
    last = []
    for layer in range(core.rnn.num_layers):
        # (B, S) -> (B, parts, L, W) -> (B, parts W) of the layer
        layer_state, layer_initial = (
            None if x is None else x.reshape(len(x), parts, -1, width)[:, :, layer].flatten(1) for x in (state, initial_state)
        )
        assert layer_state is not None
        weights = {name: getattr(core.rnn, f"{name}_l{layer}") for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")}
        # the input's part of the gates does not depend on the state: one product for all steps
        from_input = functional.linear(inputs, weights.pop("weight_ih"), weights.pop("bias_ih"))
        states = calling.unroll(
            kernel, dict(from_input=from_input), layer_state, layer_initial, starts, calling.Parameters(weights)
        )
        inputs = states[..., :width]
        last.append(states[-1].view(len(state), parts, width))
    return inputs, torch.stack(last, dim=2).flatten(1)  # (B, parts, L, W) -> (B, S)
