// Layers of recurrent modules, forward: a group of batch entries through all steps. Equations: cores/brims.py. Letters:
// rims.h.

#pragma once

#include "rims.h"

namespace rmc_rl::rims {
namespace {

template <class T, class Cell> class Forward {
 public:
  Forward(const Shape& shape, const Tensors<T>& tensors, const PackedWeights<T>& packed, size_t group)
      : shape(shape),
        x(tensors),
        packed(packed),
        one_step(tensors.saved ? 0 : Saved<T>(shape, nullptr, 1, group).length),
        saved(shape, tensors.saved ? tensors.saved : one_step, tensors.saved ? shape.T : 1, tensors.saved ? shape.B : group),
        before(group * shape.S),
        visible(group * shape.largest([](const Layer& l) { return l.step_row_inputs; })),
        sparse(shape.largest([&](const Layer& l) { return l.R * shape.H * l.K; })),
        scores(shape.largest([](const Layer& l) { return l.K; })),
        read(group * shape.largest([](const Layer& l) { return l.K * l.a; })),
        gates(group * shape.largest([](const Layer& l) { return l.K * l.G; })),
        comm_read(group * shape.largest([](const Layer& l) { return l.K * l.comm_read; })),
        messages(group * shape.largest([](const Layer& l) { return l.K * l.message; })),
        rows(shape.largest([](const Layer& l) { return l.R; })),
        module_qkv(shape.largest([](const Layer& l) { return l.K; })) {}

  // Batch entries first <= b < end, at most `group` of them, through all steps
  void run(size_t first, size_t end) {
    for (size_t t = 0; t < shape.T; ++t) {
      for (size_t b = first; b < end; ++b) std::memcpy(before + (b - first) * shape.S, x.before(t, b), shape.S * sizeof(T));
      for (size_t index = 0; index < shape.num_layers; ++index) step(t, index, first, end);
    }
  }

 private:
  // A linear layer, or one for each group (module): from (count, groups, in) to (count, groups, out)
  void linear(size_t index, Linears which, size_t count, const T* from, size_t from_group_stride, size_t from_stride, T* to,
              size_t to_group_stride, size_t to_stride) const {
    const auto& w = packed.layers[index][which];
    const T* bias = x.parameters.layers[index].linears[which].bias;
    for (size_t group = 0; group < w.sizes.groups; ++group)
      times_packed<T>(count, w.sizes.out, w.sizes.in, from + group * from_group_stride, from_stride, w.of(group),
                      bias ? bias + group * w.sizes.out : nullptr, to + group * to_group_stride, to_stride);
  }

  void step(size_t t, size_t index, size_t first, size_t end) {
    const Layer& l = shape.layers[index];
    const auto& save = saved.layers[index];
    const size_t count = end - first, entry = x.saved ? first : 0, S = shape.S, W = l.width();
    const T* h = before + l.h;
    T* step_rows = l.step_row_inputs ? save.step_row.at(t, entry) : nullptr;
    if (l.step_row_inputs) compute_step_rows(t, index, first, end, step_rows);
    T* queries = save.query.at(t, entry);
    linear(index, query, count, h, l.s, S, queries, l.keys, l.K * l.keys);
    T *active = save.active.at(t, entry), *weights = save.weights.at(t, entry);
    for (size_t b = 0; b < count; ++b) {
      x.rows_at(shape, index, t, first + b, step_rows ? step_rows + b * l.row : nullptr, rows.data());
      select(l, queries + b * l.K * l.keys, rows.data(), weights + b * save.weights.size, active + b * l.K);
      for (size_t m = 0; m < l.K; ++m) {
        T* module_read = read + (b * l.K + m) * l.a;
        if (shape.variant == dido && active[b * l.K + m] == 0) std::memset(module_read, 0, l.a * sizeof(T));
        else read_rows<T>(shape, l, sparse, rows.data(), m, module_read);
      }
    }
    linear(index, from_read, count, read, l.a, l.K * l.a, gates, l.G, l.K * l.G);
    T *cell = save.cell.at(t, entry), *provisional = save.provisional.at(t, entry);
    linear(index, from_state, count, h, l.s, S, cell, kSavedPerUnit * l.s, kSavedPerUnit * W);
    for (size_t b = 0; b < count; ++b)
      for (size_t m = 0; m < l.K; ++m)
        Cell::template forward<T>(l.s, W, gates + (b * l.K + m) * l.G, cell + (b * l.K + m) * kSavedPerUnit * l.s,
                                  h + b * S + m * l.s, provisional + b * l.state_parts * W + m * l.s);
    if (l.communicates) communicate(t, index, first, end);
    for (size_t b = 0; b < count; ++b) {  // inactive modules keep their states
      T* after = x.after + (t * shape.B + first + b) * S + l.h;
      for (size_t m = 0; m < l.K; ++m) {
        const bool is_active = active[b * l.K + m] != 0;
        for (size_t part = 0; part < l.state_parts; ++part) {
          const size_t offset = part * W + m * l.s;
          const T* from = is_active ? provisional + b * l.state_parts * W : h + b * S;
          std::memcpy(after + offset, from + offset, l.s * sizeof(T));
        }
        if (is_active && l.communicates)
          add_message(l, messages + (b * l.K + m) * l.message, save, t, entry + b, m, after + m * l.s);
      }
    }
  }

  // Keys and values of the rows that depend on the last layer before the step (first layer) or on the layer below
  void compute_step_rows(size_t t, size_t index, size_t first, size_t end, T* step_rows) {
    const Layer& l = shape.layers[index];
    const size_t count = end - first;
    if (index == 0) return linear(index, step_row, count, before + shape.layers.back().h, 0, shape.S, step_rows, 0, l.row);
    const Layer& below = shape.layers[index - 1];
    const T* h = x.after + (t * shape.B + first) * shape.S + below.h;
    if (!shape.hide_inactive) return linear(index, step_row, count, h, 0, shape.S, step_rows, 0, l.row);
    const T* active = saved.layers[index - 1].active.at(t, x.saved ? first : 0);
    for (size_t b = 0; b < count; ++b, h += shape.S)
      for (size_t m = 0; m < below.K; ++m)
        for_vectors<T>(below.s, [&](size_t i, auto get, auto put) {
          put(visible + b * l.step_row_inputs + m * below.s + i, active[b * below.K + m] * get(h + m * below.s + i));
        });
    linear(index, step_row, count, visible, 0, l.step_row_inputs, step_rows, 0, l.row);
  }

  // Input attention of one batch entry. Writes the weights, (R, H, K), the sparse weights to `sparse`, and which modules are
  // active, 1 or 0
  void select(const Layer& l, const T* queries, const T* const* rows, T* weights, T* active) {
    const size_t columns = shape.H * l.K;
    const T scale = T(shape.score_scale);
    size_t unused = 0;
    for (size_t r = 0; r < l.R; ++r)
      for (size_t h = 0; h < shape.H; ++h)
        for (size_t m = 0; m < l.K; ++m)
          weights[r * columns + h * l.K + m] =
              scale * dot<T>(shape.d, queries + m * l.keys + h * shape.d, rows[r] + h * shape.d);
    if (shape.variant == dido) std::memcpy(scores, weights + columns, l.K * sizeof(T));
    if (shape.variant == atari) {  // one row; the softmax is over modules
      for (size_t h = 0; h < shape.H; ++h) {
        softmax_columns<T>(l.K, 1, 1, weights + h * l.K);
        sparsify<T>(l.K, 1, l.num_kept, weights + h * l.K, sparse + h * l.K, &unused);
      }
    } else {
      softmax_columns<T>(l.R, columns, columns, weights);
      for (size_t i = 0; i < columns; ++i) sparsify<T>(l.R, columns, l.num_kept, weights + i, sparse + i, &unused);
    }
    if (shape.variant != dido)
      for (size_t m = 0; m < l.K; ++m) {
        T total = 0;
        for (size_t h = 0; h < shape.H; ++h) total += sparse[h * l.K + m];
        scores[m] = shape.variant == atari ? total : -total;
      }
    for (size_t m = 0; m < l.K; ++m) active[m] = T(rank<T>(l.K, 1, scores, m) < l.k);
  }

  // Attention of every module over the provisional states of all modules. Writes the messages
  void communicate(size_t t, size_t index, size_t first, size_t end) {
    const Layer& l = shape.layers[index];
    const auto& save = saved.layers[index];
    const size_t count = end - first, entry = x.saved ? first : 0;
    T *all_qkv = save.qkv.at(t, entry), *weights = save.comm_weights.at(t, entry);
    linear(index, qkv, count, save.provisional.at(t, entry), l.s, l.state_parts * l.width(), all_qkv, l.E, l.K * l.E);
    for (size_t b = 0; b < count; ++b) {
      for (size_t m = 0; m < l.K; ++m) module_qkv[m] = all_qkv + (b * l.K + m) * l.E;
      with_size(l.comm, [&](auto size) {
        attend<T, size>(l.comm, module_qkv.data(), weights + b * save.comm_weights.size, comm_read + b * l.K * l.comm_read);
      });
    }
    if (packed.layers[index][message].sizes.groups == 1)
      linear(index, message, count * l.K, comm_read, 0, l.comm_read, messages, 0, l.message);
    else
      linear(index, message, count, comm_read, l.comm_read, l.K * l.comm_read, messages, l.message, l.K * l.message);
  }

  // Adds the message of module m to h, through a gate if there is one
  void add_message(const Layer& l, const T* of_module, const typename Saved<T>::OfLayer& save, size_t t, size_t b, size_t m,
                   T* h) const {
    if (l.message == l.s) return add_scaled<T>(l.s, T(1), of_module, h);
    T* tanh_and_gate = save.message.at(t, b) + m * l.message;
    for_vectors<T>(l.s, [&](size_t i, auto get, auto put) {
      const Vector<T> value = tanh<T>(get(of_module + i)), gate = sigmoid<T>(get(of_module + l.s + i));
      put(tanh_and_gate + i, value);
      put(tanh_and_gate + l.s + i, gate);
      put(h + i, get(h + i) + gate * value);
    });
  }

  const Shape& shape;
  const Tensors<T>& x;
  const PackedWeights<T>& packed;
  Buffer<T> one_step;  // where `saved` lies without a backward pass
  Saved<T> saved;
  Buffer<T> before, visible, sparse, scores, read, gates, comm_read, messages;
  std::vector<const T*> rows, module_qkv;  // of a batch entry
};

}  // namespace
}  // namespace rmc_rl::rims
