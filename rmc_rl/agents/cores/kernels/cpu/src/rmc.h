// The Relational Memory Core over a sequence: sizes, tensors and the values that forward saves for backward.
//
// Equations and letters: cores/rmc.py. T time, B batch, N slots, n input rows, D width, H heads, K key size, V value size, G
// gate numbers per slot (0: no gates), E = H (2K + V) numbers of queries, keys and values of a row, R = N + n rows.
//
// Mirrored by cpu/rmc.py: the structure Sizes, the names of the inputs and the names of the parameters. The states are the
// memories, (T, B, N, D).

#pragma once

#include <string>
#include <vector>

#include "attention.h"
#include "buffer.h"
#include "product.h"
#include "states.h"

namespace rmc_rl::rmc {

struct Sizes {
  std::int64_t num_slots, num_entities, num_heads, key_size, head_size, num_blocks, mlp_layers, gate_size;
  double input_bias, forget_bias, epsilon;
};

namespace {

struct Shape {
  size_t T, B, N, n, H, K, V, num_blocks, mlp_layers, G, D, E, R;
  double input_bias, forget_bias, epsilon;

  explicit Shape(const Call& call) : Shape(call, sizes_of<Sizes>(call)) {}
  Shape(const Call& call, const Sizes& s)
      : T(call.time), B(call.batch), N(s.num_slots), n(s.num_entities), H(s.num_heads), K(s.key_size), V(s.head_size),
        num_blocks(s.num_blocks), mlp_layers(s.mlp_layers), G(s.gate_size), D(H * V), E(H * (2 * K + V)), R(N + n),
        input_bias(s.input_bias), forget_bias(s.forget_bias), epsilon(s.epsilon) {}

  bool is_last(size_t block) const { return block + 1 == num_blocks; }
  // Rows of a batch entry whose queries, keys and values are computed at each step. (Those of the input rows in the first
  // block are an input.)
  size_t projected(size_t block) const { return block == 0 ? N : R; }
  // Rows with a query, which are the rows that a block writes
  size_t queries(size_t block) const { return is_last(block) ? N : R; }
  Heads heads(size_t block) const { return {H, K, V, queries(block), R}; }
};

// A value for each parameter: the address of a weight or of its gradient
template <class P> struct Parameters {
  struct Linear {
    P weight, bias;
  };
  struct Block {
    Linear qkv, qkv_norm, attention_norm, mlp_norm;
  };
  std::vector<Block> blocks;
  std::vector<Linear> mlp;
  P gate_from_memory{};

  // next(name, length): the value of the next parameter
  template <class F> Parameters(const Shape& s, F next) {
    const auto linear = [&](const std::string& name, size_t weight, size_t bias) {
      Linear both;
      both.weight = next(name + ".weight", weight);
      both.bias = next(name + ".bias", bias);
      return both;
    };
    for (size_t index = 0; index < s.num_blocks; ++index) {
      const std::string prefix = "blocks." + std::to_string(index);
      Block block;
      block.qkv = linear(prefix + ".qkv", s.E * s.D, s.E);
      block.qkv_norm = linear(prefix + ".qkv_norm", s.E, s.E);
      block.attention_norm = linear(prefix + ".attention_norm", s.D, s.D);
      block.mlp_norm = linear(prefix + ".mlp_norm", s.D, s.D);
      blocks.push_back(block);
    }
    for (size_t layer = 0; layer < s.mlp_layers; ++layer)
      mlp.push_back(linear("mlp." + std::to_string(layer), s.D * s.D, s.D));
    if (s.G) gate_from_memory = next("gate_from_memory.weight", 2 * s.G * s.D);
  }
};

// Values that forward saves for backward. Without a backward pass, memory for one step is enough
template <class T> struct Saved {
  struct Block {
    // normed: before gamma and beta; scale: 1 / deviation of each row
    StepArray<T> qkv_normed, qkv_scale, attention_weights, attention_normed, attention_scale, mlp_normed, mlp_scale;
    std::vector<StepArray<T>> hidden;  // of the MLP, after the ReLU
  };
  std::vector<Block> blocks;
  StepArray<T> gates;  // after the sigmoid
  size_t length;

  Saved(const Shape& s, T* base, size_t steps, size_t batch) {
    StepArrays<T> arrays(base, steps, batch);
    for (size_t index = 0; index < s.num_blocks; ++index) {
      const size_t rows = s.queries(index);
      Block block;
      block.qkv_normed = arrays.add(s.projected(index) * s.E);
      block.qkv_scale = arrays.add(s.projected(index));
      block.attention_weights = arrays.add(s.H * rows * s.R);
      block.attention_normed = arrays.add(rows * s.D);
      block.attention_scale = arrays.add(rows);
      block.mlp_normed = arrays.add(rows * s.D);
      block.mlp_scale = arrays.add(rows);
      for (size_t layer = 0; layer + 1 < s.mlp_layers; ++layer) block.hidden.push_back(arrays.add(rows * s.D));
      blocks.push_back(block);
    }
    gates = arrays.add(s.N * 2 * s.G);
    length = arrays.total();
  }
};

template <class T> struct Tensors : States<T> {
  Parameters<const T*> parameters;
  const T *input_qkv;    // normalised queries, keys and values of the input rows in the first block, (T, B, n, E)
  const T *input_rows;   // (T, B, n, D); null with one block
  const T *input_gates;  // the input's part of the gates, (T, B, 2G); null without gates
  T* saved;

  Tensors(const Shape& s, const Call& call)
      : Tensors(s, call, TensorReader<T>("input", call.inputs), TensorReader<T>("parameter", call.parameters)) {}

 private:
  Tensors(const Shape& s, const Call& call, TensorReader<T> inputs, TensorReader<T> reader)
      : States<T>(call, s.N * s.D, inputs),
        parameters(s, [&](const std::string& name, size_t length) { return reader.next(name, length); }),
        input_qkv(inputs.next("input_qkv", s.T * s.B * s.n * s.E)),
        input_rows(inputs.next("input_rows", s.num_blocks > 1 ? s.T * s.B * s.n * s.D : 0)),
        input_gates(inputs.next("input_gates", s.T * s.B * 2 * s.G)), saved(static_cast<T*>(call.saved)) {
    inputs.finish();
    reader.finish();
  }
};

}  // namespace
}  // namespace rmc_rl::rmc
