#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.hpp"
#include "base/kernel_artifact.hpp"
#include "varmoe/error.hpp"

/// The bytes of one cache entry. Pure functions of memory: no file is touched here.
///
///   entry    := prologue header image checksum
///   prologue := magic[8] version:u32 header_bytes:u32 image_bytes:u64           24 bytes
///   magic    := 89 'V' 'M' 'C' 'U' 0D 0A 1A      (a text-mode copy or a 7-bit channel breaks it visibly)
///   header   := key[16]
///               compiler_major:u32 compiler_minor:u32 compiler_build:u32
///               flags:u32                         bit 0: the image is PTX; all other bits are 0
///               registers:i32 spill_stores:i32 spill_loads:i32 stack_bytes:i32 static_smem:i32
///               compile_ms:f64
///               arch:string entry_name:string log:string
///   string   := length:u32 bytes[length]
///   image    := bytes[image_bytes]                at least one
///   checksum := XXH3-64 of everything before it   u64
///
/// All numbers are little-endian; there is no padding; the file ends with the checksum. The version is part
/// of the file's name as well, so that libraries of different format versions keep their entries side by
/// side.
namespace varmoe::cubin {

inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::size_t kMaxImageBytes = std::size_t{256} << 20;
inline constexpr std::size_t kMaxArchBytes = 64;
inline constexpr std::size_t kMaxEntryNameBytes = 4096;
/// Longer compiler logs are cut when an entry is encoded.
inline constexpr std::size_t kMaxLogBytes = 64 << 10;
/// No sound entry is larger. Readers refuse larger files before reading them.
inline constexpr std::size_t kMaxEntryBytes =
    kMaxImageBytes + kMaxLogBytes + kMaxEntryNameBytes + kMaxArchBytes + 4096;

/// Why bytes are not the entry that was asked for.
enum class EntryDefect : std::uint8_t {
  truncated,      ///< shorter than its own header says
  trailing,       ///< longer than its own header says
  bad_magic,      ///< not an entry at all
  other_version,  ///< an older or newer format
  bad_checksum,
  bad_header,  ///< checksum right, but a field lies outside its range
  other_key,
  other_arch,
  other_compiler,  ///< file name and header disagree on the compiler
};
const char* to_string(EntryDefect) noexcept;

struct Entry {
  Digest key;
  KernelBinary binary;
};

/// Either an entry or a defect; never both.
struct DecodedEntry {
  std::optional<Entry> entry;
  EntryDefect defect = EntryDefect::truncated;  ///< valid when !entry
};

/// invalid_argument when the binary cannot be an entry: empty or huge image, empty or long arch, long entry
/// name, a negative compiler version.
Result<std::vector<std::byte>> encode_entry(const Digest& key, const KernelBinary& binary);

/// Reads any bytes whatever; never throws for their content; allocates no more than bytes.size() and a
/// constant.
DecodedEntry decode_entry(std::span<const std::byte> bytes);
/// As above, and the entry must be of this key and arch.
DecodedEntry decode_entry(std::span<const std::byte> bytes, const Digest& key, std::string_view arch);

/// "<32 hex digits of the key>-<major>.<minor>.<build>.vmc<format version>". The compiler's version is in the
/// name because two builds of NVRTC that share a cache must not overwrite each other's entries in turn.
std::string entry_file_name(const Digest& key, const CompilerVersion& compiler);
struct EntryName {
  Digest key;
  CompilerVersion compiler;
};
/// The inverse; nullopt for every name that entry_file_name does not make (other format versions included).
std::optional<EntryName> parse_entry_file_name(std::string_view name);
/// The folder of a key's entries below the cache's root: its first two hex digits.
std::string shard_name(const Digest& key);

}  // namespace varmoe::cubin
