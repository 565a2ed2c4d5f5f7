// Layers of recurrent modules over a sequence, as called from library.py. Letters: rims.h.

#include "rims.h"

#include "rims_backward.h"
#include "rims_forward.h"
#include "threads.h"

namespace {

constexpr size_t kGroup = 16;  // batch entries that go through the steps together

template <class T, class Cell> struct Modules {
  static std::int64_t saved_size(const Call& call) {
    const Shape shape = Shape::of<Cell>(call);
    return static_cast<std::int64_t>(Saved<T>(shape, nullptr, shape.T, shape.B).size);
  }

  static int forward(const Call& call) {
    return status([&] {
      const Shape shape = Shape::of<Cell>(call);
      const Tensors<T> x(shape, call);
      const Packed<T> packed(shape, x.parameters, false);
      const Split split(call, shape.B, kGroup);
      return split.over_parts([&](size_t, size_t first, size_t end) {
        Forward<T, Cell> forward(shape, x, packed, split.group);
        for (; first < end; first += split.group) forward.run(first, std::min(first + split.group, end));
      });
    });
  }

  static int backward(const Call& call, const CallGradients& g) {
    return status([&] {
      const Shape shape = Shape::of<Cell>(call);
      const Tensors<T> x(shape, call);
      const Packed<T> packed(shape, x.parameters, true);
      const Split split(call, shape.B, kGroup);
      std::vector<size_t> lengths;
      Parameters<size_t>(shape, [&](size_t length) { lengths.push_back(length); return length; });
      const Sums<T> sums(split.threads, lengths);
      const bool done = split.over_parts([&](size_t thread, size_t first, size_t end) {
        T* next = sums.of(thread);
        const Parameters<T*> parameters(shape, [&](size_t length) { next += length; return next - length; });
        Backward<T, Cell> backward(shape, x, static_cast<T*>(g.inputs[0]), packed, split.group, parameters);
        for (; first < end; first += split.group)
          backward.run(first, std::min(first + split.group, end), static_cast<const T*>(g.states), static_cast<T*>(g.inputs[1]),
                       static_cast<T*>(g.inputs[2]));
        backward.finish();
      });
      if (done) sums.write(g.parameters);
      return done;
    });
  }
};

template <class T> using LstmModules = Modules<T, Lstm>;
template <class T> using GruModules = Modules<T, Gru>;

}  // namespace

RMC_RL_KERNEL(modules_lstm, LstmModules)
RMC_RL_KERNEL(modules_gru, GruModules)
