// Layers of recurrent modules, as in RIMs and BRIMs: sizes, parameters and what the way back needs to remember.
//
// The computation is that of cores/rims_layer.py and cores/brims.py, which say where it comes from. Letters as there: T time, B batch; of
// a layer K modules, k active ones, s size of a module, R rows that modules choose from, H heads, d key size, a numbers a module
// reads, E numbers of queries, keys and values in the communication, heard ones of all its heads, G gates' numbers of a module.
//
// The sizes: T, B, number of layers, rows that come as inputs, H, d, competition, whether there is a top-down row, whether
// inactive modules are hidden from the next layer, and whether they get no gradient from it; of each layer K, k, s, a, the
// communication's heads, key and value sizes, and how many rows are no copies of others. The one other number: what scores are
// multiplied by.
//
// A row is its keys, (H d), and its values, (a). The first rows of the first layer are the inputs, (T, B, rows, H d + a). After
// the inputs of the first layer may stand a row that is made of the last layer's h before the step; the one row of another layer
// is made of the h of the layer below. Where there is a null row it stands first.

#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "buffer.h"
#include "cells.h"
#include "collected.h"
#include "product.h"
#include "states.h"

namespace {

enum Competition : std::int64_t { official, atari, dido };

struct Layer {
  size_t K, k, s, a, R, given;  // given: rows that come as inputs
  size_t key, row;              // numbers of a row's keys, and of a row
  size_t E, heard, said;        // said: numbers that the communication's last layer writes
  size_t made;                  // numbers that the row which is made in the loop is made of; 0: there is none
  size_t h, G, parts;           // h: where h is in the state, and c behind it
  size_t keep;                  // attention is made sparse beyond so many weights
  bool null, communicates;
  Heads comm;

  size_t width() const { return K * s; }
};

struct Shape {
  size_t T, B, L, S = 0, H, d;
  Competition competition;
  bool hide_inactive, block_gradient;
  std::vector<Layer> layers;

  template <class Cell> static Shape of(const Call& call) {
    const std::int64_t* next = call.sizes;
    const auto take = [&] { return static_cast<size_t>(*next++); };
    Shape shape;
    shape.T = take();
    shape.B = take();
    shape.L = take();
    const size_t inputs = take();
    shape.H = take();
    shape.d = take();
    shape.competition = static_cast<Competition>(take());
    const bool top_down = take();
    shape.hide_inactive = take();
    shape.block_gradient = take();
    for (size_t index = 0; index < shape.L; ++index) {
      Layer l;
      l.K = take();
      l.k = take();
      l.s = take();
      l.a = take();
      const size_t heads = take(), key = take(), value = take(), distinct = take();
      l.comm = {heads, key, value, l.K, l.K};
      l.communicates = heads > 0;
      l.E = heads * (2 * key + value);
      l.heard = heads * value;
      l.said = shape.competition == dido ? l.s : 2 * l.s;
      l.key = shape.H * shape.d;
      l.row = l.key + l.a;
      l.null = shape.competition != atari;
      l.given = index == 0 ? inputs : 0;
      l.made = index > 0 ? shape.layers.back().width() : 0;
      l.parts = Cell::parts;
      l.G = Cell::gates * l.s;
      l.h = shape.S;
      l.keep = shape.competition == atari ? l.k : distinct + 1;
      shape.S += l.parts * l.width();
      shape.layers.push_back(l);
    }
    if (top_down) shape.layers.front().made = shape.layers.back().width();
    for (Layer& l : shape.layers) l.R = l.null + l.given + (l.made > 0);
    return shape;
  }

