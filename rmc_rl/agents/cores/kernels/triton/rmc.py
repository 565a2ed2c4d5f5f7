"""
The fused RMC in Triton for NVIDIA GPUs: whether it can be had, and its place in torch's autograd.

One launch computes a whole sequence and one the gradients of it (``triton_forward.py``, ``triton_backward.py``);
the weights' gradients are one product each afterwards. Layer norms' outputs are not kept but computed again on the way back.
Triton is imported at the first call. With ``TRITON_INTERPRET=1`` set before, tensors of the CPU are taken: slow, for tests.

Products are of full float32, or TF32 where torch's are (``torch.backends.cuda.matmul.allow_tf32``).

Shapes: those of ``triton_forward.py``.
"""

import contextlib
import functools
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from rmc_rl.agents.cores.kernels.dispatch import refuse_second_derivatives

if TYPE_CHECKING:
    from rmc_rl.agents.cores.rmc import RMC

CAPABILITY = (8, 0)  # the oldest one that Triton supports
TILE_NUMBERS = 2048  # of a tile that is no operand of a product: 16 for each thread of 4 warps
NUM_WARPS = 4
MOST_ROWS = 32  # of a tile of a product


class _Sizes(NamedTuple):
    """What the kernels are compiled for, beside tiles."""

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
    """Whether Triton's interpreter runs the kernels, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def why_not() -> str | None:
    """Why the kernel cannot be had in this process; None: it can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if interpreted():
        return None
    if torch.version.hip is not None:
        return "it was not tried on AMD's GPUs"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return "Triton needs compute capability {}.{}".format(*CAPABILITY)
    return None


def about() -> str:
    """What is in use, for people."""
    version = importlib.import_module("triton").__version__
    return f"Triton {version}{', interpreted on the CPU' if interpreted() else ''}"


def unroll(core: "RMC", rows: Tensor, gates: Tensor | None, state: Tensor, starts: Tensor | None = None) -> Tensor | None:
    """
    All steps of an RMC.

    :param core: the core
    :param rows: the input's rows, ``(T, B, n, D)``
    :param gates: what the input adds to the gates, ``(T, B, 2G)``; None without gates
    :param state: ``(B, N D)``, before the first step
    :param starts: ``(T, B)`` bool or None, see :meth:`Core.forward`
    :return: the memory after each step, ``(T, B, N, D)``; None where the kernel does not take these tensors: eager torch
        computes with them, or says what is wrong with them
    """
    if not _takes(core, rows, state, starts):
        return None
    blocks = cast(Sequence[Any], core.blocks)
    first, norms = blocks[0], ("qkv_norm", "attention_norm", "mlp_norm")
    # the first block reads the input's rows as they come, so their queries, keys and values wait for no step
    input_qkv = first.qkv_norm(first.qkv(rows))
    parameters = [
        _stack([block.qkv.weight for block in blocks]),
        _stack([block.qkv.bias for block in blocks]),
        *(_stack([getattr(getattr(block, norm), p) for block in blocks]) for norm in norms for p in ("weight", "bias")),
        _stack([cast(Tensor, layer.weight) for layer in core.mlp]),
        _stack([cast(Tensor, layer.bias) for layer in core.mlp]),
    ]
    if gates is None:
        parameters.append(state.new_empty(0))
    else:
        # a gate for each slot is one for each number, all with the same weights
        repeat = 2 * core.width // gates.shape[-1]
        parameters.append(core.gate_from_memory.weight.repeat_interleave(repeat, 0))
        gates = (gates + core.gate_from_memory.bias).repeat_interleave(repeat, -1)
    fresh = None if starts is None else core.initial_state(state.shape[0])
    sizes = sizes_of(core)
    inputs = (input_qkv, rows if len(blocks) > 1 else None, gates, fresh, state)
    if not torch.is_grad_enabled():
        return _forward(sizes, starts, inputs, parameters, keep=False)[0]
    memories: Tensor = _Unroll.apply(sizes, starts, *inputs, *parameters)  # type: ignore[no-untyped-call]
    return memories


