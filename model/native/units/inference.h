// Inference of blocked maps with stored statistics: whole residual units, and what lies between.
//
// Maps are float32, or bfloat16. Normalisations go into the convolutions before them; a gate
// that does not look at the image goes into the last convolution.
#pragma once
#include "maps.h"
#include "unit.h"

namespace attn {

// A convolution with its weights, in the layout that it is fastest with; kernel / 2 is its padding.
class PreparedConvolution {
 public:
  PreparedConvolution(const PreparedConvolution&) = delete;
  const Shape out;

  void run(const void* src, void* dst) {
    src_.set_data_handle(const_cast<void*>(src));
    dst_.set_data_handle(dst);
    run_.execute(stream(), arguments_);
  }

 protected:
  PreparedConvolution(const Shape& out, const std::vector<float>& bias) : out(out), bias_(bias) {}

  // `weight` is plain (channels, in.c, kernel, kernel) and is copied.
  void prepare(const dnnl::convolution_forward::primitive_desc& known, dnnl::memory::data_type type,
               const void* weight) {
    using dnnl::memory;
    run_ = dnnl::convolution_forward(known);
    const memory::desc wanted = known.weights_desc();
    memory plain({wanted.get_dims(), type, memory::format_tag::oihw}, cpu(),
                 const_cast<void*>(weight));
    memory own(wanted, cpu());
    dnnl::reorder(plain, own).execute(stream(), plain, own);
    stream().wait();
    src_ = memory(known.src_desc(), cpu(), nullptr), dst_ = memory(known.dst_desc(), cpu(), nullptr);
    arguments_ = {{DNNL_ARG_SRC, src_},
                  {DNNL_ARG_WEIGHTS, own},
                  {DNNL_ARG_BIAS, memory(known.bias_desc(), cpu(), bias_.data())},
                  {DNNL_ARG_DST, dst_}};
  }

  std::unordered_map<int, dnnl::memory> arguments_;

 private:
  std::vector<float> bias_;
  dnnl::convolution_forward run_;
  dnnl::memory src_, dst_;
};

// One of blocked maps, float32 or bfloat16.
class FixedConvolution : public PreparedConvolution {
 public:
  struct Ending {
    bool add = false;   // what lies at the output already
    bool relu = false;  // afterwards
  };

  // `weight` is plain (channels, in.c, kernel, kernel).
  FixedConvolution(const Shape& in, int channels, int kernel, int stride, bool bfloat16,
                   Ending ending, const std::vector<float>& weight, const std::vector<float>& bias)
      : PreparedConvolution(in.convolved(channels, stride), bias) {
    using dnnl::memory;
    const auto f32 = memory::data_type::f32;
    const auto type = bfloat16 ? memory::data_type::bf16 : f32;
    const auto blocked = blocks();
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
    prepare(known, f32, weight.data());
  }
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

// A convolution of a unit with the normalisation that follows it, weights (channels, in.c, k, k).
struct Folded {
  Shape in;  // one chunk
  Shape kernel;
  int stride;
  std::vector<float> weight, bias;
};

// Numbers of maps, a vector of channels at a time, in blocks or with each pixel's channels in a row.
template <class T>
struct View {
  const T* data = nullptr;
  size_t image = 0, block = 0, pixel = 0;
  static View blocks(const T* data, const Shape& s) {
    return {data, s.image(), static_cast<size_t>(s.pixels()) * kLanes, kLanes};
  }
  static View rows(const T* data, const Shape& s) {
    return {data, s.image(), kLanes, static_cast<size_t>(s.c)};
  }
  const T* at(int n, int b) const { return data + n * image + b * block; }
};

// The unit of unit.h, whose arrays it takes; they must stay as they are at the first call.
class FoldedUnit {
 protected:
  FoldedUnit(const UnitSpec& spec, const Shape& in, const std::vector<Shape>& kernels,
             const Arrays& arrays)
      : spec_(spec), in_(in) {
    fold_gate(arrays, kernels);
    size_t largest = in.image();
    Shape s = in;
    for (int i = 0; i < spec.convolutions; ++i) {
      s = s.convolved(kernels[i].n, spec.stride_of(i + 1));
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
        after = affine_of(norm(arrays, spec.layer_begin(i + (spec.version == 1 ? 0 : 1)) + 1),
                          kernels[i].n, spec.epsilon);
      if (last && !gate_.scale.empty() && !gated_)
        for (int c = 0; c < kernels[i].n; ++c)
          after.scale[c] *= gate_.scale[c], after.shift[c] *= gate_.scale[c];
      const float* weight = arrays[spec.layer_begin(i)];
      layers_.push_back(folded(s, kernels[i], spec.stride_of(i + 1), weight, after));
      s = s.convolved(kernels[i].n, spec.stride_of(i + 1));
    }
    if (spec.projected) {
      const int at = spec.layer_begin(spec.convolutions);
      const Shape& k = kernels.back();
      const Affine after = spec.version == 1 ? affine_of(norm(arrays, at + 1), k.n, spec.epsilon)
                                             : identity(k.n);
      layers_.push_back(folded(part(in), k, spec.stride, arrays[at], after));
    }
  }

  Shape part(Shape s) const {
    s.n = chunk_;
    return s;
  }

  // y = a c + s, version 1 with relu; c alone where s has no data.
  template <class T>
  void close(const View<T>& c, const View<T>& s, T* y) const {
    const bool relu = spec_.version == 1;
    const int blocks = out_.blocks(), pixels = out_.pixels();
#pragma omp parallel for collapse(2)
    for (int n = 0; n < chunk_; ++n)
      for (int b = 0; b < blocks; ++b) {
        const T *from = c.at(n, b), *beside = s.data ? s.at(n, b) : nullptr;
        T* to = y + (static_cast<size_t>(n) * blocks + b) * pixels * kLanes;
        const Lanes a = gated_ ? opening(from, c.pixel, b) : Lanes{} + 1.0f;
        for (int p = 0; p < pixels; ++p) {
          Lanes v = a * load(from + p * c.pixel);
          if (beside) v += load(beside + p * s.pixel);
          store(to + p * kLanes, relu ? positive(v) : v);
        }
      }
  }

