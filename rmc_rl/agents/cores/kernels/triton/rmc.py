"""
The fused RMC in Triton for NVIDIA GPUs: whether it is available, and its place in torch's autograd.

One launch computes a whole sequence (``forward.py``), another one its gradients (``backward.py``); the gradients of the
weights are one product each afterwards. The backward pass computes the outputs of the layer norms again instead of saving
them. Triton is imported at the first call. If ``TRITON_INTERPRET=1`` was set before, the kernels run on tensors of the CPU:
slow, for tests.

Products use full float32, or TF32 if torch does (``torch.backends.cuda.matmul.allow_tf32``).

Shapes: those of ``forward.py``.
"""

import contextlib
import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from rmc_rl.agents.cores.kernels.dispatch import refuse_second_derivatives

if TYPE_CHECKING:
    from rmc_rl.agents.cores.rmc import RMC

CAPABILITY = (8, 0)  # the oldest one that Triton supports
TILE_SIZE = 2048  # elements of a tile outside products: 16 for each thread of 4 warps
NUM_WARPS = 4
MAX_TILE_ROWS = 32  # of a tile of a product

# names of the arrays, as in the arguments of the kernels
INPUTS = ("input_qkv", "input_rows", "input_gates", "initial_state", "state")
NORMS = ("qkv_gamma", "qkv_beta", "attention_gamma", "attention_beta", "mlp_gamma", "mlp_beta")
PARAMETERS = ("qkv_weight", "qkv_bias", *NORMS, "mlp_weight", "mlp_bias", "gate_weight")
KEPT = ("kept_qkv", "kept_read", "kept_hidden", "kept_mlp", "kept_gates")


class _Saved(NamedTuple):
    """What forward keeps for backward: the starts as whole numbers, the memories, and the arrays by name."""

    flags: Tensor | None
    memories: Tensor
    inputs: Mapping[str, Tensor | None]
    parameters: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]


