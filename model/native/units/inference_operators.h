// The operators of inference as MXNet sees them. Included by operators.cc alone.
//
// Where `precision` is bfloat16, maps are arrays of float16 to MXNet: two bytes a number, and no
// other operator but these reads them. Parameters, images and means are float32.
#pragma once
#include "inference.h"

namespace {

bool is_half(const Attributes& attributes) { return attributes.at("precision") == "bfloat16"; }

template <class T>
std::vector<const T*> maps_of(Tensors* tensors, size_t begin) {
  std::vector<const T*> found;
  for (size_t i = begin; i < tensors->size(); ++i) found.push_back((*tensors)[i].data<T>());
  return found;
}

// An operator without a backward pass; `run<T>` computes it.
template <class Self>
class InferenceOperator : public Operator {
 public:
  using Operator::Operator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    auto* self = static_cast<Self*>(this);
    is_half(attributes_) ? self->template run<attn::Half>(in, &(*out)[0])
                         : self->template run<float>(in, &(*out)[0]);
  }
  void backward(Tensors*, Tensors*) override { throw std::runtime_error("it is for inference only"); }
};

class FixedUnitOperator : public InferenceOperator<FixedUnitOperator> {
 public:
  using InferenceOperator::InferenceOperator;

  template <class T>
  void run(Tensors* in, MXTensor* out) {
    auto& unit = place(static_cast<T*>(nullptr));
    if (!unit || shape_ != (*in)[0].shape) {
      shape_ = (*in)[0].shape;
      const attn::UnitSpec spec(attributes_);
      std::vector<attn::Shape> kernels;
      for (int i = 0; i < spec.convolutions + (spec.projected ? 1 : 0); ++i)
        kernels.push_back(shape_of((*in)[1 + 5 * i].shape));
      unit.reset(new attn::FixedUnit<T>(spec, shape_of(shape_), kernels, arrays(in, 0, in->size())));
    }
    unit->run((*in)[0].data<T>(), out->data<T>());
  }

 private:
  std::unique_ptr<attn::FixedUnit<float>>& place(float*) { return wide_; }
  std::unique_ptr<attn::FixedUnit<attn::Half>>& place(attn::Half*) { return half_; }
  std::unique_ptr<attn::FixedUnit<float>> wide_;
  std::unique_ptr<attn::FixedUnit<attn::Half>> half_;
  std::vector<int64_t> shape_;
};

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
      norm = attn::affine_of({a[0], a[1], a[2], a[3]}, s.c, std::stof(attributes_.at("epsilon")));
    }
    attn::mean_of((*in)[0].data<T>(), s, norm, out->data<float>());
  }
};

// The first `maps` inputs are maps, and the output where `out_too`.
template <int maps, bool out_too>
MXReturnValue inference_types(const Attributes& attributes, std::vector<int>* in,
                              std::vector<int>* out) {
  const int type = is_half(attributes) ? mxnet::ext::kFloat16 : mxnet::ext::kFloat32;
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
ATTN_INFERENCE(attn_infer_pool, FixedPoolOperator, pool_shape, kAll, true);
ATTN_INFERENCE(attn_infer_upsample, FixedUpsampleOperator, upsample_shape, kAll, true);
ATTN_INFERENCE(attn_infer_mask, FixedMaskOperator, same_shape, kAll, true);
ATTN_INFERENCE(attn_infer_block, FixedBlockOperator, same_shape, 0, true);
ATTN_INFERENCE(attn_infer_mean, FixedMeanOperator, mean_shape, 1, false);
