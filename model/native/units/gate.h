// Channel gates a (N, C) of a residual branch: the recurrent gate of RAM-ResNet, and a static one.
#pragma once
#include "blocked.h"

namespace attn {

struct NormArrays {  // of one batch normalisation, or of its gradients
  float *gamma, *beta, *mean, *var;
};

// y_1 = w g + b, y_t = w bn_{t-1}(y_{t-1}) + b, a = sigmoid(y_T); without w: a = sigmoid(b).
class Gate {
 public:
  std::vector<float> value, mean_gradient;  // (N, C): a, and the gradient of g

  void forward(const std::vector<float>& g, int n, int c, const float* w, const float* b,
               const std::vector<NormArrays>& norms, float epsilon, float momentum) {
    n_ = n, c_ = c, w_ = w, norms_ = norms;
    value.resize(g.size());
    mean_gradient.assign(g.size(), 0.0f);
    if (!w) {
      for (size_t i = 0; i < g.size(); ++i) value[i] = sigmoid(b[i % c]);
      return;
    }
    normal_.assign(norms.size() + 1, g);  // what each step multiplies by w
    inverse_.assign(norms.size(), std::vector<float>(c));
    scaled_ = normal_;  // normalized numbers before gamma and beta
    std::vector<float> y(g.size());
    for (size_t step = 0; step <= norms.size(); ++step) {
      if (step) normalize(y, step, epsilon, momentum);
      for (size_t i = 0; i < y.size(); ++i) y[i] = w[i % c] * normal_[step][i] + b[i % c];
    }
    for (size_t i = 0; i < y.size(); ++i) value[i] = sigmoid(y[i]);
  }

  // From the gradient of a; `norm_gradients` are written like w's and b's.
  void backward(const std::vector<float>& da, float* dw, float* db,
                const std::vector<NormArrays>& norm_gradients) {
    std::vector<double> dy(da.size());
    for (size_t i = 0; i < dy.size(); ++i) dy[i] = static_cast<double>(da[i]) * value[i] * (1 - value[i]);
    std::vector<double> w_sum(c_), b_sum(c_);
    for (size_t step = normal_.size(); w_ && step-- > 0;) {
      for (size_t i = 0; i < dy.size(); ++i) {
        w_sum[i % c_] += dy[i] * normal_[step][i];
        b_sum[i % c_] += dy[i];
        dy[i] *= w_[i % c_];
      }
      if (step) through_norm(&dy, step, norm_gradients[step - 1]);
    }
    if (w_) {
      for (size_t i = 0; i < dy.size(); ++i)
        mean_gradient[i] = static_cast<float>(dy[i]);
      for (int c = 0; c < c_; ++c) dw[c] = static_cast<float>(w_sum[c]);
    } else {
      for (size_t i = 0; i < dy.size(); ++i) b_sum[i % c_] += dy[i];
    }
    for (int c = 0; c < c_; ++c) db[c] = static_cast<float>(b_sum[c]);
  }

 private:
  static float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

  void normalize(const std::vector<float>& y, size_t step, float epsilon, float momentum) {
    const NormArrays& bn = norms_[step - 1];
    for (int c = 0; c < c_; ++c) {
      double mean = 0, var = 0;
      for (int n = 0; n < n_; ++n) mean += y[n * c_ + c];
      mean /= n_;
      for (int n = 0; n < n_; ++n) var += (y[n * c_ + c] - mean) * (y[n * c_ + c] - mean);
      var /= n_;
      const double inverse = 1 / std::sqrt(var + epsilon);
      inverse_[step - 1][c] = static_cast<float>(inverse);
      bn.mean[c] = bn.mean[c] * momentum + static_cast<float>(mean) * (1 - momentum);
      bn.var[c] = bn.var[c] * momentum + static_cast<float>(var) * (1 - momentum);
      for (int n = 0; n < n_; ++n) {
        const int i = n * c_ + c;
        scaled_[step][i] = static_cast<float>((y[i] - mean) * inverse);
        normal_[step][i] = bn.gamma[c] * scaled_[step][i] + bn.beta[c];
      }
    }
  }

  void through_norm(std::vector<double>* dy, size_t step, const NormArrays& gradients) {
    for (int c = 0; c < c_; ++c) {
      double sum = 0, product = 0;
      for (int i = c; i < n_ * c_; i += c_) {
        sum += (*dy)[i];
        product += (*dy)[i] * scaled_[step][i];
      }
      gradients.gamma[c] = static_cast<float>(product);
      gradients.beta[c] = static_cast<float>(sum);
      const double scale = norms_[step - 1].gamma[c] * static_cast<double>(inverse_[step - 1][c]);
      for (int i = c; i < n_ * c_; i += c_)
        (*dy)[i] = scale * ((*dy)[i] - sum / n_ - scaled_[step][i] * product / n_);
    }
  }

  int n_ = 0, c_ = 0;
  const float* w_ = nullptr;
  std::vector<NormArrays> norms_;
  std::vector<std::vector<float>> normal_, scaled_, inverse_;
};

}  // namespace attn
