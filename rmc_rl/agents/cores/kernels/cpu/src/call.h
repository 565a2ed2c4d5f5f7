// What library.py calls a kernel with: Call and CallGradients.

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
  void* saved;                      // <kernel>_saved_size_<dtype> numbers, or null where there is no way back
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

// The functions of a kernel, for both dtypes. K<T>: `static int forward(const Call&)`, `static int backward(const Call&,
// const CallGradients&)`, which return 0: done, 1: out of memory or threads; and `static std::int64_t saved_size(const Call&)`
#define RMC_RL_KERNEL(name, K)                                                                                               \
  RMC_RL_EXPORT std::int64_t name##_saved_size_float32(const Call* call) { return K<float>::saved_size(*call); }             \
  RMC_RL_EXPORT std::int64_t name##_saved_size_float64(const Call* call) { return K<double>::saved_size(*call); }            \
  RMC_RL_EXPORT int name##_forward_float32(const Call* call) { return K<float>::forward(*call); }                            \
  RMC_RL_EXPORT int name##_forward_float64(const Call* call) { return K<double>::forward(*call); }                           \
  RMC_RL_EXPORT int name##_backward_float32(const Call* call, const CallGradients* g) { return K<float>::backward(*call, *g); } \
  RMC_RL_EXPORT int name##_backward_float64(const Call* call, const CallGradients* g) { return K<double>::backward(*call, *g); }
