// Products of small float32 matrices on one thread: packed strips, one register tile, no zeros.
//
// With 128 to 1000 rows and a few hundred columns everything fits the second cache, so that there is
// no blocking beyond strips of kStrip columns. Every sum is made in one fixed order, whatever the
// number of threads or the place of a row in its matrix.
//
// Left factors are activations behind a ReLU and their gradients, most of which are zeros in a
// trained network, often of the same unit for all rollouts of an image. What is zero in all rows of
// a tile is left out, which changes no bit of a sum of finite numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace glimpse {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTile = 8;
#else
constexpr int kLanes = 8, kTile = 6;
#endif
constexpr int kVectors = 2, kStrip = kLanes * kVectors;
constexpr int kDepth = 128;  // rows of a strip at a time: 16 KiB with vectors of 64 bytes
typedef float Vector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef std::vector<float> Floats;

inline int strips(int columns) { return (columns + kStrip - 1) / kStrip; }
inline int tiles(int rows) { return (rows + kTile - 1) / kTile; }

// A matrix as a right factor: `depth` rows in strips of kStrip columns, zeros beyond the last.
struct Packed {
  int depth = 0, columns = 0;
  Floats data;

  void resize(int depth_, int columns_) {
    depth = depth_;
    columns = columns_;
    data.resize(size_t(strips(columns)) * depth * kStrip);
  }
  const float* strip(int s) const { return data.data() + size_t(s) * depth * kStrip; }
  float* strip(int s) { return data.data() + size_t(s) * depth * kStrip; }
};

// One strip of a row-major matrix (depth, columns).
inline void pack_strip(const float* from, int stride, int depth, int width, float* to) {
  for (int k = 0; k < depth; ++k, from += stride, to += kStrip) {
    std::memcpy(to, from, width * sizeof(float));
    if (width < kStrip) std::memset(to + width, 0, (kStrip - width) * sizeof(float));
  }
}

inline void pack(const float* from, int depth, int columns, Packed* to) {
  to->resize(depth, columns);
  for (int s = 0; s < strips(columns); ++s)
    pack_strip(from + s * kStrip, columns, depth, std::min(kStrip, columns - s * kStrip),
               to->strip(s));
}

// The transpose of a row-major matrix (columns, depth).
inline void pack_transposed(const float* from, int depth, int columns, Packed* to) {
  to->resize(depth, columns);
  for (int s = 0; s < strips(columns); ++s) {
    const int width = std::min(kStrip, columns - s * kStrip);
    const float* block = from + size_t(s) * kStrip * depth;
    float* out = to->strip(s);
    if (width < kStrip) std::memset(out, 0, size_t(depth) * kStrip * sizeof(float));
    for (int k0 = 0; k0 < depth; k0 += kLanes)  // so that a line of the cache is read once
      for (int j = 0; j < width; ++j)
        for (int k = k0; k < std::min(k0 + kLanes, depth); ++k)
          out[k * kStrip + j] = block[size_t(j) * depth + k];
  }
}

// One bit for each lane with a bit set.
inline uint32_t lanes(Bits bits) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(__m512i(bits), __m512i(bits));
#elif defined(__AVX2__)
  const __m256i zeros = _mm256_cmpeq_epi32(__m256i(bits), _mm256_setzero_si256());
  return ~_mm256_movemask_ps(_mm256_castsi256_ps(zeros)) & 0xff;
#else
  uint32_t found = 0;
  for (int i = 0; i < kLanes; ++i) found |= uint32_t(bits[i] != 0) << i;
  return found;
#endif
}

// Calls found(k) for the columns k, in order, of a row-major block that are not zero in all rows.
template <typename Found>
inline void each_nonzero(const float* a, int rows, int stride, int columns, const Found& found) {
  int k = 0;
  for (; k + kLanes <= columns; k += kLanes) {
    Bits bits = {};
    for (int i = 0; i < rows; ++i)
      bits |= *reinterpret_cast<const Bits*>(a + size_t(i) * stride + k);
    for (uint32_t mask = lanes(bits << 1); mask; mask &= mask - 1)  // without signs: -0 is 0
      found(k + __builtin_ctz(mask));
  }
  for (; k < columns; ++k) {
    bool any = false;
    for (int i = 0; i < rows; ++i) any |= a[size_t(i) * stride + k] != 0;
    if (any) found(k);
  }
}

