// The Python module: the call that FusedMLP makes, without torch.ops' boxing (4.5 µs a call), and
// what tests and tools ask.
#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "cpu/network.h"
#include "cpu/record.h"
#include "memory.h"
#include "mlp.h"
#include "ops.h"
#include "problem.h"

namespace py = pybind11;

namespace fastmlp {
namespace {

// Why a call cannot run fused in the state that the process is in; null: it can. Modes and
// transforms are given the plain modules, so that they see the operations they know.
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

// Why a tensor cannot be an operand; null: it can.
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

struct Network {
  c10::SmallVector<at::Tensor, 8> weights;
  c10::SmallVector<std::optional<at::Tensor>, 8> biases;
  c10::SmallVector<int64_t, 8> activations;
  c10::SmallVector<double, 8> slopes;

  // Takes a weight and a bias (a tensor or None); returns why they cannot be operands beside
  // `input`, or nothing.
  std::string append(PyObject* weight_object, PyObject* bias_object, const at::Tensor& input) {
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
};

// Reads weights, biases (tensors or None), activations and slopes, all Python lists or tuples of
// one length.
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

PyObject* run_network(const at::Tensor& input, const Network& network) {
  at::Tensor output;
  {
    const py::gil_scoped_release release;
    const at::TensorList weights(network.weights.data(), network.weights.size());
    if (at::GradMode::is_enabled()) {
      OptionalTensors biases;
      for (const auto& bias : network.biases) biases.push_back(bias);
      output = mlp(input, weights, biases, network.activations, network.slopes);
    } else {
      output = infer({input, weights, network.biases, network.activations, network.slopes});
    }
  }
  return THPVariable_Wrap(std::move(output));
}

std::string examine(PyObject* const* args, Network& network, const at::Tensor*& input) {
  if (const char* reason = mode_in_the_way()) return reason;
  if (const char* reason = operand_in_the_way(args[0], input))
    return std::string("the input is ") + reason;
  if (input->dim() == 0) return "the input has no dimensions";
  return read(args, *input, network);
}

void check_arguments(PyObject* const* args, Py_ssize_t count) {
  if (count != 5) throw py::type_error("expected (input, weights, biases, activations, slopes)");
  for (int i = 1; i < 5; ++i) {
    if (!PyList_Check(args[i]) && !PyTuple_Check(args[i]))
      throw py::type_error("expected lists or tuples");
  }
}

// run(input, weights, biases, activations, slopes) -> Tensor, or None where the plain path has to
// be taken.
PyObject* run(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_arguments(args, count);
  Network network;
  const at::Tensor* input = nullptr;
  if (!examine(args, network, input).empty()) Py_RETURN_NONE;
  return run_network(*input, network);
  END_HANDLE_TH_ERRORS
}

// why_plain(input, weights, biases, activations, slopes) -> None where run() would run fused, else
// the reason.
PyObject* why_plain(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_arguments(args, count);
  Network network;
  const at::Tensor* input = nullptr;
  const auto reason = examine(args, network, input);
  if (reason.empty()) Py_RETURN_NONE;
  return PyUnicode_FromString(reason.c_str());
  END_HANDLE_TH_ERRORS
}

// What run_modules knows of torch.nn, told once by modules.py.
struct Known {
  PyObject* linear = nullptr;
  std::vector<std::pair<PyObject*, int64_t>> activations;  // those without parameters
  std::vector<PyObject*> global_hooks;                     // dicts
  std::vector<PyObject*> hooks;                            // the names of a module's dicts of hooks
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* forward = PyUnicode_InternFromString("forward");
  PyObject* weight = PyUnicode_InternFromString("weight");
  PyObject* bias = PyUnicode_InternFromString("bias");
};

Known& known() {
  static Known instance;
  return instance;
}

bool is_empty_dict(PyObject* object) {
  return object && PyDict_Check(object) && PyDict_Size(object) == 0;
}

// The operands of a Sequential of plain linear layers and activations without parameters, by far
// the most frequent network, recognised anew in each call at a sixth of what the same takes in
// Python. False for any other: Python decides then.
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

// run_modules(modules, input) -> Tensor, or None where recognise() or the plain path leaves it to
// Python.
PyObject* run_modules(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 2 || !PyDict_Check(args[0])) throw py::type_error("expected (modules, input)");
  const at::Tensor* input = nullptr;
  if (mode_in_the_way() || operand_in_the_way(args[1], input) || input->dim() == 0) Py_RETURN_NONE;
  Network network;
  if (!recognise(args[0], *input, network)) {
    if (PyErr_Occurred()) throw py::error_already_set();
    Py_RETURN_NONE;
  }
  return run_network(*input, network);
  END_HANDLE_TH_ERRORS
}

PyMethodDef kMethods[] = {
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(run)), METH_FASTCALL, nullptr},
    {"why_plain", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(why_plain)), METH_FASTCALL,
     nullptr},
    {"run_modules", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(run_modules)),
     METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace fastmlp

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fastmlp;
  if (PyModule_AddFunctions(m.ptr(), kMethods) != 0) throw py::error_already_set();
  py::list names;
  for (const char* name : kActivationNames) names.append(name);
  m.attr("ACTIVATIONS") = py::tuple(names);
  m.def("know_modules", [](const py::handle& linear, const py::dict& activations,
                           const py::list& global_hooks, const py::list& hooks) {
    Known names;  // holds its references for the life of the process
    names.linear = linear.inc_ref().ptr();
    for (const auto& [type, code] : activations)
      names.activations.emplace_back(type.inc_ref().ptr(), code.cast<int64_t>());
    for (const auto& one : global_hooks) names.global_hooks.push_back(one.inc_ref().ptr());
    for (const auto& one : hooks)
      names.hooks.push_back(PyUnicode_InternFromString(one.cast<std::string>().c_str()));
    known() = names;
  });
  m.def("saves_sums",
        [](int activation) { return saves_sums(static_cast<Activation>(activation)); });
  m.def("saves_output",
        [](int activation) { return saves_output(static_cast<Activation>(activation)); });
  m.def("compiled_isas", cpu::compiled_isas);
  m.def("available_isas", cpu::available_isas);
  const auto as_runtime_error = [](auto call) {
    try {
      return call();
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string("fastmlp: ") + error.what());
    }
  };
  m.def("get_isa", [=] { return as_runtime_error([] { return cpu::get_isa(); }); });
  m.def("set_isa", [=](const std::string& name) { as_runtime_error([&] { cpu::set_isa(name); }); });
  m.def("cached_bytes", cached_bytes);
  m.def("empty_cache", empty_cache);
  m.def("record_kernels", [](bool on) { on ? cpu::start_recording() : cpu::stop_recording(); });
  m.def("recorded_kernels", cpu::recorded);
  m.def(
      "fma_peak",
      [](double seconds, int threads, const std::string& dtype) {
        if (dtype != "float32" && dtype != "float64")
          throw py::value_error("expected dtype 'float32' or 'float64', got '" + dtype + "'");
        const py::gil_scoped_release release;
        return dtype == "float32" ? cpu::fma_peak<float>(seconds, threads)
                                  : cpu::fma_peak<double>(seconds, threads);
      },
      py::arg("seconds"), py::arg("threads"), py::arg("dtype") = "float32");
  m.def("build_info", [] {
    py::dict info;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["cxx_standard"] = static_cast<int>(__cplusplus / 100 % 100);
    info["torch"] = FASTMLP_TORCH_VERSION;
#ifdef _OPENMP
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    return info;
  });
}
