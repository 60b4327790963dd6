#include "python_network.h"

#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <algorithm>

namespace py = pybind11;

namespace fastmlp {

const char* mode_in_the_way() {
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) {
    return "a torch.func transform is active";
  }
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return "a TorchDispatchMode is active";
  if (at::impl::PythonTorchFunctionTLS::stack_len() > 0) return "a TorchFunctionMode is active";
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

std::string read(PyObject* const* args, const at::Tensor& input, Network& network) {
  const auto layers = PySequence_Fast_GET_SIZE(args[1]);
  for (int i = 2; i < 5; ++i) {
    if (PySequence_Fast_GET_SIZE(args[i]) != layers)
      return "weights, biases and activations differ in number";
  }
  for (Py_ssize_t l = 0; l < layers; ++l) {
    auto reason = network.append(PySequence_Fast_GET_ITEM(args[1], l),
                                 PySequence_Fast_GET_ITEM(args[2], l), input);
    if (!reason.empty()) return reason;
    network.activations.push_back(PyLong_AsLongLong(PySequence_Fast_GET_ITEM(args[3], l)));
    network.slopes.push_back(PyFloat_AsDouble(PySequence_Fast_GET_ITEM(args[4], l)));
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

bool recognise(PyObject* modules, const at::Tensor& input, Network& network) {
  const Known& names = known();
  for (PyObject* hooks : names.global_hooks) {
    if (!is_empty_dict(hooks)) return false;
  }
  bool activated = true;
  Py_ssize_t position = 0;
  PyObject *key = nullptr, *module = nullptr;
  while (PyDict_Next(modules, &position, &key, &module)) {
    const py::object state =
        py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
    if (!state || PyDict_GetItemWithError(state.ptr(), names.forward)) return false;
    for (PyObject* name : names.hooks) {
      if (!is_empty_dict(PyDict_GetItemWithError(state.ptr(), name))) return false;
    }
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(module));
    if (type == names.linear) {
      PyObject* parameters = PyDict_GetItemWithError(state.ptr(), names.parameters);
      if (!parameters || !PyDict_Check(parameters)) return false;
      PyObject* weight = PyDict_GetItemWithError(parameters, names.weight);
      PyObject* bias = PyDict_GetItemWithError(parameters, names.bias);
      if (!weight || !bias || !network.append(weight, bias, input).empty()) return false;
      network.activations.push_back(0);
      network.slopes.push_back(0);
      activated = false;
      continue;
    }
    const auto found = std::find_if(names.activations.begin(), names.activations.end(),
                                    [&](const auto& one) { return one.first == type; });
    if (found == names.activations.end()) return false;
    if (found->second == 0) continue;
    if (activated) return false;
    network.activations.back() = found->second;
    activated = true;
  }
  return !network.weights.empty();
}

}  // namespace fastmlp
