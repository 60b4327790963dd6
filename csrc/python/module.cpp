// The Python module: the call that FusedMLP makes, without torch.ops' boxing (4.5 µs a call), and
// what tests and tools ask.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "cpu/isa/isa.h"
#include "cpu/kernels/table.h"
#include "cpu/memory.h"
#include "cpu/peak.h"
#include "cpu/product/library.h"
#include "cpu/product/matrix.h"
#include "cpu/record.h"
#include "cpu/team.h"
#include "images/augment.h"
#include "images/cpu_augment.h"
#include "images/resample.h"
#include "network/losses.h"
#include "network/optimizers.h"
#include "python/lock.h"
#include "python/read_network.h"
#include "python/step.h"
#include "torch/lower.h"
#include "torch/noise.h"
#include "torch/ops.h"

namespace py = pybind11;

namespace fastmlp {
namespace {

at::Tensor run_drawn(const Arguments& arguments, const Averages& averages) {
  const bool has_averages = !averages.empty();
  if (!at::GradMode::is_enabled() && !has_averages) return infer(arguments);
  Numbers numbers;
  Constants constants;
  encode(arguments.program, numbers, constants);
  const at::IntArrayRef program(numbers.begin(), numbers.end());
  const at::ArrayRef<double> rest(constants.begin(), constants.end());
  if (!has_averages) return mlp(arguments.input, arguments.operands, program, rest);
  const auto [output, statistics] = mlp_train(arguments.input, arguments.operands, program, rest);
  add_batch(averages, arguments, statistics);
  return output;
}

PyObject* run_network(const at::Tensor& input, const Network& network) {
  at::Tensor output;
  {
    const Arguments arguments = network.arguments(input);
    const LockReleased released(arguments);
    if (has_dropout(network.program)) {
      const Drawn drawn = draw_noise(arguments);
      output = run_drawn({input, {drawn.operands.data(), drawn.operands.size()}, drawn.program},
                         network.averages);
    } else {
      output = run_drawn(arguments, network.averages);
    }
  }
  return THPVariable_Wrap(std::move(output));
}

std::string examine(PyObject* const* args, Network& network, const at::Tensor*& input) {
  if (const char* reason = mode_in_the_way()) return reason;
  if (const char* reason = operand_in_the_way(args[0], input))
    return std::string("the input is ") + reason;
  if (input->dim() == 0) return "the input has no dimensions";
  network.dtype = input->scalar_type();
  return read(args, network);
}

void check_arguments(PyObject* const* args, Py_ssize_t count) {
  if (count != 1 + kLists) throw py::type_error("expected (input, operands, program, constants)");
  for (int i = 1; i <= kLists; ++i) {
    if (!PyList_Check(args[i]) && !PyTuple_Check(args[i]))
      throw py::type_error("expected lists or tuples");
  }
}

// run(input, operands, program, constants) -> Tensor, or None where the plain path has to be taken.
PyObject* run(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_arguments(args, count);
  Network network;
  const at::Tensor* input = nullptr;
  if (!examine(args, network, input).empty()) Py_RETURN_NONE;
  return run_network(*input, network);
  END_HANDLE_TH_ERRORS
}

// why_plain(… as run …) -> None where run() would run fused, else the reason.
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

// The output of the modules; None where a mode is in the way, and `plain` where they have to run as
// torch's own.
PyObject* run_modules(PyObject* modules, PyObject* object, PyObject* plain) {
  if (mode_in_the_way()) Py_RETURN_NONE;
  const at::Tensor* input = nullptr;
  if (operand_in_the_way(object, input) || input->dim() == 0) return Py_NewRef(plain);
  Network network;
  network.dtype = input->scalar_type();
  if (recognise(modules, network)) {
    const at::Tensor rows = network.flat(*input);
    return rows.defined() ? run_network(rows, network) : Py_NewRef(plain);
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return Py_NewRef(plain);
}

// run_modules(modules, input) -> Tensor or None; modules: a Sequential's dict, or a tuple
PyObject* run_modules(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 2 || !(PyDict_Check(args[0]) || PyTuple_Check(args[0])))
    throw py::type_error("expected (modules, input)");
  return run_modules(args[0], args[1], Py_None);
  END_HANDLE_TH_ERRORS
}

// call_model(model, input) -> Tensor; None where nn.Module's own call has to do it: of a derived
// class, with hooks, compiled, traced; NotImplemented where it would do no more than run the
// modules.
PyObject* call_model(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const Known& names = known();
  if (count != 2 || reinterpret_cast<PyObject*>(Py_TYPE(args[0])) != names.fused_mlp ||
      PyDict_GetItemWithError(Py_TYPE(args[0])->tp_dict, names.forward) != names.fused_forward)
    Py_RETURN_NONE;
  const auto state = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(args[0], nullptr));
  if (!state) throw py::error_already_set();
  PyObject* const compiled = PyDict_GetItemWithError(state.ptr(), names.compiled_call);
  PyObject* const modules = PyDict_GetItemWithError(state.ptr(), names.modules);
  if ((compiled && compiled != Py_None) || !modules || !PyDict_Check(modules) ||
      is_hooked(state.ptr()) || has_global_hooks())
    Py_RETURN_NONE;
  return run_modules(modules, args[1], Py_NotImplemented);
  END_HANDLE_TH_ERRORS
}

// Of the instruction set in use: what the forms of products are chosen by.
template <typename T>
py::dict tiles() {
  const cpu::Kernels<T>& kernels = cpu::active_kernels<T>();
  py::dict shapes;
  shapes["width"] = kernels.width;
  shapes["many_rows"] =
      py::make_tuple(kernels.tuning.many_rows.rows, kernels.tuning.many_rows.vectors);
  shapes["few_rows"] =
      py::make_tuple(kernels.tuning.few_rows.rows, kernels.tuning.few_rows.vectors);
  shapes["dot_rows"] = kernels.tuning.dot_rows;
  return shapes;
}

// (name, torch.nn's class, the ATen operator, its parameters' names and defaults, the attribute
// that tells modules of one class apart and its value) of each.
py::tuple described_activations() {
  py::list all;
  for (const ActivationInfo& info : activations()) {
    py::dict parameters;
    py::list rules;
    for (int i = 0; i < info.parameter_count(); ++i) {
      parameters[info.parameters[i].name] = info.parameters[i].value;
      rules.append(static_cast<int>(info.parameters[i].rule));
    }
    all.append(py::make_tuple(info.name, info.module, info.op ? info.op : info.name, parameters,
                              py::tuple(rules), info.mode_name, info.mode));
  }
  return py::tuple(all);
}

template <typename Infos>
py::tuple names_of(const Infos& infos) {
  py::list names;
  for (const auto& info : infos) names.append(info.name);
  return py::tuple(names);
}

py::tuple losses_that(bool (*is_one)(const LossInfo& info)) {
  std::vector<LossInfo> ones;
  std::copy_if(losses().begin(), losses().end(), std::back_inserter(ones), is_one);
  return names_of(ones);
}

// classes: of linear, fused_linear, dropout, residual, gated, flatten, rows, the norms, softmaxes
// and prelu, device_context, containers, and of each activation in turn; read_as: which others are
// read as one of these.
void know_modules(const py::dict& classes, const py::list& activation_classes,
                  const py::dict& activation_names, const py::list& global_hooks,
                  const py::list& hooks) {
  Known names;  // holds its references for the life of the process
  const auto held = [](const py::handle& object) { return object.inc_ref().ptr(); };
  names.linear = held(classes["linear"]);
  names.fused_linear = held(classes["fused_linear"]);
  names.fused_mlp = held(classes["fused_mlp"]);
  names.fused_forward = held(classes["fused_mlp"].attr("__dict__")["forward"]);
  names.dropout = held(classes["dropout"]);
  names.residual = held(classes["residual"]);
  names.gated = held(classes["gated"]);
  names.flatten = held(classes["flatten"]);
  names.rows = held(classes["rows"]);
  names.layer_norm = held(classes["layer_norm"]);
  names.rms_norm = held(classes["rms_norm"]);
  names.batch_norm = held(classes["batch_norm"]);
  names.softmax = held(classes["softmax"]);
  names.log_softmax = held(classes["log_softmax"]);
  names.prelu = held(classes["prelu"]);
  names.read_as = held(classes["read_as"]);
  names.device_context = held(classes["device_context"]);
  for (const auto& one : classes["containers"]) names.containers.push_back(held(one));
  int number = 0;
  for (const auto& type : activation_classes) {
    const ActivationInfo& info = activations()[number];
    KnownActivation known{held(type), number++, {}, nullptr};
    for (int i = 0; i < info.parameter_count(); ++i)
      known.parameters.push_back(PyUnicode_InternFromString(info.parameters[i].name));
    if (info.mode_name) known.mode_name = PyUnicode_InternFromString(info.mode_name);
    names.activations.push_back(known);
  }
  names.activation_names = held(activation_names);
  for (const auto& one : global_hooks) names.global_hooks.push_back(held(one));
  for (const auto& one : hooks)
    names.hooks.push_back(PyUnicode_InternFromString(one.cast<std::string>().c_str()));
  known() = names;
}

PyMethodDef kMethods[] = {
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(run)), METH_FASTCALL, nullptr},
    {"why_plain", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(why_plain)), METH_FASTCALL,
     nullptr},
    {"run_modules",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(
         static_cast<PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t)>(run_modules))),
     METH_FASTCALL, nullptr},
    {"call_model", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call_model)),
     METH_FASTCALL, nullptr},
    {"train_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(train_step)),
     METH_FASTCALL, nullptr},
    {"train_steps", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(train_steps)),
     METH_FASTCALL, nullptr},
    {"check_train_step", check_train_step, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace fastmlp

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fastmlp;
  if (PyModule_AddFunctions(m.ptr(), kMethods) != 0) throw py::error_already_set();
  m.attr("ACTIVATIONS") = names_of(activations());
  m.attr("ACTIVATION_INFOS") = described_activations();
  m.attr("LOSSES") = names_of(losses());
  m.attr("CLASS_LOSSES") =
      losses_that([](const LossInfo& info) { return info.target == Target::classes; });
  m.attr("VARIANCE_LOSSES") =
      losses_that([](const LossInfo& info) { return variance_of(info) >= 0; });
  m.attr("OPTIMIZERS") = names_of(optimizers());
  m.attr("MOST_PIXELS") = cpu::kMostPixels;
  m.attr("MOST_NOISE") = cpu::kMostNoise;
  m.attr("NOISE_VARIANCE") = cpu::kNoiseVariance;
  m.attr("MOST_HALF") = cpu::kMostHalf;
  m.def("know_modules", know_modules);
  m.def("know_training", know_training);
  // For the fakes, whose sizes may be symbols: of each layer, the weight's place among the operands
  // (-1: none of as many rows), whether it is a batch norm, and whether it gates; and what
  // saved_layers() tells.
  m.def("layers", [](const std::vector<int64_t>& numbers, const std::vector<double>& constants) {
    std::vector<std::tuple<int64_t, bool, bool>> layers;
    for (const LayerOps& layer : decode(numbers, constants).layers)
      layers.emplace_back(layer.has_whole_weight() ? layer.weight : -1, layer.norm == Norm::batch,
                          layer.gates);
    return layers;
  });
  m.def("saved_layers", [](const std::vector<int64_t>& numbers,
                           const std::vector<double>& constants, const std::vector<bool>& flags) {
    return saved_layers(decode(numbers, constants), Needs(flags.begin(), flags.end()));
  });
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
  m.def("allow_library", cpu::allow_library);
  m.def("get_tuning", cpu::get_tuning);
  m.def("set_tuning", cpu::set_tuning);
  m.def("second_level_cache_bytes",
        [=] { return as_runtime_error([] { return cpu::second_level_cache_bytes(); }); });
  m.def("set_second_level_cache_bytes", cpu::set_second_level_cache_bytes);
  m.def("tiles", [](const std::string& dtype) {
    return dtype == "float32" ? tiles<float>() : tiles<double>();
  });
  m.def("deskew", deskew, py::call_guard<py::gil_scoped_release>());
  m.def("distort", distort, py::call_guard<py::gil_scoped_release>());
  m.def("cached_bytes", cached_bytes);
  m.def("empty_cache", empty_cache);
  m.def("set_cores", cpu::set_cores);
  m.def("set_teams_bend", cpu::set_teams_bend);
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
