#include "cpu/isa/isa.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <utility>

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

// The kernels in use with another tuning; null: with their own.
template <typename T>
std::atomic<const Kernels<T>*>& retuned() {
  static std::atomic<const Kernels<T>*> kernels{nullptr};
  return kernels;
}

// take(name, number) for each number that may be another while the program runs.
template <typename Take>
void each_number(Tuning& t, const Take& take) {
#define FASTMLP_TAKE(number) take(#number, t.number)
  FASTMLP_TAKE(multiplications_per_thread);
  FASTMLP_TAKE(elements_per_thread);
  FASTMLP_TAKE(block_depth);
  FASTMLP_TAKE(chain);
  FASTMLP_TAKE(block_share);
  FASTMLP_TAKE(far_rows);
  FASTMLP_TAKE(far_columns);
  FASTMLP_TAKE(block_panels);
  FASTMLP_TAKE(packed_rows);
  FASTMLP_TAKE(aliased_bytes);
  FASTMLP_TAKE(panel_group);
  FASTMLP_TAKE(epilogue_tiles);
  FASTMLP_TAKE(epilogue_columns);
  FASTMLP_TAKE(epilogue_elements);
  FASTMLP_TAKE(dot_depth);
  FASTMLP_TAKE(turned_tiles);
  FASTMLP_TAKE(turned_peak);
  FASTMLP_TAKE(dot_peak);
  FASTMLP_TAKE(few_dots_peak);
  FASTMLP_TAKE(parameters_share);
  FASTMLP_TAKE(block_rows);
  FASTMLP_TAKE(least_blocks);
  FASTMLP_TAKE(most_blocks);
  FASTMLP_TAKE(library_multiplications);
  FASTMLP_TAKE(library_columns);
  FASTMLP_TAKE(library_least);
#undef FASTMLP_TAKE
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
void set_isa(const std::string& name) {
  current().store(&find(name));
  set_tuning({});
}

template <>
const Kernels<float>& active_kernels<float>() {
  const Kernels<float>* const other = retuned<float>().load(std::memory_order_acquire);
  return other ? *other : current().load(std::memory_order_relaxed)->float_kernels();
}
template <>
const Kernels<double>& active_kernels<double>() {
  const Kernels<double>* const other = retuned<double>().load(std::memory_order_acquire);
  return other ? *other : current().load(std::memory_order_relaxed)->double_kernels();
}

std::map<std::string, double> get_tuning() {
  std::map<std::string, double> values;
  Tuning tuning = active_kernels<float>().tuning;
  each_number(tuning, [&](const char* name, auto& value) { values[name] = double(value); });
  return values;
}

void set_tuning(const std::map<std::string, double>& values) {
  if (values.empty()) {
    retuned<float>().store(nullptr);
    retuned<double>().store(nullptr);
    return;
  }
  const Isa* const isa = current().load();
  Tuning tuning = isa->float_kernels().tuning;
  for (const auto& [name, value] : values) {
    bool found = false;
    each_number(tuning, [&, name = name, value = value](const char* one, auto& number) {
      if (name != one) return;
      using Number = std::decay_t<decltype(number)>;
      found = true;
      if (!(value > 0))
        throw std::invalid_argument("expected a positive number for '" + name + "', got " +
                                    std::to_string(value));
      // Whole numbers are counted in, and multiplied with sizes.
      if (std::is_integral_v<Number> && (value != std::floor(value) || value > 1e9))
        throw std::invalid_argument("expected a whole number of at most a billion for '" + name +
                                    "', got " + std::to_string(value));
      number = static_cast<Number>(value);
    });
    if (!found) throw std::invalid_argument("nothing is tuned by '" + name + "'");
  }
  if (tuning.block_depth > kMaxBlockDepth)
    throw std::invalid_argument("expected a block_depth of " + std::to_string(kMaxBlockDepth) +
                                " at most");
  // Plans that were made with another tuning may still run: all tables are kept.
  struct Tables {
    Kernels<float> floats;
    Kernels<double> doubles;
  };
  static std::mutex mutex;
  static std::map<std::pair<const Isa*, std::map<std::string, double>>, Tables> kept;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [place, is_new] =
      kept.try_emplace({isa, values}, Tables{isa->float_kernels(), isa->double_kernels()});
  Tables& tables = place->second;
  if (is_new) tables.floats.tuning = tables.doubles.tuning = tuning;
  retuned<float>().store(&tables.floats);
  retuned<double>().store(&tables.doubles);
}

}  // namespace fastmlp::cpu
