// The gates as one pass over memory each way a step; the same functions as in plain.py, for a CPU.
//
// Rows are contiguous. Sums and products are float32; what is kept of the gates is i, f, g, o (r, z, n)
// side by side. tanh is 2σ(2x) - 1, right to 2e-7 as absolute error. Without a tensor values are zero.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

namespace {

using at::BFloat16;
using at::Tensor;
using Rows = const std::optional<Tensor>&;

#ifdef __AVX512F__
constexpr int64_t WIDTH = 16;
#else
constexpr int64_t WIDTH = 8;
#endif
constexpr int64_t GRAIN = 4096;  // values of one gate that are worth a thread
using Whole = std::integral_constant<int64_t, WIDTH>;

// Vectors as GCC and Clang have them: operators work value by value. What takes them is inlined, or they
// would go through memory.
typedef float Values __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

template <typename T>
const T* read(Rows rows) {
  return rows.has_value() ? rows->const_data_ptr<T>() : nullptr;
}

template <typename T>
T* write(Rows rows) {
  return rows.has_value() ? rows->mutable_data_ptr<T>() : nullptr;
}

template <typename T, typename Count>
[[gnu::always_inline]] inline Values load(const T* from, int64_t at, Count count) {
  if (from == nullptr) return Values{};
  if constexpr (std::is_same_v<T, float>) {
    Values values{};
    std::memcpy(&values, from + at, 4 * count);
    return values;
  } else {
    Halves halves{};
    std::memcpy(&halves, from + at, 2 * count);
    return std::bit_cast<Values>(__builtin_convertvector(halves, Bits) << 16);
  }
}

template <typename T, typename Count>
[[gnu::always_inline]] inline void store(T* to, int64_t at, Values values, Count count) {
  if (to == nullptr) return;
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(to + at, &values, 4 * count);
  } else {
    // Rounded to the nearest, of two to the even one; NaN stays NaN.
    const Bits bits = std::bit_cast<Bits>(values);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits kept = values == values ? rounded : Bits{} + 0x7fc0;
    const Halves halves = __builtin_convertvector(kept, Halves);
    std::memcpy(static_cast<void*>(to + at), &halves, 2 * count);
  }
}

// e^x, right to 2e-7 of it, from e^-87 to e^87.
[[gnu::always_inline]] inline Values exponential(Values x) {
  constexpr float SHIFT = 0x1.8p23f;  // what is added to it is rounded to a whole number
  x = x > 87.0f ? Values{} + 87.0f : x;
  x = x < -87.0f ? Values{} - 87.0f : x;
  const Values shifted = x * 0x1.715476p0f + SHIFT;  // x / ln 2
  const Values whole = shifted - SHIFT;
  const Values rest = (x - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;  // ln 2 in two parts
  // 1 + x + ..., of the least relative error between ±ln 2 / 2
  Values power = 0x1.106284p-7f * rest + 0x1.5729fp-5f;
  power = power * rest + 0x1.5557aep-3f;
  power = power * rest + 0x1.fffdfcp-2f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  return power * std::bit_cast<Values>((std::bit_cast<Bits>(shifted) + 127) << 23);
}

inline Values sigmoid(Values x) { return 1.0f / (1.0f + exponential(-x)); }

inline Values tanh(Values x) { return 2.0f / (1.0f + exponential(-2.0f * x)) - 1.0f; }

// Calls body(row, channel, count) for all values of (count, hidden), by vectors.
template <typename Body>
void each(const Tensor& like, Body body) {
  const int64_t hidden = like.size(1);
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, hidden));
  at::parallel_for(0, like.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t channel = 0;
      for (; channel + WIDTH <= hidden; channel += WIDTH) body(row, channel, Whole());
      if (channel < hidden) body(row, channel, hidden - channel);
    }
  });
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

// Peepholes (3, 1, H), or (3, N, H): of each row.
struct Peepholes {
  explicit Peepholes(Rows peephole)
      : from(read<float>(peephole)),
        row(from != nullptr && peephole->size(1) > 1 ? peephole->size(2) : 0),
        gate(from != nullptr ? peephole->size(1) * peephole->size(2) : 0) {}

  template <typename Count>
  Values of(int64_t which, int64_t at_row, int64_t channel, Count count) const {
    return load(from, which * gate + at_row * row + channel, count);
  }

