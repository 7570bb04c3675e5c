// The gates as one pass over memory each way a step; the same functions as in plain.py, for a CPU.
//
// Rows are contiguous. Sums and products are float32; what is kept of the gates is i, f, g, o (r, z, n)
// side by side. σ and tanh are right to 2e-7 as absolute error, for bfloat16 to 7e-5. Without a tensor
// values are zero.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;
using Maybe = const std::optional<Tensor>&;

#ifdef __AVX512F__
constexpr int64_t WIDTH = 16;
#else
constexpr int64_t WIDTH = 8;
#endif
#define INLINE __attribute__((always_inline))  // or vectors go through memory
constexpr int64_t GRAIN = 4096;  // values of one gate that are worth a thread
using Whole = std::integral_constant<int64_t, WIDTH>;

// Vectors as GCC has them: operators work value by value.
typedef float Values __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

#ifdef __AVX512F__
INLINE inline Values some(const float* from, int64_t count) {
  return reinterpret_cast<Values>(_mm512_maskz_loadu_ps((1u << count) - 1, from));
}

INLINE inline Halves some(const BFloat16* from, int64_t count) {
  return reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16((1u << count) - 1, from));
}

INLINE inline void put(float* to, Values values, int64_t count) {
  _mm512_mask_storeu_ps(to, (1u << count) - 1, reinterpret_cast<__m512>(values));
}

INLINE inline void put(BFloat16* to, Halves values, int64_t count) {
  _mm256_mask_storeu_epi16(to, (1u << count) - 1, reinterpret_cast<__m256i>(values));
}

INLINE inline Values at_most(Values x, float bound) {  // NaN stays NaN
  return _mm512_min_ps(_mm512_set1_ps(bound), x);
}

INLINE inline Values widened(Halves values) {  // from bfloat16, in one instruction: GCC takes several
  const __m512i places = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0,
                                          6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
  const __m512i all = _mm512_castsi256_si512(reinterpret_cast<__m256i>(values));
  return reinterpret_cast<Values>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, places, all));
}

