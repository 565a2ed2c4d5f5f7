"""
LSTM and GRU: the usual memories of recurrent PPO.

Code it equals: ``torch.nn.LSTM`` and ``torch.nn.GRU``. The latter applies the reset gate after the recurrent matrix product.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width.
"""

from abc import abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Axis, Core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.layers import FIRST_GATES, InitialState, uniform_gate_bias
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.compat import forward_mode_is_active
from rmc_rl.errors import require_choice, require_number, require_whole

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer, in the order of torch.lstm_cell


class TorchRNN(Core):
    """
    A recurrent network of torch as a core.

    Torch's kernels (cuDNN, oneDNN) run whole sequences, but do not reset states where episodes start. So eager torch splits a
    sequence in time wherever an episode starts in one of its rows, and calls torch once for each part. Our fused kernel resets
    states itself. With ``kernel="auto"``, torch's fused kernel is used for a sequence in which no episode starts. A single
    step, as in acting, uses torch's cells, because torch's kernels for sequences first rearrange the weights.

    A subclass sets ``network``; ``state_parts``, the number of state tensors ``(L, B, W)``; ``gate_names``, the gates in the
    order of the weights, with None for what is not a gate; and ``torch_is_fused``, whether torch has a fused kernel for the
    network on the CPU.
    """

    kernel_family = "rnn"
    network: ClassVar[type[nn.LSTM] | type[nn.GRU]]
    state_parts: ClassVar[int]
    gate_names: ClassVar[tuple[str | None, ...]]
    torch_is_fused: ClassVar[bool]
    size_arguments = ("width",)

    def __init__(
        self,
        input_size: int,
        width: int = 64,
        num_layers: int = 1,
        initial_state: str = "zeros",
        dropout: float = 0.0,
        first_gates: str = "uniform",
        kernel: str = "auto",
    ):
        """
        :param input_size: ``F``, features read per step
        :param width: ``W``, units of each layer
        :param num_layers: ``L``, number of layers
        :param initial_state: "zeros" or "learned"
        :param dropout: fraction of the features between two layers set to 0 in training mode
        :param first_gates: initial biases of the gate that keeps the state (LSTM: forget gate, GRU: update gate): "uniform"
            (the units keep their content for different times, from one step to many, see
            :func:`~rmc_rl.agents.cores.layers.uniform_gate_bias`) or "standard" (as in torch, near 0: half of the state is
            lost at each step)
        :param kernel: "auto", "eager" or "native": how the core is computed, see :mod:`rmc_rl.agents.cores.kernels.dispatch`
        :raises UsageError: if a value breaks a rule
        """
        input_size = require_whole("input_size", input_size)
        width = require_whole("width", width)
        num_layers = require_whole("num_layers", num_layers)
        dropout = require_number("dropout", dropout, at_least=0, below=1)
        dispatch.check_kernel(kernel)
        require_choice("first_gates", first_gates, FIRST_GATES)
        super().__init__(input_size, output_size=width, state_size=self.state_parts * num_layers * width)
        self.rnn = self.network(input_size, width, num_layers, dropout=dropout if num_layers > 1 else 0.0)
        if first_gates == "uniform":
            self._set_uniform_gates()
        self.dropout = dropout
        self.initial = InitialState(self.state_size, initial_state)
        self.kernel = kernel

    @torch.no_grad()
    def _set_uniform_gates(self) -> None:
        """Set the biases of the gate that keeps the state, which is the second one in both networks."""
        width = self.rnn.hidden_size
        for layer in range(self.rnn.num_layers):
            getattr(self.rnn, f"bias_ih_l{layer}")[width : 2 * width] = uniform_gate_bias(width)
            getattr(self.rnn, f"bias_hh_l{layer}")[width : 2 * width] = 0

    def initial_state(self, batch_size: int) -> Tensor:
        return self.initial(batch_size)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts, output, new_parts = self._parts(state), x, []
        for layer in range(self.rnn.num_layers):
            if layer > 0:
                output = functional.dropout(output, self.dropout, self.training)
            weights = [getattr(self.rnn, f"{name}_l{layer}") for name in WEIGHTS]
            new = self._cell(output, [part[layer] for part in parts], weights)
            new_parts.append(new)
            output = new[0]
        # L tensors (parts, B, W) -> (parts, L, B, W) -> (B, parts, L, W) -> (B, S)
        state = torch.stack(new_parts, dim=1).permute(2, 0, 1, 3).flatten(1)
        if self._looks is not None:
            self._show_gates(x, parts[0], torch.stack([new[0] for new in new_parts]))
        return output, state

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        # (..., S) -> (..., parts L, W): h of each layer, then c of each layer
        return {"memory": state.reshape(*state.shape[:-1], self.state_parts * self.rnn.num_layers, self.output_size)}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        layers = range(1, self.rnn.num_layers + 1)
        names = [f"{part} {layer}" if len(layers) > 1 else part for part in "hc"[: self.state_parts] for layer in layers]
        per_unit: tuple[Axis, ...] = ("layer", "unit")
        return {"memory": (names, "unit"), **{name: per_unit for name in self.gate_names if name is not None}}

    @abstractmethod
    def _cell(self, x: Tensor, parts: list[Tensor], weights: list[Tensor]) -> Tensor:
        """One step of a layer: input ``(B, F)`` and its parts of the state ``(B, W)`` -> the new parts ``(parts, B, W)``."""

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if dispatch.keep((self, "modified"), self.is_modified) or forward_mode_is_active():
            return super().forward(inputs, state, starts)  # torch's networks call no method of ours, and know no forward mode
        # acting: splitting at starts would copy them from the device and wait for it
        if len(inputs) == 1 and dispatch.keep((self, "plain"), self.has_plain_modules):
            if starts is not None:
                state = torch.where(starts[0].unsqueeze(-1), self.initial_state(len(state)), state)
            output, state = self.step(inputs[0], state)
            return output.unsqueeze(0), state
        drops = self.training and self.dropout > 0
        kernel = None if drops else dispatch.find(self, inputs, state)
        if kernel is not None and self.torch_is_fused and self.kernel == "auto" and (starts is None or not starts.any()):
            kernel = None  # torch's own is as fast
        fused: tuple[Tensor, Tensor] | None = None if kernel is None else kernel.unroll(self, inputs, state, starts)
        if fused is not None:
            return fused
        if starts is None:
            return self._run(inputs, state)
        times = starts.any(1).nonzero().flatten().tolist()
        if not times:
            return self._run(inputs, state)
        initial_state = self.initial_state(len(state))
        outputs = []
        for begin, end in pairwise(sorted({0, *times, len(inputs)})):
            state = torch.where(starts[begin].unsqueeze(-1), initial_state, state)
            output, state = self._run(inputs[begin:end], state)
            outputs.append(output)
        return torch.cat(outputs), state

    def _run(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A sequence in which no episode starts: ``(T, B, F)`` and ``(B, S)`` -> ``(T, B, W)`` and ``(B, S)``."""
        parts = [part.contiguous() for part in self._parts(state)]
        outputs, last = self.rnn(inputs, tuple(parts) if len(parts) > 1 else parts[0])
        last = torch.stack(last) if isinstance(last, tuple) else last.unsqueeze(0)
        # (parts, L, B, W) -> (B, parts, L, W) -> (B, S)
        return outputs, last.permute(2, 0, 1, 3).flatten(1)

    def _parts(self, state: Tensor) -> Tensor:
        """``(B, S)`` -> ``(B, parts, L, W)`` -> ``(parts, L, B, W)``, ``h`` first."""
        return state.view(state.shape[0], self.state_parts, self.rnn.num_layers, self.output_size).permute(1, 2, 0, 3)

    def _show_gates(self, x: Tensor, h: Tensor, new_h: Tensor) -> None:
        """Show the gates of a step, which torch does not return: from the input, and ``h`` before and after, ``(L, B, W)``."""
        gates = []
        for layer in range(self.rnn.num_layers):
            (w_ih, b_ih), (w_hh, b_hh) = (
                [getattr(self.rnn, f"{kind}_{source}_l{layer}") for kind in ("weight", "bias")] for source in ("ih", "hh")
            )
            gates.append(functional.linear(x, w_ih, b_ih) + functional.linear(h[layer], w_hh, b_hh))
            x = new_h[layer]
        parts = torch.sigmoid(torch.stack(gates, dim=1)).chunk(len(self.gate_names), dim=-1)  # (B, L, W) each
        for name, gate in zip(self.gate_names, parts, strict=True):
            if name is not None:
                self.show(name, gate)


@register_core("lstm")
class LSTM(TorchRNN):
    """
    Long short-term memory. The state is ``h`` and ``c`` of each layer, the output is ``h`` of the last layer.

    Paper: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, https://doi.org/10.1162/neco.1997.9.8.1735, with the
    forget gates of Gers et al., "Learning to Forget", 2000.

    :meth:`inspect` shows ``input_gate``, ``forget_gate`` and ``output_gate``, each ``(T, B, L, W)``.
    """

    network = nn.LSTM
    state_parts = 2
    gate_names = ("input_gate", "forget_gate", None, "output_gate")
    torch_is_fused = True  # by oneDNN

    def _cell(self, x: Tensor, parts: list[Tensor], weights: list[Tensor]) -> Tensor:
        return torch.stack(torch.lstm_cell(x, parts, *weights))


@register_core("gru")
class GRU(TorchRNN):
    """
    Gated recurrent unit. The state is ``h`` of each layer, the output is ``h`` of the last layer.

    Paper: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", 2014,
    https://arxiv.org/abs/1406.1078.

    :meth:`inspect` shows ``reset_gate`` and ``update_gate`` (the weight of the previous state), each ``(T, B, L, W)``.
    """

    network = nn.GRU
    state_parts = 1
    gate_names = ("reset_gate", "update_gate", None)  # the third part of the weights computes the candidate
    torch_is_fused = False

    def _cell(self, x: Tensor, parts: list[Tensor], weights: list[Tensor]) -> Tensor:
        return torch.gru_cell(x, parts[0], *weights).unsqueeze(0)
