"""
LSTM: the memory that recurrent PPO usually has.

Paper: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, https://doi.org/10.1162/neco.1997.9.8.1735, with the forget
gates of Gers et al., "Learning to Forget", 2000. Code: ``torch.nn.LSTM``.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width.
"""

from abc import abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Core, register_core
from rmc_rl.agents.cores.layers import InitialState
from rmc_rl.errors import require_whole


class TorchRNN(Core):
    """
    A recurrent network of torch behind the contract of cores.

    Torch's kernels (cuDNN, oneDNN) run whole sequences but know no episodes. So a sequence is cut in time wherever an
    episode starts in one of its rows: one call where none does, and exact where some do.

    :param rnn: the network, batch second
    :param state_parts: tensors ``(L, B, W)`` that it carries
    :param initial_state: "learned" or "zeros"
    """

    def __init__(self, rnn: nn.LSTM | nn.GRU, state_parts: int, initial_state: str):
        super().__init__(rnn.input_size, rnn.hidden_size, state_parts * rnn.num_layers * rnn.hidden_size)
        self.rnn, self.state_parts = rnn, state_parts
        self.initial = InitialState(self.state_size, initial_state)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.initial(batch_size)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, after = self._run(x.unsqueeze(0), state)
        if self._looks is not None:
            self._show_gates(x, self._parts(state), self._parts(after))
        return outputs[0], after

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if starts is None or not (times := starts.any(1).nonzero().flatten().tolist()):
            return self._run(inputs, state)
        fresh = self.initial_state(len(state))
        outputs = []
        for begin, end in pairwise(sorted({0, *times, len(inputs)})):
            state = torch.where(starts[begin].unsqueeze(-1), fresh, state)
            output, state = self._run(inputs[begin:end], state)
            outputs.append(output)
        return torch.cat(outputs), state

    def _run(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A sequence within episodes: ``(T, B, F)`` and ``(B, S)`` -> ``(T, B, W)`` and ``(B, S)``."""
        parts = [part.contiguous() for part in self._parts(state)]
        outputs, after = self.rnn(inputs, tuple(parts) if len(parts) > 1 else parts[0])
        after = torch.stack(after) if isinstance(after, tuple) else after.unsqueeze(0)
        # (parts, L, B, W) -> (B, parts, L, W) -> (B, S)
        return outputs, after.permute(2, 0, 1, 3).flatten(1)

    def _parts(self, state: Tensor) -> Tensor:
        """``(B, S)`` -> ``(parts, L, B, W)``."""
        return state.view(len(state), self.state_parts, self.rnn.num_layers, -1).permute(1, 2, 0, 3)

    def _gate_inputs(self, layer: int, x: Tensor, h: Tensor) -> Tensor:
        """What the gates of a layer are sigmoids of, from its input and its state: ``(B, gates W)``."""
        weights = [getattr(self.rnn, f"{kind}_{source}_l{layer}") for source in ("ih", "hh") for kind in ("weight", "bias")]
        return functional.linear(x, *weights[:2]) + functional.linear(h, *weights[2:])

    @abstractmethod
    def _show_gates(self, x: Tensor, before: Tensor, after: Tensor) -> None:
        """Show the gates of a step, which torch keeps to itself, given the parts of the state before and after it."""


@register_core("lstm")
class LSTM(TorchRNN):
    """
    Long short-term memory. The state is ``h`` and ``c`` of each layer, the output the last layer's ``h``.

    :meth:`inspect` shows ``forget_gate``, ``input_gate`` and ``output_gate``, each ``(T, B, L, W)``.

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
        super().__init__(nn.LSTM(input_size, width, num_layers), state_parts=2, initial_state=initial_state)

    def _show_gates(self, x: Tensor, before: Tensor, after: Tensor) -> None:
        gates = []
        for layer in range(self.rnn.num_layers):
            gates.append(self._gate_inputs(layer, x, before[0, layer]))
            x = after[0, layer]
        i, f, _, o = torch.sigmoid(torch.stack(gates, dim=1)).chunk(4, dim=-1)
        for name, gate in dict(forget_gate=f, input_gate=i, output_gate=o).items():
            self.show(name, gate)
