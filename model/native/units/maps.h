// What lies between the units of an attention module, on blocked maps.
#pragma once
#include "blocked.h"

namespace attn {

// exp(x), relative error 2e-7.
inline Lanes exponential(Lanes x) {
  typedef int Ints __attribute__((vector_size(64)));
  const Lanes low = Lanes{} - 87.0f, high = Lanes{} + 88.0f;
  x = x < low ? low : (x > high ? high : x);
  const Lanes scaled = x * 1.44269504f;
  const Lanes half = scaled < 0.0f ? Lanes{} - 0.5f : Lanes{} + 0.5f;
  const Ints whole = __builtin_convertvector(scaled + half, Ints);
  const Lanes n = __builtin_convertvector(whole, Lanes);
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * (Lanes)((whole + 127) << 23);
}

inline Lanes logistic(Lanes x) { return 1.0f / (1.0f + exponential(-x)); }

// y = (1 + sigmoid(m)) * t
template <class T>
void mask_forward(const T* m, const T* t, T* y, const Shape& s) {
  each(s, [&](int, int) {
    return [=](size_t i) { store(y + i, load(t + i) * (1.0f + logistic(load(m + i)))); };
  });
}

inline void mask_backward(const float* m, const float* t, const float* dy, float* dm, float* dt,
                          const Shape& s) {
  each(s, [&](int, int) {
    return [=](size_t i) {
      const Lanes a = logistic(load(m + i)), d = load(dy + i);
      store(dm + i, d * load(t + i) * a * (1.0f - a));
      store(dt + i, d * (1.0f + a));
    };
  });
}

// Maximum of 3x3 pixels at every second one; `which` (one byte a number) is where it was.
class MaxPool {
 public:
  MaxPool(const Shape& in) : in(in), out{in.n, in.c, (in.h - 1) / 2 + 1, (in.w - 1) / 2 + 1} {
    which_.resize(out.size());
  }
  const Shape in, out;

  void forward(const float* x, float* y) {
    windows([&](size_t from, size_t to, int top, int bottom, int left, int right) {
      typedef int Ints __attribute__((vector_size(64)));
      Lanes best = load(x + from + (static_cast<size_t>(top) * in.w + left) * kLanes);
      Ints at = Ints{} + (top << 16 | left);
      for (int i = top; i < bottom; ++i)
        for (int j = left; j < right; ++j) {
          const Lanes v = load(x + from + (static_cast<size_t>(i) * in.w + j) * kLanes);
          const auto more = v > best;
          best = more ? v : best;
          at = more ? Ints{} + (i << 16 | j) : at;
        }
      store(y + to, best);
      for (int k = 0; k < kLanes; ++k)
        which_[to + k] = static_cast<uint8_t>(((at[k] >> 16) - top) * 3 + (at[k] & 0xffff) - left);
    });
  }

  void backward(const float* dy, float* dx) {
    std::memset(dx, 0, in.size() * sizeof(float));
    windows([&](size_t from, size_t to, int top, int, int left, int) {
      for (int k = 0; k < kLanes; ++k) {
        const int i = top + which_[to + k] / 3, j = left + which_[to + k] % 3;
        dx[from + (static_cast<size_t>(i) * in.w + j) * kLanes + k] += dy[to + k];
      }
    });
  }

