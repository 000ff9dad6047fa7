// A whole residual unit with its gate as one operation on blocked maps, forward and backward.
//
//   version 1   y = relu(a (bn_k(conv_k(... relu(bn_1(conv_1(x)))))) + shortcut(x))
//   version 2   y = a (conv_k(relu(bn_k(... conv_1(relu(bn_1(x))))))) + shortcut
//
// The arrays come as: x; of each convolution and its normalisation weight, gamma, beta, running
// mean, running variance; the same of the shortcut's (version 2: its weight alone); w and b of the
// gate (static: b alone), then gamma, beta, mean, variance of each of its steps but the last.
#pragma once
#include <string>
#include <unordered_map>

#include "convolution.h"
#include "gate.h"

namespace attn {

struct UnitSpec {
  int version = 1, convolutions = 0, strided = 0, stride = 1;
  bool projected = false, shortcut = true, gated = false, recurrent = false;
  bool bfloat16 = false;  // convolutions multiply bfloat16, and maps within the unit are stored so
  int steps = 1;
  float epsilon = 1e-5f, momentum = 0.9f;

  explicit UnitSpec(const std::unordered_map<std::string, std::string>& a) {
    version = std::stoi(a.at("version"));
    convolutions = std::stoi(a.at("convolutions"));
    strided = std::stoi(a.at("strided"));
    stride = std::stoi(a.at("stride"));
    projected = a.at("shortcut") == "projected";
    shortcut = a.at("shortcut") != "none";
    gated = a.at("gate") != "none";
    recurrent = a.at("gate") == "recurrent";
    bfloat16 = a.at("precision") == "bfloat16";
    check_precision(a.at("precision"));
    steps = std::stoi(a.at("steps"));
    epsilon = real(a.at("epsilon"));
    momentum = real(a.at("momentum"));
  }
  int stride_of(int index) const { return index == strided ? stride : 1; }
  // Place of a convolution's weight in the arrays; gamma, beta, mean and variance follow it.
  static int layer_begin(int index) { return 1 + 5 * index; }
  int gate_begin() const {
    return layer_begin(convolutions) + (projected ? (version == 1 ? 5 : 1) : 0);
  }
  int inputs() const {
    return gate_begin() + (gated ? (recurrent ? 2 + 4 * (steps - 1) : 1) : 0);
  }
};

typedef std::vector<float*> Arrays;

// Memory that no unit keeps from one call to the next; a thread works on one unit at a time.
struct Scratch {
  Buffer source, gradient, other, projection;  // of one chunk: what convolutions read or give
  Kept above, below;                           // of all images: gradients on both sides of a convolution
};

inline Scratch& scratch() {
  thread_local Scratch found;
  return found;
}

class Unit {
 public:
  Unit(const UnitSpec& spec, const Shape& in, const std::vector<Shape>& kernels)
      : spec_(spec), in_(in), kernels_(kernels) {}

  void forward(const Arrays& a, float* y) {
    arrays_ = a;
    plan();
    spec_.version == 1 ? forward_1(y) : forward_2(y);
    ready_ = true;
  }

  // `g` are the gradients of the arrays in their order; false when there was no forward pass.
  bool backward(const Arrays& a, const float* dy, const Arrays& g) {
    if (!ready_) return false;
    ready_ = false;  // the maps that were kept are overwritten
    arrays_ = a, gradients_ = g;
    spec_.version == 1 ? backward_1(dy) : backward_2(dy);
    return true;
  }

 private:
  struct Layer {
    Shape in, out;  // of all images
    Norm norm;
    Kept before;  // the maps before the normalisation; what comes after it is computed twice
    int kernel, stride, at;  // at: place of the weight in the arrays
    int slot;
    Types types;
  };

  void plan() {
    layers_.resize(spec_.convolutions + (spec_.projected ? 1 : 0));
    Shape s = in_;
    size_t largest = in_.image();
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (!layers_[i]) layers_[i].reset(new Layer);
      Layer& l = *layers_[i];
      const bool projection = static_cast<int>(i) == spec_.convolutions;
      l.in = projection ? in_ : s;
      l.kernel = kernels_[i].h;
      l.stride = projection ? spec_.stride : spec_.stride_of(static_cast<int>(i) + 1);
      l.out = l.in.convolved(kernels_[i].n, l.stride);
      l.at = spec_.layer_begin(static_cast<int>(i));
      l.slot = projection;
      l.types = types(static_cast<int>(i));
      largest = std::max({largest, l.in.image(), l.out.image()});
      s = projection ? s : l.out;
    }
    out_ = s;
    chunk_ = chunk_of(in_.n, largest);
  }

