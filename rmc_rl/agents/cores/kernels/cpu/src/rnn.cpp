// LSTM and GRU over a sequence, as called from library.py: one product per step. Equations: cores/rnn.py.
//
// Letters: T time, B batch, W width. Sizes: T, B, W. Inputs: what the input says to the gates, (T, B, gates W). Parameters: the
// weight of h, (gates W, W), and its bias.

#include "cells.h"
#include "collected.h"
#include "product.h"
#include "states.h"
#include "threads.h"

namespace {

constexpr size_t kGroup = 64;  // batch entries that go through the steps together

template <class T, class Cell> class Rnn {
 public:
  static std::int64_t saved_size(const Call& call) { return call.sizes[0] * call.sizes[1] * call.sizes[2] * kKept; }

  static int forward(const Call& call) {
    return status([&] {
      const Rnn rnn(call);
      const Split split(call, rnn.B, kGroup);
      const Buffer<T> packed(packed_size<T>(rnn.W, rnn.gates()), Content::whatever);
      pack_transposed<T>(rnn.W, rnn.gates(), rnn.weight, rnn.W, packed);
      return split.over_parts([&](size_t, size_t first, size_t end) {
        const Buffer<T> h(split.group * rnn.W), room(rnn.saved ? 0 : split.group * kKept * rnn.W);
        for (; first < end; first += split.group) rnn.steps(packed, h, room, first, std::min(first + split.group, end));
      });
    });
  }

  static int backward(const Call& call, const CallGradients& g) {
    return status([&] {
      const Rnn rnn(call);
      const Split split(call, rnn.B, kGroup);
      const Buffer<T> packed(packed_size<T>(rnn.gates(), rnn.W), Content::whatever);
      pack<T>(rnn.gates(), rnn.W, rnn.weight, rnn.W, packed);
      const Sums<T> sums(split.threads, {rnn.gates() * rnn.W, rnn.gates()});
      const bool done = split.over_parts([&](size_t thread, size_t first, size_t end) {
        const Buffer<T> d(split.group * rnn.states.S);
        Collected<T> collect(rnn.gates(), rnn.W, split.group, sums.of(thread), sums.of(thread) + rnn.gates() * rnn.W);
        for (; first < end; first += split.group)
          rnn.steps_back(g, packed, collect, d, first, std::min(first + split.group, end));
        collect.flush();
      });
      if (done) sums.write(g.parameters);
      return done;
    });
  }

 private:
  const size_t T_, B, W;
  const States<T> states;
  const T *x, *weight, *bias;
  T* saved;

  explicit Rnn(const Call& call)
      : T_(call.sizes[0]), B(call.sizes[1]), W(call.sizes[2]), states(call, Cell::parts * W, 1),
        x(static_cast<const T*>(call.inputs[0])), weight(static_cast<const T*>(call.parameters[0])),
        bias(static_cast<const T*>(call.parameters[1])), saved(static_cast<T*>(call.saved)) {}

  size_t gates() const { return Cell::gates * W; }

  void steps(const T* packed, T* h, T* room, size_t first, size_t end) const {
    for (size_t t = 0; t < T_; ++t) {
      const size_t row = t * B + first;
      T* kept = saved ? saved + row * kKept * W : room;
      for (size_t b = first; b < end; ++b) std::memcpy(h + (b - first) * W, states.before(t, b), W * sizeof(T));
      times_packed<T>(end - first, gates(), W, h, W, packed, bias, kept, kKept * W);
      for (size_t b = first; b < end; ++b, kept += kKept * W)
        Cell::template forward<T>(W, W, x + (t * B + b) * gates(), kept, states.before(t, b),
                                  states.after + (t * B + b) * states.S);
    }
  }

  void steps_back(const CallGradients& g, const T* packed, Collected<T>& collect, T* d, size_t first, size_t end) const {
    const T* dstates = static_cast<const T*>(g.states);
    T *dx = static_cast<T*>(g.inputs[0]), *dstate = static_cast<T*>(g.inputs[1]), *dfresh = static_cast<T*>(g.inputs[2]);
    const size_t count = end - first;
    std::memset(d, 0, count * states.S * sizeof(T));
    for (size_t t = T_; t-- > 0;) {
      add_scaled<T>(count * states.S, T(1), dstates + (t * B + first) * states.S, d);
      collect.take(count);
      for (size_t b = first; b < end; ++b) {
        const size_t row = t * B + b;
        const T* before = states.before(t, b);
        std::memcpy(collect.input(b - first), before, W * sizeof(T));
        Cell::template backward<T>(W, W, saved + row * kKept * W, before, states.after + row * states.S,
                                   d + (b - first) * states.S, dx + row * gates(), collect.gradient(b - first));
      }
      times_packed<T, Into::add>(count, W, gates(), collect.gradient(0), collect.out_stride, packed, nullptr, d, states.S);
      states.leave(t, first, end, d, dfresh);
    }
    if (dstate) std::memcpy(dstate + first * states.S, d, count * states.S * sizeof(T));
  }
};

template <class T> using LstmKernel = Rnn<T, Lstm>;
template <class T> using GruKernel = Rnn<T, Gru>;

}  // namespace

RMC_RL_KERNEL(lstm, LstmKernel)
RMC_RL_KERNEL(gru, GruKernel)
