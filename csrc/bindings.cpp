// The Python module: the call that FusedMLP makes, without torch.ops' boxing (4.5 µs a call), and what tests and tools ask.
#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>

#include "cpu/isa.h"
#include "cpu/network.h"
#include "cpu/record.h"
#include "mlp.h"
#include "ops.h"

namespace py = pybind11;

namespace fastmlp {
namespace {

// Why a call cannot run fused in the state that the process is in; null: it can. Modes and transforms are given the plain
// modules, so that they see the operations they know.
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
  if (!THPVariable_Check(object)) return "not a torch.Tensor";
  tensor = &THPVariable_Unpack(object);
  if (tensor->unsafeGetTensorImpl()->is_python_dispatch()) return "a tensor subclass";
  if (!tensor->is_cpu()) return "not on the CPU";
  if (tensor->layout() != at::kStrided || tensor->is_nested() || tensor->is_quantized()) return "not a dense strided tensor";
  if (tensor->scalar_type() != at::kFloat && tensor->scalar_type() != at::kDouble) return "not float32 or float64";
  if (tensor->is_conj() || tensor->is_neg() || tensor->_is_zerotensor()) return "a lazy view";
  return nullptr;
}

struct Network {
  c10::SmallVector<at::Tensor, 8> weights;
  OptionalTensors biases;
  c10::SmallVector<int64_t, 8> activations;
  c10::SmallVector<double, 8> slopes;
};

// Reads weights, biases (tensors or None), activations and slopes, all Python lists or tuples of one length.
std::optional<std::string> read(PyObject* const* args, const at::Tensor& input, Network& network) {
  const auto layers = PySequence_Fast_GET_SIZE(args[1]);
  for (int i = 2; i < 5; ++i) {
    if (PySequence_Fast_GET_SIZE(args[i]) != layers) return "weights, biases and activations differ in number";
  }
  for (Py_ssize_t l = 0; l < layers; ++l) {
    const at::Tensor* weight = nullptr;
    if (const char* reason = operand_in_the_way(PySequence_Fast_GET_ITEM(args[1], l), weight)) {
      return "weight " + std::to_string(l) + " is " + reason;
    }
    if (weight->scalar_type() != input.scalar_type()) return "input and weight " + std::to_string(l) + " differ in dtype";
    network.weights.push_back(*weight);
    PyObject* bias_object = PySequence_Fast_GET_ITEM(args[2], l);
    if (bias_object == Py_None) {
      network.biases.push_back(std::nullopt);
    } else {
      const at::Tensor* bias = nullptr;
      if (const char* reason = operand_in_the_way(bias_object, bias)) return "bias " + std::to_string(l) + " is " + reason;
      if (bias->scalar_type() != input.scalar_type()) return "input and bias " + std::to_string(l) + " differ in dtype";
      network.biases.push_back(*bias);
    }
    network.activations.push_back(PyLong_AsLongLong(PySequence_Fast_GET_ITEM(args[3], l)));
    network.slopes.push_back(PyFloat_AsDouble(PySequence_Fast_GET_ITEM(args[4], l)));
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return std::nullopt;
}

std::optional<std::string> examine(PyObject* const* args, Network& network, const at::Tensor*& input) {
  if (const char* reason = mode_in_the_way()) return reason;
  if (const char* reason = operand_in_the_way(args[0], input)) return std::string("the input is ") + reason;
  if (input->dim() == 0) return "the input has no dimensions";
  return read(args, *input, network);
}

void check_arguments(PyObject* const* args, Py_ssize_t count) {
  if (count != 5) throw py::type_error("expected (input, weights, biases, activations, slopes)");
  for (int i = 1; i < 5; ++i) {
    if (!PyList_Check(args[i]) && !PyTuple_Check(args[i])) throw py::type_error("expected lists or tuples");
  }
}

// run(input, weights, biases, activations, slopes) -> Tensor, or None where the plain path has to be taken.
PyObject* run(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_arguments(args, count);
  Network network;
  const at::Tensor* input = nullptr;
  if (examine(args, network, input)) Py_RETURN_NONE;
  at::Tensor output;
  {
    const py::gil_scoped_release release;
    output = mlp(*input, at::TensorList(network.weights.data(), network.weights.size()), network.biases, network.activations,
                 network.slopes);
  }
  return THPVariable_Wrap(std::move(output));
  END_HANDLE_TH_ERRORS
}

// why_plain(input, weights, biases, activations, slopes) -> None where run() would run fused, else the reason.
PyObject* why_plain(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_arguments(args, count);
  Network network;
  const at::Tensor* input = nullptr;
  const auto reason = examine(args, network, input);
  if (!reason) Py_RETURN_NONE;
  return PyUnicode_FromString(reason->c_str());
  END_HANDLE_TH_ERRORS
}

PyMethodDef kMethods[] = {
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(run)), METH_FASTCALL, nullptr},
    {"why_plain", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(why_plain)), METH_FASTCALL, nullptr},
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
  m.def("saves_input", [](int activation) { return saves_input(static_cast<Activation>(activation)); });
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
  m.def("record_kernels", [](bool on) { on ? cpu::start_recording() : cpu::stop_recording(); });
  m.def("recorded_kernels", cpu::recorded);
  m.def(
      "fma_peak",
      [](double seconds, int threads, const std::string& dtype) {
        if (dtype != "float32" && dtype != "float64") throw py::value_error("expected dtype 'float32' or 'float64', got '" + dtype + "'");
        const py::gil_scoped_release release;
        return dtype == "float32" ? cpu::fma_peak<float>(seconds, threads) : cpu::fma_peak<double>(seconds, threads);
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
