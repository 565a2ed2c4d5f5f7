// The gradients of weights, as products of many steps at once.

#pragma once

#include <algorithm>

#include "buffer.h"
#include "product.h"

namespace {

// rows of a linear layer's inputs and gradients that are collected before they are multiplied: enough for the product to
// be worth reading and writing the weight's gradient, few enough to stay in the cache
constexpr size_t kCollected = 256;

// whether a linear layer's weight is (out, in) or (in, out)
enum class Weight { out_in, in_out };

// Collects what the gradient of a linear layer's weight and bias is made of
template <class T> class Collected {
 public:
  const size_t out, in, out_stride, in_stride;

  Collected(size_t out, size_t in, size_t most_rows, T* weight, T* bias, Weight order = Weight::out_in)
      : out(out), in(in), out_stride(stride_of<T>(out)), in_stride(stride_of<T>(in)), order_(order),
        capacity_(std::max(kCollected, most_rows)), weight_(weight), bias_(bias), gradients_(capacity_ * out_stride),
        inputs_(capacity_ * in_stride) {}

  // room for some more rows: to be filled before the next call
  void take(size_t rows) {
    if (filled_ + rows > capacity_) flush();
    start_ = filled_;
    filled_ += rows;
  }
  T* gradient(size_t row) const { return gradients_ + (start_ + row) * out_stride; }
  T* input(size_t row) const { return inputs_ + (start_ + row) * in_stride; }

  void flush() {
    if (order_ == Weight::out_in)
      add_transposed_times<T>(out, in, filled_, gradients_, out_stride, inputs_, in_stride, weight_, in);
    else
      add_transposed_times<T>(in, out, filled_, inputs_, in_stride, gradients_, out_stride, weight_, out);
    if (bias_)
      for (size_t row = 0; row < filled_; ++row) add_scaled<T>(out, T(1), gradients_ + row * out_stride, bias_);
    filled_ = 0;
  }

 private:
  Weight order_;
  size_t capacity_, filled_ = 0, start_ = 0;
  T *weight_, *bias_;
  Buffer<T> gradients_, inputs_;
};

}  // namespace
