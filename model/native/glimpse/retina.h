// Patches of several scales around a place, averaged down to one size: as in model/layers/retina.py.
//
// As there, the mean over every window that touches an image is computed once per image, which all
// glimpses and rollouts share: a number of a glimpse is then one load.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "matmul.h"

namespace glimpse {

struct Retina {
  int patch, channels, height, width;
  float pad;                 // what surrounds the image
  std::vector<int> windows;  // edges in pixels of what one value of each scale is the mean of

  // Numbers in the means of one image: by scale and channel (H + window, W + window).
  size_t means_size() const {
    size_t all = 0;
    for (int window : windows) all += channels * plane(window);
    return all;
  }

  // The means over all windows of an image (C, H, W); the last row and column of a plane are those
  // of windows that see only what surrounds it.
  void means(const float* image, float* to) const {
    Floats work;
    for (int window : windows)
      for (int channel = 0; channel < channels; ++channel, to += plane(window))
        one_plane(image + size_t(channel) * height * width, window, to, &work);
  }

  // What is seen at (x, y) in [-1, 1], by scale, channel, row and column, in the means of an image.
  void look(const float* means, float x, float y, float* to) const {
    const int column = centre(x, width), row = centre(y, height);
    std::vector<int> columns(patch);
    for (int window : windows) {
      const int first = window - 1 - patch * window / 2, stride = width + window;
      for (int j = 0; j < patch; ++j) columns[j] = place(column + first + j * window, stride);
      for (int channel = 0; channel < channels; ++channel, means += plane(window))
        for (int i = 0; i < patch; ++i, to += patch) {
          const float* line =
              means + size_t(place(row + first + i * window, height + window)) * stride;
          for (int j = 0; j < patch; ++j) to[j] = line[columns[j]];
        }
    }
  }

 private:
  size_t plane(int window) const { return size_t(height + window) * (width + window); }

  static int centre(float place, int length) {
    const float pixel = (place + 1.f) * (0.5f * length);
    return int(std::floor(std::min(std::max(pixel, 0.f), float(length))));
  }

  // Where a window is among `count`, the last of which is for all that lie outside.
  static int place(int index, int count) {
    return index < 0 || index >= count ? count - 1 : index;
  }

  void one_plane(const float* image, int window, float* to, Floats* work) const {
    const int across = width + window;
    const float share = 1.f / (window * window);
    if (window == 1) {
      for (int y = 0; y < height; ++y, image += width, to += across) {
        std::memcpy(to, image, width * sizeof(float));
        to[width] = pad;
      }
      std::fill(to, to + across, pad);
      return;
    }
    // Lines with what surrounds the image on both sides, and one beyond it, in whole vectors.
    const int wide = (across + window - 1 + 2 * kLanes - 1) / kLanes * kLanes;
    work->assign(size_t(height + 3) * wide, pad);
    float *outside = work->data(), *lines = outside + wide, *sums = lines + size_t(height) * wide;
    for (int y = 0; y < height; ++y)
      std::memcpy(lines + size_t(y) * wide + window - 1, image + size_t(y) * width,
                  width * sizeof(float));
    for (int y = 0; y < height + window; ++y, to += across) {
      for (int x = 0; x < wide; x += kLanes) {
        Vector sum = {};
        for (int line = y - window + 1; line <= y; ++line) {
          const bool inside = line >= 0 && line < height;
          sum += load((inside ? lines + size_t(line) * wide : outside) + x, kLanes);
        }
        *reinterpret_cast<Vector*>(sums + x) = sum;
      }
      for (int x = 0; x < across; x += kLanes) {
        Vector sum = {};
        for (int k = 0; k < window; ++k) sum += load(sums + x + k, kLanes);
        *reinterpret_cast<Vector*>(sums + wide + x) = sum * share;
      }
      std::memcpy(to, sums + wide, across * sizeof(float));
    }
  }
};

}  // namespace glimpse
