// What there is to know of a loss beside its formulas, which stand with it in losses/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "network/dtype.h"
#include "network/options.h"

namespace fastmlp {

inline constexpr int kMostLossOperands = 2, kMostLossOptions = 4;

enum class Target {
  classes,      // int64 [batch], in 0 … features - 1 or ignore_index
  like_output,  // [batch, features], of a floating point type
  counts,       // … or of a whole one
};

// A tensor that is read beside prediction and target.
struct LossOperandInfo {
  enum Kind {
    per_element,  // a buffer of the loss module, expanded to [batch, features]; null: ones
    per_class,    // … of [features]
    variance,     // given beside each target, expanded to [batch, features], not negative
  };

  const char* name = nullptr;  // torch's
  Kind kind = per_element;
};

enum class Reduction { mean, sum, batchmean };

struct Loss;

struct LossInfo {
  const char* name;  // the class in torch.nn
  Target target;
  LossOperandInfo operands[kMostLossOperands] = {};
  OptionInfo options[kMostLossOptions] = {};  // attributes of the module
  bool per_row = false;  // a row's losses depend on each other: torch takes dimension 1 for classes
  // Works out what all rows share, before any of them.
  void (*prepare)(Loss& loss) = nullptr;
  // What torch would not take of its options, in torch's words; empty: nothing. Null: takes all.
  std::string (*fault)(const Loss& loss) = nullptr;
  // What the loss is where there are no classes; of a per_row loss.
  double (*of_no_classes)(const Loss& loss) = nullptr;
  bool has_batchmean = false;  // whether its reduction may be "batchmean"
};

// The loss of one batch. All but classes is of the network's dtype.
struct Loss {
  int kind = 0;
  Reduction reduction = Reduction::mean;
  int64_t batch = 0, features = 0;
  int64_t samples = 0;               // the prediction's first dimension, before it was made two
  const void* prediction = nullptr;  // [batch, features], contiguous
  const void* target = nullptr;      // [batch, features], contiguous
  const int64_t* classes = nullptr;
  const void* operands[kMostLossOperands] = {};
  double options[kMostLossOptions] = {};
  int64_t ignore_index = -100;
  void* gradient = nullptr;  // [batch, features], written; must not be prediction
  Dtype dtype = Dtype::float32;
  // By prepare():
  double denominator = 1;    // what the sum of all losses is divided by
  double class_weights = 0;  // of all classes together

  double elements() const { return static_cast<double>(batch) * static_cast<double>(features); }
};

// The place of the variances among the operands; -1: a loss without.
inline int variance_of(const LossInfo& info) {
  for (int i = 0; i < kMostLossOperands; ++i) {
    if (info.operands[i].kind == LossOperandInfo::variance) return i;
  }
  return -1;
}

struct LossResult {
  double loss = 0;
  int64_t correct = 0;  // rows whose greatest prediction is the target's class; of classes

  LossResult& operator+=(const LossResult& other) {
    loss += other.loss, correct += other.correct;
    return *this;
  }
};

// In the order of their numbers. One whose targets may be either kind stands twice in a row under
// its name, of classes first.
const std::vector<LossInfo>& losses();

}  // namespace fastmlp
