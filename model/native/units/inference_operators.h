// The operators of inference as MXNet sees them. Included by operators.cc alone.
//
// Where `precision` is bfloat16 or int8, maps are arrays of float16 to MXNet: two bytes a number,
// and no other operator but these reads them. Parameters, images and means are float32.
#pragma once
#include "bytes.h"

namespace {

bool is_bfloat16(const Attributes& attributes) {
  return attn::kHasBfloat16 && attributes.at("precision") != "float32";
}

template <class T>
std::vector<const T*> maps_of(Tensors* tensors, size_t begin) {
  std::vector<const T*> found;
  for (size_t i = begin; i < tensors->size(); ++i) found.push_back((*tensors)[i].data<T>());
  return found;
}

class ForwardOperator : public Operator {
 public:
  using Operator::Operator;

 protected:
  void backward(Tensors*, Tensors*) override { throw std::runtime_error("it is for inference only"); }
};

// One that `run<T>` of the class computes.
template <class Self>
class InferenceOperator : public ForwardOperator {
 public:
  using ForwardOperator::ForwardOperator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    auto* self = static_cast<Self*>(this);
    if constexpr (attn::kHasBfloat16)
      if (is_bfloat16(attributes_)) return self->template run<attn::Bfloat16>(in, &(*out)[0]);
    self->template run<float>(in, &(*out)[0]);
  }
};

// A unit, made anew where the images have another shape. `Unit`: its class, `more`: of its arguments.
template <class Unit>
class Made {
 public:
  template <class... More>
  Unit& of(Tensors* in, const Attributes& attributes, const More&... more) {
    if (!unit_ || shape_ != (*in)[0].shape) {
      const attn::UnitSpec spec(attributes);
      unit_.reset(new Unit(spec, shape_of((*in)[0].shape), kernels_of(spec, *in),
                           arrays(in, 0, in->size()), more...));
      shape_ = (*in)[0].shape;
    }
    return *unit_;
  }

 private:
  std::unique_ptr<Unit> unit_;
  std::vector<int64_t> shape_;
};

class FixedUnitOperator : public ForwardOperator {
 public:
  explicit FixedUnitOperator(Attributes attributes) : ForwardOperator(attributes) {
    const auto ranges = attributes.find("ranges");
    if (ranges != attributes.end()) ranges_ = attn::numbers_of(ranges->second);
  }

 protected:
  void forward(Tensors* in, Tensors* out) override {
    const std::string& precision = attributes_.at("precision");
    if (precision == "float32") {
      wide_.of(in, attributes_).run((*in)[0].data<float>(), (*out)[0].data<float>());
      return;
    }
    attn::check_precision(precision);
#if BLOCK == 16
    const auto* x = (*in)[0].data<attn::Bfloat16>();
    auto* y = (*out)[0].data<attn::Bfloat16>();
    if (precision == "int8")
      bytes_.of(in, attributes_, ranges_).run(x, y);
    else
      bfloat16_.of(in, attributes_).run(x, y);
#endif
  }

 private:
  std::vector<float> ranges_;
  Made<attn::FixedUnit<float>> wide_;
#if BLOCK == 16
  Made<attn::FixedUnit<attn::Bfloat16>> bfloat16_;
  Made<attn::ByteUnit> bytes_;
#endif
};

// (N, convolutions): the largest number of each image that each convolution of a unit reads.
class RangesOperator : public ForwardOperator {
 public:
  using ForwardOperator::ForwardOperator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    const attn::UnitSpec spec(attributes_);
    const attn::Shape s = shape_of((*in)[0].shape);
    const int last = spec.layer_begin(spec.convolutions - 1);
    unused_.resize(static_cast<size_t>(s.n) * (*in)[last].shape[0] * s.pixels());
    unit_.of(in, attributes_).run((*in)[0].data<float>(), unused_.data(), (*out)[0].data<float>());
  }

 private:
  Made<attn::FixedUnit<float>> unit_;
  std::vector<float> unused_;
};

MXReturnValue ranges_shape(const Attributes& attributes, Shapes* in, Shapes* out) {
  (*out)[0] = {(*in)[0][0], static_cast<unsigned>(std::stoi(attributes.at("convolutions")))};
  return mxnet::ext::MX_SUCCESS;
}

