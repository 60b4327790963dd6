// Checks Vec of the instruction sets that are named: `vec_test avx2 generic`. Exit status 1, and a
// line for each fault, where one breaks its contract.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cpu/isa/target.h"

namespace generic {
#include "cpu/isa/vec_generic.h"
#include "vec_contract-inl.h"
}  // namespace generic

#ifdef FASTMLP_X86
FASTMLP_TARGET_BEGIN("avx2,fma")
namespace avx2 {
#include "cpu/isa/vec_avx2.h"
#include "vec_contract-inl.h"
}  // namespace avx2
FASTMLP_TARGET_END
FASTMLP_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
namespace avx512 {
#include "cpu/isa/vec_avx512.h"
#include "vec_contract-inl.h"
}  // namespace avx512
FASTMLP_TARGET_END
#endif

int main(int count, char** names) {
  int faults = 0;
  for (int i = 1; i < count; ++i) {
    const std::string isa = names[i];
    if (isa == "generic") {
      faults += generic::check_vec("generic");
#ifdef FASTMLP_X86
    } else if (isa == "avx2") {
      faults += avx2::check_vec("avx2");
    } else if (isa == "avx512") {
      faults += avx512::check_vec("avx512");
#endif
    } else {
      std::printf("expected instruction sets that are compiled here, got %s\n", names[i]);
      return 2;
    }
    std::printf("%s: checked\n", names[i]);
  }
  return faults != 0;
}
