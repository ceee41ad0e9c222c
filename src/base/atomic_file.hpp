#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/file_system.hpp"

/// Whole files, all or nothing: the only way in which varmoe's stores read and write.
namespace varmoe {

struct AtomicWriteOptions {
  mode_t mode = 0600;  ///< less the umask
  bool sync = true;  ///< fsync of file and folder; off only where the caller can lose the file in a power cut
  bool create_folder = false;  ///< make a missing folder (0700, parents too) and try once more
};

/// Puts a file with exactly these bytes at `path`, replacing what was there: temp file in the same folder,
/// write, fsync, close, rename, fsync of the folder. Readers see the old file or the new one, never a part,
/// also after a crash at any point. What stood at `path` is replaced by name: a symlink there is not
/// followed, a hard link's other names keep their contents. On failure nothing is published and the temp is
/// removed; a killed process leaves a temp, which sweep_temps removes. An error after the rename (of the
/// folder's fsync) is reported too: then the new file is there, but may not survive a power cut.
///
/// A file-size limit (RLIMIT_FSIZE) is an error like any other: SIGXFSZ is held back from the calling thread
/// meanwhile.
Status write_atomically(FileSystem& fs, const std::string& path, std::span<const std::byte> bytes,
                        const AtomicWriteOptions& options = {});

enum class HardLinks : std::uint8_t { refuse, accept };

/// The bytes of a regular file. Never blocks and never follows a symlink in the last component: symlinks,
/// FIFOs, devices, directories and (unless accepted: deduplicated images have them) files with more than one
/// name are refused unopened. More than `size_cap` bytes are refused before anything is allocated. `info`,
/// when given, receives what fstat said.
Result<Bytes> read_regular_file(FileSystem& fs, const std::string& path, std::uint64_t size_cap,
                                HardLinks hard_links = HardLinks::refuse, FileInfo* info = nullptr);

/// As read_regular_file; a file that does not exist (or whose folder does not) is nullopt and no error.
Result<std::optional<Bytes>> read_regular_file_if_exists(FileSystem& fs, const std::string& path,
                                                         std::uint64_t size_cap,
                                                         HardLinks hard_links = HardLinks::refuse,
                                                         FileInfo* info = nullptr);

/// Whether a file name (no folder) is one that write_atomically gives its temps:
/// ".varmoe-<pid>-<random>.tmp".
bool is_temp_name(std::string_view name) noexcept;

/// Removes temps in `folder` (not below) that are older than `min_age` by the file system's clock: leftovers
/// of killed processes. Younger ones may be somebody's work in progress. Returns how many were removed; a
/// folder that cannot be read has none.
std::size_t sweep_temps(FileSystem& fs, const std::string& folder,
                        std::chrono::seconds min_age = std::chrono::hours(1));

/// View of text as bytes.
inline std::span<const std::byte> as_bytes(std::string_view text) noexcept {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
/// View of bytes as text.
inline std::string_view as_text(std::span<const std::byte> bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace varmoe
