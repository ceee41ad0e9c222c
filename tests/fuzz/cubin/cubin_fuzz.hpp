#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fuzz/outcome.hpp"

/// Entry point of the fuzzer of src/cubin's reader of entries.
namespace varmoe::fuzz {

/// The bytes as an entry: as they are, with the checksum put right, and with the sizes put right as well; as
/// an entry's file name; and as the fields of an entry to write.
Outcome cubin_entry(std::span<const std::uint8_t> bytes);

/// Entries and file names, each accepted by cubin_entry.
std::vector<std::string> entry_seeds();

/// The entry with its sizes and its checksum put right, as a tamperer would; shorter ones stay as they are.
std::vector<std::byte> mended_entry(std::span<const std::uint8_t> bytes);

}  // namespace varmoe::fuzz
