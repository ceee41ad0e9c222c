#include "cubin/entry.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

namespace varmoe::cubin {
namespace {

constexpr std::array<std::uint8_t, 8> kMagic = {0x89, 'V', 'M', 'C', 'U', 0x0D, 0x0A, 0x1A};
constexpr std::size_t kPrologueBytes = 24;
constexpr std::size_t kChecksumBytes = 8;
constexpr std::size_t kFixedHeaderBytes = 16 + 3 * 4 + 4 + 5 * 4 + 8 + 3 * 4;  // strings empty
constexpr std::size_t kMaxHeaderBytes = kFixedHeaderBytes + kMaxArchBytes + kMaxEntryNameBytes + kMaxLogBytes;
constexpr std::uint32_t kFlagPtx = 1;

class Writer {
 public:
  explicit Writer(std::size_t reserve) { bytes_.reserve(reserve); }
  template <class T>
  void number(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      bytes_.push_back(static_cast<std::byte>((value >> (8 * i)) & 0xFF));
    }
  }
  void raw(const void* data, std::size_t size) {
    const auto* first = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), first, first + size);
  }
  void string(std::string_view text) {
    number(static_cast<std::uint32_t>(text.size()));
    raw(text.data(), text.size());
  }
  std::size_t size() const { return bytes_.size(); }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

/// Reads from a span; once a read goes past the end, that read and all later ones give zeros and ok() is
/// false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class T>
  T number() {
    T value = 0;
    const std::span<const std::byte> part = take(sizeof(T));
    for (std::size_t i = 0; i < part.size(); ++i) {
      value = static_cast<T>(value | static_cast<T>(std::to_integer<T>(part[i]) << (8 * i)));
    }
    return value;
  }
  std::span<const std::byte> take(std::size_t size) {
    if (size > bytes_.size()) {
      ok_ = false;
      bytes_ = {};
      return {};
    }
    const std::span<const std::byte> part = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return part;
  }
  bool string(std::string& out, std::size_t max_bytes) {
    const auto size = number<std::uint32_t>();
    if (size > max_bytes) ok_ = false;
    if (!ok_) return false;
    const std::span<const std::byte> part = take(size);
    out.assign(reinterpret_cast<const char*>(part.data()), part.size());
    return ok_;
  }
  bool ok() const { return ok_; }
  std::size_t left() const { return bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

bool sound_version(const CompilerVersion& v) {
  constexpr int kMax = 1'000'000'000;
  return v.major >= 0 && v.minor >= 0 && v.build >= 0 && v.major < kMax && v.minor < kMax && v.build < kMax;
}

/// One number of a file name: digits without leading zeros, as fmt prints them.
bool read_number(std::string_view& text, char end, int& out) {
  const std::size_t length = text.find(end);
  if (length == std::string_view::npos || length == 0 || length > 9) return false;
  if (length > 1 && text[0] == '0') return false;
  if (text[0] < '0' || text[0] > '9')
    return false;  // from_chars takes a minus, and -0 would be a second name of 0
  const auto [last, error] = std::from_chars(text.data(), text.data() + length, out);
  if (error != std::errc() || last != text.data() + length) return false;
  text.remove_prefix(length + 1);
  return true;
}

DecodedEntry defect(EntryDefect d) {
  DecodedEntry result;
  result.defect = d;
  return result;
}

}  // namespace

const char* to_string(EntryDefect d) noexcept {
  switch (d) {
    case EntryDefect::truncated:
      return "shorter than its header says";
    case EntryDefect::trailing:
      return "longer than its header says";
    case EntryDefect::bad_magic:
      return "not a cubin cache entry";
    case EntryDefect::other_version:
      return "of another format version";
    case EntryDefect::bad_checksum:
      return "checksum does not match";
    case EntryDefect::bad_header:
      return "header field out of range";
    case EntryDefect::other_key:
      return "of another key";
    case EntryDefect::other_arch:
      return "for another arch";
    case EntryDefect::other_compiler:
      return "of another compiler than its name says";
  }
  return "unknown defect";
}

