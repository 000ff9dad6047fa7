// Gradients of the weights and biases of linear layers, each as one product over all rows.
#pragma once

#include <utility>
#include <vector>

#include "matmul.h"

namespace glimpse {

constexpr int kStrips = 4;  // that share a tile while it is in the first cache

struct LayerGradient {
  int width, depth;            // of the layer: results and inputs per row
  const float *result, *input;  // gradients of its results (rows, width); its inputs (rows, depth)
  int rows;
  const float* bias_result;  // as `result`, with the rows whose input was zero
  int bias_rows;
  float *weight, *bias;  // (width, depth) and (width,), written
};

inline void bias_gradient(const LayerGradient& layer) {
  std::fill(layer.bias, layer.bias + layer.width, 0.f);
  const float* row = layer.bias_result;
  for (int k = 0; k < layer.bias_rows; ++k, row += layer.width)
    for (int j = 0; j < layer.width; ++j) layer.bias[j] += row[j];
}

// Columns [column, column + kStrips * kStrip) of a layer's gradient. A part of the rows is summed at
// a time: a tile of `left` stays in the first cache for all strips, and the strips in the second.
inline void weight_strips(const LayerGradient& layer, const Floats& left, int column) {
  const int strips = std::min(kStrips, (layer.depth - column + kStrip - 1) / kStrip);
  const size_t size = size_t(kDepth) * kStrip;
  Floats strip(size * strips);
  for (int row = 0; row == 0 || row < layer.rows; row += kDepth) {  // no rows: zeros
    const int rows = std::min(kDepth, layer.rows - row);
    const float* from = layer.input + size_t(row) * layer.depth + column;
    for (int s = 0; s < strips; ++s)
      pack_strip(from + s * kStrip, layer.depth, rows,
                 std::min(kStrip, layer.depth - column - s * kStrip), &strip[s * size]);
    const float* a = left.data() + size_t(row) * kTile;
    for (int i = 0; i < layer.width; i += kTile, a += size_t(layer.rows) * kTile)
      for (int s = 0; s < strips; ++s) {
        const int first = column + s * kStrip;
        strip_product(std::min(kTile, layer.width - i), rows, a, 1, kTile, 0, &strip[s * size],
                      layer.weight + size_t(i) * layer.depth + first, layer.depth,
                      std::min(kStrip, layer.depth - first), row > 0);
      }
  }
}

// `left` is memory to work in. A strip is summed by one thread, in the same order for any number.
inline void weight_gradients(const std::vector<LayerGradient>& layers, std::vector<Floats>* left) {
  const int count = layers.size();
  left->resize(count);
  std::vector<std::pair<int, int>> jobs;
  for (int i = 0; i < count; ++i)
    for (int column = 0; column < layers[i].depth; column += kStrips * kStrip)
      jobs.emplace_back(i, column);
  const int all = jobs.size();
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (int i = 0; i < count; ++i) {
      pack_left(layers[i].result, layers[i].rows, layers[i].width, &(*left)[i]);
      bias_gradient(layers[i]);
    }
#pragma omp for schedule(dynamic)
    for (int job = 0; job < all; ++job)
      weight_strips(layers[jobs[job].first], (*left)[jobs[job].first], jobs[job].second);
  }
}

}  // namespace glimpse
