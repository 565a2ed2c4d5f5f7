"""
Bidirectional Recurrent Independent Mechanisms: a stack of layers of modules, with attention to what is above.

Paper: Mittal et al., "Learning to Combine Top-Down and Bottom-Up Signals in Recurrent Neural Networks with Attention over
Modules", 2020, https://arxiv.org/abs/2006.16981.
Code it equals: sarthmit/BRIMs, ``MNIST`` and ``CIFAR10``, at commit ``f8af67e8``; without the top-down row, the two-layer RIMs
of anirudh9119/RIMs, ``event_based``, at ``aa61773a``.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``K`` modules of a layer, ``k`` active ones, ``s`` their size,
``E`` size of the embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmc_rl.agents.cores.base import Core
from rmc_rl.agents.cores.kernels import dispatch
from rmc_rl.agents.cores.layers import InitialState, pass_gradient
from rmc_rl.agents.cores.published_weights import OFFICIAL_CONFIG, check_config, layer_of_official, load_weights
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.rims_layer import CELLS, VARIANTS, ModuleLayer, ModuleSizes
from rmc_rl.errors import require, require_choice, require_truth, require_whole


@register_core("brims")
class BRIMs(Core):
    r"""
    Bidirectional Recurrent Independent Mechanisms (Mittal et al. 2020). The state is ``h`` and ``c`` of each layer.

    In each layer, bottom first, ``K`` modules with weights of their own choose by attention from a few rows: a null row of
    zeros, the layer below at this step (the embedded input, for the first layer) and, in the first layer, the last layer one
    step earlier. With :math:`z` the rows, :math:`W^v, W^k` per row and :math:`W^q, W^h` per module:

    .. math::

        P_{mr} &= softmax_r(h_m W^q_m \cdot z_r W^k_r / \sqrt{d}), \quad u_m = \sum_r P_{mr} z_r W^v_r \\
        active &= \text{the } k \text{ modules with the smallest } P_{m,null} \\
        \tilde h_m, \tilde c_m &= LSTM_m(u_m, h_m, c_m) \\
        y_m &= \text{attention of } \tilde h_m \text{ over all } \tilde h, \quad
        \hat h_m = \tilde h_m + \sigma(W_g y_m + b_g) \odot \tanh(W_o y_m + b_o) \\
        h_m', c_m' &= \hat h_m, \tilde c_m \text{ where active, else } h_m, c_m

    An inactive module keeps its state, and gets no gradient at that step but through this copy. The last layer's ``h`` is the
    output.

    In reinforcement learning, and so by default, three things differ from the papers; ``initial_state="zeros"`` and
    ``embedding_size=0`` give theirs:

    * The initial state is learned, and no two modules start alike. From zeros every query is 0, so all modules tie at the
      first step of each episode: the choice would be blind to the input.
    * The input passes a linear layer with a bias first. A zero observation would else be the null row itself, and nothing to
      attend to.
    * No dropout (0.1 in both attentions of the authors' code), by which alone the probabilities that PPO compares would
      differ.

    Which modules are active is decided by a stable sort: of equal ones the first, on every device, where ``torch.topk``
    promises no order. (Scores that differ by rounding alone may still fall either way between devices and kernels.)

    :meth:`inspect` shows for each layer ``l`` (the number is left out where there is one layer) ``active_l`` ``(T, B, K)``,
    ``input_attention_l`` ``(T, B, heads, K, rows)``, the null row first, ``comm_attention_l`` ``(T, B, heads, K, K)``, and the
    cells' gates ``forget_gate_l``, ``input_gate_l``, ``output_gate_l`` (GRU: ``reset_gate_l``, ``update_gate_l``), each
    ``(T, B, K, s)``.

    Differences from the paper:

    * As in the authors' code: only the first layer has a top-down row, and it comes from the last layer, not the next one
      (the same for two layers); modules read each other's provisional states, those of inactive ones included.

    Differences from the authors' code:

    * Recurrent matrices hold the modules' own blocks; there they are dense, zero off the diagonal before each forward.
    * The first weights are normal with deviation ``1/sqrt(inputs)``, cut at two deviations, biases zero, as in Sonnet. There,
      attention starts at 0.01 N(0, 1) and cells by the total width: two layers of a small agent would pass next to nothing on.
      (The embedding is torch's, whose bias is not zero.)
    * The layers' widths need not be equal, nor that of the input: each row has keys and values of its own anyway.

    :param input_size: ``F``, features read per step
    :param num_modules: ``K`` of each layer, bottom first
    :param num_active: ``k`` of each layer
    :param module_size: ``s`` of each layer
    :param top_down: whether the first layer is offered the last one's state of the step before
    :param use_inactive: whether a layer shows the next one all its modules, or zeros for inactive ones
    :param blocked_grad: whether inactive modules get no gradient from the layer above
    :param cell: "lstm" or "gru"
    :param variant: "official", or one of two other codes for RIMs: "atari" (no null row, modules compete by a softmax over
        modules) and "dido" (biased keys and values, active modules by raw score, ungated communication)
    :param input_heads: heads of the input attention
    :param input_key_size: size of its keys per head
    :param read_size: numbers a module reads per step, all heads together ("dido": their mean); None: ``4 s``
    :param comm_heads: heads of the attention between modules; 0: none
    :param comm_key_size: size of its keys per head
    :param comm_value_size: size of its values per head
    :param input_copies: rows the input is offered as, each with keys and values of its own
    :param embedding_size: ``E``, width of the layer between input and modules; 0: none
    :param initial_state: "learned" or "zeros"
    :param dropout: share of attention weights set to 0 in training mode
    :param kernel: "auto", "eager" or "native": how it is computed, see :mod:`rmc_rl.agents.cores.kernels`
    :raises UsageError: for a value outside these rules
    """

    kernel_family = "rims"
    size_arguments = ("module_size", "input_key_size")

    def __init__(
        self,
        input_size: int,
        num_modules: Sequence[int] = (6, 3),
        num_active: Sequence[int] = (4, 2),
        module_size: Sequence[int] = (16, 32),
        top_down: bool = True,
        use_inactive: bool = True,
        blocked_grad: bool = False,
        cell: str = "lstm",
        variant: str = "official",
        input_heads: int = 4,
        input_key_size: int = 16,
        read_size: int | None = None,
        comm_heads: int = 4,
        comm_key_size: int = 16,
        comm_value_size: int = 16,
        input_copies: int = 1,
        embedding_size: int = 64,
        initial_state: str = "learned",
        dropout: float = 0.0,
        kernel: str = "auto",
    ):
        dispatch.check_kernel(kernel)
        lists = dict(num_modules=num_modules, num_active=num_active, module_size=module_size)
        for name, values in lists.items():
            require(
                isinstance(values, list | tuple) and len(values) > 0,
                f"{name} must be a list, one number for each layer",
                values,
            )
            require(len(values) == len(num_modules), f"{name} must have {len(num_modules)} numbers as num_modules has", values)
            for value in values:
                require_whole(f"each number in {name}", value)
        for modules, active in zip(num_modules, num_active, strict=True):
            require(active <= modules, f"num_active must be at most num_modules, {modules}", active)
        sizes = dict(input_heads=input_heads, input_key_size=input_key_size, input_copies=input_copies)
        sizes |= dict(comm_key_size=comm_key_size, comm_value_size=comm_value_size)
        for name, value in sizes.items():
            require_whole(name, value)
        for name, value in dict(comm_heads=comm_heads, embedding_size=embedding_size).items():
            require_whole(name, value, at_least=0)
        if read_size is not None:
            require_whole("read_size", read_size)
        for name, truth in dict(top_down=top_down, use_inactive=use_inactive, blocked_grad=blocked_grad).items():
            require_truth(name, truth)
        require_choice("cell", cell, CELLS)
        require_choice("variant", variant, VARIANTS)
        fraction = isinstance(dropout, int | float) and not isinstance(dropout, bool) and 0 <= dropout < 1
        require(fraction, "dropout must be a number of at least 0 and below 1", dropout)
        one_row = not top_down and input_copies == 1
        require(
            variant == "official" or one_row,
            f"variant '{variant}' needs top_down false and input_copies 1",
            (top_down, input_copies),
        )

        layers = []
        below = embedding_size or input_size
        for index, (modules, active, size) in enumerate(zip(num_modules, num_active, module_size, strict=True)):
            read = read_size or 4 * size
            divided = variant == "dido" or read % input_heads == 0
            require(divided, f"input_heads must divide the {read} numbers that a module reads (read_size)", input_heads)
            rows = [below] * input_copies if index == 0 else [below]
            if index == 0 and top_down:
                rows.append(num_modules[-1] * module_size[-1])
            layer_sizes = ModuleSizes(
                modules, active, size, cell, variant, input_heads, input_key_size, read,
                comm_heads, comm_key_size, comm_value_size, dropout,
            )  # fmt: skip
            distinct = 2 if index == 0 and top_down else 1
            layers.append((layer_sizes, rows, distinct))
            below = modules * size
        states = [
            modules * size * (2 if cell == "lstm" else 1) for modules, size in zip(num_modules, module_size, strict=True)
        ]
        super().__init__(input_size, output_size=below, state_size=sum(states))
        self.variant, self.input_copies = variant, input_copies
        self.top_down, self.use_inactive, self.blocked_grad = top_down, use_inactive, blocked_grad
        self.embedding = nn.Linear(input_size, embedding_size) if embedding_size else nn.Identity()
        self.layers = nn.ModuleList(ModuleLayer(*arguments) for arguments in layers)
        self.initial = InitialState(self.state_size, initial_state)
        self.state_sizes = states
        self.kernel = kernel

    def initial_state(self, batch_size: int) -> Tensor:
        return self.initial(batch_size)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled() and x.ndim == 2:  # an acting step; a kernel with gradients is worth it for many steps
            states = self._fused(x.unsqueeze(0), state, None)
            if states is not None:
                return self._output(states[0]), states[0]
        return self._advance(*self._embed(x), state)

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states = self._fused(inputs, state, starts)
        if states is not None:
            return self._output(states), states[-1]
        # keys and values of what depends on the inputs alone, for all steps at once
        return self.unroll(self._advance, self._embed(inputs), state, starts)

    def _fused(self, inputs: Tensor, state: Tensor, starts: Tensor | None) -> Tensor | None:
        """The state after each step, ``(T, B, S)``; None where no kernel computes it."""
        kernel = self.find_kernel(inputs, state)
        states: Tensor | None = None if kernel is None else kernel.unroll(self, self.embedding(inputs), state, starts)
        return states

    def _output(self, states: Tensor) -> Tensor:
        """``(..., S)`` -> the last layer's ``h``, ``(..., O)``."""
        begin = self.state_size - self.state_sizes[-1]
        return states[..., begin : begin + self.output_size]

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., F)`` -> keys ``(..., R, H d)`` and values ``(..., R, a)`` of the first layer's rows but the top-down one."""
        attention, x = self.layer(0).input_attention, self.embedding(x)
        return attention.with_null([attention.embed(x, index) for index in range(self.input_copies)])

    def _advance(self, keys: Tensor, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step from what :meth:`_embed` returned and the state ``(B, S)``."""
        states = list(torch.split(state, self.state_sizes, dim=1))
        if self.top_down:
            top = states[-1][:, : self.output_size]
            top_key, top_value = self.layer(0).input_attention.embed(top, self.input_copies)
            keys, values = torch.cat([keys, top_key], dim=1), torch.cat([values, top_value], dim=1)
        for index in range(len(self.layers)):
            layer = self.layer(index)
            states[index], active, looks = layer(states[index], keys, values)
            if self._looks is not None:
                for name, value in looks.items():
                    self.show(name if len(self.layers) == 1 else f"{name}_{index}", value)
            if index + 1 < len(self.layers):
                above = self.layer(index + 1).input_attention
                keys, values = above.with_null([above.embed(self._shown(states[index][:, : layer.width], active))])
        return states[-1][:, : self.output_size], torch.cat(states, dim=1)

    def _shown(self, h: Tensor, active: Tensor) -> Tensor:
        """What a layer shows of its states ``(B, K s)`` to the next one."""
        if self.use_inactive and not self.blocked_grad:
            return h
        modules = h.view(*active.shape, -1)  # (B, K s) -> (B, K, s)
        chosen = active.unsqueeze(-1)
        if self.blocked_grad:
            modules = pass_gradient(modules, chosen)
        return (modules if self.use_inactive else modules * chosen).flatten(1)

    def layer(self, index: int) -> ModuleLayer:
        """
        :param index: from the bottom
        """
        layer = self.layers[index]
        assert isinstance(layer, ModuleLayer)
        return layer

    @classmethod
    def from_authors(cls, config: Mapping[str, Any], weights: Mapping[str, Any]) -> "BRIMs":
        """
        A core with the weights of the authors' ``Blocks``: BRIMs, or RIMs of several layers.

        :param config: ``ninp``, and per layer ``nhid``, ``num_blocks``, ``topk``; ``inp_heads``, ``inp_d_k``, ``comm_heads``,
            ``comm_d_k``, ``comm_d_v``; ``do_gru``, ``use_inactive``, ``blocked_grad`` where they are not those of BRIMs
            (False, True, False); whether there is a top-down row is read off the weights
        :param weights: every parameter by its name there (``bc_lst.<layer>. ...``), as an array
        :return: the core, float32, without embedding, starting from zeros
        :raises UsageError: where a parameter is missing, left over or of another shape than the arguments say
        """
        check_config(config, OFFICIAL_CONFIG)
        count = len(config["nhid"])
        lengths = [len(config[name]) for name in ("num_blocks", "topk")]
        require(lengths == [count, count], f"num_blocks and topk must have {count} numbers, as nhid has", lengths)
        prefixes = tuple(f"bc_lst.{index}." for index in range(count))
        extra = sorted(name for name in weights if not name.startswith(prefixes))
        require(not extra, "weights must hold the parameters of the layers alone", extra)
        converted: dict[str, Tensor] = {}
        for index in range(count):
            prefix = f"bc_lst.{index}."
            layer = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
            converted |= {
                f"layers.{index}.{name}": array
                for name, array in layer_of_official(layer, config["num_blocks"][index]).items()
            }
        core = cls(
            config["ninp"],
            num_modules=list(config["num_blocks"]),
            num_active=list(config["topk"]),
            module_size=[nhid // modules for nhid, modules in zip(config["nhid"], config["num_blocks"], strict=True)],
            top_down="layers.0.input_attention.key.1.weight" in converted,
            use_inactive=config.get("use_inactive", True),
            blocked_grad=config.get("blocked_grad", False),
            cell="gru" if config.get("do_gru") else "lstm",
            input_heads=config["inp_heads"],
            input_key_size=config["inp_d_k"],
            comm_heads=config["comm_heads"],
            comm_key_size=config["comm_d_k"],
            comm_value_size=config["comm_d_v"],
            embedding_size=0,
            initial_state="zeros",
        )
        return load_weights(core, converted)
