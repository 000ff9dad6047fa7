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

// What convolution i reads of a chunk.
const void* Unit::source_2(int i, int first) const {
  const Layer& l = *layers_[i];
  const float* before = (i ? l.before.data() : arrays_[0]) + first * l.in.image();
  return activated(l.norm, before, part(l.in), &scratch().source);
}

void Unit::forward_2(float* y) {
  const float* x = arrays_[0];
  layers_[0]->norm.begin(in_);
  for (int first = 0; first < in_.n; first += chunk_)
    layers_[0]->norm.take(x + first * in_.image(), first, part(in_));
  finish(layers_[0].get());
  for (int i = 0; i < spec_.convolutions; ++i) {
    Layer& l = *layers_[i];
    Layer* next = i + 1 < spec_.convolutions ? layers_[i + 1].get() : nullptr;
    conv(l).set_forward_weight(arrays_[l.at]);
    if (i == 0 && side()) conv(*side()).set_forward_weight(arrays_[side()->at]);
    if (next) next->norm.begin(l.out);
    if (!next && spec_.gated) last_norm_.begin(l.out);
    if (next) next->before.get(l.out.size());
    if (!next && spec_.gated) ungated_.get(l.out.size());
    for (int first = 0; first < in_.n; first += chunk_) {
      const size_t into = first * l.out.image();
      const void* src = source_2(i, first);
      // The shortcut's maps wait in y.
      if (i == 0 && side()) conv(*side()).forward(src, y + first * out_.image());
      if (next) {
        conv(l).forward(src, next->before.data() + into);
        next->norm.take(next->before.data() + into, first, part(l.out));
      } else if (spec_.gated) {
        conv(l).forward(src, ungated_.data() + into);
        last_norm_.take(ungated_.data() + into, first, part(l.out));
      } else if (side()) {
        float* part_of_y = scratch().side.get(part(l.out).size());
        conv(l).forward(src, part_of_y);
        add(y + into, part_of_y, part(l.out));
      } else {
        conv(l).forward(src, y + into);
        if (spec_.shortcut) add(y + into, x + into, part(l.out));
      }
    }
    if (next) finish(next);
  }
  if (spec_.gated) tail_2(y);
}

void Unit::tail_2(float* y) {
  std::vector<float> means(static_cast<size_t>(out_.n) * out_.c);
  for (int n = 0; n < out_.n; ++n)
    for (int c = 0; c < out_.c; ++c)
      means[static_cast<size_t>(n) * out_.c + c] = last_norm_.image_mean(n, c);
  open_gate(means);
  const float *c = ungated_.data(), *other = side() ? y : arrays_[0];
  each(out_, [&](int n, int b) {
    const Lanes a = load(gate_.value.data() + static_cast<size_t>(n) * out_.c + b * kLanes);
    return [=](size_t i) { store(y + i, a * load(c + i) + load(other + i)); };
  });
}

void Unit::gate_sums_2(const float* dy) {
  const size_t count = static_cast<size_t>(out_.n) * out_.c;
  sum_.resize(count), product_.resize(count);
  const float* c = ungated_.data();
  sums(out_, sum_.data(), product_.data(), [&](int, int) {
    return [=](size_t i, Lanes& s, Lanes& p) {
      const Lanes d = load(dy + i);
      s += d;
      p += d * load(c + i);
    };
  });
  close_gate(product_);
}

// A chunk of the gradient of what the last convolution gave.
const void* Unit::tail_backward_2(const float* dy, int first) {
  const float* from_above = dy + first * out_.image();
  if (!spec_.gated) return operand(from_above, part(out_), &scratch().gradient);
  return written(part(out_), &scratch().gradient, [&](int n, int b) {
    const size_t at = static_cast<size_t>(first + n) * out_.c + b * kLanes;
    const Lanes a = load(gate_.value.data() + at);
    const Lanes q = load(gate_.mean_gradient.data() + at) / static_cast<float>(out_.pixels());
    return [=](size_t k) { return a * load(from_above + k) + q; };
  });
}

void Unit::backward_2(const float* dy) {
  const float* x = arrays_[0];
  if (spec_.gated) gate_sums_2(dy);
  Buffer *above = &scratch().above, *below = &scratch().below;
  for (int i = spec_.convolutions - 1; i >= 0; --i) {
    Layer& l = *layers_[i];
    Layer* next = i + 1 < spec_.convolutions ? layers_[i + 1].get() : nullptr;
    conv(l).set_backward_weight(arrays_[l.at]);
    if (i == 0 && side()) conv(*side()).set_backward_weight(arrays_[side()->at]);
    const float* before = i ? l.before.data() : x;
    float* da = below->get(l.in.size());
    sum_.resize(static_cast<size_t>(in_.n) * l.in.c);
    product_.resize(sum_.size());
    for (int first = 0; first < in_.n; first += chunk_) {
      const size_t from = first * l.in.image(), into = first * l.out.image();
      const void* d = next ? normalised_gradient(next->norm, above->data() + into,
                                                 next->before.data() + into, part(l.out))
                           : tail_backward_2(dy, first);
      const void* src = source_2(i, first);
      conv(l).backward_weight(src, d, first == 0);
      conv(l).backward_data(d, da + from);
      if (i == 0 && side()) {
        const void* ds = operand(dy + first * out_.image(), part(out_), &scratch().other);
        float* more = scratch().side.get(part(in_).size());
        conv(*side()).backward_weight(src, ds, first == 0);
        conv(*side()).backward_data(ds, more);
        add(da + from, more, part(in_));
      }
      l.norm.activated_sums(da + from, before + from, first, part(l.in), &sum_, &product_);
    }
    conv(l).weight_gradient(gradients_[l.at]);
    if (i == 0 && side()) conv(*side()).weight_gradient(gradients_[side()->at]);
    l.norm.backward(sum_, product_, gradients_[l.at + 1], gradients_[l.at + 2]);
    std::swap(above, below);
  }
  input_backward_2(above->data(), spec_.shortcut && !side() ? dy : nullptr);
}

// The gradient of x from that of what the first convolution read, and from the shortcut.
void Unit::input_backward_2(const float* da, const float* also) {
  const float* x = arrays_[0];
  float* dx = gradients_[0];
  each(in_, [&](int, int b) {
    const auto through = layers_[0]->norm.activated_gradient(da, x, b);
    return [=](size_t i) {
      const Lanes g = through(i);
      store(dx + i, also ? g + load(also + i) : g);
    };
  });
}

}  // namespace attn
