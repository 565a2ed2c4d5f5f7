"""
The Core contract: what a recurrent memory is, and how it is unrolled over episodes.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``O`` features written per step,
``S`` numbers carried from step to step.

A core defines one step; the base class adds resets and the loop over time, as Sonnet's ``RNNCore`` and Haiku's ``ResetCore``
do. The state is one flat vector per sequence, so code that stores states does not depend on the core.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from rmc_rl.compat import constant_for_compiler

# an axis of a tensor that people look at: what one entry is ("slot"; "head" and "unit" are averaged in pictures), or a label
# for each entry
Axis = str | list[str]

# what a subclass or an instance may define although a kernel does not run it: metadata of classes, and what kernels call
HARMLESS = frozenset({
    *("__module__", "__qualname__", "__doc__", "__init__", "__annotations__", "__annotate__", "__annotate_func__"),
    *("__annotations_cache__", "__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__"),
    *("__type_params__", "__abstractmethods__", "_abc_impl", "__dict__", "__weakref__"),
    *("size_arguments", "output_scale", "extra_repr", "initial_state", "axes", "memory_parts"),
})  # fmt: skip

# names of the packages whose modules a kernel knows
PLAIN = ("torch.nn.modules.", "rmc_rl.")


class Core(nn.Module, ABC):
    """
    A recurrent memory. At each step it reads ``F`` features and its state, and writes ``O`` features and the next state.

    A new core is a subclass with :meth:`initial_state` and :meth:`step`. It may override :meth:`forward` for speed; the values
    and gradients must still equal those of a loop over :meth:`step`.

    :param input_size: ``F``, features read per step
    :param output_size: ``O``, features written per step
    :param state_size: ``S``, numbers carried from step to step, per sequence; 0 for a core without memory
    """

    # arguments that set the number of parameters of the core, from coarse to fine; see rmc_rl.match_parameters
    size_arguments: ClassVar[tuple[str, ...]] = ()
    # the family of its fused kernels, see rmc_rl.agents.cores.kernels; a core with kernels has an argument `kernel`
    kernel_family: ClassVar[str] = ""
    kernel: str = "eager"

    def __init__(self, input_size: int, output_size: int, state_size: int):
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.state_size = state_size
        self._looks: dict[str, list[Tensor]] | None = None

    @property
    def output_scale(self) -> float:
        """
        The factor by which layers that read the output multiply it with ``MlpMemoryPolicy(scale_output=True)``.

        Less than 1 for a core with a large output. A step of Adam changes each weight by about the learning rate, so it
        changes what a layer computes in proportion to the sum of what the layer reads.
        """
        return 1.0

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
        Many steps in time, with episodes that may start at any step.

        :param inputs: features, ``(T, B, F)``
        :param state: ``(B, S)``, before the first step
        :param starts: ``(T, B)`` bool. If true, row ``b`` starts a new episode at step ``t``: its state becomes the initial
            state before the step. None: no episode starts
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
        The loop over time. Cores that first compute what depends on the inputs alone call it with a step of their own.

        :param step: called with a time slice of each tensor of ``inputs`` and the state; returns output and next state
        :param inputs: ``(T, B, ...)``, one tensor or several
        :param state: ``(B, S)``, before the first step
        :param starts: ``(T, B)`` bool, see :meth:`forward`
        :return: outputs ``(T, B, O)`` and the state after the last step ``(B, S)``
        """
        sequences = inputs if isinstance(inputs, tuple) else (inputs,)
        initial_state = None if starts is None else self.initial_state(state.shape[0])
        outputs = []
        # unbound at once: the gradient of an index is a tensor as large as the whole sequence, at each step
        for t, of_step in enumerate(zip(*(sequence.unbind() for sequence in sequences), strict=True)):
            if starts is not None and initial_state is not None:
                # a selection instead of a product with 0 is exact, and a learned initial state gets its gradient
                state = torch.where(starts[t].unsqueeze(-1), initial_state, state)
            output, state = step(*of_step, state)
            outputs.append(output)
        return torch.stack(outputs), state

    @constant_for_compiler
    def is_modified(self) -> bool:
        """
        Whether this core may compute something else than its class in this package, so that neither a kernel nor a faster
        :meth:`forward` may replace its methods.

        It is modified if a class from outside this package that precedes :class:`Core` in its method resolution order defines
        a name that the class in this package has as well, or if a method was assigned to the instance. A subclass may define
        ``__init__``, :meth:`initial_state` (kernels call it), ``size_arguments``, and methods with new names.
        """
        cls = type(self)
        return not _methods(cls).isdisjoint(self.__dict__) or any(map(self._has, _names_from_outside(cls)))

    @constant_for_compiler
    def has_plain_modules(self) -> bool:
        """
        Whether the submodules compute what their classes in torch or in this package say: none has hooks, replaced methods, or
        a class from elsewhere (pruned, quantised, adapted ...).
        """
        return all(module is None or is_plain(module) for module in self._modules.values())

    def _has(self, name: str) -> bool:
        """Whether the core has a name without the classes from outside this package."""
        ours = next(cls for cls in type(self).__mro__ if _is_known(cls))
        return hasattr(ours, name) or any(name in names for names in (self.__dict__, self._modules, self._parameters))

    def inspect(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> dict[str, Tensor]:
        """
        Run :meth:`step` over a sequence and return the tensors that people look at. It does not slow :meth:`forward` down.

        :param inputs: features, ``(T, B, F)``
        :param state: ``(B, S)``, before the first step
        :param starts: ``(T, B)`` bool, see :meth:`forward`
        :return: ``output`` ``(T, B, O)``, ``state`` ``(T, B, S)`` after each step, and the tensors that the core shows, each
            ``(T, B, ...)``; its docstring lists their names and shapes
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

    def memory_parts(self, state: Tensor) -> dict[str, Tensor]:
        """
        The state as people look at it: parts (slots, modules, layers ...) of some units each.

        :param state: ``(..., S)``
        :return: name -> ``(..., parts, units)``; :meth:`axes` says under the same name what a part is. Empty for a core
            without memory
        """
        return {"state": state.unsqueeze(-2)} if self.state_size else {}

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """
        What the axes after ``(T, B)`` stand for, in the tensors that the core shows and in its :meth:`memory_parts`.

        Pictures are labelled with it. Without an entry, the last axis of an attention has the keys and the one before it the
        queries.

        :return: for each name, without the number of a layer, an :data:`Axis` for each of its axes
        """
        return {}

    def show(self, name: str, value: Tensor) -> None:
        """
        Keep a tensor of this step for :meth:`inspect`. Without :meth:`inspect` it does nothing.

        :param name: the name under which :meth:`inspect` returns it; not "output" or "state". :func:`scalars` makes curves of
            names that end with "gate", "attention" or "active"
        :param value: ``(B, ...)``
        """
        if self._looks is not None:
            self._looks.setdefault(name, []).append(value)


def is_plain(module: nn.Module, packages: tuple[str, ...] = PLAIN) -> bool:
    """
    Whether a module and its submodules compute what their classes say, and these are of known packages: none has hooks,
    replaced methods, or a class from elsewhere (pruned, quantised, adapted ...).

    :param module: the module
    :param packages: beginnings of the names of modules
    """
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    cls: type = type(module)
    if not cls.__module__.startswith(packages) or not _methods(cls).isdisjoint(module.__dict__):
        return False
    return all(part is None or is_plain(part, packages) for part in module._modules.values())


@functools.cache
def _is_known(cls: type) -> bool:
    """Whether a class is one of torch's modules or of this package."""
    return cls.__module__.startswith(PLAIN)


@functools.cache
def _methods(cls: type) -> frozenset[str]:
    """The names of the methods of a class, without harmless ones. None of them is an attribute of a plain instance."""
    return frozenset(name for name in dir(cls) if callable(getattr(cls, name, None))) - HARMLESS


@functools.cache
def _names_from_outside(cls: type[Core]) -> frozenset[str]:
    """The names, without harmless ones, that classes from outside this package define before :class:`Core`."""
    classes = cls.__mro__[: cls.__mro__.index(Core)]
    return frozenset(name for outside in classes if not _is_known(outside) for name in vars(outside)) - HARMLESS


def scalars(looks: Mapping[str, Tensor]) -> dict[str, float]:
    """
    Reduce the tensors of a memory to a few numbers, for curves.

    :param looks: what :meth:`Core.inspect` returned
    :return: for a name that ends with "gate", the mean; for "attention", ``<name>_entropy``, the mean entropy over the last
        dimension in nats (0: one key has all the weight; log of the number of keys: all keys have the same weight); for
        "active", ``<name>/<k>``, the fraction of steps at which the ``k``-th entry of the last dimension is active. The number
        of a layer may follow the name, as in "active_0"
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
