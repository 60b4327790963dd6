// Drives csrc/cpu/team_limit.h: a line "members WANTED NOW" asks, "record MEMBERS ELAPSED WORKED
// NOW" tells; times in nanoseconds.
#include "cpu/team_limit.h"

#include <iostream>
#include <string>

int main() {
  fastmlp::cpu::TeamLimit limit;
  std::string what;
  while (std::cin >> what) {
    if (what == "members") {
      int wanted;
      long long now;
      std::cin >> wanted >> now;
      std::cout << limit.members(wanted, now) << std::endl;
    } else {
      int members;
      long long elapsed, worked, now;
      std::cin >> members >> elapsed >> worked >> now;
      limit.record(members, elapsed, worked, now);
    }
  }
}
