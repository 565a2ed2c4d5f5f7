// The gradients of weights: rows of many steps are collected for one large product.

#pragma once

#include <algorithm>

#include "buffer.h"
#include "product.h"

namespace rmc_rl {
namespace {

// Rows that are collected before each product: enough to amortise reading and writing the weight's gradient, few enough to
// stay in the cache
constexpr size_t kCollectedRows = 256;

// Layout of the weight of a linear layer
enum class Weight { out_in, in_out };

// Adds up the gradients of the weight and the bias of a linear layer from the rows of its inputs and of its output gradients
template <class T> class WeightGradient {
 public:
  const size_t out, in, out_stride, in_stride;

  // weight, bias: where the gradients are added; bias may be null. largest_append: the most rows of one append
  WeightGradient(size_t out, size_t in, size_t largest_append, T* weight, T* bias, Weight layout = Weight::out_in)
      : out(out), in(in), out_stride(stride_of<T>(out)), in_stride(stride_of<T>(in)), layout_(layout),
        capacity_(std::max(kCollectedRows, largest_append)), weight_(weight), bias_(bias),
        output_gradients_(capacity_ * out_stride), inputs_(capacity_ * in_stride) {}

  // Appends rows, which the caller fills before the next append
  void append(size_t rows) {
    if (filled_ + rows > capacity_) flush();
    start_ = filled_;
    filled_ += rows;
  }
  // Addresses of a row of the last append
  T* output_gradient(size_t row) const { return output_gradients_ + (start_ + row) * out_stride; }
  T* input(size_t row) const { return inputs_ + (start_ + row) * in_stride; }

  // Multiplies what has been collected
  void flush() {
    if (layout_ == Weight::out_in)
      add_transposed_times<T>(out, in, filled_, output_gradients_, out_stride, inputs_, in_stride, weight_, in);
    else
      add_transposed_times<T>(in, out, filled_, inputs_, in_stride, output_gradients_, out_stride, weight_, out);
    if (bias_)
      for (size_t row = 0; row < filled_; ++row) add_scaled<T>(out, T(1), output_gradients_ + row * out_stride, bias_);
    filled_ = 0;
  }

 private:
  Weight layout_;
  size_t capacity_, filled_ = 0, start_ = 0;
  T *weight_, *bias_;
  Buffer<T> output_gradients_, inputs_;
};

}  // namespace
}  // namespace rmc_rl
