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

// Throws what a step would of this loss module.
void check_loss(int kind, const pybind11::handle& module);

// The classes of losses and optimizers, in the order of the extension's lists.
void know_training(const pybind11::list& loss_classes, const pybind11::list& optimizer_classes);

}  // namespace fastmlp
