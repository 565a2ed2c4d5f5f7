// The batch split over threads.
//
// Each thread takes its batch entries through all steps and never waits for another thread. Within a thread, the entries are
// processed in groups, so that the numbers of a step fit the cache. The threads are those of torch's OpenMP runtime where it
// can be called: they keep spinning for milliseconds after torch's last parallel region, and threads of our own would compete
// with them for the same cores.

#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "buffer.h"
#include "call.h"

namespace rmc_rl {
namespace {

// GOMP_parallel: (function, its argument, number of threads, flags)
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct BatchSplit {
  size_t threads, group, batch;  // group: at most so many batch entries go through the steps together
  Parallel parallel;

  BatchSplit(const Call& call, size_t largest_group)
      : threads(std::min<size_t>(std::max<std::int64_t>(call.threads, 1), call.batch)),
        group(std::min<size_t>(std::max<size_t>(1, largest_group), (call.batch + threads - 1) / threads)), batch(call.batch),
        parallel(reinterpret_cast<Parallel>(call.parallel)) {}

  // Runs f(thread, first, end) on as many parts of the batch as there are threads. An exception must not leave a parallel
  // region, so each part catches its own
  template <class F> Status for_each_part(F f) const {
    std::atomic<size_t> next{0};
    std::atomic<Status> status{done};
    auto work = [&]() noexcept {
      for (size_t part; (part = next++) < threads;) try {
          f(part, batch * part / threads, batch * (part + 1) / threads);
        } catch (const std::bad_alloc&) {
          status = out_of_memory;
        } catch (...) {
          status = failed;
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
      } catch (...) {  // no more threads can be started: those that run do all parts
      }
      work();
      for (auto& other : others) other.join();
    }
    return status;
  }

  // Runs f(first, end) on each group of a part
  template <class F> void for_each_group(size_t first, size_t end, F f) const {
    for (; first < end; first += group) f(first, std::min(first + group, end));
  }
};

// Runs f(next, first, end) on each part of the batch, where next(name, length) returns the address at which the thread adds up
// the gradient of the next parameter. Then writes the sums over threads to `gradients`
template <class T, class F>
Status sum_gradients(const BatchSplit& split, const NamedTensors& parameters, void* const* gradients, F f) {
  size_t total = 0;
  for (std::int64_t i = 0; i < parameters.count; ++i) total += parameters.lengths[i];
  std::vector<Buffer<T>> sums;
  for (size_t thread = 0; thread < split.threads; ++thread) sums.emplace_back(total);
  const Status status = split.for_each_part([&](size_t thread, size_t first, size_t end) {
    T* address = sums[thread];
    f([&](const std::string&, size_t length) { return (address += length) - length; }, first, end);
  });
  if (status != done) return status;
  for (size_t thread = 0; thread < split.threads; ++thread) {
    const T* sum = sums[thread];
    for (std::int64_t i = 0; i < parameters.count; sum += parameters.lengths[i++]) {
      T* gradient = static_cast<T*>(gradients[i]);
      if (thread == 0) std::memcpy(gradient, sum, parameters.lengths[i] * sizeof(T));
      else add_scaled<T>(parameters.lengths[i], T(1), sum, gradient);
    }
  }
  return done;
}

}  // namespace
}  // namespace rmc_rl
