// Layers of recurrent modules, backward: gradients of a group of batch entries, from the last step to the first. Letters:
// rims.h.

#pragma once

#include "rims.h"

namespace rmc_rl::rims {
namespace {

template <class T, class Cell> class Backward {
 public:
  // dinput_rows: the gradient of the input rows. parameters: where this thread adds up the gradients
  Backward(const Shape& shape, const Tensors<T>& tensors, const StateGradients<T>& gradients, T* dinput_rows,
           const PackedWeights<T>& packed, size_t group, const Parameters<T*>& parameters)
      : shape(shape), x(tensors), g(gradients), packed(packed), dinput_rows(dinput_rows), d(parameters),
        saved(shape, x.saved, shape.T, shape.B), dafter(group * shape.S), dbefore(group * shape.S),
        sparse(shape.largest([&](const Layer& l) { return l.R * shape.H * l.K; })),
        totals(shape.largest([&](const Layer& l) { return shape.H * l.K; })),
        dweights(shape.largest([&](const Layer& l) { return l.R * shape.H * l.K; })),
        dprovisional(group * shape.largest([](const Layer& l) { return l.state_parts * l.width(); })),
        dread(group * shape.largest([](const Layer& l) { return l.K * l.a; })),
        dcomm_read(group * shape.largest([](const Layer& l) { return l.K * l.comm_read; })),
        dvisible(group * shape.largest([](const Layer& l) { return std::max(l.width(), l.step_row_inputs); })),
        dcomm_scores(shape.largest([](const Layer& l) { return l.comm.count * l.K * l.K; })),
        thresholds(shape.largest([&](const Layer& l) { return shape.H * l.K; })),
        rows(shape.largest([](const Layer& l) { return l.R; })), module_qkv(shape.largest([](const Layer& l) { return l.K; })),
        drows(rows.size()), dmodule_qkv(module_qkv.size()) {
    for (size_t index = 0; index < shape.num_layers; ++index) {
      const auto all = linears_of(shape, shape.layers[index]);
      std::vector<std::vector<WeightGradient<T>>> of_layer;
      for (size_t i = 0; i < all.size(); ++i) {
        const LinearSizes& sizes = all[i];
        const auto& to = d.layers[index].linears[i];
        const size_t most_rows = i == message && sizes.groups == 1 ? group * shape.layers[index].K : group;
        std::vector<WeightGradient<T>> groups;
        for (size_t k = 0; to.weight && k < sizes.groups; ++k)
          groups.emplace_back(sizes.out, sizes.in, most_rows, to.weight + k * sizes.out * sizes.in,
                              sizes.bias ? to.bias + k * sizes.out : nullptr, sizes.layout);
        of_layer.push_back(std::move(groups));
      }
      linears.push_back(std::move(of_layer));
    }
  }

  void run(size_t first, size_t end) {
    const size_t numbers = (end - first) * shape.S;
    std::memset(dafter, 0, numbers * sizeof(T));
    for (size_t t = shape.T; t-- > 0;) {
      g.add(x, t, first, end, dafter);
      std::memset(dbefore, 0, numbers * sizeof(T));
      for (size_t index = shape.num_layers; index-- > 0;) step(t, index, first, end);
      std::memcpy(dafter, dbefore, numbers * sizeof(T));
      g.move_starts(x, t, first, end, dafter);
    }
    g.write(x, first, end, dafter);
  }

  void finish() {
    for (auto& layer : linears)
      for (auto& linear : layer)
        for (auto& group : linear) group.flush();
  }

 private:
  // From the output gradients of the last append to the gradients of the inputs
  template <Into into>
  void linear_backward(size_t index, Linears which, size_t count, T* to, size_t group_stride, size_t stride) {
    const auto& w = packed.layers[index][which];
    for (size_t group = 0; group < w.sizes.groups; ++group) {
      const auto& from = linears[index][which][group];
      times_packed<T, into>(count, w.sizes.in, w.sizes.out, from.output_gradient(0), from.out_stride, w.of(group), nullptr,
                            to + group * group_stride, stride);
    }
  }

  void step(size_t t, size_t index, size_t first, size_t end) {
    const Layer& l = shape.layers[index];
    const auto& save = saved.layers[index];
    const size_t count = end - first, S = shape.S, W = l.width(), state_size = l.state_parts * W;
    for (auto& linear : linears[index])
      for (auto& group : linear) group.append(&linear == &linears[index][message] && linear.size() == 1 ? count * l.K : count);
    const T* active = save.active.at(t, first);
    for (size_t b = 0; b < count; ++b) {  // the states of inactive modules were copied
      const T* dnext = dafter + b * S + l.h;
      T *dprevious = dbefore + b * S + l.h, *dnew = dprovisional + b * state_size;
      for (size_t part = 0; part < l.state_parts; ++part)
        for (size_t m = 0; m < l.K; ++m) {
          const size_t offset = part * W + m * l.s;
          if (active[b * l.K + m] != 0) {
            std::memcpy(dnew + offset, dnext + offset, l.s * sizeof(T));
          } else {
            std::memset(dnew + offset, 0, l.s * sizeof(T));
            add_scaled<T>(l.s, T(1), dnext + offset, dprevious + offset);
          }
        }
    }
    if (l.communicates) communicate_backward(t, index, first, end);
    auto &reads = linears[index][from_read], &states = linears[index][from_state];
    for (size_t b = 0; b < count; ++b) {
      const T *h = x.before(t, first + b) + l.h, *provisional = save.provisional.at(t, first + b),
              *cell = save.cell.at(t, first + b);
      T* dnew = dprovisional + b * state_size;
      for (size_t m = 0; m < l.K; ++m) {
        T *d_from_read = reads[m].output_gradient(b), *d_from_h = states[m].output_gradient(b);
        std::memcpy(states[m].input(b), h + m * l.s, l.s * sizeof(T));
        if (active[b * l.K + m] != 0) {
          Cell::template backward<T>(l.s, W, cell + m * kSavedPerUnit * l.s, h + m * l.s, provisional + m * l.s,
                                     dnew + m * l.s, d_from_read, d_from_h);
        } else {
          std::memset(d_from_read, 0, l.G * sizeof(T));
          std::memset(d_from_h, 0, l.G * sizeof(T));
        }
      }
      add_scaled<T>(state_size, T(1), dnew, dbefore + b * S + l.h);
    }
    linear_backward<Into::set>(index, from_read, count, dread, l.a, l.K * l.a);
    linear_backward<Into::add>(index, from_state, count, dbefore + l.h, l.s, S);
    for (size_t b = 0; b < count; ++b) {
      const size_t entry = t * shape.B + first + b;
      x.rows_at(shape, index, t, first + b, l.step_row_inputs ? save.step_row.at(t, first + b) : nullptr, rows.data());
      for (size_t r = 0; r < l.R; ++r) {
        if (l.has_null_row && r == 0) drows[r] = d.layers[index].null_row;
        else if (l.step_row_inputs && r + 1 == l.R) drows[r] = linears[index][step_row][0].output_gradient(b);
        else drows[r] = dinput_rows + (entry * l.num_input_rows + r - l.has_null_row) * l.row;
      }
      input_attention_backward(index, t, first + b, b);
    }
    auto& queries = linears[index][query];
    for (size_t m = 0; m < l.K; ++m)
      for (size_t b = 0; b < count; ++b)
        std::memcpy(queries[m].input(b), x.before(t, first + b) + l.h + m * l.s, l.s * sizeof(T));
    linear_backward<Into::add>(index, query, count, dbefore + l.h, l.s, S);
    if (l.step_row_inputs) step_rows_backward(t, index, first, end);
  }

  // dprovisional: on entry the gradient of the states after communication, on return that of the states before it
  void communicate_backward(size_t t, size_t index, size_t first, size_t end) {
    const Layer& l = shape.layers[index];
    const auto& save = saved.layers[index];
    const size_t count = end - first, state_size = l.state_parts * l.width();
    auto &messages = linears[index][message], &projections = linears[index][qkv];
    const bool shared = messages.size() == 1;
    for (size_t b = 0; b < count; ++b) {
      const T *weights = save.comm_weights.at(t, first + b), *all_qkv = save.qkv.at(t, first + b);
      for (size_t m = 0; m < l.K; ++m) module_qkv[m] = all_qkv + m * l.E;
      for (size_t m = 0; m < l.K; ++m) {
        const size_t row = shared ? b * l.K + m : b;
        auto& linear = messages[shared ? 0 : m];
        for (size_t k = 0; k < l.comm.count; ++k)  // what the module read, computed again
          read_values<T>(l.comm, module_qkv.data(), weights, k, m, linear.input(row) + k * l.comm.value);
        const T* dh = dprovisional + b * state_size + m * l.s;
        T* dmessage = linear.output_gradient(row);
        if (l.message == l.s) {
          std::memcpy(dmessage, dh, l.s * sizeof(T));
        } else if (save.active.at(t, first + b)[m] == 0) {  // its message was not used
          std::memset(dmessage, 0, l.message * sizeof(T));
        } else {
          const T* tanh_and_gate = save.message.at(t, first + b) + m * l.message;
          for_vectors<T>(l.s, [&](size_t i, auto get, auto put) {
            const Vector<T> value = get(tanh_and_gate + i), gate = get(tanh_and_gate + l.s + i), dsum = get(dh + i);
            put(dmessage + i, dsum * gate * tanh_slope(value));
            put(dmessage + l.s + i, dsum * value * sigmoid_slope(gate));
          });
        }
      }
    }
    if (shared) linear_backward<Into::set>(index, message, count * l.K, dcomm_read, 0, l.comm_read);
    else linear_backward<Into::set>(index, message, count, dcomm_read, l.comm_read, l.K * l.comm_read);
    for (size_t b = 0; b < count; ++b) {
      const T *all_qkv = save.qkv.at(t, first + b), *provisional = save.provisional.at(t, first + b);
      for (size_t m = 0; m < l.K; ++m) {
        module_qkv[m] = all_qkv + m * l.E;
        dmodule_qkv[m] = projections[m].output_gradient(b);
        std::memcpy(projections[m].input(b), provisional + m * l.s, l.s * sizeof(T));
      }
      with_size(l.comm, [&](auto size) {
        attend_backward<T, size>(l.comm, module_qkv.data(), save.comm_weights.at(t, first + b),
                                 dcomm_read + b * l.K * l.comm_read, dcomm_scores, dmodule_qkv.data());
      });
    }
    linear_backward<Into::set>(index, qkv, count, dvisible, l.s, l.width());
    for (size_t b = 0; b < count; ++b) {
      const T* active = save.active.at(t, first + b);
      for (size_t m = 0; m < l.K; ++m)  // inactive modules get no gradient from modules that read them
        if (active[m] != 0)
          add_scaled<T>(l.s, T(1), dvisible + b * l.width() + m * l.s, dprovisional + b * state_size + m * l.s);
    }
  }

  // Input attention of one batch entry, from dread to the gradients of the rows and queries. Adds to the gradient of the null
  // row and writes those of the other rows
  void input_attention_backward(size_t index, size_t t, size_t b, size_t b_in_group) {
    const Layer& l = shape.layers[index];
    const size_t columns = shape.H * l.K, part = l.a / shape.H;
    // the softmax is over rows, for each head and module; "atari": over modules, for each head
    const bool over_modules = shape.variant == atari;
    const size_t n = over_modules ? l.K : l.R, stride = over_modules ? 1 : columns;
    const size_t num_softmaxes = over_modules ? shape.H : columns, softmax_stride = over_modules ? l.K : 1;
    const T *weights = saved.layers[index].weights.at(t, b), *dentry_read = dread + b_in_group * l.K * l.a;
    for (size_t i = 0; i < num_softmaxes; ++i) {
      thresholds[i] = 0;
      const size_t at = i * softmax_stride;
      totals[i] = sparsify<T>(n, stride, l.num_kept, weights + at, sparse + at, &thresholds[i]);
    }
    auto &reads = linears[index][from_read], &projections = linears[index][query];
    // what the modules read, computed again; an inactive module's output gradient is 0
    for (size_t m = 0; m < l.K; ++m) read_rows<T>(shape, l, sparse, rows.data(), m, reads[m].input(b_in_group));
    for (size_t r = 0; r < l.R; ++r) {
      const bool add = l.has_null_row && r == 0;
      for (size_t h = 0; h < shape.H; ++h) {
        const size_t offset = l.keys + h * part;
        const auto dmodule = [&](size_t m) { return dentry_read + m * l.a + h * part; };
        for (size_t m = 0; m < l.K; ++m) dweights[r * columns + h * l.K + m] = dot<T>(part, dmodule(m), rows[r] + offset);
        weighted_sum<T>(part, l.K, sparse + r * columns + h * l.K, 1, dmodule, drows[r] + offset, add);
      }
    }
    for (size_t i = 0; i < num_softmaxes; ++i) {
      const size_t at = i * softmax_stride;
      sparsify_backward<T>(n, stride, totals[i], thresholds[i], sparse + at, dweights + at);
    }
    const T scale = T(shape.score_scale);
    if (over_modules)
      for (size_t h = 0; h < shape.H; ++h) softmax_columns_backward<T>(n, 1, 1, scale, weights + h * l.K, dweights + h * l.K);
    else
      softmax_columns_backward<T>(n, columns, columns, scale, weights, dweights);
    const T* queries = saved.layers[index].query.at(t, b);
    for (size_t h = 0; h < shape.H; ++h) {
      const size_t offset = h * shape.d;
      for (size_t m = 0; m < l.K; ++m)
        weighted_sum<T>(shape.d, l.R, dweights + h * l.K + m, columns, [&](size_t r) { return rows[r] + offset; },
                        projections[m].output_gradient(b_in_group) + offset);
      for (size_t r = 0; r < l.R; ++r)
        weighted_sum<T>(shape.d, l.K, dweights + r * columns + h * l.K, 1,
                        [&](size_t m) { return queries + m * l.keys + offset; }, drows[r] + offset, l.has_null_row && r == 0);
    }
  }

  // From the gradients of the step rows to those of the last layer before the step (first layer) or of the layer below
  void step_rows_backward(size_t t, size_t index, size_t first, size_t end) {
    const Layer &l = shape.layers[index], &from = index == 0 ? shape.layers.back() : shape.layers[index - 1];
    const size_t count = end - first, S = shape.S;
    auto& linear = linears[index][step_row][0];
    if (index == 0) {
      for (size_t b = 0; b < count; ++b)
        std::memcpy(linear.input(b), x.before(t, first + b) + from.h, l.step_row_inputs * sizeof(T));
      return linear_backward<Into::add>(index, step_row, count, dbefore + from.h, 0, S);
    }
    linear_backward<Into::set>(index, step_row, count, dvisible, 0, l.step_row_inputs);
    const bool block_inactive = shape.block_gradient || shape.hide_inactive;
    for (size_t b = 0; b < count; ++b) {
      const T* active = saved.layers[index - 1].active.at(t, first + b);
      const T* h = x.after + (t * shape.B + first + b) * S + from.h;
      T *visible = linear.input(b), *dh = dafter + b * S + from.h, *dentry = dvisible + b * l.step_row_inputs;
      for (size_t m = 0; m < from.K; ++m) {
        const T value_mask = shape.hide_inactive ? active[m] : T(1), gradient_mask = block_inactive ? active[m] : T(1);
        for_vectors<T>(from.s, [&](size_t i, auto get, auto put) {
          put(visible + m * from.s + i, value_mask * get(h + m * from.s + i));
        });
        add_scaled<T>(from.s, gradient_mask, dentry + m * from.s, dh + m * from.s);
      }
    }
  }

  const Shape& shape;
  const Tensors<T>& x;
  const StateGradients<T>& g;
  const PackedWeights<T>& packed;
  T* dinput_rows;
  Parameters<T*> d;
  Saved<T> saved;
  Buffer<T> dafter, dbefore, sparse, totals, dweights, dprovisional, dread, dcomm_read, dvisible, dcomm_scores;
  std::vector<size_t> thresholds;
  std::vector<const T*> rows, module_qkv;  // of a batch entry, and where their gradients are written
  std::vector<T*> drows, dmodule_qkv;
  std::vector<std::vector<std::vector<WeightGradient<T>>>> linears;  // of each layer, linear layer and group
};

}  // namespace
}  // namespace rmc_rl::rims
