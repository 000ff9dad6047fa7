// Gradients of the weights and biases of linear layers, each as one product over all rows.
#pragma once

#include <utility>
#include <vector>

#include "matmul.h"

namespace glimpse {

struct LayerGradient {
  int width, depth;            // of the layer: results and inputs per row
  const float *result, *input;  // gradients of its results (rows, width); its inputs (rows, depth)
  int rows;
  const float* bias_result;  // as `result`, with the rows whose input was zero
  int bias_rows;
  float *weight, *bias;  // (width, depth) and (width,), written
};

// A matrix (rows, columns) by tiles of kTile rows: the columns that are not zero in all of them, and
// for each its kTile numbers, zeros below the last row. Tile `t` is [starts[t], starts[t + 1]).
struct Sparse {
  std::vector<int> starts, columns;
  Floats values;

  void pack(const float* from, int rows, int width) {
    starts.assign(1, 0);
    columns.clear();
    values.clear();
    for (int i = 0; i < rows; i += kTile) {
      const float* a = from + size_t(i) * width;
      const int tall = std::min(kTile, rows - i);
      each_nonzero(a, tall, width, width, [&](int k) { columns.push_back(k); });
      const int first = starts.back(), count = columns.size() - first;
      values.resize((size_t(first) + count) * kTile);
      float* to = &values[size_t(first) * kTile];
      for (int n = 0; n < count; ++n, to += kTile)
        for (int r = 0; r < kTile; ++r)
          to[r] = r < tall ? a[size_t(r) * width + columns[first + n]] : 0;
      starts.push_back(columns.size());
    }
  }
};

inline void bias_gradient(const LayerGradient& layer) {
  std::fill(layer.bias, layer.bias + layer.width, 0.f);
  const float* row = layer.bias_result;
  for (int k = 0; k < layer.bias_rows; ++k, row += layer.width)
    for (int j = 0; j < layer.width; ++j) layer.bias[j] += row[j];
}

// sums (width, kStrip) += the product of a tile of `left`, transposed, and kTile rows of a strip.
inline void add_tile(const Sparse& left, int tile, const float* strip, int stride, float* sums) {
  Vector x[kTile][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      x[i][v] = *reinterpret_cast<const Vector*>(strip + i * stride + v * kLanes);
  const float* values = &left.values[size_t(left.starts[tile]) * kTile];
  for (int n = left.starts[tile]; n < left.starts[tile + 1]; ++n, values += kTile) {
    Vector* sum = reinterpret_cast<Vector*>(sums + size_t(left.columns[n]) * kStrip);
    Vector sum0 = sum[0], sum1 = sum[1];
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) {
      const Vector factor = values[i] - Vector{};
      sum0 += factor * x[i][0];
      sum1 += factor * x[i][1];
    }
    sum[0] = sum0;
    sum[1] = sum1;
  }
}

// Columns [column, column + kStrip) of a layer's gradient.
inline void weight_strip(const LayerGradient& layer, const Sparse& left, int column) {
  const int width = std::min(kStrip, layer.depth - column);
  float edge[kTile * kStrip] = {};
  static thread_local Floats sums;
  sums.assign(size_t(layer.width) * kStrip, 0.f);
  for (int i = 0, t = 0; i < layer.rows; i += kTile, ++t) {
    if (left.starts[t] == left.starts[t + 1]) continue;
    const float* strip = layer.input + size_t(i) * layer.depth + column;
    const int tall = std::min(kTile, layer.rows - i);
    if (width == kStrip && tall == kTile) {
      add_tile(left, t, strip, layer.depth, sums.data());
      continue;
    }
    for (int r = 0; r < kTile; ++r)  // rows below the last count for nothing, but must be finite
      if (r < tall) std::memcpy(edge + r * kStrip, strip + size_t(r) * layer.depth, width * sizeof(float));
      else std::memset(edge + r * kStrip, 0, kStrip * sizeof(float));
    add_tile(left, t, edge, kStrip, sums.data());
  }
  for (int i = 0; i < layer.width; ++i)
    std::memcpy(layer.weight + size_t(i) * layer.depth + column, &sums[size_t(i) * kStrip],
                width * sizeof(float));
}

// `left` is memory to work in. A strip is summed by one thread, in the same order for any number.
inline void weight_gradients(const std::vector<LayerGradient>& layers, std::vector<Sparse>* left) {
  const int count = layers.size();
  left->resize(count);
  std::vector<std::pair<int, int>> jobs;
  for (int i = 0; i < count; ++i)
    for (int column = 0; column < layers[i].depth; column += kStrip) jobs.emplace_back(i, column);
  const int all = jobs.size();
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (int i = 0; i < count; ++i) {
      (*left)[i].pack(layers[i].result, layers[i].rows, layers[i].width);
      bias_gradient(layers[i]);
    }
#pragma omp for schedule(dynamic)
    for (int job = 0; job < all; ++job)
      weight_strip(layers[jobs[job].first], (*left)[jobs[job].first], jobs[job].second);
  }
}

}  // namespace glimpse
