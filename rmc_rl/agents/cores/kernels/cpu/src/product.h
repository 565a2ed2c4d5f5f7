// Products of small matrices. Tiles of C stay in registers; B is packed once into panels as wide as a tile.
//
// Blocking: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, without the outer loops, because
// the matrices of a recurrent step are small. Letters: C (M x N) = A (M x K) B (K x N), row-major; `ld` is the row stride.

#pragma once

#include "vector.h"

namespace rmc_rl {
namespace {

// A tile of C has kTileRows rows of kTileVectors vectors: the registers hold it together with one row of B
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr size_t kTileRows = 8;
#else
constexpr size_t kTileRows = 6;
#endif
constexpr size_t kTileVectors = 2;
template <class T> constexpr size_t kPanel = kTileVectors * kLanes<T>;

// Row stride of a buffer: an odd number of whole vectors, so that the elements of a column fall into different cache sets
template <class T> constexpr size_t stride_of(size_t width) {
  return (round_up(width, kLanes<T>) / kLanes<T> | 1) * kLanes<T>;
}

enum class Into { set, set_relu, add };

// One tile of C. A(m, k) = a[m * a_row + k * a_k], B(k, n) = b[k * ldb + n]
template <class T, size_t Rows, size_t Vectors, Into into>
inline void tile(size_t K, const T* a, size_t a_row, size_t a_k, const T* b, size_t ldb, const T* bias, T* c, size_t ldc,
                 size_t columns) {
  constexpr size_t L = kLanes<T>;
  Vector<T> sums[Rows][Vectors];
  for (size_t m = 0; m < Rows; ++m)
    for (size_t v = 0; v < Vectors; ++v) sums[m][v] = Vector<T>{};
  for (size_t k = 0; k < K; ++k) {
    Vector<T> right[Vectors];
    for (size_t v = 0; v < Vectors; ++v) right[v] = load(b + k * ldb + v * L);
    for (size_t m = 0; m < Rows; ++m) {
      const T left = a[m * a_row + k * a_k];
      for (size_t v = 0; v < Vectors; ++v) sums[m][v] += left * right[v];
    }
  }
  for (size_t m = 0; m < Rows; ++m)
    for (size_t v = 0; v < Vectors; ++v) {
      T* to = c + m * ldc + v * L;
      const size_t count = columns - v * L < L ? columns - v * L : L;
      Vector<T> value = sums[m][v];
      if (bias) value += count == L ? load(bias + v * L) : load_some(bias + v * L, count);
      if (into == Into::set_relu) value = relu<T>(value);
      if (into == Into::add) value += count == L ? load(to) : load_some(to, count);
      count == L ? store(to, value) : store_some(to, value, count);
    }
}

template <class T, size_t Vectors, Into into>
inline void tile_of(size_t rows, size_t K, const T* a, size_t a_row, size_t a_k, const T* b, size_t ldb, const T* bias, T* c,
                    size_t ldc, size_t columns) {
#define RMC_RL_ROWS(n) \
  case n: return tile<T, n, Vectors, into>(K, a, a_row, a_k, b, ldb, bias, c, ldc, columns);
  switch (rows) {
    RMC_RL_ROWS(1) RMC_RL_ROWS(2) RMC_RL_ROWS(3) RMC_RL_ROWS(4) RMC_RL_ROWS(5) RMC_RL_ROWS(6)
#if defined(__AVX512F__) || defined(__aarch64__)
    RMC_RL_ROWS(7) RMC_RL_ROWS(8)
#endif
  }
#undef RMC_RL_ROWS
}

// All tiles. `b_panel_stride`: distance between the panels of B; `bias` may be null
template <class T, Into into>
void product(size_t M, size_t N, size_t K, const T* a, size_t a_row, size_t a_k, const T* b, size_t ldb, size_t b_panel_stride,
             const T* bias, T* c, size_t ldc) {
  for (size_t n = 0; n < N; n += kPanel<T>, b += b_panel_stride) {
    const size_t columns = N - n < kPanel<T> ? N - n : kPanel<T>;
    for (size_t m = 0; m < M; m += kTileRows) {
      const size_t rows = M - m < kTileRows ? M - m : kTileRows;
      const T* left = a + m * a_row;
      T* to = c + m * ldc + n;
      const T* tile_bias = bias ? bias + n : nullptr;
      if (columns > kLanes<T>)
        tile_of<T, 2, into>(rows, K, left, a_row, a_k, b, ldb, tile_bias, to, ldc, columns);
      else
        tile_of<T, 1, into>(rows, K, left, a_row, a_k, b, ldb, tile_bias, to, ldc, columns);
    }
  }
}

// Size of B in panels of kPanel columns; the last panel is padded with zeros
template <class T> size_t packed_size(size_t K, size_t N) { return K * round_up(N, kPanel<T>); }

// Transposes a square of vectors: interleaves the first and the second half of its rows, log2(L) times
template <class T, size_t... I> inline void transpose(Vector<T> (&rows)[kLanes<T>], std::index_sequence<I...>) {
#if RMC_RL_SHUFFLE
  constexpr size_t L = kLanes<T>;
  for (size_t stage = 1; stage < L; stage *= 2) {
    Vector<T> next[L];
    for (size_t i = 0; i < L / 2; ++i) {
      next[2 * i] = __builtin_shufflevector(rows[i], rows[i + L / 2], int(I / 2 + I % 2 * L)...);
      next[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + L / 2], int((I + L) / 2 + I % 2 * L)...);
    }
    for (size_t i = 0; i < L; ++i) rows[i] = next[i];
  }
#else
  for (size_t i = 0; i < sizeof...(I); ++i)
    for (size_t j = 0; j < i; ++j) {
      const T above = rows[j][i];
      rows[j][i] = rows[i][j];
      rows[i][j] = above;
    }
#endif
}

// Packs B(k, n) = from[n * ld + k]: the transpose of an (N x K) matrix, such as the weight of nn.Linear
template <class T> void pack_transposed(size_t K, size_t N, const T* from, size_t ld, T* to) {
  constexpr size_t L = kLanes<T>;
  for (size_t n = 0; n < N; n += kPanel<T>, to += K * kPanel<T>)
    for (size_t v = 0; v < kPanel<T>; v += L)
      for (size_t k = 0; k < K; k += L) {
        const size_t count = K - k < L ? K - k : L;
        Vector<T> square[L];
        for (size_t j = 0; j < L; ++j) {
          const T* row = from + (n + v + j) * ld + k;
          square[j] = n + v + j >= N ? Vector<T>{} : count == L ? load(row) : load_some(row, count);
        }
        transpose<T>(square, std::make_index_sequence<L>{});
        for (size_t j = 0; j < count; ++j) store(to + (k + j) * kPanel<T> + v, square[j]);
      }
}

// Packs B(k, n) = from[k * ld + n]
template <class T> void pack(size_t K, size_t N, const T* from, size_t ld, T* to) {
  for (size_t n = 0; n < N; n += kPanel<T>, to += K * kPanel<T>) {
    const size_t columns = N - n < kPanel<T> ? N - n : kPanel<T>;
    for (size_t k = 0; k < K; ++k) {
      size_t j = 0;
      for (; j < columns; ++j) to[k * kPanel<T> + j] = from[k * ld + n + j];
      for (; j < kPanel<T>; ++j) to[k * kPanel<T> + j] = 0;
    }
  }
}

// C = A B + bias or C += A B + bias, with B packed
template <class T, Into into = Into::set>
void times_packed(size_t M, size_t N, size_t K, const T* a, size_t lda, const T* packed, const T* bias, T* c, size_t ldc) {
  product<T, into>(M, N, K, a, lda, 1, packed, kPanel<T>, K * kPanel<T>, bias, c, ldc);
}

// C += A^T B with A (K x M) and B (K x N). Reads rows of B up to the next whole vector
template <class T>
void add_transposed_times(size_t M, size_t N, size_t K, const T* a, size_t lda, const T* b, size_t ldb, T* c, size_t ldc) {
  product<T, Into::add>(M, N, K, a, 1, lda, b, ldb, kPanel<T>, nullptr, c, ldc);
}

}  // namespace
}  // namespace rmc_rl
