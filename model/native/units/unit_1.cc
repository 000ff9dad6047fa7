// Version 1: normalisation after each convolution; the tail adds the shortcut and has the last relu.
#include "unit.h"

namespace attn {

// What convolution i reads of a chunk.
const void* Unit::source_1(int i, int first) const {
  const Layer& l = *layers_[i];
  const size_t offset = first * l.in.image();
  Buffer* to = &scratch().source;
  if (i == 0) return operand(arrays_[0] + offset, part(l.in), to);
  const Layer& previous = *layers_[i - 1];
  return previous.before.with(
      offset, [&](auto* maps) { return activated(previous.norm, maps, part(l.in), to); });
}

// The output of a layer for a chunk, and its statistics.
void Unit::convolve(Layer* l, const void* src, int first) {
  const size_t into = first * l->out.image();
  conv(*l).forward(src, l->before.at(into));
  l->before.with(into, [&](auto* maps) { l->norm.take(maps, first, part(l->out)); });
}

void Unit::forward_1(float* y) {
  for (auto& l : layers_) {
    l->norm.begin(l->out);
    l->before.get(l->out.size(), spec_.bfloat16);
  }
  if (projection()) conv(*projection()).set_forward_weight(arrays_[projection()->at]);
  for (int i = 0; i < spec_.convolutions; ++i) {
    Layer& l = *layers_[i];
    // Layers of equal shape share the place of the weight.
    conv(l).set_forward_weight(arrays_[l.at]);
    for (int first = 0; first < in_.n; first += chunk_) {
      const void* src = source_1(i, first);
      convolve(&l, src, first);
      if (i == 0 && projection()) convolve(projection(), src, first);
    }
    finish(&l);
  }
  if (projection()) finish(projection());
  tail(y);
}

void Unit::tail(float* y) {
  const Norm& norm = last().norm;
  if (spec_.gated) {
    std::vector<float> means(static_cast<size_t>(out_.n) * out_.c);
    for (int n = 0; n < out_.n; ++n)
      for (int c = 0; c < out_.c; ++c)
        means[static_cast<size_t>(n) * out_.c + c] =
            norm.scale[c] * norm.image_mean(n, c) + norm.shift[c];
    open_gate(means);
  }
  last().before.with(0, [&](auto* c) { tail_of(c, y); });
}

template <class T>
void Unit::tail_of(const T* c, float* y) {
  const Norm& norm = last().norm;
  const float* x = arrays_[0];
  active_.resize(out_.size() / kLanes);
  Bits* active = active_.data();
  const Layer* beside = projection();
  const T* projected = beside ? static_cast<const T*>(beside->before.at(0)) : nullptr;
  each(out_, [&](int n, int b) {
    const int at = b * kLanes;
    Lanes k = load(norm.scale.data() + at), t = load(norm.shift.data() + at), ks{};
    if (spec_.gated) {
      const Lanes a = load(gate_.value.data() + static_cast<size_t>(n) * out_.c + at);
      k *= a;
      t *= a;
    }
    if (projected) {
      ks = load(beside->norm.scale.data() + at);
      t += load(beside->norm.shift.data() + at);
    }
    return [=](size_t i) {
      const Lanes s = projected ? ks * load(projected + i) : load(x + i);
      const Lanes v = k * load(c + i) + t + s;
      active[i / kLanes] = positive_bits(v);
      store(y + i, positive(v));
    };
  });
}

// (N, C) sums of the gradient behind the last relu, and of its products with a layer's output.
void Unit::tail_sums_of(const Layer& l, const float* dy, float* sum, float* product) const {
  const Bits* active = active_.data();
  l.before.with(0, [&](auto* maps) {
    sums(out_, sum, product, [&](int, int b) {
      const Lanes m = load(l.norm.mean.data() + b * kLanes);
      return [=](size_t i, Lanes& s, Lanes& p) {
        const Lanes d = where(active[i / kLanes], load(dy + i));
        s += d;
        p += d * (load(maps + i) - m);
      };
    });
  });
}

// Sums that the gradients of the last normalisation, the shortcut's and the gate need.
void Unit::tail_sums(const float* dy) {
  const Norm& norm = last().norm;
  const size_t count = static_cast<size_t>(out_.n) * out_.c;
  sum_.resize(count), product_.resize(count);
  tail_sums_of(last(), dy, sum_.data(), product_.data());
  if (projection()) {
    Layer& l = *projection();
    projection_product_.resize(count), projection_sum_.resize(count);
    tail_sums_of(l, dy, projection_sum_.data(), projection_product_.data());
    l.norm.backward(projection_sum_, projection_product_, gradients_[l.at + 1],
                    gradients_[l.at + 2]);
  }
  if (spec_.gated) {
    const float* beta = arrays_[last().at + 2];
    std::vector<float> da(count);
    for (size_t i = 0; i < count; ++i) {
      const size_t ch = i % out_.c;
      da[i] = norm.scale[ch] * product_[i] + beta[ch] * sum_[i];
    }
    close_gate(da);
    for (size_t i = 0; i < count; ++i) {
      const size_t ch = i % out_.c;
      const float off = norm.image_mean(static_cast<int>(i / out_.c), static_cast<int>(ch)) -
                        norm.mean[ch];
      sum_[i] = gate_.value[i] * sum_[i] + gate_.mean_gradient[i];
      product_[i] = gate_.value[i] * product_[i] + gate_.mean_gradient[i] * off;
    }
  }
  last().norm.backward(sum_, product_, gradients_[last().at + 1], gradients_[last().at + 2]);
}

// A chunk of the gradient of what the last convolution gave.
const void* Unit::tail_backward(const float* dy, int first) {
  const Norm& norm = last().norm;
  const size_t offset = first * out_.image();
  const Bits* active = active_.data() + offset / kLanes;
  dy += offset;
  return last().before.with(offset, [&](auto* c) {
    return written(part(out_), &scratch().gradient, [&](int n, int b) {
      const int at = b * kLanes;
      Lanes k = load(norm.scale.data() + at), q = load(norm.q.data() + at);
      const Lanes p = load(norm.p.data() + at);
      if (spec_.gated) {
        const size_t i = static_cast<size_t>(first + n) * out_.c + at;
        q += k * load(gate_.mean_gradient.data() + i) / static_cast<float>(out_.pixels());
        k *= load(gate_.value.data() + i);
      }
      return [=](size_t i) {
        const Lanes d = where(active[i / kLanes], load(dy + i));
        return k * d + (p * load(c + i) + q);
      };
    });
  });
}

// The same of what the shortcut's convolution gave.
const void* Unit::projection_backward(const float* dy, int first) {
  const Norm& norm = projection()->norm;
  const size_t offset = first * out_.image();
  const Bits* active = active_.data() + offset / kLanes;
  dy += offset;
  return projection()->before.with(offset, [&](auto* s) {
    return written(part(out_), &scratch().other, [&](int, int b) {
      const int at = b * kLanes;
      const Lanes k = load(norm.scale.data() + at), p = load(norm.p.data() + at);
      const Lanes q = load(norm.q.data() + at);
      return [=](size_t i) {
        const Lanes d = where(active[i / kLanes], load(dy + i));
        return k * d + (p * load(s + i) + q);
      };
    });
  });
}

// Add what comes through the shortcut to a chunk of the gradient of x.
void Unit::shortcut_backward_1(const float* dy, const void* source, int first) {
  const size_t offset = first * in_.image();
  float* dx = gradients_[0] + offset;
  if (projection()) {
    Layer& s = *projection();
    float* more = scratch().projection.get(part(in_).size());
    const void* ds = projection_backward(dy, first);
    conv(s).backward_weight(source, ds, first == 0);
    conv(s).backward_data(ds, more);
    each(part(in_), [&](int, int) {
      return [=](size_t k) { store(dx + k, load(dx + k) + load(more + k)); };
    });
    return;
  }
  const Bits* active = active_.data() + offset / kLanes;
  dy += offset;
  each(part(in_), [&](int, int) {
    return [=](size_t k) { store(dx + k, load(dx + k) + where(active[k / kLanes], load(dy + k))); };
  });
}

void Unit::backward_1(const float* dy) {
  tail_sums(dy);
  Kept *above = &scratch().above, *below = &scratch().below;
  for (int i = spec_.convolutions - 1; i >= 0; --i) {
    Layer& l = *layers_[i];
    Layer* previous = i ? layers_[i - 1].get() : nullptr;
    conv(l).set_backward_weight(arrays_[l.at]);
    if (i == 0 && projection()) conv(*projection()).set_backward_weight(arrays_[projection()->at]);
    if (previous) {
      below->get(l.in.size(), spec_.bfloat16);
      sum_.resize(static_cast<size_t>(in_.n) * l.in.c);
      product_.resize(sum_.size());
    }
    for (int first = 0; first < in_.n; first += chunk_) {
      const size_t from = first * l.in.image(), into = first * l.out.image();
      const void* d = i == spec_.convolutions - 1
                          ? tail_backward(dy, first)
                          : normalised_gradient(l.norm, *above, l.before, into, part(l.out));
      const void* src = source_1(i, first);
      conv(l).backward_weight(src, d, first == 0);
      conv(l).backward_data(d, previous ? below->at(from) : gradients_[0] + from);
      if (previous)
        below->with(from, [&](auto* da) {
          const auto* maps = static_cast<decltype(da)>(previous->before.at(from));
          previous->norm.activated_sums(da, maps, first, part(l.in), &sum_, &product_);
        });
      else
        shortcut_backward_1(dy, src, first);
    }
    conv(l).weight_gradient(gradients_[l.at]);
    if (i == 0 && projection()) conv(*projection()).weight_gradient(gradients_[projection()->at]);
    if (previous)
      previous->norm.backward(sum_, product_, gradients_[previous->at + 1],
                              gradients_[previous->at + 2]);
    std::swap(above, below);
  }
}

}  // namespace attn
