// The lists of activations, losses and optimizers without their formulas, which are templates that
// nothing here uses.
#include "network/lists.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "network/activations.h"
#include "network/dtype.h"
#include "network/inline.h"
#include "network/losses.h"
#include "network/optimizers.h"

namespace fastmlp {
namespace {

template <typename T>
struct Vec;
template <typename T>
using Reg = typename Vec<T>::Reg;
#include "network/math-inl.h"
// … which these are written in.
#include "network/activations-inl.h"
#include "network/losses-inl.h"
#include "network/optimizers-inl.h"

template <typename Info, typename... Each>
std::vector<Info> infos(List<Each...>) {
  return {Each::info...};
}

}  // namespace

const std::vector<ActivationInfo>& activations() {
  static const auto all = infos<ActivationInfo>(Activations());
  return all;
}

const std::vector<LossInfo>& losses() {
  static const auto all = infos<LossInfo>(Losses());
  return all;
}

const std::vector<OptimizerInfo>& optimizers() {
  static const auto all = infos<OptimizerInfo>(Optimizers());
  return all;
}

}  // namespace fastmlp
