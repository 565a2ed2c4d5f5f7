// Layer norm and attention, with their gradients, for one row or one batch entry. RMC and RIMs share them.
//
// Layer norm: Ba, Kiros and Hinton, "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450, equation 4.

#pragma once

#include <cmath>

#include "vector.h"

namespace rmc_rl {
namespace {

// y = normed * gamma + beta
template <class T> inline void affine(size_t width, const T* normed, const T* gamma, const T* beta, T* y) {
  for_vectors<T>(width, [&](size_t i, auto get, auto put) { put(y + i, get(normed + i) * get(gamma + i) + get(beta + i)); });
}

// normed = (x + residual - mean) / deviation and y = normed * gamma + beta. y may be x; `residual` may be null. Returns
// 1 / deviation
template <class T>
inline T layer_norm(size_t width, const T* x, const T* residual, T epsilon, const T* gamma, const T* beta, T* normed, T* y) {
  Vector<T> sums[4] = {}, squares[4] = {};
  if (residual) {
    for_vectors_in_four<T>(width, [&](size_t i, int k, auto get, auto put) {
      const Vector<T> value = get(x + i) + get(residual + i);
      put(y + i, value);
      sums[k] += value;
    });
    x = y;
  } else {
    for_vectors_in_four<T>(width, [&](size_t i, int k, auto get, auto) { sums[k] += get(x + i); });
  }
  const T mean = sum_of_four<T>(sums) / T(width);
  for_vectors_in_four<T>(width, [&](size_t i, int k, auto get, auto put) {
    put(normed + i, get(x + i) - mean);
    const Vector<T> value = get(normed + i);  // read back: lanes beyond the width hold 0, not -mean
    squares[k] += value * value;
  });
  const T scale = T(1) / std::sqrt(sum_of_four<T>(squares) / T(width) + epsilon);
  for_vectors<T>(width, [&](size_t i, auto get, auto put) {
    const Vector<T> value = get(normed + i) * scale;
    put(normed + i, value);
    put(y + i, value * get(gamma + i) + get(beta + i));
  });
  return scale;
}

// dx from dy; dx may be dy. scale: 1 / deviation. Adds to dgamma and dbeta
template <class T>
inline void layer_norm_backward(size_t width, const T* dy, const T* normed, const T* gamma, T scale, T* dx, T* dgamma,
                                T* dbeta) {
  Vector<T> sums[4] = {}, products[4] = {};
  for_vectors_in_four<T>(width, [&](size_t i, int k, auto get, auto put) {
    const Vector<T> d = get(dy + i), n = get(normed + i);
    put(dgamma + i, get(dgamma + i) + d * n);
    put(dbeta + i, get(dbeta + i) + d);
    const Vector<T> scaled = d * get(gamma + i);
    sums[k] += scaled;
    products[k] += scaled * n;
  });
  const T mean = sum_of_four<T>(sums) / T(width), slope = sum_of_four<T>(products) / T(width);
  for_vectors<T>(width, [&](size_t i, auto get, auto put) {
    put(dx + i, scale * (get(dy + i) * get(gamma + i) - mean - get(normed + i) * slope));
  });
}

// Softmax of each column of an (n x columns) matrix with row stride `stride`, in place
template <class T> inline void softmax_columns(size_t n, size_t columns, size_t stride, T* scores) {
  for_vectors<T>(columns, [&](size_t i, auto get, auto put) {
    T* column = scores + i;
    Vector<T> largest = get(column), total = {};
    for (size_t j = 1; j < n; ++j) {
      const Vector<T> score = get(column + j * stride);
      largest = score > largest ? score : largest;
    }
    for (size_t j = 0; j < n; ++j) {
      const Vector<T> value = exp<T>(get(column + j * stride) - largest);
      put(column + j * stride, value);
      total += value;
    }
    const Vector<T> factor = T(1) / total;
    for (size_t j = 0; j < n; ++j) put(column + j * stride, get(column + j * stride) * factor);
  });
}

// The gradient of the scores, times `scale`, from that of the weights, in place
template <class T>
inline void softmax_columns_backward(size_t n, size_t columns, size_t stride, T scale, const T* weights, T* gradient) {
  const size_t end = n * stride;
  for_vectors<T>(columns, [&](size_t i, auto get, auto put) {
    Vector<T> mean = {};
    for (size_t j = i; j < i + end; j += stride) mean += get(weights + j) * get(gradient + j);
    for (size_t j = i; j < i + end; j += stride)
      put(gradient + j, scale * get(weights + j) * (get(gradient + j) - mean));
  });
}

// sum = sum_j weights[j * stride] row(j), or the same added to sum, for `count` rows of `size` numbers. row: j -> address
template <class T, class Row>
inline void weighted_sum(size_t size, size_t count, const T* weights, size_t stride, Row row, T* sum, bool add = false) {
  for_vectors<T>(size, [&](size_t v, auto get, auto put) {
    Vector<T> total = {};
    if (add) total = get(sum + v);
    for (size_t j = 0; j < count; ++j) total += weights[j * stride] * get(row(j) + v);
    put(sum + v, total);
  });
}

// Sizes of multi-head attention: heads, key and value sizes per head, rows with a query, all rows. A row of queries, keys and
// values holds for each head `key` numbers of the query, `key` of the key and `value` of the value
struct Heads {
  size_t count, key, value, queries, rows;

