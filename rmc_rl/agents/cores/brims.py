"""
Bidirectional Recurrent Independent Mechanisms: layers of modules, in which the first layer also attends to the last one.

Paper: Mittal et al., "Learning to Combine Top-Down and Bottom-Up Signals in Recurrent Neural Networks with Attention over
Modules", 2020, https://arxiv.org/abs/2006.16981.
Code it equals: sarthmit/BRIMs, ``MNIST`` and ``CIFAR10``, at commit ``f8af67e8``; without the top-down row, the two-layer RIMs
of anirudh9119/RIMs, ``event_based``, at ``aa61773a``.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``K`` modules of a layer, ``k`` active modules, ``s`` size of a
module.
"""

import torch
from torch import Tensor

from rmc_rl.agents.cores.layers import pass_gradient
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.rims_arguments import BRIMsArguments, arguments_from
from rmc_rl.agents.cores.rims_stack import ModuleStack


@register_core("brims")
class BRIMs(ModuleStack):
    """
    Bidirectional Recurrent Independent Mechanisms (Mittal et al. 2020). The state is ``h`` and ``c`` of each layer.

    Each layer computes what :class:`~rmc_rl.agents.cores.rims.RIMs` does; the equations, and the defaults that differ because
    of reinforcement learning, stand there. A layer's modules attend to a null row and to the layer below at this step (first
    layer: the embedded input). The first layer also attends to the last layer's ``h`` of the previous step, the top-down row.
    The output is the last layer's ``h``.

    :meth:`inspect` shows for each layer ``l`` (without the number if there is one layer) ``active_l`` ``(T, B, K)``,
    ``input_attention_l`` ``(T, B, heads, K, rows)`` (the null row first), ``comm_attention_l`` ``(T, B, heads, K, K)``, and
    the gates of the cells: ``forget_gate_l``, ``input_gate_l``, ``output_gate_l`` (GRU: ``reset_gate_l``,
    ``update_gate_l``), each ``(T, B, K, s)``.

    Differences from the paper:

    * As in the authors' code, only the first layer has a top-down row, and the row comes from the last layer, not from the
      next one. With two layers this is the same.
    * As in the authors' code, modules attend to each other's new states before the new states of inactive modules are
      discarded, so they also read inactive modules.

    Differences from the authors' code, besides those of RIMs:

    * The widths of the layers and of the input need not be equal, because each row has its own keys and values.

    :func:`~rmc_rl.agents.cores.published_weights.brims_from_official` builds one from published weights.
    """

    @arguments_from(BRIMsArguments)
    def __init__(self, input_size: int, arguments: BRIMsArguments):
        """
        :param input_size: ``F``, features read per step
        """
        super().__init__(input_size, arguments, arguments.layers(), arguments.top_down)
        self.use_inactive, self.blocked_grad = arguments.use_inactive, arguments.blocked_grad

    def advance(self, keys: Tensor, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states = list(torch.split(state, self.state_sizes, dim=1))
        if self.top_down:
            top = states[-1][:, : self.output_size]
            top_key, top_value = self.layer(0).input_attention.embed(top, self.input_copies)
            keys, values = torch.cat([keys, top_key], dim=1), torch.cat([values, top_value], dim=1)
        for index in range(len(self.layers)):
            layer = self.layer(index)
            states[index], active, shown = layer(states[index], keys, values)
            self.show_layer(index, shown)
            if index + 1 < len(self.layers):
                below = self._pass_up(states[index][:, : layer.sizes.width], active)
                attention = self.layer(index + 1).input_attention
                keys, values = attention.with_null([attention.embed(below)])
        return states[-1][:, : self.output_size], torch.cat(states, dim=1)

    def _pass_up(self, h: Tensor, active: Tensor) -> Tensor:
        """From a layer's ``h`` ``(B, K s)`` and its active modules ``(B, K)``: what the next layer reads, ``(B, K s)``."""
        if self.use_inactive and not self.blocked_grad:
            return h
        modules = h.view(*active.shape, h.shape[1] // active.shape[1])  # (B, K s) -> (B, K, s)
        mask = active.unsqueeze(-1)
        if self.blocked_grad:
            modules = pass_gradient(modules, mask)
        return (modules if self.use_inactive else modules * mask).flatten(1)
