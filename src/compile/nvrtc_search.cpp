#include "compile/nvrtc_search.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>

namespace varmoe::compile {
namespace {

namespace fs = std::filesystem;

#if defined(__aarch64__)
constexpr const char* kMultiarch = "aarch64-linux-gnu";
constexpr const char* kTargets[] = {"targets/sbsa-linux/lib", "targets/aarch64-linux/lib"};
#else
constexpr const char* kMultiarch = "x86_64-linux-gnu";
constexpr const char* kTargets[] = {"targets/x86_64-linux/lib"};
#endif

/// The numbers of "libnvrtc.so.13.0" ({13, 0}) or "cuda-12.4" ({12, 4}) after `prefix`; nothing when the rest
/// is no version.
bool parse_version(std::string_view name, std::string_view prefix, std::vector<int>& out) {
  if (!name.starts_with(prefix)) return false;
  name.remove_prefix(prefix.size());
  out.clear();
  while (!name.empty()) {
    int number = 0;
    std::size_t digits = 0;
    while (digits < name.size() && digits < 6 && name[digits] >= '0' && name[digits] <= '9') {
      number = number * 10 + (name[digits++] - '0');
    }
    if (digits == 0) return false;
    out.push_back(number);
    name.remove_prefix(digits);
    if (name.empty()) break;
    if (name.front() != '.') return false;
    name.remove_prefix(1);
  }
  return true;
}

/// Entries of a folder whose names are `prefix` and a version, newest first, the one without a version last.
std::vector<fs::path> versioned_entries(const fs::path& folder, std::string_view prefix) {
  std::vector<std::pair<std::vector<int>, fs::path>> found;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::vector<int> version;
    std::string_view rest = name;
    if (rest == prefix) {
      found.emplace_back(version, it->path());
    } else if (parse_version(rest, std::string(prefix) + (prefix.ends_with('-') ? "" : "."), version)) {
      found.emplace_back(version, it->path());
    }
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  std::vector<fs::path> paths;
  for (auto& [unused, path] : found) paths.push_back(std::move(path));
  return paths;
}

class Search {
 public:
  explicit Search(const SearchWorld& world) : world_(world) {}

  void loader(const std::string& name, const std::string& place) {
    result.candidates.push_back({name, place});
    result.looked_at.push_back(fmt::format("{} by the loader ({})", name, place));
  }

  /// Libraries of one folder.
  void folder(const fs::path& path, const std::string& place) {
    if (!folders_.insert(path.lexically_normal().string()).second) return;
    std::size_t count = 0;
    for (const fs::path& library : versioned_entries(path, "libnvrtc.so")) {
      std::error_code error;
      const fs::path real = fs::canonical(library, error);
      if (error || !seen_.insert(real.string()).second) continue;
      result.candidates.push_back({library.string(), place});
      ++count;
    }
    std::error_code error;
    const char* what = count                           ? ""
                       : fs::is_directory(path, error) ? ": no libnvrtc there"
                                                       : ": no such folder";
    result.looked_at.push_back(fmt::format("{} ({}){}", path.string(), place, what));
  }

  /// A toolkit's root.
  void toolkit(const fs::path& root, const std::string& place) {
    folder(root / "lib64", place);
    for (const char* target : kTargets) folder(root / target, place);
    folder(root / "lib", place);
  }

  /// A Python prefix: the `nvidia` packages in its site-packages.
  void python_prefix(const fs::path& prefix, const std::string& place) {
    std::vector<fs::path> sites;
    for (const fs::path& version : pythons(prefix / "lib")) {
      sites.push_back(version / "site-packages");
      sites.push_back(version / "dist-packages");
    }
    sites.push_back(prefix / "lib/python3/dist-packages");
    for (const fs::path& site : sites) {
      std::error_code error;
      if (!fs::is_directory(site / "nvidia", error)) continue;
      for (const fs::path& package : toolkit_packages(site / "nvidia")) folder(package / "lib", place);
      folder(site / "nvidia/cuda_nvrtc/lib", place);
    }
    result.looked_at.push_back(
        fmt::format("nvidia packages of Python below {} ({})", prefix.string(), place));
  }

