// Patches of several scales around a place, averaged down to one size: as in model/layers/retina.py.
//
// As there, the mean over every window that touches an image is computed once per image, which all
// glimpses and rollouts share: a number of a glimpse is then one load.
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

  // Numbers in the means of one image: by scale and channel (H + window, W + window).
  size_t means_size() const {
    size_t all = 0;
    for (int window : windows) all += channels * plane(window);
    return all;
  }

  // The means over all windows of an image (C, H, W); the last row and column of a plane are those
  // of windows that see only what surrounds it.
  void means(const float* image, float* to) const {
    std::vector<float> sums;
    for (int window : windows)
      for (int channel = 0; channel < channels; ++channel, to += plane(window))
        one_plane(image + size_t(channel) * height * width, window, to, &sums);
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

  void one_plane(const float* image, int window, float* to, std::vector<float>* sums) const {
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
    // Sums of `window` lines, with what surrounds the image on both sides, then of neighbours.
    sums->resize(width + 2 * window - 1);
    float *sum = sums->data(), *middle = sum + window - 1, *end = sum + sums->size();
    for (int y = 0; y < height + window; ++y, to += across) {
      std::fill(sum, end, 0.f);
      for (int line = y - window + 1; line <= y; ++line) {
        const bool inside = line >= 0 && line < height;
        for (float* x = sum; x < (inside ? middle : end); ++x) *x += pad;
        if (!inside) continue;
        const float* pixels = image + size_t(line) * width;
        for (int x = 0; x < width; ++x) middle[x] += pixels[x];
        for (float* x = middle + width; x < end; ++x) *x += pad;
      }
      std::fill(to, to + across, 0.f);
      for (int k = 0; k < window; ++k)
        for (int x = 0; x < across; ++x) to[x] += sum[x + k];
      for (int x = 0; x < across; ++x) to[x] *= share;
    }
  }
};

}  // namespace glimpse
