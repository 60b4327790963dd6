#include "python/read_network.h"

#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <algorithm>

#include "network/network.h"

namespace py = pybind11;

namespace fastmlp {

namespace {

// Whether a mode is in force that might see or replace torch's functions. The one that stands for
// `with torch.device(…)` and torch.set_default_device() only completes the calls that make tensors
// of nothing, and there is none here.
bool has_function_mode() {
  for (int64_t i = 0; i < at::impl::PythonTorchFunctionTLS::stack_len(); ++i) {
    PyObject* const mode =
        at::impl::PythonTorchFunctionTLS::get_stack_at(i)->ptr(getPyInterpreter());
    if (reinterpret_cast<PyObject*>(Py_TYPE(mode)) != known().device_context) return true;
  }
  return false;
}

}  // namespace

const char* mode_in_the_way() {
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) {
    return "a torch.func transform is active";
  }
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return "a TorchDispatchMode is active";
  if (has_function_mode()) return "a TorchFunctionMode is active";
  if (at::autocast::is_autocast_enabled(at::kCPU)) return "autocast is enabled";
  if (torch::jit::tracer::isTracing()) return "torch.jit.trace is active";
  return nullptr;
}

const char* operand_in_the_way(PyObject* object, const at::Tensor*& tensor) {
  if (!THPVariable_CheckTypeExact(Py_TYPE(object)))
    return "not a torch.Tensor, or a subclass of it";
  tensor = &THPVariable_Unpack(object);
  if (!tensor->is_cpu()) return "not on the CPU";
  if (tensor->layout() != at::kStrided || tensor->is_nested() || tensor->is_quantized())
    return "not a dense strided tensor";
  if (tensor->scalar_type() != at::kFloat && tensor->scalar_type() != at::kDouble)
    return "not float32 or float64";
  if (tensor->is_conj() || tensor->is_neg() || tensor->_is_zerotensor()) return "a lazy view";
  return nullptr;
}

std::string Network::append(PyObject* weight_object, PyObject* bias_object,
                            const at::Tensor& input) {
  const at::Tensor *weight = nullptr, *bias = nullptr;
  if (const char* reason = operand_in_the_way(weight_object, weight))
    return std::string("a weight is ") + reason;
  if (weight->scalar_type() != input.scalar_type()) return "input and weights differ in dtype";
  if (weight->dim() != 2) return "a weight is not two-dimensional";
  weights.push_back(*weight);
  activations.push_back(0);
  slopes.push_back(0);
  dropouts.push_back(0);
  if (bias_object == Py_None) {
    biases.push_back(std::nullopt);
    return {};
  }
  if (const char* reason = operand_in_the_way(bias_object, bias))
    return std::string("a bias is ") + reason;
  if (bias->scalar_type() != input.scalar_type()) return "input and biases differ in dtype";
  if (bias->dim() != 1 || bias->size(0) != weight->size(0))
    return "a bias is not of shape (out_features,)";
  biases.push_back(*bias);
  return {};
}

Arguments Network::arguments(const at::Tensor& input) const {
  const at::TensorList list(weights.data(), weights.size());
  return {input, list, biases, activations, slopes, {}, tails};
}

