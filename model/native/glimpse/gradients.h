// Gradients of the weights and biases of linear layers, each as one product over all rows.
#pragma once

#include <utility>
#include <vector>

#include "matmul.h"

namespace glimpse {

// Rows are those of `steps` steps with `rows` each; a tile has rows of one step only.
struct LayerGradient {
  int rows, steps, width, depth;  // of the layer: results and inputs per row
  const Sparse* result;           // gradients of its results, (steps, rows, width)
  const float* input;             // (steps, rows, depth) without the first `skipped` steps
  int skipped;                    // steps whose input is zero
  float *weight, *bias;           // (width, depth) and (width,), written
};

inline void bias_gradient(const LayerGradient& layer) {
  std::fill(layer.bias, layer.bias + layer.width, 0.f);
  for (int t = 0; t < layer.steps * tiles(layer.rows); ++t) {
    const int* column = layer.result->column(t);
    const float* value = layer.result->value(t);
    for (int n = 0; n < layer.result->counts[t]; ++n, value += kTile)
      for (int i = 0; i < kTile; ++i) layer.bias[column[n]] += value[i];
  }
}

// sums (width, kStrip) += a tile of the results' gradients, transposed, times a strip of its inputs.
inline void add_tile(int count, const int* columns, const float* values, const float* input,
                     int stride, float* sums) {
  Vector x[kTile][kVectors];
  Bits bits = {};
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      x[i][v] = *reinterpret_cast<const Vector*>(input + i * stride + v * kLanes);
      bits |= Bits(x[i][v]);
    }
  if (!nonzero_lanes(bits)) return;  // as where nothing but background is seen
  for (int n = 0; n < count; ++n, values += kTile) {
    Vector* kept = reinterpret_cast<Vector*>(sums + size_t(columns[n]) * kStrip);
    Vector sum[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] = kept[v];
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) {
      const Vector factor = values[i] - Vector{};
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[v] += factor * x[i][v];
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) kept[v] = sum[v];
  }
}

// Columns [column, column + kStrip) of a layer's gradient; `sums` is memory to work in.
inline void weight_strip(const LayerGradient& layer, int column, Floats* sums) {
  const int width = std::min(kStrip, layer.depth - column);
  const Sparse& result = *layer.result;
  float edge[kTile * kStrip];
  sums->assign(size_t(layer.width) * kStrip, 0.f);
  int t = layer.skipped * tiles(layer.rows);
  for (int step = layer.skipped; step < layer.steps; ++step)
    for (int i = 0; i < layer.rows; i += kTile, ++t) {
      if (!result.counts[t]) continue;
      const size_t row = size_t(step - layer.skipped) * layer.rows + i;
      const float* input = layer.input + row * layer.depth + column;
      const int tall = std::min(kTile, layer.rows - i);
      int stride = layer.depth;
      if (width < kStrip || tall < kTile) {  // what is beside must be finite
        std::fill(edge, edge + kTile * kStrip, 0.f);
        for (int r = 0; r < tall; ++r)
          std::memcpy(edge + r * kStrip, input + size_t(r) * stride, width * sizeof(float));
        input = edge;
        stride = kStrip;
      }
      add_tile(result.counts[t], result.column(t), result.value(t), input, stride, sums->data());
    }
  for (int i = 0; i < layer.width; ++i)
    std::memcpy(layer.weight + size_t(i) * layer.depth + column, sums->data() + size_t(i) * kStrip,
                width * sizeof(float));
}

// A strip is summed by one thread, in the same order for any number.
inline void weight_gradients(const std::vector<LayerGradient>& layers) {
  std::vector<std::pair<int, int>> jobs;  // a layer and a column; -1: its bias
  for (int i = 0; i < int(layers.size()); ++i) {
    for (int column = 0; column < layers[i].depth; column += kStrip) jobs.emplace_back(i, column);
    jobs.emplace_back(i, -1);
  }
  const int all = jobs.size();
#pragma omp parallel
  {
    Floats sums;
#pragma omp for schedule(dynamic)
    for (int job = 0; job < all; ++job) {
      const LayerGradient& layer = layers[jobs[job].first];
      if (jobs[job].second < 0)
        bias_gradient(layer);
      else
        weight_strip(layer, jobs[job].second, &sums);
    }
  }
}

}  // namespace glimpse
