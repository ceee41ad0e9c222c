#include "tuningdb/layers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "base/atomic_file.hpp"
#include "base/cache_dir.hpp"
#include "base/text.hpp"
#include "tuningdb/limits.hpp"

namespace varmoe::tuningdb {
namespace {

constexpr std::string_view kSuffix = ".json";

class Reader {
 public:
  explicit Reader(FileSystem& fs) : fs_(fs) {}

  void read_path(LayerKind kind, const std::string& path) {
    result_.layers.push_back({kind, path});
    if (path.empty() || path.front() != '/') {
      problem(fmt::format("'{}' is not an absolute path (it would change with the working directory)",
                          printable(path)));
      return;
    }
    FileInfo info;
    const int status = fs_.stat(path, &info);
    if (status == -ENOENT && kind == LayerKind::user) return;
    if (status < 0) {
      problem(io_error("read tuning records in", path, -status).message());
    } else if (info.type == FileType::directory) {
      read_folder(kind, path);
    } else {
      read_file(kind, path);
    }
  }

  void read_shipped(std::span<const ShippedFile> files) {
    result_.layers.push_back({LayerKind::shipped, {}});
    for (const ShippedFile& file : files) add(std::string(file.name), file.text);
  }

  Layers take() { return std::move(result_); }

 private:
  void problem(std::string message) { result_.problems.push_back(std::move(message)); }

  void read_folder(LayerKind kind, const std::string& path) {
    if (Status trusted = check_trusted_directory(fs_, path); !trusted) {
      problem(trusted.error().message());
      return;
    }
    std::vector<std::string> names;
    if (const int status = fs_.list(path, &names); status < 0) {
      problem(io_error("list folder", path, -status).message());
      return;
    }
    std::erase_if(names,
                  [](const std::string& name) { return name.front() == '.' || !name.ends_with(kSuffix); });
    std::sort(names.begin(), names.end());
    if (names.size() > kMaxFilesPerLayer) {
      problem(fmt::format("'{}' has {} files of records; only the first {} are read", printable(path, 4096),
                          names.size(), kMaxFilesPerLayer));
      names.resize(kMaxFilesPerLayer);
    }
    for (const std::string& name : names) read_file(kind, join_path(path, name));
  }

  void read_file(LayerKind kind, const std::string& path) {
    FileInfo info;
    // Deduplicated images have hard links; in the user's own folder there is no reason for one.
    const HardLinks links = kind == LayerKind::user ? HardLinks::refuse : HardLinks::accept;
    const auto bytes = read_regular_file_if_exists(fs_, path, kMaxFileBytes, links, &info);
    if (!bytes) {
      problem(bytes.error().message());
    } else if (bytes->has_value()) {  // else it was removed between listing and reading
      if (Status trusted = check_trusted_file(fs_, path, info); !trusted) {
        problem(trusted.error().message());
      } else {
        add(path, as_text(**bytes));
      }
    }
  }

  void add(const std::string& path, std::string_view text) {
    auto file = parse_record_file(text, path);
    if (!file) {
      problem(file.error().message());
      return;
    }
    result_.problems.insert(result_.problems.end(), file->problems.begin(), file->problems.end());
    result_.files.push_back({result_.layers.size() - 1, path, std::move(*file)});
  }

  FileSystem& fs_;
  Layers result_;
};

}  // namespace

const char* to_string(LayerKind kind) noexcept {
  switch (kind) {
    case LayerKind::path:
      return "given";
    case LayerKind::environment:
      return "VARMOE_TUNING_DB";
    case LayerKind::user:
      return "user";
    case LayerKind::shipped:
      return "shipped";
  }
  return "unknown";
}

std::string Layer::text() const {
  return path.empty() ? to_string(kind) : fmt::format("{} {}", to_string(kind), printable(path, 4096));
}

Layers read_layers(FileSystem& fs, const TuningSources& sources) {
  Reader reader(fs);
  for (const std::string& path : sources.paths) reader.read_path(LayerKind::path, path);
  for (const std::string& path : sources.environment) reader.read_path(LayerKind::environment, path);
  if (!sources.user_folder.empty()) reader.read_path(LayerKind::user, sources.user_folder);
  reader.read_shipped(sources.shipped);
  return reader.take();
}

}  // namespace varmoe::tuningdb
