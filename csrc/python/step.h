#pragma once

#include <torch/csrc/utils/pybind.h>

namespace fastmlp {

// train_step(network, input, target, loss, optimizer, max_grad_norm) -> (loss, correct), or None
// where the network is a dict of modules that only Python can read. loss and optimizer: tuples, see
// train_step.py.
PyObject* train_step(PyObject* module, PyObject* const* args, Py_ssize_t count);

// train_steps(network, buffer, inputs, targets, order, batch_size, scale, shift, loss, optimizer,
// max_grad_norm) -> (losses, correct) of each batch, float64 and int64 tensors, or None likewise.
PyObject* train_steps(PyObject* module, PyObject* const* args, Py_ssize_t count);

// Throws what a step would of its loss's description.
void check_loss(const pybind11::handle& description);

}  // namespace fastmlp
