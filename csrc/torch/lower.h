// Tensors → plain structs.
#pragma once

#include "network/network.h"
#include "torch/check.h"

namespace fastmlp {

// A checked network as a backend takes it, and the copies of those operands whose strides it does
// not read.
struct Lowered {
  NetworkSpec spec;
  NetworkMemory memory;
  at::Tensor input;  // [batch, in_features], contiguous along features
  c10::SmallVector<at::Tensor, 4> copies;
};

inline Dtype dtype_of(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? Dtype::float64 : Dtype::float32;
}

// [batch, features] of a tensor [..., features], contiguous along features, copied only if its
// strides ask for it.
at::Tensor as_rows(const at::Tensor& tensor);

Lowered lower(const Arguments& arguments);

// Which gradients a network has, where these are needed.
void set_gradients(const Program& program, const Needs& needs, NetworkSpec& spec);

// The layers whose out_features a row of what mlp_forward saves beside statistics is made of, with
// repetitions.
std::vector<int64_t> saved_layers(const Program& program, const Needs& needs);

}  // namespace fastmlp