  const float* from;
  int64_t row, gate;  // strides
};

void lstm_forward(const Tensor& from_x, Rows from_h, Rows c, Rows peephole, Rows gates,
                  const Tensor& fresh, const Tensor& h) {
  typed(h, [&](auto zero) {
    using T = decltype(zero);
    const auto *x = read<T>(from_x), *hidden = read<T>(from_h);
    const auto* old = read<float>(c);
    auto* kept = write<T>(gates);
    auto* cells = write<float>(fresh);
    auto* out = write<T>(h);
    const Peepholes peep(peephole);
    const int64_t H = fresh.size(1);
    each(fresh, [=](int64_t row, int64_t channel, auto n) {
      const int64_t at = row * H + channel, first = row * 4 * H + channel;
      const auto sum = [&](int64_t gate) {
        return load(x, first + gate * H, n) + load(hidden, first + gate * H, n);
      };
      const Values before = load(old, at, n);
      const Values i = sigmoid(sum(0) + peep.of(0, row, channel, n) * before);
      const Values f = sigmoid(sum(1) + peep.of(1, row, channel, n) * before);
      const Values g = tanh(sum(2));
      const Values cell = f * before + i * g;
      const Values o = sigmoid(sum(3) + peep.of(2, row, channel, n) * cell);
      store(kept, first, i, n);
      store(kept, first + H, f, n);
      store(kept, first + 2 * H, g, n);
      store(kept, first + 3 * H, o, n);
      store(cells, at, cell, n);
      store(out, at, o * tanh(cell), n);
    });
  });
}

void lstm_backward(const Tensor& gates, Rows c, const Tensor& fresh, Rows peephole, Rows d_output,
                   Rows d_through, const Tensor& d_c) {
  typed(gates, [&](auto zero) {
    using T = decltype(zero);
    auto* kept = write<T>(gates);
    const auto *old = read<float>(c), *cells = read<float>(fresh);
    const auto *after = read<T>(d_output), *through = read<T>(d_through);
    auto* d_cells = write<float>(d_c);
    const Peepholes peep(peephole);
    const int64_t H = fresh.size(1);
    each(fresh, [=](int64_t row, int64_t channel, auto n) {
      const int64_t at = row * H + channel, first = row * 4 * H + channel;
      const float one = 1;
      const Values i = load(kept, first, n), f = load(kept, first + H, n);
      const Values g = load(kept, first + 2 * H, n), o = load(kept, first + 3 * H, n);
      const Values out = tanh(load(cells, at, n));
      const Values d_h = load(after, at, n) + load(through, at, n);
      const Values d_o = d_h * out * o * (one - o);
      const Values d_new = d_h * o * (one - out * out) + load(d_cells, at, n) +
          d_o * peep.of(2, row, channel, n);
      const Values d_i = d_new * g * i * (one - i);
      const Values d_f = d_new * load(old, at, n) * f * (one - f);
      const Values past =
          d_i * peep.of(0, row, channel, n) + d_f * peep.of(1, row, channel, n);
      store(kept, first, d_i, n);
      store(kept, first + H, d_f, n);
      store(kept, first + 2 * H, d_new * i * (one - g * g), n);
      store(kept, first + 3 * H, d_o, n);
      store(d_cells, at, d_new * f + past, n);
    });
  });
}

void gru_forward(const Tensor& from_x, Rows from_h, Rows bias, Rows h, Rows gates, Rows candidate,
                 const Tensor& fresh) {
  typed(fresh, [&](auto zero) {
    using T = decltype(zero);
    const auto *x = read<T>(from_x), *hidden = read<T>(from_h), *old = read<T>(h);
    const auto* added = read<T>(bias);
    auto *kept = write<T>(gates), *multiplied = write<T>(candidate), *out = write<T>(fresh);
    const int64_t H = fresh.size(1);
    each(fresh, [=](int64_t row, int64_t channel, auto n) {
      const int64_t at = row * H + channel, first = row * 3 * H + channel;
      const Values r = sigmoid(load(x, first, n) + load(hidden, first, n));
      const Values z = sigmoid(load(x, first + H, n) + load(hidden, first + H, n));
      const Values q = load(hidden, first + 2 * H, n) + load(added, channel, n);
      const Values new_gate = tanh(load(x, first + 2 * H, n) + r * q);
      store(kept, first, r, n);
      store(kept, first + H, z, n);
      store(kept, first + 2 * H, new_gate, n);
      store(multiplied, at, q, n);
      store(out, at, new_gate + z * (load(old, at, n) - new_gate), n);
    });
  });
}

