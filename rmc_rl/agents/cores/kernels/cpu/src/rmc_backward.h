// The Relational Memory Core, backward: gradients of some batch entries from the last step to the first. Letters: rmc.h.

#pragma once

#include "collected.h"
#include "rmc.h"

namespace {

// The weights as factors of products: gradients of outputs (rows, O) times weight (O, I)
template <class T> struct BackwardWeights {
  std::vector<Buffer<T>> qkv, mlp;
  Buffer<T> gate;

  BackwardWeights(const Shape& s, const Parameters<const T*>& p) : gate(packed_size<T>(2 * s.G, s.D), Content::whatever) {
    for (const auto& block : p.blocks) {
      qkv.emplace_back(packed_size<T>(s.E, s.D), Content::whatever);
      pack<T>(s.E, s.D, block.qkv.weight, s.D, qkv.back());
    }
    for (const auto& layer : p.mlp) {
      mlp.emplace_back(packed_size<T>(s.D, s.D), Content::whatever);
      pack<T>(s.D, s.D, layer.weight, s.D, mlp.back());
    }
    if (s.G) pack<T>(2 * s.G, s.D, p.gate, s.D, gate);
  }
};

template <class T> struct Gradients {
  const T* memories;
  T *input_qkv, *rows, *gates, *state, *fresh;

  explicit Gradients(const CallGradients& g)
      : memories(static_cast<const T*>(g.states)), input_qkv(static_cast<T*>(g.inputs[0])), rows(static_cast<T*>(g.inputs[1])),
        gates(static_cast<T*>(g.inputs[2])), state(static_cast<T*>(g.inputs[3])), fresh(static_cast<T*>(g.inputs[4])) {}
};

template <class T> class Backward {
 public:
  // parameters: where the gradients of this thread are added up
  Backward(const Shape& shape, const Tensors<T>& tensors, const Gradients<T>& gradients, const BackwardWeights<T>& weights,
           size_t group, const Parameters<T*>& parameters)
      : s(shape), x(tensors), g(gradients), w(weights), d(parameters), saved(s, x.saved, s.T, s.B),
        dmemory(group * s.N * s.D), dupdate(group * s.R * s.D), dread(group * s.R * s.D), more(group * s.R * s.D),
        squashed(s.D), dscores(s.H * s.R * s.R), own_qkv(s.R * s.E), dqkv(s.R * s.E), attended(s.R), dattended(s.R),
        gate(2 * s.G, s.D, group * s.N, d.gate, nullptr) {
    for (size_t block = 0; block < s.L; ++block)
      qkv.emplace_back(s.E, s.D, group * s.own(block), d.blocks[block].qkv.weight, d.blocks[block].qkv.bias);
    for (size_t layer = 0; layer < s.layers; ++layer)
      mlp.emplace_back(s.D, s.D, group * s.R, d.mlp[layer].weight, d.mlp[layer].bias);
  }

  void run(size_t first, size_t end) {
    const size_t count = (end - first) * s.N * s.D;
    std::memset(dmemory, 0, count * sizeof(T));
    for (size_t t = s.T; t-- > 0;) {
      const T* from = g.memories + (t * s.B + first) * s.N * s.D;
      add_scaled<T>(count, T(1), from, dmemory);
      gates_back(t, first, end);
      for (size_t block = s.L; block-- > 0;) {
        mlp_back(t, block, first, end);
        attention_back(t, block, first, end);
      }
      x.leave(t, first, end, dmemory, g.fresh);
    }
    if (g.state) std::memcpy(g.state + first * s.N * s.D, dmemory, count * sizeof(T));
  }

  void finish() {
    for (auto& each_of : qkv) each_of.flush();
    for (auto& each_of : mlp) each_of.flush();
    if (s.G) gate.flush();
  }

 private:
  // from the gradient of the new memory: dupdate, that of the last block's rows, and dmemory, that of the old one
  void gates_back(size_t t, size_t first, size_t end) {
    const size_t count = (end - first) * s.N;
    if (!s.G) {
      std::memcpy(dupdate, dmemory, count * s.D * sizeof(T));
      std::memset(dmemory, 0, count * s.D * sizeof(T));
      return;
    }
    gate.take(count);
    const auto& norm = x.parameters.blocks.back().mlp_norm;
    const T* both = saved.gates.at(t, first);
    const T* normed = saved.blocks.back().mlp.at(t, first);
    for (size_t b = first, r = 0; b < end; ++b) {
      const T* before = x.before(t, b);
      T* to_input = g.gates + (t * s.B + b) * 2 * s.G;
      std::memset(to_input, 0, 2 * s.G * sizeof(T));
      for (size_t slot = 0; slot < s.N; ++slot, ++r, both += 2 * s.G, normed += s.D, before += s.D) {
        T *dboth = gate.gradient(r), *dnew = dmemory + r * s.D, *du = dupdate + r * s.D, *input = gate.input(r);
        each<T>(s.D, [&](size_t i, auto get, auto put) {
          put(squashed + i, tanh<T>(get(normed + i) * get(norm.weight + i) + get(norm.bias + i)));
          put(input + i, tanh<T>(get(before + i)));
        });
        if (s.G == s.D) {
          each<T>(s.D, [&](size_t i, auto get, auto put) {
            const Vector<T> enter = get(both + i), keep = get(both + s.G + i), u = get(squashed + i), now = get(dnew + i);
            put(dboth + i, now * u * enter * (T(1) - enter));
            put(dboth + s.G + i, now * get(before + i) * keep * (T(1) - keep));
            put(du + i, now * enter * (T(1) - u * u));
            put(dnew + i, now * keep);
          });
        } else {
          const T enter = both[0], keep = both[1];
          dboth[0] = dot<T>(s.D, dnew, squashed) * enter * (1 - enter);
          dboth[1] = dot<T>(s.D, dnew, before) * keep * (1 - keep);
          each<T>(s.D, [&](size_t i, auto get, auto put) {
            const Vector<T> u = get(squashed + i), now = get(dnew + i);
            put(du + i, now * enter * (T(1) - u * u));
            put(dnew + i, now * keep);
          });
        }
        add_scaled<T>(2 * s.G, T(1), dboth, to_input);
      }
    }
    times_packed<T>(count, s.D, 2 * s.G, gate.gradient(0), gate.out_stride, w.gate, nullptr, more, s.D);
    for (size_t r = 0; r < count; ++r) {
      const T *input = gate.input(r), *change = more + r * s.D;
      T* to = dmemory + r * s.D;
      each<T>(s.D, [&](size_t i, auto get, auto put) {
        const Vector<T> squashed_memory = get(input + i);
        put(to + i, get(to + i) + get(change + i) * (T(1) - squashed_memory * squashed_memory));
      });
    }
  }

  // dupdate -> dread, the gradient of what went into the MLP
  void mlp_back(size_t t, size_t block, size_t first, size_t end) {
    const size_t count = (end - first) * s.asking(block);
    const auto& keep = saved.blocks[block];
    const auto& p = x.parameters.blocks[block];
    for (auto& layer : mlp) layer.take(count);
    {
      const T *normed = keep.mlp.at(t, first), *scale = keep.mlp_scale.at(t, first);
      for (size_t r = 0; r < count; ++r) {
        T* to = dread + r * s.D;
        normalise_back<T>(s.D, dupdate + r * s.D, normed + r * s.D, p.mlp_norm.weight, scale[r], to, d.blocks[block].mlp_norm.weight,
                          d.blocks[block].mlp_norm.bias);
        std::memcpy(mlp.back().gradient(r), to, s.D * sizeof(T));
      }
    }
    for (size_t layer = s.layers - 1; layer > 0; --layer) {
      const T* hidden = keep.hidden[layer - 1].at(t, first);
      const auto &above = mlp[layer], &below = mlp[layer - 1];
      times_packed<T>(count, s.D, s.D, above.gradient(0), above.out_stride, w.mlp[layer], nullptr, below.gradient(0), below.out_stride);
      for (size_t r = 0; r < count; ++r, hidden += s.D) {
        T *change = below.gradient(r), *input = above.input(r);
        each<T>(s.D, [&](size_t i, auto get, auto put) {
          const Vector<T> h = get(hidden + i);
          put(change + i, h > T(0) ? get(change + i) : Vector<T>{});
          put(input + i, h);
        });
      }
    }
    const T* normed = keep.attention.at(t, first);
    for (size_t r = 0; r < count; ++r)
      affine<T>(s.D, normed + r * s.D, p.attention_norm.weight, p.attention_norm.bias, mlp[0].input(r));
    times_packed<T, Into::add>(count, s.D, s.D, mlp[0].gradient(0), mlp[0].out_stride, w.mlp[0], nullptr, dread, s.D);
  }

  // dread -> dupdate of the block below, or dmemory and the gradients of the inputs
  void attention_back(size_t t, size_t block, size_t first, size_t end) {
    const size_t own = s.own(block), asking = s.asking(block), count = (end - first) * own;
    const auto& keep = saved.blocks[block];
    const auto& p = x.parameters.blocks[block];
    const Heads heads = s.heads(block);
    Collected<T>& collect = qkv[block];
    collect.take(count);
    T* below = block == 0 ? dmemory : dupdate;
    if (block > 0) std::memset(below, 0, count * s.D * sizeof(T));
    for (size_t b = first; b < end; ++b) {
      const size_t row = t * s.B + b, r0 = (b - first) * own;
      T* change = dread + (b - first) * asking * s.D;
      for (size_t r = 0; r < asking; ++r)
        normalise_back<T>(s.D, change + r * s.D, keep.attention.at(t, b) + r * s.D, p.attention_norm.weight,
                          keep.attention_scale.at(t, b)[r], change + r * s.D, d.blocks[block].attention_norm.weight,
                          d.blocks[block].attention_norm.bias);
      const T* normed = keep.qkv.at(t, b);
      for (size_t r = 0; r < own; ++r) affine<T>(s.E, normed + r * s.E, p.qkv_norm.weight, p.qkv_norm.bias, own_qkv + r * s.E);
      for (size_t r = 0; r < s.R; ++r) {
        const size_t input = (row * s.n + r - own) * s.E;
        attended[r] = r < own ? own_qkv + r * s.E : x.input_qkv + input;
        dattended[r] = r < own ? dqkv + r * s.E : g.input_qkv + input;
      }
      with_size(heads, [&](auto size) {
        attend_back<T, size>(heads, attended.data(), keep.weights.at(t, b), change, dscores, dattended.data());
      });
      for (size_t r = 0; r < own; ++r) {
        normalise_back<T>(s.E, dqkv + r * s.E, normed + r * s.E, p.qkv_norm.weight, keep.qkv_scale.at(t, b)[r],
                          collect.gradient(r0 + r), d.blocks[block].qkv_norm.weight, d.blocks[block].qkv_norm.bias);
        if (block == 0) {
          std::memcpy(collect.input(r0 + r), x.before(t, b) + r * s.D, s.D * sizeof(T));
        } else {
          const auto& norm = x.parameters.blocks[block - 1].mlp_norm;
          affine<T>(s.D, saved.blocks[block - 1].mlp.at(t, b) + r * s.D, norm.weight, norm.bias, collect.input(r0 + r));
        }
      }
      for (size_t r = 0; r < asking; ++r) {  // what goes around the attention
        if (r < own)
          add_scaled<T>(s.D, T(1), change + r * s.D, below + (r0 + r) * s.D);
        else
          std::memcpy(g.rows + (row * s.n + r - own) * s.D, change + r * s.D, s.D * sizeof(T));
      }
    }
    times_packed<T, Into::add>(count, s.D, s.E, collect.gradient(0), collect.out_stride, w.qkv[block], nullptr, below, s.D);
  }

  const Shape& s;
  const Tensors<T>& x;
  const Gradients<T>& g;
  const BackwardWeights<T>& w;
  Parameters<T*> d;
  Saved<T> saved;
  Buffer<T> dmemory, dupdate, dread, more, squashed, dscores, own_qkv, dqkv;
  std::vector<const T*> attended;
  std::vector<T*> dattended;
  Collected<T> gate;
  std::vector<Collected<T>> qkv, mlp;
};

}  // namespace
