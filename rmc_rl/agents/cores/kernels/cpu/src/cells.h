// One step of LSTM and GRU cells, forward and backward. Equations: cores/rnn.py.
//
// Letter: W width. Each step saves kSavedPerUnit numbers per unit for the backward pass.

#pragma once

#include <cstring>

#include "vector.h"

namespace rmc_rl {
namespace {

constexpr size_t kSavedPerUnit = 4;

// Derivatives of sigmoid and tanh from their values
template <class V> inline V sigmoid_slope(V y) { return y * (1 - y); }
template <class V> inline V tanh_slope(V y) { return 1 - y * y; }

// State: h, and c at distance C after it. Gates: input, forget, cell, output
struct Lstm {
  static constexpr size_t state_parts = 2, gates = 4;

  // from_input: the input's part of the gates. saved: on entry the part of h in the gates, on return the gates
  template <class T> static void forward(size_t W, size_t C, const T* from_input, T* saved, const T* before, T* after) {
    for_vectors<T>(W, [&](size_t i, auto get, auto put) {
      const Vector<T> input_gate = sigmoid<T>(get(saved + i) + get(from_input + i));
      const Vector<T> forget_gate = sigmoid<T>(get(saved + W + i) + get(from_input + W + i));
      const Vector<T> candidate = tanh<T>(get(saved + 2 * W + i) + get(from_input + 2 * W + i));
      const Vector<T> output_gate = sigmoid<T>(get(saved + 3 * W + i) + get(from_input + 3 * W + i));
      const Vector<T> c = forget_gate * get(before + C + i) + input_gate * candidate;
      put(saved + i, input_gate);
      put(saved + W + i, forget_gate);
      put(saved + 2 * W + i, candidate);
      put(saved + 3 * W + i, output_gate);
      put(after + C + i, c);
      put(after + i, output_gate * tanh<T>(c));
    });
  }

  // d: on entry the gradient of the state after the step; on return that of the state before it, without the part that passes
  // through the product of h with the weight. d_from_input, d_from_h: gradients of the two parts of the gates
  template <class T>
  static void backward(size_t W, size_t C, const T* saved, const T* before, const T* after, T* d, T* d_from_input,
                       T* d_from_h) {
    for_vectors<T>(W, [&](size_t i, auto get, auto put) {
      const Vector<T> input_gate = get(saved + i), forget_gate = get(saved + W + i);
      const Vector<T> candidate = get(saved + 2 * W + i), output_gate = get(saved + 3 * W + i);
      const Vector<T> tanh_c = tanh<T>(get(after + C + i)), d_h = get(d + i);
      const Vector<T> d_c = get(d + C + i) + d_h * output_gate * tanh_slope(tanh_c);
      put(d_from_h + i, d_c * candidate * sigmoid_slope(input_gate));
      put(d_from_h + W + i, d_c * get(before + C + i) * sigmoid_slope(forget_gate));
      put(d_from_h + 2 * W + i, d_c * input_gate * tanh_slope(candidate));
      put(d_from_h + 3 * W + i, d_h * tanh_c * sigmoid_slope(output_gate));
      put(d + i, Vector<T>{});
      put(d + C + i, d_c * forget_gate);
    });
    std::memcpy(d_from_input, d_from_h, 4 * W * sizeof(T));
  }
};

// State: h. Gates: reset, update, candidate. Saved: the gates, and the part of h in the candidate before the reset gate
struct Gru {
  static constexpr size_t state_parts = 1, gates = 3;

  template <class T> static void forward(size_t W, size_t, const T* from_input, T* saved, const T* before, T* after) {
    for_vectors<T>(W, [&](size_t i, auto get, auto put) {
      const Vector<T> reset_gate = sigmoid<T>(get(saved + i) + get(from_input + i));
      const Vector<T> update_gate = sigmoid<T>(get(saved + W + i) + get(from_input + W + i));
      const Vector<T> from_h = get(saved + 2 * W + i);
      const Vector<T> candidate = tanh<T>(get(from_input + 2 * W + i) + reset_gate * from_h);
      put(saved + i, reset_gate);
      put(saved + W + i, update_gate);
      put(saved + 2 * W + i, candidate);
      put(saved + 3 * W + i, from_h);
      put(after + i, candidate + update_gate * (get(before + i) - candidate));
    });
  }

  template <class T>
  static void backward(size_t W, size_t, const T* saved, const T* before, const T*, T* d, T* d_from_input, T* d_from_h) {
    for_vectors<T>(W, [&](size_t i, auto get, auto put) {
      const Vector<T> reset_gate = get(saved + i), update_gate = get(saved + W + i), candidate = get(saved + 2 * W + i);
      const Vector<T> d_h = get(d + i);
      const Vector<T> d_candidate = d_h * (1 - update_gate) * tanh_slope(candidate);
      const Vector<T> d_reset = d_candidate * get(saved + 3 * W + i) * sigmoid_slope(reset_gate);
      const Vector<T> d_update = d_h * (get(before + i) - candidate) * sigmoid_slope(update_gate);
      put(d_from_input + i, d_reset);
      put(d_from_input + W + i, d_update);
      put(d_from_input + 2 * W + i, d_candidate);
      put(d_from_h + i, d_reset);
      put(d_from_h + W + i, d_update);
      put(d_from_h + 2 * W + i, d_candidate * reset_gate);
      put(d + i, d_h * update_gate);
    });
  }
};

}  // namespace
}  // namespace rmc_rl
