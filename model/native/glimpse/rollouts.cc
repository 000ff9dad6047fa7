// All glimpses of a batch and their gradients as one operator of MXNet: `glimpse_rollouts`.
//
// The same formulas as model/recurrent_attention.py, which says where they are from; that graph is
// what runs without this file, and what is exported. Here nothing is called between two small
// products, activations stay in the caches, the gradient of a layer's weights is one product over
// all glimpses, and a thread works on its own images from the first glimpse to the last.
#include <algorithm>
#include <cmath>
#include <locale>
#include <sstream>
#include <string>

#include "gradients.h"
#include "mxnet/lib_api.h"
#include "retina.h"

using namespace mxnet::ext;  // NOLINT: as MXNet's own examples do
using glimpse::Floats;
using glimpse::Packed;
using glimpse::Sparse;

namespace {

typedef std::unordered_map<std::string, std::string> Attributes;

enum Input { kImage, kFirst, kNoise, kWeights };
// Layers in the order of their weight and bias after kWeights; the last where there is one.
enum Layer { kFc1, kFc2, kFc3, kFc4, kI2h, kH2h, kLocator, kLocatorOut, kLayers };
enum Output { kHidden, kMeans, kSamples, kLocations, kOutputs };

int number(const Attributes& attributes, const char* name) {
  return std::stoi(attributes.at(name));
}

int layer_count(const Attributes& attributes) {
  return number(attributes, "two_layers") ? kLayers : kLayers - 1;
}

template <typename Body>
void over_rows(int rows, const Body& body) {
  // Few rows are shared out finely. With many, a layer's weights are read once for more of them.
  constexpr int kFew = 32, kMany = 128;
  static_assert(kFew % glimpse::kTile == 0 && kMany % glimpse::kTile == 0, "whole tiles");
  const int kChunk = rows > 8 * kMany ? kMany : kFew;
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int chunk = 0; chunk < (rows + kChunk - 1) / kChunk; ++chunk)
      body(chunk * kChunk, std::min(rows, (chunk + 1) * kChunk));
  }
}

void relu(float* x, size_t count) {
  for (size_t i = 0; i < count; ++i) x[i] = x[i] > 0 ? x[i] : 0;
}

class Rollouts : public CustomStatefulOp {
 public:
  explicit Rollouts(const Attributes& a)
      : glimpses_(number(a, "num_glimpses")), octaves_(number(a, "octaves")),
        multiply_(number(a, "multiply")), tanh_(number(a, "tanh")),
        to_core_(number(a, "reinforce_to_core")), layers_(layer_count(a)) {
    retina_.patch = number(a, "patch_size");
    std::istringstream pad(a.at("pad_value"));
    pad.imbue(std::locale::classic());  // std::stof would follow the locale of the process
    pad >> retina_.pad;
    std::istringstream windows(a.at("windows"));  // as in 1x2x4
    for (std::string window; std::getline(windows, window, 'x');)
      retina_.windows.push_back(std::stoi(window));
  }

