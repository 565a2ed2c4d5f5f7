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

// normed = (x + more - mean) / deviation, in place possible; `more` may be null; returns 1 / deviation
template <class T> inline T normalise(size_t width, const T* x, const T* more, T epsilon, T* normed) {
  Vector<T> sums = {}, squares = {};
  each<T>(width, [&](size_t i, auto get, auto put) {
    Vector<T> value = get(x + i);
    if (more) value += get(more + i);
    put(normed + i, value);
    sums += value;
  });
  const T mean = sum<T>(sums) / T(width);
  each<T>(width, [&](size_t i, auto get, auto put) {
    const Vector<T> value = get(normed + i) - mean;
    put(normed + i, value);
    squares += value * value;
  });
  // lanes behind the end hold -mean
  const size_t rest = (kLanes<T> - width % kLanes<T>) % kLanes<T>;
  const T variance = (sum<T>(squares) - T(rest) * mean * mean) / T(width);
  const T scale = T(1) / std::sqrt((variance > 0 ? variance : 0) + epsilon);
  each<T>(width, [&](size_t i, auto get, auto put) { put(normed + i, get(normed + i) * scale); });
  return scale;
}

// The gradient of x from that of y, in place possible; adds to those of gamma and beta
template <class T>
inline void normalise_back(size_t width, const T* dy, const T* normed, const T* gamma, T scale, T* dx, T* dgamma, T* dbeta) {
  Vector<T> sums = {}, products = {};
  each<T>(width, [&](size_t i, auto get, auto put) {
    const Vector<T> d = get(dy + i), n = get(normed + i);
    put(dgamma + i, get(dgamma + i) + d * n);
    put(dbeta + i, get(dbeta + i) + d);
    const Vector<T> scaled = d * get(gamma + i);
    sums += scaled;
    products += scaled * n;
  });
  const T mean = sum<T>(sums) / T(width), slope = sum<T>(products) / T(width);
  each<T>(width, [&](size_t i, auto get, auto put) {
    put(dx + i, scale * (get(dy + i) * get(gamma + i) - mean - get(normed + i) * slope));
  });
}

template <class T> inline T dot(size_t n, const T* a, const T* b) {
  Vector<T> sums = {};
  each<T>(n, [&](size_t i, auto get, auto) { sums += get(a + i) * get(b + i); });
  return sum<T>(sums);
}

template <class T> inline void add_scaled(size_t n, T factor, const T* x, T* y) {
  each<T>(n, [&](size_t i, auto get, auto put) { put(y + i, get(y + i) + factor * get(x + i)); });
}

// The rows of queries, keys and values that one batch entry attends over: the first `own` computed in the loop, the others,
// of the input, before it
template <class T> struct Attended {
  T* own;
  T* others;
  size_t num_own, stride;

  T* row(size_t index) const { return index < num_own ? own + index * stride : others + (index - num_own) * stride; }
};

struct Heads {
  size_t count, key, head, queries, rows;

  size_t per_head() const { return 2 * key + head; }
  size_t stride() const { return count * per_head(); }
};

// Size: of keys and values where the compiler may know it (0: not)
template <class T, size_t Size> void attend(const Heads& h, const Attended<const T>& qkv, T* weights, T* read) {
  const size_t key = Size ? Size : h.key, head = Size ? Size : h.head;
  const T scale = T(1) / std::sqrt(T(key));
  const size_t total = h.count * h.queries * h.rows;
  T* score = weights;
  for (size_t k = 0; k < h.count; ++k)
    for (size_t i = 0; i < h.queries; ++i) {
      const T* query = qkv.row(i) + k * h.per_head();
      T largest = -std::numeric_limits<T>::infinity();
      for (size_t j = 0; j < h.rows; ++j) {
        score[j] = scale * dot<T>(key, query, qkv.row(j) + k * h.per_head() + key);
        largest = score[j] > largest || score[j] != score[j] ? score[j] : largest;
      }
      for (size_t j = 0; j < h.rows; ++j) score[j] -= largest;
      score += h.rows;
    }
  each<T>(total, [&](size_t i, auto get, auto put) { put(weights + i, exp<T>(get(weights + i))); });
  T* weight = weights;
  for (size_t k = 0; k < h.count; ++k)
    for (size_t i = 0; i < h.queries; ++i) {
      T sum_of = 0;
      for (size_t j = 0; j < h.rows; ++j) sum_of += weight[j];
      for (size_t j = 0; j < h.rows; ++j) weight[j] /= sum_of;
      T* to = read + i * h.count * head + k * head;
      each<T>(head, [&](size_t v, auto get, auto put) {
        Vector<T> values = {};
        for (size_t j = 0; j < h.rows; ++j) values += weight[j] * get(qkv.row(j) + k * h.per_head() + 2 * key + v);
        put(to + v, values);
      });
      weight += h.rows;
    }
}

// `weights` are overwritten with the gradients of the scores; those of queries, keys and values are set
template <class T, size_t Size>
void attend_back(const Heads& h, const Attended<const T>& qkv, const T* weights, const T* dread, T* dscores, const Attended<T>& dqkv) {
  const size_t key = Size ? Size : h.key, head = Size ? Size : h.head;
  const T scale = T(1) / std::sqrt(T(key));
  for (size_t k = 0; k < h.count; ++k) {
    const T* weight = weights + k * h.queries * h.rows;
    const size_t at = k * h.per_head();
    for (size_t i = 0; i < h.queries; ++i) {
      const T* d = dread + i * h.count * head + k * head;
      T* dscore = dscores + i * h.rows;
      T mean = 0;
      for (size_t j = 0; j < h.rows; ++j) {
        dscore[j] = dot<T>(head, d, qkv.row(j) + at + 2 * key);
        mean += dscore[j] * weight[i * h.rows + j];
      }
      for (size_t j = 0; j < h.rows; ++j) dscore[j] = scale * weight[i * h.rows + j] * (dscore[j] - mean);
    }
    for (size_t i = 0; i < h.rows; ++i) {
      T* to = dqkv.row(i) + at;
      each<T>(key, [&](size_t v, auto get, auto put) {
        Vector<T> values = {};
        if (i < h.queries)
          for (size_t j = 0; j < h.rows; ++j) values += dscores[i * h.rows + j] * get(qkv.row(j) + at + key + v);
        put(to + v, values);
      });
      each<T>(key, [&](size_t v, auto get, auto put) {
        Vector<T> values = {};
        for (size_t j = 0; j < h.queries; ++j) values += dscores[j * h.rows + i] * get(qkv.row(j) + at + v);
        put(to + key + v, values);
      });
      each<T>(head, [&](size_t v, auto get, auto put) {
        Vector<T> values = {};
        for (size_t j = 0; j < h.queries; ++j) values += weight[j * h.rows + i] * get(dread + j * h.count * head + k * head + v);
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
