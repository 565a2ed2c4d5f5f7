// The Relational Memory Core, forward: a group of batch entries through all steps. Equations: cores/rmc.py. Letters: rmc.h.

#pragma once

#include "rmc.h"

namespace rmc_rl::rmc {
namespace {

// The weights, packed as right-hand matrices of products. All threads share them
template <class T> struct ForwardWeights {
  std::vector<Buffer<T>> qkv, mlp;
  Buffer<T> gate;

  ForwardWeights(const Shape& s, const Parameters<const T*>& p) : gate(packed_size<T>(s.D, 2 * s.G), Content::uninitialized) {
    for (const auto& block : p.blocks) {
      qkv.emplace_back(packed_size<T>(s.D, s.E), Content::uninitialized);
      pack_transposed<T>(s.D, s.E, block.qkv.weight, s.D, qkv.back());
    }
    for (const auto& layer : p.mlp) {
      mlp.emplace_back(packed_size<T>(s.D, s.D), Content::uninitialized);
      pack_transposed<T>(s.D, s.D, layer.weight, s.D, mlp.back());
    }
    if (s.G) pack_transposed<T>(s.D, 2 * s.G, p.gate_from_memory, s.D, gate);
  }
};

template <class T> class Forward {
 public:
  Forward(const Shape& shape, const Tensors<T>& tensors, const ForwardWeights<T>& weights, size_t group)
      : s(shape), x(tensors), w(weights), one_step(tensors.saved ? 0 : Saved<T>(s, nullptr, 1, group).length),
        saved(s, tensors.saved ? tensors.saved : one_step, tensors.saved ? s.T : 1, tensors.saved ? s.B : group),
        memory(group * s.N * s.D), tanh_memory(group * s.N * s.D), qkv(group * s.R * s.E), read(group * s.R * s.D),
        mlp_output(group * s.R * s.D), rows(group * s.R * s.D), qkv_rows(s.R) {}

  // Batch entries first <= b < end, at most `group` of them, through all steps
  void run(size_t first, size_t end) {
    for (size_t t = 0; t < s.T; ++t) {
      for (size_t b = first; b < end; ++b)
        std::memcpy(memory + (b - first) * s.N * s.D, x.before(t, b), s.N * s.D * sizeof(T));
      const T* block_input = memory;
      for (size_t block = 0; block < s.num_blocks; ++block) {
        attention(t, block, first, end, block_input);
        mlp(t, block, first, end);
        block_input = rows;
      }
      gates(t, first, end);
    }
  }

 private:
  // read = LN(rows + attention(rows)). from: the rows that this block projects
  void attention(size_t t, size_t block, size_t first, size_t end, const T* from) {
    const auto& p = x.parameters.blocks[block];
    const auto& save = saved.blocks[block];
    const Heads heads = s.heads(block);
    const size_t projected = s.projected(block), queries = s.queries(block), base = x.saved ? 0 : first;
    times_packed<T>((end - first) * projected, s.E, s.D, from, s.D, w.qkv[block], p.qkv.bias, qkv, s.E);
    for (size_t b = first; b < end; ++b) {
      T* entry_qkv = qkv + (b - first) * projected * s.E;
      T* normed = save.qkv_normed.at(t, b - base);
      T* scale = save.qkv_scale.at(t, b - base);
      for (size_t r = 0; r < projected; ++r) {
        qkv_rows[r] = entry_qkv + r * s.E;
        scale[r] = layer_norm<T>(s.E, qkv_rows[r], nullptr, T(s.epsilon), p.qkv_norm.weight, p.qkv_norm.bias, normed + r * s.E,
                                 entry_qkv + r * s.E);
      }
      const size_t step = t * s.B + b;
      for (size_t r = projected; r < s.R; ++r) qkv_rows[r] = x.input_qkv + (step * s.n + r - projected) * s.E;
      T* values = read + (b - first) * queries * s.D;
      with_size(heads,
                [&](auto size) { attend<T, size>(heads, qkv_rows.data(), save.attention_weights.at(t, b - base), values); });
      const T* entry_rows = from + (b - first) * projected * s.D;
      for (size_t r = 0; r < queries; ++r, values += s.D) {
        const T* residual = r < projected ? entry_rows + r * s.D : x.input_rows + (step * s.n + r - projected) * s.D;
        save.attention_scale.at(t, b - base)[r] =
            layer_norm<T>(s.D, values, residual, T(s.epsilon), p.attention_norm.weight, p.attention_norm.bias,
                          save.attention_normed.at(t, b - base) + r * s.D, values);
      }
    }
  }

  // rows = LN(read + MLP(read))
  void mlp(size_t t, size_t block, size_t first, size_t end) {
    const auto& p = x.parameters.blocks[block];
    const auto& save = saved.blocks[block];
    const size_t queries = s.queries(block), base = x.saved ? 0 : first, count = (end - first) * queries;
    const T* input = read;
    for (size_t layer = 0; layer + 1 < s.mlp_layers; ++layer) {
      T* hidden = save.hidden[layer].at(t, first - base);
      times_packed<T, Into::set_relu>(count, s.D, s.D, input, s.D, w.mlp[layer], x.parameters.mlp[layer].bias, hidden, s.D);
      input = hidden;
    }
    times_packed<T>(count, s.D, s.D, input, s.D, w.mlp.back(), x.parameters.mlp.back().bias, mlp_output, s.D);
    T* normed = save.mlp_normed.at(t, first - base);
    T* scale = save.mlp_scale.at(t, first - base);
    for (size_t r = 0; r < count; ++r)
      scale[r] = layer_norm<T>(s.D, read + r * s.D, mlp_output + r * s.D, T(s.epsilon), p.mlp_norm.weight, p.mlp_norm.bias,
                               normed + r * s.D, rows + r * s.D);
  }

  // The next memory, from the rows of the last block
  void gates(size_t t, size_t first, size_t end) {
    const size_t count = (end - first) * s.N;
    T* next_memory = x.after + (t * s.B + first) * s.N * s.D;
    if (!s.G) {
      std::memcpy(next_memory, rows, count * s.D * sizeof(T));
      return;
    }
    for_vectors<T>(count * s.D, [&](size_t i, auto get, auto put) { put(tanh_memory + i, tanh<T>(get(memory + i))); });
    T* slot_gates = saved.gates.at(t, first - (x.saved ? 0 : first));  // the input gate, then the forget gate
    times_packed<T>(count, 2 * s.G, s.D, tanh_memory, s.D, w.gate, nullptr, slot_gates, 2 * s.G);
    for (size_t r = 0; r < count; ++r, slot_gates += 2 * s.G, next_memory += s.D) {
      const T* from_input = x.input_gates + (t * s.B + first + r / s.N) * 2 * s.G;
      const T *update = rows + r * s.D, *before = memory + r * s.D;
      for (size_t index = 0; index < 2; ++index) {
        const T bias = T(index == 0 ? s.input_bias : s.forget_bias);
        const T* input = from_input + index * s.G;
        T* gate = slot_gates + index * s.G;
        for_vectors<T>(s.G, [&](size_t i, auto get, auto put) {
          put(gate + i, sigmoid<T>(get(gate + i) + get(input + i) + bias));
        });
      }
      if (s.G == s.D)
        for_vectors<T>(s.D, [&](size_t i, auto get, auto put) {
          put(next_memory + i, get(slot_gates + i) * tanh<T>(get(update + i)) + get(slot_gates + s.G + i) * get(before + i));
        });
      else
        for_vectors<T>(s.D, [&](size_t i, auto get, auto put) {
          put(next_memory + i, slot_gates[0] * tanh<T>(get(update + i)) + slot_gates[1] * get(before + i));
        });
    }
  }

  const Shape& s;
  const Tensors<T>& x;
  const ForwardWeights<T>& w;
  Buffer<T> one_step;  // where `saved` lies without a backward pass
  Saved<T> saved;
  Buffer<T> memory, tanh_memory, qkv, read, mlp_output, rows;
  std::vector<const T*> qkv_rows;  // of a batch entry
};

}  // namespace
}  // namespace rmc_rl::rmc
