"""
LSTM and GRU: the memories that recurrent PPO usually has.

Code: ``torch.nn.LSTM`` and ``torch.nn.GRU``; the latter applies the reset gate after the hidden product.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``L`` layers, ``W`` width.
"""

from abc import abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.layers import InitialState
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.compat import forward_mode_is_active
from rmc_rl.errors import require_whole

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer, as torch's cells take them


class TorchRNN(Core):
    """
    A recurrent network of torch behind the contract of cores.

    Torch's kernels (cuDNN, oneDNN) run whole sequences but know no episodes. In eager torch a sequence is cut in time wherever
    an episode starts in one of its rows: one call where none does, and exact where some do. The fused kernel needs no cuts
    ("auto" leaves to torch what torch fuses as well). A single step, as in acting, goes through torch's cells, which begin at
    once where those kernels first rearrange the weights.

    A subclass names the ``network``, how many tensors ``(L, B, W)`` it carries, its gates in the order of its weights (None:
    what is not a gate), and whether torch has a fused kernel of it for the CPU.

    :param input_size: ``F``, features read per step
    :param width: ``W``
    :param num_layers: ``L``
    :param initial_state: "zeros" or "learned"
    :param kernel: "auto", "eager" or "native": how it is computed, see :mod:`rmc_rl.agents.cores.kernels`
    :raises UsageError: for a value outside these rules
    """

    kernel_family = "rnn"
    network: ClassVar[type[nn.LSTM] | type[nn.GRU]]
    state_parts: ClassVar[int]
    gate_names: ClassVar[tuple[str | None, ...]]
    torch_is_fused: ClassVar[bool]
    size_arguments = ("width",)

    def __init__(
        self, input_size: int, width: int = 64, num_layers: int = 1, initial_state: str = "zeros", kernel: str = "auto"
    ):
        dispatch.check_kernel(kernel)
        require_whole("width", width)
        require_whole("num_layers", num_layers)
        super().__init__(input_size, output_size=width, state_size=self.state_parts * num_layers * width)
        self.rnn = self.network(input_size, width, num_layers)
        self.initial = InitialState(self.state_size, initial_state)
        self.kernel = kernel

    def initial_state(self, batch_size: int) -> Tensor:
        return self.initial(batch_size)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, output, layers = self._parts(state), x, []
        for layer in range(self.rnn.num_layers):
            parts = [part[layer] for part in before]
            after = self._cell(output, parts, [getattr(self.rnn, f"{name}_l{layer}") for name in WEIGHTS])
            layers.append(after)
            output = after[0]
        # L times (parts, B, W) -> (B, parts, L, W) -> (B, S)
        state = torch.stack(layers, dim=1).permute(2, 0, 1, 3).flatten(1)
        if self._looks is not None:
            self._show_gates(x, before[0], torch.stack([after[0] for after in layers]))
        return output, state

    @abstractmethod
    def _cell(self, x: Tensor, parts: list[Tensor], weights: list[Tensor]) -> Tensor:
        """One layer's step: ``(B, F)`` and its parts of the state ``(B, W)`` -> the parts after it ``(parts, B, W)``."""

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.is_modified() or forward_mode_is_active():
            return super().forward(inputs, state, starts)  # torch's networks call no method of ours, and know no forward mode
        # acting: without a copy of `starts` from the device
        if len(inputs) == 1 and self.has_plain_modules():
            if starts is not None:
                state = torch.where(starts[0].unsqueeze(-1), self.initial_state(len(state)), state)
            output, state = self.step(inputs[0], state)
            return output.unsqueeze(0), state
        kernel = self.find_kernel(inputs, state)
        if kernel is not None and self.torch_is_fused and self.kernel == "auto" and (starts is None or not starts.any()):
            kernel = None
        fused: tuple[Tensor, Tensor] | None = None if kernel is None else kernel.unroll(self, inputs, state, starts)
        if fused is not None:
            return fused
        if starts is None:
            return self._run(inputs, state)
        times = starts.any(1).nonzero().flatten().tolist()
        if not times:
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
        """``(B, S)`` -> ``(parts, L, B, W)``, ``h`` first."""
        return state.view(len(state), self.state_parts, self.rnn.num_layers, -1).permute(1, 2, 0, 3)

    def _show_gates(self, x: Tensor, before: Tensor, after: Tensor) -> None:
        """Show the gates of a step, which torch keeps to itself, from its input and ``h`` around it, ``(L, B, W)`` each."""
        gates = []
        for layer in range(self.rnn.num_layers):
            (w_ih, b_ih), (w_hh, b_hh) = (
                [getattr(self.rnn, f"{kind}_{source}_l{layer}") for kind in ("weight", "bias")] for source in ("ih", "hh")
            )
            gates.append(functional.linear(x, w_ih, b_ih) + functional.linear(before[layer], w_hh, b_hh))
            x = after[layer]
        parts = torch.sigmoid(torch.stack(gates, dim=1)).chunk(len(self.gate_names), dim=-1)  # (B, L, W) each
        for name, gate in zip(self.gate_names, parts, strict=True):
            if name is not None:
                self.show(name, gate)


@register_core("lstm")
class LSTM(TorchRNN):
    """
    Long short-term memory. The state is ``h`` and ``c`` of each layer, the output the last layer's ``h``.

    Paper: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, https://doi.org/10.1162/neco.1997.9.8.1735, with the
    forget gates of Gers et al., "Learning to Forget", 2000.

    :meth:`inspect` shows ``input_gate``, ``forget_gate`` and ``output_gate``, each ``(T, B, L, W)``. The arguments are those
    of :class:`TorchRNN`.
    """

    network = nn.LSTM
    state_parts = 2
    gate_names = ("input_gate", "forget_gate", None, "output_gate")
    torch_is_fused = True  # oneDNN's

    def _cell(self, x: Tensor, parts: list[Tensor], weights: list[Tensor]) -> Tensor:
        return torch.stack(torch.lstm_cell(x, parts, *weights))


@register_core("gru")
class GRU(TorchRNN):
    """
    Gated recurrent unit. The state is ``h`` of each layer, the output the last layer's.

    Paper: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", 2014,
    https://arxiv.org/abs/1406.1078.

    :meth:`inspect` shows ``reset_gate`` and ``update_gate`` (the share of the old state that stays), each ``(T, B, L, W)``.
    The arguments are those of :class:`TorchRNN`.
    """

    network = nn.GRU
    state_parts = 1
    gate_names = ("reset_gate", "update_gate", None)  # the candidate is no gate: the reset gate enters it
    torch_is_fused = False

    def _cell(self, x: Tensor, parts: list[Tensor], weights: list[Tensor]) -> Tensor:
        return torch.gru_cell(x, parts[0], *weights).unsqueeze(0)