  std::string environment(const char* name) const { return world_.get_environment(name); }
  /// A path of the world's.
  fs::path at(const std::string& absolute) const { return world_.root + absolute; }

  NvrtcSearch result;

 private:
  static std::vector<fs::path> matching(const fs::path& folder, std::string_view prefix) {
    std::vector<fs::path> found;
    std::error_code error;
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
      if (it->path().filename().string().starts_with(prefix)) found.push_back(it->path());
    }
    std::sort(found.rbegin(), found.rend());
    return found;
  }
  static std::vector<fs::path> pythons(const fs::path& lib) { return matching(lib, "python3."); }
  static std::vector<fs::path> toolkit_packages(const fs::path& nvidia) {
    std::vector<fs::path> found;
    for (const fs::path& path : matching(nvidia, "cu")) {
      std::vector<int> version;
      if (parse_version(path.filename().string(), "cu", version)) found.push_back(path);
    }
    return found;
  }

  const SearchWorld& world_;
  std::set<std::string> folders_, seen_;
};

NvrtcSearch find_explicit(const std::string& given, const SearchWorld& world) {
  Search search(world);
  const std::string place = "named by VARMOE_NVRTC_LIB or the API";
  std::error_code error;
  if (given.find('/') == std::string::npos) {
    search.loader(given, place);
  } else if (fs::is_directory(given, error)) {
    search.folder(given, place);
    search.toolkit(given, place);
  } else if (fs::exists(given, error)) {
    search.result.candidates.push_back({given, place});
    search.result.looked_at.push_back(fmt::format("{} ({})", given, place));
  } else {
    search.result.looked_at.push_back(fmt::format("{} ({}): no such file or folder", given, place));
  }
  return std::move(search.result);
}

}  // namespace

SearchWorld real_world() {
  return {[](const char* name) {
            const char* value = std::getenv(name);
            return std::string(value ? value : "");
          },
          ""};
}

NvrtcSearch find_nvrtc(const std::string& explicit_path, const SearchWorld& world) {
  if (!explicit_path.empty()) return find_explicit(explicit_path, world);
  Search search(world);
  for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"})
    search.loader(name, "search path");

  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    const std::string value = search.environment(variable);
    if (value.starts_with('/')) {
      search.toolkit(value, variable);
    } else {
      search.result.looked_at.push_back(
          fmt::format("{}: {}", variable, value.empty() ? "not set" : "not an absolute path"));
    }
  }

  search.toolkit(search.at("/usr/local/cuda"), "usual folder");
  for (const fs::path& toolkit : versioned_entries(search.at("/usr/local"), "cuda-"))
    search.toolkit(toolkit, "usual folder");
  search.toolkit(search.at("/opt/cuda"), "usual folder");
  search.folder(search.at(std::string("/usr/lib/") + kMultiarch), "usual folder");
  search.folder(search.at("/usr/lib64"), "usual folder");

  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    const std::string value = search.environment(variable);
    if (!value.starts_with('/')) continue;
    search.python_prefix(value, variable);
    search.folder(fs::path(value) / "lib", variable);
  }
  // Python itself is not run: its prefix is the parent of the folder that holds it, and of the one its link
  // leads to.
  const std::string path = search.environment("PATH");
  for (std::size_t begin = 0; begin < path.size();) {
    const std::size_t end = std::min(path.find(':', begin), path.size());
    const fs::path folder = path.substr(begin, end - begin);
    begin = end + 1;
    std::error_code error;
    if (!folder.is_absolute() || !fs::exists(folder / "python3", error)) continue;
    search.python_prefix(folder.parent_path(), "python3 on PATH");
    const fs::path real = fs::canonical(folder / "python3", error);
    if (!error) search.python_prefix(real.parent_path().parent_path(), "python3 on PATH");
    break;
  }
  const std::string home = search.environment("HOME");
  if (home.starts_with('/')) search.python_prefix(fs::path(home) / ".local", "pip --user");
  search.python_prefix(search.at("/usr/local"), "system Python");
  search.python_prefix(search.at("/usr"), "system Python");
  return std::move(search.result);
}

}  // namespace varmoe::compile
