// The operators as MXNet sees them; every array of training is float32 and dense.
#include <exception>

#include <mxnet/lib_api.h>
#include "maps.h"
#include "unit.h"

using mxnet::ext::CustomStatefulOp;
using mxnet::ext::MXReturnValue;
using mxnet::ext::MXTensor;
using mxnet::ext::OpResource;
typedef std::unordered_map<std::string, std::string> Attributes;
typedef std::vector<std::vector<unsigned int>> Shapes;
typedef std::vector<MXTensor> Tensors;

namespace {

attn::Shape shape_of(const std::vector<int64_t>& s) {
  return {static_cast<int>(s[0]), static_cast<int>(s[1]), static_cast<int>(s[2]),
          static_cast<int>(s[3])};
}

attn::Arrays arrays(Tensors* tensors, size_t begin, size_t count) {
  attn::Arrays found;
  for (size_t i = begin; i < begin + count; ++i) found.push_back((*tensors)[i].data<float>());
  return found;
}

// Of a unit's convolutions, that of the shortcut last.
std::vector<attn::Shape> kernels_of(const attn::UnitSpec& spec, const Tensors& in) {
  std::vector<attn::Shape> found;
  for (int i = 0; i < spec.convolutions + (spec.projected ? 1 : 0); ++i)
    found.push_back(shape_of(in[spec.layer_begin(i)].shape));
  return found;
}

attn::Mask mask_of(const Attributes& attributes) {
  return {attributes.at("attention"), attributes.at("learning")};
}

// Backward passes get the gradients of the outputs, the inputs and the outputs.
class Operator : public CustomStatefulOp {
 public:
  explicit Operator(Attributes attributes) : attributes_(attributes) {}
  MXReturnValue Forward(Tensors* in, Tensors* out, const OpResource&) override {
    return guarded([&] { forward(in, out); });
  }
  MXReturnValue Backward(Tensors* in, Tensors* out, const OpResource&) override {
    return guarded([&] { backward(in, out); });
  }

 protected:
  virtual void forward(Tensors* in, Tensors* out) = 0;
  virtual void backward(Tensors* in, Tensors* out) = 0;
  Attributes attributes_;

 private:
  template <class Action>
  MXReturnValue guarded(Action action) {
    try {
      action();
      return mxnet::ext::MX_SUCCESS;
    } catch (const std::exception& error) {
      MX_ERROR_MSG << "fused operator: " << error.what() << std::endl;
      return mxnet::ext::MX_FAIL;
    }
  }
};

class UnitOperator : public Operator {
 public:
  using Operator::Operator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    const attn::UnitSpec spec(attributes_);
    if (!unit_ || shape_ != (*in)[0].shape) {
      unit_.reset(new attn::Unit(spec, shape_of((*in)[0].shape), kernels_of(spec, *in)));
      shape_ = (*in)[0].shape;  // last: what throws above leaves nothing that looks made for it
    }
    unit_->forward(arrays(in, 0, in->size()), (*out)[0].data<float>());
  }
  void backward(Tensors* in, Tensors* out) override {
    const size_t count = out->size();
    if (!unit_ || !unit_->backward(arrays(in, 1, count), (*in)[0].data<float>(),
                                   arrays(out, 0, count)))
      throw std::runtime_error("a second backward pass through the same forward pass");
  }

 private:
  std::unique_ptr<attn::Unit> unit_;
  std::vector<int64_t> shape_;
};

class PoolOperator : public Operator {
 public:
  using Operator::Operator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    if (!pool_ || shape_ != (*in)[0].shape) {
      pool_.reset(new attn::MaxPool(shape_of((*in)[0].shape)));
      shape_ = (*in)[0].shape;
    }
    pool_->forward((*in)[0].data<float>(), (*out)[0].data<float>());
  }
  void backward(Tensors* in, Tensors* out) override {
    pool_->backward((*in)[0].data<float>(), (*out)[0].data<float>());
  }

 private:
  std::unique_ptr<attn::MaxPool> pool_;
  std::vector<int64_t> shape_;
};

