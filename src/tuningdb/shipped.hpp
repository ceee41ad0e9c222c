#pragma once

#include <span>
#include <string_view>

namespace varmoe::tuningdb {

/// A file of records that is not on a disk.
struct ShippedFile {
  std::string_view name, text;
};

/// The files of tuning_db/, embedded; static storage. There may be none.
std::span<const ShippedFile> shipped_files();

}  // namespace varmoe::tuningdb