  size_t per_head() const { return 2 * key + value; }
  size_t columns() const { return count * queries; }
};

// What query i reads with head k. weights: (rows, heads, queries)
template <class T, size_t Size = 0>
inline void read_values(const Heads& h, const T* const* rows, const T* weights, size_t k, size_t i, T* read) {
  const size_t key = Size ? Size : h.key, value = Size ? Size : h.value;
  const size_t offset = k * h.per_head() + 2 * key;
  weighted_sum<T>(value, h.rows, weights + k * h.queries + i, h.columns(), [&](size_t j) { return rows[j] + offset; }, read);
}

// Attention of one batch entry: the first rows have queries. rows: addresses of (H (2K + V)) numbers. weights: written as
// (rows, heads, queries), so that one vector holds the same row's weight for many queries. read: (queries, heads, V).
// Size: the size of keys and values as a constant; 0: unknown to the compiler
template <class T, size_t Size> void attend(const Heads& h, const T* const* rows, T* weights, T* read) {
  const size_t key = Size ? Size : h.key, value = Size ? Size : h.value, columns = h.columns();
  const T scale = T(1) / std::sqrt(T(key));
  for (size_t k = 0; k < h.count; ++k)
    for (size_t i = 0; i < h.queries; ++i) {
      const T* query = rows[i] + k * h.per_head();
      for (size_t j = 0; j < h.rows; ++j)
        weights[j * columns + k * h.queries + i] = scale * dot<T>(key, query, rows[j] + k * h.per_head() + key);
    }
  softmax_columns<T>(h.rows, columns, columns, weights);
  for (size_t k = 0; k < h.count; ++k)
    for (size_t i = 0; i < h.queries; ++i)
      read_values<T, Size>(h, rows, weights, k, i, read + (i * h.count + k) * value);
}

// Writes the gradients of the rows of queries, keys and values. dscores: work buffer, as large as weights
template <class T, size_t Size>
void attend_backward(const Heads& h, const T* const* rows, const T* weights, const T* dread, T* dscores, T* const* drows) {
  const size_t key = Size ? Size : h.key, value = Size ? Size : h.value, columns = h.columns();
  const T scale = T(1) / std::sqrt(T(key));
  for (size_t k = 0; k < h.count; ++k)
    for (size_t i = 0; i < h.queries; ++i) {
      const T* d = dread + (i * h.count + k) * value;
      for (size_t j = 0; j < h.rows; ++j)
        dscores[j * columns + k * h.queries + i] = dot<T>(value, d, rows[j] + k * h.per_head() + 2 * key);
    }
  softmax_columns_backward<T>(h.rows, columns, columns, scale, weights, dscores);
  for (size_t k = 0; k < h.count; ++k) {
    const size_t offset = k * h.per_head();
    for (size_t i = 0; i < h.rows; ++i) {
      T* d = drows[i] + offset;
      const T *dscore = dscores + k * h.queries, *weight = weights + i * columns + k * h.queries;
      weighted_sum<T>(
          key, i < h.queries ? h.rows : 0, dscore + i, columns, [&](size_t j) { return rows[j] + offset + key; }, d);
      weighted_sum<T>(key, h.queries, dscore + i * columns, 1, [&](size_t j) { return rows[j] + offset; }, d + key);
      weighted_sum<T>(value, h.queries, weight, 1, [&](size_t j) { return dread + (j * h.count + k) * value; }, d + 2 * key);
    }
  }
}

// Calls f with the size of keys and values as a compile-time constant if it is a common one, with 0 otherwise
template <class F> void with_size(const Heads& h, F f) {
  if (h.key != h.value) return f(std::integral_constant<size_t, 0>{});
  switch (h.key) {
    case 8: return f(std::integral_constant<size_t, 8>{});
    case 16: return f(std::integral_constant<size_t, 16>{});
    case 32: return f(std::integral_constant<size_t, 32>{});
    case 64: return f(std::integral_constant<size_t, 64>{});
    default: return f(std::integral_constant<size_t, 0>{});
  }
}

}  // namespace
}  // namespace rmc_rl
