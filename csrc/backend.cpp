#include "backend.h"

#include <array>

namespace fastmlp {
namespace {

std::array<const Backend*, static_cast<size_t>(c10::DeviceType::COMPILE_TIME_MAX_DEVICE_TYPES)>
    backends{};

}  // namespace

const Backend* backend_of(c10::DeviceType device) { return backends[static_cast<size_t>(device)]; }

void register_backend(c10::DeviceType device, const Backend* backend) {
  backends[static_cast<size_t>(device)] = backend;
}

}  // namespace fastmlp
