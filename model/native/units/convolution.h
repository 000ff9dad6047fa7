// Convolutions of blocked maps by oneDNN, forward and backward, a chunk of images at a time.
#pragma once
#include <map>
#include <memory>
#include <tuple>

#include "blocked.h"
#include "oneapi/dnnl/dnnl.hpp"

namespace attn {

inline dnnl::engine& cpu() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

inline dnnl::stream& stream() {
  thread_local dnnl::stream stream(cpu());
  return stream;
}

// By name: left to oneDNN it would be another one for gradients of strided convolutions.
constexpr dnnl::memory::format_tag blocks() {
  return kLanes == 16 ? dnnl::memory::format_tag::nChw16c : dnnl::memory::format_tag::nChw8c;
}

struct Types {
  bool bfloat16 = false;           // what it multiplies: maps, weights, gradients of its output
  bool bfloat16_output = false;    // its output is stored so
  bool bfloat16_gradient = false;  // the gradient of the maps is
  int number() const { return bfloat16 + 2 * bfloat16_output + 4 * bfloat16_gradient; }
};

// Sums are made in float32 in any case; the gradient of the weights is float32.
class Convolution {
 public:
  // `in` holds one chunk; the kernel is square, padding is kernel / 2, there is no bias.
  Convolution(const Shape& in, int channels, int kernel, int stride, Types types)
      : in(in), out(in.convolved(channels, stride)) {
    using dnnl::memory;
    const auto f32 = memory::data_type::f32;
    const auto type = [=](bool bfloat16) { return bfloat16 ? memory::data_type::bf16 : f32; };
    const auto factor = type(types.bfloat16);
    const auto blocked = blocks();
    const memory::dims strides{stride, stride}, pad{kernel / 2, kernel / 2};
    const memory::dims weight{channels, in.c, kernel, kernel};
    const auto direct = dnnl::algorithm::convolution_direct;
    src_ = {{in.n, in.c, in.h, in.w}, factor, blocked};
    dst_ = {{out.n, out.c, out.h, out.w}, type(types.bfloat16_output), blocked};
    src_gradient_ = {src_.get_dims(), type(types.bfloat16_gradient), blocked};
    dst_gradient_ = {dst_.get_dims(), factor, blocked};
    plain_ = {weight, f32, memory::format_tag::oihw};
    const memory::desc any(weight, factor, memory::format_tag::any);
    const memory::desc any_gradient(weight, f32, memory::format_tag::any);
    dnnl::convolution_forward::primitive_desc forward(
        cpu(), dnnl::prop_kind::forward_training, direct, src_, any, dst_, strides, pad, pad);
    dnnl::convolution_backward_data::primitive_desc data(
        cpu(), direct, src_gradient_, any, dst_gradient_, strides, pad, pad, forward);
    dnnl::convolution_backward_weights::primitive_desc weights(
        cpu(), direct, src_, any_gradient, dst_gradient_, strides, pad, pad, forward);
    forward_ = dnnl::convolution_forward(forward);
    data_ = dnnl::convolution_backward_data(data);
    weights_ = dnnl::convolution_backward_weights(weights);
    for_forward_ = forward.weights_desc();
    for_data_ = data.weights_desc();
    gradient_ = weights.diff_weights_desc();
    weight_floats_ = gradient_.get_size() / sizeof(float);
  }

  const Shape in, out;

  void set_forward_weight(const float* weight) { reorder(weight, for_forward_, &forward_weight_); }
  void set_backward_weight(const float* weight) { reorder(weight, for_data_, &data_weight_); }

  void forward(const void* src, void* dst) {
    forward_.execute(stream(), {{DNNL_ARG_SRC, at(src_, src)},
                                {DNNL_ARG_WEIGHTS, at(for_forward_, forward_weight_.data())},
                                {DNNL_ARG_DST, at(dst_, dst)}});
  }

  void backward_data(const void* dst_gradient, void* src_gradient) {
    data_.execute(stream(), {{DNNL_ARG_DIFF_DST, at(dst_gradient_, dst_gradient)},
                             {DNNL_ARG_WEIGHTS, at(for_data_, data_weight_.data())},
                             {DNNL_ARG_DIFF_SRC, at(src_gradient_, src_gradient)}});
  }

  // Add a chunk to the weights' gradient; the first one begins it.
  void backward_weight(const void* src, const void* dst_gradient, bool first) {
    float* total = total_.get(weight_floats_);
    float* to = first ? total : part_.get(weight_floats_);
    weights_.execute(stream(), {{DNNL_ARG_SRC, at(src_, src)},
                                {DNNL_ARG_DIFF_DST, at(dst_gradient_, dst_gradient)},
                                {DNNL_ARG_DIFF_WEIGHTS, at(gradient_, to)}});
    if (!first) {
#pragma omp parallel for simd
      for (size_t i = 0; i < weight_floats_; ++i) total[i] += to[i];
    }
  }

  void weight_gradient(float* plain) {
    auto from = at(gradient_, total_.data()), to = at(plain_, plain);
    dnnl::reorder(from, to).execute(stream(), from, to);
  }

 private:
  static dnnl::memory at(const dnnl::memory::desc& desc, const void* data) {
    return dnnl::memory(desc, cpu(), const_cast<void*>(data));
  }
  void reorder(const float* weight, const dnnl::memory::desc& desc, Buffer* to) {
    auto from = at(plain_, weight), into = at(desc, to->as<char>(desc.get_size()));
    dnnl::reorder(from, into).execute(stream(), from, into);
  }

  dnnl::memory::desc src_, dst_, src_gradient_, dst_gradient_, plain_, for_forward_, for_data_, gradient_;
  dnnl::convolution_forward forward_;
  dnnl::convolution_backward_data data_;
  dnnl::convolution_backward_weights weights_;
  Buffer forward_weight_, data_weight_, total_, part_;
  size_t weight_floats_ = 0;
};

// The convolution of this shape; layers of equal shape on one thread share it, one at a time.
inline Convolution& convolution(const Shape& in, int channels, int kernel, int stride, int slot,
                                Types types) {
  typedef std::tuple<int, int, int, int, int, int, int, int, int> Key;
  thread_local std::map<Key, std::unique_ptr<Convolution>> known;
  auto& found = known[Key(in.n, in.c, in.h, in.w, channels, kernel, stride, slot, types.number())];
  if (!found) found.reset(new Convolution(in, channels, kernel, stride, types));
  return *found;
}

}  // namespace attn