  Convolution& conv(const Layer& l) const {
    return convolution(part(l.in), l.out.c, l.kernel, l.stride, l.slot, l.types);
  }
  // Outputs and gradients that are kept within the unit have its type, what leaves it is float32.
  Types types(int i) const {
    const bool projection = i == spec_.convolutions, last = i + 1 == spec_.convolutions;
    if (spec_.version == 1)
      return {spec_.bfloat16, spec_.bfloat16, spec_.bfloat16 && i && !projection};
    return {spec_.bfloat16, spec_.bfloat16 && !projection && (!last || spec_.gated),
            spec_.bfloat16 && !projection};
  }
  Shape part(Shape s) const {
    s.n = chunk_;
    return s;
  }
  Layer& last() { return *layers_[spec_.convolutions - 1]; }
  Layer* projection() { return spec_.projected ? layers_.back().get() : nullptr; }
  NormArrays norm_arrays(const Arrays& a, int at) const {
    return {a[at], a[at + 1], a[at + 2], a[at + 3]};
  }
  void finish(Layer* l) {
    const NormArrays n = norm_arrays(arrays_, l->at + 1);
    l->norm.finish(n.gamma, n.beta, spec_.epsilon, spec_.momentum, n.mean, n.var);
  }
  std::vector<NormArrays> gate_norms(const Arrays& a) const {
    std::vector<NormArrays> found;
    for (int step = 1; spec_.recurrent && step < spec_.steps; ++step)
      found.push_back(norm_arrays(a, spec_.gate_begin() + 2 + 4 * (step - 1)));
    return found;
  }
  void open_gate(const std::vector<float>& means) {
    const int at = spec_.gate_begin();
    gate_.forward(means, out_.n, out_.c, spec_.recurrent ? arrays_[at] : nullptr,
                  arrays_[at + (spec_.recurrent ? 1 : 0)], gate_norms(arrays_), spec_.epsilon,
                  spec_.momentum);
  }
  void close_gate(const std::vector<float>& da) {
    const int at = spec_.gate_begin();
    gate_.backward(da, spec_.recurrent ? gradients_[at] : nullptr,
                   gradients_[at + (spec_.recurrent ? 1 : 0)], gate_norms(gradients_));
  }

  // A chunk as a convolution reads it, in memory that `to` owns: relu(norm(x)), or x itself.
  template <class T>
  const void* activated(const Norm& norm, const T* x, const Shape& s, Buffer* to) const;
  const void* operand(const float* x, const Shape& s, Buffer* to) const;
  // The same of body(n, b), which returns what is written for the numbers of a vector at an offset.
  template <class Body>
  const void* written(const Shape& s, Buffer* to, Body body) const {
    if constexpr (kHasBfloat16)
      if (spec_.bfloat16) return written_as<Bfloat16>(s, to, body);
    return written_as<float>(s, to, body);
  }
  template <class T, class Body>
  const void* written_as(const Shape& s, Buffer* to, Body body) const {
    T* out = to->as<T>(s.size());
    each(s, [&](int n, int b) {
      const auto value = body(n, b);
      return [=](size_t i) { store(out + i, value(i)); };
    });
    return out;
  }
  const void* normalised_gradient(const Norm& norm, const Kept& dy, const Kept& x, size_t offset,
                                  const Shape& s) const;

  void forward_1(float* y);
  void forward_2(float* y);
  void backward_1(const float* dy);
  void backward_2(const float* dy);
  void convolve(Layer* l, const void* src, int first);
  void tail(float* y);
  template <class T>
  void tail_of(const T* c, float* y);
  void tail_sums_of(const Layer& l, const float* dy, float* sum, float* product) const;
  void tail_sums(const float* dy);
  const void* tail_backward(const float* dy, int first);
  const void* projection_backward(const float* dy, int first);
  void shortcut_backward_1(const float* dy, const void* source, int first);
  const void* source_1(int i, int first) const;
  const void* source_2(int i, int first) const;
  void tail_2(float* y);
  void gate_sums_2(const float* dy);
  const void* tail_backward_2(const float* dy, int first);
  void input_backward_2(const Kept& da, const float* also);

  UnitSpec spec_;
  Shape in_, out_;
  std::vector<Shape> kernels_;
  std::vector<std::unique_ptr<Layer>> layers_;
  int chunk_ = 1;
  bool ready_ = false;
  Arrays arrays_, gradients_;
  Gate gate_;
  std::vector<Bits> active_;  // version 1: where the last relu lets through
  Norm last_norm_;  // version 2 with a gate: its sums alone are used
  Kept ungated_;  // version 2 with a gate: what it multiplies
  std::vector<float> sum_, product_, projection_product_, projection_sum_;
};

template <class T>
const void* Unit::activated(const Norm& norm, const T* x, const Shape& s, Buffer* to) const {
  return written(s, to, [&](int, int b) {
    const Lanes k = load(norm.scale.data() + b * kLanes), t = load(norm.shift.data() + b * kLanes);
    return [=](size_t i) { return positive(load(x + i) * k + t); };
  });
}

inline const void* Unit::operand(const float* x, const Shape& s, Buffer* to) const {
  if (!spec_.bfloat16) return x;
  return written(s, to, [&](int, int) { return [=](size_t i) { return load(x + i); }; });
}

// The gradient through relu and normalisation, of maps that are kept.
inline const void* Unit::normalised_gradient(const Norm& norm, const Kept& dy, const Kept& x,
                                             size_t offset, const Shape& s) const {
  return x.with(offset, [&](auto* maps) {
    const auto* gradient = static_cast<decltype(maps)>(dy.at(offset));
    return written(s, &scratch().gradient,
                   [&](int, int b) { return norm.activated_gradient(gradient, maps, b); });
  });
}

}  // namespace attn
