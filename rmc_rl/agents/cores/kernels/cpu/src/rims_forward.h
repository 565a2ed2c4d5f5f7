// Layers of recurrent modules, forward: some batch entries through all steps. Equations and letters: cores/brims.py and rims.h.

#pragma once

#include "rims.h"

namespace {

template <class T, class Cell> class Forward {
 public:
  Forward(const Shape& shape, const Tensors<T>& tensors, const Packed<T>& packed, size_t group)
      : shape(shape), x(tensors), packed(packed), kept(tensors.saved ? 0 : Saved<T>(shape, nullptr, 1, group).size),
        saved(shape, tensors.saved ? tensors.saved : kept, tensors.saved ? shape.T : 1, tensors.saved ? shape.B : group),
        before(group * shape.S), shown(group * shape.most([](const Layer& l) { return l.made; })),
        left(shape.most([&](const Layer& l) { return l.R * shape.H * l.K; })),
        scores(shape.most([](const Layer& l) { return l.K; })),
        read(group * shape.most([](const Layer& l) { return l.K * l.a; })),
        gates(group * shape.most([](const Layer& l) { return l.K * l.G; })),
        heard(group * shape.most([](const Layer& l) { return l.K * l.heard; })),
        words(group * shape.most([](const Layer& l) { return l.K * l.said; })),
        rows(shape.most([](const Layer& l) { return l.R; })), speakers(shape.most([](const Layer& l) { return l.K; })) {}

  // batch entries first <= b < end, at most `group` of them, through all steps
  void run(size_t first, size_t end) {
    for (size_t t = 0; t < shape.T; ++t) {
      for (size_t b = first; b < end; ++b) std::memcpy(before + (b - first) * shape.S, x.before(t, b), shape.S * sizeof(T));
      for (size_t index = 0; index < shape.L; ++index) step(t, index, first, end);
    }
  }

 private:
  // from (count, groups, in), `from_step` from group to group and `ld_from` from entry to entry, to (count, groups, out)
  void linear(size_t index, Linears which, size_t count, const T* from, size_t from_step, size_t ld_from, T* to, size_t to_step,
              size_t ld_to) const {
    const auto& w = packed.layers[index][which];
    const T* bias = x.parameters.layers[index].linears[which].bias;
    for (size_t group = 0; group < w.sizes.groups; ++group)
      times_packed<T>(count, w.sizes.out, w.sizes.in, from + group * from_step, ld_from, w.of(group),
                      bias ? bias + group * w.sizes.out : nullptr, to + group * to_step, ld_to);
  }

  void step(size_t t, size_t index, size_t first, size_t end) {
    const Layer& l = shape.layers[index];
    const auto& keep = saved.layers[index];
    const size_t count = end - first, at = x.saved ? first : 0, S = shape.S, W = l.width();
    const T* h = before + l.h;
    T* made = l.made ? keep.made.at(t, at) : nullptr;
    if (l.made) make_row(t, index, first, end, made);
    T* queries = keep.query.at(t, at);
    linear(index, query, count, h, l.s, S, queries, l.key, l.K * l.key);
    T *active = keep.active.at(t, at), *weights = keep.weights.at(t, at);
    for (size_t b = 0; b < count; ++b) {
      x.rows_at(shape, index, t, first + b, made ? made + b * l.row : nullptr, rows.data());
      choose(l, queries + b * l.K * l.key, rows.data(), weights + b * keep.weights.size, active + b * l.K);
      for (size_t m = 0; m < l.K; ++m) {
        T* to = read + (b * l.K + m) * l.a;
        if (shape.competition == dido && active[b * l.K + m] == 0) std::memset(to, 0, l.a * sizeof(T));
        else read_rows<T>(shape, l, left, rows.data(), m, to);
      }
    }
    linear(index, from_read, count, read, l.a, l.K * l.a, gates, l.G, l.K * l.G);
    T *kept_gates = keep.kept.at(t, at), *now = keep.provisional.at(t, at);
    linear(index, from_state, count, h, l.s, S, kept_gates, kKept * l.s, kKept * W);
    for (size_t b = 0; b < count; ++b)
      for (size_t m = 0; m < l.K; ++m)
        Cell::template forward<T>(l.s, W, gates + (b * l.K + m) * l.G, kept_gates + (b * l.K + m) * kKept * l.s,
                                  h + b * S + m * l.s, now + b * l.parts * W + m * l.s);
    if (l.communicates) talk(t, index, first, end);
    for (size_t b = 0; b < count; ++b) {  // what inactive modules found out is forgotten
      T* after = x.after + (t * shape.B + first + b) * S + l.h;
      for (size_t m = 0; m < l.K; ++m) {
        const bool changes = active[b * l.K + m] != 0;
        for (size_t part = 0; part < l.parts; ++part) {
          const size_t offset = part * W + m * l.s;
          std::memcpy(after + offset, changes ? now + b * l.parts * W + offset : h + b * S + offset, l.s * sizeof(T));
        }
        if (changes && l.communicates) say_to(l, words + (b * l.K + m) * l.said, keep, t, at + b, m, after + m * l.s);
      }
    }
  }

  // keys and values of what the top showed a step ago, or what the layer below shows now
  void make_row(size_t t, size_t index, size_t first, size_t end, T* made) {
    const Layer& l = shape.layers[index];
    const size_t count = end - first;
    if (index == 0) return linear(index, make, count, before + shape.layers.back().h, 0, shape.S, made, 0, l.row);
    const Layer& below = shape.layers[index - 1];
    const T* h = x.after + (t * shape.B + first) * shape.S + below.h;
    if (!shape.hide_inactive) return linear(index, make, count, h, 0, shape.S, made, 0, l.row);
    const T* active = saved.layers[index - 1].active.at(t, x.saved ? first : 0);
    for (size_t b = 0; b < count; ++b, h += shape.S)
      for (size_t m = 0; m < below.K; ++m)
        each<T>(below.s, [&](size_t i, auto get, auto put) {
          put(shown + b * l.made + m * below.s + i, active[b * below.K + m] * get(h + m * below.s + i));
        });
    linear(index, make, count, shown, 0, l.made, made, 0, l.row);
  }

  // weights as (R, H, K) before they are made sparse, in `left` after; active: 1 or 0 for each module
  void choose(const Layer& l, const T* queries, const T* const* rows, T* weights, T* active) {
    const size_t abreast = shape.H * l.K;
    for (size_t r = 0; r < l.R; ++r)
      for (size_t h = 0; h < shape.H; ++h)
        for (size_t m = 0; m < l.K; ++m)
          weights[r * abreast + h * l.K + m] =
              x.scale * dot<T>(shape.d, queries + m * l.key + h * shape.d, rows[r] + h * shape.d);
    if (shape.competition == dido) std::memcpy(scores, weights + abreast, l.K * sizeof(T));
    if (shape.competition == atari) {
      for (size_t h = 0; h < shape.H; ++h) {
        softmax(1, l.K, 1, weights + h * l.K);
        size_t ignored = 0;
        sparse<T>(l.K, 1, l.keep, weights + h * l.K, left + h * l.K, &ignored);
      }
    } else {
      softmax(abreast, l.R, abreast, weights);
      for (size_t i = 0; i < abreast; ++i) {
        size_t ignored = 0;
        sparse<T>(l.R, abreast, l.keep, weights + i, left + i, &ignored);
      }
    }
    if (shape.competition != dido)
      for (size_t m = 0; m < l.K; ++m) {
        T total = 0;
        for (size_t h = 0; h < shape.H; ++h) total += left[h * l.K + m];
        scores[m] = shape.competition == atari ? total : -total;
      }
    for (size_t m = 0; m < l.K; ++m) active[m] = T(ahead<T>(l.K, 1, scores, m) < l.k);
  }

  // each of `abreast` columns of n weights
  static void softmax(size_t abreast, size_t n, size_t step, T* weights) {
    each<T>(abreast, [&](size_t i, auto get, auto put) {
      Vector<T> largest = get(weights + i), total = {};
      for (size_t j = 1; j < n; ++j) {
        const Vector<T> score = get(weights + i + j * step);
        largest = score > largest ? score : largest;
      }
      for (size_t j = 0; j < n; ++j) {
        const Vector<T> value = exp<T>(get(weights + i + j * step) - largest);
        put(weights + i + j * step, value);
        total += value;
      }
      const Vector<T> share = T(1) / total;
      for (size_t j = 0; j < n; ++j) put(weights + i + j * step, get(weights + i + j * step) * share);
    });
  }

  // every module listens to all provisional states
  void talk(size_t t, size_t index, size_t first, size_t end) {
    const Layer& l = shape.layers[index];
    const auto& keep = saved.layers[index];
    const size_t count = end - first, at = x.saved ? first : 0;
    T *all = keep.qkv.at(t, at), *weights = keep.comm_weights.at(t, at);
    linear(index, qkv, count, keep.provisional.at(t, at), l.s, l.parts * l.width(), all, l.E, l.K * l.E);
    for (size_t b = 0; b < count; ++b) {
      for (size_t m = 0; m < l.K; ++m) speakers[m] = all + (b * l.K + m) * l.E;
      with_size(l.comm, [&](auto size) {
        attend<T, size>(l.comm, speakers.data(), weights + b * keep.comm_weights.size, heard + b * l.K * l.heard);
      });
    }
    if (packed.layers[index][say].sizes.groups == 1)
      linear(index, say, count * l.K, heard, 0, l.heard, words, 0, l.said);
    else
      linear(index, say, count, heard, l.heard, l.K * l.heard, words, l.said, l.K * l.said);
  }

  // h += what was heard, through a gate where there is one
  void say_to(const Layer& l, const T* said, const typename Saved<T>::OfLayer& keep, size_t t, size_t b, size_t m, T* h) const {
    if (l.said == l.s) return add_scaled<T>(l.s, T(1), said, h);
    T* both = keep.said.at(t, b) + m * l.said;
    each<T>(l.s, [&](size_t i, auto get, auto put) {
      const Vector<T> word = tanh<T>(get(said + i)), gate = sigmoid<T>(get(said + l.s + i));
      put(both + i, word);
      put(both + l.s + i, gate);
      put(h + i, get(h + i) + gate * word);
    });
  }

  const Shape& shape;
  const Tensors<T>& x;
  const Packed<T>& packed;
  Buffer<T> kept;
  Saved<T> saved;
  Buffer<T> before, shown, left, scores, read, gates, heard, words;
  std::vector<const T*> rows, speakers;  // of a batch entry
};

}  // namespace
