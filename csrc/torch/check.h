// Every check of shapes, dtypes and devices.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "backend.h"
#include "network/program.h"

namespace fastmlp {

// A network's operands, in the places that its program tells.
struct Arguments {
  const at::Tensor& input;
  at::TensorList operands;
  const Program& program;

  // Features of a layer's input and output.
  int64_t in_features(int64_t l) const {
    if (l > 0 && program.layers[l].gates) --l;
    return l > 0 ? out_features(l - 1) : input.size(-1);
  }
  int64_t out_features(int64_t l) const {
    while (l >= 0 && !program.layers[l].has_whole_weight()) --l;
    return l < 0 ? input.size(-1) : operands[program.layers[l].weight].size(0);
  }
  int64_t batch() const { return c10::multiply_integers(input.sizes().slice(0, input.dim() - 1)); }
};

// Which gradients are wanted: of input, operands…; empty: none.
using Needs = c10::SmallVector<bool, 16>;

// Each throws c10::Error (RuntimeError in Python) with given and expected shapes.
//
// The arguments form a network that may be run; returns who runs it.
const Backend& check(const Arguments& arguments);
// … but that its dropout is still to be drawn.
void check_undrawn(const Arguments& arguments);
void check_needs(const Arguments& arguments, const Needs& needs);
// foreseen: the needs that forward was given.
void check_backward(const Arguments& arguments, const at::Tensor& grad_output,
                    const at::Tensor& output, const at::Tensor& saved, int64_t saved_elements,
                    const Needs& foreseen, const Needs& needs);

}  // namespace fastmlp
