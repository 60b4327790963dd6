// Python's modules and tensors → the operands of a network, or why they are none.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "torch/problem.h"

namespace fastmlp {

// Why a call cannot run fused in the state that the process is in; null: it can. Modes and
// transforms are given the plain modules, so that they see the operations they know.
const char* mode_in_the_way();

// Why a tensor cannot be an operand; null: it can.
const char* operand_in_the_way(PyObject* object, const at::Tensor*& tensor);

struct Network {
  c10::SmallVector<at::Tensor, 8> weights;
  c10::SmallVector<std::optional<at::Tensor>, 8> biases;
  c10::SmallVector<int64_t, 8> activations;
  c10::SmallVector<double, 8> slopes;
  c10::SmallVector<double, 8> dropouts;  // probabilities; 0: none
  c10::SmallVector<int64_t, 8> tails;    // of kNoise and kSkip; empty: none at all

  void set_tail(size_t layer, int64_t flag) {
    tails.resize(weights.size());
    tails[layer] |= flag;
  }
  // Those of the operators, still without noise (dropout.h).
  Arguments arguments(const at::Tensor& input) const;

  // Takes a weight and a bias (a tensor or None); returns why they cannot be operands beside
  // `input`, or nothing.
  std::string append(PyObject* weight_object, PyObject* bias_object, const at::Tensor& input);
};

// Reads weights, biases (tensors or None), activations, slopes, dropouts and skips, kLists Python
// lists or tuples of one length, after the input.
inline constexpr int kLists = 6;
std::string read(PyObject* const* args, const at::Tensor& input, Network& network);

// What run_modules knows of torch.nn, told once by modules.py.
struct Known {
  PyObject* linear = nullptr;
  PyObject* dropout = nullptr;
  PyObject* residual = nullptr;
  PyObject* device_context = nullptr;  // the mode that torch.set_default_device() enters
  std::vector<std::pair<PyObject*, int64_t>> activations;
  std::vector<PyObject*> global_hooks;  // dicts
  std::vector<PyObject*> hooks;         // the names of a module's dicts of hooks
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* modules = PyUnicode_InternFromString("_modules");
  PyObject* training = PyUnicode_InternFromString("training");
  PyObject* p = PyUnicode_InternFromString("p");
  PyObject* approximate = PyUnicode_InternFromString("approximate");
  PyObject* negative_slope = PyUnicode_InternFromString("negative_slope");
  PyObject* alpha = PyUnicode_InternFromString("alpha");
  PyObject* inplace = PyUnicode_InternFromString("inplace");
  PyObject* forward = PyUnicode_InternFromString("forward");
  PyObject* weight = PyUnicode_InternFromString("weight");
  PyObject* bias = PyUnicode_InternFromString("bias");
};

Known& known();

bool is_empty_dict(PyObject* object);

// The operands of a Sequential of linear layers, activations, dropout and residual blocks of these,
// recognised anew in each call at a sixth of what the same takes in Python. False for any other,
// which runs plain; read_modules() of modules.py, which reads as much, says why.
bool recognise(PyObject* modules, const at::Tensor& input, Network& network);

}  // namespace fastmlp