  MXReturnValue Forward(std::vector<MXTensor>* in, std::vector<MXTensor>* out,
                        const OpResource&) override {
    read_shapes(*in);
    allocate();
    for (int layer = 0; layer < layers_; ++layer)
      glimpse::pack_transposed(weight(in, layer), bias(in, layer), depth_[layer], width_[layer],
                               &forward_[layer]);
    const int images = in->at(kImage).shape[0];
    const size_t pixels = in->at(kImage).size() / std::max(images, 1);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < images; ++i)
      retina_.means(in->at(kImage).data<float>() + i * pixels, &means_[i * retina_.means_size()]);
    over_rows(rows_, [&](int begin, int end) { run(in, out, begin, end); });
    return MX_SUCCESS;
  }

  MXReturnValue Backward(std::vector<MXTensor>* in, std::vector<MXTensor>* out,
                         const OpResource&) override {
    allocate_gradients();
    // Gradients of the outputs, then the inputs, then the outputs.
    const float* hidden = in->at(kHidden).data<float>();
    const float* means = in->at(kMeans).data<float>();
    std::vector<MXTensor> inputs(in->begin() + kOutputs, in->end() - kOutputs);
    const float* mean = (in->end() - kOutputs + kMeans)->data<float>();
    for (int layer : {int(kFc3), int(kFc4), int(kI2h), int(kH2h), int(kLocator), layers_ - 1})
      glimpse::pack(weight(&inputs, layer), width_[layer], depth_[layer], &backward_[layer]);
    over_rows(rows_, [&](int begin, int end) { back(hidden, means, mean, begin, end); });
    weight_gradients(out);
    return MX_SUCCESS;
  }

 private:
  static float* weight(std::vector<MXTensor>* in, int layer) {
    return in->at(kWeights + 2 * layer).data<float>();
  }
  static float* bias(std::vector<MXTensor>* in, int layer) {
    return in->at(kWeights + 2 * layer + 1).data<float>();
  }

  void read_shapes(const std::vector<MXTensor>& in) {
    const auto& image = in[kImage].shape;
    retina_.channels = image[1];
    retina_.height = image[2];
    retina_.width = image[3];
    rollouts_ = in[kFirst].shape[1];
    rows_ = image[0] * rollouts_;
    for (int layer = 0; layer < layers_; ++layer) {
      width_[layer] = in[kWeights + 2 * layer].shape[0];
      depth_[layer] = in[kWeights + 2 * layer].shape[1];
    }
  }

  void allocate() {
    const size_t all = size_t(glimpses_) * rows_;
    means_.resize(retina_.means_size() * (rows_ / rollouts_));
    seen_.resize(all * depth_[kFc1]);
    features_.resize(all * depth_[kFc2]);
    what_.resize(all * width_[kFc1]);
    where_.resize(all * width_[kFc2]);
    glimpse_.resize(all * width_[kFc3]);
    if (multiply_) {
      what_out_.resize(glimpse_.size());
      where_out_.resize(glimpse_.size());
    }
    core_.resize(all * width_[kI2h]);
    located_.resize(all * width_[kLocator]);
  }

  size_t at(int step, int row) const { return size_t(step) * rows_ + row; }

  // Memory to work in of one chunk of rows: left factors, the state's among them.
  struct Work {
    Sparse state, other;
    Floats mean, hidden;
  };

  // y (count, width) = or += x W + b.
  void linear(int layer, int count, const float* x, float* y, int how, Work* work) const {
    work->other.resize(glimpse::tiles(count), depth_[layer]);
    work->other.pack(0, count, {x});
    glimpse::product(work->other, 0, count, forward_[layer], y, how);
  }

  // Forward for the rows [begin, end).
  void run(std::vector<MXTensor>* in, std::vector<MXTensor>* out, int begin, int end) {
    static thread_local Work work;
    const int count = end - begin, width = width_[kI2h];
    work.state.resize(glimpse::tiles(count), width);
    for (int step = 0; step < glimpses_; ++step) {
      locate(in, out, step, begin, end, &work);
      for (int row = begin; row < end; ++row) look(*out, step, row);
      linear(kFc1, count, &seen_[at(step, begin) * depth_[kFc1]],
             &what_[at(step, begin) * width_[kFc1]], glimpse::kRelu, &work);
      linear(kFc2, count, &features_[at(step, begin) * depth_[kFc2]],
             &where_[at(step, begin) * width_[kFc2]], glimpse::kRelu, &work);
      combine(step, begin, count, &work);
      float* core = &core_[at(step, begin) * width];
      linear(kI2h, count, &glimpse_[at(step, begin) * width_[kFc3]], core, glimpse::kNew, &work);
      if (!step) std::fill(work.state.counts.begin(), work.state.counts.end(), 0);
      glimpse::product(work.state, 0, count, forward_[kH2h], core, glimpse::kAdd | glimpse::kRelu);
      work.state.pack(0, count, {core});
      float* hidden = out->at(kHidden).data<float>();
      for (int row = 0; row < count; ++row)
        std::memcpy(hidden + (size_t(begin + row) * glimpses_ + step) * width,
                    core + size_t(row) * width, width * sizeof(float));
    }
  }

  void combine(int step, int begin, int count, Work* work) {
    const size_t place = at(step, begin) * width_[kFc3], size = size_t(count) * width_[kFc3];
    const float* what = &what_[at(step, begin) * width_[kFc1]];
    const float* where = &where_[at(step, begin) * width_[kFc2]];
    float* both = &glimpse_[place];
    if (multiply_) {
      linear(kFc3, count, what, &what_out_[place], glimpse::kNew, work);
      linear(kFc4, count, where, &where_out_[place], glimpse::kNew, work);
      for (size_t i = 0; i < size; ++i) both[i] = what_out_[place + i] * where_out_[place + i];
      relu(both, size);
    } else {
      linear(kFc3, count, what, both, glimpse::kNew, work);
      linear(kFc4, count, where, both, glimpse::kAdd | glimpse::kRelu, work);
    }
  }

  // Means, samples and locations of one step.
  void locate(std::vector<MXTensor>* in, std::vector<MXTensor>* out, int step, int begin, int end,
              Work* work) {
    const int count = end - begin;
    Floats& mean = work->mean;
    mean.resize(size_t(count) * 2);
    if (step) {
      const bool two = layers_ == kLayers;
      float* y = two ? &located_[at(step - 1, begin) * width_[kLocator]] : mean.data();
      glimpse::product(work->state, 0, count, forward_[kLocator], y,
                       two ? glimpse::kRelu : glimpse::kNew);
      if (two) linear(kLocatorOut, count, y, mean.data(), glimpse::kNew, work);
      for (float& value : mean) value = std::tanh(value);
    }
    for (int row = begin; row < end; ++row)
      for (int axis = 0; axis < 2; ++axis) {
        const size_t place = (size_t(row) * glimpses_ + step) * 2 + axis;
        const float first = in->at(kFirst).data<float>()[size_t(row) * 2 + axis];
        const float value = step ? mean[size_t(row - begin) * 2 + axis] : first;
        const float sample = step ? value + in->at(kNoise).data<float>()[place] : first;
        const float inside = tanh_ ? std::tanh(sample) : std::min(std::max(sample, -1.f), 1.f);
        out->at(kMeans).data<float>()[place] = value;
        out->at(kSamples).data<float>()[place] = sample;
        out->at(kLocations).data<float>()[place] = step ? inside : first;
      }
  }

  // What one row sees, and the features of where it looks.
  void look(const std::vector<MXTensor>& out, int step, int row) {
    const float* place = static_cast<const float*>(out[kLocations].data_ptr) +
                         (size_t(row) * glimpses_ + step) * 2;
    float* features = &features_[at(step, row) * depth_[kFc2]];
    features[0] = place[0];
    features[1] = place[1];
    for (int octave = 0; octave < octaves_; ++octave)
      for (int axis = 0; axis < 2; ++axis) {
        const float angle = place[axis] * float(std::ldexp(M_PI, octave));
        features[2 + 4 * octave + axis] = std::sin(angle);
        features[4 + 4 * octave + axis] = std::cos(angle);
      }
    const float* means = &means_[row / rollouts_ * retina_.means_size()];
    retina_.look(means, place[0], place[1], &seen_[at(step, row) * depth_[kFc1]]);
  }

  // Backward for the rows [begin, end): gradients of all layers' results.
  void back(const float* hidden, const float* means, const float* mean, int begin, int end) {
    static thread_local Floats carry, d, g;
    const int count = end - begin, width = width_[kI2h];
    const auto left = [&](int layer, int step, const glimpse::Rows& rows) {
      grad_[layer].pack(tile_at(step, begin), count, rows);
    };
    const auto product = [&](int layer, int through, int step, float* to, int how) {
      glimpse::product(grad_[layer], tile_at(step, begin), count, backward_[through], to, how);
    };
    const auto resized = [&](Floats* to, int columns) {
      to->resize(size_t(count) * columns);
      return to->data();
    };
    carry.assign(size_t(count) * width, 0.f);
    resized(&d, width);
    for (int step = glimpses_ - 1; step >= 0; --step) {
      for (int i = 0; i < count; ++i) {
        const float* given = hidden + (size_t(begin + i) * glimpses_ + step) * width;
        for (int j = 0; j < width; ++j)
          d[size_t(i) * width + j] = given[j] + carry[size_t(i) * width + j];
      }
      if (step < glimpses_ - 1) {  // the location after this step
        float* y = resized(&g, 2);
        for (int i = 0; i < count * 2; ++i) {
          const size_t place = (size_t(begin + i / 2) * glimpses_ + step + 1) * 2 + i % 2;
          y[i] = means[place] * (1 - mean[place] * mean[place]);
        }
        left(layers_ - 1, step, {y});
        if (layers_ == kLayers) {
          product(kLocatorOut, kLocatorOut, step, resized(&g, width_[kLocator]), glimpse::kNew);
          left(kLocator, step, {g.data(), &located_[at(step, begin) * width_[kLocator]]});
        }
        if (to_core_) product(kLocator, kLocator, step, d.data(), glimpse::kAdd);
      }
      left(kI2h, step, {d.data(), &core_[at(step, begin) * width]});
      if (step) product(kI2h, kH2h, step, carry.data(), glimpse::kNew);

      product(kI2h, kI2h, step, resized(&g, width_[kFc3]), glimpse::kNew);
      const size_t place = at(step, begin) * width_[kFc3];
      const float* seen = &glimpse_[place];
      left(kFc3, step, {g.data(), seen, multiply_ ? &where_out_[place] : nullptr});
      if (multiply_) left(kFc4, step, {g.data(), seen, &what_out_[place]});
      product(kFc3, kFc3, step, resized(&g, width_[kFc1]), glimpse::kNew);
      left(kFc1, step, {g.data(), &what_[at(step, begin) * width_[kFc1]]});
      product(of(kFc4), kFc4, step, resized(&g, width_[kFc2]), glimpse::kNew);
      left(kFc2, step, {g.data(), &where_[at(step, begin) * width_[kFc2]]});
    }
  }

  // The layer whose results have the same gradients as those of `layer`: what is added shares one.
  int of(int layer) const {
    if (layer == kH2h) return kI2h;
    return layer == kFc4 && !multiply_ ? kFc3 : layer;
  }

  int tile_at(int step, int row) const {
    return step * glimpse::tiles(rows_) + row / glimpse::kTile;
  }

  void allocate_gradients() {
    for (int layer = 0; layer < layers_; ++layer)
      if (of(layer) == layer)
        grad_[layer].resize(glimpses_ * glimpse::tiles(rows_), width_[layer]);
  }

  void weight_gradients(std::vector<MXTensor>* out) {
    const Floats* inputs[kLayers] = {&seen_,    &features_, &what_, &where_,
                                     &glimpse_, &core_,     &core_, &located_};
    std::vector<glimpse::LayerGradient> layers;
    for (int layer = 0; layer < layers_; ++layer)
      // There is no state before the first glimpse, and no choice after the last.
      layers.push_back({rows_, layer < kLocator ? glimpses_ : glimpses_ - 1, width_[layer],
                        depth_[layer], &grad_[of(layer)], inputs[layer]->data(), layer == kH2h,
                        weight(out, layer), bias(out, layer)});
    glimpse::weight_gradients(layers);
  }

  const int glimpses_, octaves_, multiply_, tanh_, to_core_, layers_;
  glimpse::Retina retina_;
  int rollouts_ = 0, rows_ = 0;
  int width_[kLayers] = {}, depth_[kLayers] = {};
  Packed forward_[kLayers], backward_[kLayers];
  Sparse grad_[kLayers];  // of the results of layers, by tiles of the rows of a step
  Floats means_;  // over the windows of every image
  // Of every glimpse, (T, M, n).
  Floats seen_, features_, what_, where_, what_out_, where_out_, glimpse_, core_, located_;
};