  UnitSpec spec_;
  Shape in_, out_;
  int chunk_ = 1;
  bool gated_ = false;  // by what the image shows
  Affine first_;
  std::vector<Folded> layers_;  // the shortcut's is the last, where it has one

 private:
  static Affine identity(int channels) {
    return {std::vector<float>(channels, 1.0f), std::vector<float>(channels, 0.0f)};
  }
  static NormArrays norm(const Arrays& a, int at) { return {a[at], a[at + 1], a[at + 2], a[at + 3]}; }

  static Folded folded(const Shape& in, const Shape& kernel, int stride, const float* weight,
                       const Affine& after) {
    const size_t one = static_cast<size_t>(in.c) * kernel.h * kernel.h;  // of a channel's numbers
    std::vector<float> scaled(weight, weight + one * kernel.n);
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= after.scale[i / one];
    return {in, kernel, stride, scaled, after.shift};
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

  // How far the gate is open for one image's block of channels.
  template <class T>
  Lanes opening(const T* c, size_t step, int b) const {
    const int pixels = out_.pixels();
    Lanes total[4] = {};
    for (int p = 0; p < pixels; ++p) total[p % 4] += load(c + p * step);
    const Lanes mean = ((total[0] + total[1]) + (total[2] + total[3])) / static_cast<float>(pixels);
    return logistic(load(gate_.scale.data() + b * kLanes) * mean +
                    load(gate_.shift.data() + b * kLanes));
  }

  Affine gate_;
};

// That unit for maps of one type.
template <class T>
class FixedUnit : private FoldedUnit {
 public:
  FixedUnit(const UnitSpec& spec, const Shape& in, const std::vector<Shape>& kernels,
            const Arrays& arrays)
      : FoldedUnit(spec, in, kernels, arrays) {
    for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
      const Folded& l = layers_[i];
      const bool last = i + 1 == spec.convolutions, projection = i == spec.convolutions;
      const FixedConvolution::Ending ending{last && spec.shortcut && !gated_,
                                            !projection && (!last || (spec.version == 1 && !gated_))};
      convolutions_.emplace_back(new FixedConvolution(l.in, l.kernel.n, l.kernel.h, l.stride,
                                                      std::is_same<T, Bfloat16>::value, ending, l.weight,
                                                      l.bias));
    }
    for (Folded& l : layers_) l.weight.clear(), l.weight.shrink_to_fit();
  }

  void run(const T* x, T* y) { run(x, y, nullptr); }

  // `largest` (N, convolutions): the largest number of each image that each of them reads.
  void run(const T* x, T* y, float* largest) {
    for (int first = 0; first < in_.n; first += chunk_)
      run_chunk(x + first * in_.image(), y + first * out_.image(),
                largest ? largest + static_cast<size_t>(first) * spec_.convolutions : nullptr);
  }

 private:
  void run_chunk(const T* x, T* y, float* largest) {
    const T* source = x;
    if (spec_.version == 2) {
      T* to = buffers_[2].template as<T>(part(in_).size());
      each(part(in_), [&](int, int b) {
        const Lanes k = load(first_.scale.data() + b * kLanes);
        const Lanes t = load(first_.shift.data() + b * kLanes);
        return [=](size_t i) { store(to + i, positive(load(x + i) * k + t)); };
      });
      source = to;
    }
    const T* beside = x;
    if (spec_.projected) {
      T* to = gated_ ? buffers_[3].template as<T>(part(out_).size()) : y;
      convolutions_.back()->run(source, to);
      beside = to;
    } else if (spec_.shortcut && !gated_) {
      std::memcpy(y, x, part(out_).size() * sizeof(T));
    }
    for (int i = 0; i < spec_.convolutions; ++i) {
      if (largest) find_largest(source, layers_[i].in, i, largest);
      const bool last = i + 1 == spec_.convolutions && !gated_;
      T* to = last ? y : buffers_[i % 2].template as<T>(convolutions_[i]->out.size());
      convolutions_[i]->run(source, to);
      source = to;
    }
    if (gated_) close(View<T>::blocks(source, out_), View<T>::blocks(beside, out_), y);
  }

  void find_largest(const T* x, const Shape& s, int index, float* largest) const {
    for (int n = 0; n < s.n; ++n) {
      Lanes most{};
      for (size_t i = 0; i < s.image(); i += kLanes) {
        const Lanes v = load(x + n * s.image() + i);
        most = v > most ? v : most;
      }
      float* to = largest + static_cast<size_t>(n) * spec_.convolutions + index;
      *to = 0.0f;
      for (int k = 0; k < kLanes; ++k) *to = std::max(*to, most[k]);
    }
  }

  std::vector<std::unique_ptr<FixedConvolution>> convolutions_;
  Buffer buffers_[4];
};

template <class T>
void max_pool(const T* x, T* y, const Shape& in, const Shape& out) {
  windows(in, out, [&](size_t from, size_t to, int top, int bottom, int left, int right) {
    Lanes best = load(x + from + (static_cast<size_t>(top) * in.w + left) * kLanes);
    for (int i = top; i < bottom; ++i)
      for (int j = left; j < right; ++j) {
        const Lanes v = load(x + from + (static_cast<size_t>(i) * in.w + j) * kLanes);
        best = v > best ? v : best;
      }
    store(y + to, best);
  });
}

}  // namespace attn
