#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file_system.hpp"
#include "tuningdb/record_file.hpp"
#include "tuningdb/shipped.hpp"

/// Where records are read from. Layers are never written here; the user's own is the store's (store.hpp).
namespace varmoe::tuningdb {

struct TuningSources {
  /// Of the API or a command line: folders of .json files, or such files, by absolute path; the first wins.
  std::vector<std::string> paths;
  std::vector<std::string> environment;  ///< VARMOE_TUNING_DB; likewise
  std::string user_folder;               ///< user_tuning_folder(…); empty: none
  std::span<const ShippedFile> shipped = shipped_files();
};

enum class LayerKind : std::uint8_t { path, environment, user, shipped };
/// "given", "VARMOE_TUNING_DB", "user", "shipped".
const char* to_string(LayerKind) noexcept;

/// One layer; those that come first win.
struct Layer {
  LayerKind kind = LayerKind::shipped;
  std::string path;  ///< empty when shipped
  /// "VARMOE_TUNING_DB /opt/db", "shipped".
  std::string text() const;
};

struct LayerFile {
  std::size_t layer = 0;  ///< which of Layers::layers
  std::string path;       ///< of the file; its name when shipped
  RecordFile contents;
};

struct Layers {
  std::vector<Layer> layers;
  std::vector<LayerFile> files;       ///< in the order of layers, in each by name
  std::vector<std::string> problems;  ///< what could not be read or used, a sentence each
};

/// Reads every layer. A layer, file or record that cannot be used is a problem and never hides the others.
/// Trust is that of the cubin cache (base/cache_dir.hpp): folders and files are ours or root's, and writable
/// by nobody else. A symlink, FIFO or device in a file's place is refused without opening it. A missing user
/// folder is no problem, any other is.
Layers read_layers(FileSystem& fs, const TuningSources& sources);

}  // namespace varmoe::tuningdb
