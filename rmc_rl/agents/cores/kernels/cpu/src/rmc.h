// The Relational Memory Core over a sequence: sizes, parameters and what the way back needs to remember.
//
// The computation is that of cores/rmc.py, which says where it comes from. Letters as there: T time, B batch, N slots, n input
// rows, D width, H heads, K key size, V head size, G numbers per gate and slot (0: no gates), E = H (2K + V).

#pragma once

#include <vector>

#include "attention.h"
#include "buffer.h"
#include "product.h"
#include "states.h"

// The inputs: queries, keys and values of the first block, normalised, (T, B, n, E); the rows, (T, B, n, D), null with one
// block; what the input adds to the gates, (T, B, 2G), null without gates; the memory before and the fresh one, (B, N, D).
// Parameters: in the order of `Parameters`. The states are the memories, (T, B, N, D).

namespace {

struct RmcSizes {
  std::int64_t time, batch, slots, entities, heads, key, head, blocks, layers, gate;
};

struct RmcNumbers {
  double input_bias, forget_bias, epsilon;
};

struct Shape {
  size_t T, B, N, n, H, K, V, L, layers, G, D, E, R;

  explicit Shape(const Call& call) : Shape(*reinterpret_cast<const RmcSizes*>(call.sizes)) {}
  explicit Shape(const RmcSizes& s)
      : T(s.time), B(s.batch), N(s.slots), n(s.entities), H(s.heads), K(s.key), V(s.head), L(s.blocks), layers(s.layers),
        G(s.gate), D(H * V), E(H * (2 * K + V)), R(N + n) {}

  bool last(size_t block) const { return block + 1 == L; }
  // rows of one batch entry: whose queries, keys and values are computed in the loop, and that ask
  size_t own(size_t block) const { return block == 0 ? N : R; }
  size_t asking(size_t block) const { return last(block) ? N : R; }
  size_t weights(size_t block) const { return H * asking(block) * R; }
  Heads heads(size_t block) const { return {H, K, V, asking(block), R}; }
};

// One value for each parameter: of pointers to weights, or of pointers to gradients
template <class P> struct Parameters {
  struct Linear {
    P weight, bias;
  };
  struct Block {
    Linear qkv, qkv_norm, attention_norm, mlp_norm;
  };
  std::vector<Block> blocks;
  std::vector<Linear> mlp;
  P gate{};

  // next(size) gives the value of the next parameter, in the order in which Python lists them
  template <class F> Parameters(const Shape& s, F next) {
    const auto linear = [&](size_t weight, size_t bias) {
      Linear both;
      both.weight = next(weight);
      both.bias = next(bias);
      return both;
    };
    for (size_t block = 0; block < s.L; ++block) {
      Block b;
      b.qkv = linear(s.E * s.D, s.E);
      b.qkv_norm = linear(s.E, s.E);
      b.attention_norm = linear(s.D, s.D);
      b.mlp_norm = linear(s.D, s.D);
      blocks.push_back(b);
    }
    for (size_t layer = 0; layer < s.layers; ++layer) mlp.push_back(linear(s.D * s.D, s.D));
    if (s.G) gate = next(2 * s.G * s.D);
  }
};

// What forward leaves for backward. Without a place to keep it for all steps, it is kept for one
template <class T> struct Saved {
  struct Block {
    Piece<T> qkv, qkv_scale, weights, attention, attention_scale, mlp, mlp_scale;
    std::vector<Piece<T>> hidden;
  };
  std::vector<Block> blocks;
  Piece<T> gates;
  size_t size;

  Saved(const Shape& s, T* base, size_t steps, size_t batch) {
    Pieces<T> pieces(base, steps, batch);
    for (size_t block = 0; block < s.L; ++block) {
      const size_t rows = s.asking(block);
      Block b;
      b.qkv = pieces.next(s.own(block) * s.E);
      b.qkv_scale = pieces.next(s.own(block));
      b.weights = pieces.next(s.weights(block));
      b.attention = pieces.next(rows * s.D);
      b.attention_scale = pieces.next(rows);
      b.mlp = pieces.next(rows * s.D);
      b.mlp_scale = pieces.next(rows);
      for (size_t layer = 0; layer + 1 < s.layers; ++layer) b.hidden.push_back(pieces.next(rows * s.D));
      blocks.push_back(b);
    }
    gates = pieces.next(s.N * 2 * s.G);
    size = pieces.size();
  }
};

template <class T> struct Tensors : States<T> {
  Parameters<const T*> parameters;
  const T *input_qkv, *rows, *gates;
  T* saved;

  Tensors(const Shape& s, const Call& call)
      : States<T>(call, s.N * s.D, 3),
        parameters(s, [p = call.parameters](size_t) mutable { return static_cast<const T*>(*p++); }),
        input_qkv(static_cast<const T*>(call.inputs[0])), rows(static_cast<const T*>(call.inputs[1])),
        gates(static_cast<const T*>(call.inputs[2])), saved(static_cast<T*>(call.saved)) {}
};

}  // namespace
