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
#include <limits>

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

at::Tensor Network::flat(const at::Tensor& input) const {
  if (!flattens) return input;
  return input.dim() < 2 ? at::Tensor() : input.flatten(1);
}

std::string Network::append(PyObject* weight_object, PyObject* bias_object, Norm norm, double eps) {
  const at::Tensor *weight = nullptr, *bias = nullptr;
  if (const char* reason = operand_in_the_way(weight_object, weight))
    return std::string("a weight is ") + reason;
  if (dtype == at::ScalarType::Undefined) dtype = weight->scalar_type();
  if (weight->scalar_type() != dtype) return "input and weights differ in dtype";
  if (norm == Norm::none && weight->dim() != 2) return "a weight is not two-dimensional";
  if (norm != Norm::none && weight->dim() != 1) return "a norm's weight is not one-dimensional";
  const bool has_bias = bias_object != Py_None;
  if (has_bias) {
    if (const char* reason = operand_in_the_way(bias_object, bias))
      return std::string("a bias is ") + reason;
    if (bias->scalar_type() != dtype) return "input and biases differ in dtype";
    if (bias->dim() != 1 || bias->size(0) != weight->size(0))
      return "a bias is not of shape (out_features,)";
  }
  program.add(norm, eps, has_bias);
  operands.push_back(*weight);
  if (has_bias) operands.push_back(*bias);
  return {};
}

namespace {

template <typename Numbers, typename Convert>
void read_numbers(PyObject* list, Numbers& numbers, const Convert& convert) {
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list); ++i)
    numbers.push_back(convert(PySequence_Fast_GET_ITEM(list, i)));
  if (PyErr_Occurred()) throw py::error_already_set();
}

}  // namespace

std::string read(PyObject* const* args, Network& network) {
  PyObject* const operands = args[1];
  Numbers numbers;
  Constants constants;
  read_numbers(args[2], numbers, PyLong_AsLongLong);
  read_numbers(args[3], constants, PyFloat_AsDouble);
  const Program program =
      decode(numbers.begin(), numbers.size(), constants.begin(), constants.size());
  if (PySequence_Fast_GET_SIZE(operands) != program.operands)
    return "operands and program differ in number";
  for (const LayerOps& layer : program.layers) {
    PyObject* const bias =
        layer.bias >= 0 ? PySequence_Fast_GET_ITEM(operands, layer.bias) : Py_None;
    auto reason = network.append(PySequence_Fast_GET_ITEM(operands, layer.weight), bias, layer.norm,
                                 layer.eps);
    if (!reason.empty()) return reason;
    if (!(layer.dropout >= 0 && layer.dropout <= 1)) return "a dropout is not a probability";
  }
  network.program = program;
  return {};
}

Known& known() {
  static Known instance;
  return instance;
}

bool is_empty_dict(PyObject* object) {
  return object && PyDict_Check(object) && PyDict_Size(object) == 0;
}

bool has_global_hooks() {
  const auto& all = known().global_hooks;
  return !std::all_of(all.begin(), all.end(), is_empty_dict);
}

bool is_hooked(PyObject* state) {
  if (PyDict_GetItemWithError(state, known().forward)) return true;
  for (PyObject* name : known().hooks) {
    if (!is_empty_dict(PyDict_GetItemWithError(state, name))) return true;
  }
  return false;
}

namespace {

// What has been read of a layer: what may still belong to it.
enum class Stage { linear, activation, closed };

// Reads the modules of a Sequential one after the other.
class Reader {
 public:
  explicit Reader(Network& network) : network_(network) {}

  bool read(PyObject* modules) {
    Py_ssize_t position = 0;
    PyObject *key = nullptr, *module = nullptr;
    if (PyTuple_Check(modules)) {
      while (position < PyTuple_GET_SIZE(modules)) {
        if (!read_module(PyTuple_GET_ITEM(modules, position++))) return false;
      }
      return true;
    }
    while (PyDict_Next(modules, &position, &key, &module)) {
      if (!read_module(module)) return false;
    }
    return true;
  }

