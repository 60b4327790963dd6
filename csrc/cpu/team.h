// A team of threads from the OpenMP pool that torch itself uses, and the even division of work
// among them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#ifdef _OPENMP
#include <omp.h>

#include "cpu/isa/float_state.h"
#endif

namespace fastmlp::cpu {

// Whether teams become smaller while other programs keep the cores (team_limit.h), and have no more
// members than set_cores() says, which this turns off as well. So it is at first; tests of several
// threads want them.
bool teams_bend();
void set_teams_bend(bool on);

// The cores that the process may keep busy, one at least, and the most members that this leaves of
// so many threads.
void set_cores(int cores);
int most_members(int threads);

// What run_team() asks and tells: nanoseconds of a steady clock; the members that a call may have
// now; when a call had begun that ends now, and how long its caller worked.
int64_t team_clock();
int members_now(int wanted);
void record_team(int members, int64_t begun, int64_t worked);

// One member of a team. The caller is the first, and has the last and largest share: how long it
// works tells how long the others do.
struct Member {
  int index;
  int count;
  int64_t* waited = nullptr;  // where it is asked, the nanoseconds that it has waited for others

  int64_t begin(int64_t total) const { return total * (count - 1 - index) / count; }
  int64_t end(int64_t total) const { return total * (count - index) / count; }

  // Begin and end of this member's share of so many elements, in whole vectors of this width but
  // for the last; the end may lie before the begin.
  std::pair<int64_t, int64_t> vectors(int64_t elements, int64_t width) const {
    const int64_t whole = (elements + width - 1) / width;
    return {begin(whole) * width, std::min(elements, end(whole) * width)};
  }

  // take(i) for this member's of so many pieces, of which the last may be a small one: it is never
  // the caller's, unless all are.
  template <typename Take>
  void each_piece(int64_t pieces, const Take& take) const {
    for (int64_t i = pieces - end(pieces); i < pieces - begin(pieces); ++i) take(i);
  }

  // Returns when every member has come to the same call, with all that they wrote visible.
  void wait() const {
#ifdef _OPENMP
    if (count > 1) {
      const int64_t come = waited ? team_clock() : 0;
#pragma omp barrier
      if (waited) *waited += team_clock() - come;
    }
#endif
  }
};

// Runs body(Member) on up to `threads` threads; fewer, down to one, where other programs keep the
// cores, OpenMP grants fewer or is not compiled in. All of them compute in the caller's
// floating-point state, which is a thread's own and which the pool's threads have of the moment
// when they were started: results, and what is decided from data, must not depend on who computes.
template <typename Body>
void run_team(int threads, const Body& body, bool bends = teams_bend()) {
#ifdef _OPENMP
  bends = bends && threads > 1;
  const int members = bends ? members_now(threads) : threads;
  if (members > 1) {
    const FloatState callers = FloatState::of_this_thread();
    int64_t begun = 0, waited = 0, worked = 0;  // of the caller
    int granted = 1;
#pragma omp parallel num_threads(members)
    {
      const BorrowedFloatState borrowed(callers);
      const int index = omp_get_thread_num();
      const bool told = bends && index == 0;
      if (told) begun = team_clock();
      body(Member{index, omp_get_num_threads(), told ? &waited : nullptr});
      if (told) {
        worked = team_clock() - begun - waited;
        granted = omp_get_num_threads();
      }
    }
    if (granted > 1) record_team(granted, begun, worked);
    return;
  }
#endif
  (void)threads, (void)bends;
  body(Member{0, 1});
}

}  // namespace fastmlp::cpu
