// Work split over threads.
//
// The batch is split: each thread takes its batch entries through all steps without waiting for another. Within a thread,
// entries go in groups that keep a step's numbers in the cache. The threads are those of torch's OpenMP runtime where it can
// be called: threads of our own would share the cores with them, as they spin for milliseconds after their last work.

#pragma once

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "buffer.h"
#include "call.h"

namespace {

// GOMP_parallel of the OpenMP runtime that torch brings: (function, its argument, threads, flags)
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct Split {
  size_t threads, group, batch;
  Parallel parallel;

  // together: how many batch entries go through the steps together, where a thread has as many
  Split(const Call& call, size_t batch, size_t together)
      : threads(std::min<size_t>(std::max<std::int64_t>(call.threads, 1), batch)),
        group(std::min(std::max<size_t>(1, together), (batch + threads - 1) / threads)), batch(batch),
        parallel(reinterpret_cast<Parallel>(call.parallel)) {}

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

// What a kernel's function returns; f tells whether all went well
template <class F> int status(F f) {
  try {
    return f() ? 0 : 1;
  } catch (const std::exception&) {
    return 1;
  }
}

// What each thread adds up of the gradients of several tensors
template <class T> class Sums {
 public:
  Sums(size_t threads, const std::vector<size_t>& lengths) : lengths_(lengths) {
    size_t total = 0;
    for (size_t length : lengths) total += length;
    for (size_t thread = 0; thread < threads; ++thread) parts_.emplace_back(total);
  }

  T* of(size_t thread) const { return parts_[thread]; }

  // the sums over threads, to where each tensor lies
  void write(void* const* tensors) const {
    for (size_t thread = 0; thread < parts_.size(); ++thread) {
      const T* from = parts_[thread];
      for (size_t i = 0; i < lengths_.size(); from += lengths_[i++]) {
        T* to = static_cast<T*>(tensors[i]);
        if (thread == 0) std::memcpy(to, from, lengths_[i] * sizeof(T));
        else add_scaled<T>(lengths_[i], T(1), from, to);
      }
    }
  }

 private:
  std::vector<size_t> lengths_;
  std::vector<Buffer<T>> parts_;
};

}  // namespace
