#include "cpu/record.h"

#include <mutex>
#include <set>

namespace fastmlp::cpu {
namespace {
std::mutex mutex;
std::set<std::string> names;
}  // namespace

void start_recording() {
  const std::lock_guard<std::mutex> lock(mutex);
  names.clear();
  recording = true;
}

void stop_recording() { recording = false; }

std::vector<std::string> recorded() {
  const std::lock_guard<std::mutex> lock(mutex);
  return {names.begin(), names.end()};
}

void add_record(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex);
  names.insert(name);
}

}  // namespace fastmlp::cpu
