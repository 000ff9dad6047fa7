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

inline void bias_gradient(const LayerGradient& layer) {
  std::fill(layer.bias, layer.bias + layer.width, 0.f);
  const float* row = layer.bias_result;
  for (int k = 0; k < layer.bias_rows; ++k, row += layer.width)
    for (int j = 0; j < layer.width; ++j) layer.bias[j] += row[j];
}

inline void weight_strip(const LayerGradient& layer, const Floats& left, int column) {
  const int width = std::min(kStrip, layer.depth - column);
  Floats strip(size_t(layer.rows) * kStrip);
  pack_strip(layer.input + column, layer.depth, layer.rows, width, strip.data());
  strip_product(layer.width, layer.rows, left.data(), 1, kTile, layer.rows * kTile, strip.data(),
                layer.weight + column, layer.depth, width, false);
}

// `left` is memory to work in. A strip is summed by one thread, in the same order for any number.
inline void weight_gradients(const std::vector<LayerGradient>& layers, std::vector<Floats>* left) {
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
      pack_left(layers[i].result, layers[i].rows, layers[i].width, &(*left)[i]);
      bias_gradient(layers[i]);
    }
#pragma omp for schedule(dynamic)
    for (int job = 0; job < all; ++job)
      weight_strip(layers[jobs[job].first], (*left)[jobs[job].first], jobs[job].second);
  }
}

}  // namespace glimpse
