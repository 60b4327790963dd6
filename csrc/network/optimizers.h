// What there is to know of an optimizer beside its formulas, which stand with it in optimizers/.
#pragma once

#include <cstdint>
#include <vector>

#include "network/inline_vector.h"
#include "network/options.h"

namespace fastmlp {

inline constexpr int kMostOptions = 10, kMostStates = 3, kMostScalars = 2, kMostNumbers = 8;

// One of a parameter's tensors in the optimizer's state, by torch's key.
struct StateInfo {
  const char* key = nullptr;
  bool (*is_kept)(const double* options) = nullptr;  // null: always
  double initial = 0;                                // what its elements are before the first step
  bool made_by_step = false;  // the first step makes it, and it may be missing until then
  const char* initial_option = nullptr;  // of the optimizer's defaults: it is `initial` there
};

struct Update;

struct OptimizerInfo {
  const char* name;                      // the class in torch.optim
  OptionInfo options[kMostOptions];      // in the order of Update::options
  StateInfo states[kMostStates] = {};    // shaped like the parameter
  StateInfo scalars[kMostScalars] = {};  // of no dimensions
  // Goes on to the next step: its scalars, and the numbers that all elements share.
  void (*advance)(Update& update) = nullptr;
  // Whether all that a step does is parameter += rate · gradient; null: never.
  bool (*is_plain)(const double* options) = nullptr;
  double (*rate)(const Update& update) = nullptr;
};

// One parameter's update.
struct Update {
  int optimizer = 0;
  bool fresh = false;     // whether the states hold nothing yet
  bool maximize = false;  // the gradient's sign is turned
  int64_t elements = 0;
  void* parameter = nullptr;
  const void* gradient = nullptr;
  void* states[kMostStates] = {};  // null: not kept
  double options[kMostOptions] = {};
  double scalars[kMostScalars] = {};
  bool narrow[kMostScalars] = {};     // whether the state has a scalar in float32
  double numbers[kMostNumbers] = {};  // of the step, by advance()

  // As a scalar's tensor holds it. What is rounded in each step is the same in one call and in
  // many.
  double rounded(int scalar, double value) const {
    return narrow[scalar] ? static_cast<double>(static_cast<float>(value)) : value;
  }
  // torch's `step`, which each optimizer's scalars begin with, one further.
  double count_step() { return scalars[0] = rounded(0, scalars[0] + 1); }
};

// Of a step: one for each parameter.
using Updates = InlineVector<Update*, 16>;

// In the order of their numbers.
const std::vector<OptimizerInfo>& optimizers();

inline bool is_plain(const Update& update) {
  const OptimizerInfo& info = optimizers()[update.optimizer];
  return info.is_plain && info.is_plain(update.options);
}

// With the gradient's sign.
inline double plain_rate(const Update& update) {
  const double rate = optimizers()[update.optimizer].rate(update);
  return update.maximize ? -rate : rate;
}

}  // namespace fastmlp