class _Sizes(NamedTuple):
    """The sizes and numbers that the kernels are compiled for, without those of tiles."""

    N: int
    R: int
    D: int
    E: int
    HEADS: int
    KEY: int
    HEAD: int
    BLOCKS: int
    LAYERS: int
    GATED: bool
    INPUT_BIAS: float
    FORGET_BIAS: float
    EPSILON: float


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def why_not() -> str | None:
    """The reason why the kernel is unavailable in this process; None if it is available."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if interpreted():
        return None
    if torch.version.hip is not None:
        return "it was not tested on AMD GPUs"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return "Triton needs compute capability {}.{}".format(*CAPABILITY)
    return None


def about() -> str:
    """The version of Triton, and whether it is interpreted."""
    version = importlib.import_module("triton").__version__
    return f"Triton {version}{', interpreted on the CPU' if interpreted() else ''}"


def unroll(core: "RMC", rows: Tensor, gates: Tensor | None, state: Tensor, starts: Tensor | None = None) -> Tensor | None:
    """
    All steps of an RMC.

    :param core: the core
    :param rows: the input's rows, ``(T, B, n, D)``
    :param gates: the input's part of the gates, ``(T, B, 2G)``; None without gates
    :param state: ``(B, N D)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: the memory after each step, ``(T, B, N, D)``; None if the kernel does not support these tensors
    """
    if not _takes(core, rows, state, starts):
        return None
    blocks = cast(Sequence[Any], core.blocks)
    first = blocks[0]
    # queries, keys and values of the input rows in the first block do not depend on the memory: one product for all steps
    input_qkv = first.qkv_norm(first.qkv(rows))
    parameters = {
        "qkv_weight": _stack([block.qkv.weight for block in blocks]),
        "qkv_bias": _stack([block.qkv.bias for block in blocks]),
        **{
            f"{norm}_{letter}": _stack([getattr(getattr(block, f"{norm}_norm"), name) for block in blocks])
            for norm in ("qkv", "attention", "mlp")
            for letter, name in (("gamma", "weight"), ("beta", "bias"))
        },
        "mlp_weight": _stack([cast(Tensor, layer.weight) for layer in core.mlp]),
        "mlp_bias": _stack([cast(Tensor, layer.bias) for layer in core.mlp]),
        "gate_weight": state.new_empty(0),
    }
    if gates is not None:
        # a gate for each slot equals a gate for each number, all with the same weights
        repeat = 2 * core.width // gates.shape[-1]
        parameters["gate_weight"] = core.gate_from_memory.weight.repeat_interleave(repeat, 0)
        gates = (gates + core.gate_from_memory.bias).repeat_interleave(repeat, -1)
    inputs = {
        "input_qkv": input_qkv,
        "input_rows": rows if len(blocks) > 1 else None,
        "input_gates": gates,
        "initial_state": None if starts is None else core.initial_state(state.shape[0]),
        "state": state,
    }
    sizes = sizes_of(core)
    if not torch.is_grad_enabled():
        return _forward(sizes, starts, inputs, parameters, save=False).memories
    tensors = (*(inputs[name] for name in INPUTS), *(parameters[name] for name in PARAMETERS))
    memories: Tensor = _Unroll.apply(sizes, starts, *tensors)  # type: ignore[no-untyped-call]
    return memories


def sizes_of(core: "RMC") -> _Sizes:
    """The sizes and numbers that the kernels are compiled for."""
    blocks = cast(Sequence[Any], core.blocks)
    first = blocks[0]
    return _Sizes(
        core.num_slots, core.num_slots + core.num_entities, core.width, first.qkv.out_features,
        core.num_heads, first.key_size, core.head_size, len(blocks), len(core.mlp),
        core.gate_style != "none", core.input_bias, core.forget_bias, first.qkv_norm.eps,
    )  # fmt: skip


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors. A single one is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def _takes(core: "RMC", rows: Tensor, state: Tensor, starts: Tensor | None) -> bool:
    """Whether all tensors are on one GPU, of a supported dtype, and of the shapes that :func:`unroll` documents."""
    if rows.ndim != 4 or 0 in rows.shape or rows.dtype not in (torch.float32, torch.float64):
        return False
    if not (rows.is_cuda or interpreted()):
        return False
    expected = (rows.device, rows.dtype)
    return (
        all((parameter.device, parameter.dtype) == expected for parameter in core.parameters())
        and (state.device, state.dtype) == expected
        and state.shape == (rows.shape[1], core.state_size)
        and (starts is None or (starts.device == rows.device and starts.shape == rows.shape[:2]))
    )


def _power(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << (number - 1).bit_length()


def _options(sizes: _Sizes, batch: int, device: torch.device) -> dict[str, Any]:
    """The constants of a launch: sizes, and how the work is split into programs and tiles."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    # sequences of a program: enough to fill the smallest tile of a product; more if there are more programs than processors
    sequences = 1
    while sequences < batch and sequences * sizes.N < MAX_TILE_ROWS:
        if sequences * sizes.N >= 16 and batch <= sequences * processors:
            break
        sequences *= 2
    d_tile, e_tile, heads_tile = _power(sizes.D), _power(sizes.E), _power(sizes.HEADS)
    key_tile, head_tile = _power(sizes.KEY), _power(sizes.HEAD)
    all_rows = _power(sequences * sizes.R)
    product_rows = sequences * (sizes.N if sizes.BLOCKS == 1 else sizes.R)
    names = [name for name in sizes._fields if name not in ("INPUT_BIAS", "FORGET_BIAS")]  # backward does not use these two
    return {
        **{name: getattr(sizes, name) for name in names},
        "SCALE": sizes.KEY**-0.5,
        "ROWS": sequences,
        "ROW_TILE": min(MAX_TILE_ROWS, max(16, _power(product_rows))),
        "OUT_TILE": min(64, max(16, d_tile)),
        "IN_TILE": min(32, max(16, d_tile)),
        "D_TILE": d_tile,
        "E_TILE": e_tile,
        "D_ROW_TILE": min(all_rows, max(1, TILE_SIZE // d_tile)),
        "E_ROW_TILE": min(all_rows, max(1, TILE_SIZE // e_tile)),
        "HEADS_TILE": heads_tile,
        "KEY_TILE": key_tile,
        "HEAD_TILE": head_tile,
        "HEAD_ROW_TILE": min(all_rows, max(1, TILE_SIZE // (heads_tile * max(key_tile, head_tile)))),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        "num_warps": NUM_WARPS,
    }


def _launch(name: str, arrays: Mapping[str, Tensor | None], time: int, batch: int, options: Mapping[str, Any]) -> None:
    """Run a kernel. The arrays have the names of its arguments; it does not read an array that is None."""
    kernel = getattr(importlib.import_module(f"{__package__}.{name}"), name)
    unused = next(array for array in arrays.values() if array is not None)
    filled = {name: unused if array is None else array for name, array in arrays.items()}
    programs = -(-batch // options["ROWS"])
    with torch.cuda.device(unused.device) if unused.is_cuda else contextlib.nullcontext():
        kernel[(programs,)](**filled, T=time, B=batch, **options)


def _forward(
    sizes: _Sizes, starts: Tensor | None, inputs: Mapping[str, Tensor | None], parameters: Mapping[str, Tensor], save: bool
) -> _Saved:
    """Run forward. ``save``: keep the values of all steps for backward, otherwise those of one step."""
    inputs = {name: None if x is None else x.contiguous() for name, x in inputs.items()}
    parameters = {name: parameter.contiguous() for name, parameter in parameters.items()}
    flags = None if starts is None else starts.to(torch.uint8).contiguous()
    input_qkv, state = inputs["input_qkv"], inputs["state"]
    assert input_qkv is not None
    assert state is not None
    time, batch = input_qkv.shape[:2]
    N, R, D, E = sizes[:4]
    steps = batch * (time if save else 1)
    written_rows = (sizes.BLOCKS - 1) * R + N  # that all blocks write
    new = input_qkv.new_empty
    memories = new(time, batch, N, D)
    kept = dict(
        kept_qkv=new(steps * (N + (sizes.BLOCKS - 1) * R) * E),
        kept_read=new(steps * written_rows * D),
        kept_hidden=new(steps * written_rows * D * (sizes.LAYERS - 1)),
        kept_mlp=new(steps * written_rows * D),
        kept_gates=new(steps * N * 2 * D if sizes.GATED else 0),
    )
    work = dict(memory=state.clone(), z=new(batch, R, D), qkv=new(batch, R, E), normed=new(batch, R, D))
    options = _options(sizes, batch, state.device)
    options |= dict(STARTS=starts is not None, KEEP=save, INPUT_BIAS=sizes.INPUT_BIAS, FORGET_BIAS=sizes.FORGET_BIAS)
    read = {name: x for name, x in inputs.items() if name != "state"}
    arrays = {**read, "starts": flags, **parameters, "memories": memories, **kept, **work}
    _launch("forward", arrays, time, batch, options)
    return _Saved(flags, memories, inputs, parameters, kept)


class _Unroll(torch.autograd.Function):
    """All steps in one launch, and their gradients in another one."""

    @staticmethod
    def forward(ctx: Any, sizes: _Sizes, starts: Tensor | None, *tensors: Tensor | None) -> Tensor:
        inputs = dict(zip(INPUTS, tensors, strict=False))
        parameters = dict(zip(PARAMETERS, cast(Sequence[Tensor], tensors[len(INPUTS) :]), strict=True))
        saved = _forward(sizes, starts, inputs, parameters, save=any(ctx.needs_input_grad))
        ctx.sizes = sizes
        flat = (*saved.inputs.values(), *saved.parameters.values(), *saved.kept.values())
        ctx.save_for_backward(saved.flags, saved.memories, *flat)
        return saved.memories

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        flags, memories, *flat = ctx.saved_tensors
        named = dict(zip((*INPUTS, *PARAMETERS, *KEPT), flat, strict=True))
        inputs, parameters, kept = ({name: named[name] for name in names} for names in (INPUTS, PARAMETERS, KEPT))
        gradients = _backward(ctx.sizes, _Saved(flags, memories, inputs, parameters, kept), grad)
        return None, None, *(gradients[name] for name in (*INPUTS, *PARAMETERS))


def _backward(sizes: _Sizes, saved: _Saved, grad: Tensor) -> dict[str, Tensor | None]:
    """The gradient of each input and each parameter, by name."""
    flags, memories, inputs, parameters, kept = saved
    input_qkv, initial_state, state = inputs["input_qkv"], inputs["initial_state"], inputs["state"]
    assert input_qkv is not None
    assert state is not None
    time, batch, N, D = memories.shape
    previous = torch.cat([state.view(1, batch, N, D), memories[:-1]])
    if flags is not None and initial_state is not None:
        previous = torch.where(flags.view(time, batch, 1, 1) != 0, initial_state.view(batch, N, D), previous)
    options = _options(sizes, batch, state.device) | dict(STARTS=flags is not None)
    programs = -(-batch // options["ROWS"])
    new, R, E = state.new_empty, sizes.R, sizes.E
    gradients: dict[str, Tensor | None] = {
        "input_qkv": torch.empty_like(input_qkv),
        "input_rows": None if inputs["input_rows"] is None else torch.empty_like(inputs["input_rows"]),
        "input_gates": None,
        "initial_state": None if initial_state is None else torch.zeros_like(initial_state),
        "state": torch.zeros_like(state),
    }
    grad_kept = {name: torch.empty_like(array) for name, array in kept.items()}
    grad_norms = {name: state.new_zeros(programs, *parameters[name].shape) for name in NORMS}
    arrays = {
        **{name: parameters[name] for name in PARAMETERS if name not in ("qkv_bias", "attention_beta", "mlp_bias")},
        **kept,
        **{f"grad_{name}": gradients[name] for name in ("input_qkv", "input_rows", "initial_state")},
        **{f"grad_{name}": grad_kept[f"kept_{name}"] for name in ("qkv", "hidden", "mlp", "gates")},
        **{f"grad_{name}": array for name, array in grad_norms.items()},
        **dict(
            input_qkv=input_qkv, starts=flags, previous=previous, grad_memories=grad.contiguous(), carry=gradients["state"]
        ),
        **dict(grad_tanh_memory=new(batch, N, D), z=new(batch, R, D), grad_z=new(batch, R, D)),
        **dict(grad_normed=new(batch, R, D), grad_read=new(batch, R, D), qkv=new(batch, R, E)),
        **dict(grad_qkv_normed=new(batch, R, E), log_total=new(batch, R, sizes.HEADS), product=new(batch, R, sizes.HEADS)),
    }
    _launch("backward", arrays, time, batch, options)

    gradients |= {name: partial.sum(0) for name, partial in grad_norms.items()}
    gradients |= _linear_gradients(sizes, time * batch, previous, saved, grad_kept)
    gradients["gate_weight"] = None
    if inputs["input_gates"] is not None:
        grad_gates = grad_kept["kept_gates"].view(time * batch * N, 2 * D)
        gradients["input_gates"] = grad_gates.view(time, batch, N, 2 * D).sum(2)
        gradients["gate_weight"] = grad_gates.T @ torch.tanh(previous.view(-1, D))
    return gradients


def _linear_gradients(
    sizes: _Sizes, steps: int, previous: Tensor, saved: _Saved, grad_kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradients of the weights and biases of queries, keys and values and of the MLP, one product for all steps."""
    kept, parameters = saved.kept, saved.parameters
    N, R, D, E = sizes[:4]
    projected = [N] + [R] * (sizes.BLOCKS - 1)  # rows that each block projects
    written = [R] * (sizes.BLOCKS - 1) + [N]  # rows that each block writes
    grad_qkv = [part.view(-1, E) for part in torch.split(grad_kept["kept_qkv"], [steps * rows * E for rows in projected])]
    lengths = [steps * rows * D for rows in written]
    read, out, grad_out = (
        [part.view(-1, D) for part in torch.split(array, lengths)]
        for array in (kept["kept_read"], kept["kept_mlp"], grad_kept["kept_mlp"])
    )
    hidden_lengths = [length * (sizes.LAYERS - 1) for length in lengths]
    hidden, grad_hidden = (
        [
            part.view(sizes.LAYERS - 1, -1, D) if sizes.LAYERS > 1 else part.view(0, 1, D)
            for part in torch.split(x, hidden_lengths)
        ]
        for x in (kept["kept_hidden"], grad_kept["kept_hidden"])
    )
    qkv_weights: list[Tensor] = []
    mlp_weights = [previous.new_zeros(D, D) for _ in range(sizes.LAYERS)]
    mlp_biases = [previous.new_zeros(D) for _ in range(sizes.LAYERS)]
    z = previous.view(-1, D)
    for block in range(sizes.BLOCKS):
        attention_norm, mlp_norm = (
            (parameters[f"{norm}_gamma"][block], parameters[f"{norm}_beta"][block]) for norm in ("attention", "mlp")
        )
        qkv_weights.append(grad_qkv[block].T @ z)
        normed = functional.layer_norm(read[block], (D,), *attention_norm, sizes.EPSILON)
        layer_inputs = [normed, *hidden[block]]
        for layer, grad in enumerate([*grad_hidden[block], grad_out[block]]):
            mlp_weights[layer].addmm_(grad.T, layer_inputs[layer])
            mlp_biases[layer] += grad.sum(0)
        z = functional.layer_norm(out[block], (D,), *mlp_norm, sizes.EPSILON)
    return dict(
        qkv_weight=torch.stack(qkv_weights),
        qkv_bias=torch.stack([grad.sum(0) for grad in grad_qkv]),
        mlp_weight=torch.stack(mlp_weights),
        mlp_bias=torch.stack(mlp_biases),
    )
