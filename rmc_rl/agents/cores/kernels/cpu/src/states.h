// The states between steps, with episodes that start anywhere.

#pragma once

#include "call.h"
#include "vector.h"

namespace {

template <class T> struct States {
  const size_t B, S;  // batch, numbers of a state
  const T *state, *fresh;
  const unsigned char* starts;
  T* after;

  // inputs: how many of the call's come before the states
  States(const Call& call, size_t size, size_t inputs)
      : B(call.sizes[1]), S(size), state(static_cast<const T*>(call.inputs[inputs])),
        fresh(static_cast<const T*>(call.inputs[inputs + 1])), starts(call.starts), after(static_cast<T*>(call.states)) {}

  // the state that batch entry b has when step t begins
  const T* before(size_t t, size_t b) const {
    if (starts && starts[t * B + b]) return fresh + b * S;
    return t == 0 ? state + b * S : after + ((t - 1) * B + b) * S;
  }

  // Backward: d, the gradients of the states with which step t of batch entries first <= b < end began, become those of the
  // states after the step before. Where an episode starts they go to the fresh one's, if that has any
  void leave(size_t t, size_t first, size_t end, T* d, T* dfresh) const {
    if (!starts) return;
    for (size_t b = first; b < end; ++b, d += S)
      if (starts[t * B + b]) {
        if (dfresh) add_scaled<T>(S, T(1), d, dfresh + b * S);
        std::memset(d, 0, S * sizeof(T));
      }
  }
};

}  // namespace
