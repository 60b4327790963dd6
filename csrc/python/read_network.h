// Python's modules and tensors → the operands of a network, or why they are none.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <vector>

#include "torch/averages.h"
#include "torch/check.h"

namespace fastmlp {

// Why a call cannot run fused in the state that the process is in; null: it can. Modes and
// transforms are given the plain modules, so that they see the operations they know.
const char* mode_in_the_way();

// Why a tensor cannot be an operand; null: it can.
const char* operand_in_the_way(PyObject* object, const at::Tensor*& tensor);

struct Network {
  at::ScalarType dtype = at::ScalarType::Undefined;  // the input's; Undefined: the first weight's
  Program program;                                   // dropout still to be drawn
  c10::SmallVector<at::Tensor, 12> operands;
  Averages averages;
  // What lies before the first layer: nothing, an nn.Flatten, or modules.py's Rows.
  enum class Flattens : uint8_t { no, flatten, view, reshape } flattens = Flattens::no;
  int64_t row_features = -1;  // of Rows; -1: a row for each element of the first dimension
  bool takes_rows = false;    // whether more dimensions than two would mean something else
  // Whether dropout may be given what lies in memory as the input does: torch draws in that order.
  bool draws_first = false;
  int64_t in_features = -1;  // that the first layer expects, where no operand tells

  // The input as the first layer takes it; undefined where torch's modules refuse it, or take it
  // for something else.
  at::Tensor flat(const at::Tensor& input) const;

  Arguments arguments(const at::Tensor& input) const {
    return {input, at::TensorList(operands.data(), operands.size()), program};
  }
  // What begins a layer, of a weight and a bias, and of Norm::fixed a mean and a variance (tensors
  // or None); returns why they cannot be operands, or nothing.
  std::string append(PyObject* weight, PyObject* bias, Norm norm = Norm::none, double eps = 0,
                     PyObject* mean = Py_None, PyObject* variance = Py_None);
  // Features of the last layer's output; -1: as many as the input has.
  int64_t out_features() const;
};

// Reads operands, program and constants, kLists Python lists or tuples, after the input.
inline constexpr int kLists = 3;
std::string read(PyObject* const* args, Network& network);

// An activation of torch.nn, as its modules tell it.
struct KnownActivation {
  PyObject* type;  // the class
  int number;
  std::vector<PyObject*> parameters;  // names of its attributes
  PyObject* mode_name;                // null: none
};

// What the reader knows of torch.nn, told once by modules.py.
struct Known {
  PyObject* linear = nullptr;
  PyObject* fused_linear = nullptr;
  PyObject* fused_mlp = nullptr;
  PyObject* fused_forward = nullptr;  // FusedMLP's own
  PyObject* dropout = nullptr;
  PyObject* residual = nullptr;
  PyObject* gated = nullptr;
  PyObject* flatten = nullptr;
  PyObject* rows = nullptr;
  PyObject* layer_norm = nullptr;
  PyObject* rms_norm = nullptr;
  PyObject* batch_norm = nullptr;
  PyObject* softmax = nullptr;
  PyObject* log_softmax = nullptr;
  PyObject* prelu = nullptr;
  PyObject* device_context = nullptr;  // the mode that torch.set_default_device() enters
  std::vector<PyObject*> containers;   // classes that run their modules one after the other
  std::vector<KnownActivation> activations;
  std::vector<PyObject*> global_hooks;   // dicts
  std::vector<PyObject*> hooks;          // the names of a module's dicts of hooks
  PyObject* activation_names = nullptr;  // a dict: name → number
  PyObject* read_as = nullptr;  // a dict: class → (the class above that it works like, its forward)
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* modules = PyUnicode_InternFromString("_modules");
  PyObject* training = PyUnicode_InternFromString("training");
  PyObject* p = PyUnicode_InternFromString("p");
  PyObject* activation = PyUnicode_InternFromString("activation");
  PyObject* inplace = PyUnicode_InternFromString("inplace");
  PyObject* features = PyUnicode_InternFromString("features");
  PyObject* reshapes = PyUnicode_InternFromString("reshapes");
  PyObject* start_dim = PyUnicode_InternFromString("start_dim");
  PyObject* end_dim = PyUnicode_InternFromString("end_dim");
  PyObject* normalized_shape = PyUnicode_InternFromString("normalized_shape");
  PyObject* eps = PyUnicode_InternFromString("eps");
  PyObject* forward = PyUnicode_InternFromString("forward");
  PyObject* compiled_call = PyUnicode_InternFromString("_compiled_call_impl");
  PyObject* weight = PyUnicode_InternFromString("weight");
  PyObject* bias = PyUnicode_InternFromString("bias");
  PyObject* buffers = PyUnicode_InternFromString("_buffers");
  PyObject* running_mean = PyUnicode_InternFromString("running_mean");
  PyObject* running_var = PyUnicode_InternFromString("running_var");
  PyObject* num_batches_tracked = PyUnicode_InternFromString("num_batches_tracked");
  PyObject* track_running_stats = PyUnicode_InternFromString("track_running_stats");
  PyObject* momentum = PyUnicode_InternFromString("momentum");
  PyObject* num_features = PyUnicode_InternFromString("num_features");
  PyObject* dim = PyUnicode_InternFromString("dim");
};

Known& known();

bool is_empty_dict(PyObject* object);

// Whether there are hooks on all modules.
bool has_global_hooks();

// Whether a module, of which `state` is the dict, has a hook or a forward of its own.
bool is_hooked(PyObject* state);

// The operands of a Sequential (nested or not) of linear layers, activations, dropout and residual
// blocks of these, recognised anew in each call at a sixth of what the same takes in Python.
// modules: its dict, or a tuple. False for any other, which runs plain; read_modules() of
// modules.py, which reads as much, says why.
bool recognise(PyObject* modules, Network& network);

}  // namespace fastmlp