Result<std::vector<std::byte>> encode_entry(const Digest& key, const KernelBinary& binary) {
  const auto refuse = [](std::string message) {
    return Error(ErrorCode::invalid_argument, "not a cubin cache entry: " + std::move(message));
  };
  if (binary.image.empty()) return refuse("the image is empty");
  if (binary.image.size() > kMaxImageBytes) {
    return refuse(
        fmt::format("the image has {} bytes, at most {} are kept", binary.image.size(), kMaxImageBytes));
  }
  if (binary.arch.empty() || binary.arch.size() > kMaxArchBytes) {
    return refuse(
        fmt::format("the arch has {} characters, allowed are 1 to {}", binary.arch.size(), kMaxArchBytes));
  }
  if (binary.entry_name.size() > kMaxEntryNameBytes) {
    return refuse(fmt::format("the entry name has {} characters, at most {} are kept",
                              binary.entry_name.size(), kMaxEntryNameBytes));
  }
  if (!sound_version(binary.compiler)) {
    return refuse(fmt::format("the compiler version {}.{}.{} is out of range", binary.compiler.major,
                              binary.compiler.minor, binary.compiler.build));
  }
  const std::string_view log = std::string_view(binary.log).substr(0, kMaxLogBytes);
  const std::size_t header_bytes =
      kFixedHeaderBytes + binary.arch.size() + binary.entry_name.size() + log.size();

  Writer out(kPrologueBytes + header_bytes + binary.image.size() + kChecksumBytes);
  out.raw(kMagic.data(), kMagic.size());
  out.number(kFormatVersion);
  out.number(static_cast<std::uint32_t>(header_bytes));
  out.number(static_cast<std::uint64_t>(binary.image.size()));

  out.raw(key.bytes.data(), key.bytes.size());
  out.number(static_cast<std::uint32_t>(binary.compiler.major));
  out.number(static_cast<std::uint32_t>(binary.compiler.minor));
  out.number(static_cast<std::uint32_t>(binary.compiler.build));
  out.number(binary.is_ptx ? kFlagPtx : std::uint32_t{0});
  const ResourceUsage& r = binary.resources;
  for (const std::int32_t value :
       {r.registers, r.spill_stores, r.spill_loads, r.stack_bytes, r.static_smem}) {
    out.number(static_cast<std::uint32_t>(value));
  }
  const double compile_ms =
      std::isfinite(binary.compile_ms) && binary.compile_ms >= 0 ? binary.compile_ms : 0.0;
  out.number(std::bit_cast<std::uint64_t>(compile_ms));
  out.string(binary.arch);
  out.string(binary.entry_name);
  out.string(log);
  out.raw(binary.image.data(), binary.image.size());
  out.number(checksum64(out.bytes()));
  return std::move(out.bytes());
}

