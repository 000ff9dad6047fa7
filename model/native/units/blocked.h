// Maps in blocks of 16 or 8 channels, (N, C / 16, H * W, 16), and batch normalisation of them.
//
// BLOCK is the number of channels, which fill one vector: 16 where oneDNN convolves by AVX-512, 8
// where it does by AVX2. It has only its reference code for the other one, hundreds of times slower.
//
// MXNet takes such an array for a plain one of the same size, so it never reorders it.
#pragma once
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace attn {

constexpr int kLanes = BLOCK;
static_assert(kLanes == 16 || kLanes == 8, "vectors have 64 or 32 bytes");
// oneDNN convolves bfloat16 by AVX-512 alone.
constexpr bool kHasBfloat16 = kLanes == 16;
typedef float Lanes __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));

inline Lanes load(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
inline void store(float* p, Lanes v) { *reinterpret_cast<Lanes*>(p) = v; }

// As Python writes it, whatever the locale of the process is: std::stof would follow that.
inline float real(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  float value;
  if (!(stream >> value)) throw std::invalid_argument("not a number: " + text);
  return value;
}

// oneDNN has no code for bfloat16 without AVX-512 but its reference.
inline void check_precision(const std::string& precision) {
  if (!kHasBfloat16 && precision != "float32")
    throw std::invalid_argument(precision + " takes a processor with AVX-512");
}

struct Bfloat16 {
  uint16_t bits;
};

// Rounded to the nearest, ties to even; NaN stays NaN.
inline void store(Bfloat16* p, Lanes v) {
#if defined(__AVX512BF16__) && BLOCK == 16
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &rounded, sizeof rounded);
#else
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  const Words bits = reinterpret_cast<Words>(v);
  const Words up = bits + 0x7fff + ((bits >> 16) & 1);
  const Words kept = v == v ? up : bits | 0x400000;
  const Halves halves = __builtin_convertvector(kept >> 16, Halves);
  std::memcpy(p, &halves, sizeof halves);
#endif
}
inline Lanes load(const Bfloat16* p) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  return reinterpret_cast<Lanes>(__builtin_convertvector(halves, Words) << 16);
}
// NaN stays NaN, so that a diverging training is noticed.
inline Lanes positive(Lanes v) { return v < 0.0f ? Lanes{} : v; }
// v where x > 0, else 0.
inline Lanes where_positive(Lanes x, Lanes v) { return x > 0.0f ? v : Lanes{}; }

typedef std::conditional_t<kLanes == 16, uint16_t, uint8_t> Bits;  // one for each number of a vector
inline Bits positive_bits(Lanes v) {
#if defined(__AVX512F__) && BLOCK == 16
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__) && BLOCK == 8
  const __m256 more = _mm256_cmp_ps(reinterpret_cast<__m256>(v), _mm256_setzero_ps(), _CMP_GT_OQ);
  return static_cast<Bits>(_mm256_movemask_ps(more));
#else
  Bits bits = 0;
  for (int k = 0; k < kLanes; ++k) bits |= (v[k] > 0.0f) << k;
  return bits;
#endif
}
// v where a bit is set, else 0.
inline Lanes where(Bits bits, Lanes v) {
#if defined(__AVX512F__) && BLOCK == 16
  return reinterpret_cast<Lanes>(_mm512_maskz_mov_ps(bits, reinterpret_cast<__m512>(v)));
#elif BLOCK == 8
  const Ints place = {1, 2, 4, 8, 16, 32, 64, 128};
  return ((Ints{} + bits) & place) != 0 ? v : Lanes{};
#else
  for (int k = 0; k < kLanes; ++k) v[k] = bits >> k & 1 ? v[k] : 0.0f;
  return v;
#endif
}

// Aligned memory that is not initialized and lives as long as its owner.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  float* get(size_t count) {
    if (count > count_) {
      std::free(data_);
      count_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      count_ = count;
    }
    return data_;
  }
  float* data() const { return data_; }
  template <class T>
  T* as(size_t count) {
    return reinterpret_cast<T*>(get((count * sizeof(T) + sizeof(float) - 1) / sizeof(float)));
  }

 private:
  float* data_ = nullptr;
  size_t count_ = 0;
};

