// Inference of blocked maps with stored statistics: whole residual units, and what lies between.
//
// Maps are float32, or bfloat16 (`Half`). Normalisations go into the convolutions before them; a gate
// that does not look at the image goes into the last convolution.
#pragma once
#include "maps.h"
#include "unit.h"

namespace attn {

// A convolution with its weights, in the layout that it is fastest with; kernel / 2 is its padding.
class FixedConvolution {
 public:
  struct Ending {
    bool add = false;   // what lies at the output already
    bool relu = false;  // afterwards
  };

  // `weight` is plain (channels, in.c, kernel, kernel).
  FixedConvolution(const Shape& in, int channels, int kernel, int stride, bool half, Ending ending,
                   const std::vector<float>& weight, const std::vector<float>& bias)
      : out{in.n, channels, (in.h - 1) / stride + 1, (in.w - 1) / stride + 1}, bias_(bias) {
    using dnnl::memory;
    const auto f32 = memory::data_type::f32;
    const auto type = half ? memory::data_type::bf16 : f32;
    const auto blocked = memory::format_tag::nChw16c;
    const memory::dims dims{channels, in.c, kernel, kernel};
    const memory::dims strides{stride, stride}, pad{kernel / 2, kernel / 2};
    const memory::desc any(dims, type, memory::format_tag::any);
    const memory::desc biases({channels}, f32, memory::format_tag::x);
    const memory::desc src({in.n, in.c, in.h, in.w}, type, blocked);
    const memory::desc dst({out.n, out.c, out.h, out.w}, type, blocked);
    dnnl::post_ops after;
    if (ending.add) after.append_sum(1.0f);
    if (ending.relu) after.append_eltwise(dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(after);
    const dnnl::convolution_forward::primitive_desc known(
        cpu(), dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, src, any,
        biases, dst, strides, pad, pad, attributes);
    run_ = dnnl::convolution_forward(known);
    memory plain({dims, f32, memory::format_tag::oihw}, cpu(), const_cast<float*>(weight.data()));
    memory own(known.weights_desc(), cpu());
    dnnl::reorder(plain, own).execute(stream(), plain, own);
    src_ = memory(src, cpu(), nullptr), dst_ = memory(dst, cpu(), nullptr);
    arguments_ = {{DNNL_ARG_SRC, src_},
                  {DNNL_ARG_WEIGHTS, own},
                  {DNNL_ARG_BIAS, memory(biases, cpu(), bias_.data())},
                  {DNNL_ARG_DST, dst_}};
  }
  const Shape out;

  void run(const void* src, void* dst) {
    src_.set_data_handle(const_cast<void*>(src));
    dst_.set_data_handle(dst);
    run_.execute(stream(), arguments_);
  }

 private:
  std::vector<float> bias_;
  dnnl::convolution_forward run_;
  dnnl::memory src_, dst_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

struct Affine {  // of each channel
  std::vector<float> scale, shift;
};

inline Affine affine_of(const NormArrays& n, int channels, float epsilon) {
  Affine found{std::vector<float>(channels), std::vector<float>(channels)};
  for (int c = 0; c < channels; ++c) {
    const double scale = n.gamma[c] / std::sqrt(static_cast<double>(n.var[c]) + epsilon);
    found.scale[c] = static_cast<float>(scale);
    found.shift[c] = static_cast<float>(n.beta[c] - n.mean[c] * scale);
  }
  return found;
}

// The unit of unit.h, whose arrays it takes; they must stay as they are at the first call.
template <class T>
class FixedUnit {
 public:
  FixedUnit(const UnitSpec& spec, const Shape& in, const std::vector<Shape>& kernels,
            const Arrays& arrays)
      : spec_(spec), in_(in) {
    fold_gate(arrays, kernels);
    size_t largest = in.image();
    Shape s = in;
    for (int i = 0; i < spec.convolutions; ++i) {
      s = next(s, kernels[i].n, spec.stride_of(i + 1));
      largest = std::max(largest, s.image());
    }
    out_ = s;
    chunk_ = chunk_of(in.n, largest);
    if (spec.version == 2) first_ = affine_of(norm(arrays, 2), in.c, spec.epsilon);
    s = part(in);
    for (int i = 0; i < spec.convolutions; ++i) {
      const bool last = i + 1 == spec.convolutions;
      Affine after = identity(kernels[i].n);
      if (spec.version == 1 || !last)  // that of version 2 is the next layer's
        after = affine_of(norm(arrays, 2 + 5 * (i + (spec.version == 1 ? 0 : 1))), kernels[i].n,
                          spec.epsilon);
      if (last && !gate_.scale.empty() && !gated_)
        for (int c = 0; c < kernels[i].n; ++c)
          after.scale[c] *= gate_.scale[c], after.shift[c] *= gate_.scale[c];
      const typename FixedConvolution::Ending ending{
          last && spec.shortcut && !gated_, !last || (spec.version == 1 && !gated_)};
      add(&convolutions_, s, kernels[i], spec.stride_of(i + 1), arrays[1 + 5 * i], after, ending);
      s = convolutions_.back()->out;
    }
    if (spec.projected) {
      const int at = 1 + 5 * spec.convolutions;
      const Shape& k = kernels.back();
      const Affine after = spec.version == 1 ? affine_of(norm(arrays, at + 1), k.n, spec.epsilon)
                                             : identity(k.n);
      add(&side_, part(in), k, spec.stride, arrays[at], after, {});
    }
  }

  void run(const T* x, T* y) {
    for (int first = 0; first < in_.n; first += chunk_)
      run_chunk(x + first * in_.image(), y + first * out_.image());
  }

 private:
  static Shape next(const Shape& s, int channels, int stride) {
    return {s.n, channels, (s.h - 1) / stride + 1, (s.w - 1) / stride + 1};
  }
  static Affine identity(int channels) {
    return {std::vector<float>(channels, 1.0f), std::vector<float>(channels, 0.0f)};
  }
  static NormArrays norm(const Arrays& a, int at) { return {a[at], a[at + 1], a[at + 2], a[at + 3]}; }
  Shape part(Shape s) const {
    s.n = chunk_;
    return s;
  }

  void add(std::vector<std::unique_ptr<FixedConvolution>>* to, const Shape& in, const Shape& kernel,
           int stride, const float* weight, const Affine& after,
           typename FixedConvolution::Ending ending) {
    const size_t each = static_cast<size_t>(in.c) * kernel.h * kernel.h;
    std::vector<float> scaled(weight, weight + each * kernel.n);
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= after.scale[i / each];
    to->emplace_back(new FixedConvolution(in, kernel.n, kernel.h, stride,
                                          std::is_same<T, Half>::value, ending, scaled, after.shift));
  }

  // The gate is sigmoid(scale * mean + shift); where that is constant, `scale` is its value.
  void fold_gate(const Arrays& a, const std::vector<Shape>& kernels) {
    if (!spec_.gated) return;
    const int channels = kernels[spec_.convolutions - 1].n, at = spec_.gate_begin();
    const float *w = spec_.recurrent ? a[at] : nullptr, *b = a[at + (w ? 1 : 0)];
    std::vector<double> slope(channels, 0.0), offset(b, b + channels);
    for (int c = 0; w && c < channels; ++c) slope[c] = w[c];
    for (int step = 1; w && step < spec_.steps; ++step) {
      const Affine n = affine_of(norm(a, at + 2 + 4 * (step - 1)), channels, spec_.epsilon);
      for (int c = 0; c < channels; ++c) {
        slope[c] *= w[c] * n.scale[c];
        offset[c] = w[c] * (n.scale[c] * offset[c] + n.shift[c]) + b[c];
      }
    }
    gate_ = {std::vector<float>(slope.begin(), slope.end()),
             std::vector<float>(offset.begin(), offset.end())};
    for (double s : slope) gated_ = gated_ || std::abs(s) > 1e-8;
    for (int c = 0; !gated_ && c < channels; ++c)
      gate_.scale[c] = static_cast<float>(1 / (1 + std::exp(-offset[c])));
  }

  void run_chunk(const T* x, T* y) {
    const T* source = x;
    if (spec_.version == 2) {
      T* to = buffers_[2].as<T>(part(in_).size());
      each(part(in_), [&](int, int b) {
        const Lanes k = load(first_.scale.data() + b * kLanes);
        const Lanes t = load(first_.shift.data() + b * kLanes);
        return [=](size_t i) { store(to + i, positive(load(x + i) * k + t)); };
      });
      source = to;
    }
    const T* beside = x;
    if (spec_.projected) {
      T* to = gated_ ? buffers_[3].as<T>(part(out_).size()) : y;
      side_[0]->run(source, to);
      beside = to;
    } else if (spec_.shortcut && !gated_) {
      std::memcpy(y, x, part(out_).size() * sizeof(T));
    }
    for (size_t i = 0; i < convolutions_.size(); ++i) {
      const bool last = i + 1 == convolutions_.size() && !gated_;
      T* to = last ? y : buffers_[i % 2].as<T>(convolutions_[i]->out.size());
      convolutions_[i]->run(source, to);
      source = to;
    }
    if (gated_) open_gate(source, beside, y);
  }

  // y = a c + s, version 1 with relu.
  void open_gate(const T* c, const T* s, T* y) {
    const bool relu = spec_.version == 1;
    const int blocks = out_.blocks(), pixels = out_.pixels();
#pragma omp parallel for collapse(2)
    for (int n = 0; n < chunk_; ++n)
      for (int b = 0; b < blocks; ++b) {
        const size_t at = (static_cast<size_t>(n) * blocks + b) * pixels * kLanes;
        Lanes total[4] = {};
        for (int p = 0; p < pixels; ++p) total[p % 4] += load(c + at + p * kLanes);
        const Lanes mean = ((total[0] + total[1]) + (total[2] + total[3])) / static_cast<float>(pixels);
        const Lanes a = logistic(load(gate_.scale.data() + b * kLanes) * mean +
                                 load(gate_.shift.data() + b * kLanes));
        for (int p = 0; p < pixels; ++p) {
          const size_t i = at + static_cast<size_t>(p) * kLanes;
          const Lanes v = a * load(c + i) + load(s + i);
          store(y + i, relu ? positive(v) : v);
        }
      }
  }

  UnitSpec spec_;
  Shape in_, out_;
  int chunk_ = 1;
  bool gated_ = false;  // by what the image shows
  Affine gate_, first_;
  std::vector<std::unique_ptr<FixedConvolution>> convolutions_, side_;
  Buffer buffers_[4];
};

template <class T>
void max_pool(const T* x, T* y, const Shape& in, const Shape& out) {
  const int maps = in.n * in.blocks();
#pragma omp parallel for
  for (int m = 0; m < maps; ++m)
    for (int i = 0; i < out.h; ++i)
      for (int j = 0; j < out.w; ++j) {
        const int top = std::max(0, 2 * i - 1), left = std::max(0, 2 * j - 1);
        const T* from = x + static_cast<size_t>(m) * in.pixels() * kLanes;
        Lanes best = load(from + (static_cast<size_t>(top) * in.w + left) * kLanes);
        for (int k = top; k < std::min(in.h, 2 * i + 2); ++k)
          for (int l = left; l < std::min(in.w, 2 * j + 2); ++l) {
            const Lanes v = load(from + (static_cast<size_t>(k) * in.w + l) * kLanes);
            best = v > best ? v : best;
          }
        store(y + (static_cast<size_t>(m) * out.pixels() + i * out.w + j) * kLanes, best);
      }
}

// y (N, C) = mean over the pixels of x, or of relu(scale x + shift).
template <class T>
void mean_of(const T* x, const Shape& s, const Affine& norm, float* y) {
  std::vector<float> unused(static_cast<size_t>(s.n) * s.c);
  const bool normed = !norm.scale.empty();
  sums(s, y, unused.data(), [&](int, int b) {
    const Lanes k = normed ? load(norm.scale.data() + b * kLanes) : Lanes{};
    const Lanes t = normed ? load(norm.shift.data() + b * kLanes) : Lanes{};
    return [=](size_t i, Lanes& a, Lanes&) {
      a += normed ? positive(load(x + i) * k + t) : load(x + i);
    };
  });
  for (size_t i = 0; i < unused.size(); ++i) y[i] /= s.pixels();
}

}  // namespace attn