INLINE inline Halves low_halves(Bits values) {
  return reinterpret_cast<Halves>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(values)));
}
#else
INLINE inline __m256i first(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE inline Values some(const float* from, int64_t count) {
  return reinterpret_cast<Values>(_mm256_maskload_ps(from, first(count)));
}

INLINE inline Halves some(const BFloat16* from, int64_t count) {
  Halves values{};
  for (int64_t k = 0; k < count; ++k) values[k] = from[k].x;
  return values;
}

INLINE inline void put(float* to, Values values, int64_t count) {
  _mm256_maskstore_ps(to, first(count), reinterpret_cast<__m256>(values));
}

INLINE inline void put(BFloat16* to, Halves values, int64_t count) {
  for (int64_t k = 0; k < count; ++k) to[k].x = values[k];
}

INLINE inline Values at_most(Values x, float bound) {
  return _mm256_min_ps(_mm256_set1_ps(bound), x);
}

INLINE inline Values widened(Halves values) {
  return reinterpret_cast<Values>(__builtin_convertvector(values, Bits) << 16);
}

INLINE inline Halves low_halves(Bits values) { return __builtin_convertvector(values, Halves); }
#endif

template <typename T>
using Stored = std::conditional_t<std::is_same_v<T, float>, Values, Halves>;

template <typename T, typename Count>
INLINE inline Values load(const T* from, Count count) {
  Stored<T> values;
  if constexpr (std::is_same_v<Count, Whole>) {
    std::memcpy(&values, from, sizeof values);
  } else {
    values = some(from, count);
  }
  if constexpr (std::is_same_v<T, float>) {
    return values;
  } else {
    return widened(values);
  }
}

template <typename T, typename Count>
INLINE inline void store(T* to, Values values, Count count) {
  Stored<T> stored;
  if constexpr (std::is_same_v<T, float>) {
    stored = values;
  } else {
    // Rounded to the nearest, of two to the even one; NaN stays NaN.
#ifdef __AVX512BF16__
    stored = reinterpret_cast<Halves>(_mm512_cvtneps_pbh(values));
#else
    const Bits bits = reinterpret_cast<Bits>(values);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    stored = low_halves(values == values ? rounded : Bits{} + 0x7fc0);
#endif
  }
  if constexpr (std::is_same_v<Count, Whole>) {
    std::memcpy(static_cast<void*>(to), &stored, sizeof stored);
  } else {
    put(to, stored, count);
  }
}

template <typename Count>
INLINE inline void add(float* to, Values values, Count count) {
  store(to, load(to, count) + values, count);
}

// 2^r between -1/2 and 1/2, right to 2e-7 of it, or for bfloat16 to 1.3e-4 (what is rounded to it is
// right to 2e-3): 1 + r ln 2 + ..., of the least relative error.
template <typename T>
INLINE inline Values polynomial(Values r) {
  Values power;
  if constexpr (std::is_same_v<T, float>) {
    power = 0x1.5ca89p-10f * r + 0x1.3cdb66p-7f;
    power = power * r + 0x1.c6b3aep-5f;
    power = power * r + 0x1.ebf9fp-3f;
  } else {
    power = 0x1.c696b8p-5f * r + 0x1.efdcc6p-3f;
  }
  power = power * r + 0x1.62e43p-1f;
  return power * r + 1.0f;
}

// 2^y; of infinity infinity, of minus infinity at most 2^-126.
#ifdef __AVX512F__
template <typename T>
INLINE inline Values power_of_two(Values y) {
  const Values rest = _mm512_reduce_ps(y, _MM_FROUND_TO_NEAREST_INT);  // of infinity 0
  return _mm512_scalef_ps(polynomial<T>(rest), y - rest);
}

// For bfloat16 right to 6e-5 of it.
template <typename T>
INLINE inline Values ratio(Values a, Values b) {
  return std::is_same_v<T, float> ? a / b : a * _mm512_rcp14_ps(b);
}
#else
template <typename T>
INLINE inline Values power_of_two(Values y) {
  y = _mm256_max_ps(_mm256_set1_ps(-126.0f), at_most(y, 128.0f));
  const Values whole = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Bits exponent = reinterpret_cast<Bits>(_mm256_cvtps_epi32(whole)) + 127;
  return polynomial<T>(y - whole) * reinterpret_cast<Values>(exponent << 23);
}

template <typename T>
INLINE inline Values ratio(Values a, Values b) { return a / b; }
#endif

template <typename T>
INLINE inline Values sigmoid(Values x) {
  return ratio<T>(Values{} + 1.0f, 1.0f + power_of_two<T>(x * -0x1.715476p0f));  // 1 / ln 2
}

template <typename T>
INLINE inline Values tanh(Values x) {
  const Values power = power_of_two<T>(at_most(x * -0x1.715476p1f, 64.0f));  // infinity has no ratio
  return ratio<T>(1.0f - power, 1.0f + power);
}

// Rows to read. Without a tensor they are zeros, the same for all.
template <typename T>
class Source {
 public:
  Source(Maybe rows, int64_t width)
      : zeros_(rows.has_value() ? 0 : width, T(0.0f)),
        from_(rows.has_value() ? rows->const_data_ptr<T>() : zeros_.data()),
        stride_(rows.has_value() ? width : 0) {}

  const T* operator[](int64_t row) const { return from_ + row * stride_; }

 private:
  std::vector<T> zeros_;
  const T* from_;
  int64_t stride_;
};

// Peepholes (3, 1, H), the same for all rows, or (3, N, H).
class Peepholes {
 public:
  Peepholes(Maybe peephole, int64_t hidden)
      : zeros_(peephole.has_value() ? 0 : hidden),
        from_(peephole.has_value() ? peephole->const_data_ptr<float>() : zeros_.data()),
        row_(peephole.has_value() && peephole->size(1) > 1 ? hidden : 0),
        gate_(peephole.has_value() ? peephole->size(1) * hidden : 0) {}

  const float* of(int64_t gate, int64_t row) const { return from_ + gate * gate_ + row * row_; }

 private:
  std::vector<float> zeros_;
  const float* from_;
  int64_t row_, gate_;  // strides
};

// Calls body(begin, end) for parts of the rows of (N, H), on several threads.
template <typename Body>
void in_parts(const Tensor& like, Body body) {
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, like.size(1)));
  at::parallel_for(0, like.size(0), grain, body);
}

