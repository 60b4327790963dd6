// Loss and update of a training step, and the rows of a data set.
#pragma once

#include <cstdint>

#include "network/losses.h"
#include "network/optimizers.h"

namespace fastmlp::cpu {

// Writes the gradient of the loss with respect to the prediction. The result does not depend on the
// number of threads.
template <typename T>
LossResult compute_loss(Loss& loss, int64_t max_threads);

// The same, by parts: what all rows share; a sum over the rows begin … end - 1; and all of these
// together.
template <typename T>
void prepare_loss(Loss& loss);
template <typename T>
LossResult sum_of_rows(const Loss& loss, int64_t begin, int64_t end);
LossResult loss_of(const Loss& loss, const LossResult* sums, int64_t count);

// The factor that brings the norm of all gradients together down to max_norm, 1 where it is below
// (torch.nn.utils.clip_grad_norm_).
template <typename T>
double clipping_factor(const Updates& updates, double max_norm, int64_t max_threads);

template <typename T>
void apply(const Updates& updates, double gradient_scale, int64_t max_threads);

// Each goes on to its next step.
void advance(const Updates& updates);

// to[count, features] = scale · from[rows[i]] + shift, the rows of `from` a stride apart.
template <typename T>
void gather(const uint8_t* from, int64_t stride, const int64_t* rows, int64_t count,
            int64_t features, T scale, T shift, T* to, int64_t max_threads);

// to[count, row_bytes] = rows of `from`, a stride of bytes apart.
void gather(const void* from, int64_t stride, const int64_t* rows, int64_t count, int64_t row_bytes,
            void* to, int64_t max_threads);

}  // namespace fastmlp::cpu
