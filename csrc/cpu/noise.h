// The numbers that torch's bernoulli_ would draw.
#pragma once

#include <cstdint>

namespace fastmlp::cpu {

// out[elements]: `value` where torch's bernoulli_(probability) would draw a one from the default
// generator, which advances likewise, else 0.
template <typename T>
void fill_noise(double probability, T value, int64_t elements, T* out);

}  // namespace fastmlp::cpu
