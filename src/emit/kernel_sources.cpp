#include "emit/kernel_sources.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>

#include "emit/embedded/kernel_sources.hpp"
#include "emit/emitter.hpp"

namespace varmoe::emit {
namespace {

/// Names in #include "…" lines. Kernel sources use no other form and no conditional includes that matter:
/// abi.cuh's <cstdint> is for the host.
std::vector<std::string> quoted_includes(std::string_view text) {
  static constexpr std::string_view kDirective = "#include \"";
  std::vector<std::string> names;
  for (std::size_t at = text.find(kDirective); at != std::string_view::npos; at = text.find(kDirective, at)) {
    at += kDirective.size();
    const std::size_t end = text.find('"', at);
    if (end == std::string_view::npos) break;
    names.emplace_back(text.substr(at, end - at));
    at = end;
  }
  return names;
}

struct Current {
  std::mutex mutex;
  std::shared_ptr<const KernelSources> sources;
};

Current& holder() {
  static Current current;
  return current;
}

}  // namespace

void KernelSources::add(std::string name, std::string text) {
  auto includes = quoted_includes(text);
  files_.push_back({std::move(name), std::move(text), std::move(includes)});
}

KernelSources KernelSources::embedded() {
  KernelSources sources;
  for (const auto& file : embedded::kernel_sources::files())
    sources.add(std::string(file.name), std::string(file.text));
  return sources;
}

std::shared_ptr<const KernelSources> KernelSources::current() {
  Current& current = holder();
  const std::lock_guard lock(current.mutex);
  if (!current.sources) current.sources = std::make_shared<const KernelSources>(embedded());
  return current.sources;
}

Result<std::shared_ptr<const KernelSources>> KernelSources::from_directory(const std::string& directory) {
  namespace fs = std::filesystem;
  std::error_code error;
  auto sources = std::make_shared<KernelSources>();
  for (fs::recursive_directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (!it->is_regular_file(error) || it->path().extension() != ".cuh") continue;
    std::ifstream in(it->path(), std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (in.bad())
      return Error(ErrorCode::io_error, fmt::format("cannot read kernel source {}", it->path().string()));
    sources->add(fs::relative(it->path(), directory, error).generic_string(), std::move(text));
  }
  if (error || sources->files_.empty()) {
    return Error(ErrorCode::io_error,
                 fmt::format("VARMOE_KERNELS_DIR: no kernel sources (*.cuh) below \"{}\"{}", directory,
                             error ? ": " + error.message() : std::string()));
  }
  std::sort(sources->files_.begin(), sources->files_.end(),
            [](const File& a, const File& b) { return a.name < b.name; });
  return std::shared_ptr<const KernelSources>(std::move(sources));
}

const KernelSources::File* KernelSources::find(std::string_view name) const {
  const auto at = std::lower_bound(files_.begin(), files_.end(), name,
                                   [](const File& file, std::string_view n) { return file.name < n; });
  return at != files_.end() && at->name == name ? &*at : nullptr;
}

Result<std::vector<SourceHeader>> KernelSources::reachable(std::string_view text) const {
  std::set<std::string_view> seen;
  const auto first = quoted_includes(text);
  std::vector<std::string_view> open(first.begin(), first.end());
  std::vector<SourceHeader> headers;
  while (!open.empty()) {
    const std::string_view name = open.back();
    open.pop_back();
    if (!seen.insert(name).second) continue;
    const File* file = find(name);
    if (file == nullptr)
      return Error(ErrorCode::internal, fmt::format("kernel source \"{}\" is included but missing", name));
    headers.push_back({file->name, file->text});
    open.insert(open.end(), file->includes.begin(), file->includes.end());
  }
  std::sort(headers.begin(), headers.end(),
            [](const SourceHeader& a, const SourceHeader& b) { return a.name < b.name; });
  return headers;
}

Status use_kernels_dir(const std::string& directory) {
  std::shared_ptr<const KernelSources> sources;
  if (!directory.empty()) {
    auto read = KernelSources::from_directory(directory);
    if (!read) return read.error();
    sources = std::move(*read);
  }
  Current& current = holder();
  const std::lock_guard lock(current.mutex);
  current.sources = std::move(sources);
  return {};
}

}  // namespace varmoe::emit
