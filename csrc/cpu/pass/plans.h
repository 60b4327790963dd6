// Plans that were made before: each thread has its own.
#pragma once

#include <algorithm>
#include <array>
#include <memory>

#include "cpu/pass/backward.h"
#include "cpu/pass/forward.h"

namespace fastmlp::cpu {

// The last plans that were asked for, the latest first.
template <typename Plan>
class PlanCache {
 public:
  // The plan that `is_wanted` is true of, or a new one.
  template <typename IsWanted, typename Make>
  std::shared_ptr<const Plan> find(const IsWanted& is_wanted, const Make& make) {
    auto one = std::find_if(plans_.begin(), plans_.end() - 1,  // or the last one
                            [&](const auto& plan) { return !plan || is_wanted(*plan); });
    if (!*one || !is_wanted(**one)) *one = make();
    std::rotate(plans_.begin(), one, one + 1);
    return plans_.front();
  }

 private:
  std::array<std::shared_ptr<const Plan>, 16> plans_;
};

template <typename T>
std::shared_ptr<const ForwardPlan<T>> forward_plan(const NetworkSpec& spec,
                                                   const Machine<T>& machine) {
  thread_local PlanCache<ForwardPlan<T>> cache;
  return cache.find(
      [&](const ForwardPlan<T>& plan) { return plan.machine() == machine && plan.spec() == spec; },
      [&] { return std::make_shared<const ForwardPlan<T>>(spec, machine); });
}

template <typename T>
std::shared_ptr<const BackwardPlan<T>> backward_plan(const NetworkSpec& spec,
                                                     const Machine<T>& machine,
                                                     bool skips_background) {
  thread_local PlanCache<BackwardPlan<T>> cache;
  return cache.find(
      [&](const BackwardPlan<T>& plan) {
        return plan.machine() == machine && plan.skips_background() == skips_background &&
               plan.spec() == spec;
      },
      [&] { return std::make_shared<const BackwardPlan<T>>(spec, machine, skips_background); });
}

}  // namespace fastmlp::cpu
