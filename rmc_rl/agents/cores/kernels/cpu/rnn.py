"""
What the fused LSTM and GRU in C++ are called with, layer by layer: ``src/rnn.cpp`` and the headers beside it.

Shapes: those of ``rnn.py`` of the cores.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from rmc_rl.agents.cores.kernels.cpu.library import Kernel, about, takes, why_not
from rmc_rl.agents.cores.kernels.cpu.library import unroll as run

if TYPE_CHECKING:
    from rmc_rl.agents.cores.rnn import TorchRNN

__all__ = ["about", "unroll", "why_not"]


def unroll(core: "TorchRNN", inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """
    All steps of an LSTM or a GRU.

    :param core: the core
    :param inputs: ``(T, B, F)``
    :param state: ``(B, S)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: outputs ``(T, B, W)`` and the state after the last step ``(B, S)``; None where the kernel does not take these
        tensors: eager torch computes with them, or says what is wrong with them
    """
    if inputs.ndim != 3 or not takes((inputs,), state, starts, core.state_size, list(core.rnn.parameters())):
        return None
    width = core.rnn.hidden_size
    fresh = None if starts is None else core.initial_state(len(state))
    kernel = Kernel("lstm" if core.state_parts == 2 else "gru", (width,), (), work=core.state_parts * 2 * width**2)
    last = []
    for layer in range(core.rnn.num_layers):
        # (B, S) -> (B, parts, L, W) -> (B, parts W) of the layer
        before, anew = (
            None if x is None else x.reshape(len(x), core.state_parts, -1, width)[:, :, layer].flatten(1)
            for x in (state, fresh)
        )
        of_input, of_state = (
            [getattr(core.rnn, f"{name}_{of}_l{layer}") for name in ("weight", "bias")] for of in ("ih", "hh")
        )
        assert before is not None
        # what the input says to the gates waits for no step
        states = run(kernel, (functional.linear(inputs, *of_input),), before, anew, starts, of_state)
        inputs = states[..., :width]
        last.append(states[-1].view(len(state), core.state_parts, width))
    return inputs, torch.stack(last, dim=2).flatten(1)  # (B, parts, L, W) -> (B, S)