DecodedEntry decode_entry(std::span<const std::byte> bytes) {
  // Magic and version come first, so that a file of another format is called that and not damaged.
  if (bytes.size() < kMagic.size()) return defect(EntryDefect::truncated);
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) return defect(EntryDefect::bad_magic);
  if (bytes.size() < kPrologueBytes) return defect(EntryDefect::truncated);
  Reader prologue(bytes.subspan(kMagic.size(), kPrologueBytes - kMagic.size()));
  if (prologue.number<std::uint32_t>() != kFormatVersion) return defect(EntryDefect::other_version);
  const std::uint64_t header_bytes = prologue.number<std::uint32_t>();
  const std::uint64_t image_bytes = prologue.number<std::uint64_t>();
  if (header_bytes < kFixedHeaderBytes || header_bytes > kMaxHeaderBytes || image_bytes == 0 ||
      image_bytes > kMaxImageBytes) {
    return defect(EntryDefect::bad_header);
  }
  const std::uint64_t total = kPrologueBytes + header_bytes + image_bytes + kChecksumBytes;
  if (bytes.size() < total) return defect(EntryDefect::truncated);
  if (bytes.size() > total) return defect(EntryDefect::trailing);

  const std::span<const std::byte> covered = bytes.first(bytes.size() - kChecksumBytes);
  Reader tail(bytes.last(kChecksumBytes));
  if (tail.number<std::uint64_t>() != checksum64(covered)) return defect(EntryDefect::bad_checksum);

  Entry entry;
  KernelBinary& binary = entry.binary;
  Reader header(bytes.subspan(kPrologueBytes, static_cast<std::size_t>(header_bytes)));
  const std::span<const std::byte> key = header.take(entry.key.bytes.size());
  std::memcpy(entry.key.bytes.data(), key.data(), key.size());
  std::array<std::uint32_t, 3> version{};
  for (std::uint32_t& number : version) number = header.number<std::uint32_t>();
  for (const std::uint32_t number : version) {
    if (number > static_cast<std::uint32_t>(std::numeric_limits<int>::max()))
      return defect(EntryDefect::bad_header);
  }
  binary.compiler = {static_cast<int>(version[0]), static_cast<int>(version[1]),
                     static_cast<int>(version[2])};
  const auto flags = header.number<std::uint32_t>();
  binary.is_ptx = (flags & kFlagPtx) != 0;
  ResourceUsage& r = binary.resources;
  for (std::int32_t* value :
       {&r.registers, &r.spill_stores, &r.spill_loads, &r.stack_bytes, &r.static_smem}) {
    *value = static_cast<std::int32_t>(header.number<std::uint32_t>());
  }
  binary.compile_ms = std::bit_cast<double>(header.number<std::uint64_t>());
  header.string(binary.arch, kMaxArchBytes);
  header.string(binary.entry_name, kMaxEntryNameBytes);
  header.string(binary.log, kMaxLogBytes);
  if (!header.ok() || header.left() != 0 || binary.arch.empty() || (flags & ~kFlagPtx) != 0 ||
      !sound_version(binary.compiler) || !std::isfinite(binary.compile_ms) || binary.compile_ms < 0) {
    return defect(EntryDefect::bad_header);
  }
  const std::span<const std::byte> image = bytes.subspan(
      kPrologueBytes + static_cast<std::size_t>(header_bytes), static_cast<std::size_t>(image_bytes));
  binary.image.assign(image.begin(), image.end());
  DecodedEntry result;
  result.entry = std::move(entry);
  return result;
}

DecodedEntry decode_entry(std::span<const std::byte> bytes, const Digest& key, std::string_view arch) {
  DecodedEntry result = decode_entry(bytes);
  if (!result.entry) return result;
  if (result.entry->key != key) return defect(EntryDefect::other_key);
  if (result.entry->binary.arch != arch) return defect(EntryDefect::other_arch);
  return result;
}

std::string entry_file_name(const Digest& key, const CompilerVersion& compiler) {
  return fmt::format("{}-{}.{}.{}.vmc{}", key.hex(), compiler.major, compiler.minor, compiler.build,
                     kFormatVersion);
}

std::optional<EntryName> parse_entry_file_name(std::string_view name) {
  constexpr std::size_t kHexDigits = 32;
  if (name.size() <= kHexDigits || name[kHexDigits] != '-') return std::nullopt;
  const std::optional<Digest> key = Digest::from_hex(name.substr(0, kHexDigits));
  if (!key) return std::nullopt;
  name.remove_prefix(kHexDigits + 1);
  EntryName result;
  result.key = *key;
  if (!read_number(name, '.', result.compiler.major) || !read_number(name, '.', result.compiler.minor) ||
      !read_number(name, '.', result.compiler.build)) {
    return std::nullopt;
  }
  if (name != fmt::format("vmc{}", kFormatVersion)) return std::nullopt;
  return result;
}

std::string shard_name(const Digest& key) {
  return key.hex().substr(0, 2);
}

}  // namespace varmoe::cubin
