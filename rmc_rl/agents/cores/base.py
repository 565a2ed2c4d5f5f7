"""
The Core contract: what a recurrent memory is, and how it is unrolled over episodes.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``O`` features written per step,
``S`` numbers carried from step to step.

The split of the work (one step in the core, resets and unroll around it) follows Sonnet's ``RNNCore`` and
Haiku's ``ResetCore``; the state is one flat vector per sequence, so that whoever stores states needs to know nothing of cores.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from rmc_rl.agents.cores.kernels import dispatch


class Core(nn.Module, ABC):
    """
    A recurrent memory: reads ``F`` features and its state at each step, writes ``O`` features and the next state.

    A new core is a subclass with :meth:`initial_state` and :meth:`step`. :meth:`forward` may be overridden for
    speed, never for meaning: it equals a loop over :meth:`step`, values and gradients.

    :param input_size: ``F``, features read per step
    :param output_size: ``O``, features written per step
    :param state_size: ``S``, numbers carried from step to step, per sequence; 0 for a core without memory
    """

    # names of arguments that set how many parameters a core has, from coarse to fine; see rmc_rl.match_parameters
    size_arguments: ClassVar[tuple[str, ...]] = ()
    # under which its fused kernels are found, see rmc_rl.agents.cores.kernels; such a core has an argument `kernel`
    kernel_family: ClassVar[str] = ""
    kernel: str = "eager"

    def __init__(self, input_size: int, output_size: int, state_size: int):
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.state_size = state_size
        self._looks: dict[str, list[Tensor]] | None = None

    @abstractmethod
    def initial_state(self, batch_size: int) -> Tensor:
        """
        The state before the first step of an episode.

        :param batch_size: ``B``
        :return: ``(B, S)``, on the core's device and of its dtype
        """

    @abstractmethod
    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """
        One step in time.

        :param x: features, ``(B, F)``
        :param state: ``(B, S)``
        :return: output ``(B, O)`` and next state ``(B, S)``
        """

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Many steps in time, with episodes that may start anywhere.

        :param inputs: features, ``(T, B, F)``
        :param state: ``(B, S)``, before the first step
        :param starts: ``(T, B)`` bool; where true, row ``b`` opens a new episode at step ``t``: its state becomes the
            initial one before the step. None: no episode starts
        :return: outputs ``(T, B, O)`` and the state after the last step ``(B, S)``
        """
        return self.unroll(self.step, inputs, state, starts)

    def unroll(
        self,
        step: Callable[..., tuple[Tensor, Tensor]],
        inputs: Tensor | tuple[Tensor, ...],
        state: Tensor,
        starts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        The one loop over time, for :meth:`forward` and for cores that compute what depends on inputs alone beforehand.

        :param step: called with a time slice of each tensor of ``inputs`` and the state; returns output and next state
        :param inputs: ``(T, B, ...)``, one tensor or several
        :param state: ``(B, S)``, before the first step
        :param starts: ``(T, B)`` bool, see :meth:`forward`
        :return: outputs ``(T, B, O)`` and the state after the last step ``(B, S)``
        """
        sequences = inputs if isinstance(inputs, tuple) else (inputs,)
        fresh = None if starts is None else self.initial_state(state.shape[0])
        outputs = []
        for t in range(sequences[0].shape[0]):
            if starts is not None and fresh is not None:
                # a choice, not a product with 0: exact, and its gradient reaches a learned initial state
                state = torch.where(starts[t].unsqueeze(-1), fresh, state)
            output, state = step(*(sequence[t] for sequence in sequences), state)
            outputs.append(output)
        return torch.stack(outputs), state

    def find_kernel(self, inputs: Tensor, state: Tensor) -> ModuleType | None:
        """
        The fused kernel to compute with.

        :param inputs: what the core is to read
        :param state: the state before it
        :return: its module; None: eager torch, as always under :meth:`inspect`, autocast, the tracers and function transforms
            of torch, and where a submodule has hooks or is not torch's own or ours (pruned, quantised, adapted ...)
        """
        device = inputs.device.type
        found = dispatch.fused(self.kernel, self.kernel_family, device)
        if found is None or self._looks is not None or torch.is_autocast_enabled(device):
            return None
        known = all(type(tensor) in (Tensor, nn.Parameter) for tensor in (inputs, state))  # with memory that can be read
        return found if known and not _traced() and all(map(_is_plain, self._modules.values())) else None

    def inspect(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> dict[str, Tensor]:
        """
        Run :meth:`step` over a sequence and return what people look at; the normal path is not slowed by it.

        :param inputs: features, ``(T, B, F)``
        :param state: ``(B, S)``, before the first step
        :param starts: ``(T, B)`` bool, see :meth:`forward`
        :return: ``output`` ``(T, B, O)``, ``state`` ``(T, B, S)`` after each step, and what the core shows of itself
            (names and shapes in its docstring), each ``(T, B, ...)``
        """

        def step(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            output, state = self.step(x, state)
            self.show("state", state)
            return output, state

        self._looks = {}
        try:
            outputs, _ = self.unroll(step, inputs, state, starts)
            return {"output": outputs, **{name: torch.stack(values) for name, values in self._looks.items()}}
        finally:
            self._looks = None

    def show(self, name: str, value: Tensor) -> None:
        """
        Called by a core within its step: keeps a tensor for :meth:`inspect`, does nothing otherwise.

        :param name: the name under which :meth:`inspect` returns it, other than "output" and "state". :func:`scalars` makes
            curves of names that end with "gate", "attention" or "active"
        :param value: ``(B, ...)``
        """
        if self._looks is not None:
            self._looks.setdefault(name, []).append(value)


def _traced() -> bool:
    """Whether torch watches what is computed, or computes something else with it, such as its derivative."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore
        or _get_current_dispatch_mode() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _is_plain(module: nn.Module | None) -> bool:
    """Whether a module computes what its parameters say, as far as can be told."""
    if module is None:
        return True
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    ours = type(module).__module__.startswith(("torch.nn.modules.", "rmc_rl."))
    return ours and not hooks and all(map(_is_plain, module._modules.values()))


def scalars(looks: Mapping[str, Tensor]) -> dict[str, float]:
    """
    A few numbers that tell how a memory is doing, for curves.

    :param looks: what :meth:`Core.inspect` returned
    :return: of names that end with "gate" the mean; with "attention" ``<name>_entropy``, the mean entropy over the last
        dimension in nats (0: one key has all the weight; log of the number of keys: all have the same); with "active"
        ``<name>/<k>``, the share of steps at which the ``k``-th entry of the last dimension is active. The number of a layer
        may follow, as in "active_0"
    """
    found = {}
    for name, value in looks.items():
        kind, value = name.rstrip("0123456789").rstrip("_"), value.float()
        if kind.endswith("gate"):
            found[name] = value.mean().item()
        elif kind.endswith("attention") and value.shape[-1] > 1:
            found[f"{name}_entropy"] = torch.special.entr(value).sum(-1).mean().item()
        elif kind.endswith("active"):
            found |= {f"{name}/{index}": share for index, share in enumerate(value.flatten(0, -2).mean(0).tolist())}
    return found
