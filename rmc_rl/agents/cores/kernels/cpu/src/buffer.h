// Memory: work buffers of a call, and arrays that keep values of each step for the backward pass.

#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "vector.h"

namespace rmc_rl {
namespace {

enum class Content { zeros, uninitialized };

// An array that starts at a cache line. A whole vector may be read at its last element
template <class T> class Buffer {
 public:
  explicit Buffer(size_t size, Content content = Content::zeros) {
    const size_t bytes = round_up((size + kLanes<T>) * sizeof(T), 64);
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    if (content == Content::zeros) std::memset(data_.get(), 0, bytes);
  }
  operator T*() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// An array with `size` numbers for each batch entry at each step
template <class T> struct StepArray {
  T* base;
  size_t size, step_stride;  // step_stride 0: all steps share the memory

  T* at(size_t t, size_t b) const { return base + t * step_stride + b * size; }
};

// Places step arrays one after the other in a block of memory. steps = 1: all steps share the memory of one. base = null: only
// computes the size of the block
template <class T> class StepArrays {
 public:
  StepArrays(T* base, size_t steps, size_t batch) : base_(base), steps_(steps), batch_(batch) {}

  StepArray<T> add(size_t size) {
    const StepArray<T> array{base_ ? base_ + total_ : nullptr, size, steps_ > 1 ? size * batch_ : 0};
    total_ += round_up(size * batch_ * steps_, 64 / sizeof(T));
    return array;
  }
  size_t total() const { return total_; }

 private:
  T* base_;
  size_t steps_, batch_, total_ = 0;
};

}  // namespace
}  // namespace rmc_rl
