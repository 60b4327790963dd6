// An option of an optimizer's parameter group or of a loss module.
#pragma once

namespace fastmlp {

struct OptionInfo {
  enum Kind { number, flag, pair };

  const char* name = nullptr;  // torch's
  Kind kind = number;
  bool optional = false;  // older versions of torch have not got it
  double absent = 0;      // what it is there
};

}  // namespace fastmlp
