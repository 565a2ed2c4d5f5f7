// The C interface of a kernel: the structures that calling.py fills, and their checks.
//
// Nothing is passed by position alone. Each structure carries its size in bytes, and each tensor its name and its number of
// elements. A difference between Python and C++ ends the call with Status::mismatch and a message.

#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace rmc_rl {

// Mirrored by Status in calling.py
enum Status : int { done = 0, out_of_memory = 1, mismatch = 2, failed = 3 };

// Contiguous tensors of one dtype. Mirrored by NamedTensors in calling.py
struct NamedTensors {
  std::int64_t count;
  const char* names;            // one per line
  const void* const* data;      // null for a tensor that is absent
  const std::int64_t* lengths;  // number of elements; 0 for a tensor that is absent
};

// The arguments of a kernel. Mirrored by Call in calling.py. T time, B batch, S numbers of a state
struct Call {
  std::int64_t struct_size;     // sizeof(Call)
  std::int64_t time, batch;     // T, B
  std::int64_t sizes_size;      // number of bytes of `sizes`
  const void* sizes;            // the Sizes structure of the kernel
  NamedTensors inputs;          // state (B, S), initial_state (B, S), then those of the kernel
  NamedTensors parameters;
  const unsigned char* starts;  // (T, B) or null
  void* states;                 // (T, B, S), after each step: forward writes them, backward reads them
  void* saved;                  // values that forward keeps for backward; null: none are kept
  std::int64_t saved_length;    // number of elements of `saved`; the function saved_length writes it
  void* parallel;               // GOMP_parallel of an OpenMP runtime; null: the kernel starts its own threads
  std::int64_t threads;
  char message[256];            // explains a mismatch
};

// The gradients of a backward call. Mirrored by Gradients in calling.py
struct Gradients {
  std::int64_t struct_size;                    // sizeof(Gradients)
  const void* states;                          // (T, B, S): the gradient of the states, read
  std::int64_t input_count, parameter_count;
  void* const* inputs;                         // written, in the order of Call::inputs; null where no gradient is needed
  void* const* parameters;                     // written, in the order of Call::parameters
};

namespace {

// Python and C++ disagree about the arguments of a call
struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check_equal(const std::string& what, std::int64_t python, std::int64_t cpp) {
  if (python != cpp)
    throw Mismatch(what + ": " + std::to_string(python) + " in Python, " + std::to_string(cpp) + " in C++");
}

// The Sizes structure of a kernel
template <class Sizes> const Sizes& sizes_of(const Call& call) {
  check_equal("bytes of the structure Sizes", call.sizes_size, sizeof(Sizes));
  return *static_cast<const Sizes*>(call.sizes);
}

// Reads the tensors of a call in the order of the kernel, and checks the name and the length of each
template <class T> class TensorReader {
 public:
  TensorReader(const char* kind, const NamedTensors& tensors) : kind_(kind), tensors_(tensors), name_(tensors.names) {}

  // length: number of elements; 0 for a tensor that must be absent
  const T* next(const std::string& name, size_t length) {
    if (index_ >= tensors_.count) throw Mismatch(std::string(kind_) + " '" + name + "' is missing");
    const char* end = name_ + std::strcspn(name_, "\n");
    if (name.compare(0, std::string::npos, name_, static_cast<size_t>(end - name_)) != 0)
      throw Mismatch(std::string(kind_) + " " + std::to_string(index_) + ": '" + std::string(name_, end) + "' in Python, '" +
                     name + "' in C++");
    if (tensors_.lengths[index_] != static_cast<std::int64_t>(length))
      check_equal("elements of " + std::string(kind_) + " '" + name + "'", tensors_.lengths[index_],
                  static_cast<std::int64_t>(length));
    name_ = *end ? end + 1 : end;
    return static_cast<const T*>(tensors_.data[index_++]);
  }

  // Checks that all tensors were read
  void finish() const { check_equal("number of " + std::string(kind_) + "s", tensors_.count, index_); }

 private:
  const char* kind_;
  const NamedTensors& tensors_;
  const char* name_;
  std::int64_t index_ = 0;
};

inline void check_gradients(const Call& call, const Gradients& gradients) {
  check_equal("bytes of the structure Gradients", gradients.struct_size, sizeof(Gradients));
  check_equal("number of input gradients", gradients.input_count, call.inputs.count);
  check_equal("number of parameter gradients", gradients.parameter_count, call.parameters.count);
}

// Runs f, which returns a Status, and converts exceptions: none may leave the library
template <class F> int guarded(Call* call, F f) {
  if (call->struct_size != sizeof(Call)) return mismatch;  // the position of `message` is unknown
  try {
    return f(*call);
  } catch (const Mismatch& error) {
    std::strncpy(call->message, error.what(), sizeof call->message - 1);
    return mismatch;
  } catch (const std::bad_alloc&) {
    return out_of_memory;
  } catch (...) {
    return failed;
  }
}

}  // namespace
}  // namespace rmc_rl

#define RMC_RL_EXPORT extern "C" __attribute__((visibility("default")))

// Exports the functions of a kernel for one dtype. K: `static size_t saved_length(const Call&)`,
// `static Status forward(const Call&)` and `static Status backward(const Call&, const Gradients&)`
#define RMC_RL_KERNEL_OF(name, dtype, K)                                                              \
  RMC_RL_EXPORT int name##_saved_length_##dtype(rmc_rl::Call* call) {                                 \
    return rmc_rl::guarded(call, [](rmc_rl::Call& c) {                                                \
      c.saved_length = static_cast<std::int64_t>(K::saved_length(c));                                 \
      return rmc_rl::done;                                                                            \
    });                                                                                               \
  }                                                                                                   \
  RMC_RL_EXPORT int name##_forward_##dtype(rmc_rl::Call* call) {                                      \
    return rmc_rl::guarded(call, [](rmc_rl::Call& c) {                                                \
      if (c.saved) rmc_rl::check_equal("saved elements", c.saved_length, K::saved_length(c));         \
      return K::forward(c);                                                                           \
    });                                                                                               \
  }                                                                                                   \
  RMC_RL_EXPORT int name##_backward_##dtype(rmc_rl::Call* call, const rmc_rl::Gradients* gradients) { \
    return rmc_rl::guarded(call, [gradients](rmc_rl::Call& c) {                                       \
      rmc_rl::check_gradients(c, *gradients);                                                         \
      rmc_rl::check_equal("saved elements", c.saved_length, K::saved_length(c));                      \
      return K::backward(c, *gradients);                                                              \
    });                                                                                               \
  }

// The functions of a kernel K<T> for both dtypes
#define RMC_RL_KERNEL(name, K)             \
  RMC_RL_KERNEL_OF(name, float32, K<float>) \
  RMC_RL_KERNEL_OF(name, float64, K<double>)
