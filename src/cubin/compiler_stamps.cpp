#include "cubin/compiler_stamps.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/atomic_file.hpp"
#include "base/digest.hpp"
#include "base/file_system.hpp"
#include "base/text.hpp"

// The file:
//   varmoe compilers 1
//   <search: 32 hex> <major> <minor> <build> <device> <inode> <size> <mtime_ns> <path>
//   …                                            newest first, at most kMaxStamps
//   checksum <16 hex>                            over all lines before
// Paths with control characters are not remembered.

namespace varmoe::cubin {
namespace {

constexpr std::string_view kTitle = "varmoe compilers 1";
constexpr std::size_t kMaxStamps = 16;
constexpr std::uint64_t kMaxFileBytes = 256 << 10;
constexpr std::size_t kMaxPathBytes = 4096;

struct Stamp {
  Digest search;
  CompilerVersion version;
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t mtime_ns = 0;
  std::string path;
  bool operator==(const Stamp&) const = default;
};

Digest digest_of(std::string_view search) {
  return Hasher().field(std::string_view("varmoe compiler search")).field(search).finish();
}

std::string encode(const std::vector<Stamp>& stamps) {
  std::string text = std::string(kTitle) + '\n';
  for (const Stamp& s : stamps) {
    text += fmt::format("{} {} {} {} {} {} {} {} {}\n", s.search.hex(), s.version.major, s.version.minor,
                        s.version.build, s.device, s.inode, s.size, s.mtime_ns, s.path);
  }
  return text + fmt::format("checksum {:016x}\n", checksum64(as_bytes(text)));
}

std::optional<Stamp> decode_line(std::string_view line) {
  std::vector<std::string_view> fields;
  for (int i = 0; i < 8; ++i) {
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    fields.push_back(line.substr(0, space));
    line.remove_prefix(space + 1);
  }
  const std::optional<Digest> search = Digest::from_hex(fields[0]);
  if (!search || line.empty()) return std::nullopt;
  std::vector<std::uint64_t> numbers;
  for (std::size_t i = 1; i < fields.size(); ++i) {
    const std::optional<std::uint64_t> number = parse_uint64(fields[i]);
    if (!number || (i <= 3 && *number > 1'000'000'000)) return std::nullopt;
    numbers.push_back(*number);
  }
  Stamp stamp;
  stamp.search = *search;
  stamp.version = {static_cast<int>(numbers[0]), static_cast<int>(numbers[1]), static_cast<int>(numbers[2])};
  stamp.device = numbers[3];
  stamp.inode = numbers[4];
  stamp.size = numbers[5];
  stamp.mtime_ns = static_cast<std::int64_t>(numbers[6]);
  stamp.path = std::string(line);
  return stamp;
}

/// Damaged, foreign or absent: empty.
std::vector<Stamp> load(FileSystem& fs, const std::string& path) {
  const Result<std::optional<Bytes>> bytes = read_regular_file_if_exists(fs, path, kMaxFileBytes);
  if (!bytes.ok() || !*bytes) return {};
  const std::string_view text = as_text(**bytes);
  const std::size_t tail = text.rfind("checksum ");
  if (tail == std::string_view::npos) return {};
  const std::string_view body = text.substr(0, tail);
  if (text.substr(tail) != fmt::format("checksum {:016x}\n", checksum64(as_bytes(body)))) return {};
  std::vector<Stamp> stamps;
  const std::vector<std::string_view> lines = split(body, '\n');
  if (lines.empty() || lines.front() != kTitle) return {};
  for (std::size_t i = 1; i < lines.size() && stamps.size() < kMaxStamps; ++i) {
    if (lines[i].empty()) continue;
    std::optional<Stamp> stamp = decode_line(lines[i]);
    if (!stamp) return {};
    stamps.push_back(std::move(*stamp));
  }
  return stamps;
}

}  // namespace

CompilerStamps::CompilerStamps(FileSystem& file_system, std::string cache_dir)
    : fs_(file_system),
      path_(cache_dir.empty() ? std::string() : join_path(join_path(cache_dir, "cubin"), "compilers")) {}

std::optional<CompilerVersion> CompilerStamps::recall(std::string_view search) const {
  if (path_.empty()) return std::nullopt;
  const Digest wanted = digest_of(search);
  for (const Stamp& stamp : load(fs_, path_)) {
    if (stamp.search != wanted) continue;
    FileInfo info;
    const bool same = fs_.stat(stamp.path, &info) == 0 && info.type == FileType::regular &&
                      info.device == stamp.device && info.inode == stamp.inode && info.size == stamp.size &&
                      info.mtime_ns == stamp.mtime_ns;
    if (same) return stamp.version;
  }
  return std::nullopt;
}

Status CompilerStamps::remember(std::string_view search, const std::string& library_path,
                                const CompilerVersion& version) {
  if (path_.empty()) return {};
  const bool speakable = std::all_of(library_path.begin(), library_path.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F;
  });
  // A relative path would mean another file in another working directory.
  if (library_path.empty() || library_path.front() != '/' || library_path.size() > kMaxPathBytes ||
      !speakable) {
    return Error(
        ErrorCode::invalid_argument,
        fmt::format(
            "the compiler library's path {} cannot be remembered: it must be absolute, without control "
            "characters, of at most {} bytes",
            printable(library_path), kMaxPathBytes));
  }
  FileInfo info;
  if (const int rc = fs_.stat(library_path, &info); rc < 0) return io_error("stat", library_path, -rc);
  Stamp stamp;
  stamp.search = digest_of(search);
  stamp.version = version;
  stamp.device = info.device;
  stamp.inode = info.inode;
  stamp.size = info.size;
  stamp.mtime_ns = std::max<std::int64_t>(info.mtime_ns, 0);
  stamp.path = library_path;
  if (info.mtime_ns < 0) return {};  // before 1970: not worth a sign in the grammar

  std::vector<Stamp> stamps = load(fs_, path_);
  if (std::find(stamps.begin(), stamps.end(), stamp) != stamps.end()) return {};
  std::erase_if(stamps, [&](const Stamp& other) { return other.search == stamp.search; });
  stamps.insert(stamps.begin(), std::move(stamp));
  if (stamps.size() > kMaxStamps) stamps.resize(kMaxStamps);
  const std::string text = encode(stamps);
  AtomicWriteOptions options;
  options.create_folder = true;
  options.sync = false;  // a lost stamp costs one look at the library
  return write_atomically(fs_, path_, as_bytes(text), options);
}

}  // namespace varmoe::cubin
