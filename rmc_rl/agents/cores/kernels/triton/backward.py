"""
The Triton kernel of the RMC, backward: all steps in one launch, from the last step to the first.

Letters: ``forward.py``. Of the parameters' gradients it computes those of the layer norms, a sum in each program. For the
other parameters it writes the gradients of all steps, which are multiplied afterwards.
"""

import triton
import triton.language as tl

from rmc_rl.agents.cores.kernels.triton import parts


@triton.jit
def backward_block(
    input_qkv,
    qkv_weight,
    qkv_gamma,
    qkv_beta,
    attention_gamma,
    mlp_gamma,
    mlp_weight,
    kept_qkv,
    kept_read,
    kept_hidden,
    kept_mlp,
    grad_input_qkv,
    grad_input_rows,
    grad_qkv,
    grad_hidden,
    grad_mlp,
    grad_qkv_gamma,
    grad_qkv_beta,
    grad_attention_gamma,
    grad_attention_beta,
    grad_mlp_gamma,
    grad_mlp_beta,
    z,
    grad_z,
    grad_normed,
    grad_read,
    qkv,
    grad_qkv_normed,
    log_total,
    product,
    all_steps,
    step,
    program,
    sequences,
    block: tl.constexpr,
    PROJECTED: tl.constexpr,
    Q: tl.constexpr,
    N: tl.constexpr,
    BLOCKS: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    EPSILON: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    OUT_TILE: tl.constexpr,
    IN_TILE: tl.constexpr,
    D_TILE: tl.constexpr,
    E_TILE: tl.constexpr,
    D_ROW_TILE: tl.constexpr,
    E_ROW_TILE: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    HEAD_ROW_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of one step, backward: ``grad_z`` is the gradient of its output, then that of its input."""
    d = tl.arange(0, D_TILE)
    e = tl.arange(0, E_TILE)
    n: tl.constexpr = R - N
    qkv_at = (all_steps * (0 if block == 0 else N + (block - 1) * R) + step * PROJECTED) * E
    at_block = (all_steps * (block * R) + step * Q) * D
    block_grad_mlp = grad_mlp + at_block
    parts.norm_backward(
        grad_z, kept_mlp + at_block, mlp_gamma + block * D, block_grad_mlp,
        grad_mlp_gamma + (program * BLOCKS + block) * D, grad_mlp_beta + (program * BLOCKS + block) * D, sequences,
        Q, Q, D, D_TILE, ROWS, D_ROW_TILE, EPSILON,
    )  # fmt: skip
    parts.norm(
        kept_qkv + qkv_at, qkv_gamma + block * E, qkv_beta + block * E, qkv, sequences,
        PROJECTED, R, E, E_TILE, ROWS, E_ROW_TILE, EPSILON,
    )  # fmt: skip
    if block == 0:
        for first in range(0, ROWS * n, E_ROW_TILE):
            i = first + tl.arange(0, E_ROW_TILE)
            inside = (i < sequences * n)[:, None] & (e < E)[None, :]
            value = tl.load(input_qkv + (step * n + i)[:, None] * E + e[None, :], mask=inside, other=0.0)
            tl.store(qkv + (parts.position(i, n, R) + N)[:, None] * E + e[None, :], value, mask=inside)
    tl.debug_barrier()
    grad_output = block_grad_mlp
    for layer in tl.static_range(LAYERS - 1, 0, -1):
        below = (all_steps * (block * R * (LAYERS - 1) + (layer - 1) * Q) + step * Q) * D
        parts.linear(
            grad_output, mlp_weight + layer * D * D, z, z, kept_hidden + below, grad_hidden + below, sequences,
            Q, Q, 0, Q, D, D, D, 1, False, False, False, True, ROWS, ROW_TILE, OUT_TILE, IN_TILE, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
        grad_output = grad_hidden + below
    parts.linear(
        grad_output, mlp_weight, z, block_grad_mlp, z, grad_normed, sequences,
        Q, Q, Q, Q, D, D, D, 1, False, False, False, False, ROWS, ROW_TILE, OUT_TILE, IN_TILE, PRECISION,
    )  # fmt: skip
    tl.debug_barrier()
    parts.norm_backward(
        grad_normed, kept_read + at_block, attention_gamma + block * D, grad_read,
        grad_attention_gamma + (program * BLOCKS + block) * D,
        grad_attention_beta + (program * BLOCKS + block) * D, sequences,
        Q, Q, D, D_TILE, ROWS, D_ROW_TILE, EPSILON,
    )  # fmt: skip
    tl.debug_barrier()
    parts.attend_backward_queries(
        qkv, grad_read, grad_qkv_normed, log_total, product, sequences,
        Q, R, HEADS, KEY, HEAD, HEADS_TILE, KEY_TILE, HEAD_TILE, ROWS, HEAD_ROW_TILE, SCALE,
    )  # fmt: skip
    tl.debug_barrier()
    parts.attend_backward_keys(
        qkv, grad_read, grad_qkv_normed, log_total, product, sequences,
        Q, R, HEADS, KEY, HEAD, HEADS_TILE, KEY_TILE, HEAD_TILE, ROWS, HEAD_ROW_TILE, SCALE,
    )  # fmt: skip
    tl.debug_barrier()
    parts.norm_backward(
        grad_qkv_normed, kept_qkv + qkv_at, qkv_gamma + block * E, grad_qkv + qkv_at,
        grad_qkv_gamma + (program * BLOCKS + block) * E, grad_qkv_beta + (program * BLOCKS + block) * E, sequences,
        PROJECTED, R, E, E_TILE, ROWS, E_ROW_TILE, EPSILON,
    )  # fmt: skip
    if block == 0:
        for first in range(0, ROWS * n, E_ROW_TILE):
            i = first + tl.arange(0, E_ROW_TILE)
            row = (parts.position(i, n, R) + N)[:, None]
            inside = (i < sequences * n)[:, None] & (e < E)[None, :]
            value = tl.load(grad_qkv_normed + row * E + e[None, :], mask=inside, other=0.0)
            tl.store(grad_input_qkv + (step * n + i)[:, None] * E + e[None, :], value, mask=inside)
            if BLOCKS > 1:
                inside = (i < sequences * n)[:, None] & (d < D)[None, :]
                value = tl.load(grad_read + row * D + d[None, :], mask=inside, other=0.0)
                tl.store(grad_input_rows + (step * n + i)[:, None] * D + d[None, :], value, mask=inside)
    tl.debug_barrier()
    # only Q rows have a residual connection: in the last block, input rows get a gradient through keys and values alone
    parts.linear(
        grad_qkv + qkv_at, qkv_weight + block * E * D, z, grad_read, z, grad_z, sequences,
        PROJECTED, PROJECTED, Q, PROJECTED, E, D, D, 1, False, False, False, False, ROWS, ROW_TILE, OUT_TILE, IN_TILE,
        PRECISION,
    )  # fmt: skip
    tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "B"])
def backward(
    input_qkv,
    starts,
    qkv_weight,
    qkv_gamma,
    qkv_beta,
    attention_gamma,
    mlp_gamma,
    mlp_beta,
    mlp_weight,
    gate_weight,
    kept_qkv,
    kept_read,
    kept_hidden,
    kept_mlp,
    kept_gates,
    previous,  # (T, B, N, D): the memory before each step, after resets
    grad_memories,  # (T, B, N, D)
    grad_input_qkv,
    grad_input_rows,
    grad_initial_state,  # (B, N, D), initially zeros
    grad_qkv,  # as kept_qkv
    grad_hidden,  # as kept_hidden
    grad_mlp,  # as kept_mlp
    grad_gates,  # as kept_gates, before their sigmoids
    grad_qkv_gamma,  # (programs, blocks, E), initially zeros
    grad_qkv_beta,
    grad_attention_gamma,  # (programs, blocks, D), initially zeros
    grad_attention_beta,
    grad_mlp_gamma,
    grad_mlp_beta,
    carry,  # (B, N, D), initially zeros: the gradient of the memory between steps; at the end, that of the first state
    grad_tanh_memory,  # (B, N, D): by way of the gates
    z,  # (B, R, D)
    grad_z,  # (B, R, D)
    grad_normed,  # (B, R, D)
    grad_read,  # (B, R, D)
    qkv,  # (B, R, E)
    grad_qkv_normed,  # (B, R, E)
    log_total,  # (B, R, H)
    product,  # (B, R, H)
    T,
    B,
    GATED: tl.constexpr,
    STARTS: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    LAYERS: tl.constexpr,
    EPSILON: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    OUT_TILE: tl.constexpr,
    IN_TILE: tl.constexpr,
    D_TILE: tl.constexpr,
    E_TILE: tl.constexpr,
    D_ROW_TILE: tl.constexpr,
    E_ROW_TILE: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    HEAD_ROW_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Arguments have the same meaning as in :func:`forward`. ``grad_x`` is the gradient of ``x``."""
    batch = B.to(tl.int64)
    program = tl.program_id(0).to(tl.int64)
    begin = program * ROWS
    sequences = tl.minimum(batch - begin, ROWS)
    all_steps = batch * T
    carry += begin * (N * D)
    grad_tanh_memory += begin * (N * D)
    grad_initial_state += begin * (N * D)
    z += begin * (R * D)
    grad_z += begin * (R * D)
    grad_normed += begin * (R * D)
    grad_read += begin * (R * D)
    qkv += begin * (R * E)
    grad_qkv_normed += begin * (R * E)
    log_total += begin * (R * HEADS)
    product += begin * (R * HEADS)
    d = tl.arange(0, D_TILE)
    LAST: tl.constexpr = BLOCKS - 1

    for steps_back in tl.range(0, T, num_stages=1):
        step = batch * (T - 1 - steps_back) + begin
        parts.norm(
            kept_mlp + (all_steps * (LAST * R) + step * N) * D, mlp_gamma + LAST * D, mlp_beta + LAST * D, z, sequences,
            N, N, D, D_TILE, ROWS, D_ROW_TILE, EPSILON,
        )  # fmt: skip
        tl.debug_barrier()
        gates = kept_gates + step * (N * 2 * D)
        step_grad_gates = grad_gates + step * (N * 2 * D)
        for first in range(0, ROWS * N, D_ROW_TILE):
            i = first + tl.arange(0, D_ROW_TILE)
            inside = (i < sequences * N)[:, None] & (d < D)[None, :]
            at = i[:, None] * D + d[None, :]
            grad = tl.load(grad_memories + step * (N * D) + at, mask=inside, other=0.0)
            grad += tl.load(carry + at, mask=inside, other=0.0)
            carried = tl.zeros_like(grad)
            if GATED:
                gate = i[:, None] * (2 * D) + d[None, :]
                i_gate = tl.load(gates + gate, mask=inside, other=0.0)
                f_gate = tl.load(gates + gate + D, mask=inside, other=0.0)
                old = tl.load(previous + step * (N * D) + at, mask=inside, other=0.0)
                new = parts.tanh(tl.load(z + at, mask=inside, other=0.0))
                tl.store(step_grad_gates + gate, grad * new * i_gate * (1 - i_gate), mask=inside)
                tl.store(step_grad_gates + gate + D, grad * old * f_gate * (1 - f_gate), mask=inside)
                carried = grad * f_gate
                grad = grad * i_gate * (1 - new * new)
            tl.store(carry + at, carried, mask=inside)
            tl.store(grad_z + at, grad, mask=inside)
        tl.debug_barrier()
        if GATED:
            parts.linear(
                step_grad_gates, gate_weight, z, z, z, grad_tanh_memory, sequences,
                N, N, 0, N, 2 * D, D, D, 1, False, False, False, False, ROWS, ROW_TILE, OUT_TILE, IN_TILE, PRECISION,
            )  # fmt: skip
        for block in tl.static_range(BLOCKS - 1, -1, -1):
            backward_block(
                input_qkv, qkv_weight, qkv_gamma, qkv_beta, attention_gamma, mlp_gamma, mlp_weight, kept_qkv, kept_read,
                kept_hidden, kept_mlp, grad_input_qkv, grad_input_rows, grad_qkv, grad_hidden, grad_mlp, grad_qkv_gamma,
                grad_qkv_beta, grad_attention_gamma, grad_attention_beta, grad_mlp_gamma, grad_mlp_beta, z, grad_z,
                grad_normed, grad_read, qkv, grad_qkv_normed, log_total, product, all_steps, step, program, sequences,
                block, N if block == 0 else R, N if block == BLOCKS - 1 else R, N, BLOCKS, R, D, E, HEADS, KEY, HEAD,
                LAYERS, EPSILON, SCALE, ROWS, ROW_TILE, OUT_TILE, IN_TILE, D_TILE, E_TILE, D_ROW_TILE, E_ROW_TILE,
                HEADS_TILE, KEY_TILE, HEAD_TILE, HEAD_ROW_TILE, PRECISION,
            )  # fmt: skip
        for first in range(0, ROWS * N, D_ROW_TILE):
            i = first + tl.arange(0, D_ROW_TILE)
            inside = (i < sequences * N)[:, None] & (d < D)[None, :]
            at = i[:, None] * D + d[None, :]
            grad = tl.load(carry + at, mask=inside, other=0.0) + tl.load(grad_z + at, mask=inside, other=0.0)
            if GATED:
                squashed = parts.tanh(tl.load(previous + step * (N * D) + at, mask=inside, other=0.0))
                grad += tl.load(grad_tanh_memory + at, mask=inside, other=0.0) * (1 - squashed * squashed)
            if STARTS:
                start = (tl.load(starts + step + i // N, mask=i < sequences * N, other=0) != 0)[:, None]
                to = tl.load(grad_initial_state + at, mask=inside, other=0.0)
                tl.store(grad_initial_state + at, to + tl.where(start, grad, 0.0), mask=inside)
                grad = tl.where(start, 0.0, grad)
            tl.store(carry + at, grad, mask=inside)
        tl.debug_barrier()
