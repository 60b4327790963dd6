// torch's generator of random numbers on the CPU, as plain data: MT19937 (Matsumoto and Nishimura
// 1998). No torch here.
#pragma once

#include <cstdint>

namespace fastmlp::cpu {

struct MersenneTwister {
  static constexpr int kWords = 624, kMiddle = 397;
  uint32_t* state = nullptr;  // [kWords]
  int next = 0;               // the first word of the state that is still to be given out
  int unread = 0;             // words of the state from there on; 0: the state is to be made anew
};

}  // namespace fastmlp::cpu
