#include "varmoe/version.hpp"

namespace varmoe {

const char* version() noexcept {
  return VARMOE_VERSION_STRING;
}

}  // namespace varmoe
