// Loss and update of a training step on the CPU.
#pragma once

#include <vector>

#include "network/training.h"

namespace fastmlp::cpu {

// Writes the gradient of the loss with respect to the prediction. The result does not depend on the
// number of threads. classes must lie in 0 … features - 1 or equal ignore_index.
template <typename T>
LossResult compute_loss(const Loss<T>& loss, int max_threads);

// The factor that brings the norm of all gradients together down to max_norm, 1 where it is below
// (torch.nn.utils.clip_grad_norm_).
template <typename T>
double clipping_factor(const std::vector<Update<T>>& updates, double max_norm, int max_threads);

template <typename T>
void apply(const std::vector<Update<T>>& updates, double gradient_scale, int max_threads);

// to[count, features] = scale · from[rows[i]] + shift, the rows of `from` a stride apart.
template <typename T>
void gather(const uint8_t* from, int64_t stride, const int64_t* rows, int64_t count,
            int64_t features, T scale, T shift, T* to, int max_threads);

}  // namespace fastmlp::cpu
