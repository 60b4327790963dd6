// What dropout multiplies activations by.
#pragma once

#include "torch/check.h"

namespace fastmlp {

// A network whose dropout has been drawn.
struct Drawn {
  Program program;
  c10::SmallVector<at::Tensor, 12> operands;
};

// Whether there is anything to draw.
bool has_dropout(const Program& program);

// The arguments with noise in the place of dropout: for each layer with a dropout of probability p,
// one after the other, [batch, out_features] numbers that are 0 with that probability and 1 / (1 -
// p) otherwise: those that torch's dropout modules would draw from the default generator in that
// order, which advances likewise.
Drawn draw_noise(const Arguments& arguments);

// One layer's, to memory of elements of this dtype.
void draw_noise(const Backend& backend, Dtype dtype, double dropout, int64_t elements, void* out);

}  // namespace fastmlp
