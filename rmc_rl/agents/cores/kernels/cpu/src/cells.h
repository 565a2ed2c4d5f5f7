// The cells of LSTM and GRU. Equations: cores/rnn.py.
//
// Letters: W width. Of each step four times W numbers are kept for the way back.

#pragma once

#include <cstring>

#include "vector.h"

namespace {

constexpr size_t kKept = 4;  // times W numbers

// What a gate's argument is worth to its gradient, from the gate itself
template <class V> inline V sigmoid_slope(V gate) { return gate * (1 - gate); }
template <class V> inline V tanh_slope(V gate) { return 1 - gate * gate; }

// States: h, and C numbers behind it c. The gates: input, forget, cell, output
struct Lstm {
  static constexpr size_t parts = 2, gates = 4;

  // x: from the input; kept: from h when it comes, the gates when it goes
  template <class T> static void forward(size_t W, size_t C, const T* x, T* kept, const T* before, T* after) {
    each<T>(W, [&](size_t i, auto get, auto put) {
      const Vector<T> in = sigmoid<T>(get(kept + i) + get(x + i));
      const Vector<T> forget = sigmoid<T>(get(kept + W + i) + get(x + W + i));
      const Vector<T> cell = tanh<T>(get(kept + 2 * W + i) + get(x + 2 * W + i));
      const Vector<T> out = sigmoid<T>(get(kept + 3 * W + i) + get(x + 3 * W + i));
      const Vector<T> c = forget * get(before + C + i) + in * cell;
      put(kept + i, in);
      put(kept + W + i, forget);
      put(kept + 2 * W + i, cell);
      put(kept + 3 * W + i, out);
      put(after + C + i, c);
      put(after + i, out * tanh<T>(c));
    });
  }

  // d: of the state after when it comes; of the state before when it goes, but what passes the product. dx: of what comes
  // from the input; dh: of what comes from h
  template <class T>
  static void backward(size_t W, size_t C, const T* kept, const T* before, const T* after, T* d, T* dx, T* dh) {
    each<T>(W, [&](size_t i, auto get, auto put) {
      const Vector<T> in = get(kept + i), forget = get(kept + W + i), cell = get(kept + 2 * W + i), out = get(kept + 3 * W + i);
      const Vector<T> squashed = tanh<T>(get(after + C + i)), dafter = get(d + i);
      const Vector<T> dc = get(d + C + i) + dafter * out * tanh_slope(squashed);
      put(dh + i, dc * cell * sigmoid_slope(in));
      put(dh + W + i, dc * get(before + C + i) * sigmoid_slope(forget));
      put(dh + 2 * W + i, dc * in * tanh_slope(cell));
      put(dh + 3 * W + i, dafter * squashed * sigmoid_slope(out));
      put(d + i, Vector<T>{});
      put(d + C + i, dc * forget);
    });
    std::memcpy(dx, dh, 4 * W * sizeof(T));
  }
};

// State: h. The gates: reset, update, new; kept besides: what h says to the new one
struct Gru {
  static constexpr size_t parts = 1, gates = 3;

  template <class T> static void forward(size_t W, size_t, const T* x, T* kept, const T* before, T* after) {
    each<T>(W, [&](size_t i, auto get, auto put) {
      const Vector<T> reset = sigmoid<T>(get(kept + i) + get(x + i));
      const Vector<T> update = sigmoid<T>(get(kept + W + i) + get(x + W + i));
      const Vector<T> said = get(kept + 2 * W + i);
      const Vector<T> now = tanh<T>(get(x + 2 * W + i) + reset * said);
      put(kept + i, reset);
      put(kept + W + i, update);
      put(kept + 2 * W + i, now);
      put(kept + 3 * W + i, said);
      put(after + i, now + update * (get(before + i) - now));
    });
  }

  template <class T>
  static void backward(size_t W, size_t, const T* kept, const T* before, const T*, T* d, T* dx, T* dh) {
    each<T>(W, [&](size_t i, auto get, auto put) {
      const Vector<T> reset = get(kept + i), update = get(kept + W + i), now = get(kept + 2 * W + i);
      const Vector<T> dafter = get(d + i);
      const Vector<T> dnow = dafter * (1 - update) * tanh_slope(now);
      const Vector<T> dreset = dnow * get(kept + 3 * W + i) * sigmoid_slope(reset);
      const Vector<T> dupdate = dafter * (get(before + i) - now) * sigmoid_slope(update);
      put(dx + i, dreset);
      put(dx + W + i, dupdate);
      put(dx + 2 * W + i, dnow);
      put(dh + i, dreset);
      put(dh + W + i, dupdate);
      put(dh + 2 * W + i, dnow * reset);
      put(d + i, dafter * update);
    });
  }
};

}  // namespace
