#pragma once

#include "varmoe/export.hpp"

#define VARMOE_VERSION_MAJOR 0
#define VARMOE_VERSION_MINOR 1
#define VARMOE_VERSION_PATCH 0
#define VARMOE_VERSION_STRING "0.1.0"

namespace varmoe {
/// The version of the library that is loaded, e.g. "0.1.0"; compare with VARMOE_VERSION_STRING of the headers.
VARMOE_API const char* version() noexcept;
}  // namespace varmoe
