#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_system.hpp"
#include "cubin/entry.hpp"

namespace varmoe::cubin {

/// One folder of entries on disk (<folder>/cubin): the user's own or a read-only layer. Thread-safe: it holds
/// no state but its place. Everything strange that it meets is told as a defect, never as an error.
class EntryFolder {
 public:
  enum class Kind : std::uint8_t {
    own,        ///< ours to write: damaged files are set aside, used ones touched
    read_only,  ///< never written; hard links are fine (deduplicated images have them)
  };
  EntryFolder(FileSystem& fs, std::string root, Kind kind) : fs_(&fs), root_(std::move(root)), kind_(kind) {}

  const std::string& root() const { return root_; }
  Kind kind() const { return kind_; }
  FileSystem& file_system() const { return *fs_; }

  /// The compiler versions of which there is an entry file for this key, newest first.
  std::vector<CompilerVersion> candidates(const Digest& key) const;

  struct ReadResult {
    std::shared_ptr<const KernelBinary> binary;  ///< null: no sound entry there
    std::string defect;                          ///< why not; empty when there is no such file
    bool foreign = false;                        ///< the file itself is at fault, rather than reading it
    FileInfo info;
  };
  /// Reads one entry. `arch` empty: any. A sound entry of an own folder is touched when that is due.
  ReadResult read(const Digest& key, const CompilerVersion& compiler, std::string_view arch) const;

  /// Publishes an entry. Kind::own only.
  Status write(const Digest& key, const KernelBinary& binary) const;

  /// Moves a file that should not be where it is into the quarantine, provided it is still the one with this
  /// inode. Kind::own only. Returns where it went, or what else became of it, for the log.
  std::string set_aside(const std::string& path, const FileInfo& info) const;

  struct File {
    std::string path;
    std::string name;
    std::string shard;
    FileInfo info;
    std::optional<EntryName> entry;  ///< set when the name is that of an entry of this format
    bool entry_of_any_format = false;
    bool temporary = false;
  };
  /// Every file in the shards, sorted by name. Shards that cannot be read are left out.
  std::vector<File> files() const;
  /// Those in the quarantine.
  std::vector<File> quarantine() const;
  /// Names of the shard folders present.
  std::vector<std::string> shards() const;

  std::string entry_path(const Digest& key, const CompilerVersion& compiler) const;
  std::string locks_folder() const { return join_path(root_, "locks"); }
  std::string lock_path(const Digest& key) const { return join_path(locks_folder(), key.hex().substr(0, 3)); }
  std::string quarantine_folder() const { return join_path(root_, "quarantine"); }
  std::string stamps_path() const { return join_path(root_, "compilers"); }

 private:
  FileSystem* fs_;
  std::string root_;
  Kind kind_;
};

/// Whether the name is that of an entry of any format version: such files count and age, whoever's they are.
bool is_entry_name_of_any_format(std::string_view name);

}  // namespace varmoe::cubin
