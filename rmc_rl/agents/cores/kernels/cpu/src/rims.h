// Layers of recurrent modules over a sequence, as in RIMs and BRIMs: sizes, tensors and the values that forward saves for
// backward.
//
// Equations and letters: cores/rims_layer.py and cores/brims.py. T time, B batch, S numbers of a state, H heads and d key size
// of the input attention. Of a layer: K modules, k active modules, s module size, a numbers that a module reads, R rows of the
// input attention, E numbers of queries, keys and values of a module in the communication, G gate numbers of a module.
//
// A row of the input attention holds keys, (H d), and values, (a). The rows of a layer, in this order: the null row, if the
// variant has one; the input rows, in the first layer only; and the step row, which depends on a state and is computed at each
// step. The step row of the first layer is computed from the last layer's h before the step (top-down); that of another layer
// from the h of the layer below.
//
// Mirrored by cpu/rims.py: the structures Sizes and LayerSizes, the names of the inputs and the names of the parameters.

#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "attention.h"
#include "buffer.h"
#include "cells.h"
#include "product.h"
#include "states.h"
#include "weight_gradient.h"

namespace rmc_rl::rims {

// Position in VARIANTS of cores/rims_layer.py
enum Variant : std::int64_t { official, atari, dido };

struct LayerSizes {
  std::int64_t num_modules, num_active, module_size, read_size, comm_heads, comm_key_size, comm_value_size;
  std::int64_t distinct_rows;  // rows that are not copies of another row, without the null row
};

struct Sizes {
  std::int64_t num_layers, layer_struct_size;  // layer_struct_size: sizeof(LayerSizes)
  const LayerSizes* layers;
  std::int64_t num_input_rows, input_heads, input_key_size, variant, top_down;
  std::int64_t hide_inactive;   // the layer above reads zeros for inactive modules
  std::int64_t block_gradient;  // inactive modules get no gradient from the layer above
  double score_scale;           // factor of the scores of the input attention
};

namespace {

struct Layer {
  size_t K, k, s, a, R, num_input_rows;
  size_t keys, row;           // numbers of the keys of a row, and of the whole row
  size_t E, comm_read;        // comm_read: numbers that a module reads in the communication
  size_t message;             // numbers that the last layer of the communication writes for a module
  size_t step_row_inputs;     // numbers that the step row is computed from; 0: there is no step row
  size_t h, G, state_parts;   // h: offset of h in the state. An LSTM has two state parts: c follows h
  size_t num_kept;            // the input attention is made sparse if it has more than num_kept + 1 weights
  bool has_null_row, communicates;
  Heads comm;

  size_t width() const { return K * s; }
};

struct Shape {
  size_t T, B, num_layers, S = 0, H, d;
  Variant variant;
  bool hide_inactive, block_gradient;
  double score_scale;
  std::vector<Layer> layers;

  template <class Cell> static Shape of(const Call& call) {
    const Sizes& sizes = sizes_of<Sizes>(call);
    check_equal("bytes of the structure LayerSizes", sizes.layer_struct_size, sizeof(LayerSizes));
    Shape shape;
    shape.T = call.time;
    shape.B = call.batch;
    shape.num_layers = sizes.num_layers;
    shape.H = sizes.input_heads;
    shape.d = sizes.input_key_size;
    shape.variant = static_cast<Variant>(sizes.variant);
    shape.hide_inactive = sizes.hide_inactive;
    shape.block_gradient = sizes.block_gradient;
    shape.score_scale = sizes.score_scale;
    for (size_t index = 0; index < shape.num_layers; ++index) {
      const LayerSizes& from = sizes.layers[index];
      Layer l;
      l.K = from.num_modules;
      l.k = from.num_active;
      l.s = from.module_size;
      l.a = from.read_size;
      const size_t heads = from.comm_heads, key = from.comm_key_size, value = from.comm_value_size;
      l.comm = {heads, key, value, l.K, l.K};
      l.communicates = heads > 0;
      l.E = heads * l.comm.per_head();
      l.comm_read = heads * value;
      l.message = shape.variant == dido ? l.s : 2 * l.s;
      l.keys = shape.H * shape.d;
      l.row = l.keys + l.a;
      l.has_null_row = shape.variant != atari;
      l.num_input_rows = index == 0 ? sizes.num_input_rows : 0;
      l.step_row_inputs = index > 0 ? shape.layers.back().width() : 0;
      l.state_parts = Cell::state_parts;
      l.G = Cell::gates * l.s;
      l.h = shape.S;
      l.num_kept = shape.variant == atari ? l.k : from.distinct_rows + 1;
      shape.S += l.state_parts * l.width();
      shape.layers.push_back(l);
    }
    if (sizes.top_down) shape.layers.front().step_row_inputs = shape.layers.back().width();
    for (Layer& l : shape.layers) l.R = l.has_null_row + l.num_input_rows + (l.step_row_inputs > 0);
    return shape;
  }

