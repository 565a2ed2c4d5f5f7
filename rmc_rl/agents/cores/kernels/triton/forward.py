"""
The Triton kernel of the RMC, forward: all steps in one launch.

A program computes all steps of ``ROWS`` sequences of the batch and never waits for another program, as the kernels of
TorchRL's LSTM and GRU do (pytorch/rl, pull requests 3738 and 3752). ``rmc.py`` launches it.

Shapes: those of ``rmc.py`` of the cores. ``R = N + n`` rows of a block, ``E = H (2 K + V)`` queries, keys and values of a row,
``Q`` rows that a block writes: ``N`` in the last block, ``R`` in the others. Arrays without ``T`` are overwritten at each
step.
"""

import triton
import triton.language as tl

from rmc_rl.agents.cores.kernels.triton import parts


@triton.jit
def forward_block(
    z,
    qkv,
    normed,
    qkv_weight,
    qkv_bias,
    qkv_gamma,
    qkv_beta,
    attention_gamma,
    attention_beta,
    mlp_gamma,
    mlp_beta,
    mlp_weight,
    mlp_bias,
    kept_qkv,
    kept_read,
    kept_hidden,
    kept_mlp,
    kept_steps,
    kept,
    sequences,
    block: tl.constexpr,
    PROJECTED: tl.constexpr,
    Q: tl.constexpr,
    N: tl.constexpr,
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
    """One block of one step: reads and writes ``z``. It projects ``PROJECTED`` rows and writes ``Q`` rows."""
    raw = kept_qkv + (kept_steps * (0 if block == 0 else N + (block - 1) * R) + kept * PROJECTED) * E
    read = kept_read + (kept_steps * (block * R) + kept * Q) * D
    out = kept_mlp + (kept_steps * (block * R) + kept * Q) * D
    parts.linear(
        z, qkv_weight + block * E * D, qkv_bias + block * E, z, z, raw, sequences,
        PROJECTED, R, 0, PROJECTED, D, E, 1, D, False, True, False, False, ROWS, ROW_TILE, OUT_TILE, IN_TILE, PRECISION,
    )  # fmt: skip
    tl.debug_barrier()
    parts.norm(
        raw, qkv_gamma + block * E, qkv_beta + block * E, qkv, sequences,
        PROJECTED, R, E, E_TILE, ROWS, E_ROW_TILE, EPSILON,
    )  # fmt: skip
    tl.debug_barrier()
    parts.attend(
        qkv, z, read, sequences,
        Q, R, HEADS, KEY, HEAD, HEADS_TILE, KEY_TILE, HEAD_TILE, ROWS, HEAD_ROW_TILE, SCALE,
    )  # fmt: skip
    tl.debug_barrier()
    parts.norm(
        read, attention_gamma + block * D, attention_beta + block * D, normed, sequences,
        Q, Q, D, D_TILE, ROWS, D_ROW_TILE, EPSILON,
    )  # fmt: skip
    tl.debug_barrier()
    x = normed
    for layer in tl.static_range(LAYERS - 1):
        hidden = kept_hidden + (kept_steps * (block * R * (LAYERS - 1) + layer * Q) + kept * Q) * D
        parts.linear(
            x, mlp_weight + layer * D * D, mlp_bias + layer * D, z, z, hidden, sequences,
            Q, Q, 0, Q, D, D, 1, D, False, True, True, False, ROWS, ROW_TILE, OUT_TILE, IN_TILE, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
        x = hidden
    parts.linear(
        x, mlp_weight + (LAYERS - 1) * D * D, mlp_bias + (LAYERS - 1) * D, normed, z, out, sequences,
        Q, Q, Q, Q, D, D, 1, D, False, True, False, False, ROWS, ROW_TILE, OUT_TILE, IN_TILE, PRECISION,
    )  # fmt: skip
    tl.debug_barrier()
    parts.norm(
        out, mlp_gamma + block * D, mlp_beta + block * D, z, sequences,
        Q, R, D, D_TILE, ROWS, D_ROW_TILE, EPSILON,
    )  # fmt: skip
    tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "B"])
