"""
Recurrent Independent Mechanisms: modules that compete for the input, each with dynamics of its own.

Paper: Goyal et al., "Recurrent Independent Mechanisms", 2019, https://arxiv.org/abs/1909.10893 (section 2).
Code it equals: anirudh9119/RIMs, ``event_based`` and ``blocks_atari``, at commit ``aa61773a``;
dido1998/Recurrent-Independent-Mechanisms at ``26aa8717``.
"""

from collections.abc import Mapping
from typing import Any

from rmc_rl.agents.cores.brims import BRIMs
from rmc_rl.agents.cores.published_weights import OFFICIAL_CONFIG, check_config, layer_of_dido, layer_of_official, load_weights
from rmc_rl.agents.cores.registry import register_core
from rmc_rl.agents.cores.rims_layer import VARIANTS
from rmc_rl.errors import require_choice, require_whole

# what from_authors needs to know of a RIMCell
DIDO_CONFIG = (
    *("input_size", "num_units", "k", "hidden_size", "rnn_cell"),
    *("num_input_heads", "input_key_size", "input_value_size", "num_comm_heads", "comm_key_size"),
)


@register_core("rims")
class RIMs(BRIMs):
    """
    Recurrent Independent Mechanisms (Goyal et al. 2019): :class:`BRIMs` with one layer, and nothing above it.

    There stand the equations, what :meth:`inspect` shows, and what differs from the papers and from the authors' code; the
    published Atari code computes its modules but never uses or trains them, so "atari" is what those modules compute.

    :param input_size: ``F``, features read per step
    :param num_modules: ``K``
    :param num_active: ``k``, modules that take a step, at each time
    :param module_size: ``s``
    :param cell: "lstm" or "gru"
    :param variant: "official" (supervised code), "atari" (reinforcement-learning code: no null row, modules compete by a
        softmax over modules) or "dido" (a port: biased keys and values, active modules by raw score, ungated communication)
    :param input_heads: heads of the input attention
    :param input_key_size: size of its keys per head
    :param read_size: numbers a module reads per step, all heads together ("dido": their mean); None: ``4 s``
    :param comm_heads: heads of the attention between modules; 0: none
    :param comm_key_size: size of its keys per head
    :param comm_value_size: size of its values per head
    :param input_copies: rows the input is offered as, each with keys and values of its own
    :param embedding_size: width of the layer between input and modules; 0: none
    :param initial_state: "learned" or "zeros"
    :param dropout: share of attention weights set to 0 in training mode
    :param kernel: "auto", "eager" or "native": how it is computed, see :mod:`rmc_rl.agents.cores.kernels`
    :raises UsageError: for a value outside these rules
    """

    def __init__(
        self,
        input_size: int,
        num_modules: int = 6,
        num_active: int = 4,
        module_size: int = 16,
        cell: str = "lstm",
        variant: str = "official",
        input_heads: int = 1,
        input_key_size: int = 64,
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
        for name, value in dict(num_modules=num_modules, num_active=num_active, module_size=module_size).items():
            require_whole(name, value)
        super().__init__(
            input_size,
            num_modules=[num_modules],
            num_active=[num_active],
            module_size=[module_size],
            top_down=False,
            cell=cell,
            variant=variant,
            input_heads=input_heads,
            input_key_size=input_key_size,
            read_size=read_size,
            comm_heads=comm_heads,
            comm_key_size=comm_key_size,
            comm_value_size=comm_value_size,
            input_copies=input_copies,
            embedding_size=embedding_size,
            initial_state=initial_state,
            dropout=dropout,
            kernel=kernel,
        )

    @classmethod
    def from_authors(cls, config: Mapping[str, Any], weights: Mapping[str, Any], variant: str = "official") -> "RIMs":
        """
        A core with the weights of the authors' ``BlocksCore`` (``variant`` "official", "atari") or of ``RIMCell`` ("dido").

        :param config: for a ``BlocksCore`` ``ninp``, ``nhid``, ``num_blocks``, ``topk``, ``inp_heads``, ``inp_d_k``,
            ``comm_heads``, ``comm_d_k``, ``comm_d_v``, and where they are not False, True and 2 ``do_gru``, ``step_att`` and
            ``num_modules_read_input``; for a ``RIMCell`` the arguments of its constructor by their own names
        :param weights: every parameter by its name there, as an array
        :param variant: which code they come from
        :return: the core, float32, without embedding, starting from zeros
        :raises UsageError: where a parameter is missing, left over or of another shape than the arguments say
        """
        require_choice("variant", variant, VARIANTS)
        check_config(config, DIDO_CONFIG if variant == "dido" else OFFICIAL_CONFIG)
        arguments: dict[str, Any] = dict(variant=variant, embedding_size=0, initial_state="zeros")
        if variant == "dido":
            core = cls(
                config["input_size"],
                num_modules=config["num_units"],
                num_active=config["k"],
                module_size=config["hidden_size"],
                cell=config["rnn_cell"].lower(),
                input_heads=config["num_input_heads"],
                input_key_size=config["input_key_size"],
                read_size=config["input_value_size"],
                comm_heads=config["num_comm_heads"],
                comm_key_size=config["comm_key_size"],
                comm_value_size=config["hidden_size"],  # whatever comm_value_size says
                **arguments,
            )
            layer = layer_of_dido(weights)
        else:
            core = cls(
                config["ninp"],
                num_modules=config["num_blocks"],
                num_active=config["topk"],
                module_size=config["nhid"] // config["num_blocks"],
                cell="gru" if config.get("do_gru") else "lstm",
                input_heads=config["inp_heads"],
                input_key_size=config["inp_d_k"],
                comm_heads=config["comm_heads"] if config.get("step_att", True) else 0,
                comm_key_size=config["comm_d_k"],
                comm_value_size=config["comm_d_v"],
                input_copies=config.get("num_modules_read_input", 2) - 1,
                **arguments,
            )
            layer = layer_of_official(weights, config["num_blocks"], variant == "official", config.get("step_att", True))
        return load_weights(core, {f"layers.0.{name}": tensor for name, tensor in layer.items()})
