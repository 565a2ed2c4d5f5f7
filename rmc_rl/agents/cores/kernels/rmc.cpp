// The Relational Memory Core over a sequence, as called from native.py. Letters: rmc.h.
//
// The batch is split over threads: each takes its batch entries through all steps without waiting for another. Within a
// thread, entries go in groups that keep a step's numbers in the cache. The threads are those of torch's OpenMP runtime where
// it can be called: threads of our own would share the cores with them, as they spin for milliseconds after their last work.

#include "rmc.h"

#include <atomic>
#include <system_error>
#include <thread>

#include "rmc_backward.h"
#include "rmc_forward.h"

namespace {

constexpr size_t kGroupRows = 64;  // rows of slots that go through the steps together

// GOMP_parallel of the OpenMP runtime that torch brings: (function, its argument, threads, flags)
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct Split {
  size_t threads, group, batch;
  Parallel parallel;

  Split(const Shape& s, const RmcSizes& sizes)
      : threads(std::min<size_t>(std::max<std::int64_t>(sizes.threads, 1), s.B)), group(std::max<size_t>(1, kGroupRows / s.N)),
        batch(s.B), parallel(reinterpret_cast<Parallel>(sizes.parallel)) {
    group = std::min(group, (s.B + threads - 1) / threads);
  }

  // f(part, first, end) for each of as many parts of the batch as there are threads; false: there was too little memory
  template <class F> bool over_parts(F f) const {
    std::atomic<size_t> next{0};
    std::atomic<bool> done{true};
    auto work = [&] {
      for (size_t part; (part = next++) < threads;) try {
          f(part, batch * part / threads, batch * (part + 1) / threads);
        } catch (const std::bad_alloc&) {
          done = false;
        }
    };
    if (threads == 1) {
      work();
    } else if (parallel) {
      parallel([](void* function) { (*static_cast<decltype(work)*>(function))(); }, &work, static_cast<unsigned>(threads), 0);
    } else {
      std::vector<std::thread> others;
      try {
        while (others.size() + 1 < threads) others.emplace_back(work);
      } catch (const std::system_error&) {  // no more threads to be had: those there are do all
      }
      work();
      for (auto& other : others) other.join();
    }
    return done;
  }
};

template <class T> int forward(const RmcSizes& sizes, const RmcTensors& tensors) try {
  const Shape s(sizes);
  const Tensors<T> x(s, tensors);
  const ForwardWeights<T> weights(s, x.parameters);
  const Split split(s, sizes);
  return split.over_parts([&](size_t, size_t first, size_t end) {
    Forward<T> forward(s, sizes, x, weights, split.group);
    for (; first < end; first += split.group) forward.run(first, std::min(first + split.group, end));
  }) ? 0 : 1;
} catch (const std::exception&) {
  return 1;
}

template <class T> int backward(const RmcSizes& sizes, const RmcTensors& tensors, const RmcGradients& gradients) try {
  const Shape s(sizes);
  const Tensors<T> x(s, tensors);
  const Gradients<T> g(gradients);
  const BackwardWeights<T> weights(s, x.parameters);
  const Split split(s, sizes);
  std::vector<size_t> lengths;
  Parameters<size_t>(s, [&](size_t length) { lengths.push_back(length); return length; });
  size_t total = 0;
  for (size_t length : lengths) total += length;
  std::vector<Buffer<T>> sums;
  for (size_t thread = 0; thread < split.threads; ++thread) sums.emplace_back(total);
  const bool done = split.over_parts([&](size_t thread, size_t first, size_t end) {
    T* next = sums[thread];
    const Parameters<T*> parameters(s, [&](size_t length) { next += length; return next - length; });
    Backward<T> backward(s, x, g, weights, split.group, parameters);
    for (; first < end; first += split.group) backward.run(first, std::min(first + split.group, end));
    backward.finish();
  });
  if (!done) return 1;
  for (size_t thread = 0; thread < split.threads; ++thread) {
    const T* from = sums[thread];
    for (size_t i = 0; i < lengths.size(); from += lengths[i++]) {
      T* to = static_cast<T*>(gradients.parameters[i]);
      if (thread == 0) std::memcpy(to, from, lengths[i] * sizeof(T));
      else add_scaled<T>(lengths[i], T(1), from, to);
    }
  }
  return 0;
} catch (const std::exception&) {
  return 1;
}

}  // namespace

#define RMC_RL_EXPORT extern "C" __attribute__((visibility("default")))

// numbers that forward keeps for backward
RMC_RL_EXPORT std::int64_t rmc_saved_size(const RmcSizes* sizes) {
  const Shape s(*sizes);
  return static_cast<std::int64_t>(Saved<float>(s, nullptr, s.T, s.B).size);
}

// 0: done, 1: out of memory or threads
RMC_RL_EXPORT int rmc_forward_float32(const RmcSizes* s, const RmcTensors* x) { return forward<float>(*s, *x); }
RMC_RL_EXPORT int rmc_forward_float64(const RmcSizes* s, const RmcTensors* x) { return forward<double>(*s, *x); }
RMC_RL_EXPORT int rmc_backward_float32(const RmcSizes* s, const RmcTensors* x, const RmcGradients* g) { return backward<float>(*s, *x, *g); }
RMC_RL_EXPORT int rmc_backward_float64(const RmcSizes* s, const RmcTensors* x, const RmcGradients* g) { return backward<double>(*s, *x, *g); }

// what the library was built from
RMC_RL_EXPORT const char* rmc_rl_sources() { return RMC_RL_SOURCES; }
