#include "torch/overlap.h"

#include <algorithm>

namespace fastmlp {

Span span(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage() || tensor.numel() == 0) return {};
  int64_t elements = tensor.numel();
  if (!tensor.is_contiguous()) {
    elements = 1;
    for (int64_t d = 0; d < tensor.dim(); ++d) elements += (tensor.size(d) - 1) * tensor.stride(d);
  }
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return {begin, begin + elements * tensor.element_size()};
}

void Spans::add(const at::Tensor& tensor, bool written) {
  const Span one = span(tensor);
  if (one.begin < one.end) entries_.push_back({one, written});
}

bool Spans::are_apart() {
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  uintptr_t read = 0, written = 0;  // how far those before reach
  for (const Entry& one : entries_) {
    if (one.begin < written || (one.written && one.begin < read)) return false;
    (one.written ? written : read) = std::max(one.written ? written : read, one.end);
  }
  return true;
}

bool Spans::meets(const at::Tensor& tensor) const {
  const Span other = span(tensor);
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const Entry& one) { return one.meets(other); });
}

bool Spans::writes(const at::Tensor& tensor) const {
  const Span other = span(tensor);
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const Entry& one) { return one.written && one.meets(other); });
}

}  // namespace fastmlp
