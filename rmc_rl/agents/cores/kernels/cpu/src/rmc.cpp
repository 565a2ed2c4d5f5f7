// The Relational Memory Core over a sequence, as called from library.py. Letters: rmc.h.

#include "rmc.h"

#include "rmc_backward.h"
#include "rmc_forward.h"
#include "threads.h"

namespace {

constexpr size_t kGroupRows = 64;  // rows of slots that go through the steps together

template <class T> struct Rmc {
  static std::int64_t saved_size(const Call& call) {
    const Shape s(call);
    return static_cast<std::int64_t>(Saved<T>(s, nullptr, s.T, s.B).size);
  }

  static int forward(const Call& call) {
    return status([&] {
      const Shape s(call);
      const Tensors<T> x(s, call);
      const auto& numbers = *reinterpret_cast<const RmcNumbers*>(call.numbers);
      const ForwardWeights<T> weights(s, x.parameters);
      const Split split(call, s.B, kGroupRows / s.N);
      return split.over_parts([&](size_t, size_t first, size_t end) {
        Forward<T> forward(s, numbers, x, weights, split.group);
        for (; first < end; first += split.group) forward.run(first, std::min(first + split.group, end));
      });
    });
  }

  static int backward(const Call& call, const CallGradients& gradients) {
    return status([&] {
      const Shape s(call);
      const Tensors<T> x(s, call);
      const Gradients<T> g(gradients);
      const BackwardWeights<T> weights(s, x.parameters);
      const Split split(call, s.B, kGroupRows / s.N);
      std::vector<size_t> lengths;
      Parameters<size_t>(s, [&](size_t length) { lengths.push_back(length); return length; });
      const Sums<T> sums(split.threads, lengths);
      const bool done = split.over_parts([&](size_t thread, size_t first, size_t end) {
        T* next = sums.of(thread);
        const Parameters<T*> parameters(s, [&](size_t length) { next += length; return next - length; });
        Backward<T> backward(s, x, g, weights, split.group, parameters);
        for (; first < end; first += split.group) backward.run(first, std::min(first + split.group, end));
        backward.finish();
      });
      if (done) sums.write(gradients.parameters);
      return done;
    });
  }
};

}  // namespace

RMC_RL_KERNEL(rmc, Rmc)
