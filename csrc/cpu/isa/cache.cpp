#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/product/matrix.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace fastmlp::cpu {
namespace {

int64_t find_second_level_cache() {
  if (const char* told = std::getenv("FASTMLP_L2_BYTES"); told && *told) {
    char* end = nullptr;
    errno = 0;
    const int64_t bytes = std::strtoll(told, &end, 10);
    if (*end || bytes <= 0 || errno == ERANGE)
      throw std::invalid_argument(
          std::string("FASTMLP_L2_BYTES: expected a number of bytes, got '") + told + "'");
    return bytes;
  }
#ifdef _SC_LEVEL2_CACHE_SIZE
  if (const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return 512 << 10;
}

std::atomic<int64_t> set_bytes{0};

}  // namespace

int64_t second_level_cache_bytes() {
  static const int64_t found = find_second_level_cache();
  const int64_t set = set_bytes.load(std::memory_order_relaxed);
  return set > 0 ? set : found;
}

void set_second_level_cache_bytes(int64_t bytes) { set_bytes = bytes; }

}  // namespace fastmlp::cpu
