// One step of gradient descent with momentum for many arrays at once. Included by operators.cc alone.
//
// Inputs: `count` weights, as many gradients and momenta, then (2, count): rates and decays. Outputs:
// the weights and momenta after the step. They may be the same arrays: a number depends on those of
// its own place alone. Outputs rather than inputs that are written to: MXNet hands over a copy of an
// input that oneDNN has reordered, and what is written to the copy is lost.
#pragma once
#include <omp.h>

namespace {

struct Step {
  const float *weight, *gradient, *momentum;
  float *weight_out, *momentum_out;
  float rate, decay;
};

// The momentum of Nesterov's form decays by the new weight, as in MXNet's nag_mom_update.
template <bool kNesterov>
void update(const Step& s, float mu, float scale, size_t begin, size_t end) {
#pragma omp simd
  for (size_t i = begin; i < end; ++i) {
    const float w = s.weight[i], g = scale * s.gradient[i], m = mu * s.momentum[i];
    const float next = m - s.rate * (g + s.decay * w);
    const float weight = kNesterov ? w - m + (mu + 1) * next : w + next;
    s.momentum_out[i] = kNesterov ? m - s.rate * (g + s.decay * weight) : next;
    s.weight_out[i] = weight;
  }
}

MXReturnValue update_forward(const Attributes& attributes, Tensors* in, Tensors* out,
                             const OpResource&) {
  const size_t count = std::stoul(attributes.at("count"));
  const float mu = attn::real(attributes.at("momentum")), scale = attn::real(attributes.at("scale"));
  const bool nesterov = attributes.at("nesterov") == "1";
  const float* rates = (*in)[3 * count].data<float>();
  std::vector<Step> steps;
  std::vector<size_t> ends;  // of each array, were they all one
  for (size_t i = 0; i < count; ++i) {
    steps.push_back({(*in)[i].data<float>(), (*in)[count + i].data<float>(),
                     (*in)[2 * count + i].data<float>(), (*out)[i].data<float>(),
                     (*out)[count + i].data<float>(), rates[i], rates[count + i]});
    ends.push_back((ends.empty() ? 0 : ends.back()) + (*in)[i].size());
  }
#pragma omp parallel
  {
    const size_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const size_t from = ends.back() * thread / threads, to = ends.back() * (thread + 1) / threads;
    size_t i = std::upper_bound(ends.begin(), ends.end(), from) - ends.begin();
    for (; i < count && ends[i] - (*in)[i].size() < to; ++i) {
      const size_t start = ends[i] - (*in)[i].size();
      const size_t begin = std::max(from, start) - start, end = std::min(to, ends[i]) - start;
      nesterov ? update<true>(steps[i], mu, scale, begin, end)
               : update<false>(steps[i], mu, scale, begin, end);
    }
  }
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue update_count(const Attributes& attributes, int* in, int* out) {
  const int count = std::stoi(attributes.at("count"));
  *in = 3 * count + 1;
  *out = 2 * count;
  return mxnet::ext::MX_SUCCESS;
}

MXReturnValue update_shape(const Attributes&, Shapes* in, Shapes* out) {
  const size_t count = out->size() / 2;
  for (size_t i = 0; i < count; ++i) {
    if ((*in)[i] != (*in)[count + i] || (*in)[i] != (*in)[2 * count + i]) return mxnet::ext::MX_FAIL;
    (*out)[i] = (*out)[count + i] = (*in)[i];
  }
  return mxnet::ext::MX_SUCCESS;
}

}  // namespace

REGISTER_OP(attn_update)
    .setParseAttrs(update_count)
    .setInferType(types)
    .setInferShape(update_shape)
    .setForward(update_forward, "cpu");
