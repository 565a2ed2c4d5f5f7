"""
The operations of an RMC step as Triton functions: products, layer norms and attention, forward and backward.

Each function processes the rows of one program in tiles of fixed size, so any width fits the registers. The rows are in global
memory, but they were written shortly before and are still in the cache. A function does not wait until its own writes are
visible: the caller puts ``tl.debug_barrier()`` between two functions.

Rows are numbered ``i = s COUNT + r``: row ``r`` of the ``COUNT`` rows that a function processes in sequence ``s`` of the
program. An array may have more rows per sequence (``X_COUNT``, ``OUT_COUNT`` ...); the function does not touch the others.
Constants in capitals are known when a kernel is compiled. Those that end with ``TILE`` are powers of two.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    # the argument of exp is never positive, so it cannot overflow
    small = tl.exp(-2 * tl.abs(x))
    size = (1 - small) / (1 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def sigmoid(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)


@triton.jit
def position(i, COUNT: tl.constexpr, ARRAY_COUNT: tl.constexpr):
    """The position of row ``i`` in an array with ``ARRAY_COUNT`` rows per sequence."""
    return (i // COUNT) * ARRAY_COUNT + i % COUNT


@triton.jit
def linear(
    x,
    weight,
    bias,
    residual,
    mask,
    out,
    sequences,
    COUNT: tl.constexpr,
    X_COUNT: tl.constexpr,
    RESIDUAL_COUNT: tl.constexpr,
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
    ``out = relu(x W + bias) + residual``, and zero where ``mask`` is not positive. Each part except the product is optional.

    ``residual`` has ``RESIDUAL_COUNT`` rows per sequence (0: there is none) and is added to these rows only.
    """
    for first in range(0, ROWS * COUNT, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        valid = i < sequences * COUNT
        x_rows = x + position(i, COUNT, X_COUNT)[:, None] * INPUTS
        for start in range(0, OUTPUTS, OUT_TILE):
            column = start + tl.arange(0, OUT_TILE)
            inside = valid[:, None] & (column < OUTPUTS)[None, :]
            total = tl.zeros((ROW_TILE, OUT_TILE), x.dtype.element_ty)
            for depth in range(0, INPUTS, IN_TILE):
                k = depth + tl.arange(0, IN_TILE)
                left = tl.load(x_rows + k[None, :], mask=valid[:, None] & (k < INPUTS)[None, :], other=0.0)
                if TANH:
                    left = tanh(left)
                weights = weight + k[:, None] * STRIDE_IN + column[None, :] * STRIDE_OUT
                right = tl.load(weights, mask=(k < INPUTS)[:, None] & (column < OUTPUTS)[None, :], other=0.0)
                total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
            if BIAS:
                total += tl.load(bias + column, mask=column < OUTPUTS, other=0.0)[None, :]
            if RELU:
                total = tl.maximum(total, 0.0)
            if RESIDUAL_COUNT > 0:
                has_residual = inside & (i % COUNT < RESIDUAL_COUNT)[:, None]
                residual_at = residual + position(i, COUNT, RESIDUAL_COUNT)[:, None] * OUTPUTS + column[None, :]
                total += tl.load(residual_at, mask=has_residual, other=0.0)
            if MASK:
                mask_value = tl.load(
                    mask + position(i, COUNT, COUNT)[:, None] * OUTPUTS + column[None, :], mask=inside, other=0.0
                )
                total = tl.where(mask_value > 0, total, 0.0)
            tl.store(out + position(i, COUNT, OUT_COUNT)[:, None] * OUTPUTS + column[None, :], total, mask=inside)


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
    """Layer norm of the rows of ``x``, which has ``COUNT`` rows per sequence."""
    column = tl.arange(0, WIDTH_TILE)
    real = column < WIDTH
    scale = tl.load(gamma + column, mask=real, other=0.0)[None, :]
    shift = tl.load(beta + column, mask=real, other=0.0)[None, :]
    for first in range(0, ROWS * COUNT, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        inside = (i < sequences * COUNT)[:, None] & real[None, :]
        row = tl.load(x + i[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        centred = tl.where(inside, row - (tl.sum(row, 1) / WIDTH)[:, None], 0.0)
        inverse_deviation = 1 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPSILON)
        value = centred * inverse_deviation[:, None] * scale + shift
        tl.store(out + position(i, COUNT, OUT_COUNT)[:, None] * WIDTH + column[None, :], value, mask=inside)


@triton.jit
def norm_backward(
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
    From the gradient of a layer norm's output to that of its input ``x``. ``x`` and ``out`` have ``COUNT`` rows per sequence.

    The gradients of gamma and beta are added to the sums of this program.
    """
    column = tl.arange(0, WIDTH_TILE)
    real = column < WIDTH
    scale = tl.load(gamma + column, mask=real, other=0.0)[None, :]
    sum_gamma = tl.load(grad_gamma + column, mask=real, other=0.0)
    sum_beta = tl.load(grad_beta + column, mask=real, other=0.0)
    for first in range(0, ROWS * COUNT, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        inside = (i < sequences * COUNT)[:, None] & real[None, :]
        row = tl.load(x + i[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        grad_out = tl.load(grad + position(i, COUNT, GRAD_COUNT)[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        centred = tl.where(inside, row - (tl.sum(row, 1) / WIDTH)[:, None], 0.0)
        inverse_deviation = 1 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPSILON)
        normed = centred * inverse_deviation[:, None]
        sum_gamma += tl.sum(grad_out * normed, 0)
        sum_beta += tl.sum(grad_out, 0)
        grad_out *= scale
        mean = (tl.sum(grad_out, 1) / WIDTH)[:, None]
        weighted_product = (tl.sum(grad_out * normed, 1) / WIDTH)[:, None]
        value = inverse_deviation[:, None] * (grad_out - mean - normed * weighted_product)
        tl.store(out + i[:, None] * WIDTH + column[None, :], value, mask=inside)
    tl.store(grad_gamma + column, sum_gamma, mask=real)
    tl.store(grad_beta + column, sum_beta, mask=real)


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
    ``out = z +`` the attention of the first ``COUNT`` rows over all ``KEYS`` rows of their sequence.

    A loop over keys processes all rows and heads of a tile at once, because there are too few keys for matrix products. The
    softmax is computed online: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018,
    https://arxiv.org/abs/1805.02867.
    """
    SIZE: tl.constexpr = 2 * KEY + HEAD
    h = tl.arange(0, HEADS_TILE)[None, :, None]
    k = tl.arange(0, KEY_TILE)[None, None, :]
    v = tl.arange(0, HEAD_TILE)[None, None, :]
    for first in range(0, ROWS * COUNT, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        valid = (i < sequences * COUNT)[:, None, None] & (h < HEADS)
        row_position = position(i, COUNT, KEYS)[:, None, None]
        query = tl.load(qkv + (row_position * HEADS + h) * SIZE + k, mask=valid & (k < KEY), other=0.0) * SCALE
        peak = tl.full((ROW_TILE, HEADS_TILE), float("-inf"), query.dtype)
        total = tl.zeros((ROW_TILE, HEADS_TILE), query.dtype)
        read = tl.zeros((ROW_TILE, HEADS_TILE, HEAD_TILE), query.dtype)
        for j in range(KEYS):
            key_position = (((i // COUNT) * KEYS + j)[:, None, None] * HEADS + h) * SIZE
            key = tl.load(qkv + key_position + KEY + k, mask=valid & (k < KEY), other=0.0)
            value = tl.load(qkv + key_position + 2 * KEY + v, mask=valid & (v < HEAD), other=0.0)
            score = tl.sum(query * key, 2)
            new_peak = tl.maximum(peak, score)
            old_factor, weight = tl.exp(peak - new_peak), tl.exp(score - new_peak)
            total = total * old_factor + weight
            read = read * old_factor[:, :, None] + weight[:, :, None] * value
            peak = new_peak
        read_offset = h * HEAD + v
        inside = valid & (v < HEAD)
        old = tl.load(z + row_position * (HEADS * HEAD) + read_offset, mask=inside, other=0.0)
        tl.store(out + i[:, None, None] * (HEADS * HEAD) + read_offset, old + read / total[:, :, None], mask=inside)


@triton.jit
def attend_backward_queries(
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
    The gradient of the queries, from that of the values read.

    Writes for :func:`attend_backward_keys`, for each row and head, the logarithm of the softmax's denominator and the product
    of the values read with their gradient. Rows without a query get a gradient of 0.
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
        valid = all_rows & (r < COUNT)[:, None, None]
        row_position = (i[:, None, None] * HEADS + h) * SIZE
        query = tl.load(qkv + row_position + k, mask=valid & (k < KEY), other=0.0) * SCALE
        query_row = (sequence * COUNT + r)[:, None, None]
        grad_out = tl.load(grad + query_row * (HEADS * HEAD) + h * HEAD + v, mask=valid & (v < HEAD), other=0.0)
        peak = tl.full((ROW_TILE, HEADS_TILE), float("-inf"), query.dtype)
        total = tl.zeros((ROW_TILE, HEADS_TILE), query.dtype)
        weighted_product = tl.zeros((ROW_TILE, HEADS_TILE), query.dtype)
        # sums over keys: probability times key, and probability times key times the product of value and gradient
        keys = tl.zeros((ROW_TILE, HEADS_TILE, KEY_TILE), query.dtype)
        product_keys = tl.zeros((ROW_TILE, HEADS_TILE, KEY_TILE), query.dtype)
        for j in range(KEYS):
            key_position = ((sequence * KEYS + j)[:, None, None] * HEADS + h) * SIZE
            key = tl.load(qkv + key_position + KEY + k, mask=valid & (k < KEY), other=0.0)
            value = tl.load(qkv + key_position + 2 * KEY + v, mask=valid & (v < HEAD), other=0.0)
            score = tl.sum(query * key, 2)
            new_peak = tl.maximum(peak, score)
            old_factor, weight = tl.exp(peak - new_peak), tl.exp(score - new_peak)
            term = weight * tl.sum(grad_out * value, 2)
            total = total * old_factor + weight
            weighted_product = weighted_product * old_factor + term
            keys = keys * old_factor[:, :, None] + weight[:, :, None] * key
            product_keys = product_keys * old_factor[:, :, None] + term[:, :, None] * key
            peak = new_peak
        weighted_product /= total
        grad_query = (product_keys - weighted_product[:, :, None] * keys) / total[:, :, None] * SCALE
        tl.store(grad_qkv + row_position + k, grad_query, mask=all_rows & (k < KEY))
        stat_position = (sequence * COUNT + r)[:, None] * HEADS + heads[None, :]
        inside = ((i < sequences * KEYS) & (r < COUNT))[:, None] & (heads < HEADS)[None, :]
        tl.store(log_total + stat_position, peak + tl.log(total), mask=inside)
        tl.store(product + stat_position, weighted_product, mask=inside)


@triton.jit
def attend_backward_keys(
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
    """The gradients of the keys and values, after :func:`attend_backward_queries`."""
    SIZE: tl.constexpr = 2 * KEY + HEAD
    heads = tl.arange(0, HEADS_TILE)
    h = heads[None, :, None]
    k = tl.arange(0, KEY_TILE)[None, None, :]
    v = tl.arange(0, HEAD_TILE)[None, None, :]
    for first in range(0, ROWS * KEYS, ROW_TILE):
        i = first + tl.arange(0, ROW_TILE)
        sequence = i // KEYS
        rows = i < sequences * KEYS
        valid = rows[:, None, None] & (h < HEADS)
        flat = rows[:, None] & (heads < HEADS)[None, :]
        row_position = (i[:, None, None] * HEADS + h) * SIZE
        key = tl.load(qkv + row_position + KEY + k, mask=valid & (k < KEY), other=0.0)
        value = tl.load(qkv + row_position + 2 * KEY + v, mask=valid & (v < HEAD), other=0.0)
        grad_key, grad_value = tl.zeros_like(key), tl.zeros_like(value)
        for j in range(COUNT):
            query_row = sequence * COUNT + j
            key_position = ((sequence * KEYS + j)[:, None, None] * HEADS + h) * SIZE
            query = tl.load(qkv + key_position + k, mask=valid & (k < KEY), other=0.0) * SCALE
            grad_out = tl.load(
                grad + query_row[:, None, None] * (HEADS * HEAD) + h * HEAD + v, mask=valid & (v < HEAD), other=0.0
            )
            stat_position = query_row[:, None] * HEADS + heads[None, :]
            probability = tl.exp(tl.sum(query * key, 2) - tl.load(log_total + stat_position, mask=flat, other=0.0))
            weighted_product = tl.load(product + stat_position, mask=flat, other=0.0)
            grad_value += probability[:, :, None] * grad_out
            grad_key += (probability * (tl.sum(grad_out * value, 2) - weighted_product))[:, :, None] * query
        tl.store(grad_qkv + row_position + KEY + k, grad_key, mask=valid & (k < KEY))
        tl.store(grad_qkv + row_position + 2 * KEY + v, grad_value, mask=valid & (v < HEAD))