class FixedPoolOperator : public InferenceOperator<FixedPoolOperator> {
 public:
  using InferenceOperator::InferenceOperator;
  template <class T>
  void run(Tensors* in, MXTensor* out) {
    attn::max_pool((*in)[0].data<T>(), out->data<T>(), shape_of((*in)[0].shape), shape_of(out->shape));
  }
};

class FixedUpsampleOperator : public InferenceOperator<FixedUpsampleOperator> {
 public:
  using InferenceOperator::InferenceOperator;
  template <class T>
  void run(Tensors* in, MXTensor* out) {
    attn::upsample_forward<T>((*in)[0].data<T>(), shape_of((*in)[0].shape), maps_of<T>(in, 1),
                              out->data<T>(), shape_of(out->shape));
  }
};

class FixedMaskOperator : public InferenceOperator<FixedMaskOperator> {
 public:
  using InferenceOperator::InferenceOperator;
  template <class T>
  void run(Tensors* in, MXTensor* out) {
    attn::mask_forward<T>(mask_of(attributes_), (*in)[0].data<T>(), (*in)[1].data<T>(), out->data<T>(),
                          shape_of(out->shape));
  }
};

class FixedBlockOperator : public InferenceOperator<FixedBlockOperator> {
 public:
  using InferenceOperator::InferenceOperator;
  template <class T>
  void run(Tensors* in, MXTensor* out) {
    attn::to_blocks((*in)[0].data<float>(), out->data<T>(), shape_of(out->shape));
  }
};

class FixedMeanOperator : public InferenceOperator<FixedMeanOperator> {
 public:
  using InferenceOperator::InferenceOperator;
  template <class T>
  void run(Tensors* in, MXTensor* out) {
    const attn::Shape s = shape_of((*in)[0].shape);
    attn::Affine norm;
    if (in->size() > 1) {
      const attn::Arrays a = arrays(in, 1, 4);
      norm = attn::affine_of({a[0], a[1], a[2], a[3]}, s.c, attn::real(attributes_.at("epsilon")));
    }
    attn::mean_of((*in)[0].data<T>(), s, norm.scale, norm.shift, out->data<float>());
  }
};

// The first `maps` inputs are maps, and the output where `out_too`.
template <int maps, bool out_too>
MXReturnValue inference_types(const Attributes& attributes, std::vector<int>* in,
                              std::vector<int>* out) {
  const int type = is_bfloat16(attributes) ? mxnet::ext::kFloat16 : mxnet::ext::kFloat32;
  for (size_t i = 0; i < in->size(); ++i)
    (*in)[i] = static_cast<int>(i) < maps ? type : mxnet::ext::kFloat32;
  (*out)[0] = out_too ? type : mxnet::ext::kFloat32;
  return mxnet::ext::MX_SUCCESS;
}

constexpr int kAll = 1 << 20;

}  // namespace

#define ATTN_INFERENCE(name, kind, shape, maps, out_too)  \
  REGISTER_OP(name)                                       \
      .setParseAttrs(count)                               \
      .setInferType(inference_types<maps, out_too>)       \
      .setInferShape(shape)                               \
      .setMutateInputs(no_writes)                         \
      .setCreateOpState(create<kind>, "cpu")

ATTN_INFERENCE(attn_infer_unit, FixedUnitOperator, unit_shape, 1, true);
ATTN_INFERENCE(attn_infer_ranges, RangesOperator, ranges_shape, 1, false);
ATTN_INFERENCE(attn_infer_pool, FixedPoolOperator, pool_shape, kAll, true);
ATTN_INFERENCE(attn_infer_upsample, FixedUpsampleOperator, upsample_shape, kAll, true);
ATTN_INFERENCE(attn_infer_mask, FixedMaskOperator, same_shape, kAll, true);
ATTN_INFERENCE(attn_infer_block, FixedBlockOperator, same_shape, 0, true);
ATTN_INFERENCE(attn_infer_mean, FixedMeanOperator, mean_shape, 1, false);
