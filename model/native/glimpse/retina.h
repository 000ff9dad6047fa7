// Patches of several scales around a place, averaged down to one size: as in model/layers/retina.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace glimpse {

struct Retina {
  int patch, channels, height, width;
  float pad;                 // what surrounds the image
  std::vector<int> windows;  // edges in pixels of what one value of each scale is the mean of

  // What is seen of an image (C, H, W) at (x, y) in [-1, 1], by scale, channel, row and column.
  void look(const float* image, float x, float y, float* to) const {
    const int column = centre(x, width), row = centre(y, height);
    for (int window : windows)
      for (int channel = 0; channel < channels; ++channel, to += patch * patch)
        one(image + size_t(channel) * height * width, column, row, window, to);
  }

 private:
  static int centre(float place, int length) {
    const float pixel = (place + 1.f) * (0.5f * length);
    return int(std::floor(std::min(std::max(pixel, 0.f), float(length))));
  }

  void one(const float* image, int x, int y, int window, float* to) const {
    const int size = patch * window, left = x - size / 2, top = y - size / 2;
    const int from = std::min(std::max(-left, 0), size);  // columns inside of the image
    const int until = std::max(std::min(width - left, size), from);
    const float share = 1.f / (window * window);
    std::vector<float> sums(size);
    for (int i = 0; i < patch; ++i, to += patch) {
      std::fill(sums.begin(), sums.end(), 0.f);
      for (int line = top + i * window; line < top + (i + 1) * window; ++line)
        add_line(image, line, left, from, until, &sums);
      if (window == 1) {
        std::memcpy(to, sums.data(), patch * sizeof(float));
        continue;
      }
      for (int j = 0; j < patch; ++j) {
        float sum = 0;
        for (int k = 0; k < window; ++k) sum += sums[j * window + k];
        to[j] = sum * share;
      }
    }
  }

  void add_line(const float* image, int line, int left, int from, int until,
                std::vector<float>* sums) const {
    const int size = sums->size();
    float* sum = sums->data();
    if (line < 0 || line >= height) {
      for (int j = 0; j < size; ++j) sum[j] += pad;
      return;
    }
    const float* pixels = image + size_t(line) * width;
    for (int j = 0; j < from; ++j) sum[j] += pad;
    for (int j = from; j < until; ++j) sum[j] += pixels[left + j];
    for (int j = until; j < size; ++j) sum[j] += pad;
  }
};

}  // namespace glimpse
