#include "fuzz/cubin/cubin_fuzz.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/digest.hpp"
#include "cubin/entry.hpp"
#include "fuzz/fields.hpp"

namespace varmoe::fuzz {
namespace {

using cubin::DecodedEntry;
using cubin::EntryDefect;

constexpr std::size_t kPrologueBytes = 24, kChecksumBytes = 8;

void put(std::vector<std::byte>& bytes, std::size_t at, std::uint64_t value) {
  for (std::size_t i = 0; i < 8; ++i) bytes[at + i] = static_cast<std::byte>(value >> (8 * i));
}

void reseal(std::vector<std::byte>& bytes) {
  const std::span<const std::byte> covered =
      std::span<const std::byte>(bytes).first(bytes.size() - kChecksumBytes);
  put(bytes, covered.size(), checksum64(covered));
}

const char* check_decoded(std::span<const std::byte> bytes, bool& accepted) {
  const DecodedEntry decoded = cubin::decode_entry(bytes);
  if (!decoded.entry) {
    if (std::string(to_string(decoded.defect)) == "unknown defect") return "a defect without a name";
    if (cubin::decode_entry(bytes, Digest(), "sm_90a").defect != decoded.defect) return "a defect is two";
    return nullptr;
  }
  accepted = true;
  const cubin::Entry& entry = *decoded.entry;
  const KernelBinary& binary = entry.binary;
  if (binary.image.empty() || binary.arch.empty()) return "an entry without image or arch";
  if (binary.image.size() >= bytes.size() || binary.log.size() > cubin::kMaxLogBytes)
    return "an entry is larger than its bytes";
  const auto again = cubin::encode_entry(entry.key, binary);
  if (!again || !std::equal(again->begin(), again->end(), bytes.begin(), bytes.end()))
    return "an entry has two spellings";
  if (!cubin::decode_entry(bytes, entry.key, binary.arch).entry) return "an entry is not what was asked for";
  Digest other = entry.key;
  other.bytes[0] ^= 1;
  if (cubin::decode_entry(bytes, other, binary.arch).defect != EntryDefect::other_key)
    return "an entry of another key is taken";
  if (cubin::decode_entry(bytes, entry.key, binary.arch + "x").defect != EntryDefect::other_arch)
    return "an entry of another arch is taken";
  const auto name = cubin::parse_entry_file_name(cubin::entry_file_name(entry.key, binary.compiler));
  if (binary.compiler.major >= 0 && (!name || name->key != entry.key || name->compiler != binary.compiler))
    return "an entry's file name does not read back";
  return nullptr;
}

/// The bytes as the fields of an entry, many out of range.
const char* check_written(std::span<const std::uint8_t> bytes) {
  Fields fields(bytes);
  KernelBinary binary;
  const auto size = [&fields](std::size_t limit) {
    const auto n = fields.take<std::uint8_t>();
    return n < 16 ? limit + n % 3 - 1 : n;
  };
  binary.image.resize(fields.choice(64));
  binary.arch.assign(size(cubin::kMaxArchBytes), 'a');
  binary.entry_name.assign(size(cubin::kMaxEntryNameBytes), 'n');
  binary.log.assign(size(cubin::kMaxLogBytes), 'l');
  binary.is_ptx = fields.flag();
  for (int* number : {&binary.compiler.major, &binary.compiler.minor, &binary.compiler.build})
    *number = fields.choice(16) == 0 ? fields.take<std::int32_t>() : fields.take<std::uint16_t>();
  binary.resources.registers = fields.take<std::int32_t>();
  binary.compile_ms = fields.take<double>();
  Digest key;
  for (std::uint8_t& byte : key.bytes) byte = fields.take<std::uint8_t>();
  const auto written = cubin::encode_entry(key, binary);
  if (!written) return presentable(written.error().message()) ? nullptr : "a message is not fit for a log";
  const DecodedEntry read = cubin::decode_entry(*written, key, binary.arch);
  if (!read.entry) return "what was written is not read";
  if (read.entry->binary.image != binary.image || read.entry->binary.entry_name != binary.entry_name ||
      read.entry->binary.compiler != binary.compiler || read.entry->binary.resources != binary.resources ||
      read.entry->binary.is_ptx != binary.is_ptx)
    return "what was written reads as something else";
  const double ms = std::isfinite(binary.compile_ms) && binary.compile_ms >= 0 ? binary.compile_ms : 0.0;
  if (read.entry->binary.compile_ms != ms) return "a compile time reads as another";
  return nullptr;
}

const char* check_names_of_defects() {
  for (int d = 0; d <= static_cast<int>(EntryDefect::other_compiler); ++d)
    if (std::string(to_string(static_cast<EntryDefect>(d))) == "unknown defect")
      return "a defect without a name";
  return nullptr;
}

}  // namespace

std::vector<std::byte> mended_entry(std::span<const std::uint8_t> bytes) {
  std::vector<std::byte> mended(bytes.size());
  if (!bytes.empty()) std::memcpy(mended.data(), bytes.data(), bytes.size());
  if (mended.size() < kPrologueBytes + kChecksumBytes) return mended;
  std::uint32_t header = 0;
  std::memcpy(&header, bytes.data() + 12, sizeof(header));
  const std::size_t rest = mended.size() - kPrologueBytes - kChecksumBytes;
  if (header < rest) put(mended, 16, rest - header);
  reseal(mended);
  return mended;
}

Outcome cubin_entry(std::span<const std::uint8_t> bytes) {
  Outcome outcome;
  const auto broke = [&outcome](const char* what) {
    if (what != nullptr) outcome.broken = what;
  };
  // A copy of exactly these bytes, so that a sanitizer sees every read beyond.
  std::vector<std::byte> copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  broke(check_decoded(copy, outcome.accepted));
  if (copy.size() >= kChecksumBytes) {
    reseal(copy);
    broke(check_decoded(copy, outcome.accepted));
  }
  broke(check_decoded(mended_entry(bytes), outcome.accepted));
  const std::string text(bytes.begin(), bytes.end());
  if (const auto name = cubin::parse_entry_file_name(text)) {
    outcome.accepted = true;
    if (cubin::entry_file_name(name->key, name->compiler) != text) broke("a file name has two spellings");
    if (cubin::shard_name(name->key) != text.substr(0, 2)) broke("a shard is not the name's beginning");
  }
  broke(check_written(bytes));
  static const char* const kNames = check_names_of_defects();
  broke(kNames);
  return outcome;
}

std::vector<std::string> entry_seeds() {
  std::vector<std::string> seeds;
  for (int i = 0; i < 4; ++i) {
    KernelBinary binary;
    binary.image.assign(1 + 50 * static_cast<std::size_t>(i), std::byte(i));
    binary.arch = i % 2 == 0 ? "sm_90a" : "compute_90";
    binary.is_ptx = i % 2 == 1;
    binary.entry_name = i == 0 ? "" : "varmoe_fc1";
    binary.log = i == 3 ? "ptxas info: 40 registers\n" : "";
    binary.compiler = {13, 0, 48 + i};
    binary.resources = {40, 8 * i, 0, -1, 1024};
    binary.compile_ms = 12.5 * i;
    const auto entry = cubin::encode_entry(Hasher().field(i).finish(), binary);
    seeds.emplace_back(reinterpret_cast<const char*>(entry->data()), entry->size());
    seeds.push_back(cubin::entry_file_name(Hasher().field(i).finish(), binary.compiler));
  }
  return seeds;
}

}  // namespace varmoe::fuzz