void gru_backward(const Tensor& gates, const Tensor& candidate, Rows h, Rows d_output,
                  Rows d_through, const Tensor& d_h, const Tensor& d_hidden) {
  typed(gates, [&](auto zero) {
    using T = decltype(zero);
    auto *kept = write<T>(gates), *d_from_h = write<T>(d_hidden);
    const auto *multiplied = read<T>(candidate), *old = read<T>(h);
    const auto *after = read<T>(d_output), *through = read<T>(d_through);
    auto* d_old = write<float>(d_h);
    const int64_t H = d_h.size(1);
    each(d_h, [=](int64_t row, int64_t channel, auto n) {
      const int64_t at = row * H + channel, first = row * 3 * H + channel;
      const float one = 1;
      const Values r = load(kept, first, n), z = load(kept, first + H, n);
      const Values new_gate = load(kept, first + 2 * H, n);
      const Values d_new = load(after, at, n) + load(through, at, n) + load(d_old, at, n);
      const Values d_z = d_new * (load(old, at, n) - new_gate) * z * (one - z);
      const Values d_n = d_new * (one - z) * (one - new_gate * new_gate);
      const Values d_r = d_n * load(multiplied, at, n) * r * (one - r);
      store(kept, first, d_r, n);
      store(kept, first + H, d_z, n);
      store(kept, first + 2 * H, d_n, n);
      store(d_from_h, first, d_r, n);
      store(d_from_h, first + H, d_z, n);
      store(d_from_h, first + 2 * H, d_n * r, n);
      store(d_old, at, d_new * z, n);
    });
  });
}

void rnn_forward(const Tensor& from_x, Rows from_h, const Tensor& h) {
  typed(h, [&](auto zero) {
    using T = decltype(zero);
    const auto *x = read<T>(from_x), *hidden = read<T>(from_h);
    auto* out = write<T>(h);
    const int64_t H = h.size(1);
    each(h, [=](int64_t row, int64_t channel, auto n) {
      const int64_t at = row * H + channel;
      store(out, at, tanh(load(x, at, n) + load(hidden, at, n)), n);
    });
  });
}

void rnn_backward(const Tensor& h, Rows d_output, Rows d_through, const Tensor& d_gates) {
  typed(h, [&](auto zero) {
    using T = decltype(zero);
    const auto *out = read<T>(h), *after = read<T>(d_output), *through = read<T>(d_through);
    auto* d_sum = write<T>(d_gates);
    const int64_t H = h.size(1);
    each(h, [=](int64_t row, int64_t channel, auto n) {
      const int64_t at = row * H + channel;
      const Values value = load(out, at, n);
      const Values d_h = load(after, at, n) + load(through, at, n);
      store(d_sum, at, d_h * (1.0f - value * value), n);
    });
  });
}

}  // namespace

TORCH_LIBRARY(convlstm, library) {
  library.def("lstm_forward(Tensor from_x, Tensor? from_h, Tensor? c, Tensor? peephole, "
              "Tensor(a!)? gates, Tensor(b!) new, Tensor(c!) h) -> ()", &lstm_forward);
  library.def("lstm_backward(Tensor(a!) gates, Tensor? c, Tensor new, Tensor? peephole, "
              "Tensor? d_output, Tensor? d_through, Tensor(b!) d_c) -> ()", &lstm_backward);
  library.def("gru_forward(Tensor from_x, Tensor? from_h, Tensor? bias, Tensor? h, "
              "Tensor(a!)? gates, Tensor(b!)? candidate, Tensor(c!) new) -> ()", &gru_forward);
  library.def("gru_backward(Tensor(a!) gates, Tensor candidate, Tensor? h, Tensor? d_output, "
              "Tensor? d_through, Tensor(b!) d_h, Tensor(c!) d_hidden) -> ()", &gru_backward);
  library.def("rnn_forward(Tensor from_x, Tensor? from_h, Tensor(a!) h) -> ()", &rnn_forward);
  library.def("rnn_backward(Tensor h, Tensor? d_output, Tensor? d_through, "
              "Tensor(a!) d_gates) -> ()", &rnn_backward);
}
