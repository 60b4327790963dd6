// How many members teams may have while other programs keep the cores: a team waits for its last
// member, and one whose core is somebody else's comes when the system lets it, 4 ms and more later.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastmlp::cpu {

// Learns from what calls took. A call is blamed for what it took beyond the time in which half its
// team would have been done: the members' shares are alike, so the caller's own work says how long
// that is, and where it is the caller that lost its core, nobody is blamed. Beyond a patience teams
// are halved for a short pause and then doubled again; where that fails at once, the next pause is
// long beside what the trial had cost, and twice as long as the last. Times are nanoseconds of a
// steady clock. Callers may come from several threads: what one of them learns can be lost to
// another, which costs a call or two.
class TeamLimit {
 public:
  static constexpr int64_t kPatience = 4'000'000;  // an idle machine's hiccups are 0.5 to 3 ms
  // A thread that wakes up on its caller's core stays there for some milliseconds.
  static constexpr int64_t kFirstPause = 8'000'000;
  static constexpr int64_t kPauses = 8;
  static constexpr int64_t kMostPause = 1'000'000'000;  // what is free again is soon used

  // Whether every call may have all that it wants.
  bool is_free() const { return limit_.load(std::memory_order_relaxed) == kNone; }

  // How many of the members that a call wants it may have.
  int members(int wanted, int64_t now) {
    const int limit = limit_.load(std::memory_order_relaxed);
    if (limit == kNone) return wanted;
    if (now < retry_at_) return std::min(wanted, limit);
    begun_ = now;
    retry_at_ = now + pause_;
    const int next = 2 * limit < largest_ ? 2 * limit : kNone;
    limit_.store(next, std::memory_order_relaxed);
    return std::min(wanted, next);
  }

  // Of a call that has ended now: its members, more than one; how long it took and how long the
  // caller worked in it.
  void record(int members, int64_t elapsed, int64_t worked, int64_t now) {
    if (members > largest_) largest_ = members;
    const int half = members / 2;
    const int64_t blame = elapsed - worked * ((members + half - 1) / half);
    const int64_t debt = std::max<int64_t>(0, debt_ + blame);
    debt_ = debt;
    if (debt < kPatience) return;
    const bool at_once = now - begun_ < 4 * pause_;
    pause_ = at_once ? std::min(std::max(kPauses * debt, 2 * pause_), kMostPause) : kFirstPause;
    retry_at_ = now + pause_;
    debt_ = 0;
    limit_.store(half, std::memory_order_relaxed);
  }

 private:
  static constexpr int kNone = 1 << 30;

  std::atomic<int> limit_{kNone}, largest_{0};
  std::atomic<int64_t> debt_{0};
  std::atomic<int64_t> pause_{0}, begun_{0}, retry_at_{0};
};

}  // namespace fastmlp::cpu
