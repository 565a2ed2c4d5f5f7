// The Relational Memory Core, forward: some batch entries through all steps. Equations and letters: cores/rmc.py and rmc.h.

#pragma once

#include "rmc.h"

namespace {

// The weights as factors of products, packed once for all threads
template <class T> struct ForwardWeights {
  std::vector<Buffer<T>> qkv, mlp;
  Buffer<T> gate;

  ForwardWeights(const Shape& s, const Parameters<const T*>& p) : gate(packed_size<T>(s.D, 2 * s.G), Content::whatever) {
    for (const auto& block : p.blocks) {
      qkv.emplace_back(packed_size<T>(s.D, s.E), Content::whatever);
      pack_transposed<T>(s.D, s.E, block.qkv.weight, s.D, qkv.back());
    }
    for (const auto& layer : p.mlp) {
      mlp.emplace_back(packed_size<T>(s.D, s.D), Content::whatever);
      pack_transposed<T>(s.D, s.D, layer.weight, s.D, mlp.back());
    }
    if (s.G) pack_transposed<T>(s.D, 2 * s.G, p.gate, s.D, gate);
  }
};

template <class T> class Forward {
 public:
  Forward(const Shape& shape, const RmcNumbers& numbers, const Tensors<T>& tensors, const ForwardWeights<T>& weights, size_t group)
      : s(shape), numbers(numbers), x(tensors), w(weights), group(group),
        kept(tensors.saved ? 0 : Saved<T>(s, nullptr, 1, group).size),
        saved(s, tensors.saved ? tensors.saved : kept, tensors.saved ? s.T : 1, tensors.saved ? s.B : group),
        memory(group * s.N * s.D), squashed(group * s.N * s.D), qkv(group * s.R * s.E), read(group * s.R * s.D),
        more(group * s.R * s.D), rows(group * s.R * s.D),
        attended(s.R) {}

  // batch entries first <= b < end, at most `group` of them, through all steps
  void run(size_t first, size_t end) {
    for (size_t t = 0; t < s.T; ++t) {
      for (size_t b = first; b < end; ++b)
        std::memcpy(memory + (b - first) * s.N * s.D, x.before(t, b), s.N * s.D * sizeof(T));
      const T* update = memory;
      for (size_t block = 0; block < s.L; ++block) {
        attention(t, block, first, end, update);
        mlp(t, block, first, end);
        update = rows;
      }
      gates(t, first, end);
    }
  }

 private:
  // read = LN(rows + attention over them)
  void attention(size_t t, size_t block, size_t first, size_t end, const T* from) {
    const auto& p = x.parameters.blocks[block];
    const auto& keep = saved.blocks[block];
    const Heads heads = s.heads(block);
    const size_t own = s.own(block), asking = s.asking(block), base = x.saved ? 0 : first;
    times_packed<T>((end - first) * own, s.E, s.D, from, s.D, w.qkv[block], p.qkv.bias, qkv, s.E);
    for (size_t b = first; b < end; ++b) {
      T* mine = qkv + (b - first) * own * s.E;
      T* normed = keep.qkv.at(t, b - base);
      T* scale = keep.qkv_scale.at(t, b - base);
      for (size_t r = 0; r < own; ++r) {
        attended[r] = mine + r * s.E;
        scale[r] = normalise<T>(s.E, attended[r], nullptr, T(numbers.epsilon), p.qkv_norm.weight, p.qkv_norm.bias,
                                normed + r * s.E, mine + r * s.E);
      }
      const size_t row = t * s.B + b;
      for (size_t r = own; r < s.R; ++r) attended[r] = x.input_qkv + (row * s.n + r - own) * s.E;
      T* values = read + (b - first) * asking * s.D;
      with_size(heads, [&](auto size) { attend<T, size>(heads, attended.data(), keep.weights.at(t, b - base), values); });
      const T* residual = from + (b - first) * own * s.D;
      for (size_t r = 0; r < asking; ++r, values += s.D) {
        const T* added = r < own ? residual + r * s.D : x.rows + (row * s.n + r - own) * s.D;
        keep.attention_scale.at(t, b - base)[r] =
            normalise<T>(s.D, values, added, T(numbers.epsilon), p.attention_norm.weight, p.attention_norm.bias,
                         keep.attention.at(t, b - base) + r * s.D, values);
      }
    }
  }

  // rows = LN(read + MLP(read))
  void mlp(size_t t, size_t block, size_t first, size_t end) {
    const auto& p = x.parameters.blocks[block];
    const auto& keep = saved.blocks[block];
    const size_t asking = s.asking(block), base = x.saved ? 0 : first, count = (end - first) * asking;
    const T* from = read;
    for (size_t layer = 0; layer + 1 < s.layers; ++layer) {
      T* hidden = keep.hidden[layer].at(t, first - base);
      times_packed<T, Into::set_relu>(count, s.D, s.D, from, s.D, w.mlp[layer], x.parameters.mlp[layer].bias, hidden, s.D);
      from = hidden;
    }
    times_packed<T>(count, s.D, s.D, from, s.D, w.mlp.back(), x.parameters.mlp.back().bias, more, s.D);
    T* normed = keep.mlp.at(t, first - base);
    T* scale = keep.mlp_scale.at(t, first - base);
    for (size_t r = 0; r < count; ++r) {
      scale[r] = normalise<T>(s.D, read + r * s.D, more + r * s.D, T(numbers.epsilon), p.mlp_norm.weight, p.mlp_norm.bias,
                              normed + r * s.D, rows + r * s.D);
    }
  }

  void gates(size_t t, size_t first, size_t end) {
    const size_t count = (end - first) * s.N;
    T* to = x.after + (t * s.B + first) * s.N * s.D;
    if (!s.G) {
      std::memcpy(to, rows, count * s.D * sizeof(T));
      return;
    }
    each<T>(count * s.D, [&](size_t i, auto get, auto put) { put(squashed + i, tanh<T>(get(memory + i))); });
    T* both = saved.gates.at(t, first - (x.saved ? 0 : first));
    times_packed<T>(count, 2 * s.G, s.D, squashed, s.D, w.gate, nullptr, both, 2 * s.G);
    for (size_t r = 0; r < count; ++r, both += 2 * s.G, to += s.D) {
      const T* from_input = x.gates + (t * s.B + first + r / s.N) * 2 * s.G;
      const T *update = rows + r * s.D, *before = memory + r * s.D;
      for (size_t gate = 0; gate < 2; ++gate) {
        const T bias = T(gate == 0 ? numbers.input_bias : numbers.forget_bias);
        const T* more = from_input + gate * s.G;
        T* g = both + gate * s.G;
        each<T>(s.G, [&](size_t i, auto get, auto put) { put(g + i, sigmoid<T>(get(g + i) + get(more + i) + bias)); });
      }
      if (s.G == s.D)
        each<T>(s.D, [&](size_t i, auto get, auto put) {
          put(to + i, get(both + i) * tanh<T>(get(update + i)) + get(both + s.G + i) * get(before + i));
        });
      else
        each<T>(s.D, [&](size_t i, auto get, auto put) {
          put(to + i, both[0] * tanh<T>(get(update + i)) + both[1] * get(before + i));
        });
    }
  }

  const Shape& s;
  const RmcNumbers& numbers;
  const Tensors<T>& x;
  const ForwardWeights<T>& w;
  size_t group;
  Buffer<T> kept;
  Saved<T> saved;
  Buffer<T> memory, squashed, qkv, read, more, rows;
  std::vector<const T*> attended;
};

}  // namespace
