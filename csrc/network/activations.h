// What there is to know of an activation beside its formulas, which stand with it in
// activations-inl.h.
#pragma once

#include <vector>

namespace fastmlp {

// What backward reads of a layer to go through its activation: its sums z, its output y =
// activation(z), or nothing. It is what torch's own modules keep, so that neither memory nor
// accuracy nor what may be modified in place differs from theirs.
enum class Saved { nothing, output, sums };

inline constexpr int kMostParameters = 2;

struct Parameter {
  enum Rule { any, not_zero, not_below_the_one_before };

  const char* name = nullptr;  // of the module's attribute and of the ATen operator's argument
  double value = 0;            // torch's default
  Rule rule = any;             // what torch demands of it
};

struct ActivationInfo {
  const char* name;    // as fastmlp.functional has it
  const char* module;  // the class in torch.nn
  Saved saved;
  Parameter parameters[kMostParameters] = {};
  const char* op = nullptr;  // the ATen operator, where it is called otherwise than `name`
  // What tells modules of one class apart: the value of a string attribute.
  const char* mode_name = nullptr;
  const char* mode = nullptr;

  constexpr int parameter_count() const {
    int count = 0;
    while (count < kMostParameters && parameters[count].name) ++count;
    return count;
  }

  // Whether torch's function is defined for these.
  constexpr bool takes(const double* values) const {
    for (int i = 0; i < parameter_count(); ++i) {
      if (parameters[i].rule == Parameter::not_zero && values[i] == 0) return false;
      if (parameters[i].rule == Parameter::not_below_the_one_before && values[i] < values[i - 1])
        return false;
    }
    return true;
  }
};

// In the order of their numbers, which the operators' schema holds (saved graphs have them).
const std::vector<ActivationInfo>& activations();

inline bool saves_output(int activation) {
  return activations()[activation].saved == Saved::output;
}
inline bool saves_sums(int activation) { return activations()[activation].saved == Saved::sums; }

}  // namespace fastmlp
