"""
The parts of an RMC step as Triton functions: products, layer norms and attention, forward and backward.

Each works on the rows of one program, which lie in global memory, one after the other (in the caches of its processor, for
they were written a moment ago), and goes through them in tiles of fixed size: so any width fits the registers. No part waits
for what it wrote; who calls two in a row puts ``tl.debug_barrier()`` between them.

A row is number ``r`` of the ``COUNT`` rows that a part works on in sequence ``s`` of the program, ``i = s COUNT + r``; an
array can have more rows than that in a sequence (``X_COUNT``, ``OUT_COUNT`` ...), the others are left alone. Constants in
capitals are known when a kernel is compiled; those that end with ``TILE`` are powers of two.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    # exp of no positive number: it cannot overflow
    small = tl.exp(-2 * tl.abs(x))
    size = (1 - small) / (1 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def sigmoid(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)


@triton.jit
def place(i, COUNT: tl.constexpr, ARRAY_COUNT: tl.constexpr):
    """Where row ``i`` is in an array with ``ARRAY_COUNT`` rows for each sequence."""
    return (i // COUNT) * ARRAY_COUNT + i % COUNT


@triton.jit
def linear(
    x,
    weight,
    bias,
    plus,
    mask,
    out,
    sequences,
    COUNT: tl.constexpr,
    X_COUNT: tl.constexpr,
    PLUS_COUNT: tl.constexpr,
    OUT_COUNT: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STRIDE_IN: tl.constexpr,
    STRIDE_OUT: tl.constexpr,
    TANH: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    MASK: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    OUT_TILE: tl.constexpr,
    IN_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """
    ``out = relu(x W + bias) + plus``, zero where ``mask`` is not positive; each but the product if it is asked for.

    ``plus`` has ``PLUS_COUNT`` rows for each sequence (0: there is none); rows beyond them get nothing.
    """
    for first in range(0, ROWS * COUNT, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        there = i < sequences * COUNT
        x_rows = x + place(i, COUNT, X_COUNT)[:, None] * INPUTS
        for start in range(0, OUTPUTS, OUT_TILE):
            column = start + tl.arange(0, OUT_TILE)
            inside = there[:, None] & (column < OUTPUTS)[None, :]
            total = tl.zeros((ROW_TILE, OUT_TILE), x.dtype.element_ty)
            for depth in range(0, INPUTS, IN_TILE):
                k = depth + tl.arange(0, IN_TILE)
                left = tl.load(x_rows + k[None, :], mask=there[:, None] & (k < INPUTS)[None, :], other=0.0)
                if TANH:
                    left = tanh(left)
                weights = weight + k[:, None] * STRIDE_IN + column[None, :] * STRIDE_OUT
                right = tl.load(weights, mask=(k < INPUTS)[:, None] & (column < OUTPUTS)[None, :], other=0.0)
                total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
            if BIAS:
                total += tl.load(bias + column, mask=column < OUTPUTS, other=0.0)[None, :]
            if RELU:
                total = tl.maximum(total, 0.0)
            if PLUS_COUNT > 0:
                some = inside & (i % COUNT < PLUS_COUNT)[:, None]
                more = plus + place(i, COUNT, PLUS_COUNT)[:, None] * OUTPUTS + column[None, :]
                total += tl.load(more, mask=some, other=0.0)
            if MASK:
                seen = tl.load(mask + place(i, COUNT, COUNT)[:, None] * OUTPUTS + column[None, :], mask=inside, other=0.0)
                total = tl.where(seen > 0, total, 0.0)
            tl.store(out + place(i, COUNT, OUT_COUNT)[:, None] * OUTPUTS + column[None, :], total, mask=inside)


@triton.jit
def norm(
    x,
    gamma,
    beta,
    out,
    sequences,
    COUNT: tl.constexpr,
    OUT_COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Layer norm of the rows of ``x``, which has ``COUNT`` for each sequence."""
    column = tl.arange(0, WIDTH_TILE)
    real = column < WIDTH
    scale = tl.load(gamma + column, mask=real, other=0.0)[None, :]
    shift = tl.load(beta + column, mask=real, other=0.0)[None, :]
    for first in range(0, ROWS * COUNT, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        inside = (i < sequences * COUNT)[:, None] & real[None, :]
        row = tl.load(x + i[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        centred = tl.where(inside, row - (tl.sum(row, 1) / WIDTH)[:, None], 0.0)
        over = 1 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPSILON)
        value = centred * over[:, None] * scale + shift
        tl.store(out + place(i, COUNT, OUT_COUNT)[:, None] * WIDTH + column[None, :], value, mask=inside)


@triton.jit
def norm_back(
    grad,
    x,
    gamma,
    out,
    grad_gamma,
    grad_beta,
    sequences,
    COUNT: tl.constexpr,
    GRAD_COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """
    From the gradient of a layer norm's output to that of its input ``x``; ``x`` and ``out`` have ``COUNT`` rows.

    Those of gamma and beta are added to what this program has found so far.
    """
    column = tl.arange(0, WIDTH_TILE)
    real = column < WIDTH
    scale = tl.load(gamma + column, mask=real, other=0.0)[None, :]
    of_gamma = tl.load(grad_gamma + column, mask=real, other=0.0)
    of_beta = tl.load(grad_beta + column, mask=real, other=0.0)
    for first in range(0, ROWS * COUNT, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        inside = (i < sequences * COUNT)[:, None] & real[None, :]
        row = tl.load(x + i[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        up = tl.load(grad + place(i, COUNT, GRAD_COUNT)[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        centred = tl.where(inside, row - (tl.sum(row, 1) / WIDTH)[:, None], 0.0)
        over = 1 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPSILON)
        normed = centred * over[:, None]
        of_gamma += tl.sum(up * normed, 0)
        of_beta += tl.sum(up, 0)
        up *= scale
        mean = (tl.sum(up, 1) / WIDTH)[:, None]
        along = (tl.sum(up * normed, 1) / WIDTH)[:, None]
        value = over[:, None] * (up - mean - normed * along)
        tl.store(out + i[:, None] * WIDTH + column[None, :], value, mask=inside)
    tl.store(grad_gamma + column, of_gamma, mask=real)
    tl.store(grad_beta + column, of_beta, mask=real)


@triton.jit
def attend(
    qkv,
    z,
    out,
    sequences,
    COUNT: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    HEAD: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """
    ``out = z +`` what the first ``COUNT`` rows read from all ``KEYS`` rows of their sequence.

    All rows and heads of a tile at once, key after key: there are few, too few for tiles of products. The softmax is the
    running one of Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, https://arxiv.org/abs/1805.02867.
    """
    SIZE: tl.constexpr = 2 * KEY + HEAD
    h = tl.arange(0, HEADS_TILE)[None, :, None]
    k = tl.arange(0, KEY_TILE)[None, None, :]
    v = tl.arange(0, HEAD_TILE)[None, None, :]
    for first in range(0, ROWS * COUNT, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        there = (i < sequences * COUNT)[:, None, None] & (h < HEADS)
        own = place(i, COUNT, KEYS)[:, None, None]
        query = tl.load(qkv + (own * HEADS + h) * SIZE + k, mask=there & (k < KEY), other=0.0) * SCALE
        peak = tl.full((ROW_TILE, HEADS_TILE), float("-inf"), query.dtype)
        total = tl.zeros((ROW_TILE, HEADS_TILE), query.dtype)
        read = tl.zeros((ROW_TILE, HEADS_TILE, HEAD_TILE), query.dtype)
        for j in range(KEYS):
            other = (((i // COUNT) * KEYS + j)[:, None, None] * HEADS + h) * SIZE
            key = tl.load(qkv + other + KEY + k, mask=there & (k < KEY), other=0.0)
            value = tl.load(qkv + other + 2 * KEY + v, mask=there & (v < HEAD), other=0.0)
            score = tl.sum(query * key, 2)
            higher = tl.maximum(peak, score)
            before, now = tl.exp(peak - higher), tl.exp(score - higher)
            total = total * before + now
            read = read * before[:, :, None] + now[:, :, None] * value
            peak = higher
        place_read = h * HEAD + v
        inside = there & (v < HEAD)
        old = tl.load(z + own * (HEADS * HEAD) + place_read, mask=inside, other=0.0)
        tl.store(out + i[:, None, None] * (HEADS * HEAD) + place_read, old + read / total[:, :, None], mask=inside)


@triton.jit
def attend_back_queries(
    qkv,
    grad,
    grad_qkv,
    log_total,
    product,
    sequences,
    COUNT: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    HEAD: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """
    The gradient of the queries, from that of what was read.

    Keeps for :func:`attend_back_keys` the logarithm of the softmax's denominator and the product of what was read with its
    gradient, both one number for each row and head. Rows that did not ask get a gradient of 0.
    """
    SIZE: tl.constexpr = 2 * KEY + HEAD
    heads = tl.arange(0, HEADS_TILE)
    h = heads[None, :, None]
    k = tl.arange(0, KEY_TILE)[None, None, :]
    v = tl.arange(0, HEAD_TILE)[None, None, :]
    for first in range(0, ROWS * KEYS, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        sequence, r = i // KEYS, i % KEYS
        all_rows = (i < sequences * KEYS)[:, None, None] & (h < HEADS)
        there = all_rows & (r < COUNT)[:, None, None]
        own = (i[:, None, None] * HEADS + h) * SIZE
        query = tl.load(qkv + own + k, mask=there & (k < KEY), other=0.0) * SCALE
        asked = (sequence * COUNT + r)[:, None, None]
        up = tl.load(grad + asked * (HEADS * HEAD) + h * HEAD + v, mask=there & (v < HEAD), other=0.0)
        peak = tl.full((ROW_TILE, HEADS_TILE), float("-inf"), query.dtype)
        total = tl.zeros((ROW_TILE, HEADS_TILE), query.dtype)
        along = tl.zeros((ROW_TILE, HEADS_TILE), query.dtype)
        # sums over keys of probability times key, alone and times the product of value and gradient
        keys = tl.zeros((ROW_TILE, HEADS_TILE, KEY_TILE), query.dtype)
        pulled = tl.zeros((ROW_TILE, HEADS_TILE, KEY_TILE), query.dtype)
        for j in range(KEYS):
            other = ((sequence * KEYS + j)[:, None, None] * HEADS + h) * SIZE
            key = tl.load(qkv + other + KEY + k, mask=there & (k < KEY), other=0.0)
            value = tl.load(qkv + other + 2 * KEY + v, mask=there & (v < HEAD), other=0.0)
            score = tl.sum(query * key, 2)
            higher = tl.maximum(peak, score)
            before, now = tl.exp(peak - higher), tl.exp(score - higher)
            pull = now * tl.sum(up * value, 2)
            total = total * before + now
            along = along * before + pull
            keys = keys * before[:, :, None] + now[:, :, None] * key
            pulled = pulled * before[:, :, None] + pull[:, :, None] * key
            peak = higher
        along /= total
        of_query = (pulled - along[:, :, None] * keys) / total[:, :, None] * SCALE
        tl.store(grad_qkv + own + k, of_query, mask=all_rows & (k < KEY))
        kept = (sequence * COUNT + r)[:, None] * HEADS + heads[None, :]
        inside = ((i < sequences * KEYS) & (r < COUNT))[:, None] & (heads < HEADS)[None, :]
        tl.store(log_total + kept, peak + tl.log(total), mask=inside)
        tl.store(product + kept, along, mask=inside)


@triton.jit
def attend_back_keys(
    qkv,
    grad,
    grad_qkv,
    log_total,
    product,
    sequences,
    COUNT: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    HEAD: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """The gradients of the keys and values, after :func:`attend_back_queries`."""
    SIZE: tl.constexpr = 2 * KEY + HEAD
    heads = tl.arange(0, HEADS_TILE)
    h = heads[None, :, None]
    k = tl.arange(0, KEY_TILE)[None, None, :]
    v = tl.arange(0, HEAD_TILE)[None, None, :]
    for first in range(0, ROWS * KEYS, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        sequence = i // KEYS
        rows = i < sequences * KEYS
        there = rows[:, None, None] & (h < HEADS)
        flat = rows[:, None] & (heads < HEADS)[None, :]
        own = (i[:, None, None] * HEADS + h) * SIZE
        key = tl.load(qkv + own + KEY + k, mask=there & (k < KEY), other=0.0)
        value = tl.load(qkv + own + 2 * KEY + v, mask=there & (v < HEAD), other=0.0)
        of_key, of_value = tl.zeros_like(key), tl.zeros_like(value)
        for j in range(COUNT):
            asked = sequence * COUNT + j
            other = ((sequence * KEYS + j)[:, None, None] * HEADS + h) * SIZE
            query = tl.load(qkv + other + k, mask=there & (k < KEY), other=0.0) * SCALE
            up = tl.load(grad + asked[:, None, None] * (HEADS * HEAD) + h * HEAD + v, mask=there & (v < HEAD), other=0.0)
            kept = asked[:, None] * HEADS + heads[None, :]
            probability = tl.exp(tl.sum(query * key, 2) - tl.load(log_total + kept, mask=flat, other=0.0))
            along = tl.load(product + kept, mask=flat, other=0.0)
            of_value += probability[:, :, None] * up
            of_key += (probability * (tl.sum(up * value, 2) - along))[:, :, None] * query
        tl.store(grad_qkv + own + KEY + k, of_key, mask=there & (k < KEY))
        tl.store(grad_qkv + own + 2 * KEY + v, of_value, mask=there & (v < HEAD))