  // the most numbers of any layer
  template <class F> size_t most(F numbers) const {
    size_t found = 0;
    for (const Layer& l : layers) found = std::max(found, numbers(l));
    return found;
  }
};

// A linear layer for each module, weight (groups, in, out), or one for all of them, weight (out, in)
struct LinearSizes {
  size_t groups, out, in;
  bool bias;
  Weight order;
};

enum Linears { query, from_state, from_read, qkv, say, make, kLinears };

inline std::vector<LinearSizes> linears_of(const Shape& shape, const Layer& l) {
  const bool of_dido = shape.competition == dido;
  const auto each_module = [&](size_t out, size_t in, bool bias) { return LinearSizes{l.K, out, in, bias, Weight::in_out}; };
  const auto shared = [](size_t out, size_t in, bool bias) { return LinearSizes{1, out, in, bias, Weight::out_in}; };
  return {each_module(l.key, l.s, false),
          each_module(l.G, l.s, !of_dido),
          each_module(l.G, l.a, !of_dido),
          each_module(l.E, l.s, false),
          of_dido ? each_module(l.said, l.heard, false) : shared(l.said, l.heard, true),
          shared(l.row, l.made, of_dido)};
}

// One value for each parameter: of pointers to weights, or of pointers to gradients
template <class P> struct Parameters {
  struct Linear {
    P weight{}, bias{};
  };
  struct OfLayer {
    std::vector<Linear> linears;
    P null{};
  };
  std::vector<OfLayer> layers;

  // next(size) gives the value of the next parameter, in the order in which Python lists them
  template <class F> Parameters(const Shape& shape, F next) {
    for (const Layer& l : shape.layers) {
      OfLayer of;
      for (const LinearSizes& sizes : linears_of(shape, l)) {
        Linear linear;
        if (sizes.out > 0 && sizes.in > 0) {
          linear.weight = next(sizes.groups * sizes.out * sizes.in);
          if (sizes.bias) linear.bias = next(sizes.groups * sizes.out);
        }
        of.linears.push_back(linear);
      }
      if (l.null) of.null = next(l.row);
      layers.push_back(of);
    }
  }
};

// The weights as factors of products, packed once for all threads
template <class T> struct Packed {
  struct Linear {
    LinearSizes sizes;
    size_t step;  // from group to group
    Buffer<T> weights;

    const T* of(size_t group) const { return weights + group * step; }
  };
  std::vector<std::vector<Linear>> layers;

  // back: for gradients of outputs, not inputs
  Packed(const Shape& shape, const Parameters<const T*>& parameters, bool back) {
    for (size_t index = 0; index < shape.L; ++index) {
      std::vector<Linear> of;
      const auto all = linears_of(shape, shape.layers[index]);
      for (size_t i = 0; i < all.size(); ++i) {
        const auto& sizes = all[i];
        // the factor on the right is (rows, columns)
        const size_t rows = back ? sizes.out : sizes.in, columns = back ? sizes.in : sizes.out;
        const size_t step = packed_size<T>(rows, columns);
        of.push_back({sizes, step, Buffer<T>(sizes.groups * step, Content::whatever)});
        const T* weight = parameters.layers[index].linears[i].weight;
        for (size_t group = 0; weight && group < sizes.groups; ++group, weight += rows * columns) {
          T* to = of.back().weights + group * step;
          if (back == (sizes.order == Weight::out_in)) pack<T>(rows, columns, weight, columns, to);
          else pack_transposed<T>(rows, columns, weight, rows, to);
        }
      }
      layers.push_back(std::move(of));
    }
  }
};

// What forward leaves for backward. Without a place to keep it for all steps, it is kept for one
template <class T> struct Saved {
  struct OfLayer {
    Piece<T> query, made, weights, active, kept, provisional, qkv, comm_weights, said;
  };
  std::vector<OfLayer> layers;
  size_t size;

  Saved(const Shape& shape, T* base, size_t steps, size_t batch) {
    Pieces<T> pieces(base, steps, batch);
    for (const Layer& l : shape.layers) {
      OfLayer of;
      of.query = pieces.next(l.K * l.key);
      of.made = pieces.next(l.made ? l.row : 0);
      of.weights = pieces.next(l.R * shape.H * l.K);  // as (R, H, K), before they are made sparse
      of.active = pieces.next(l.K);                   // 1 or 0
      of.kept = pieces.next(kKept * l.width());
      of.provisional = pieces.next(l.parts * l.width());
      of.qkv = pieces.next(l.K * l.E);
      of.comm_weights = pieces.next(l.communicates ? l.comm.count * l.K * l.K : 0);
      of.said = pieces.next(l.communicates && l.said > l.s ? l.K * l.said : 0);  // tanh, then the gate
      layers.push_back(of);
    }
    size = pieces.size();
  }
};

// How many of n numbers, `step` apart, come before the i-th one: larger ones, and equal ones that stand before it
template <class T> size_t ahead(size_t n, size_t step, const T* x, size_t i) {
  size_t count = 0;
  for (size_t j = 0; j < n; ++j) count += x[j * step] > x[i * step] || (x[j * step] == x[i * step] && j < i);
  return count;
}

// Attention over few of n weights, `step` numbers apart: cores/layers.py, sparsify. Returns the sum of what is left, and 0 where
// all are left as they are; `at`: whose weight is the threshold
template <class T> T sparse(size_t n, size_t step, size_t keep, const T* weights, T* to, size_t* at) {
  constexpr T tiny = T(1e-7);
  if (n <= keep + 1) {
    for (size_t i = 0; i < n; ++i) to[i * step] = weights[i * step];
    return 0;
  }
  for (size_t i = 0; i < n; ++i)
    if (ahead(n, step, weights, i) == keep) *at = i;
  const T threshold = weights[*at * step] + tiny;
  T total = tiny;
  for (size_t i = 0; i < n; ++i) total += weights[i * step] > threshold ? weights[i * step] - threshold : T(0);
  for (size_t i = 0; i < n; ++i) to[i * step] = (weights[i * step] > threshold ? weights[i * step] - threshold : T(0)) / total;
  return total;
}

// From the gradient of what is left to that of the weights, in place
template <class T> void sparse_back(size_t n, size_t step, T total, size_t at, const T* left, T* d) {
  if (total == 0) return;
  T mean = 0, of_threshold = 0;
  for (size_t i = 0; i < n; ++i) mean += d[i * step] * left[i * step];
  for (size_t i = 0; i < n; ++i) {
    d[i * step] = left[i * step] > 0 ? (d[i * step] - mean) / total : T(0);
    of_threshold += d[i * step];
  }
  d[at * step] -= of_threshold;
}

template <class T> struct Tensors : States<T> {
  Parameters<const T*> parameters;
  const T* rows;
  T* saved;
  T scale;

  Tensors(const Shape& shape, const Call& call)
      : States<T>(call, shape.S, 1),
        parameters(shape, [p = call.parameters](size_t) mutable { return static_cast<const T*>(*p++); }),
        rows(static_cast<const T*>(call.inputs[0])), saved(static_cast<T*>(call.saved)), scale(T(call.numbers[0])) {}

  // the rows that the modules of a layer choose from at step t: keys and values
  void rows_at(const Shape& shape, size_t index, size_t t, size_t b, const T* made, const T** to) const {
    const Layer& l = shape.layers[index];
    if (l.null) *to++ = parameters.layers[index].null;
    for (size_t r = 0; r < l.given; ++r) *to++ = rows + ((t * shape.B + b) * l.given + r) * l.row;
    if (l.made) *to = made;
  }
};

// What module m reads of the rows: (a), each head its part of the values; weights as (R, H, K)
template <class T> void read_rows(const Shape& shape, const Layer& l, const T* weights, const T* const* rows, size_t m, T* to) {
  const size_t part = l.a / shape.H, from = shape.competition == official;  // its null row has no values
  for (size_t h = 0; h < shape.H; ++h, to += part) {
    const T* weight = weights + h * l.K + m;
    each<T>(part, [&](size_t v, auto get, auto put) {
      Vector<T> sum = {};
      for (size_t r = from; r < l.R; ++r) sum += weight[r * shape.H * l.K] * get(rows[r] + l.key + h * part + v);
      put(to + v, sum);
    });
  }
}

}  // namespace
