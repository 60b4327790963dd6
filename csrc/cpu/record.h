// A record of which kernels ran, for the tests that prove a forced instruction set was obeyed. Off,
// it costs one load.
#pragma once

#include <atomic>
#include <string>
#include <type_traits>
#include <vector>

namespace fastmlp::cpu {

inline std::atomic<bool> recording{false};

void start_recording();
void stop_recording();
std::vector<std::string> recorded();  // the names since recording began, sorted, each once
void add_record(const std::string& name);

// Names are coordinates: form, dtype, tile, instruction set.
template <typename T>
inline void record_kernel(const char* form, const char* isa, int rows, int columns) {
  if (!recording.load(std::memory_order_relaxed)) return;
  add_record(std::string(form) + (std::is_same<T, float>::value ? "_f32_" : "_f64_") +
             std::to_string(rows) + "x" + std::to_string(columns) + "_" + isa);
}

}  // namespace fastmlp::cpu