// The columns of a left factor, row-major and dense, that count in each of its tiles of rows; those
// of a part of kDepth columns by their place in the part.
struct Columns {
  std::vector<uint8_t> places;
  std::vector<int> counts;

  void find(int rows, int depth, const float* a) {
    const int parts = (depth + kDepth - 1) / kDepth;
    counts.resize(size_t(parts) * tiles(rows));
    places.resize(counts.size() * kDepth);
    for (int part = 0, block = 0; part < parts; ++part)
      for (int i = 0; i < rows; i += kTile, ++block) {
        uint8_t *first = &places[size_t(block) * kDepth], *last = first;
        each_nonzero(a + size_t(i) * depth + part * kDepth, std::min(kTile, rows - i), depth,
                     std::min(kDepth, depth - part * kDepth), [&](int k) { *last++ = k; });
        counts[block] = last - first;
      }
  }
};

// C (rows, kStrip) = or += A B for `count` columns of A and rows of B, B a part of one strip.
template <int rows>
inline void tile(int count, const uint8_t* places, const float* a, int stride, const float* b,
                 float* c, int c_stride, bool add) {
  Vector sum[rows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = add ? *reinterpret_cast<const Vector*>(c + i * c_stride + v * kLanes) : Vector{};
  for (int n = 0; n < count; ++n) {
    const size_t k = places[n];
    const Vector b0 = *reinterpret_cast<const Vector*>(b + k * kStrip);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + k * kStrip + kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Vector factor = a[i * stride + k] - Vector{};
      sum[i][0] += factor * b0;
      sum[i][1] += factor * b1;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector*>(c + i * c_stride + v * kLanes) = sum[i][v];
}

inline void tile(int rows, int count, const uint8_t* places, const float* a, int stride,
                 const float* b, float* c, int c_stride, bool add) {
  switch (rows) {
    case 1: return tile<1>(count, places, a, stride, b, c, c_stride, add);
    case 2: return tile<2>(count, places, a, stride, b, c, c_stride, add);
    case 3: return tile<3>(count, places, a, stride, b, c, c_stride, add);
    case 4: return tile<4>(count, places, a, stride, b, c, c_stride, add);
    case 5: return tile<5>(count, places, a, stride, b, c, c_stride, add);
    case 6: return tile<6>(count, places, a, stride, b, c, c_stride, add);
    case 7: return tile<7>(count, places, a, stride, b, c, c_stride, add);
    default: return tile<8>(count, places, a, stride, b, c, c_stride, add);
  }
}

// One strip of C = or += A B for all rows, C row-major with `width` columns that count. A part of
// the strip stays in the first cache while all tiles use it. The sums go on from what is in C, so
// they are the same as without parts.
inline void strip_product(int rows, int depth, const float* a, const Columns& columns,
                          const float* b, float* c, int c_stride, int width, bool add) {
  float edge[kTile * kStrip];
  const uint8_t* places = columns.places.data();
  const int* counts = columns.counts.data();
  for (int k = 0; k < depth; k += kDepth, a += kDepth, b += size_t(kDepth) * kStrip, add = true)
    for (int i = 0; i < rows; i += kTile, places += kDepth, ++counts) {
      if (add && !*counts) continue;
      const int tall = std::min(kTile, rows - i);
      float* out = c + size_t(i) * c_stride;
      const float* left = a + size_t(i) * depth;
      if (width == kStrip) {
        tile(tall, *counts, places, left, depth, b, out, c_stride, add);
        continue;
      }
      if (add)
        for (int r = 0; r < tall; ++r)
          std::memcpy(edge + r * kStrip, out + r * c_stride, width * sizeof(float));
      tile(tall, *counts, places, left, depth, b, edge, kStrip, add);
      for (int r = 0; r < tall; ++r)
        std::memcpy(out + r * c_stride, edge + r * kStrip, width * sizeof(float));
    }
}

// C (rows, b.columns) = or += A (rows, b.depth) B, all row-major and dense.
inline void product(int rows, const float* a, const Packed& b, float* c, bool add) {
  static thread_local Columns columns;
  columns.find(rows, b.depth, a);
  for (int s = 0; s < strips(b.columns); ++s)
    strip_product(rows, b.depth, a, columns, b.strip(s), c + s * kStrip, b.columns,
                  std::min(kStrip, b.columns - s * kStrip), add);
}

}  // namespace glimpse
