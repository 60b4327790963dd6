#pragma once

#include <torch/csrc/utils/pybind.h>

namespace fastmlp {

// train_step(step, input, target) -> loss, or None where only Python can tell why the model's
// modules are no network. step: a TrainStep; its `correct` is set. target: of a loss with variances
// a pair, (target, var), here and below.
PyObject* train_step(PyObject* module, PyObject* const* args, Py_ssize_t count);

// train_steps(step, buffer, inputs, targets, order, batch_size, scale, shift) -> (losses, correct)
// of each batch, float64 and int64 tensors, or None likewise.
PyObject* train_steps(PyObject* module, PyObject* const* args, Py_ssize_t count);

// check_train_step(step) -> True, or False where train_step would return None. Raises what it would
// of the model, the loss and the optimizer, but that gradients are wanted or waited for.
PyObject* check_train_step(PyObject* module, PyObject* step);

// The classes of losses and optimizers, in the order of the extension's lists.
void know_training(const pybind11::list& loss_classes, const pybind11::list& optimizer_classes);

}  // namespace fastmlp
