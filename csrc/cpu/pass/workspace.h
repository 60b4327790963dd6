// Memory of one call.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/memory.h"

namespace fastmlp::cpu {

template <typename T>
constexpr at::ScalarType kScalarType = sizeof(T) == 4 ? at::kFloat : at::kDouble;

// A buffer: a small one lies in the object itself, and so on the stack.
template <typename T>
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(int64_t elements) { reserve(elements); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // At least so many elements, of any value: those that were there before are lost.
  T* reserve(int64_t elements) {
    if (elements > elements_) {
      block_ = uninitialized({elements}, kScalarType<T>);
      data_ = block_.template mutable_data_ptr<T>();
      elements_ = elements;
    }
    return data_;
  }
  T* data() { return data_; }

 private:
  static constexpr int64_t kSmall = 16384 / sizeof(T);
  alignas(64) T small_[kSmall];
  T* data_ = small_;
  int64_t elements_ = kSmall;
  at::Tensor block_;
};

}  // namespace fastmlp::cpu