  // The largest size of any layer
  template <class F> size_t largest(F size) const {
    size_t found = 0;
    for (const Layer& l : layers) found = std::max(found, size(l));
    return found;
  }
};

// A linear layer for each module, with weight (groups, in, out), or one for all modules, with weight (out, in)
struct LinearSizes {
  const char* name;
  size_t groups, out, in;
  bool bias;
  Weight layout;

  bool exists() const { return out > 0 && in > 0; }
};

// message: the last layer of the communication. step_row: keys and values of the step row
enum Linears { query, from_state, from_read, qkv, message, step_row };

inline std::vector<LinearSizes> linears_of(const Shape& shape, const Layer& l) {
  const bool is_dido = shape.variant == dido;
  const auto per_module = [&](const char* name, size_t out, size_t in, bool bias) {
    return LinearSizes{name, l.K, out, in, bias, Weight::in_out};
  };
  const auto shared = [](const char* name, size_t out, size_t in, bool bias) {
    return LinearSizes{name, 1, out, in, bias, Weight::out_in};
  };
  return {per_module("query", l.keys, l.s, false),
          per_module("from_state", l.G, l.s, !is_dido),
          per_module("from_read", l.G, l.a, !is_dido),
          per_module("qkv", l.E, l.s, false),
          is_dido ? per_module("message", l.message, l.comm_read, false) : shared("message", l.message, l.comm_read, true),
          shared("step_row", l.row, l.step_row_inputs, is_dido)};
}

// A value for each parameter: the address of a weight or of its gradient
template <class P> struct Parameters {
  struct Linear {
    P weight{}, bias{};
  };
  struct OfLayer {
    std::vector<Linear> linears;
    P null_row{};
  };
  std::vector<OfLayer> layers;

  // next(name, length): the value of the next parameter
  template <class F> Parameters(const Shape& shape, F next) {
    for (size_t index = 0; index < shape.num_layers; ++index) {
      const Layer& l = shape.layers[index];
      const std::string prefix = "layers." + std::to_string(index) + ".";
      OfLayer of_layer;
      for (const LinearSizes& sizes : linears_of(shape, l)) {
        Linear linear;
        if (sizes.exists()) {
          linear.weight = next(prefix + sizes.name + ".weight", sizes.groups * sizes.out * sizes.in);
          if (sizes.bias) linear.bias = next(prefix + sizes.name + ".bias", sizes.groups * sizes.out);
        }
        of_layer.linears.push_back(linear);
      }
      if (l.has_null_row) of_layer.null_row = next(prefix + "null_row", l.row);
      layers.push_back(of_layer);
    }
  }
};

enum class Pass { forward, backward };

// The weights, packed as the right factors of products with inputs (forward) or with output gradients (backward). All threads
// share them
template <class T> struct PackedWeights {
  struct Linear {
    LinearSizes sizes;
    size_t group_stride;
    Buffer<T> weights;

    const T* of(size_t group) const { return weights + group * group_stride; }
  };
  std::vector<std::vector<Linear>> layers;

  PackedWeights(const Shape& shape, const Parameters<const T*>& parameters, Pass pass) {
    const bool back = pass == Pass::backward;
    for (size_t index = 0; index < shape.num_layers; ++index) {
      std::vector<Linear> linears;
      const auto all = linears_of(shape, shape.layers[index]);
      for (size_t i = 0; i < all.size(); ++i) {
        const auto& sizes = all[i];
        // the right factor is (rows, columns)
        const size_t rows = back ? sizes.out : sizes.in, columns = back ? sizes.in : sizes.out;
        const size_t group_stride = packed_size<T>(rows, columns);
        linears.push_back({sizes, group_stride, Buffer<T>(sizes.groups * group_stride, Content::uninitialized)});
        const T* weight = parameters.layers[index].linears[i].weight;
        for (size_t group = 0; weight && group < sizes.groups; ++group, weight += rows * columns) {
          T* packed = linears.back().weights + group * group_stride;
          if (back == (sizes.layout == Weight::out_in)) pack<T>(rows, columns, weight, columns, packed);
          else pack_transposed<T>(rows, columns, weight, rows, packed);
        }
      }
      layers.push_back(std::move(linears));
    }
  }
};

// Values that forward saves for backward. Without a backward pass, memory for one step is enough
template <class T> struct Saved {
  struct OfLayer {
    StepArray<T> query, step_row;
    StepArray<T> weights;      // of the input attention, (R, H, K), before they are made sparse
    StepArray<T> active;       // 1 or 0 for each module
    StepArray<T> cell;         // what the cells save
    StepArray<T> provisional;  // the states of all modules before communication
    StepArray<T> qkv, comm_weights;
    StepArray<T> message;      // of the gated communication: tanh of the message, then the gate
  };
  std::vector<OfLayer> layers;
  size_t length;

  Saved(const Shape& shape, T* base, size_t steps, size_t batch) {
    StepArrays<T> arrays(base, steps, batch);
    for (const Layer& l : shape.layers) {
      OfLayer of_layer;
      of_layer.query = arrays.add(l.K * l.keys);
      of_layer.step_row = arrays.add(l.step_row_inputs ? l.row : 0);
      of_layer.weights = arrays.add(l.R * shape.H * l.K);
      of_layer.active = arrays.add(l.K);
      of_layer.cell = arrays.add(kSavedPerUnit * l.width());
      of_layer.provisional = arrays.add(l.state_parts * l.width());
      of_layer.qkv = arrays.add(l.K * l.E);
      of_layer.comm_weights = arrays.add(l.communicates ? l.comm.count * l.K * l.K : 0);
      of_layer.message = arrays.add(l.communicates && l.message > l.s ? l.K * l.message : 0);
      layers.push_back(of_layer);
    }
    length = arrays.total();
  }
};

// How many of n numbers rank before the i-th one: larger ones, and equal ones with a smaller index
template <class T> size_t rank(size_t n, size_t stride, const T* x, size_t i) {
  size_t count = 0;
  for (size_t j = 0; j < n; ++j) count += x[j * stride] > x[i * stride] || (x[j * stride] == x[i * stride] && j < i);
  return count;
}

// Sparse attention over n weights: cores/layers.py, sparsify. Returns the sum of what exceeds the threshold, by which the kept
// weights are divided, or 0 if all weights stay as they are. threshold_index: the weight that sets the threshold
template <class T> T sparsify(size_t n, size_t stride, size_t num_kept, const T* weights, T* sparse, size_t* threshold_index) {
  constexpr T tiny = T(1e-7);
  if (n <= num_kept + 1) {
    for (size_t i = 0; i < n; ++i) sparse[i * stride] = weights[i * stride];
    return 0;
  }
  for (size_t i = 0; i < n; ++i)
    if (rank(n, stride, weights, i) == num_kept) *threshold_index = i;
  const T threshold = weights[*threshold_index * stride] + tiny;
  T total = tiny;
  for (size_t i = 0; i < n; ++i) total += weights[i * stride] > threshold ? weights[i * stride] - threshold : T(0);
  for (size_t i = 0; i < n; ++i)
    sparse[i * stride] = (weights[i * stride] > threshold ? weights[i * stride] - threshold : T(0)) / total;
  return total;
}

// From the gradient of the sparse weights to that of the weights, in place. total, threshold_index: as sparsify returned them
template <class T>
void sparsify_backward(size_t n, size_t stride, T total, size_t threshold_index, const T* sparse, T* gradient) {
  if (total == 0) return;
  T mean = 0, dthreshold = 0;
  for (size_t i = 0; i < n; ++i) mean += gradient[i * stride] * sparse[i * stride];
  for (size_t i = 0; i < n; ++i) {
    gradient[i * stride] = sparse[i * stride] > 0 ? (gradient[i * stride] - mean) / total : T(0);
    dthreshold += gradient[i * stride];
  }
  gradient[threshold_index * stride] -= dthreshold;
}

template <class T> struct Tensors : States<T> {
  Parameters<const T*> parameters;
  const T* input_rows;  // (T, B, rows, H d + a)
  T* saved;

  Tensors(const Shape& shape, const Call& call)
      : Tensors(shape, call, TensorReader<T>("input", call.inputs), TensorReader<T>("parameter", call.parameters)) {}

  // Writes the addresses of the rows of a layer at step t
  void rows_at(const Shape& shape, size_t index, size_t t, size_t b, const T* step_row, const T** rows) const {
    const Layer& l = shape.layers[index];
    if (l.has_null_row) *rows++ = parameters.layers[index].null_row;
    for (size_t r = 0; r < l.num_input_rows; ++r) *rows++ = input_rows + ((t * shape.B + b) * l.num_input_rows + r) * l.row;
    if (l.step_row_inputs) *rows = step_row;
  }

 private:
  Tensors(const Shape& shape, const Call& call, TensorReader<T> inputs, TensorReader<T> reader)
      : States<T>(call, shape.S, inputs),
        parameters(shape, [&](const std::string& name, size_t length) { return reader.next(name, length); }),
        input_rows(inputs.next("input_rows", shape.T * shape.B * shape.layers[0].num_input_rows * shape.layers[0].row)),
        saved(static_cast<T*>(call.saved)) {
    inputs.finish();
    reader.finish();
  }
};

// What module m reads from the rows, (a): each head reads its part of the values. weights: sparse, (R, H, K)
template <class T>
void read_rows(const Shape& shape, const Layer& l, const T* weights, const T* const* rows, size_t m, T* read) {
  const size_t part = l.a / shape.H;
  const size_t first = shape.variant == official;  // the values of its null row are 0
  for (size_t h = 0; h < shape.H; ++h) {
    const T* weight = weights + (first * shape.H + h) * l.K + m;
    weighted_sum<T>(part, l.R - first, weight, shape.H * l.K, [&](size_t r) { return rows[first + r] + l.keys + h * part; },
                    read + h * part);
  }
}

}  // namespace
}  // namespace rmc_rl::rims
