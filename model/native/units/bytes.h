// Residual units whose convolutions multiply 8 bit integers.
//
// Maps between units are bfloat16 in blocks. What a convolution reads comes from a ReLU, so within a
// unit maps are unsigned bytes; oneDNN is fastest with each pixel's channels in a row, (N, H, W, C).
// A byte of the maps that convolution i reads stands for ranges[i] / 255, one of its weights for a
// 127th of the largest of that output channel.
#pragma once
#include <sstream>

#include "inference.h"

namespace attn {

typedef uint8_t Byte;

// The nearest of 0 to 255.
inline void store_bytes(Byte* p, Lanes v) {
#if defined(__AVX512F__) && BLOCK == 16
  const __m512i nearest = _mm512_cvtps_epi32(reinterpret_cast<__m512>(positive(v)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(nearest));
#else
  for (int k = 0; k < kLanes; ++k)
    p[k] = static_cast<Byte>(std::lrint(std::min(255.0f, std::max(0.0f, v[k]))));
#endif
}

// A convolution with ReLU that gives bytes, or one without that gives bfloat16.
class ByteConvolution : public PreparedConvolution {
 public:
  // `step`: what a byte that it reads stands for; `out_step`: that it gives, 0: bfloat16.
  ByteConvolution(const Folded& l, float step, float out_step)
      : PreparedConvolution(l.in.convolved(l.kernel.n, l.stride), l.bias),
        weight_steps_(l.kernel.n),
        step_(step),
        out_step_(out_step) {
    using dnnl::memory;
    const auto f32 = memory::data_type::f32, s8 = memory::data_type::s8;
    const auto rows = memory::format_tag::nhwc;
    const int pad = l.kernel.h / 2;
    const memory::dims dims{l.kernel.n, l.in.c, l.kernel.h, l.kernel.h};
    const memory::desc src({l.in.n, l.in.c, l.in.h, l.in.w}, memory::data_type::u8, rows);
    const memory::desc dst({out.n, out.c, out.h, out.w},
                           out_step ? memory::data_type::u8 : memory::data_type::bf16, rows);
    const memory::desc biases({out.c}, f32, memory::format_tag::x);
    const memory::desc one({1}, f32, memory::format_tag::x);
    dnnl::primitive_attr attributes;
    attributes.set_scales_mask(DNNL_ARG_SRC, 0);
    attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1);
    if (out_step) {
      attributes.set_scales_mask(DNNL_ARG_DST, 0);
      dnnl::post_ops after;
      after.append_eltwise(dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
      attributes.set_post_ops(after);
    }
    const dnnl::convolution_forward::primitive_desc known(
        cpu(), dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, src,
        memory::desc(dims, s8, memory::format_tag::any), biases, dst, {l.stride, l.stride},
        {pad, pad}, {pad, pad}, attributes);
    prepare(known, s8, rounded(l.weight).data());
    arguments_[DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC] = memory(one, cpu(), &step_);
    arguments_[DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS] = memory(biases, cpu(), weight_steps_.data());
    if (out_step)
      arguments_[DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST] = memory(one, cpu(), &out_step_);
  }

 private:
  std::vector<int8_t> rounded(const std::vector<float>& weight) {
    const size_t one = weight.size() / weight_steps_.size();
    std::vector<int8_t> found(weight.size());
    for (size_t c = 0; c < weight_steps_.size(); ++c) {
      const float* from = weight.data() + c * one;
      float most = 0.0f;
      for (size_t i = 0; i < one; ++i) most = std::max(most, std::abs(from[i]));
      weight_steps_[c] = most > 0.0f ? most / 127.0f : 1.0f;
      for (size_t i = 0; i < one; ++i)
        found[c * one + i] = static_cast<int8_t>(std::lrint(from[i] / weight_steps_[c]));
    }
    return found;
  }

  std::vector<float> weight_steps_;
  float step_, out_step_;
};

// The unit of inference.h; `ranges` are the largest numbers that its convolutions read.
class ByteUnit : private FoldedUnit {
 public:
  ByteUnit(const UnitSpec& spec, const Shape& in, const std::vector<Shape>& kernels,
           const Arrays& arrays, const std::vector<float>& ranges)
      : FoldedUnit(spec, in, kernels, arrays) {
    std::vector<float> steps;
    for (float range : ranges) steps.push_back(range > 0.0f ? range / 255.0f : 1.0f);
    for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
      const bool inner = i + 1 < spec.convolutions, projection = i == spec.convolutions;
      convolutions_.emplace_back(
          new ByteConvolution(layers_[i], steps[projection ? 0 : i], inner ? steps[i + 1] : 0.0f));
    }
    layers_.clear();
    if (spec.version == 1) first_ = {std::vector<float>(in.c, 1.0f), std::vector<float>(in.c, 0.0f)};
    for (std::vector<float>* v : {&first_.scale, &first_.shift})
      for (float& number : *v) number /= steps[0];
  }

  void run(const Bfloat16* x, Bfloat16* y) {
    for (int first = 0; first < in_.n; first += chunk_)
      run_chunk(x + first * in_.image(), y + first * out_.image());
  }

 private:
  void run_chunk(const Bfloat16* x, Bfloat16* y) {
    Byte* source = buffers_[2].as<Byte>(part(in_).size());
    read(x, source);
    View<Bfloat16> beside;
    if (spec_.projected) {
      Bfloat16* to = buffers_[3].as<Bfloat16>(part(out_).size());
      convolutions_.back()->run(source, to);
      beside = View<Bfloat16>::rows(to, out_);
    } else if (spec_.shortcut) {
      beside = View<Bfloat16>::blocks(x, out_);
    }
    for (int i = 0; i + 1 < spec_.convolutions; ++i) {
      Byte* to = buffers_[i % 2].as<Byte>(convolutions_[i]->out.size());
      convolutions_[i]->run(source, to);
      source = to;
    }
    Bfloat16* to = buffers_[4].as<Bfloat16>(part(out_).size());
    convolutions_[spec_.convolutions - 1]->run(source, to);
    close(View<Bfloat16>::rows(to, out_), beside, y);
  }

  // Bytes of relu(x), or of relu(norm(x)) in version 2. Threads share pixels, not channels: these
  // lie in the same lines of the cache.
  void read(const Bfloat16* x, Byte* to) const {
    const int blocks = in_.blocks(), pixels = in_.pixels(), parts = (pixels + kPart - 1) / kPart;
#pragma omp parallel for collapse(2)
    for (int n = 0; n < chunk_; ++n)
      for (int part = 0; part < parts; ++part)
        for (int b = 0; b < blocks; ++b) {
          const Lanes k = load(first_.scale.data() + b * kLanes);
          const Lanes t = load(first_.shift.data() + b * kLanes);
          const Bfloat16* from = x + (static_cast<size_t>(n) * blocks + b) * pixels * kLanes;
          Byte* out = to + n * in_.image() + b * kLanes;
          for (int p = part * kPart; p < std::min(pixels, (part + 1) * kPart); ++p)
            store_bytes(out + static_cast<size_t>(p) * in_.c, load(from + p * kLanes) * k + t);
        }
  }

  static constexpr int kPart = 16;  // pixels
  std::vector<std::unique_ptr<ByteConvolution>> convolutions_;
  Buffer buffers_[5];
};

inline std::vector<float> numbers_of(const std::string& text) {
  std::vector<float> found;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) found.push_back(real(part));
  return found;
}

}  // namespace attn
