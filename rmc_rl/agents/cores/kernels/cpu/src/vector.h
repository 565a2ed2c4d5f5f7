// SIMD vectors of the width that the compiler targets, and element-wise functions of them.
//
// exp: Cody and Waite, "Software Manual for the Elementary Functions", 1980, chapter 6 (reduction by multiples of ln 2). The
// polynomial is a Taylor series on |r| <= ln(2) / 2; its first omitted term is below half a unit in the last place.
//
// Each source file has its own copy of these functions (unnamed namespace), so that the compiler can inline them freely.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#define RMC_RL_VECTOR_BYTES 64
#elif defined(__AVX__)
#define RMC_RL_VECTOR_BYTES 32
#else
#define RMC_RL_VECTOR_BYTES 16
#endif

// GCC 12 and clang have this builtin. Other compilers use a loop over the elements instead.
#if defined(__has_builtin)
#define RMC_RL_SHUFFLE __has_builtin(__builtin_shufflevector)
#else
#define RMC_RL_SHUFFLE 0
#endif

namespace rmc_rl {
namespace {

using std::size_t;

template <class T> struct Float;

template <> struct Float<float> {
  using Integer = std::int32_t;
  typedef float Vector __attribute__((vector_size(RMC_RL_VECTOR_BYTES)));
  typedef Integer IntegerVector __attribute__((vector_size(RMC_RL_VECTOR_BYTES)));
  static constexpr int mantissa = 23, terms = 7;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, largest = 87.0f;
};

template <> struct Float<double> {
  using Integer = std::int64_t;
  typedef double Vector __attribute__((vector_size(RMC_RL_VECTOR_BYTES)));
  typedef Integer IntegerVector __attribute__((vector_size(RMC_RL_VECTOR_BYTES)));
  static constexpr int mantissa = 52, terms = 13;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6, largest = 708.0;
};

template <class T> using Vector = typename Float<T>::Vector;
template <class T> constexpr size_t kLanes = RMC_RL_VECTOR_BYTES / sizeof(T);

constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

template <class T> inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T> inline void store(T* to, Vector<T> v) { std::memcpy(to, &v, sizeof v); }

template <class T> inline Vector<T> load_some(const T* from, size_t count) {
  Vector<T> v = {};
  std::memcpy(&v, from, count * sizeof(T));
  return v;
}

template <class T> inline void store_some(T* to, Vector<T> v, size_t count) { std::memcpy(to, &v, count * sizeof(T)); }

// Calls f(i, load, store) for i = 0, L, 2 L, ... < n, with L the lanes of a vector. For the last, partial vector, load fills
// the missing lanes with 0 and store writes only the lanes below n.
template <class T, class F> inline void for_vectors(size_t n, F f) {
  size_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>)
    f(i, [](const T* p) { return load(p); }, [](T* p, Vector<T> v) { store(p, v); });
  if (i < n) {
    const size_t rest = n - i;
    f(i, [rest](const T* p) { return load_some(p, rest); }, [rest](T* p, Vector<T> v) { store_some(p, v, rest); });
  }
}

// As for_vectors, with f(i, k, load, store). k cycles through 0, 1, 2, 3: a sum in four registers has independent additions,
// which overlap in the pipeline.
template <class T, class F> inline void for_vectors_in_four(size_t n, F f) {
  constexpr size_t L = kLanes<T>;
  const auto get = [](const T* p) { return load(p); };
  const auto put = [](T* p, Vector<T> v) { store(p, v); };
  size_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    f(i, 0, get, put);
    f(i + L, 1, get, put);
    f(i + 2 * L, 2, get, put);
    f(i + 3 * L, 3, get, put);
  }
  for_vectors<T>(n - i, [&](size_t more, auto some, auto put_some) { f(i + more, 0, some, put_some); });
}

// Adds the upper half of a vector to its lower half
template <class T, size_t... I> inline auto add_halves(T v, std::index_sequence<I...>) {
#if RMC_RL_SHUFFLE
  return __builtin_shufflevector(v, v, int(I)...) + __builtin_shufflevector(v, v, int(sizeof...(I) + I)...);
#else
  typedef std::decay_t<decltype(v[0])> Half __attribute__((vector_size(sizeof v / 2)));
  return Half{v[I]...} + Half{v[sizeof...(I) + I]...};
#endif
}

template <class T, size_t Count = kLanes<T>, class V> inline T sum(V v) {
  if constexpr (Count == 2)
    return v[0] + v[1];
  else
    return sum<T, Count / 2>(add_halves(v, std::make_index_sequence<Count / 2>{}));
}

template <class T> inline T sum_of_four(const Vector<T> (&v)[4]) { return sum<T>((v[0] + v[1]) + (v[2] + v[3])); }

template <class T> inline Vector<T> broadcast(T value) { return Vector<T>{} + value; }

// relu and clip keep NaN
template <class T> inline Vector<T> relu(Vector<T> x) { return Vector<T>{} > x ? Vector<T>{} : x; }

template <class T> inline Vector<T> clip(Vector<T> x, T bound) {
  const Vector<T> below = broadcast<T>(bound) < x ? broadcast<T>(bound) : x;
  return broadcast<T>(-bound) > below ? broadcast<T>(-bound) : below;
}

// exp(x) = scale (1 + p). Returns p, whose relative error stays small near x = 0
template <class T> inline Vector<T> exp_parts(Vector<T> x, Vector<T>& scale) {
  using F = Float<T>;
  using Integer = typename F::IntegerVector;
  constexpr T shift = T(3) * (typename F::Integer(1) << (F::mantissa - 1));  // adding it rounds to an integer
  const Vector<T> shifted = x * T(1.44269504088896340736) + shift;
  const Vector<T> n = shifted - shift;
  const Vector<T> r = (x - n * F::ln2_high) - n * F::ln2_low;
  T factorial = 1;
  for (int k = 2; k <= F::terms; ++k) factorial *= T(k);
  Vector<T> p = broadcast<T>(T(1) / factorial);
  for (int k = F::terms; k > 1; --k) {
    factorial /= T(k);
    p = p * r + T(1) / factorial;
  }
  const Vector<T> one = broadcast<T>(1);
  scale = (Vector<T>)((Integer)one + ((Integer)shifted << F::mantissa));
  return p * r;
}

template <class T> inline Vector<T> exp(Vector<T> x) {
  Vector<T> scale;
  const Vector<T> p = exp_parts<T>(clip<T>(x, Float<T>::largest), scale);
  return scale + scale * p;
}

template <class T> inline Vector<T> sigmoid(Vector<T> x) { return T(1) / (T(1) + exp<T>(-x)); }

// (e^2x - 1) / (e^2x + 1), with a small relative error for small x as well
template <class T> inline Vector<T> tanh(Vector<T> x) {
  Vector<T> scale;
  constexpr T saturation = 20;  // tanh(20) rounds to 1 in float64
  const Vector<T> clipped = clip<T>(x, saturation);
  const Vector<T> p = exp_parts<T>(clipped + clipped, scale);
  const Vector<T> minus_one = scale * p + (scale - T(1));
  return minus_one / (minus_one + T(2));
}

template <class T> inline T dot(size_t n, const T* a, const T* b) {
  Vector<T> sums = {};
  for_vectors<T>(n, [&](size_t i, auto get, auto) { sums += get(a + i) * get(b + i); });
  return sum<T>(sums);
}

template <class T> inline void add_scaled(size_t n, T factor, const T* x, T* y) {
  for_vectors<T>(n, [&](size_t i, auto get, auto put) { put(y + i, get(y + i) + factor * get(x + i)); });
}

}  // namespace
}  // namespace rmc_rl