class UpsampleOperator : public Operator {
 public:
  using Operator::Operator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    std::vector<const float*> others;
    for (size_t i = 1; i < in->size(); ++i) others.push_back((*in)[i].data<float>());
    attn::upsample_forward<float>((*in)[0].data<float>(), shape_of((*in)[0].shape), others,
                                  (*out)[0].data<float>(), shape_of((*out)[0].shape));
  }
  void backward(Tensors* in, Tensors* out) override {
    const float* dy = (*in)[0].data<float>();
    const attn::Shape to = shape_of((*in)[0].shape);
    attn::upsample_backward(dy, to, (*out)[0].data<float>(), shape_of((*out)[0].shape));
    for (size_t i = 1; i < out->size(); ++i)
      std::memcpy((*out)[i].data<float>(), dy, to.size() * sizeof(float));
  }
};

class MaskOperator : public Operator {
 public:
  using Operator::Operator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    attn::mask_forward<float>(mask_of(attributes_), (*in)[0].data<float>(), (*in)[1].data<float>(),
                              (*out)[0].data<float>(), shape_of((*in)[0].shape));
  }
  void backward(Tensors* in, Tensors* out) override {
    attn::mask_backward(mask_of(attributes_), (*in)[1].data<float>(), (*in)[2].data<float>(),
                        (*in)[0].data<float>(), (*out)[0].data<float>(), (*out)[1].data<float>(),
                        shape_of((*in)[0].shape));
  }
};

class BlockOperator : public Operator {
 public:
  using Operator::Operator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    attn::to_blocks((*in)[0].data<float>(), (*out)[0].data<float>(), shape_of((*in)[0].shape));
  }
  void backward(Tensors* in, Tensors* out) override {
    attn::from_blocks((*in)[0].data<float>(), (*out)[0].data<float>(), shape_of((*in)[0].shape));
  }
};

class MeanOperator : public Operator {
 public:
  using Operator::Operator;

 protected:
  void forward(Tensors* in, Tensors* out) override {
    const attn::Shape s = shape_of((*in)[0].shape);
    const auto a = arrays(in, 0, in->size());
    if (a.size() > 1) {
      mean_.norm.begin(s);
      mean_.norm.take(a[0], 0, s);
      mean_.norm.finish(a[1], a[2], attn::real(attributes_.at("epsilon")),
                        attn::real(attributes_.at("momentum")), a[3], a[4]);
    }
    mean_.forward(a[0], s, (*out)[0].data<float>());
  }
  void backward(Tensors* in, Tensors* out) override {
    const bool normed = out->size() > 1;
    mean_.backward((*in)[0].data<float>(), (*in)[1].data<float>(), shape_of((*in)[1].shape),
                   (*out)[0].data<float>(), normed ? (*out)[1].data<float>() : nullptr,
                   normed ? (*out)[2].data<float>() : nullptr);
  }

 private:
  attn::Mean mean_;
};

