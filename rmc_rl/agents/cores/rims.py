"""
Recurrent Independent Mechanisms: modules that compete for the input, each with its own dynamics.

Paper: Goyal et al., "Recurrent Independent Mechanisms", 2019, https://arxiv.org/abs/1909.10893 (section 2).
Code it equals: anirudh9119/RIMs, ``event_based`` and ``blocks_atari``, at commit ``aa61773a``;
dido1998/Recurrent-Independent-Mechanisms at ``26aa8717``.

Shapes: ``B`` batch, ``T`` time, ``F`` features read per step, ``K`` modules, ``k`` active modules, ``s`` size of a module.
"""

from torch import Tensor

from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.rims_arguments import RIMsArguments, arguments_from
from rmc_rl.agents.cores.rims_stack import ModuleStack


@register_core("rims")
class RIMs(ModuleStack):
    r"""
    Recurrent Independent Mechanisms (Goyal et al. 2019). The state is ``h`` and ``c`` of each module, the output all ``h``.

    ``K`` modules, each with its own weights, attend to a few rows: a null row of zeros and the embedded input. With :math:`z`
    the rows, weights :math:`W^v, W^k` per row and :math:`W^q` per module:

    .. math::

        P_{mr} &= softmax_r(h_m W^q_m \cdot z_r W^k_r / \sqrt{d}), \quad u_m = \sum_r P_{mr} z_r W^v_r \\
        active &= \text{the } k \text{ modules with the smallest } P_{m,null} \\
        \tilde h_m, \tilde c_m &= LSTM_m(u_m, h_m, c_m) \\
        y_m &= \text{attention of } \tilde h_m \text{ over all } \tilde h, \quad
        \hat h_m = \tilde h_m + \sigma(W_g y_m + b_g) \odot \tanh(W_o y_m + b_o) \\
        h_m', c_m' &= \hat h_m, \tilde c_m \text{ if active, otherwise } h_m, c_m

    An inactive module keeps its state. At that step, gradients flow through an inactive module only via this copy.

    Three defaults differ from the paper, because of reinforcement learning. ``initial_state="zeros"`` and
    ``embedding_size=0`` restore the first two:

    * The initial state is learned, and differs between modules. With an initial state of zeros every query is 0, so all
      modules tie at the first step of each episode, and the choice of active modules does not depend on the input.
    * The input passes a linear layer with a bias first. Without it, an observation of zeros equals the null row, so modules
      would have nothing to attend to.
    * There is no dropout (the authors' code: 0.1 in both attentions). Dropout would change the action probabilities that PPO
      compares.

    A stable sort chooses the active modules: among equal scores the first modules win, on every device. ``torch.topk``
    promises no order. Scores that differ only by rounding may still be ordered differently by another device or kernel.

    :meth:`inspect` shows ``active`` ``(T, B, K)``, ``input_attention`` ``(T, B, heads, K, rows)`` (the null row first),
    ``comm_attention`` ``(T, B, heads, K, K)``, and the gates of the cells: ``forget_gate``, ``input_gate``, ``output_gate``
    (GRU: ``reset_gate``, ``update_gate``), each ``(T, B, K, s)``.

    Differences from the paper:

    * As in the authors' code, modules attend to each other's new states before the new states of inactive modules are
      discarded, so they also read inactive modules.

    Differences from the authors' code:

    * Recurrent matrices hold only each module's own block. There, they are dense, and all other blocks are set to zero before
      each forward pass.
    * Initial weights are normal with standard deviation ``1/sqrt(inputs)``, truncated at two deviations, and biases are zero,
      as in Sonnet. There, attention starts at 0.01 N(0, 1) and cells are scaled by the width of all modules, so a small agent
      would pass almost no signal on. (The embedding has torch's initial weights and bias.)
    * The published Atari code computes its modules but never uses or trains them, so "atari" is what those modules compute.

    :func:`~rmc_rl.agents.cores.published_weights.rims_from_official` and
    :func:`~rmc_rl.agents.cores.published_weights.rims_from_dido` build one from published weights.
    """

    @arguments_from(RIMsArguments)
    def __init__(self, input_size: int, arguments: RIMsArguments):
        """
        :param input_size: ``F``, features read per step
        """
        super().__init__(input_size, arguments, arguments.layers())

    def advance(self, keys: Tensor, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state, _, shown = self.layer(0)(state, keys, values)
        self.show_layer(0, shown)
        return state[:, : self.output_size], state