def sizes_of(core: "RMC") -> _Sizes:
    """What the kernels are compiled for."""
    blocks = cast(Sequence[Any], core.blocks)
    first = blocks[0]
    return _Sizes(
        core.num_slots, core.num_slots + core.num_entities, core.width, first.qkv.out_features,
        core.num_heads, first.key_size, core.head_size, len(blocks), len(core.mlp),
        core.gate_style != "none", core.input_bias, core.forget_bias, first.qkv_norm.eps,
    )  # fmt: skip


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """All in one; of a single one a view."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def _takes(core: "RMC", rows: Tensor, state: Tensor, starts: Tensor | None) -> bool:
    """Everything lies on one GPU, in a dtype of the kernel, in the shapes that :func:`unroll` says."""
    if rows.ndim != 4 or 0 in rows.shape or rows.dtype not in (torch.float32, torch.float64):
        return False
    if not (rows.is_cuda or interpreted()):
        return False
    place = (rows.device, rows.dtype)
    return (
        all((parameter.device, parameter.dtype) == place for parameter in core.parameters())
        and (state.device, state.dtype) == place
        and state.shape == (rows.shape[1], core.state_size)
        and (starts is None or (starts.device == rows.device and starts.shape == rows.shape[:2]))
    )


def _power(number: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << (number - 1).bit_length()


def _options(sizes: _Sizes, batch: int, device: torch.device) -> dict[str, Any]:
    """What a launch is given beside arrays: how the work is cut."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    sequences = 1  # of a program: as many as fill the least tile of a product, more where there are programs to spare
    while sequences < batch and sequences * sizes.N < MOST_ROWS:
        if sequences * sizes.N >= 16 and batch <= sequences * processors:
            break
        sequences *= 2
    d_tile, e_tile, heads_tile = _power(sizes.D), _power(sizes.E), _power(sizes.HEADS)
    key_tile, head_tile = _power(sizes.KEY), _power(sizes.HEAD)
    most = _power(sequences * sizes.R)
    multiplied = sequences * (sizes.N if sizes.BLOCKS == 1 else sizes.R)  # rows that go through products
    names = [name for name in sizes._fields if name not in ("INPUT_BIAS", "FORGET_BIAS")]  # these the way back needs not
    return {
        **{name: getattr(sizes, name) for name in names},
        "SCALE": sizes.KEY**-0.5,
        "ROWS": sequences,
        "ROW_TILE": min(MOST_ROWS, max(16, _power(multiplied))),
        "OUT_TILE": min(64, max(16, d_tile)),
        "IN_TILE": min(32, max(16, d_tile)),
        "D_TILE": d_tile,
        "E_TILE": e_tile,
        "D_ROW_TILE": min(most, max(1, TILE_NUMBERS // d_tile)),
        "E_ROW_TILE": min(most, max(1, TILE_NUMBERS // e_tile)),
        "HEADS_TILE": heads_tile,
        "KEY_TILE": key_tile,
        "HEAD_TILE": head_tile,
        "HEAD_ROW_TILE": min(most, max(1, TILE_NUMBERS // (heads_tile * max(key_tile, head_tile)))),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        "num_warps": NUM_WARPS,
    }


def _launch(name: str, arrays: Sequence[Tensor | None], time: int, batch: int, options: dict[str, Any]) -> None:
    """Run a kernel; an array that is None is one that it does not look at."""
    module = importlib.import_module(f"rmc_rl.agents.cores.kernels.triton_{name}")
    unused = next(array for array in arrays if array is not None)
    filled = [unused if array is None else array for array in arrays]
    programs = -(-batch // options["ROWS"])
    with torch.cuda.device(unused.device) if unused.is_cuda else contextlib.nullcontext():
        getattr(module, name)[(programs,)](*filled, time, batch, **options)


def _forward(
    sizes: _Sizes, starts: Tensor | None, inputs: Sequence[Tensor | None], parameters: Sequence[Tensor], keep: bool
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The memories; and what the way back needs: starts, inputs, parameters, memories and what was kept of each step."""
    input_qkv, rows, gates, fresh, state = (None if x is None else x.contiguous() for x in inputs)
    assert input_qkv is not None
    assert state is not None
    parameters = [parameter.contiguous() for parameter in parameters]
    flags = None if starts is None else starts.to(torch.uint8).contiguous()
    time, batch = input_qkv.shape[:2]
    N, R, D, E = sizes[:4]
    kept_steps = batch * (time if keep else 1)
    last_rows = (sizes.BLOCKS - 1) * R + N  # that go on, in all blocks
    new = input_qkv.new_empty
    memories = new(time, batch, N, D)
    kept = (
        new(kept_steps * (N + (sizes.BLOCKS - 1) * R) * E),
        new(kept_steps * last_rows * D),
        new(kept_steps * last_rows * D * (sizes.LAYERS - 1)),
        new(kept_steps * last_rows * D),
        new(kept_steps * N * 2 * D if sizes.GATED else 0),
    )
    scratch = (state.clone(), new(batch, R, D), new(batch, R, E), new(batch, R, D))
    options = _options(sizes, batch, state.device)
    options |= dict(STARTS=starts is not None, KEEP=keep, INPUT_BIAS=sizes.INPUT_BIAS, FORGET_BIAS=sizes.FORGET_BIAS)
    arrays = (input_qkv, rows, gates, fresh, flags, *parameters, memories, *kept, *scratch)
    _launch("forward", arrays, time, batch, options)
    return memories, (flags, input_qkv, rows, gates, fresh, state, *parameters, memories, *kept)


class _Unroll(torch.autograd.Function):
    """All steps in one launch, and their gradients in another."""

    @staticmethod
    def forward(ctx: Any, sizes: _Sizes, starts: Tensor | None, *tensors: Tensor | None) -> Tensor:
        ctx.sizes = sizes
        parameters = cast(Sequence[Tensor], tensors[5:])
        memories, kept = _forward(sizes, starts, tensors[:5], parameters, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(*kept)
        return memories

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        flags, *saved = ctx.saved_tensors
        return None, None, *_backward(ctx.sizes, flags, saved[:5], saved[5:16], saved[16], saved[17:], grad)


def _backward(
    sizes: _Sizes,
    flags: Tensor | None,
    inputs: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    memories: Tensor,
    kept: Sequence[Tensor],
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Of each input and each parameter, in their order, the gradient."""
    input_qkv, rows, gates, fresh, state = inputs
    assert input_qkv is not None
    assert state is not None
    qkv_weight, _, qkv_gamma, qkv_beta, *norms, mlp_weight, _, gate_weight = parameters
    attention_gamma, _, mlp_gamma, mlp_beta = norms
    time, batch, N, D = memories.shape
    previous = torch.cat([state.view(1, batch, N, D), memories[:-1]])
    if flags is not None and fresh is not None:
        previous = torch.where(flags.view(time, batch, 1, 1) != 0, fresh.view(batch, N, D), previous)
    options = _options(sizes, batch, state.device) | dict(STARTS=flags is not None)
    programs = -(-batch // options["ROWS"])
    new, R, E = state.new_empty, sizes.R, sizes.E
    grad_input_qkv, grad_rows = torch.empty_like(input_qkv), None if rows is None else torch.empty_like(rows)
    grad_fresh = None if fresh is None else torch.zeros_like(fresh)
    grad_state = torch.zeros_like(state)
    grad_kept_qkv, _, grad_hidden, grad_mlp, grad_gates = of_kept = [torch.empty_like(array) for array in kept]
    of_norms = [state.new_zeros(programs, *p.shape) for p in (qkv_gamma, qkv_beta, *norms)]
    scratch = (
        *(new(batch, N, D), new(batch, R, D), new(batch, R, D), new(batch, R, D), new(batch, R, D)),
        *(new(batch, R, E), new(batch, R, E), new(batch, R, sizes.HEADS), new(batch, R, sizes.HEADS)),
    )
    arrays = (
        *(input_qkv, flags, qkv_weight, qkv_gamma, qkv_beta, attention_gamma, mlp_gamma, mlp_beta, mlp_weight, gate_weight),
        *(*kept, previous, grad.contiguous(), grad_input_qkv, grad_rows, grad_fresh),
        *(grad_kept_qkv, grad_hidden, grad_mlp, grad_gates, *of_norms, grad_state, *scratch),
    )
    _launch("backward", arrays, time, batch, options)

    of_linears = _of_linears(sizes, time * batch, previous, kept, of_kept, norms)
    of_gate_input, of_gate_weight = None, None
    if gates is not None:
        grad_gates = grad_gates.view(time * batch * N, 2 * D)
        of_gate_input = grad_gates.view(time, batch, N, 2 * D).sum(2)
        of_gate_weight = grad_gates.T @ torch.tanh(previous.view(-1, D))
    of_qkv_weight, of_qkv_bias, of_mlp_weight, of_mlp_bias = of_linears
    return (
        *(grad_input_qkv, grad_rows, of_gate_input, grad_fresh, grad_state),
        *(of_qkv_weight, of_qkv_bias, *(partial.sum(0) for partial in of_norms), of_mlp_weight, of_mlp_bias, of_gate_weight),
    )


def _of_linears(
    sizes: _Sizes, steps: int, previous: Tensor, kept: Sequence[Tensor], grads: Sequence[Tensor], norms: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the weights and biases of queries, keys and values and of the MLP, all steps at once."""
    _, kept_read, kept_hidden, kept_mlp, _ = kept
    grad_qkv, _, grad_hidden, grad_mlp, _ = grads
    attention_gamma, attention_beta, mlp_gamma, mlp_beta = norms
    N, R, D, E = sizes[:4]
    asked = [N] + [R] * (sizes.BLOCKS - 1)  # rows that each block projects
    goes_on = [R] * (sizes.BLOCKS - 1) + [N]
    of_qkv = [part.view(-1, E) for part in torch.split(grad_qkv, [steps * rows * E for rows in asked])]
    sizes_on = [steps * rows * D for rows in goes_on]
    read, out, of_out = ([part.view(-1, D) for part in torch.split(x, sizes_on)] for x in (kept_read, kept_mlp, grad_mlp))
    several = [size * (sizes.LAYERS - 1) for size in sizes_on]
    hidden, of_hidden = (
        [part.view(sizes.LAYERS - 1, -1, D) if sizes.LAYERS > 1 else part.view(0, 1, D) for part in torch.split(x, several)]
        for x in (kept_hidden, grad_hidden)
    )
    weights: list[Tensor] = []
    mlp_weights = [previous.new_zeros(D, D) for _ in range(sizes.LAYERS)]
    mlp_biases = [previous.new_zeros(D) for _ in range(sizes.LAYERS)]
    z = previous.view(-1, D)
    for block in range(sizes.BLOCKS):
        weights.append(of_qkv[block].T @ z)
        normed = functional.layer_norm(read[block], (D,), attention_gamma[block], attention_beta[block], sizes.EPSILON)
        layers_read = [normed, *hidden[block]]
        for layer, up in enumerate([*of_hidden[block], of_out[block]]):
            mlp_weights[layer].addmm_(up.T, layers_read[layer])
            mlp_biases[layer] += up.sum(0)
        z = functional.layer_norm(out[block], (D,), mlp_gamma[block], mlp_beta[block], sizes.EPSILON)
    return torch.stack(weights), torch.stack([up.sum(0) for up in of_qkv]), torch.stack(mlp_weights), torch.stack(mlp_biases)
