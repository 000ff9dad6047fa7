// Products of small float32 matrices on one thread: packed strips and one register tile.
//
// With 128 to 1000 rows and a few hundred columns everything fits the second cache, so that there is
// no blocking beyond strips of kStrip columns. Every sum is made in one fixed order, whatever the
// number of threads or the place of a row in its matrix.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

namespace glimpse {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTile = 8;
#else
constexpr int kLanes = 8, kTile = 6;
#endif
constexpr int kVectors = 2, kStrip = kLanes * kVectors;
constexpr int kDepth = 128;  // rows of a strip at a time: 16 KiB with vectors of 64 bytes
typedef float Vector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
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

// C (rows, kStrip) = or += A B: A(i, k) = a[i * row_step + k * depth_step], B one strip.
template <int rows>
inline void tile(int depth, const float* a, int row_step, int depth_step, const float* b, float* c,
                 int c_stride, bool add) {
  Vector sum[rows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = add ? *reinterpret_cast<const Vector*>(c + i * c_stride + v * kLanes) : Vector{};
  for (int k = 0; k < depth; ++k, b += kStrip, a += depth_step) {
    const Vector b0 = *reinterpret_cast<const Vector*>(b);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Vector factor = a[i * row_step] - Vector{};
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

inline void tile(int rows, int depth, const float* a, int row_step, int depth_step, const float* b,
                 float* c, int c_stride, bool add) {
  switch (rows) {
    case 1: return tile<1>(depth, a, row_step, depth_step, b, c, c_stride, add);
    case 2: return tile<2>(depth, a, row_step, depth_step, b, c, c_stride, add);
    case 3: return tile<3>(depth, a, row_step, depth_step, b, c, c_stride, add);
    case 4: return tile<4>(depth, a, row_step, depth_step, b, c, c_stride, add);
    case 5: return tile<5>(depth, a, row_step, depth_step, b, c, c_stride, add);
    case 6: return tile<6>(depth, a, row_step, depth_step, b, c, c_stride, add);
    case 7: return tile<7>(depth, a, row_step, depth_step, b, c, c_stride, add);
    default: return tile<8>(depth, a, row_step, depth_step, b, c, c_stride, add);
  }
}

// One strip of C += A B for all rows, C row-major with `width` columns that count.
inline void strip_product(int rows, int depth, const float* a, int row_step, int depth_step,
                          int tile_step, const float* b, float* c, int c_stride, int width,
                          bool add) {
  // A part of the strip that stays in the first cache while all tiles use it. The sums go on from
  // what is in C, so they are the same as without parts.
  if (depth > kDepth) {
    for (int k = 0; k < depth; k += kDepth)
      strip_product(rows, std::min(kDepth, depth - k), a + size_t(k) * depth_step, row_step,
                    depth_step, tile_step, b + size_t(k) * kStrip, c, c_stride, width, add || k);
    return;
  }
  float edge[kTile * kStrip];
  for (int i = 0; i < rows; i += kTile, a += tile_step) {
    const int count = std::min(kTile, rows - i);
    float* out = c + size_t(i) * c_stride;
    if (width == kStrip) {
      tile(count, depth, a, row_step, depth_step, b, out, c_stride, add);
      continue;
    }
    if (add)
      for (int r = 0; r < count; ++r)
        std::memcpy(edge + r * kStrip, out + r * c_stride, width * sizeof(float));
    tile(count, depth, a, row_step, depth_step, b, edge, kStrip, add);
    for (int r = 0; r < count; ++r)
      std::memcpy(out + r * c_stride, edge + r * kStrip, width * sizeof(float));
  }
}

// C (rows, b.columns) = or += A (rows, b.depth) B, all row-major and dense.
inline void product(int rows, const float* a, const Packed& b, float* c, bool add) {
  for (int s = 0; s < strips(b.columns); ++s)
    strip_product(rows, b.depth, a, b.depth, 1, kTile * b.depth, b.strip(s), c + s * kStrip,
                  b.columns, std::min(kStrip, b.columns - s * kStrip), add);
}

// A row-major matrix (depth, columns) as a transposed left factor: tiles of kTile columns.
inline void pack_left(const float* from, int depth, int columns, Floats* to) {
  to->resize(size_t(tiles(columns)) * depth * kTile);
  float* out = to->data();
  for (int i = 0; i < columns; i += kTile) {
    const int width = std::min(kTile, columns - i);
    for (int k = 0; k < depth; ++k, out += kTile)
      for (int j = 0; j < kTile; ++j) out[j] = j < width ? from[size_t(k) * columns + i + j] : 0;
  }
}

}  // namespace glimpse
