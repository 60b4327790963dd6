// How a pass is shared out: by one team for all of it, or by a team for each of its stages.
#pragma once

#include "cpu/team.h"

namespace fastmlp::cpu {

// A pass is written once, as a sequence of run(stage) and wait(); stage(member) does a member's
// share. Here the whole pass runs in a team, and wait() is its barrier.
class InTeam {
 public:
  explicit InTeam(Member member) : member_(member) {}
  template <typename Stage>
  void run(const Stage& stage) const {
    stage(member_);
  }
  void wait() const { member_.wait(); }

 private:
  Member member_;
};

// Where the library computes products, which brings threads of its own, one stage is over before
// the next begins.
class StageByStage {
 public:
  explicit StageByStage(int threads) : threads_(threads) {}
  template <typename Stage>
  void run(const Stage& stage) const {
    run_team(threads_, stage);
  }
  void wait() const {}

 private:
  int threads_;
};

}  // namespace fastmlp::cpu