 private:
  LayerOps& layer() { return network_.program.layers.back(); }

  bool read_module(PyObject* module) {
    if (module == Py_None) return false;
    const py::object state =
        py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
    if (!state || is_hooked(state.ptr())) return false;
    PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(module));
    bool is_known = true;
    const bool fits = read_as(type, state.ptr(), is_known);
    if (is_known) return fits;
    PyObject* const like = PyDict_GetItemWithError(names_.read_as, type);
    if (!like) return false;
    const auto forward = py::reinterpret_steal<py::object>(PyObject_GetAttr(type, names_.forward));
    if (forward.ptr() != PyTuple_GET_ITEM(like, 1)) return false;  // it has become another
    return read_as(PyTuple_GET_ITEM(like, 0), state.ptr(), is_known);
  }

  bool read_as(PyObject* type, PyObject* state, bool& is_known) {
    if (type == names_.linear) return read_linear(state);
    if (type == names_.dropout) return read_dropout(state);
    if (type == names_.fused_linear) return read_fused_linear(state);
    if (type == names_.residual) return read_residual(state);
    if (type == names_.flatten) return read_flatten(state);
    if (type == names_.layer_norm) return read_norm(state, Norm::layer);
    if (type == names_.rms_norm) return read_norm(state, Norm::rms);
    for (PyObject* container : names_.containers) {
      if (type == container) return read_children(state);
    }
    return read_activation(type, state, is_known);
  }

  // Rows of an image as one: before the first layer alone.
  bool read_flatten(PyObject* state) {
    const auto is = [&](PyObject* name, long number) {
      PyObject* const value = PyDict_GetItemWithError(state, name);
      return value && PyLong_CheckExact(value) && PyLong_AsLong(value) == number;
    };
    if (residuals_ > 0 || !network_.program.layers.empty()) return false;
    return network_.flattens = is(names_.start_dim, 1) && is(names_.end_dim, -1);
  }

  // The activation and its parameters.
  bool read_activation(PyObject* type, PyObject* state, bool& is_known) {
    for (const KnownActivation& one : names_.activations) {
      if (one.type != type) continue;
      const ActivationInfo& info = activations()[one.number];
      if (one.mode_name) {
        PyObject* const mode = PyDict_GetItemWithError(state, one.mode_name);
        if (!mode || !PyUnicode_Check(mode)) return false;
        if (PyUnicode_CompareWithASCIIString(mode, info.mode) != 0) continue;
      }
      if (one.number == 0) return true;
      if (stage_ != Stage::linear) return false;
      stage_ = Stage::activation;
      layer().activation = one.number;
      for (size_t i = 0; i < one.parameters.size(); ++i) {
        PyObject* const parameter = PyDict_GetItemWithError(state, one.parameters[i]);
        // Not of whatever float() takes: torch refuses strings, and differentiates tensors.
        if (!parameter || !(PyFloat_Check(parameter) || PyLong_Check(parameter)) ||
            !read_number(parameter, layer().parameters[i]))
          return false;
      }
      return info.takes(layer().parameters);
    }
    return is_known = false;
  }

  bool read_linear(PyObject* state) {
    PyObject* parameters = PyDict_GetItemWithError(state, names_.parameters);
    if (!parameters || !PyDict_Check(parameters)) return false;
    PyObject* weight = PyDict_GetItemWithError(parameters, names_.weight);
    PyObject* bias = PyDict_GetItemWithError(parameters, names_.bias);
    stage_ = Stage::linear;
    return weight && bias && network_.append(weight, bias).empty();
  }

