// Which instruction sets this binary has kernels for, which of them this machine can run, and which
// one is in use.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cpu/kernels/table.h"

namespace fastmlp::cpu {

std::vector<std::string> compiled_isas();  // best first
std::vector<std::string>
available_isas();  // best first; the operating system's support is checked, too
std::string get_isa();
// Takes effect for the calls that begin after it. Throws std::invalid_argument for a name that is
// unknown or unavailable.
void set_isa(const std::string& name);

// What the kernels in use are tuned by, by name (but for the shapes of tiles, which are compiled),
// and other values in their place: for measuring. Lasts until the next call, or set_isa(). Throws
// std::invalid_argument for another name, or a number that is not positive, or not whole where it
// has to be.
std::map<std::string, double> get_tuning();
void set_tuning(const std::map<std::string, double>& values);

// The kernels in use. The first call reads FASTMLP_ISA and throws as set_isa does.
template <typename T>
const Kernels<T>& active_kernels();

}  // namespace fastmlp::cpu
