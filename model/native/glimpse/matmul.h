// Products of small float32 matrices on one thread: packed strips, one register tile, no zeros.
//
// With 128 to 1000 rows and a few hundred columns everything fits the second cache, so that there is
// no blocking beyond strips of kStrip columns. Every sum is made in one fixed order, whatever the
// number of threads or the place of a row in its matrix.
//
// Left factors are activations behind a ReLU and their gradients. In a trained network most of them
// are zeros, often of the same unit for all rollouts of an image. What is zero in all rows of a tile
// is left out, which changes no bit of a sum of finite numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace glimpse {

// Few rows in a tile, so that many columns are zero in all of them.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTile = 4;
#else
constexpr int kLanes = 8, kTile = 2;
#endif
constexpr int kVectors = 4;
constexpr int kStrip = kLanes * kVectors;
typedef float Vector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef std::vector<float> Floats;

inline int strips(int columns) { return (columns + kStrip - 1) / kStrip; }
inline int tiles(int rows) { return (rows + kTile - 1) / kTile; }

// A matrix as a right factor: `depth` rows in strips of kStrip columns, zeros beyond the last; and
// what is added to each row of a product, which may be nothing.
struct Packed {
  int depth = 0, columns = 0;
  Floats data, bias;

  void resize(int depth_, int columns_) {
    depth = depth_;
    columns = columns_;
    data.resize(size_t(strips(columns)) * depth * kStrip);
  }
  const float* strip(int s) const { return data.data() + size_t(s) * depth * kStrip; }
  float* strip(int s) { return data.data() + size_t(s) * depth * kStrip; }
};

// A row-major matrix (depth, columns).
inline void pack(const float* from, int depth, int columns, Packed* to) {
  to->resize(depth, columns);
  for (int s = 0; s < strips(columns); ++s) {
    const int width = std::min(kStrip, columns - s * kStrip);
    float* out = to->strip(s);
    for (int k = 0; k < depth; ++k, out += kStrip) {
      std::memcpy(out, from + size_t(k) * columns + s * kStrip, width * sizeof(float));
      std::memset(out + width, 0, (kStrip - width) * sizeof(float));
    }
  }
}

// The transpose of a row-major matrix (columns, depth), and a bias (columns,).
inline void pack_transposed(const float* from, const float* bias, int depth, int columns,
                            Packed* to) {
  to->resize(depth, columns);
  to->bias.assign(size_t(strips(columns)) * kStrip, 0.f);
  std::copy(bias, bias + columns, to->bias.begin());
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

// One bit for each lane that is not 0; -0 is 0 too.
inline uint32_t nonzero_lanes(Bits bits) {
  bits <<= 1;
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

inline Vector load(const float* from, int count) {
  if (count == kLanes) return *reinterpret_cast<const Vector*>(from);
  Vector some = {};
  std::memcpy(&some, from, count * sizeof(float));
  return some;
}

// Rows of a dense row-major matrix, times `factor` where there is one, and 0 where `active`, the
// ReLU behind which they are gradients, is not above 0. All three have the same shape.
struct Rows {
  const float *values, *active = nullptr, *factor = nullptr;

  Vector at(size_t place, int count) const {
    Vector found = load(values + place, count);
    if (factor) found *= load(factor + place, count);
    if (!active) return found;
    return Vector(Bits(found) & Bits(load(active + place, count) > Vector{}));
  }
};

// A matrix as a left factor, by tiles of kTile rows: of each the columns that are not zero in all of
// its rows, in order, and for each of them kTile numbers, zeros below the last row.
struct Sparse {
  int width = 0;
  std::vector<int> counts, columns;
  Floats values;

  void resize(int tiles, int width_) {
    width = width_;
    counts.resize(tiles);
    columns.resize(size_t(tiles) * width);
    values.resize(columns.size() * kTile);
  }
  const int* column(int tile) const { return &columns[size_t(tile) * width]; }
  const float* value(int tile) const { return &values[size_t(tile) * width * kTile]; }

  // Packs `rows` rows into the tiles from `tile` on.
  void pack(int tile, int rows, const Rows& from) {
    for (int i = 0; i < rows; i += kTile, ++tile) {
      int* column = &columns[size_t(tile) * width];
      float* value = &values[size_t(tile) * width * kTile];
      int count = 0;
      for (int k = 0; k < width; k += kLanes) {
        Vector block[kTile];
        Bits bits = {};
        for (int r = 0; r < kTile; ++r) {
          block[r] = i + r < rows
                         ? from.at(size_t(i + r) * width + k, std::min(kLanes, width - k))
                         : Vector{};
          bits |= Bits(block[r]);
        }
        const float* numbers = reinterpret_cast<const float*>(block);
        for (uint32_t mask = nonzero_lanes(bits); mask; mask &= mask - 1, ++count) {
          const int lane = __builtin_ctz(mask);
          column[count] = k + lane;
          for (int r = 0; r < kTile; ++r) value[count * kTile + r] = numbers[r * kLanes + lane];
        }
      }
      counts[tile] = count;
    }
  }
};

enum Sum { kNew = 0, kAdd = 1, kRelu = 2 };  // kAdd: to what is there; kRelu: of the result

// A tile of C (kTile, kStrip) from `count` columns of A and the rows of B that belong to them.
inline void tile(int count, const int* columns, const float* a, const float* b, const float* bias,
                 float* c, int stride, int how) {
  Vector sum[kTile][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vector before =
          how & kAdd ? *reinterpret_cast<const Vector*>(c + i * stride + v * kLanes) : Vector{};
      sum[i][v] = bias ? *reinterpret_cast<const Vector*>(bias + v * kLanes) + before : before;
    }
  for (int n = 0; n < count; ++n, a += kTile) {
    const Vector* right = reinterpret_cast<const Vector*>(b + size_t(columns[n]) * kStrip);
    Vector row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = right[v];
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) {
      const Vector factor = a[i] - Vector{};
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (how & kRelu) sum[i][v] = Vector(Bits(sum[i][v]) & Bits(sum[i][v] > Vector{}));
      *reinterpret_cast<Vector*>(c + i * stride + v * kLanes) = sum[i][v];
    }
}

// C (rows, b.columns), row-major and dense: A B + bias of B, where A are the tiles from `first` on.
inline void product(const Sparse& a, int first, int rows, const Packed& b, float* c, int how) {
  float edge[kTile * kStrip];
  for (int s = 0; s < strips(b.columns); ++s) {
    const float* bias = b.bias.empty() ? nullptr : &b.bias[size_t(s) * kStrip];
    const int width = std::min(kStrip, b.columns - s * kStrip);
    for (int i = 0, t = first; i < rows; i += kTile, ++t) {
      float* out = c + size_t(i) * b.columns + s * kStrip;
      const int tall = std::min(kTile, rows - i);
      if (width == kStrip && tall == kTile) {
        tile(a.counts[t], a.column(t), a.value(t), b.strip(s), bias, out, b.columns, how);
        continue;
      }
      if (how & kAdd)
        for (int r = 0; r < tall; ++r)
          std::memcpy(edge + r * kStrip, out + r * b.columns, width * sizeof(float));
      tile(a.counts[t], a.column(t), a.value(t), b.strip(s), bias, edge, kStrip, how);
      for (int r = 0; r < tall; ++r)
        std::memcpy(out + r * b.columns, edge + r * kStrip, width * sizeof(float));
    }
  }
}

}  // namespace glimpse
