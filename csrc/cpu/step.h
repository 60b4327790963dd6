// Loss and update of a training step on the CPU.
#pragma once

#include <vector>

#include "training.h"

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

}  // namespace fastmlp::cpu