MXReturnValue parse(const Attributes& attributes, int* inputs, int* outputs) {
  *inputs = kWeights + 2 * layer_count(attributes);
  *outputs = kOutputs;
  return MX_SUCCESS;
}

MXReturnValue infer_type(const Attributes&, std::vector<int>* in, std::vector<int>* out) {
  for (int& type : *in) type = kFloat32;
  for (int& type : *out) type = kFloat32;
  return MX_SUCCESS;
}

// Whether the inputs belong together; nothing else looks at it before memory is read by their sizes.
bool fit(const Attributes& a, const std::vector<std::vector<unsigned int>>& in) {
  const auto &image = in[kImage], &first = in[kFirst], &noise = in[kNoise];
  if (noise.size() != 4 || first.size() != 3 || image.size() != 4) return false;
  const std::string& windows = a.at("windows");
  const unsigned scales = 1 + std::count(windows.begin(), windows.end(), 'x');
  const unsigned patch = number(a, "patch_size"), steps = number(a, "num_glimpses");
  const auto& sensor = in[kWeights + 2 * kFc1];
  return noise[2] == steps && noise[3] == 2 && first[2] == 2 && first[0] == noise[0] &&
         first[1] == noise[1] && image[0] == noise[0] && sensor.size() == 2 &&
         sensor[1] == scales * image[1] * patch * patch;
}

