// The Relational Memory Core, backward: gradients of a group of batch entries, from the last step to the first. Letters:
// rmc.h.

#pragma once

#include "rmc.h"
#include "weight_gradient.h"

namespace rmc_rl::rmc {
namespace {

// The weights, packed as the right factors of products: output gradients (rows, out) times weight (out, in)
template <class T> struct BackwardWeights {
  std::vector<Buffer<T>> qkv, mlp;
  Buffer<T> gate;

  BackwardWeights(const Shape& s, const Parameters<const T*>& p) : gate(packed_size<T>(2 * s.G, s.D), Content::uninitialized) {
    for (const auto& block : p.blocks) {
      qkv.emplace_back(packed_size<T>(s.E, s.D), Content::uninitialized);
      pack<T>(s.E, s.D, block.qkv.weight, s.D, qkv.back());
    }
    for (const auto& layer : p.mlp) {
      mlp.emplace_back(packed_size<T>(s.D, s.D), Content::uninitialized);
      pack<T>(s.D, s.D, layer.weight, s.D, mlp.back());
    }
    if (s.G) pack<T>(2 * s.G, s.D, p.gate_from_memory, s.D, gate);
  }
};

template <class T> struct InputGradients : StateGradients<T> {
  T *input_qkv, *input_rows, *input_gates;

  explicit InputGradients(const Gradients& gradients)
      : StateGradients<T>(gradients), input_qkv(static_cast<T*>(gradients.inputs[2])),
        input_rows(static_cast<T*>(gradients.inputs[3])), input_gates(static_cast<T*>(gradients.inputs[4])) {}
};

template <class T> class Backward {
 public:
  // parameters: where this thread adds up the gradients
  Backward(const Shape& shape, const Tensors<T>& tensors, const InputGradients<T>& gradients,
           const BackwardWeights<T>& weights, size_t group, const Parameters<T*>& parameters)
      : s(shape),
        x(tensors),
        g(gradients),
        w(weights),
        d(parameters),
        saved(s, x.saved, s.T, s.B),
        dmemory(group * s.N * s.D),
        drows(group * s.R * s.D),
        dread(group * s.R * s.D),
        dtanh_memory(group * s.N * s.D),
        tanh_update(s.D),
        dscores(s.H * s.R * s.R),
        projected_qkv(s.R * s.E),
        dprojected_qkv(s.R * s.E),
        qkv_rows(s.R),
        dqkv_rows(s.R),
        gate(2 * s.G, s.D, group * s.N, d.gate_from_memory, nullptr) {
    for (size_t block = 0; block < s.num_blocks; ++block)
      qkv.emplace_back(s.E, s.D, group * s.projected(block), d.blocks[block].qkv.weight, d.blocks[block].qkv.bias);
    for (size_t layer = 0; layer < s.mlp_layers; ++layer)
      mlp.emplace_back(s.D, s.D, group * s.R, d.mlp[layer].weight, d.mlp[layer].bias);
  }

  void run(size_t first, size_t end) {
    std::memset(dmemory, 0, (end - first) * s.N * s.D * sizeof(T));
    for (size_t t = s.T; t-- > 0;) {
      g.add(x, t, first, end, dmemory);
      gates_backward(t, first, end);
      for (size_t block = s.num_blocks; block-- > 0;) {
        mlp_backward(t, block, first, end);
        attention_backward(t, block, first, end);
      }
      g.move_starts(x, t, first, end, dmemory);
    }
    g.write(x, first, end, dmemory);
  }

  void finish() {
    for (auto& layer : qkv) layer.flush();
    for (auto& layer : mlp) layer.flush();
    if (s.G) gate.flush();
  }

 private:
  // dmemory: on entry the gradient of the memory after the step, on return that of the memory before it, by way of the gates.
  // Writes drows, the gradient of the last block's rows
  void gates_backward(size_t t, size_t first, size_t end) {
    const size_t count = (end - first) * s.N;
    if (!s.G) {
      std::memcpy(drows, dmemory, count * s.D * sizeof(T));
      std::memset(dmemory, 0, count * s.D * sizeof(T));
      return;
    }
    gate.append(count);
    const auto& norm = x.parameters.blocks.back().mlp_norm;
    const T* slot_gates = saved.gates.at(t, first);
    const T* normed = saved.blocks.back().mlp_normed.at(t, first);
    for (size_t b = first, r = 0; b < end; ++b) {
      const T* before = x.before(t, b);
      T* dinput_gates = g.input_gates + (t * s.B + b) * 2 * s.G;
      std::memset(dinput_gates, 0, 2 * s.G * sizeof(T));
      for (size_t slot = 0; slot < s.N; ++slot, ++r, slot_gates += 2 * s.G, normed += s.D, before += s.D) {
        T *dgates = gate.output_gradient(r), *dslot = dmemory + r * s.D, *drow = drows + r * s.D, *tanh_memory = gate.input(r);
        for_vectors<T>(s.D, [&](size_t i, auto get, auto put) {
          put(tanh_update + i, tanh<T>(get(normed + i) * get(norm.weight + i) + get(norm.bias + i)));
          put(tanh_memory + i, tanh<T>(get(before + i)));
        });
        if (s.G == s.D) {
          for_vectors<T>(s.D, [&](size_t i, auto get, auto put) {
            const Vector<T> input_gate = get(slot_gates + i), forget_gate = get(slot_gates + s.G + i);
            const Vector<T> u = get(tanh_update + i), dnext = get(dslot + i);
            put(dgates + i, dnext * u * input_gate * (T(1) - input_gate));
            put(dgates + s.G + i, dnext * get(before + i) * forget_gate * (T(1) - forget_gate));
            put(drow + i, dnext * input_gate * (T(1) - u * u));
            put(dslot + i, dnext * forget_gate);
          });
        } else {
          const T input_gate = slot_gates[0], forget_gate = slot_gates[1];
          dgates[0] = dot<T>(s.D, dslot, tanh_update) * input_gate * (1 - input_gate);
          dgates[1] = dot<T>(s.D, dslot, before) * forget_gate * (1 - forget_gate);
          for_vectors<T>(s.D, [&](size_t i, auto get, auto put) {
            const Vector<T> u = get(tanh_update + i), dnext = get(dslot + i);
            put(drow + i, dnext * input_gate * (T(1) - u * u));
            put(dslot + i, dnext * forget_gate);
          });
        }
        add_scaled<T>(2 * s.G, T(1), dgates, dinput_gates);
      }
    }
    times_packed<T>(count, s.D, 2 * s.G, gate.output_gradient(0), gate.out_stride, w.gate, nullptr, dtanh_memory, s.D);
    for (size_t r = 0; r < count; ++r) {
      const T *tanh_memory = gate.input(r), *dtanh = dtanh_memory + r * s.D;
      T* dslot = dmemory + r * s.D;
      for_vectors<T>(s.D, [&](size_t i, auto get, auto put) {
        const Vector<T> y = get(tanh_memory + i);
        put(dslot + i, get(dslot + i) + get(dtanh + i) * (T(1) - y * y));
      });
    }
  }

  // From drows to dread, the gradient of the MLP's input
  void mlp_backward(size_t t, size_t block, size_t first, size_t end) {
    const size_t count = (end - first) * s.queries(block);
    const auto& save = saved.blocks[block];
    const auto& p = x.parameters.blocks[block];
    auto& dnorm = d.blocks[block].mlp_norm;
    for (auto& layer : mlp) layer.append(count);
    const T *normed = save.mlp_normed.at(t, first), *scale = save.mlp_scale.at(t, first);
    for (size_t r = 0; r < count; ++r) {
      T* dsum = dread + r * s.D;
      layer_norm_backward<T>(s.D, drows + r * s.D, normed + r * s.D, p.mlp_norm.weight, scale[r], dsum, dnorm.weight,
                             dnorm.bias);
      std::memcpy(mlp.back().output_gradient(r), dsum, s.D * sizeof(T));
    }
    for (size_t layer = s.mlp_layers - 1; layer > 0; --layer) {
      const T* hidden = save.hidden[layer - 1].at(t, first);
      const auto &above = mlp[layer], &below = mlp[layer - 1];
      times_packed<T>(count, s.D, s.D, above.output_gradient(0), above.out_stride, w.mlp[layer], nullptr,
                      below.output_gradient(0), below.out_stride);
      for (size_t r = 0; r < count; ++r, hidden += s.D) {
        T *dhidden = below.output_gradient(r), *input = above.input(r);
        for_vectors<T>(s.D, [&](size_t i, auto get, auto put) {
          const Vector<T> h = get(hidden + i);
          put(dhidden + i, h > T(0) ? get(dhidden + i) : Vector<T>{});
          put(input + i, h);
        });
      }
    }
    normed = save.attention_normed.at(t, first);
    for (size_t r = 0; r < count; ++r)
      affine<T>(s.D, normed + r * s.D, p.attention_norm.weight, p.attention_norm.bias, mlp[0].input(r));
    times_packed<T, Into::add>(count, s.D, s.D, mlp[0].output_gradient(0), mlp[0].out_stride, w.mlp[0], nullptr, dread, s.D);
  }

  // From dread to drows of the block below, or to dmemory and the gradients of the inputs
  void attention_backward(size_t t, size_t block, size_t first, size_t end) {
    const size_t projected = s.projected(block), queries = s.queries(block), count = (end - first) * projected;
    const auto& save = saved.blocks[block];
    const auto& p = x.parameters.blocks[block];
    auto& dp = d.blocks[block];
    const Heads heads = s.heads(block);
    WeightGradient<T>& layer = qkv[block];
    layer.append(count);
    T* below = block == 0 ? dmemory : drows;
    if (block > 0) std::memset(below, 0, count * s.D * sizeof(T));
    for (size_t b = first; b < end; ++b) {
      const size_t step = t * s.B + b, first_row = (b - first) * projected;
      T* dsum = dread + (b - first) * queries * s.D;
      for (size_t r = 0; r < queries; ++r)
        layer_norm_backward<T>(s.D, dsum + r * s.D, save.attention_normed.at(t, b) + r * s.D, p.attention_norm.weight,
                               save.attention_scale.at(t, b)[r], dsum + r * s.D, dp.attention_norm.weight,
                               dp.attention_norm.bias);
      const T* normed = save.qkv_normed.at(t, b);
      for (size_t r = 0; r < projected; ++r)
        affine<T>(s.E, normed + r * s.E, p.qkv_norm.weight, p.qkv_norm.bias, projected_qkv + r * s.E);
      for (size_t r = 0; r < s.R; ++r) {
        const size_t input = (step * s.n + r - projected) * s.E;
        qkv_rows[r] = r < projected ? projected_qkv + r * s.E : x.input_qkv + input;
        dqkv_rows[r] = r < projected ? dprojected_qkv + r * s.E : g.input_qkv + input;
      }
      with_size(heads, [&](auto size) {
        attend_backward<T, size>(heads, qkv_rows.data(), save.attention_weights.at(t, b), dsum, dscores, dqkv_rows.data());
      });
      for (size_t r = 0; r < projected; ++r) {
        layer_norm_backward<T>(s.E, dprojected_qkv + r * s.E, normed + r * s.E, p.qkv_norm.weight, save.qkv_scale.at(t, b)[r],
                               layer.output_gradient(first_row + r), dp.qkv_norm.weight, dp.qkv_norm.bias);
        if (block == 0) {
          std::memcpy(layer.input(first_row + r), x.before(t, b) + r * s.D, s.D * sizeof(T));
        } else {
          const auto& norm = x.parameters.blocks[block - 1].mlp_norm;
          affine<T>(s.D, saved.blocks[block - 1].mlp_normed.at(t, b) + r * s.D, norm.weight, norm.bias,
                    layer.input(first_row + r));
        }
      }
      for (size_t r = 0; r < queries; ++r) {  // the residual connection
        if (r < projected)
          add_scaled<T>(s.D, T(1), dsum + r * s.D, below + (first_row + r) * s.D);
        else
          std::memcpy(g.input_rows + (step * s.n + r - projected) * s.D, dsum + r * s.D, s.D * sizeof(T));
      }
    }
    times_packed<T, Into::add>(count, s.D, s.E, layer.output_gradient(0), layer.out_stride, w.qkv[block], nullptr, below, s.D);
  }

  const Shape& s;
  const Tensors<T>& x;
  const InputGradients<T>& g;
  const BackwardWeights<T>& w;
  Parameters<T*> d;
  Saved<T> saved;
  Buffer<T> dmemory, drows, dread, dtanh_memory, tanh_update, dscores, projected_qkv, dprojected_qkv;
  std::vector<const T*> qkv_rows;  // of a batch entry
  std::vector<T*> dqkv_rows;
  WeightGradient<T> gate;
  std::vector<WeightGradient<T>> qkv, mlp;
};

}  // namespace
}  // namespace rmc_rl::rmc
