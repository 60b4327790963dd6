#include "cpu/peak.h"

#include <atomic>
#include <chrono>
#include <cstdint>

#include "cpu/isa/isa.h"
#include "cpu/team.h"

namespace fastmlp::cpu {

template <typename T>
double fma_peak(double seconds, int threads) {
  const Kernels<T>& kernels = active_kernels<T>();
  constexpr int64_t kSteps = 20000;
  std::atomic<int64_t> rounds{0};
  std::atomic<bool> sink{false};
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const auto start = now();
  const auto work = [&](Member) {
    while (std::chrono::duration<double>(now() - start).count() < seconds) {
      sink = kernels.multiply_add(kSteps) > 0;
      ++rounds;
    }
  };
  run_team(threads, work, /*bends=*/false);
  const double elapsed = std::chrono::duration<double>(now() - start).count();
  return 2.0 * kPeakChains * kernels.width * kSteps * static_cast<double>(rounds) / elapsed * 1e-9;
}

template double fma_peak<float>(double, int);
template double fma_peak<double>(double, int);

}  // namespace fastmlp::cpu
