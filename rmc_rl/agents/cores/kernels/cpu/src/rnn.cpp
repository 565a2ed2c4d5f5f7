// LSTM and GRU over a sequence: one layer, one product per step. Equations: cores/rnn.py.
//
// Letters: T time, B batch, W width, S numbers of a state, G numbers of all gates. Mirrored by cpu/rnn.py: the structure
// Sizes, the names of the inputs and the names of the parameters.

#include "cells.h"
#include "product.h"
#include "states.h"
#include "threads.h"
#include "weight_gradient.h"

namespace rmc_rl::rnn {
namespace {

struct Sizes {
  std::int64_t width;
};

constexpr size_t kGroup = 64;  // batch entries that go through the steps together

template <class T, class Cell> struct Tensors : States<T> {
  const size_t W, G;
  const T *from_input, *weight, *bias;
  T* saved;

  explicit Tensors(const Call& call)
      : Tensors(call, sizes_of<Sizes>(call).width, TensorReader<T>("input", call.inputs),
                TensorReader<T>("parameter", call.parameters)) {}

 private:
  Tensors(const Call& call, size_t width, TensorReader<T> inputs, TensorReader<T> parameters)
      : States<T>(call, Cell::state_parts * width, inputs), W(width), G(Cell::gates * width),
        from_input(inputs.next("from_input", this->T_ * this->B * G)),  // the input's part of the gates, (T, B, G)
        weight(parameters.next("weight_hh", G * W)), bias(parameters.next("bias_hh", G)), saved(static_cast<T*>(call.saved)) {
    inputs.finish();
    parameters.finish();
  }
};

template <class T, class Cell> struct Kernel {
  static size_t saved_length(const Call& call) {
    return call.time * call.batch * sizes_of<Sizes>(call).width * kSavedPerUnit;
  }

  static Status forward(const Call& call) {
    const Tensors<T, Cell> x(call);
    const BatchSplit split(call, kGroup);
    const Buffer<T> packed(packed_size<T>(x.W, x.G), Content::uninitialized);
    pack_transposed<T>(x.W, x.G, x.weight, x.W, packed);
    return split.for_each_part([&](size_t, size_t first, size_t end) {
      const Buffer<T> h(split.group * x.W), unsaved(x.saved ? 0 : split.group * kSavedPerUnit * x.W);
      split.for_each_group(first, end, [&](size_t begin, size_t stop) { steps(x, packed, h, unsaved, begin, stop); });
    });
  }

  static Status backward(const Call& call, const Gradients& gradients) {
    const Tensors<T, Cell> x(call);
    const BatchSplit split(call, kGroup);
    const Buffer<T> packed(packed_size<T>(x.G, x.W), Content::uninitialized);
    pack<T>(x.G, x.W, x.weight, x.W, packed);
    return sum_gradients<T>(split, call.parameters, gradients.parameters, [&](auto next, size_t first, size_t end) {
      const Buffer<T> d(split.group * x.S);
      T* const d_weight = next("weight_hh", x.G * x.W);
      WeightGradient<T> weight(x.G, x.W, split.group, d_weight, next("bias_hh", x.G));
      split.for_each_group(
          first, end, [&](size_t begin, size_t stop) { steps_backward(x, gradients, packed, weight, d, begin, stop); });
      weight.flush();
    });
  }

 private:
  // Batch entries first <= b < end through all steps
  static void steps(const Tensors<T, Cell>& x, const T* packed, T* h, T* unsaved, size_t first, size_t end) {
    const size_t W = x.W;
    for (size_t t = 0; t < x.T_; ++t) {
      const size_t row = t * x.B + first;
      T* saved = x.saved ? x.saved + row * kSavedPerUnit * W : unsaved;
      for (size_t b = first; b < end; ++b) std::memcpy(h + (b - first) * W, x.before(t, b), W * sizeof(T));
      times_packed<T>(end - first, x.G, W, h, W, packed, x.bias, saved, kSavedPerUnit * W);
      for (size_t b = first; b < end; ++b, saved += kSavedPerUnit * W)
        Cell::template forward<T>(W, W, x.from_input + (t * x.B + b) * x.G, saved, x.before(t, b),
                                  x.after + (t * x.B + b) * x.S);
    }
  }

  // d: work buffer for the gradients of the states
  static void steps_backward(const Tensors<T, Cell>& x, const Gradients& gradients, const T* packed, WeightGradient<T>& weight,
                             T* d, size_t first, size_t end) {
    const StateGradients<T> g(gradients);
    T* d_from_input = static_cast<T*>(gradients.inputs[2]);
    const size_t count = end - first, W = x.W;
    std::memset(d, 0, count * x.S * sizeof(T));
    for (size_t t = x.T_; t-- > 0;) {
      g.add(x, t, first, end, d);
      weight.append(count);
      for (size_t b = first; b < end; ++b) {
        const size_t row = t * x.B + b;
        const T* before = x.before(t, b);
        std::memcpy(weight.input(b - first), before, W * sizeof(T));
        Cell::template backward<T>(W, W, x.saved + row * kSavedPerUnit * W, before, x.after + row * x.S, d + (b - first) * x.S,
                                   d_from_input + row * x.G, weight.output_gradient(b - first));
      }
      times_packed<T, Into::add>(count, W, x.G, weight.output_gradient(0), weight.out_stride, packed, nullptr, d, x.S);
      g.move_starts(x, t, first, end, d);
    }
    g.write(x, first, end, d);
  }
};

template <class T> using LstmKernel = Kernel<T, Lstm>;
template <class T> using GruKernel = Kernel<T, Gru>;

}  // namespace
}  // namespace rmc_rl::rnn

RMC_RL_KERNEL(lstm, rmc_rl::rnn::LstmKernel)
RMC_RL_KERNEL(gru, rmc_rl::rnn::GruKernel)