 private:
  template <class Body>
  void windows(Body body) {
    const int maps = in.n * in.blocks();
#pragma omp parallel for
    for (int m = 0; m < maps; ++m)
      for (int i = 0; i < out.h; ++i)
        for (int j = 0; j < out.w; ++j)
          body(static_cast<size_t>(m) * in.pixels() * kLanes,
               (static_cast<size_t>(m) * out.pixels() + i * out.w + j) * kLanes,
               std::max(0, 2 * i - 1), std::min(in.h, 2 * i + 2), std::max(0, 2 * j - 1),
               std::min(in.w, 2 * j + 2));
  }
  std::vector<uint8_t> which_;
};

// Linear interpolation along one axis with aligned corners: pixel j is a mix of two.
struct Mix {
  std::vector<int> first, second;
  std::vector<float> share;  // of the second
  Mix(int low, int high) : first(high), second(high), share(high) {
    for (int j = 0; j < high; ++j) {
      const double at = high > 1 ? static_cast<double>(j) * (low - 1) / (high - 1) : 0;
      first[j] = std::min(static_cast<int>(at), low - 1);
      second[j] = std::min(first[j] + 1, low - 1);
      share[j] = static_cast<float>(at - first[j]);
    }
  }
};

// y = bilinear(low) + the other maps
template <class T>
void upsample_forward(const T* low, const Shape& from, const std::vector<const T*>& others, T* y,
                      const Shape& to) {
  const Mix rows(from.h, to.h), columns(from.w, to.w);
  const int maps = to.n * to.blocks();
#pragma omp parallel for
  for (int m = 0; m < maps; ++m) {
    std::vector<float> row(static_cast<size_t>(from.w) * kLanes);
    const T* x = low + static_cast<size_t>(m) * from.pixels() * kLanes;
    for (int i = 0; i < to.h; ++i) {
      const T *a = x + static_cast<size_t>(rows.first[i]) * from.w * kLanes;
      const T *b = x + static_cast<size_t>(rows.second[i]) * from.w * kLanes;
      for (int k = 0; k < from.w * kLanes; k += kLanes) {
        const Lanes v = load(a + k);
        store(&row[k], v + rows.share[i] * (load(b + k) - v));
      }
      for (int j = 0; j < to.w; ++j) {
        const size_t at = (static_cast<size_t>(m) * to.pixels() + i * to.w + j) * kLanes;
        const Lanes l = load(&row[columns.first[j] * kLanes]);
        const Lanes r = load(&row[columns.second[j] * kLanes]);
        Lanes v = l + columns.share[j] * (r - l);
        for (const T* other : others) v += load(other + at);
        store(y + at, v);
      }
    }
  }
}

inline void upsample_backward(const float* dy, const Shape& to, float* dlow, const Shape& from) {
  const Mix rows(from.h, to.h), columns(from.w, to.w);
  std::memset(dlow, 0, from.size() * sizeof(float));
  const int maps = to.n * to.blocks();
#pragma omp parallel for
  for (int m = 0; m < maps; ++m) {
    std::vector<float> row(static_cast<size_t>(from.w) * kLanes);
    float* x = dlow + static_cast<size_t>(m) * from.pixels() * kLanes;
    for (int i = 0; i < to.h; ++i) {
      std::fill(row.begin(), row.end(), 0.0f);
      for (int j = 0; j < to.w; ++j) {
        const Lanes d = load(dy + (static_cast<size_t>(m) * to.pixels() + i * to.w + j) * kLanes);
        float *l = &row[columns.first[j] * kLanes], *r = &row[columns.second[j] * kLanes];
        store(l, load(l) + (1 - columns.share[j]) * d);
        store(r, load(r) + columns.share[j] * d);
      }
      float* a = x + static_cast<size_t>(rows.first[i]) * from.w * kLanes;
      float* b = x + static_cast<size_t>(rows.second[i]) * from.w * kLanes;
      for (int k = 0; k < from.w * kLanes; ++k) a[k] += (1 - rows.share[i]) * row[k];
      for (int k = 0; k < from.w * kLanes; ++k) b[k] += rows.share[i] * row[k];
    }
  }
}

// (N, C, H, W) to blocks and back.
template <class T>
void to_blocks(const float* x, T* y, const Shape& s) {
  const int maps = s.n * s.blocks(), pixels = s.pixels();
#pragma omp parallel for
  for (int m = 0; m < maps; ++m) {
    const size_t at = static_cast<size_t>(m) * pixels * kLanes;
    for (int p = 0; p < pixels; ++p) {
      Lanes v;
      for (int k = 0; k < kLanes; ++k) v[k] = x[at + k * pixels + p];
      store(y + at + p * kLanes, v);
    }
  }
}

inline void from_blocks(const float* x, float* y, const Shape& s) {
  const int maps = s.n * s.blocks(), pixels = s.pixels();
#pragma omp parallel for
  for (int m = 0; m < maps; ++m) {
    const size_t at = static_cast<size_t>(m) * pixels * kLanes;
    for (int k = 0; k < kLanes; ++k)
      for (int p = 0; p < pixels; ++p) y[at + k * pixels + p] = x[at + p * kLanes + k];
  }
}

// y (N, C) = mean over the pixels of x, or of relu(bn(x)).
class Mean {
 public:
  void forward(const float* x, const Shape& s, float* y) {
    std::vector<float> unused(static_cast<size_t>(s.n) * s.c);
    sums(s, y, unused.data(), [&](int, int b) {
      const bool normed = !norm.scale.empty();
      const Lanes k = normed ? load(norm.scale.data() + b * kLanes) : Lanes{};
      const Lanes t = normed ? load(norm.shift.data() + b * kLanes) : Lanes{};
      return [=](size_t i, Lanes& a, Lanes&) {
        a += normed ? positive(load(x + i) * k + t) : load(x + i);
      };
    });
    for (size_t i = 0; i < unused.size(); ++i) y[i] /= s.pixels();
  }

  void backward(const float* dy, const float* x, const Shape& s, float* dx, float* gamma_gradient,
                float* beta_gradient) {
    const float share = 1.0f / s.pixels();
    const bool normed = !norm.scale.empty();
    if (normed) {
      std::vector<float> sum(static_cast<size_t>(s.n) * s.c), product(sum.size());
      sums(s, sum.data(), product.data(), [&](int n, int b) {
        const Lanes k = load(norm.scale.data() + b * kLanes), t = load(norm.shift.data() + b * kLanes);
        const Lanes m = load(norm.mean.data() + b * kLanes);
        const Lanes g = load(dy + static_cast<size_t>(n) * s.c + b * kLanes) * share;
        return [=](size_t i, Lanes& a, Lanes& ax) {
          const Lanes v = load(x + i), d = where_positive(v * k + t, g);
          a += d;
          ax += d * (v - m);
        };
      });
      norm.backward(sum, product, gamma_gradient, beta_gradient);
    }
    each(s, [&](int n, int b) {
      const Lanes g = load(dy + static_cast<size_t>(n) * s.c + b * kLanes) * share;
      const Lanes k = normed ? load(norm.scale.data() + b * kLanes) : Lanes{};
      const Lanes t = normed ? load(norm.shift.data() + b * kLanes) : Lanes{};
      const Lanes p = normed ? load(norm.p.data() + b * kLanes) : Lanes{};
      const Lanes q = normed ? load(norm.q.data() + b * kLanes) : Lanes{};
      return [=](size_t i) {
        if (!normed) {
          store(dx + i, g);
          return;
        }
        const Lanes v = load(x + i);
        store(dx + i, k * where_positive(v * k + t, g) + (p * v + q));
      };
    });
  }

  Norm norm;  // empty: none
};

}  // namespace attn
