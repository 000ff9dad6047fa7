// All glimpses of a batch and their gradients as one operator of MXNet: `glimpse_rollouts`.
//
// The same formulas as model/recurrent_attention.py, which says where they are from; that graph is
// what runs without this file, and what is exported. Here nothing is called between two small
// products, activations stay in the caches, the gradient of a layer's weights is one product over
// all glimpses, and a thread works on its own images from the first glimpse to the last.
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
  constexpr int kFew = 4 * glimpse::kTile, kMany = 16 * glimpse::kTile;
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

void mask(float* gradient, const float* activation, size_t count) {
  for (size_t i = 0; i < count; ++i) gradient[i] = activation[i] > 0 ? gradient[i] : 0;
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
      glimpse::pack_transposed(weight(in, layer), depth_[layer], width_[layer], &forward_[layer]);
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

  // y (count, width) = or += x W + b.
  void linear(std::vector<MXTensor>* in, int layer, int count, const float* x, float* y, bool add) {
    const float* bias = in->at(kWeights + 2 * layer + 1).data<float>();
    const int width = width_[layer];
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < width; ++j) y[size_t(i) * width + j] = bias[j] + (add ? y[size_t(i) * width + j] : 0);
    glimpse::product(count, x, forward_[layer], y, true);
  }

  // Forward for the rows [begin, end).
  void run(std::vector<MXTensor>* in, std::vector<MXTensor>* out, int begin, int end) {
    const int count = end - begin;
    for (int step = 0; step < glimpses_; ++step) {
      locate(in, out, step, begin, end);
      for (int row = begin; row < end; ++row) look(*out, step, row);
      float* what = &what_[at(step, begin) * width_[kFc1]];
      float* where = &where_[at(step, begin) * width_[kFc2]];
      linear(in, kFc1, count, &seen_[at(step, begin) * depth_[kFc1]], what, false);
      relu(what, size_t(count) * width_[kFc1]);
      linear(in, kFc2, count, &features_[at(step, begin) * depth_[kFc2]], where, false);
      relu(where, size_t(count) * width_[kFc2]);
      combine(in, step, begin, count);
      float* core = &core_[at(step, begin) * width_[kI2h]];
      linear(in, kI2h, count, &glimpse_[at(step, begin) * width_[kFc3]], core, false);
      if (step) {
        linear(in, kH2h, count, &core_[at(step - 1, begin) * width_[kI2h]], core, true);
      } else {  // a state of zeros
        const float* bias = in->at(kWeights + 2 * kH2h + 1).data<float>();
        for (int i = 0; i < count; ++i)
          for (int j = 0; j < width_[kI2h]; ++j) core[size_t(i) * width_[kI2h] + j] += bias[j];
      }
      relu(core, size_t(count) * width_[kI2h]);
      float* hidden = out->at(kHidden).data<float>();
      for (int row = begin; row < end; ++row)
        std::memcpy(hidden + (size_t(row) * glimpses_ + step) * width_[kI2h],
                    &core_[at(step, row) * width_[kI2h]], width_[kI2h] * sizeof(float));
    }
  }

  void combine(std::vector<MXTensor>* in, int step, int begin, int count) {
    const size_t place = at(step, begin) * width_[kFc3], size = size_t(count) * width_[kFc3];
    const float* what = &what_[at(step, begin) * width_[kFc1]];
    const float* where = &where_[at(step, begin) * width_[kFc2]];
    float* both = &glimpse_[place];
    if (multiply_) {
      linear(in, kFc3, count, what, &what_out_[place], false);
      linear(in, kFc4, count, where, &where_out_[place], false);
      for (size_t i = 0; i < size; ++i) both[i] = what_out_[place + i] * where_out_[place + i];
    } else {
      linear(in, kFc3, count, what, both, false);
      linear(in, kFc4, count, where, both, true);
    }
    relu(both, size);
  }

  // Means, samples and locations of one step.
  void locate(std::vector<MXTensor>* in, std::vector<MXTensor>* out, int step, int begin, int end) {
    const int count = end - begin, hidden = width_[kLocator];
    Floats mean(size_t(count) * 2);
    if (step) {
      const float* state = &core_[at(step - 1, begin) * width_[kI2h]];
      float* y = &located_[at(step - 1, begin) * hidden];
      linear(in, kLocator, count, state, y, false);
      if (layers_ == kLayers) {
        relu(y, size_t(count) * hidden);
        linear(in, kLocatorOut, count, y, mean.data(), false);
      } else {
        mean.assign(y, y + mean.size());
      }
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
        const float angle = place[axis] * float(M_PI * (1 << octave));
        features[2 + 4 * octave + axis] = std::sin(angle);
        features[4 + 4 * octave + axis] = std::cos(angle);
      }
    const float* means = &means_[row / rollouts_ * retina_.means_size()];
    retina_.look(means, place[0], place[1], &seen_[at(step, row) * depth_[kFc1]]);
  }

  // Backward for the rows [begin, end): gradients of all layers' results.
  void back(const float* hidden, const float* means, const float* mean, int begin, int end) {
    const int count = end - begin, width = width_[kI2h], wide = width_[kFc3];
    Floats carry(size_t(count) * width, 0.f);
    for (int step = glimpses_ - 1; step >= 0; --step) {
      float* d = &core_grad_[at(step, begin) * width];
      for (int i = 0; i < count; ++i)
        for (int j = 0; j < width; ++j)
          d[size_t(i) * width + j] =
              hidden[(size_t(begin + i) * glimpses_ + step) * width + j] + carry[size_t(i) * width + j];
      if (step < glimpses_ - 1) back_locator(means, mean, step, begin, end, d);
      mask(d, &core_[at(step, begin) * width], size_t(count) * width);
      if (step) glimpse::product(count, d, backward_[kH2h], carry.data(), false);

      float* g = &glimpse_grad_[at(step, begin) * wide];
      glimpse::product(count, d, backward_[kI2h], g, false);
      mask(g, &glimpse_[at(step, begin) * wide], size_t(count) * wide);
      const float *what = g, *where = g;
      if (multiply_) {
        const size_t place = at(step, begin) * wide;
        for (size_t i = 0; i < size_t(count) * wide; ++i) {
          where_out_grad_[place + i] = g[i] * what_out_[place + i];
          g[i] *= where_out_[place + i];
        }
        where = &where_out_grad_[place];
      }
      float* a = &what_grad_[at(step, begin) * width_[kFc1]];
      glimpse::product(count, what, backward_[kFc3], a, false);
      mask(a, &what_[at(step, begin) * width_[kFc1]], size_t(count) * width_[kFc1]);
      float* b = &where_grad_[at(step, begin) * width_[kFc2]];
      glimpse::product(count, where, backward_[kFc4], b, false);
      mask(b, &where_[at(step, begin) * width_[kFc2]], size_t(count) * width_[kFc2]);
    }
  }

  // The location after `step`; adds to the gradient `d` of its state where that is wanted.
  void back_locator(const float* means, const float* mean, int step, int begin, int end, float* d) {
    const int count = end - begin, hidden = width_[kLocator];
    float* y = &mean_grad_[at(step, begin) * 2];
    for (int i = 0; i < count; ++i)
      for (int axis = 0; axis < 2; ++axis) {
        const size_t place = (size_t(begin + i) * glimpses_ + step + 1) * 2 + axis;
        y[i * 2 + axis] = means[place] * (1 - mean[place] * mean[place]);
      }
    if (layers_ == kLayers) {
      float* z = &located_grad_[at(step, begin) * hidden];
      glimpse::product(count, y, backward_[kLocatorOut], z, false);
      mask(z, &located_[at(step, begin) * hidden], size_t(count) * hidden);
      y = z;
    }
    if (to_core_) glimpse::product(count, y, backward_[kLocator], d, true);
  }

  void allocate_gradients() {
    const size_t all = size_t(glimpses_) * rows_;
    core_grad_.resize(all * width_[kI2h]);
    glimpse_grad_.resize(all * width_[kFc3]);
    if (multiply_) where_out_grad_.resize(all * width_[kFc3]);
    what_grad_.resize(all * width_[kFc1]);
    where_grad_.resize(all * width_[kFc2]);
    mean_grad_.resize(all * 2);
    located_grad_.resize(all * width_[kLocator]);
  }

  void weight_gradients(std::vector<MXTensor>* out) {
    struct Part {
      const Floats &result, &input;
    };
    const Floats& where = multiply_ ? where_out_grad_ : glimpse_grad_;
    const Floats& located = layers_ == kLayers ? located_grad_ : mean_grad_;
    const Part parts[kLayers] = {{what_grad_, seen_},     {where_grad_, features_},
                                 {glimpse_grad_, what_},  {where, where_},
                                 {core_grad_, glimpse_},  {core_grad_, core_},
                                 {located, core_},        {mean_grad_, located_}};
    const int all = glimpses_ * rows_;
    std::vector<glimpse::LayerGradient> layers;
    for (int layer = 0; layer < layers_; ++layer) {
      // There is no state and no choice before the first glimpse.
      const int rows = layer < kH2h ? all : all - rows_;
      const float* result = parts[layer].result.data();
      const float* moved = layer == kH2h ? result + size_t(rows_) * width_[layer] : result;
      layers.push_back({width_[layer], depth_[layer], moved, parts[layer].input.data(), rows,
                        result, layer == kH2h ? all : rows,
                        out->at(kWeights + 2 * layer).data<float>(),
                        out->at(kWeights + 2 * layer + 1).data<float>()});
    }
    glimpse::weight_gradients(layers, &left_);
  }

  const int glimpses_, octaves_, multiply_, tanh_, to_core_, layers_;
  glimpse::Retina retina_;
  int rollouts_ = 0, rows_ = 0;
  int width_[kLayers] = {}, depth_[kLayers] = {};
  Packed forward_[kLayers], backward_[kLayers];
  std::vector<glimpse::Sparse> left_;
  Floats means_;  // over the windows of every image
  // Of every glimpse, (T, M, n).
  Floats seen_, features_, what_, where_, what_out_, where_out_, glimpse_, core_, located_;
  Floats what_grad_, where_grad_, where_out_grad_, glimpse_grad_, core_grad_, mean_grad_,
      located_grad_;
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

MXReturnValue infer_shape(const Attributes&, std::vector<std::vector<unsigned int>>* in,
                          std::vector<std::vector<unsigned int>>* out) {
  const auto& noise = in->at(kNoise);
  if (noise.size() != 4 || in->at(kImage).size() != 4) {
    MX_ERROR_MSG << "glimpse_rollouts needs images (B, C, H, W) and noise (B, R, T, 2)";
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
