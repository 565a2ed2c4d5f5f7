// Room for numbers: for a call, and for what is kept of each step.

#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "vector.h"

namespace {

enum class Content { zeros, whatever };

// Room that begins with a cache line and ends with a vector that may be read
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

// Numbers kept of each step and batch entry
template <class T> struct Piece {
  T* base;
  size_t size, per_step;  // numbers of a batch entry; of a step (0: each step overwrites the one before)

  T* at(size_t t, size_t b) const { return base + t * per_step + b * size; }
};

}  // namespace
