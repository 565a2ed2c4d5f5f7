// Layers of recurrent modules, backward: gradients of some batch entries from the last step to the first. Letters: rims.h.

#pragma once

#include "rims.h"

namespace {

template <class T, class Cell> class Backward {
 public:
  // of_rows: the gradient of the inputs' rows; parameters: where the gradients of this thread are added up
  Backward(const Shape& shape, const Tensors<T>& tensors, T* of_rows, const Packed<T>& packed, size_t group,
           const Parameters<T*>& parameters)
      : shape(shape), x(tensors), packed(packed), of_rows(of_rows), d(parameters), saved(shape, x.saved, shape.T, shape.B),
        after(group * shape.S), before(group * shape.S), left(shape.most([&](const Layer& l) { return l.R * shape.H * l.K; })),
        totals(shape.most([&](const Layer& l) { return shape.H * l.K; })),
        dleft(shape.most([&](const Layer& l) { return l.R * shape.H * l.K; })),
        provisional(group * shape.most([](const Layer& l) { return l.parts * l.width(); })),
        dread(group * shape.most([](const Layer& l) { return l.K * l.a; })),
        dheard(group * shape.most([](const Layer& l) { return l.K * l.heard; })),
        dshown(group * shape.most([](const Layer& l) { return std::max(l.width(), l.made); })),
        dscores(shape.most([](const Layer& l) { return l.comm.count * l.K * l.K; })),
        thresholds(shape.most([&](const Layer& l) { return shape.H * l.K; })),
        rows(shape.most([](const Layer& l) { return l.R; })), speakers(shape.most([](const Layer& l) { return l.K; })),
        drows(rows.size()), dspeakers(speakers.size()) {
    for (size_t index = 0; index < shape.L; ++index) {
      const auto all = linears_of(shape, shape.layers[index]);
      std::vector<std::vector<Collected<T>>> of;
      for (size_t i = 0; i < all.size(); ++i) {
        std::vector<Collected<T>> groups;
        const auto [count, out, in, bias, order] = all[i];
        const auto& to = d.layers[index].linears[i];
        const size_t rows = i == say && count == 1 ? group * shape.layers[index].K : group;
        for (size_t g = 0; to.weight && g < count; ++g)
          groups.emplace_back(out, in, rows, to.weight + g * out * in, bias ? to.bias + g * out : nullptr, order);
        of.push_back(std::move(groups));
      }
      collected.push_back(std::move(of));
    }
  }

  void run(size_t first, size_t end, const T* dstates, T* dstate, T* dfresh) {
    const size_t numbers = (end - first) * shape.S;
    std::memset(after, 0, numbers * sizeof(T));
    for (size_t t = shape.T; t-- > 0;) {
      add_scaled<T>(numbers, T(1), dstates + (t * shape.B + first) * shape.S, after);
      std::memset(before, 0, numbers * sizeof(T));
      for (size_t index = shape.L; index-- > 0;) step(t, index, first, end);
      std::memcpy(after, before, numbers * sizeof(T));
      x.leave(t, first, end, after, dfresh);
    }
    if (dstate) std::memcpy(dstate + first * shape.S, after, numbers * sizeof(T));
  }

  void finish() {
    for (auto& layer : collected)
      for (auto& linear : layer)
        for (auto& group : linear) group.flush();
  }

 private:
  // from the gradients collected of the outputs to those of the inputs
  template <Into into> void linear_back(size_t index, Linears which, size_t count, T* to, size_t to_step, size_t ld_to) {
    const auto& w = packed.layers[index][which];
    for (size_t group = 0; group < w.sizes.groups; ++group) {
      const auto& from = collected[index][which][group];
      times_packed<T, into>(count, w.sizes.in, w.sizes.out, from.gradient(0), from.out_stride, w.of(group), nullptr,
                            to + group * to_step, ld_to);
    }
  }

  void step(size_t t, size_t index, size_t first, size_t end) {
    const Layer& l = shape.layers[index];
    const auto& keep = saved.layers[index];
    const size_t count = end - first, S = shape.S, W = l.width(), PW = l.parts * W;
    for (auto& linear : collected[index])
      for (auto& group : linear) group.take(&linear == &collected[index][say] && linear.size() == 1 ? count * l.K : count);
    const T* active = keep.active.at(t, first);
    for (size_t b = 0; b < count; ++b) {  // inactive modules kept their states
      const T *from = after + b * S + l.h;
      T *to_before = before + b * S + l.h, *to = provisional + b * PW;
      for (size_t part = 0; part < l.parts; ++part)
        for (size_t m = 0; m < l.K; ++m) {
          const size_t offset = part * W + m * l.s;
          const bool changed = active[b * l.K + m] != 0;
          if (changed) std::memcpy(to + offset, from + offset, l.s * sizeof(T));
          else {
            std::memset(to + offset, 0, l.s * sizeof(T));
            add_scaled<T>(l.s, T(1), from + offset, to_before + offset);
          }
        }
    }
    if (l.communicates) talk_back(t, index, first, end);
    auto &reads = collected[index][from_read], &states = collected[index][from_state];
    for (size_t b = 0; b < count; ++b) {
      const T *h = x.before(t, first + b) + l.h, *now = keep.provisional.at(t, first + b), *gates = keep.kept.at(t, first + b);
      T* dnow = provisional + b * PW;
      for (size_t m = 0; m < l.K; ++m) {
        T *dx = reads[m].gradient(b), *dh = states[m].gradient(b);
        std::memcpy(states[m].input(b), h + m * l.s, l.s * sizeof(T));
        if (active[b * l.K + m] != 0) {
          Cell::template backward<T>(l.s, W, gates + m * kKept * l.s, h + m * l.s, now + m * l.s, dnow + m * l.s, dx, dh);
        } else {
          std::memset(dx, 0, l.G * sizeof(T));
          std::memset(dh, 0, l.G * sizeof(T));
        }
      }
      add_scaled<T>(PW, T(1), dnow, before + b * S + l.h);
    }
    linear_back<Into::set>(index, from_read, count, dread, l.a, l.K * l.a);
    linear_back<Into::add>(index, from_state, count, before + l.h, l.s, S);
    for (size_t b = 0; b < count; ++b) {
      const size_t row = t * shape.B + first + b;
      x.rows_at(shape, index, t, first + b, l.made ? keep.made.at(t, first + b) : nullptr, rows.data());
      for (size_t r = 0; r < l.R; ++r) {
        if (l.null && r == 0) drows[r] = d.layers[index].null;
        else if (l.made && r + 1 == l.R) drows[r] = collected[index][make][0].gradient(b);
        else drows[r] = of_rows + (row * l.given + r - l.null) * l.row;
      }
      choose_back(index, t, first + b, b);
    }
    for (auto& module : collected[index][query])
      for (size_t b = 0, m = &module - collected[index][query].data(); b < count; ++b)
        std::memcpy(module.input(b), x.before(t, first + b) + l.h + m * l.s, l.s * sizeof(T));
    linear_back<Into::add>(index, query, count, before + l.h, l.s, S);
    if (l.made) make_back(t, index, first, end);
  }

  // the gradient of provisional h, so far that of what modules became, becomes its whole one
  void talk_back(size_t t, size_t index, size_t first, size_t end) {
    const Layer& l = shape.layers[index];
    const auto& keep = saved.layers[index];
    const size_t count = end - first, PW = l.parts * l.width();
    auto &says = collected[index][say], &alls = collected[index][qkv];
    const bool shared = says.size() == 1;
    for (size_t b = 0; b < count; ++b) {
      const T *weights = keep.comm_weights.at(t, first + b), *all = keep.qkv.at(t, first + b);
      for (size_t m = 0; m < l.K; ++m) {
        const size_t at = shared ? b * l.K + m : b;
        auto& collect = says[shared ? 0 : m];
        hear(l, weights, all, m, collect.input(at));
        const T* change = provisional + b * PW + m * l.s;
        T* to = collect.gradient(at);
        if (l.said == l.s) {
          std::memcpy(to, change, l.s * sizeof(T));
        } else if (keep.active.at(t, first + b)[m] == 0) {  // nothing was kept of what it said
          std::memset(to, 0, l.said * sizeof(T));
        } else {
          const T* both = keep.said.at(t, first + b) + m * l.said;
          each<T>(l.s, [&](size_t i, auto get, auto put) {
            const Vector<T> word = get(both + i), gate = get(both + l.s + i), dsaid = get(change + i);
            put(to + i, dsaid * gate * tanh_slope(word));
            put(to + l.s + i, dsaid * word * sigmoid_slope(gate));
          });
        }
      }
    }
    if (shared) linear_back<Into::set>(index, say, count * l.K, dheard, 0, l.heard);
    else linear_back<Into::set>(index, say, count, dheard, l.heard, l.K * l.heard);
    for (size_t b = 0; b < count; ++b) {
      const T *all = keep.qkv.at(t, first + b), *now = keep.provisional.at(t, first + b);
      for (size_t m = 0; m < l.K; ++m) {
        speakers[m] = all + m * l.E;
        dspeakers[m] = alls[m].gradient(b);
        std::memcpy(alls[m].input(b), now + m * l.s, l.s * sizeof(T));
      }
      with_size(l.comm, [&](auto size) {
        attend_back<T, size>(l.comm, speakers.data(), keep.comm_weights.at(t, first + b), dheard + b * l.K * l.heard, dscores,
                             dspeakers.data());
      });
    }
    linear_back<Into::set>(index, qkv, count, dshown, l.s, l.width());
    for (size_t b = 0; b < count; ++b) {
      const T* active = keep.active.at(t, first + b);
      for (size_t m = 0; m < l.K; ++m)
        if (active[m] != 0) add_scaled<T>(l.s, T(1), dshown + b * l.width() + m * l.s, provisional + b * PW + m * l.s);
    }
  }

  // what module m heard, again
  static void hear(const Layer& l, const T* weights, const T* all, size_t m, T* to) {
    for (size_t h = 0; h < l.comm.count; ++h)
      each<T>(l.comm.head, [&](size_t v, auto get, auto put) {
        Vector<T> sum = {};
        for (size_t from = 0; from < l.K; ++from)
          sum += weights[(from * l.comm.count + h) * l.K + m] *
                 get(all + from * l.E + h * l.comm.per_head() + 2 * l.comm.key + v);
        put(to + h * l.comm.head + v, sum);
      });
  }

  // the attention of one batch entry to `rows`, from dread; adds to the null row's gradient, sets those of the others
  void choose_back(size_t index, size_t t, size_t b, size_t in_group) {
    const Layer& l = shape.layers[index];
    const size_t abreast = shape.H * l.K, part = l.a / shape.H, lines = shape.competition == atari ? shape.H : abreast;
    const size_t n = shape.competition == atari ? l.K : l.R, apart = shape.competition == atari ? 1 : abreast;
    const size_t step = shape.competition == atari ? l.K : 1;  // from one softmax to the next
    const T *weights = saved.layers[index].weights.at(t, b), *dwhat = dread + in_group * l.K * l.a;
    for (size_t i = 0; i < lines; ++i) {
      thresholds[i] = 0;
      totals[i] = sparse<T>(n, apart, l.keep, weights + i * step, left + i * step, &thresholds[i]);
    }
    auto& reads = collected[index][from_read];
    // what it read, again; where it was inactive nothing comes of it
    for (size_t m = 0; m < l.K; ++m) read_rows<T>(shape, l, left, rows.data(), m, reads[m].input(in_group));
    for (size_t r = 0; r < l.R; ++r) {
      const bool adds = l.null && r == 0;
      for (size_t h = 0; h < shape.H; ++h) {
        for (size_t m = 0; m < l.K; ++m)
          dleft[r * abreast + h * l.K + m] = dot<T>(part, dwhat + m * l.a + h * part, rows[r] + l.key + h * part);
        T* to = drows[r] + l.key + h * part;
        each<T>(part, [&](size_t v, auto get, auto put) {
          Vector<T> sum = {};
          if (adds) sum = get(to + v);
          for (size_t m = 0; m < l.K; ++m) sum += left[r * abreast + h * l.K + m] * get(dwhat + m * l.a + h * part + v);
          put(to + v, sum);
        });
      }
    }
    for (size_t i = 0; i < lines; ++i) {  // through the softmax, to the scores
      T* dline = dleft + i * step;
      const T* line = weights + i * step;
      sparse_back<T>(n, apart, totals[i], thresholds[i], left + i * step, dline);
      T mean = 0;
      for (size_t j = 0; j < n; ++j) mean += line[j * apart] * dline[j * apart];
      for (size_t j = 0; j < n; ++j) dline[j * apart] = x.scale * line[j * apart] * (dline[j * apart] - mean);
    }
    const T* queries = saved.layers[index].query.at(t, b);
    for (size_t h = 0; h < shape.H; ++h) {
      for (size_t m = 0; m < l.K; ++m) {
        T* to = collected[index][query][m].gradient(in_group) + h * shape.d;
        each<T>(shape.d, [&](size_t v, auto get, auto put) {
          Vector<T> sum = {};
          for (size_t r = 0; r < l.R; ++r) sum += dleft[r * abreast + h * l.K + m] * get(rows[r] + h * shape.d + v);
          put(to + v, sum);
        });
      }
      for (size_t r = 0; r < l.R; ++r) {
        const bool adds = l.null && r == 0;
        T* to = drows[r] + h * shape.d;
        each<T>(shape.d, [&](size_t v, auto get, auto put) {
          Vector<T> sum = {};
          if (adds) sum = get(to + v);
          for (size_t m = 0; m < l.K; ++m) sum += dleft[r * abreast + h * l.K + m] * get(queries + m * l.key + h * shape.d + v);
          put(to + v, sum);
        });
      }
    }
  }

  // the row that was made in the loop: to the top of the step before, or to the layer below
  void make_back(size_t t, size_t index, size_t first, size_t end) {
    const Layer &l = shape.layers[index], &from = index == 0 ? shape.layers.back() : shape.layers[index - 1];
    const size_t count = end - first, S = shape.S;
    auto& collect = collected[index][make][0];
    if (index == 0) {
      for (size_t b = 0; b < count; ++b) std::memcpy(collect.input(b), x.before(t, first + b) + from.h, l.made * sizeof(T));
      return linear_back<Into::add>(index, make, count, before + from.h, 0, S);
    }
    linear_back<Into::set>(index, make, count, dshown, 0, l.made);
    const bool block = shape.block_gradient || shape.hide_inactive;
    for (size_t b = 0; b < count; ++b) {
      const T* active = saved.layers[index - 1].active.at(t, first + b);
      const T* h = x.after + (t * shape.B + first + b) * S + from.h;
      T *shown = collect.input(b), *to = after + b * S + from.h, *change = dshown + b * l.made;
      for (size_t m = 0; m < from.K; ++m) {
        const T shows = shape.hide_inactive ? active[m] : T(1), passes = block ? active[m] : T(1);
        each<T>(from.s, [&](size_t i, auto get, auto put) { put(shown + m * from.s + i, shows * get(h + m * from.s + i)); });
        add_scaled<T>(from.s, passes, change + m * from.s, to + m * from.s);
      }
    }
  }

  const Shape& shape;
  const Tensors<T>& x;
  const Packed<T>& packed;
  T* of_rows;
  Parameters<T*> d;
  Saved<T> saved;
  Buffer<T> after, before, left, totals, dleft, provisional, dread, dheard, dshown, dscores;
  std::vector<size_t> thresholds;
  std::vector<const T*> rows, speakers;  // of a batch entry, and where their gradients go
  std::vector<T*> drows, dspeakers;
  std::vector<std::vector<std::vector<Collected<T>>>> collected;  // of each layer, linear, group
};

}  // namespace
