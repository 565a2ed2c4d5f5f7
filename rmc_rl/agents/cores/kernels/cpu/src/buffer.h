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

// Cuts a room into pieces, one behind the other. Room for one step: each step overwrites the one before. No room: for the size
template <class T> class Pieces {
 public:
  Pieces(T* base, size_t steps, size_t batch) : base_(base), steps_(steps), batch_(batch) {}

  // numbers: of a batch entry at a step
  Piece<T> next(size_t numbers) {
    const Piece<T> piece{base_ ? base_ + size_ : nullptr, numbers, steps_ > 1 ? numbers * batch_ : 0};
    size_ += round_up(numbers * batch_ * steps_, 64 / sizeof(T));
    return piece;
  }
  size_t size() const { return size_; }

 private:
  T* base_;
  size_t steps_, batch_, size_ = 0;
};

}  // namespace
