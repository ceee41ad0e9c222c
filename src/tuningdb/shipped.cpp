#include "tuningdb/shipped.hpp"

#include <vector>

#if defined(VARMOE_HAS_SHIPPED_RECORDS)
#include "tuningdb/embedded/shipped_records.hpp"
#endif

namespace varmoe::tuningdb {

std::span<const ShippedFile> shipped_files() {
  static const std::vector<ShippedFile> files = [] {
    std::vector<ShippedFile> result;
#if defined(VARMOE_HAS_SHIPPED_RECORDS)
    for (const auto& file : embedded::shipped_records::files()) result.push_back({file.name, file.text});
#endif
    return result;
  }();
  return files;
}

}  // namespace varmoe::tuningdb
