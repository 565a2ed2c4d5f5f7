"""
The base of RIMs and BRIMs: an embedding of the input, and one or more layers of modules above it.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``S`` size of the state, ``O`` features written per step, ``R``
rows that modules attend to, ``H`` heads, ``d`` key size, ``a`` numbers that a module reads, ``K`` modules.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Axis, Core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.layers import InitialState
from rmc_rl.agents.cores.rims_arguments import LayerArguments, ModuleArguments
from rmc_rl.agents.cores.rims_layer import ModuleLayer
from rmc_rl.errors import require_whole


class ModuleStack(Core):
    """
    Layers of recurrent modules. The state is ``h`` and ``c`` of each layer, the output ``h`` of the last layer.

    A subclass connects the layers, in :meth:`advance`.

    :param input_size: ``F``, features read per step
    :param arguments: what all layers share
    :param layers: arguments of each layer, from the bottom up
    :param top_down: whether the first layer has a row for the last layer's ``h`` of the previous step
    """

    kernel_family = "rims"
    size_arguments = ("module_size", "input_key_size")

    # how layers are connected, for the kernels: only a stack of several layers has a choice
    use_inactive = True
    blocked_grad = False

    def __init__(self, input_size: int, arguments: ModuleArguments, layers: Sequence[LayerArguments], top_down: bool = False):
        input_size = require_whole("input_size", input_size)
        state_sizes = [layer.state_size for layer in layers]
        super().__init__(input_size, output_size=layers[-1].width, state_size=sum(state_sizes))
        self.state_sizes = state_sizes
        self.variant, self.input_copies, self.kernel = arguments.variant, arguments.input_copies, arguments.kernel
        self.top_down = top_down
        size = arguments.embedding_size
        self.embedding = nn.Linear(input_size, size) if size else nn.Identity()
        top = [layers[-1].width] if top_down else []
        row_sizes = [[size or input_size] * self.input_copies + top, *([below.width] for below in layers[:-1])]
        distinct_rows = [1 + len(top), *(1 for _ in layers[:-1])]
        self.layers = nn.ModuleList(map(ModuleLayer, layers, row_sizes, distinct_rows))
        self.initial = InitialState(self.state_size, arguments.initial_state)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.initial(batch_size)  # type: ignore[no-any-return]

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        parts = {}
        for index, part in enumerate(torch.split(state, self.state_sizes, dim=-1)):
            sizes = self.layer(index).sizes
            # (..., S of the layer) -> h (..., K s) -> (..., K, s)
            h = part[..., : sizes.width].reshape(*part.shape[:-1], sizes.num_modules, sizes.module_size)
            parts["memory" if len(self.layers) == 1 else f"memory_{index}"] = h
        return parts

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        per_unit: tuple[Axis, ...] = ("module", "unit")
        gates = ("input_gate", "forget_gate", "output_gate", "reset_gate", "update_gate")
        null = [] if self.variant == "atari" else ["null"]
        inputs = ["input"] if self.input_copies == 1 else [f"input {index + 1}" for index in range(self.input_copies)]
        rows = [null + inputs + (["top"] if self.top_down else []), *([*null, "below"] for _ in self.layers[1:])]
        return {
            "memory": per_unit,
            "active": ("module",),
            "input_attention": ("head", "module", rows[0]),
            **{f"input_attention_{index}": ("head", "module", row) for index, row in enumerate(rows)},
            "comm_attention": ("head", "module", "module"),
            **dict.fromkeys(gates, per_unit),
        }

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.advance(*self.embed(x), state)

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kernel = dispatch.find(self, inputs, state)
        if kernel is None and self.is_modified():
            return super().forward(inputs, state, starts)  # a subclass may override any method, step included
        states: Tensor | None = None if kernel is None else kernel.unroll(self, self.embedding(inputs), state, starts)
        if states is None:
            # keys and values of the input, for all steps at once
            return self.unroll(self.advance, self.embed(inputs), state, starts)
        begin = self.state_size - self.state_sizes[-1]  # (T, B, S) -> (T, B, O), the last layer's h
        return states[..., begin : begin + self.output_size], states[-1]

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Keys and values of the rows that depend on the input alone.

        :param x: features, ``(..., F)``
        :return: ``(..., R, H d)`` and ``(..., R, a)``, the null row first
        """
        attention, x = self.layer(0).input_attention, self.embedding(x)
        return attention.with_null([attention.embed(x, index) for index in range(self.input_copies)])

    @abstractmethod
    def advance(self, keys: Tensor, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """
        One step in time.

        :param keys: what :meth:`embed` returned, ``(B, R, H d)``
        :param values: ``(B, R, a)``
        :param state: ``(B, S)``
        :return: output ``(B, O)`` and next state ``(B, S)``
        """

    def layer(self, index: int) -> ModuleLayer:
        """
        :param index: of the layer, from the bottom up
        """
        layer = self.layers[index]
        assert isinstance(layer, ModuleLayer)
        return layer

    def show_layer(self, index: int, shown: Mapping[str, Tensor]) -> None:
        """
        Show the tensors of one layer; the layer's number follows their names if there are several layers.

        :param index: of the layer
        :param shown: tensors by name, each ``(B, ...)``
        """
        if self._looks is not None:
            for name, value in shown.items():
                self.show(name if len(self.layers) == 1 else f"{name}_{index}", value)
