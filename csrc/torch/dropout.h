// What dropout multiplies activations by.
#pragma once

#include "torch/problem.h"

namespace fastmlp {

// Sets the arguments' noise: for each layer l with dropouts[l] > 0, which has kNoise then, one
// after the other, [batch, out_features] numbers that are 0 with that probability and 1 / (1 -
// dropouts[l]) otherwise: those that torch's dropout modules would draw from the default generator
// in that order, which advances likewise. None where no layer has any.
void draw_noise(Arguments& arguments, at::ArrayRef<double> dropouts);

}  // namespace fastmlp
