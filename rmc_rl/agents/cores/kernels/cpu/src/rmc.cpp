// The functions of the RMC's kernel. Letters: rmc.h.

#include "rmc.h"

#include "rmc_backward.h"
#include "rmc_forward.h"
#include "threads.h"

namespace rmc_rl::rmc {
namespace {

constexpr size_t kGroupRows = 64;  // memory slots of a group of batch entries that go through the steps together

template <class T> struct Kernel {
  static size_t saved_length(const Call& call) {
    const Shape s(call);
    return Saved<T>(s, nullptr, s.T, s.B).length;
  }

  static Status forward(const Call& call) {
    const Shape s(call);
    const Tensors<T> x(s, call);
    const ForwardWeights<T> weights(s, x.parameters);
    const BatchSplit split(call, kGroupRows / s.N);
    return split.for_each_part([&](size_t, size_t first, size_t end) {
      Forward<T> forward(s, x, weights, split.group);
      split.for_each_group(first, end, [&](size_t begin, size_t stop) { forward.run(begin, stop); });
    });
  }

  static Status backward(const Call& call, const Gradients& gradients) {
    const Shape s(call);
    const Tensors<T> x(s, call);
    const InputGradients<T> g(gradients);
    const BackwardWeights<T> weights(s, x.parameters);
    const BatchSplit split(call, kGroupRows / s.N);
    return sum_gradients<T>(split, call.parameters, gradients.parameters, [&](auto next, size_t first, size_t end) {
      Backward<T> backward(s, x, g, weights, split.group, Parameters<T*>(s, next));
      split.for_each_group(first, end, [&](size_t begin, size_t stop) { backward.run(begin, stop); });
      backward.finish();
    });
  }
};

}  // namespace
}  // namespace rmc_rl::rmc

RMC_RL_KERNEL(rmc, rmc_rl::rmc::Kernel)
