// A training step's loss and optimizer as plain structs. No torch here.
#pragma once

#include <cstdint>
#include <vector>

namespace fastmlp {

enum class LossKind : int { cross_entropy, cross_entropy_probabilities, mse, bce_with_logits };

// The formulas are those of torch.nn's CrossEntropyLoss, MSELoss and BCEWithLogitsLoss.
template <typename T>
struct Loss {
  LossKind kind = LossKind::cross_entropy;
  bool mean = true;  // else the sum
  int64_t batch = 0, features = 0;
  const T* prediction = nullptr;     // [batch, features], contiguous
  const T* target = nullptr;         // [batch, features], contiguous; null for classes
  const int64_t* classes = nullptr;  // [batch], of cross_entropy
  const T* weight =
      nullptr;  // [features] of the cross entropies, [batch, features] of bce; null: ones
  const T* positive_weight = nullptr;  // [batch, features], of bce; null: ones
  int64_t ignore_index = -100;
  double label_smoothing = 0;
  T* gradient = nullptr;  // [batch, features], written; must not be prediction
};

struct LossResult {
  double loss = 0;
  int64_t correct = 0;  // rows whose greatest prediction is the target's class; of cross_entropy
};

enum class OptimizerKind : int { sgd, adam };

// One parameter's update by torch.optim's SGD, Adam or AdamW.
template <typename T>
struct Update {
  OptimizerKind kind = OptimizerKind::sgd;
  int64_t elements = 0;
  T* parameter = nullptr;
  const T* gradient = nullptr;
  T* momentum = nullptr;    // sgd: momentum_buffer, adam: exp_avg; null: sgd without momentum
  T* square = nullptr;      // adam: exp_avg_sq
  T* square_max = nullptr;  // adam: max_exp_avg_sq, with amsgrad alone
  bool first = false;       // sgd: momentum holds nothing yet
  bool nesterov = false, maximize = false, decoupled = false;
  double lr = 0, momentum_factor = 0, dampening = 0, weight_decay = 0;
  double beta1 = 0, beta2 = 0, eps = 0, step = 0;  // step: this one's number, from 1
  double correction1 = 1, correction2 = 1;         // 1 - beta1^step, √(1 - beta2^step)

  // parameter += rate · gradient and nothing more.
  bool plain() const { return kind == OptimizerKind::sgd && !momentum && weight_decay == 0; }
};

}  // namespace fastmlp
