#include "engine/compiler_source.hpp"

#include <dlfcn.h>
#include <link.h>

#include <memory>
#include <utility>

#include "compile/nvrtc_search.hpp"

namespace varmoe::engine {
namespace {

std::string nvrtc_search_text(const std::string& explicit_path) {
  const compile::SearchWorld world = compile::real_world();
  // Bare file names are found by the loader, whose answer hangs on this variable.
  std::string text = explicit_path + '\n' + world.get_environment("LD_LIBRARY_PATH");
  for (const auto& candidate : compile::find_nvrtc(explicit_path, world).candidates)
    text += '\n' + candidate.library;
  return text;
}

/// Of the candidates, in order, the first that is loaded: its file, as the loader knows it.
std::string loaded_nvrtc_path(const std::string& explicit_path) {
  for (const auto& candidate : compile::find_nvrtc(explicit_path, compile::real_world()).candidates) {
    const std::unique_ptr<void, int (*)(void*)> library(
        dlopen(candidate.library.c_str(), RTLD_LAZY | RTLD_NOLOAD), &dlclose);
    const link_map* map = nullptr;
    if (library && dlinfo(library.get(), RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name)
      return map->l_name;
  }
  return {};
}

}  // namespace

CompilerFinder nvrtc_finder(std::string explicit_path) {
  CompilerFinder finder;
  finder.load = [explicit_path] { return compile::load_nvrtc(explicit_path); };
  finder.search_text = [explicit_path] { return nvrtc_search_text(explicit_path); };
  finder.library_path = [explicit_path = std::move(explicit_path)] {
    return loaded_nvrtc_path(explicit_path);
  };
  return finder;
}

CompilerSource::CompilerSource(CompilerFinder finder, std::optional<cubin::CompilerStamps> stamps, Log log)
    : finder_(std::move(finder)), stamps_(std::move(stamps)), log_(std::move(log)) {}

Result<std::shared_ptr<compile::Compiler>> CompilerSource::load_locked() {
  if (compiler_) return compiler_;
  if (failure_) return *failure_;
  auto loaded = finder_.load();
  if (!loaded) {
    failure_ = loaded.error();
    return *failure_;
  }
  compiler_ = *std::move(loaded);
  at_hand_ = compiler_->version();
  asked_ = true;
  log_.info("compiler: {}", compiler_->description());
  if (stamps_ && finder_.search_text && finder_.library_path)
    if (const std::string path = finder_.library_path(); !path.empty())
      static_cast<void>(stamps_->remember(finder_.search_text(), path, compiler_->version()));
  return compiler_;
}

Result<std::shared_ptr<compile::Compiler>> CompilerSource::load() {
  std::lock_guard lock(mutex_);
  return load_locked();
}

void CompilerSource::forget_failure() {
  std::lock_guard lock(mutex_);
  failure_.reset();
  if (!at_hand_) asked_ = false;
}

std::optional<CompilerVersion> CompilerSource::at_hand() {
  std::lock_guard lock(mutex_);
  if (!asked_) {
    asked_ = true;
    if (stamps_ && finder_.search_text) at_hand_ = stamps_->recall(finder_.search_text());
    if (!at_hand_) static_cast<void>(load_locked());
  }
  return at_hand_;
}

bool CompilerSource::loaded() const {
  std::lock_guard lock(mutex_);
  return compiler_ != nullptr;
}

}  // namespace varmoe::engine
