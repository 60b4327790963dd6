// A team of threads from the OpenMP pool that torch itself uses, and the even division of work
// among them.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>

#include "cpu/isa/float_state.h"
#endif

namespace fastmlp::cpu {

// One member of a team.
struct Member {
  int index;
  int count;

  int64_t begin(int64_t total) const { return total * index / count; }
  int64_t end(int64_t total) const { return total * (index + 1) / count; }

  // Returns when every member has come to the same call, with all that they wrote visible.
  void wait() const {
#ifdef _OPENMP
    if (count > 1) {
#pragma omp barrier
    }
#endif
  }
};

// Runs body(Member) on up to `threads` threads; fewer, down to one, where OpenMP grants fewer or is
// not compiled in. All of them compute in the caller's floating-point state, which is a thread's
// own and which the pool's threads have of the moment when they were started: results, and what is
// decided from data, must not depend on who computes.
template <typename Body>
void run_team(int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1) {
    const FloatState callers = FloatState::of_this_thread();
#pragma omp parallel num_threads(threads)
    {
      const BorrowedFloatState borrowed(callers);
      body(Member{omp_get_thread_num(), omp_get_num_threads()});
    }
    return;
  }
#endif
  (void)threads;
  body(Member{0, 1});
}

}  // namespace fastmlp::cpu
