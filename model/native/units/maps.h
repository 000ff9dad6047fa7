// What lies between the units of an attention module, on blocked maps.
#pragma once
#include <stdexcept>
#include <string>

#include "blocked.h"

namespace attn {

// exp(x), relative error 2e-7.
inline Lanes exponential(Lanes x) {
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

// The table that Python reads too.
enum class Divided { NOWHERE, PIXELS, MAPS };
enum class End { SIGMOID, IDENTITY, TANH };
struct Activation {
  const char* name;
  Divided divided;
  End end;
  float epsilon;
  // That code for it is below.
  constexpr bool is_known() const {
    return (divided == Divided::PIXELS) == (end == End::IDENTITY) &&
           (divided != Divided::MAPS || end == End::SIGMOID);
  }
};
#define ACTIVATION(name, divided, end, epsilon) {#name, Divided::divided, End::end, epsilon},
constexpr Activation kActivations[] = {
#include "mask_activations.def"
};
#undef ACTIVATION
#define ACTIVATION(name, divided, end, epsilon)                                        \
  static_assert(Activation{#name, Divided::divided, End::end, epsilon}.is_known(), \
                "there is no code for the activation " #name);
#include "mask_activations.def"
#undef ACTIVATION

inline const Activation& activation_of(const std::string& name) {
  std::string known;
  for (const Activation& one : kActivations) {
    if (name == one.name) return one;
    known += (known.empty() ? "" : ", ") + std::string(one.name);
  }
  throw std::runtime_error("unknown attention " + name + "; available: " + known);
}

// Attention weights M of the mask's maps m, and how they act on the trunk: y = (base + M) t.
struct Mask {
  Activation activation;
  float base = 1.0f;  // attention residual learning; 0: naive

  Mask(const std::string& attention, const std::string& learning)
      : activation(activation_of(attention)), base(learning == "arl" ? 1.0f : 0.0f) {
    if (learning != "arl" && learning != "nal")
      throw std::runtime_error("unknown learning " + learning + "; available: arl, nal");
  }
};

// M = scale * sigmoid(k m + o) + shift, of one image's block of channels.
struct Logistic {
  Lanes k = Lanes{} + 1.0f, o{};
  float scale = 1.0f, shift = 0.0f;

  template <class T>
  Logistic(const Mask& mask, const T* m, int pixels) {
    if (mask.activation.end == End::TANH) k = Lanes{} + 2.0f, scale = 2.0f, shift = -1.0f;
    if (mask.activation.divided != Divided::MAPS) return;
    Lanes mean{}, variance{};
    for (int p = 0; p < pixels; ++p) mean += load(m + p * kLanes);
    mean /= static_cast<float>(pixels);
    for (int p = 0; p < pixels; ++p) {
      const Lanes v = load(m + p * kLanes) - mean;
      variance += v * v;
    }
    for (int i = 0; i < kLanes; ++i)
      k[i] = 1.0f / std::sqrt(variance[i] / pixels + mask.activation.epsilon);
    o = -mean * k;
  }
  Lanes gate(Lanes m) const { return logistic(k * m + o); }
};

inline float sum_of(Lanes v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// One over the norm over all channels at each position of an image.
template <class T>
void inverse_norms(const T* m, const Shape& s, float epsilon, std::vector<float>* found) {
  found->resize(s.pixels());
  for (int p = 0; p < s.pixels(); ++p) {
    Lanes square{};
    for (int b = 0; b < s.blocks(); ++b) {
      const Lanes v = load(m + (static_cast<size_t>(b) * s.pixels() + p) * kLanes);
      square += v * v;
    }
    (*found)[p] = 1.0f / std::sqrt(sum_of(square) + epsilon);
  }
}

template <class T>
void mask_forward(const Mask& mask, const T* m, const T* t, T* y, const Shape& s) {
  const int blocks = s.blocks(), pixels = s.pixels();
  const size_t plane = static_cast<size_t>(pixels) * kLanes;
  if (mask.activation.divided == Divided::PIXELS) {
#pragma omp parallel for
    for (int n = 0; n < s.n; ++n) {
      std::vector<float> inverse;
      inverse_norms(m + n * s.image(), s, mask.activation.epsilon, &inverse);
      for (size_t i = n * s.image(), j = 0; j < s.image(); i += kLanes, j += kLanes)
        store(y + i, load(t + i) * (mask.base + load(m + i) * inverse[j / kLanes % pixels]));
    }
    return;
  }
#pragma omp parallel for
  for (int map = 0; map < s.n * blocks; ++map) {
    const Logistic to(mask, m + map * plane, pixels);
    for (size_t i = map * plane; i < (map + 1) * plane; i += kLanes)
      store(y + i, load(t + i) * (mask.base + (to.scale * to.gate(load(m + i)) + to.shift)));
  }
}

inline void mask_backward_channel(const Mask& mask, const float* m, const float* t, const float* dy,
                                  float* dm, float* dt, const Shape& s) {
  const int pixels = s.pixels();
#pragma omp parallel for
  for (int n = 0; n < s.n; ++n) {
    const size_t at = n * s.image();
    std::vector<float> inverse, product(pixels, 0.0f);
    inverse_norms(m + at, s, mask.activation.epsilon, &inverse);
    for (size_t j = 0; j < s.image(); j += kLanes)
      product[j / kLanes % pixels] += sum_of(load(dy + at + j) * load(t + at + j) * load(m + at + j));
    for (size_t j = 0, i = at; j < s.image(); i += kLanes, j += kLanes) {
      const int p = static_cast<int>(j / kLanes % pixels);
      const Lanes d = load(dy + i), v = load(m + i) * inverse[p];
      store(dm + i, (d * load(t + i) - v * (product[p] * inverse[p])) * inverse[p]);
      store(dt + i, d * (mask.base + v));
    }
  }
}

inline void mask_backward(const Mask& mask, const float* m, const float* t, const float* dy,
                          float* dm, float* dt, const Shape& s) {
  if (mask.activation.divided == Divided::PIXELS) return mask_backward_channel(mask, m, t, dy, dm, dt, s);
  const int pixels = s.pixels();
  const size_t plane = static_cast<size_t>(pixels) * kLanes;
#pragma omp parallel for
  for (int map = 0; map < s.n * s.blocks(); ++map) {
    const Logistic to(mask, m + map * plane, pixels);
    Lanes sum{}, product{};
    for (size_t i = map * plane; i < (map + 1) * plane; i += kLanes) {
      const Lanes a = to.gate(load(m + i)), d = load(dy + i);
      const Lanes dz = d * load(t + i) * (to.scale * a * (1.0f - a));
      store(dm + i, dz * to.k);
      store(dt + i, d * (mask.base + (to.scale * a + to.shift)));
      sum += dz;
      product += dz * (to.k * load(m + i) + to.o);
    }
    if (mask.activation.divided != Divided::MAPS) continue;
    sum /= static_cast<float>(pixels), product /= static_cast<float>(pixels);
    for (size_t i = map * plane; i < (map + 1) * plane; i += kLanes) {
      const Lanes z = to.k * load(m + i) + to.o;
      store(dm + i, load(dm + i) - to.k * (sum + z * product));
    }
  }
}

// body(from, to, top, bottom, left, right) for the 3x3 pixels at every second one: the first numbers
// of the map that is read and of the pixel that is written, and the window in the map.
template <class Body>
void windows(const Shape& in, const Shape& out, Body body) {
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

// Their maximum; `which` (one byte a number) is where it was.
class MaxPool {
 public:
  MaxPool(const Shape& in) : in(in), out{in.n, in.c, (in.h - 1) / 2 + 1, (in.w - 1) / 2 + 1} {
    which_.resize(out.size());
  }
  const Shape in, out;

  void forward(const float* x, float* y) {
    windows(in, out, [&](size_t from, size_t to, int top, int bottom, int left, int right) {
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
    windows(in, out, [&](size_t from, size_t to, int top, int, int left, int) {
      for (int k = 0; k < kLanes; ++k) {
        const int i = top + which_[to + k] / 3, j = left + which_[to + k] % 3;
        dx[from + (static_cast<size_t>(i) * in.w + j) * kLanes + k] += dy[to + k];
      }
    });
  }

 private:
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

// y (N, C) = mean over the pixels of x, or of relu(scale x + shift) where there is a scale.
template <class T>
void mean_of(const T* x, const Shape& s, const std::vector<float>& scale,
             const std::vector<float>& shift, float* y) {
  std::vector<float> unused(static_cast<size_t>(s.n) * s.c);
  const bool normed = !scale.empty();
  sums(s, y, unused.data(), [&](int, int b) {
    const Lanes k = normed ? load(scale.data() + b * kLanes) : Lanes{};
    const Lanes t = normed ? load(shift.data() + b * kLanes) : Lanes{};
    return [=](size_t i, Lanes& a, Lanes&) {
      a += normed ? positive(load(x + i) * k + t) : load(x + i);
    };
  });
  for (size_t i = 0; i < unused.size(); ++i) y[i] /= s.pixels();
}

// That of relu(bn(x)), forward and backward.
class Mean {
 public:
  void forward(const float* x, const Shape& s, float* y) {
    mean_of(x, s, norm.scale, norm.shift, y);
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
