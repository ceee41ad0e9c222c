#include "cubin/entry_folder.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "base/atomic_file.hpp"
#include "base/cache_dir.hpp"
#include "base/kill_point.hpp"

namespace varmoe::cubin {
namespace {

constexpr int kQuarantineSlots = 8;
constexpr std::uint64_t kLargestSetAside = std::uint64_t{64} << 20;
constexpr std::int64_t kTouchEveryNs = std::int64_t{600} * 1'000'000'000;

bool is_shard_name(std::string_view name) {
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return name.size() == 2 && hex(name[0]) && hex(name[1]);
}

std::string type_name(const FileInfo& info) {
  switch (info.type) {
    case FileType::regular:
      return "a regular file";
    case FileType::directory:
      return "a directory";
    case FileType::symlink:
      return "a symbolic link";
    case FileType::other:
      break;
  }
  return "a FIFO, socket or device";
}

/// What is wrong with the file itself, as opposed to reading it; empty when it is a plain file of one name
/// and sane size.
std::string fault_of_file(const FileInfo& info, EntryFolder::Kind kind) {
  if (info.type != FileType::regular) return fmt::format("{}, not a regular file", type_name(info));
  if (kind == EntryFolder::Kind::own && info.links != 1)
    return fmt::format("a file with {} names", info.links);
  if (info.size > kMaxEntryBytes) return fmt::format("a file of {} bytes, larger than any entry", info.size);
  return {};
}

}  // namespace

bool is_entry_name_of_any_format(std::string_view name) {
  if (name.size() < 33 || name[32] != '-' || !Digest::from_hex(name.substr(0, 32))) return false;
  const std::size_t dot = name.rfind(".vmc");
  if (dot == std::string_view::npos || dot + 4 >= name.size()) return false;
  const std::string_view version = name.substr(dot + 4);
  return std::all_of(version.begin(), version.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::string EntryFolder::entry_path(const Digest& key, const CompilerVersion& compiler) const {
  return join_path(join_path(root_, shard_name(key)), entry_file_name(key, compiler));
}

std::vector<CompilerVersion> EntryFolder::candidates(const Digest& key) const {
  std::vector<CompilerVersion> found;
  const std::string shard = join_path(root_, shard_name(key));
  FileInfo info;
  // A link in the place of a shard would lead reads and writes out of the folder.
  if (kind_ == Kind::own && (fs_->lstat(shard, &info) < 0 || info.type != FileType::directory)) return found;
  std::vector<std::string> names;
  if (fs_->list(shard, &names) < 0) return found;
  for (const std::string& name : names) {
    const std::optional<EntryName> entry = parse_entry_file_name(name);
    if (entry && entry->key == key) found.push_back(entry->compiler);
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

EntryFolder::ReadResult EntryFolder::read(const Digest& key, const CompilerVersion& compiler,
                                          std::string_view arch) const {
  ReadResult result;
  const std::string path = entry_path(key, compiler);
  const HardLinks hard_links = kind_ == Kind::own ? HardLinks::refuse : HardLinks::accept;
  Result<std::optional<Bytes>> bytes =
      read_regular_file_if_exists(*fs_, path, kMaxEntryBytes, hard_links, &result.info);
  if (!bytes.ok()) {
    // A file that is no plain file is at fault itself; a plain one may be fine on a disk that is not.
    FileInfo info;
    if (fs_->lstat(path, &info) == 0) {
      const std::string fault = fault_of_file(info, kind_);
      result.foreign = !fault.empty();
      result.info = info;
    }
    result.defect = bytes.error().message();
    return result;
  }
  if (!*bytes) return result;
  if (Status trusted = check_trusted_file(*fs_, path, result.info); !trusted.ok()) {
    result.defect = trusted.error().message();
    result.foreign = true;
    return result;
  }
  DecodedEntry decoded = decode_entry(**bytes);
  if (decoded.entry && decoded.entry->key != key) decoded = {std::nullopt, EntryDefect::other_key};
  if (decoded.entry && !arch.empty() && decoded.entry->binary.arch != arch) {
    decoded = {std::nullopt, EntryDefect::other_arch};
  }
  if (decoded.entry && decoded.entry->binary.compiler != compiler) {
    decoded = {std::nullopt, EntryDefect::other_compiler};
  }
  if (!decoded.entry) {
    result.defect = fmt::format("'{}' is no entry to use: {}", path, to_string(decoded.defect));
    result.foreign = true;
    return result;
  }
  result.binary = std::make_shared<const KernelBinary>(std::move(decoded.entry->binary));
  if (kind_ == Kind::own) {
    // Mtimes in the future are put right here as well: such a file would otherwise look used for ever.
    const std::int64_t now = fs_->now_ns();
    if (result.info.mtime_ns > now || now - result.info.mtime_ns > kTouchEveryNs) {
      static_cast<void>(fs_->set_mtime(path, now));
    }
  }
  return result;
}

Status EntryFolder::write(const Digest& key, const KernelBinary& binary) const {
  Result<std::vector<std::byte>> bytes = encode_entry(key, binary);
  if (!bytes.ok()) return std::move(bytes).error();
  const std::string shard = join_path(root_, shard_name(key));
  FileInfo info;
  if (fs_->lstat(shard, &info) == 0 && info.type != FileType::directory) set_aside(shard, info);
  const std::string path = entry_path(key, binary.compiler);
  AtomicWriteOptions options;
  options.create_folder = true;
  Status written = write_atomically(*fs_, path, *bytes, options);
  if (!written.ok() && fs_->lstat(path, &info) == 0 && info.type == FileType::directory) {
    // Nothing can be renamed onto a directory; with it out of the way the second try may do.
    set_aside(path, info);
    written = write_atomically(*fs_, path, *bytes, options);
  }
  VARMOE_KILL_POINT("cubin:stored");
  return written;
}

std::string EntryFolder::set_aside(const std::string& path, const FileInfo& info) const {
  FileInfo now;
  if (fs_->lstat(path, &now) < 0) return "gone already";
  if (now.inode != info.inode || now.device != info.device) return "replaced already";
  if (now.type != FileType::regular || now.size <= kLargestSetAside) {
    // Eight slots bound the quarantine without any bookkeeping: the oldest gives way.
    std::string slot;
    std::int64_t oldest = 0;
    for (int i = 0; i < kQuarantineSlots; ++i) {
      const std::string candidate = join_path(quarantine_folder(), std::to_string(i));
      FileInfo there;
      if (fs_->lstat(candidate, &there) < 0) {
        slot = candidate;
        break;
      }
      if (there.type != FileType::directory && (slot.empty() || there.mtime_ns < oldest)) {
        slot = candidate;
        oldest = there.mtime_ns;
      }
    }
    if (!slot.empty() && now.type == FileType::directory) static_cast<void>(fs_->unlink(slot));
    if (!slot.empty()) {
      int rc = fs_->rename(path, slot);
      if (rc == -ENOENT && make_directories(*fs_, quarantine_folder()).ok()) rc = fs_->rename(path, slot);
      VARMOE_KILL_POINT("cubin:set_aside");
      if (rc == 0) return fmt::format("kept as '{}'", slot);
    }
  }
  const int rc = now.type == FileType::directory ? fs_->rmdir(path) : fs_->unlink(path);
  return rc == 0 ? "removed" : "could not be moved or removed";
}

std::vector<std::string> EntryFolder::shards() const {
  std::vector<std::string> names;
  if (fs_->list(root_, &names) < 0) return {};
  std::erase_if(names, [](const std::string& name) { return !is_shard_name(name); });
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<EntryFolder::File> EntryFolder::files() const {
  std::vector<File> result;
  for (const std::string& shard : shards()) {
    const std::string folder = join_path(root_, shard);
    FileInfo info;
    if (kind_ == Kind::own && (fs_->lstat(folder, &info) < 0 || info.type != FileType::directory)) continue;
    std::vector<std::string> names;
    if (fs_->list(folder, &names) < 0) continue;
    std::sort(names.begin(), names.end());
    for (std::string& name : names) {
      File file;
      file.path = join_path(folder, name);
      if (fs_->lstat(file.path, &file.info) < 0) continue;  // gone meanwhile
      file.entry = parse_entry_file_name(name);
      if (file.entry && shard_name(file.entry->key) != shard) file.entry.reset();
      file.entry_of_any_format = is_entry_name_of_any_format(name);
      file.temporary = is_temp_name(name);
      file.name = std::move(name);
      file.shard = shard;
      result.push_back(std::move(file));
    }
  }
  return result;
}

std::vector<EntryFolder::File> EntryFolder::quarantine() const {
  std::vector<File> result;
  std::vector<std::string> names;
  FileInfo folder;
  if (fs_->lstat(quarantine_folder(), &folder) < 0 || folder.type != FileType::directory) return result;
  if (fs_->list(quarantine_folder(), &names) < 0) return result;
  std::sort(names.begin(), names.end());
  for (std::string& name : names) {
    File file;
    file.path = join_path(quarantine_folder(), name);
    if (fs_->lstat(file.path, &file.info) < 0) continue;
    file.name = std::move(name);
    result.push_back(std::move(file));
  }
  return result;
}

}  // namespace varmoe::cubin