  // Over the last dimension alone, with a weight.
  bool read_norm(PyObject* state, Norm norm) {
    PyObject* const parameters = PyDict_GetItemWithError(state, names_.parameters);
    PyObject* const shape = PyDict_GetItemWithError(state, names_.normalized_shape);
    PyObject* const given = PyDict_GetItemWithError(state, names_.eps);
    if (!parameters || !PyDict_Check(parameters) || !shape || !PyTuple_Check(shape) || !given ||
        PyTuple_GET_SIZE(shape) != 1)
      return false;
    PyObject* const weight = PyDict_GetItemWithError(parameters, names_.weight);
    PyObject* bias = PyDict_GetItemWithError(parameters, names_.bias);
    if (!bias && norm == Norm::rms) bias = Py_None;  // has none
    if (!weight || weight == Py_None || !bias) return false;
    double eps = 0;
    if (given == Py_None && norm == Norm::rms) {  // torch's, of the weight's dtype
      if (!THPVariable_Check(weight)) return false;
      eps = THPVariable_Unpack(weight).scalar_type() == at::kFloat
                ? std::numeric_limits<float>::epsilon()
                : std::numeric_limits<double>::epsilon();
    } else if (!(PyFloat_Check(given) || PyLong_Check(given)) || !read_number(given, eps)) {
      return false;
    }
    stage_ = Stage::linear;
    if (!network_.append(weight, bias, norm, eps).empty()) return false;
    const at::Tensor& read = network_.operands[layer().weight];
    PyObject* const features = PyTuple_GET_ITEM(shape, 0);
    return PyLong_CheckExact(features) && read.size(0) == PyLong_AsLongLong(features);
  }

  // A linear layer that knows its activation by name.
  bool read_fused_linear(PyObject* state) {
    PyObject* const name = PyDict_GetItemWithError(state, names_.activation);
    if (!name || !PyUnicode_Check(name) || !read_linear(state)) return false;
    PyObject* const number = PyDict_GetItemWithError(names_.activation_names, name);
    if (!number) return false;
    layer().activation = static_cast<int>(PyLong_AsLong(number));
    const ActivationInfo& info = activations()[layer().activation];
    for (int i = 0; i < info.parameter_count(); ++i)
      layer().parameters[i] = info.parameters[i].value;
    if (layer().activation != 0) stage_ = Stage::activation;
    return true;
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
    layer().dropout = probability;
    stage_ = Stage::closed;
    return true;
  }

  // The modules in a module. It may hold itself.
  bool read_children(PyObject* state) {
    PyObject* const modules = PyDict_GetItemWithError(state, names_.modules);
    if (!modules || !PyDict_Check(modules)) return false;
    if (Py_EnterRecursiveCall(" while reading the blocks of a FusedMLP") != 0) return false;
    const bool fits = read(modules);
    Py_LeaveRecursiveCall();
    return fits;
  }

  bool read_residual(PyObject* state) {
    const int64_t before = network_.program.layers.size();
    stage_ = Stage::closed;
    ++residuals_;
    if (!read_children(state)) return false;
    --residuals_;
    const auto& layers = network_.program.layers;
    const int64_t span = layers.size() - before;
    if (span < 1 || span > kMostSkipped) return false;
    bool has_product = false;
    for (int64_t l = before; l < layers.size(); ++l) {
      if (layers[l].skip > 0) return false;  // a block in a block
      has_product = has_product || layers[l].norm == Norm::none;
    }
    const at::Tensor& first = network_.operands[layers[before].weight];
    if (!has_product || first.size(-1) != network_.operands[layer().weight].size(0)) return false;
    layer().skip = static_cast<int>(span);
    stage_ = Stage::closed;
    return true;
  }

  const Known& names_ = known();
  Network& network_;
  Stage stage_ = Stage::closed;
  int residuals_ = 0;  // that are open
};

}  // namespace

bool recognise(PyObject* modules, Network& network) {
  return !has_global_hooks() && Reader(network).read(modules) &&
         std::any_of(network.program.layers.begin(), network.program.layers.end(),
                     [](const LayerOps& layer) { return layer.norm == Norm::none; });
}

}  // namespace fastmlp
