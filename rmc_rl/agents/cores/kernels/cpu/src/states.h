// The states between steps, with episodes that may start at any step.

#pragma once

#include "call.h"
#include "vector.h"

namespace rmc_rl {
namespace {

template <class T> struct States {
  const size_t T_, B, S;  // time, batch, numbers of a state
  const T *state, *initial_state;
  const unsigned char* starts;
  T* after;

  // Reads the first two inputs. size: numbers of a state
  States(const Call& call, size_t size, TensorReader<T>& inputs)
      : T_(call.time), B(call.batch), S(size), state(inputs.next("state", B * S)),
        initial_state(inputs.next("initial_state", call.starts ? B * S : 0)), starts(call.starts),
        after(static_cast<T*>(call.states)) {}

  // The state of batch entry b before step t
  const T* before(size_t t, size_t b) const {
    if (starts && starts[t * B + b]) return initial_state + b * S;
    return t == 0 ? state + b * S : after + ((t - 1) * B + b) * S;
  }
};

// Gradients of the states: of those after each step, of the first and of the initial state
template <class T> struct StateGradients {
  const T* states;
  T *state, *initial_state;

  explicit StateGradients(const Gradients& gradients)
      : states(static_cast<const T*>(gradients.states)), state(static_cast<T*>(gradients.inputs[0])),
        initial_state(static_cast<T*>(gradients.inputs[1])) {}

  // Adds the gradients of the states after step t to `carried`, which has those of batch entries first <= b < end
  void add(const States<T>& x, size_t t, size_t first, size_t end, T* carried) const {
    add_scaled<T>((end - first) * x.S, T(1), states + (t * x.B + first) * x.S, carried);
  }

  // Where an episode starts at step t, moves the gradient of the state before it from `carried` to the initial state
  void move_starts(const States<T>& x, size_t t, size_t first, size_t end, T* carried) const {
    if (!x.starts) return;
    for (size_t b = first; b < end; ++b, carried += x.S)
      if (x.starts[t * x.B + b]) {
        if (initial_state) add_scaled<T>(x.S, T(1), carried, initial_state + b * x.S);
        std::memset(carried, 0, x.S * sizeof(T));
      }
  }

  // Writes the gradients of the states before the first step
  void write(const States<T>& x, size_t first, size_t end, const T* carried) const {
    if (state) std::memcpy(state + first * x.S, carried, (end - first) * x.S * sizeof(T));
  }
};

}  // namespace
}  // namespace rmc_rl
