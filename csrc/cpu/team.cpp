#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>

#include "cpu/team_limit.h"

namespace fastmlp::cpu {
namespace {

std::atomic<bool> bend{true};
std::atomic<int> most{std::numeric_limits<int>::max()};
TeamLimit limit;

}  // namespace

int64_t team_clock() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool teams_bend() { return bend.load(std::memory_order_relaxed); }

void set_teams_bend(bool on) { bend = on; }

void set_cores(int cores) { most = std::max(1, cores); }

int most_members(int threads) {
  return teams_bend() ? std::min(threads, most.load(std::memory_order_relaxed)) : threads;
}

int members_now(int wanted) {
  return limit.is_free() ? wanted : limit.members(wanted, team_clock());
}

void record_team(int members, int64_t begun, int64_t worked) {
  const int64_t now = team_clock();
  limit.record(members, now - begun, worked, now);
}

}  // namespace fastmlp::cpu