// Calls body(row) for all rows.
template <typename Body>
void each_row(const Tensor& like, Body body) {
  in_parts(like, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// Calls body(row, sums) for all rows. The sums (width,), those of a thread, are then added to `total`.
template <typename Body>
void each_row(const Tensor& like, int64_t width, Maybe total, Body body) {
  const int64_t threads = at::get_num_threads(), size = (width + WIDTH - 1) / WIDTH;
  std::vector<Values> sums(threads * size);
  const auto of = [&](int64_t thread) { return reinterpret_cast<float*>(&sums[thread * size]); };
  in_parts(like, [&](int64_t begin, int64_t end) {
    float* own = of(at::get_thread_num());
    for (int64_t row = begin; row < end; ++row) body(row, own);
  });
  if (!total.has_value()) return;
  float* all = total->mutable_data_ptr<float>();
  for (int64_t thread = 0; thread < threads; ++thread) {
    for (int64_t k = 0; k < width; ++k) all[k] += of(thread)[k];
  }
}

// Calls body(k, count) for the channels of a row, a vector at a time from channel k on.
template <typename Body>
INLINE inline void by_vectors(int64_t hidden, Body body) {
  int64_t k = 0;
  for (; k + WIDTH <= hidden; k += WIDTH) body(k, Whole());
  if (k < hidden) body(k, hidden - k);
}

// Calls body(T()) with the type of the values.
template <typename Body>
void typed(const Tensor& like, Body body) {
  if (like.scalar_type() == at::kBFloat16) {
    body(BFloat16());
  } else {
    body(float());
  }
}

// Calls body(std::true_type()) or body(std::false_type()).
template <typename Body>
void either(bool which, Body body) {
  if (which) {
    body(std::true_type());
  } else {
    body(std::false_type());
  }
}

void lstm_forward(const Tensor& from_x, Maybe from_h, Maybe c, Maybe peephole, Maybe gates,
                  const Tensor& fresh, const Tensor& h) {
  const int64_t H = fresh.size(1);
  const Source<float> old(c, H);
  const Peepholes peep(peephole, H);
  float* cells = fresh.mutable_data_ptr<float>();
  const auto run = [&](auto zero, auto keep) {
    using T = decltype(zero);
    const Source<T> x(from_x, 4 * H), hidden(from_h, 4 * H);
    T* kept = keep ? gates->mutable_data_ptr<T>() : nullptr;
    T* out = h.mutable_data_ptr<T>();
    each_row(fresh, [&](int64_t row) {
      const T *from_x = x[row], *from_h = hidden[row];
      const float *before = old[row], *peep_i = peep.of(0, row);
      const float *peep_f = peep.of(1, row), *peep_o = peep.of(2, row);
      T *gate = kept + row * 4 * H, *h_new = out + row * H;
      float* c_new = cells + row * H;
      by_vectors(H, [&](int64_t k, auto n) INLINE {
        const auto sum = [&](int64_t at) INLINE { return load(from_x + at, n) + load(from_h + at, n); };
        const Values past = load(before + k, n);
        const Values i = sigmoid<T>(sum(k) + load(peep_i + k, n) * past);
        const Values f = sigmoid<T>(sum(H + k) + load(peep_f + k, n) * past);
        const Values g = tanh<T>(sum(2 * H + k));
        const Values cell = f * past + i * g;
        const Values o = sigmoid<T>(sum(3 * H + k) + load(peep_o + k, n) * cell);
        if constexpr (keep) {
          store(gate + k, i, n);
          store(gate + H + k, f, n);
          store(gate + 2 * H + k, g, n);
          store(gate + 3 * H + k, o, n);
        }
        store(c_new + k, cell, n);
        store(h_new + k, o * tanh<T>(cell), n);
      });
    });
  };
  typed(h, [&](auto zero) {
    either(gates.has_value(), [&](auto keep) { run(zero, keep); });
  });
}

void lstm_backward(const Tensor& gates, Maybe c, const Tensor& fresh, Maybe peephole,
                   Maybe d_output, Maybe d_through, const Tensor& d_c, Maybe d_bias) {
  const int64_t H = fresh.size(1);
  const Source<float> old(c, H), cells(fresh, H);
  const Peepholes peep(peephole, H);
  float* d_cells = d_c.mutable_data_ptr<float>();
  typed(gates, [&](auto zero) {
    using T = decltype(zero);
    const Source<T> after(d_output, H), through(d_through, H);
    T* kept = gates.mutable_data_ptr<T>();
    each_row(fresh, 4 * H, d_bias, [&](int64_t row, float* sums) {
      const T *from_output = after[row], *from_next = through[row];
      const float *before = old[row], *c_new = cells[row], *peep_i = peep.of(0, row);
      const float *peep_f = peep.of(1, row), *peep_o = peep.of(2, row);
      T* gate = kept + row * 4 * H;
      float* d_cell = d_cells + row * H;
      by_vectors(H, [&](int64_t k, auto n) INLINE {
        const Values i = load(gate + k, n), f = load(gate + H + k, n);
        const Values g = load(gate + 2 * H + k, n), o = load(gate + 3 * H + k, n);
        const Values out = tanh<T>(load(c_new + k, n));
        const Values d_h = load(from_output + k, n) + load(from_next + k, n);
        const Values d_o = d_h * out * o * (1.0f - o);
        const Values d_new = d_h * o * (1.0f - out * out) + load(d_cell + k, n) +
            d_o * load(peep_o + k, n);
        const Values d_i = d_new * g * i * (1.0f - i);
        const Values d_f = d_new * load(before + k, n) * f * (1.0f - f);
        const Values d_g = d_new * i * (1.0f - g * g);
        store(gate + k, d_i, n);
        store(gate + H + k, d_f, n);
        store(gate + 2 * H + k, d_g, n);
        store(gate + 3 * H + k, d_o, n);
        add(sums + k, d_i, n);
        add(sums + H + k, d_f, n);
        add(sums + 2 * H + k, d_g, n);
        add(sums + 3 * H + k, d_o, n);
        const Values past = d_i * load(peep_i + k, n) + d_f * load(peep_f + k, n);
        store(d_cell + k, d_new * f + past, n);
      });
    });
  });
}

void gru_forward(const Tensor& from_x, Maybe from_h, Maybe bias, Maybe h, Maybe gates,
                 Maybe candidate, const Tensor& fresh) {
  const int64_t H = fresh.size(1);
  const auto run = [&](auto zero, auto keep) {
    using T = decltype(zero);
    const Source<T> x(from_x, 3 * H), hidden(from_h, 3 * H), old(h, H), biases(bias, H);
    T* kept = keep ? gates->mutable_data_ptr<T>() : nullptr;
    T* multiplied = keep ? candidate->mutable_data_ptr<T>() : nullptr;
    T* out = fresh.mutable_data_ptr<T>();
    each_row(fresh, [&](int64_t row) {
      const T *from_x = x[row], *from_h = hidden[row], *before = old[row], *added = biases[0];
      T *gate = kept + row * 3 * H, *q_kept = multiplied + row * H, *h_new = out + row * H;
      by_vectors(H, [&](int64_t k, auto n) INLINE {
        const auto sum = [&](int64_t at) INLINE { return load(from_x + at, n) + load(from_h + at, n); };
        const Values r = sigmoid<T>(sum(k));
        const Values z = sigmoid<T>(sum(H + k));
        const Values q = load(from_h + 2 * H + k, n) + load(added + k, n);
        const Values new_gate = tanh<T>(load(from_x + 2 * H + k, n) + r * q);
        if constexpr (keep) {
          store(gate + k, r, n);
          store(gate + H + k, z, n);
          store(gate + 2 * H + k, new_gate, n);
          store(q_kept + k, q, n);
        }
        store(h_new + k, new_gate + z * (load(before + k, n) - new_gate), n);
      });
    });
  };
  typed(fresh, [&](auto zero) {
    either(gates.has_value(), [&](auto keep) { run(zero, keep); });
  });
}

void gru_backward(const Tensor& gates, const Tensor& candidate, Maybe h, Maybe d_output,
                  Maybe d_through, const Tensor& d_h, const Tensor& d_hidden, Maybe d_bias) {
  const int64_t H = d_h.size(1);
  float* d_old = d_h.mutable_data_ptr<float>();
  typed(gates, [&](auto zero) {
    using T = decltype(zero);
    const Source<T> old(h, H), after(d_output, H), through(d_through, H), multiplied(candidate, H);
    T *kept = gates.mutable_data_ptr<T>(), *d_from_h = d_hidden.mutable_data_ptr<T>();
    each_row(d_h, 3 * H, d_bias, [&](int64_t row, float* sums) {
      const T *from_output = after[row], *from_next = through[row];
      const T *before = old[row], *q = multiplied[row];
      T *gate = kept + row * 3 * H, *d_gate = d_from_h + row * 3 * H;
      float* d_before = d_old + row * H;
      by_vectors(H, [&](int64_t k, auto n) INLINE {
        const Values r = load(gate + k, n), z = load(gate + H + k, n);
        const Values new_gate = load(gate + 2 * H + k, n);
        const Values d_new =
            load(from_output + k, n) + load(from_next + k, n) + load(d_before + k, n);
        const Values d_z = d_new * (load(before + k, n) - new_gate) * z * (1.0f - z);
        const Values d_n = d_new * (1.0f - z) * (1.0f - new_gate * new_gate);
        const Values d_r = d_n * load(q + k, n) * r * (1.0f - r);
        store(gate + k, d_r, n);
        store(gate + H + k, d_z, n);
        store(gate + 2 * H + k, d_n, n);
        store(d_gate + k, d_r, n);
        store(d_gate + H + k, d_z, n);
        store(d_gate + 2 * H + k, d_n * r, n);
        store(d_before + k, d_new * z, n);
        add(sums + k, d_r, n);
        add(sums + H + k, d_z, n);
        add(sums + 2 * H + k, d_n, n);
      });
    });
  });
}

void rnn_forward(const Tensor& from_x, Maybe from_h, const Tensor& h) {
  const int64_t H = h.size(1);
  typed(h, [&](auto zero) {
    using T = decltype(zero);
    const Source<T> x(from_x, H), hidden(from_h, H);
    T* out = h.mutable_data_ptr<T>();
    each_row(h, [&](int64_t row) {
      const T *from_x = x[row], *from_h = hidden[row];
      T* h_new = out + row * H;
      by_vectors(H, [&](int64_t k, auto n) INLINE {
        store(h_new + k, tanh<T>(load(from_x + k, n) + load(from_h + k, n)), n);
      });
    });
  });
}

void rnn_backward(const Tensor& h, Maybe d_output, Maybe d_through, const Tensor& d_gates,
                  Maybe d_bias) {
  const int64_t H = h.size(1);
  typed(h, [&](auto zero) {
    using T = decltype(zero);
    const Source<T> output(h, H), after(d_output, H), through(d_through, H);
    T* d_gate_rows = d_gates.mutable_data_ptr<T>();
    each_row(h, H, d_bias, [&](int64_t row, float* sums) {
      const T *h_new = output[row], *from_output = after[row], *from_next = through[row];
      T* d_gate = d_gate_rows + row * H;
      by_vectors(H, [&](int64_t k, auto n) INLINE {
        const Values value = load(h_new + k, n);
        const Values d_h = load(from_output + k, n) + load(from_next + k, n);
        const Values d_sum = d_h * (1.0f - value * value);
        store(d_gate + k, d_sum, n);
        add(sums + k, d_sum, n);
      });
    });
  });
}

}  // namespace

TORCH_LIBRARY(convlstm, library) {
  library.def("lstm_forward(Tensor from_x, Tensor? from_h, Tensor? c, Tensor? peephole, "
              "Tensor(a!)? gates, Tensor(b!) new, Tensor(c!) h) -> ()", &lstm_forward);
  library.def("lstm_backward(Tensor(a!) gates, Tensor? c, Tensor new, Tensor? peephole, "
              "Tensor? d_output, Tensor? d_through, Tensor(b!) d_c, Tensor(c!)? d_bias) -> ()",
              &lstm_backward);
  library.def("gru_forward(Tensor from_x, Tensor? from_h, Tensor? bias, Tensor? h, "
              "Tensor(a!)? gates, Tensor(b!)? candidate, Tensor(c!) new) -> ()", &gru_forward);
  library.def("gru_backward(Tensor(a!) gates, Tensor candidate, Tensor? h, Tensor? d_output, "
              "Tensor? d_through, Tensor(b!) d_h, Tensor(c!) d_hidden, Tensor(d!)? d_bias) -> ()",
              &gru_backward);
  library.def("rnn_forward(Tensor from_x, Tensor? from_h, Tensor(a!) h) -> ()", &rnn_forward);
  library.def("rnn_backward(Tensor h, Tensor? d_output, Tensor? d_through, "
              "Tensor(a!) d_gates, Tensor(b!)? d_bias) -> ()", &rnn_backward);
}
