#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Small helpers for text that comes from outside: showing it safely, and reading numbers out of it strictly.
namespace varmoe {

/// `text` fit for a message or log line: control characters, backslashes and bytes that are not UTF-8 as
/// \xNN, and cut after `max_bytes` of input with a note of how long the whole was.
std::string printable(std::string_view text, std::size_t max_bytes = 200);

/// Number of single-character insertions, deletions, replacements and swaps of neighbours between the two.
/// Only the first 128 characters count, so that the cost is bounded whatever comes in.
std::size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate that differs least from `text`: edit distance over the length of the longer, ignoring ASCII
/// case; the first of equals. Empty when there are no candidates.
std::string_view nearest(std::string_view text, std::span<const std::string_view> candidates);

/// Parts between separators; empty parts are kept, and an empty text has one empty part.
std::vector<std::string_view> split(std::string_view text, char separator);

/// "a, b, c".
std::string join(std::span<const std::string_view> parts, std::string_view separator = ", ");

/// Decimal digits alone: no sign, space, prefix or anything after; nullopt also when it does not fit.
std::optional<std::uint64_t> parse_uint64(std::string_view text);

/// "1048576", "512K", "512KiB", "10G", "10GiB" (K, M, G, T are powers of 1024; case matters not); nullopt
/// when it is none of these or does not fit in 63 bits.
std::optional<std::uint64_t> parse_byte_size(std::string_view text);

/// "0 B", "512 B", "1.5 KiB", "2.0 GiB".
std::string format_byte_size(std::uint64_t bytes);

}  // namespace varmoe
