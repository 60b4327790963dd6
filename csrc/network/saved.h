// What forward leaves for backward, in one block of memory.
#pragma once

#include "network/network.h"

namespace fastmlp {

// Elements of what Norm::batch finds, the means and the variances of each layer in turn, with which
// the block begins.
int64_t statistics_elements(const NetworkSpec& spec);

// Sets what each layer has to keep for the gradients that the layers and the head ask for.
void keep_for_gradients(NetworkSpec& spec);

// Which layers' out_features, with repetitions, make up a row of what is kept beside these.
InlineVector<int64_t, 16> kept_layers(const NetworkSpec& spec);

// Elements of what is kept, without the last layer's output, which is the caller's.
int64_t saved_elements(const NetworkSpec& spec);

// The layers' places in the block: the statistics, and then what is kept in the order of
// kept_layers().
void place_saved(const NetworkSpec& spec, void* block, NetworkMemory& memory);

}  // namespace fastmlp
