// Which tensors share memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>

namespace fastmlp {

// The bytes from a tensor's first element to its last.
struct Span {
  uintptr_t begin = 0, end = 0;

  bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};

// Of a tensor with a storage; of another: nothing.
Span span(const at::Tensor& tensor);

// Spans of which those that are written may meet no other.
class Spans {
 public:
  void add(const at::Tensor& tensor, bool written);
  bool are_apart();  // whether none does

  // Whether a tensor meets one of them, or one that is written.
  bool meets(const at::Tensor& tensor) const;
  bool writes(const at::Tensor& tensor) const;

 private:
  struct Entry : Span {
    bool written;
  };
  c10::SmallVector<Entry, 32> entries_;
};

}  // namespace fastmlp