// Maps of all images that wait for another pass, float32 or bfloat16.
class Kept {
 public:
  void get(size_t count, bool bfloat16) {
    bfloat16_ = bfloat16;
    if (bfloat16)
      buffer_.as<Bfloat16>(count);
    else
      buffer_.get(count);
  }
  void* at(size_t offset) const {
    char* bytes = reinterpret_cast<char*>(buffer_.data());
    return bytes + offset * (bfloat16_ ? sizeof(Bfloat16) : sizeof(float));
  }
  // body(pointer of their type to the numbers from an offset on).
  template <class Body>
  auto with(size_t offset, Body body) const {
    void* from = at(offset);
    if constexpr (kHasBfloat16)
      if (bfloat16_) return body(static_cast<Bfloat16*>(from));
    return body(static_cast<float*>(from));
  }

 private:
  Buffer buffer_;
  bool bfloat16_ = false;
};

struct Shape {  // of blocked maps
  int n, c, h, w;
  int blocks() const { return c / kLanes; }
  int pixels() const { return h * w; }
  size_t image() const { return static_cast<size_t>(c) * h * w; }
  size_t size() const { return image() * n; }
  // What a convolution with padding kernel / 2 gives.
  Shape convolved(int channels, int stride) const {
    return {n, channels, (h - 1) / stride + 1, (w - 1) / stride + 1};
  }
};

// Images that are worked on together, so that what one operation writes the next finds in the cache.
inline int chunk_of(int images, size_t floats_per_image) {
  static const size_t bytes = [] {
    const char* set = std::getenv("ATTENTION_CHUNK_KB");
    return (set ? std::atol(set) : 2048L * omp_get_max_threads()) * size_t{1024};
  }();
  int most = static_cast<int>(std::max<size_t>(1, bytes / (floats_per_image * sizeof(float))));
  for (int chunk = std::min(images, most); chunk > 1; --chunk)
    if (images % chunk == 0) return chunk;
  return 1;
}

// Two sums over the pixels of each image and channel, (N, C): of f(p) and g(p).
template <class Body>
void sums(const Shape& s, float* first, float* second, Body body) {
  const int blocks = s.blocks(), pixels = s.pixels();
#pragma omp parallel for collapse(2)
  for (int n = 0; n < s.n; ++n)
    for (int b = 0; b < blocks; ++b) {
      const size_t at = (static_cast<size_t>(n) * blocks + b) * pixels * kLanes;
      Lanes a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{};
      const auto add = body(n, b);
      int p = 0;
      for (; p + 4 <= pixels; p += 4) {
        add(at + p * kLanes, a0, b0);
        add(at + (p + 1) * kLanes, a1, b1);
        add(at + (p + 2) * kLanes, a2, b2);
        add(at + (p + 3) * kLanes, a3, b3);
      }
      for (; p < pixels; ++p) add(at + p * kLanes, a0, b0);
      const size_t out = static_cast<size_t>(n) * s.c + b * kLanes;
      store(first + out, (a0 + a1) + (a2 + a3));
      store(second + out, (b0 + b1) + (b2 + b3));
    }
}

// body(n, b) returns what is done to the numbers of a vector at an offset.
template <class Body>
void each(const Shape& s, Body body) {
  const int blocks = s.blocks(), pixels = s.pixels();
#pragma omp parallel for collapse(2)
  for (int n = 0; n < s.n; ++n)
    for (int b = 0; b < blocks; ++b) {
      const size_t at = (static_cast<size_t>(n) * blocks + b) * pixels * kLanes;
      const auto act = body(n, b);
      for (int p = 0; p < pixels; ++p) act(at + static_cast<size_t>(p) * kLanes);
    }
}

// Batch normalisation of c channels in training: y = scale * x + shift.
class Norm {
 public:
  std::vector<float> mean, inverse, scale, shift;  // inverse: 1 / sqrt(variance + epsilon)
  std::vector<float> sum;                          // (N, C) sums over the pixels of x - pivot
  std::vector<float> pivot;
  std::vector<float> p, q;  // dx = scale * dy + p * x + q

  void begin(const Shape& whole) {
    shape_ = whole;
    for (auto* v : {&mean, &inverse, &scale, &shift, &pivot, &p, &q}) v->assign(whole.c, 0.0f);
    sum.assign(static_cast<size_t>(whole.n) * whole.c, 0.0f);
    square_.assign(sum.size(), 0.0f);
  }

  // Take in images [first, first + s.n). Sums are of differences from the first image's mean.
  template <class T>
  void take(const T* x, int first, const Shape& s) {
    if (first == 0) set_pivot(x, s);
    const size_t at = static_cast<size_t>(first) * s.c;
    sums(s, sum.data() + at, square_.data() + at, [&](int, int b) {
      const Lanes k = load(pivot.data() + b * kLanes);
      return [=](size_t i, Lanes& a, Lanes& sq) {
        const Lanes v = load(x + i) - k;
        a += v;
        sq += v * v;
      };
    });
  }