def forward(
    input_qkv,  # (T, B, n, E)
    input_rows,  # (T, B, n, D)
    input_gates,  # (T, B, 2D)
    initial_state,  # (B, N, D)
    starts,  # (T, B), whole numbers
    qkv_weight,  # (blocks, E, D)
    qkv_bias,  # (blocks, E)
    qkv_gamma,
    qkv_beta,
    attention_gamma,  # (blocks, D)
    attention_beta,
    mlp_gamma,
    mlp_beta,
    mlp_weight,  # (layers, D, D)
    mlp_bias,  # (layers, D)
    gate_weight,  # (2D, D)
    memories,  # (T, B, N, D)
    kept_qkv,  # of each block (T, B, rows, E), before the norm; rows: N in the first block, then R
    kept_read,  # of each block (T, B, Q, D), before the norm after attention
    kept_hidden,  # of each block, of each layer but the last (T, B, Q, D)
    kept_mlp,  # of each block (T, B, Q, D), before the norm after the MLP
    kept_gates,  # (T, B, N, 2D), after their sigmoids
    memory,  # (B, N, D): the state, before the first step
    z,  # (B, R, D)
    qkv,  # (B, R, E)
    normed,  # (B, R, D)
    T,
    B,
    GATED: tl.constexpr,
    STARTS: tl.constexpr,
    KEEP: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    LAYERS: tl.constexpr,
    INPUT_BIAS: tl.constexpr,
    FORGET_BIAS: tl.constexpr,
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
    """Without KEEP, the arrays ``kept_*`` hold one step."""
    batch = B.to(tl.int64)
    begin = tl.program_id(0).to(tl.int64) * ROWS
    sequences = tl.minimum(batch - begin, ROWS)
    kept_steps = batch * (T if KEEP else 1)  # rows of sequences in a kept array
    memory += begin * (N * D)
    initial_state += begin * (N * D)
    z += begin * (R * D)
    qkv += begin * (R * E)
    normed += begin * (R * D)
    d = tl.arange(0, D_TILE)
    e = tl.arange(0, E_TILE)
    n: tl.constexpr = R - N

    for t in tl.range(0, T, num_stages=1):
        step = batch * t + begin
        kept = step if KEEP else begin
        for first in range(0, ROWS * N, D_ROW_TILE):
            i = first + tl.arange(0, D_ROW_TILE)
            inside = (i < sequences * N)[:, None] & (d < D)[None, :]
            at = i[:, None] * D + d[None, :]
            value = tl.load(memory + at, mask=inside, other=0.0)
            if STARTS:
                start = tl.load(starts + step + i // N, mask=i < sequences * N, other=0)
                value = tl.where((start != 0)[:, None], tl.load(initial_state + at, mask=inside, other=0.0), value)
                tl.store(memory + at, value, mask=inside)
            tl.store(z + parts.position(i, N, R)[:, None] * D + d[None, :], value, mask=inside)
        # queries, keys and values of the input rows in the first block were computed for all steps at once
        for first in range(0, ROWS * n, E_ROW_TILE):
            i = first + tl.arange(0, E_ROW_TILE)
            to = (parts.position(i, n, R) + N)[:, None]
            inside = (i < sequences * n)[:, None] & (e < E)[None, :]
            value = tl.load(input_qkv + (step * n + i)[:, None] * E + e[None, :], mask=inside, other=0.0)
            tl.store(qkv + to * E + e[None, :], value, mask=inside)
            if BLOCKS > 1:
                inside = (i < sequences * n)[:, None] & (d < D)[None, :]
                value = tl.load(input_rows + (step * n + i)[:, None] * D + d[None, :], mask=inside, other=0.0)
                tl.store(z + to * D + d[None, :], value, mask=inside)
        tl.debug_barrier()
        for block in tl.static_range(BLOCKS):
            forward_block(
                z, qkv, normed, qkv_weight, qkv_bias, qkv_gamma, qkv_beta, attention_gamma, attention_beta, mlp_gamma,
                mlp_beta, mlp_weight, mlp_bias, kept_qkv, kept_read, kept_hidden, kept_mlp, kept_steps, kept, sequences,
                block, N if block == 0 else R, N if block == BLOCKS - 1 else R, N, R, D, E, HEADS, KEY, HEAD, LAYERS,
                EPSILON, SCALE, ROWS, ROW_TILE, OUT_TILE, IN_TILE, D_TILE, E_TILE, D_ROW_TILE, E_ROW_TILE, HEADS_TILE,
                KEY_TILE, HEAD_TILE, HEAD_ROW_TILE, PRECISION,
            )  # fmt: skip
        gates = kept_gates + kept * (N * 2 * D)
        if GATED:
            parts.linear(
                memory, gate_weight, z, z, z, gates, sequences,
                N, N, 0, N, D, 2 * D, 1, D, True, False, False, False, ROWS, ROW_TILE, OUT_TILE, IN_TILE, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
        for first in range(0, ROWS * N, D_ROW_TILE):
            i = first + tl.arange(0, D_ROW_TILE)
            inside = (i < sequences * N)[:, None] & (d < D)[None, :]
            at = i[:, None] * D + d[None, :]
            value = tl.load(z + parts.position(i, N, R)[:, None] * D + d[None, :], mask=inside, other=0.0)
            if GATED:
                gate = gates + i[:, None] * (2 * D) + d[None, :]
                input_gate_position = input_gates + (step + i // N)[:, None] * (2 * D) + d[None, :]
                i_gate = tl.load(gate, mask=inside, other=0.0) + tl.load(input_gate_position, mask=inside, other=0.0)
                f_gate = tl.load(gate + D, mask=inside, other=0.0) + tl.load(input_gate_position + D, mask=inside, other=0.0)
                i_gate, f_gate = parts.sigmoid(i_gate + INPUT_BIAS), parts.sigmoid(f_gate + FORGET_BIAS)
                tl.store(gate, i_gate, mask=inside)
                tl.store(gate + D, f_gate, mask=inside)
                value = i_gate * parts.tanh(value) + f_gate * tl.load(memory + at, mask=inside, other=0.0)
            tl.store(memory + at, value, mask=inside)
            tl.store(memories + step * (N * D) + at, value, mask=inside)
        tl.debug_barrier()
