#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

/// What the fields of a record and the files may hold at most: bounds on what is read, and on what is written
/// so that it can be read again.
namespace varmoe::tuningdb {

inline constexpr std::int64_t kMaxSms = 4096;
inline constexpr std::int64_t kMaxTokens = std::int64_t{1} << 30;
inline constexpr double kMaxMicroseconds = 1e12;
inline constexpr double kMaxRate = 1e9;  ///< TFLOP/s, GB/s
inline constexpr double kMaxSpread = 1e6;
inline constexpr std::int64_t kMaxEpoch = 1'000'000;
inline constexpr std::int64_t kMaxClockMhz = 1'000'000;
inline constexpr std::int64_t kMaxCandidates = 1'000'000'000;

inline constexpr std::size_t kMaxFileBytes = std::size_t{32} << 20;
inline constexpr std::size_t kMaxFileRecords = 16384;
inline constexpr std::size_t kMaxFileValues = std::size_t{1} << 22;
inline constexpr int kMaxFileDepth = 16;
/// Messages about records of one file; the others are counted.
inline constexpr std::size_t kMaxProblems = 20;
inline constexpr std::size_t kMaxFilesPerLayer = 256;

inline constexpr std::size_t kMaxCsvBytes = std::size_t{16} << 20;
inline constexpr std::size_t kMaxCsvRows = 65536;
inline constexpr std::size_t kMaxCsvColumns = 256;

inline constexpr std::size_t kMaxNameBytes = 128;
inline constexpr std::string_view kNameRule = "at most 128 printable ASCII characters";

/// Printable ASCII alone: names of boards and versions, which end up in messages and file names.
inline bool is_name(std::string_view text) {
  return text.size() <= kMaxNameBytes &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

/// "sm_" and digits, perhaps a letter after them.
inline bool is_arch(std::string_view text) {
  if (text.size() < 5 || text.size() > 8 || text.substr(0, 3) != "sm_") return false;
  text.remove_prefix(3);
  if (text.back() >= 'a' && text.back() <= 'z') text.remove_suffix(1);
  return text.size() >= 2 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// Lower-case hex digits, at most 64.
inline bool is_hex(std::string_view text) {
  return text.size() <= 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

/// "2026-11-21T15:04:05Z"; such dates order as texts do.
inline bool is_date(std::string_view text) {
  constexpr std::string_view form = "dddd-dd-ddTdd:dd:ddZ";
  if (text.size() != form.size()) return false;
  for (std::size_t i = 0; i < form.size(); ++i) {
    if (form[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != form[i]) return false;
  }
  return true;
}

}  // namespace varmoe::tuningdb
