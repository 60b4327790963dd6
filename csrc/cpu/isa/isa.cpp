#include "cpu/isa/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/isa/target.h"

namespace fastmlp::cpu {
namespace {

struct Isa {
  const char* name;
  bool (*available)();
  const Kernels<float>& (*float_kernels)();
  const Kernels<double>& (*double_kernels)();
};

// __builtin_cpu_supports asks the operating system (XGETBV) as well as the processor. Best first.
constexpr Isa kIsas[] = {
#ifdef FASTMLP_X86
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     },
     avx512_kernels<float>, avx512_kernels<double>},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
     avx2_kernels<float>, avx2_kernels<double>},
#endif
    {"generic", [] { return true; }, generic_kernels<float>, generic_kernels<double>},
};

std::string join(const std::vector<std::string>& names) {
  std::string all;
  for (const auto& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

const Isa& find(const std::string& name) {
  for (const Isa& isa : kIsas) {
    if (name != isa.name) continue;
    if (isa.available()) return isa;
    throw std::invalid_argument(
        "instruction set '" + name +
        "' is not available on this machine; available: " + join(available_isas()));
  }
  throw std::invalid_argument("unknown instruction set '" + name +
                              "'; expected one of: " + join(compiled_isas()));
}

const Isa& choose() {
  const char* forced = std::getenv("FASTMLP_ISA");
  if (forced && *forced) {
    try {
      return find(forced);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string("FASTMLP_ISA: ") + error.what());
    }
  }
  return find(available_isas().front());
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> isa{&choose()};
  return isa;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) names.emplace_back(isa.name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.available()) names.emplace_back(isa.name);
  }
  return names;
}

std::string get_isa() { return current().load()->name; }
void set_isa(const std::string& name) { current().store(&find(name)); }

template <>
const Kernels<float>& active_kernels<float>() {
  return current().load(std::memory_order_relaxed)->float_kernels();
}
template <>
const Kernels<double>& active_kernels<double>() {
  return current().load(std::memory_order_relaxed)->double_kernels();
}

}  // namespace fastmlp::cpu