std::string read(PyObject* const* args, const at::Tensor& input, Network& network) {
  const auto layers = PySequence_Fast_GET_SIZE(args[1]);
  for (int i = 2; i <= kLists; ++i) {
    if (PySequence_Fast_GET_SIZE(args[i]) != layers)
      return "weights, biases and activations differ in number";
  }
  const auto element = [&](int list, Py_ssize_t l) {
    return PySequence_Fast_GET_ITEM(args[list], l);
  };
  for (Py_ssize_t l = 0; l < layers; ++l) {
    auto reason = network.append(element(1, l), element(2, l), input);
    if (!reason.empty()) return reason;
    network.activations.back() = PyLong_AsLongLong(element(3, l));
    network.slopes.back() = PyFloat_AsDouble(element(4, l));
    const double dropout = network.dropouts.back() = PyFloat_AsDouble(element(5, l));
    if (!(dropout >= 0 && dropout <= 1)) return "a dropout is not a probability";
  }
  for (Py_ssize_t l = 0; l < layers; ++l) {
    if (network.dropouts[l] > 0) network.set_tail(l, kNoise);
    if (PyObject_IsTrue(element(6, l)) == 1) network.set_tail(l, kSkip);
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return {};
}

Known& known() {
  static Known instance;
  return instance;
}

bool is_empty_dict(PyObject* object) {
  return object && PyDict_Check(object) && PyDict_Size(object) == 0;
}

namespace {

// What has been read of a layer: what may still belong to it.
enum class Stage { linear, activation, closed };

// Reads the modules of a Sequential one after the other.
class Reader {
 public:
  Reader(const at::Tensor& input, Network& network) : input_(input), network_(network) {}

  bool read(PyObject* modules) {
    Py_ssize_t position = 0;
    PyObject *key = nullptr, *module = nullptr;
    while (PyDict_Next(modules, &position, &key, &module)) {
      if (!read_module(module)) return false;
    }
    return true;
  }

 private:
  bool read_module(PyObject* module) {
    const py::object state =
        py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
    if (!state || PyDict_GetItemWithError(state.ptr(), names_.forward)) return false;
    for (PyObject* name : names_.hooks) {
      if (!is_empty_dict(PyDict_GetItemWithError(state.ptr(), name))) return false;
    }
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(module));
    if (type == names_.linear) return read_linear(state.ptr());
    if (type == names_.dropout) return read_dropout(state.ptr());
    if (type == names_.residual) return read_residual(state.ptr());
    const auto found = std::find_if(names_.activations.begin(), names_.activations.end(),
                                    [&](const auto& one) { return one.first == type; });
    if (found == names_.activations.end()) return false;
    if (found->second == 0) return true;
    if (stage_ != Stage::linear) return false;
    stage_ = Stage::activation;
    return read_activation(static_cast<Activation>(found->second), state.ptr());
  }

  // The activation and its parameter.
  bool read_activation(Activation activation, PyObject* state) {
    if (activation == Activation::gelu) {
      PyObject* const approximate = PyDict_GetItemWithError(state, names_.approximate);
      if (!approximate || !PyUnicode_Check(approximate)) return false;
      if (PyUnicode_CompareWithASCIIString(approximate, "tanh") == 0) {
        activation = Activation::gelu_tanh;
      } else if (PyUnicode_CompareWithASCIIString(approximate, "none") != 0) {
        return false;
      }
    } else if (activation == Activation::leaky_relu || activation == Activation::elu) {
      PyObject* const slope = PyDict_GetItemWithError(
          state, activation == Activation::elu ? names_.alpha : names_.negative_slope);
      if (!read_number(slope, network_.slopes.back())) return false;
    }
    network_.activations.back() = static_cast<int64_t>(activation);
    return true;
  }

  bool read_linear(PyObject* state) {
    PyObject* parameters = PyDict_GetItemWithError(state, names_.parameters);
    if (!parameters || !PyDict_Check(parameters)) return false;
    PyObject* weight = PyDict_GetItemWithError(parameters, names_.weight);
    PyObject* bias = PyDict_GetItemWithError(parameters, names_.bias);
    stage_ = Stage::linear;
    return weight && bias && network_.append(weight, bias, input_).empty();
  }

  // As float(object); false where it is no number, whose reason Python's reader knows.
  static bool read_number(PyObject* object, double& number) {
    if (!object) return false;
    number = PyFloat_AsDouble(object);
    if (number != -1.0 || !PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
  }

  bool read_dropout(PyObject* state) {
    PyObject* const training = PyDict_GetItemWithError(state, names_.training);
    PyObject* const inplace = PyDict_GetItemWithError(state, names_.inplace);
    PyObject* const p = PyDict_GetItemWithError(state, names_.p);
    double probability = 0;
    if (!training || inplace != Py_False || !read_number(p, probability)) return false;
    if (!(probability >= 0 && probability <= 1)) return false;
    if (training == Py_False || probability == 0) return true;
    if (training != Py_True || stage_ == Stage::closed) return false;
    network_.dropouts.back() = probability;
    network_.set_tail(network_.weights.size() - 1, kNoise);
    stage_ = Stage::closed;
    return true;
  }

  bool read_residual(PyObject* state) {
    PyObject* const modules = PyDict_GetItemWithError(state, names_.modules);
    const size_t layer = network_.weights.size();
    stage_ = Stage::closed;
    if (!modules || !PyDict_Check(modules)) return false;
    // A block may hold itself.
    if (Py_EnterRecursiveCall(" while reading the blocks of a FusedMLP") != 0) return false;
    const bool fits = read(modules);
    Py_LeaveRecursiveCall();
    if (!fits) return false;
    if (network_.weights.size() != layer + 1) return false;
    const at::Tensor& weight = network_.weights[layer];
    const bool skips = !network_.tails.empty() && (network_.tails.back() & kSkip) &&
                       network_.tails.size() == layer + 1;  // a residual block in this one
    if (skips || weight.size(0) != weight.size(1)) return false;
    network_.set_tail(layer, kSkip);
    stage_ = Stage::closed;
    return true;
  }

  const Known& names_ = known();
  const at::Tensor& input_;
  Network& network_;
  Stage stage_ = Stage::closed;
};

}  // namespace

bool recognise(PyObject* modules, const at::Tensor& input, Network& network) {
  for (PyObject* hooks : known().global_hooks) {
    if (!is_empty_dict(hooks)) return false;
  }
  if (!Reader(input, network).read(modules) || network.weights.empty()) return false;
  if (!network.tails.empty()) network.tails.resize(network.weights.size());
  return true;
}

}  // namespace fastmlp
