// What a row or a batch entry of attention needs beside products: layer norm and multi-head attention, with their gradients.
//
// Layer norm: Ba, Kiros and Hinton, "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450, equation 4.
// A row of queries, keys and values: per head K numbers of the query, K of the key, V of the value.

#pragma once

#include <cmath>

#include "vector.h"

namespace {

// y = normed * gamma + beta
template <class T> inline void affine(size_t width, const T* normed, const T* gamma, const T* beta, T* y) {
  each<T>(width, [&](size_t i, auto get, auto put) { put(y + i, get(normed + i) * get(gamma + i) + get(beta + i)); });
}

// normed = (x + more - mean) / deviation and y = normed * gamma + beta, y in the place of x possible; `more` may be null;
// returns 1 / deviation
template <class T>
inline T normalise(size_t width, const T* x, const T* more, T epsilon, const T* gamma, const T* beta, T* normed, T* y) {
  Vector<T> sums[4] = {}, squares[4] = {};
  if (more) {
    each_in_four<T>(width, [&](size_t i, int k, auto get, auto put) {
      const Vector<T> value = get(x + i) + get(more + i);
      put(y + i, value);
      sums[k] += value;
    });
    x = y;
  } else {
    each_in_four<T>(width, [&](size_t i, int k, auto get, auto) { sums[k] += get(x + i); });
  }
  const T mean = sum_of_four<T>(sums) / T(width);
  each_in_four<T>(width, [&](size_t i, int k, auto get, auto put) {
    put(normed + i, get(x + i) - mean);
    const Vector<T> value = get(normed + i);  // 0, not -mean, in lanes behind the end
    squares[k] += value * value;
  });
  const T scale = T(1) / std::sqrt(sum_of_four<T>(squares) / T(width) + epsilon);
  each<T>(width, [&](size_t i, auto get, auto put) {
    const Vector<T> value = get(normed + i) * scale;
    put(normed + i, value);
    put(y + i, value * get(gamma + i) + get(beta + i));
  });
  return scale;
}

// The gradient of x from that of y, in place possible; adds to those of gamma and beta
template <class T>
inline void normalise_back(size_t width, const T* dy, const T* normed, const T* gamma, T scale, T* dx, T* dgamma, T* dbeta) {
  Vector<T> sums[4] = {}, products[4] = {};
  each_in_four<T>(width, [&](size_t i, int k, auto get, auto put) {
    const Vector<T> d = get(dy + i), n = get(normed + i);
    put(dgamma + i, get(dgamma + i) + d * n);
    put(dbeta + i, get(dbeta + i) + d);
    const Vector<T> scaled = d * get(gamma + i);
    sums[k] += scaled;
    products[k] += scaled * n;
  });
  const T mean = sum_of_four<T>(sums) / T(width), slope = sum_of_four<T>(products) / T(width);
  each<T>(width, [&](size_t i, auto get, auto put) {
    put(dx + i, scale * (get(dy + i) * get(gamma + i) - mean - get(normed + i) * slope));
  });
}

struct Heads {
  size_t count, key, head, queries, rows;

