// Version 2: normalisation and relu before each convolution, nothing after the addition.
#include "unit.h"

namespace attn {

namespace {

void add(float* to, const float* from, const Shape& s) {
  each(s, [&](int, int) {
    return [=](size_t i) { store(to + i, load(to + i) + load(from + i)); };
  });
}

}  // namespace

void Unit::forward_2(float* y) {
  const float* x = arrays_[0];
  layers_[0]->norm.begin(in_);
  for (int first = 0; first < in_.n; first += chunk_)
    layers_[0]->norm.take(x + first * in_.image(), first, part(in_));
  finish(layers_[0].get());
  if (side()) side()->before.get(side()->out.size());
  for (int i = 0; i < spec_.convolutions; ++i) {
    Layer& l = *layers_[i];
    Layer* next = i + 1 < spec_.convolutions ? layers_[i + 1].get() : nullptr;
    conv(l).set_forward_weight(arrays_[l.at]);
    if (i == 0 && side()) conv(*side()).set_forward_weight(arrays_[side()->at]);
    const float* before = i ? l.before.data() : x;
    float* after = l.after.get(l.in.size());
    if (next) next->norm.begin(l.out);
    if (!next && spec_.gated) last_norm_.begin(l.out);
    float* to = next ? next->before.get(l.out.size())
                     : (spec_.gated ? scratch_.get(l.out.size()) : y);
    for (int first = 0; first < in_.n; first += chunk_) {
      const size_t from = first * l.in.image(), into = first * l.out.image();
      l.norm.activate(before + from, after + from, part(l.in));
      conv(l).forward(after + from, to + into);
      if (i == 0 && side())
        conv(*side()).forward(after + from, side()->before.data() + first * out_.image());
      if (next)
        next->norm.take(to + into, first, part(l.out));
      else if (spec_.gated)
        last_norm_.take(to + into, first, part(l.out));
      else if (spec_.shortcut)
        add(to + into, (side() ? side()->before.data() : x) + into, part(l.out));
    }
    if (next) finish(next);
  }
  if (!spec_.gated) return;
  std::vector<float> means(static_cast<size_t>(out_.n) * out_.c);
  for (int n = 0; n < out_.n; ++n)
    for (int c = 0; c < out_.c; ++c)
      means[static_cast<size_t>(n) * out_.c + c] = last_norm_.image_mean(n, c);
  open_gate(means);
  const float *c = scratch_.data(), *other = side() ? side()->before.data() : x;
  each(out_, [&](int n, int b) {
    const Lanes a = load(gate_.value.data() + static_cast<size_t>(n) * out_.c + b * kLanes);
    return [=](size_t i) { store(y + i, a * load(c + i) + load(other + i)); };
  });
}

void Unit::backward_2(const float* dy) {
  const float* x = arrays_[0];
  if (spec_.gated) {
    const size_t count = static_cast<size_t>(out_.n) * out_.c;
    sum_.resize(count), product_.resize(count);
    const float* c = scratch_.data();
    sums(out_, sum_.data(), product_.data(), [&](int, int) {
      return [=](size_t i, Lanes& s, Lanes& p) {
        const Lanes d = load(dy + i);
        s += d;
        p += d * load(c + i);
      };
    });
    close_gate(product_);
  }
  for (int i = spec_.convolutions - 1; i >= 0; --i) {
    Layer& l = *layers_[i];
    Layer* next = i + 1 < spec_.convolutions ? layers_[i + 1].get() : nullptr;
    conv(l).set_backward_weight(arrays_[l.at]);
    if (i == 0 && side()) conv(*side()).set_backward_weight(arrays_[side()->at]);
    const float* before = i ? l.before.data() : x;
    sum_.resize(static_cast<size_t>(in_.n) * l.in.c);
    product_.resize(sum_.size());
    for (int first = 0; first < in_.n; first += chunk_) {
      const size_t from = first * l.in.image(), into = first * l.out.image();
      const float* d = dy + into;
      if (next) {
        float* da = next->after.data() + into;
        next->norm.activated_backward(da, next->before.data() + into, nullptr, da, part(l.out));
        d = da;
      } else if (spec_.gated) {
        float* dc = scratch_.data() + into;
        const float* from_above = dy + into;
        each(part(l.out), [&](int n, int b) {
          const size_t at = static_cast<size_t>(first + n) * out_.c + b * kLanes;
          const Lanes a = load(gate_.value.data() + at);
          const Lanes q = load(gate_.mean_gradient.data() + at) / static_cast<float>(out_.pixels());
          return [=](size_t k) { store(dc + k, a * load(from_above + k) + q); };
        });
        d = dc;
      }
      float* after = l.after.data() + from;
      conv(l).backward_weight(after, d, first == 0);
      if (i == 0 && side()) {
        conv(*side()).backward_weight(after, dy + first * out_.image(), first == 0);
        conv(l).backward_data(d, after);
        float* other = side_scratch_.get(part(in_).size());
        conv(*side()).backward_data(dy + first * out_.image(), other);
        add(after, other, part(in_));
      } else {
        conv(l).backward_data(d, after);
      }
      l.norm.activated_sums(after, before + from, first, part(l.in), &sum_, &product_);
    }
    conv(l).weight_gradient(gradients_[l.at]);
    if (i == 0 && side()) conv(*side()).weight_gradient(gradients_[side()->at]);
    l.norm.backward(sum_, product_, gradients_[l.at + 1], gradients_[l.at + 2]);
  }
  const Layer& first = *layers_[0];
  first.norm.activated_backward(first.after.data(), x,
                                spec_.shortcut && !side() ? dy : nullptr, gradients_[0], in_);
}

}  // namespace attn