  void finish(const float* gamma, const float* beta, float epsilon, float momentum,
              float* running_mean, float* running_var) {
    const double count = static_cast<double>(shape_.n) * shape_.pixels();
    for (int c = 0; c < shape_.c; ++c) {
      double s1 = 0, s2 = 0;
      for (int n = 0; n < shape_.n; ++n) {
        s1 += sum[static_cast<size_t>(n) * shape_.c + c];
        s2 += square_[static_cast<size_t>(n) * shape_.c + c];
      }
      const double m = s1 / count, var = std::max(0.0, s2 / count - m * m);
      mean[c] = static_cast<float>(pivot[c] + m);
      inverse[c] = static_cast<float>(1.0 / std::sqrt(var + epsilon));
      scale[c] = gamma[c] * inverse[c];
      shift[c] = beta[c] - mean[c] * scale[c];
      running_mean[c] = running_mean[c] * momentum + mean[c] * (1 - momentum);
      running_var[c] = running_var[c] * momentum + static_cast<float>(var) * (1 - momentum);
    }
  }

  // Mean over the pixels of one image's channel.
  float image_mean(int n, int c) const {
    return pivot[c] + sum[static_cast<size_t>(n) * shape_.c + c] / shape_.pixels();
  }

  // From the sums over everything of dy and dy * (x - mean).
  void backward(int c, double dy, double dy_x, float* gamma_gradient, float* beta_gradient) {
    const double count = static_cast<double>(shape_.n) * shape_.pixels();
    gamma_gradient[c] = static_cast<float>(dy_x * inverse[c]);
    beta_gradient[c] = static_cast<float>(dy);
    p[c] = static_cast<float>(-scale[c] * static_cast<double>(inverse[c]) * inverse[c] * dy_x / count);
    q[c] = static_cast<float>(-scale[c] * dy / count - static_cast<double>(p[c]) * mean[c]);
  }

  // The same from (N, C) sums.
  void backward(const std::vector<float>& dy, const std::vector<float>& dy_x, float* gamma_gradient,
                float* beta_gradient) {
    for (int c = 0; c < shape_.c; ++c) {
      double s1 = 0, s2 = 0;
      for (int n = 0; n < shape_.n; ++n) {
        s1 += dy[static_cast<size_t>(n) * shape_.c + c];
        s2 += dy_x[static_cast<size_t>(n) * shape_.c + c];
      }
      backward(c, s1, s2, gamma_gradient, beta_gradient);
    }
  }

  // Sums for the gradient dy of relu(scale * x + shift), images [first, first + s.n).
  template <class D, class T>
  void activated_sums(const D* dy, const T* x, int first, const Shape& s,
                      std::vector<float>* dy_sum, std::vector<float>* dy_x_sum) const {
    const size_t at = static_cast<size_t>(first) * s.c;
    sums(s, dy_sum->data() + at, dy_x_sum->data() + at, [&](int, int b) {
      const Lanes k = load(scale.data() + b * kLanes), t = load(shift.data() + b * kLanes);
      const Lanes m = load(mean.data() + b * kLanes);
      return [=](size_t i, Lanes& a, Lanes& ax) {
        const Lanes v = load(x + i), d = where_positive(v * k + t, load(dy + i));
        a += d;
        ax += d * (v - m);
      };
    });
  }

  // The gradient of x in block b from the gradient dy of relu(scale * x + shift), by offset.
  template <class D, class T>
  auto activated_gradient(const D* dy, const T* x, int b) const {
    const Lanes k = load(scale.data() + b * kLanes), t = load(shift.data() + b * kLanes);
    const Lanes pp = load(p.data() + b * kLanes), qq = load(q.data() + b * kLanes);
    return [=](size_t i) {
      const Lanes v = load(x + i), d = where_positive(v * k + t, load(dy + i));
      return k * d + (pp * v + qq);
    };
  }

 private:
  template <class T>
  void set_pivot(const T* x, const Shape& s) {
    for (int b = 0; b < s.blocks(); ++b) {
      const T* at = x + static_cast<size_t>(b) * s.pixels() * kLanes;
      Lanes total{};
      for (int p = 0; p < s.pixels(); ++p) total += load(at + static_cast<size_t>(p) * kLanes);
      store(pivot.data() + b * kLanes, total / static_cast<float>(s.pixels()));
    }
  }
  Shape shape_{};
  std::vector<float> square_;
};

}  // namespace attn
