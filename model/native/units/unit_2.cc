// Version 2: normalisation and relu before each convolution, nothing after the addition.
#include "unit.h"

namespace attn {

namespace {

template <class T>
void add(T* to, const float* from, const Shape& s) {
  each(s, [&](int, int) {
    return [=](size_t i) { store(to + i, load(to + i) + load(from + i)); };
  });
}

}  // namespace

// What convolution i reads of a chunk.
const void* Unit::source_2(int i, int first) const {
  const Layer& l = *layers_[i];
  const size_t offset = first * l.in.image();
  Buffer* to = &scratch().source;
  if (i == 0) return activated(l.norm, arrays_[0] + offset, part(l.in), to);
  return l.before.with(offset, [&](auto* maps) { return activated(l.norm, maps, part(l.in), to); });
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
    if (i == 0 && projection()) conv(*projection()).set_forward_weight(arrays_[projection()->at]);
    if (next) next->norm.begin(l.out);
    if (!next && spec_.gated) last_norm_.begin(l.out);
    if (next) next->before.get(l.out.size(), spec_.bfloat16);
    if (!next && spec_.gated) ungated_.get(l.out.size(), spec_.bfloat16);
    for (int first = 0; first < in_.n; first += chunk_) {
      const size_t into = first * l.out.image();
      const void* src = source_2(i, first);
      // The shortcut's maps wait in y.
      if (i == 0 && projection()) conv(*projection()).forward(src, y + first * out_.image());
      if (next || spec_.gated) {
        const Kept& kept = next ? next->before : ungated_;
        Norm& norm = next ? next->norm : last_norm_;
        conv(l).forward(src, kept.at(into));
        kept.with(into, [&](auto* maps) { norm.take(maps, first, part(l.out)); });
      } else if (projection()) {
        float* part_of_y = scratch().projection.get(part(l.out).size());
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
  const float* other = projection() ? y : arrays_[0];
  ungated_.with(0, [&](auto* c) {
    each(out_, [&](int n, int b) {
      const Lanes a = load(gate_.value.data() + static_cast<size_t>(n) * out_.c + b * kLanes);
      return [=](size_t i) { store(y + i, a * load(c + i) + load(other + i)); };
    });
  });
}

void Unit::gate_sums_2(const float* dy) {
  const size_t count = static_cast<size_t>(out_.n) * out_.c;
  sum_.resize(count), product_.resize(count);
  ungated_.with(0, [&](auto* c) {
    sums(out_, sum_.data(), product_.data(), [&](int, int) {
      return [=](size_t i, Lanes& s, Lanes& p) {
        const Lanes d = load(dy + i);
        s += d;
        p += d * load(c + i);
      };
    });
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
  Kept *above = &scratch().above, *below = &scratch().below;
  for (int i = spec_.convolutions - 1; i >= 0; --i) {
    Layer& l = *layers_[i];
    Layer* next = i + 1 < spec_.convolutions ? layers_[i + 1].get() : nullptr;
    conv(l).set_backward_weight(arrays_[l.at]);
    if (i == 0 && projection()) conv(*projection()).set_backward_weight(arrays_[projection()->at]);
    below->get(l.in.size(), spec_.bfloat16);
    sum_.resize(static_cast<size_t>(in_.n) * l.in.c);
    product_.resize(sum_.size());
    for (int first = 0; first < in_.n; first += chunk_) {
      const size_t from = first * l.in.image(), into = first * l.out.image();
      const void* d = next ? normalised_gradient(next->norm, *above, next->before, into, part(l.out))
                           : tail_backward_2(dy, first);
      const void* src = source_2(i, first);
      conv(l).backward_weight(src, d, first == 0);
      conv(l).backward_data(d, below->at(from));
      if (i == 0 && projection()) {
        const void* ds = operand(dy + first * out_.image(), part(out_), &scratch().other);
        float* more = scratch().projection.get(part(in_).size());
        conv(*projection()).backward_weight(src, ds, first == 0);
        conv(*projection()).backward_data(ds, more);
        below->with(from, [&](auto* da) { add(da, more, part(in_)); });
      }
      below->with(from, [&](auto* da) {
        const auto add_up = [&](auto* maps) {
          l.norm.activated_sums(da, maps, first, part(l.in), &sum_, &product_);
        };
        i ? l.before.with(from, add_up) : add_up(x + from);
      });
    }
    conv(l).weight_gradient(gradients_[l.at]);
    if (i == 0 && projection()) conv(*projection()).weight_gradient(gradients_[projection()->at]);
    l.norm.backward(sum_, product_, gradients_[l.at + 1], gradients_[l.at + 2]);
    std::swap(above, below);
  }
  input_backward_2(*above, spec_.shortcut && !projection() ? dy : nullptr);
}

// The gradient of x from that of what the first convolution read, and from the shortcut.
void Unit::input_backward_2(const Kept& kept, const float* also) {
  const float* x = arrays_[0];
  float* dx = gradients_[0];
  kept.with(0, [&](auto* da) {
    each(in_, [&](int, int b) {
      const auto through = layers_[0]->norm.activated_gradient(da, x, b);
      return [=](size_t i) {
        const Lanes g = through(i);
        store(dx + i, also ? g + load(also + i) : g);
      };
    });
  });
}

}  // namespace attn