  size_t per_head() const { return 2 * key + head; }
};

// The attention of one batch entry. `rows`: queries, keys and values of each row, (H (2K + V)); the first rows ask.
// Weights lie as (rows, H, queries): what a query gives to all rows is apart, so that queries go through the softmax abreast.
// Size: of keys and values where the compiler may know it (0: not)
template <class T, size_t Size> void attend(const Heads& h, const T* const* rows, T* weights, T* read) {
  const size_t key = Size ? Size : h.key, head = Size ? Size : h.head, abreast = h.count * h.queries;
  const T scale = T(1) / std::sqrt(T(key));
  for (size_t k = 0; k < h.count; ++k)
    for (size_t i = 0; i < h.queries; ++i) {
      const T* query = rows[i] + k * h.per_head();
      for (size_t j = 0; j < h.rows; ++j)
        weights[j * abreast + k * h.queries + i] = scale * dot<T>(key, query, rows[j] + k * h.per_head() + key);
    }
  each<T>(abreast, [&](size_t i, auto get, auto put) {
    T* weight = weights + i;
    Vector<T> largest = get(weight), total = {};
    for (size_t j = 1; j < h.rows; ++j) {
      const Vector<T> score = get(weight + j * abreast);
      largest = score > largest ? score : largest;
    }
    for (size_t j = 0; j < h.rows; ++j) {
      const Vector<T> value = exp<T>(get(weight + j * abreast) - largest);
      put(weight + j * abreast, value);
      total += value;
    }
    const Vector<T> share = T(1) / total;
    for (size_t j = 0; j < h.rows; ++j) put(weight + j * abreast, get(weight + j * abreast) * share);
  });
  for (size_t k = 0; k < h.count; ++k)
    for (size_t i = 0; i < h.queries; ++i) {
      T* to = read + i * h.count * head + k * head;
      const T* weight = weights + k * h.queries + i;
      each<T>(head, [&](size_t v, auto get, auto put) {
        Vector<T> values = {};
        for (size_t j = 0; j < h.rows; ++j) values += weight[j * abreast] * get(rows[j] + k * h.per_head() + 2 * key + v);
        put(to + v, values);
      });
    }
}

// Gradients of queries, keys and values are set in `drows`; `dscores` is room for as many numbers as there are weights
template <class T, size_t Size>
void attend_back(const Heads& h, const T* const* rows, const T* weights, const T* dread, T* dscores, T* const* drows) {
  const size_t key = Size ? Size : h.key, head = Size ? Size : h.head, abreast = h.count * h.queries;
  const T scale = T(1) / std::sqrt(T(key));
  for (size_t k = 0; k < h.count; ++k)
    for (size_t i = 0; i < h.queries; ++i) {
      const T* d = dread + i * h.count * head + k * head;
      for (size_t j = 0; j < h.rows; ++j)
        dscores[j * abreast + k * h.queries + i] = dot<T>(head, d, rows[j] + k * h.per_head() + 2 * key);
    }
  each<T>(abreast, [&](size_t i, auto get, auto put) {
    Vector<T> mean = {};
    for (size_t j = i; j < i + h.rows * abreast; j += abreast) mean += get(weights + j) * get(dscores + j);
    for (size_t j = i; j < i + h.rows * abreast; j += abreast)
      put(dscores + j, scale * get(weights + j) * (get(dscores + j) - mean));
  });
  for (size_t k = 0; k < h.count; ++k) {
    const size_t at = k * h.per_head();
    for (size_t i = 0; i < h.rows; ++i) {
      T* to = drows[i] + at;
      const T* dscore = dscores + k * h.queries;
      const T* weight = weights + i * abreast + k * h.queries;
      each<T>(key, [&](size_t v, auto get, auto put) {
        Vector<T> values = {};
        if (i < h.queries)
          for (size_t j = 0; j < h.rows; ++j) values += dscore[j * abreast + i] * get(rows[j] + at + key + v);
        put(to + v, values);
      });
      each<T>(key, [&](size_t v, auto get, auto put) {
        Vector<T> values = {};
        for (size_t j = 0; j < h.queries; ++j) values += dscore[i * abreast + j] * get(rows[j] + at + v);
        put(to + key + v, values);
      });
      each<T>(head, [&](size_t v, auto get, auto put) {
        Vector<T> values = {};
        for (size_t j = 0; j < h.queries; ++j) values += weight[j] * get(dread + j * h.count * head + k * head + v);
        put(to + 2 * key + v, values);
      });
    }
  }
}

// calls f with the size of keys and values as a constant, where it is a usual one
template <class F> void with_size(const Heads& h, F f) {
  if (h.key != h.head) return f(std::integral_constant<size_t, 0>{});
  switch (h.key) {
    case 8: return f(std::integral_constant<size_t, 8>{});
    case 16: return f(std::integral_constant<size_t, 16>{});
    case 32: return f(std::integral_constant<size_t, 32>{});
    case 64: return f(std::integral_constant<size_t, 64>{});
    default: return f(std::integral_constant<size_t, 0>{});
  }
}

}  // namespace
