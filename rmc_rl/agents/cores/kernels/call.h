// What native.py calls a kernel with: Call and CallGradients.

#pragma once

#include <cstdint>

extern "C" {
// Tensors, contiguous: of one dtype, but starts
struct Call {
  const std::int64_t* sizes;        // T, B, and what the kernel's own struct says
  const double* numbers;            // what the kernel's own struct says
  const void* const* parameters;
  const void* const* inputs;        // what the steps read, (T, B, ...), null where there is none; the state before; the fresh one
  const unsigned char* starts;      // (T, B) or null
  void* states;                     // (T, B, S), after each step: written by forward, read by backward
  void* saved;                      // <kernel>_saved_size numbers, or null where there is no way back
  void* parallel;                   // GOMP_parallel, or null: threads of our own
  std::int64_t threads;
};

// What backward reads and writes: the gradient of the states, and those of parameters and inputs; null where there is none
struct CallGradients {
  const void* states;
  void* const* parameters;
  void* const* inputs;
};
}

#define RMC_RL_EXPORT extern "C" __attribute__((visibility("default")))

// The three functions of a kernel, for both dtypes, from templates `saved_size`, `forward` and `backward`; 0: done, 1: out of
// memory or threads
#define RMC_RL_KERNEL(name)                                                                                                  \
  RMC_RL_EXPORT std::int64_t name##_saved_size(const Call* call) { return saved_size(*call); }                               \
  RMC_RL_EXPORT int name##_forward_float32(const Call* call) { return forward<float>(*call); }                               \
  RMC_RL_EXPORT int name##_forward_float64(const Call* call) { return forward<double>(*call); }                              \
  RMC_RL_EXPORT int name##_backward_float32(const Call* call, const CallGradients* g) { return backward<float>(*call, *g); } \
  RMC_RL_EXPORT int name##_backward_float64(const Call* call, const CallGradients* g) { return backward<double>(*call, *g); }