MXReturnValue infer_shape(const Attributes& attributes, std::vector<std::vector<unsigned int>>* in,
                          std::vector<std::vector<unsigned int>>* out) {
  const auto& noise = in->at(kNoise);
  if (!fit(attributes, *in)) {
    MX_ERROR_MSG << "glimpse_rollouts needs images (B, C, H, W), first locations (B, R, 2) and noise "
                    "(B, R, T, 2) that are made for each other and for its network";
    return MX_FAIL;
  }
  const unsigned int rows = noise[0] * noise[1], hidden = in->at(kWeights + 2 * kI2h)[0];
  out->at(kHidden) = {rows, noise[2], hidden};
  for (int i : {int(kMeans), int(kSamples), int(kLocations)}) out->at(i) = {rows, noise[2], 2};
  return MX_SUCCESS;
}

MXReturnValue create(const Attributes& attributes, const MXContext&,
                     const std::vector<std::vector<unsigned int>>&, const std::vector<int>,
                     CustomStatefulOp** op) {
  *op = CustomStatefulOp::create<Rollouts>(attributes);
  return MX_SUCCESS;
}

}  // namespace

REGISTER_OP(glimpse_rollouts)
    .setParseAttrs(parse)
    .setInferType(infer_type)
    .setInferShape(infer_shape)
    .setCreateOpState(create, "cpu");

__attribute__((visibility("default"))) MXReturnValue initialize(int version) {
  if (version >= 10700) return MX_SUCCESS;
  MX_ERROR_MSG << "MXNet 1.7 or later is needed";
  return MX_FAIL;
}
