// The functions of the kernel for layers of recurrent modules. Letters: rims.h.

#include "rims.h"

#include "rims_backward.h"
#include "rims_forward.h"
#include "threads.h"

namespace rmc_rl::rims {
namespace {

constexpr size_t kGroup = 16;  // batch entries that go through the steps together

template <class T, class Cell> struct Kernel {
  static size_t saved_length(const Call& call) {
    const Shape shape = Shape::of<Cell>(call);
    return Saved<T>(shape, nullptr, shape.T, shape.B).length;
  }

  static Status forward(const Call& call) {
    const Shape shape = Shape::of<Cell>(call);
    const Tensors<T> x(shape, call);
    const PackedWeights<T> packed(shape, x.parameters, Pass::forward);
    const BatchSplit split(call, kGroup);
    return split.for_each_part([&](size_t, size_t first, size_t end) {
      Forward<T, Cell> forward(shape, x, packed, split.group);
      split.for_each_group(first, end, [&](size_t begin, size_t stop) { forward.run(begin, stop); });
    });
  }

  static Status backward(const Call& call, const Gradients& gradients) {
    const Shape shape = Shape::of<Cell>(call);
    const Tensors<T> x(shape, call);
    const StateGradients<T> g(gradients);
    T* dinput_rows = static_cast<T*>(gradients.inputs[2]);
    const PackedWeights<T> packed(shape, x.parameters, Pass::backward);
    const BatchSplit split(call, kGroup);
    return sum_gradients<T>(split, call.parameters, gradients.parameters, [&](auto next, size_t first, size_t end) {
      Backward<T, Cell> backward(shape, x, g, dinput_rows, packed, split.group, Parameters<T*>(shape, next));
      split.for_each_group(first, end, [&](size_t begin, size_t stop) { backward.run(begin, stop); });
      backward.finish();
    });
  }
};

template <class T> using LstmKernel = Kernel<T, Lstm>;
template <class T> using GruKernel = Kernel<T, Gru>;

}  // namespace
}  // namespace rmc_rl::rims

RMC_RL_KERNEL(rims_lstm, rmc_rl::rims::LstmKernel)
RMC_RL_KERNEL(rims_gru, rmc_rl::rims::GruKernel)