template <class Kind>
MXReturnValue create(const Attributes& attributes, const mxnet::ext::MXContext&, const Shapes&,
                     const std::vector<int>, CustomStatefulOp** made) {
  *made = CustomStatefulOp::create<Kind>(attributes);
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue types(const Attributes&, std::vector<int>* in, std::vector<int>* out) {
  for (int& type : *in) type = mxnet::ext::kFloat32;
  for (int& type : *out) type = mxnet::ext::kFloat32;
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue count(const Attributes& attributes, int* in, int* out) {
  *in = std::stoi(attributes.at("inputs"));
  *out = 1;
  return mxnet::ext::MX_SUCCESS;
}

// Whether all inputs from number `begin` have the shape of an output, so that none is read past its end.
MXReturnValue all_like(const Shapes& in, size_t begin, const Shapes::value_type& shape) {
  for (size_t i = begin; i < in.size(); ++i)
    if (in[i] != shape) {
      MX_ERROR_MSG << "fused operator: its maps have different shapes" << std::endl;
      return mxnet::ext::MX_FAIL;
    }
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue same_shape(const Attributes&, Shapes* in, Shapes* out) {
  (*out)[0] = (*in)[0];
  return all_like(*in, 1, (*out)[0]);
}

MXReturnValue unit_shape(const Attributes& attributes, Shapes* in, Shapes* out) {
  const unsigned stride = std::stoi(attributes.at("stride"));
  const auto& x = (*in)[0];
  if (x.size() != 4) return mxnet::ext::MX_FAIL;
  const int last = attn::UnitSpec::layer_begin(std::stoi(attributes.at("convolutions")) - 1);
  (*out)[0] = {x[0], (*in)[last][0], (x[2] - 1) / stride + 1, (x[3] - 1) / stride + 1};
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue pool_shape(const Attributes&, Shapes* in, Shapes* out) {
  const auto& x = (*in)[0];
  (*out)[0] = {x[0], x[1], (x[2] - 1) / 2 + 1, (x[3] - 1) / 2 + 1};
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue upsample_shape(const Attributes& attributes, Shapes* in, Shapes* out) {
  const auto& x = (*in)[0];
  (*out)[0] = {x[0], x[1], static_cast<unsigned>(std::stoi(attributes.at("height"))),
               static_cast<unsigned>(std::stoi(attributes.at("width")))};
  return all_like(*in, 1, (*out)[0]);
}

MXReturnValue mean_shape(const Attributes&, Shapes* in, Shapes* out) {
  (*out)[0] = {(*in)[0][0], (*in)[0][1]};
  return mxnet::ext::MX_SUCCESS;
}

// Running means and variances are written by the forward pass.
MXReturnValue unit_writes(const Attributes& attributes, std::vector<int>* indices) {
  const attn::UnitSpec spec(attributes);
  for (int i = 0; i < spec.convolutions + (spec.projected && spec.version == 1 ? 1 : 0); ++i)
    for (int k : {3, 4}) indices->push_back(spec.layer_begin(i) + k);
  for (int step = 1; spec.recurrent && step < spec.steps; ++step)
    for (int k : {4, 5}) indices->push_back(spec.gate_begin() + 4 * (step - 1) + k);
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue mean_writes(const Attributes& attributes, std::vector<int>* indices) {
  if (std::stoi(attributes.at("inputs")) > 1) *indices = {3, 4};
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue no_writes(const Attributes&, std::vector<int>*) { return mxnet::ext::MX_SUCCESS; }

}  // namespace

#define ATTN_OPERATOR(name, kind, shape, writes)                                        \
  REGISTER_OP(name)                                                                     \
      .setParseAttrs(count)                                                             \
      .setInferType(types)                                                              \
      .setInferShape(shape)                                                             \
      .setMutateInputs(writes)                                                          \
      .setCreateOpState(create<kind>, "cpu")

ATTN_OPERATOR(attn_unit, UnitOperator, unit_shape, unit_writes);
ATTN_OPERATOR(attn_pool, PoolOperator, pool_shape, no_writes);
ATTN_OPERATOR(attn_upsample, UpsampleOperator, upsample_shape, no_writes);
ATTN_OPERATOR(attn_mask, MaskOperator, same_shape, no_writes);
ATTN_OPERATOR(attn_block, BlockOperator, same_shape, no_writes);
ATTN_OPERATOR(attn_mean, MeanOperator, mean_shape, mean_writes);

#include "inference_operators.h"
#include "update.h"

__attribute__((visibility("default"))) MXReturnValue initialize(int version) {
  if (version >= 10700) return mxnet::ext::MX_SUCCESS;
  MX_ERROR_MSG << "MXNet version " << version << " not supported" << std::endl;
  return mxnet::ext::MX_FAIL;
}
