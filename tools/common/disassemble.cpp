#include "tools/common/disassemble.hpp"

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string_view>
#include <vector>

extern char** environ;

namespace varmoe::tools {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// A file of the cubin for the disassembler, removed with the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view bytes) {
    const std::string folder = variable("TMPDIR");
    path_ = (folder.empty() ? "/tmp" : folder) + "/varmoe-XXXXXX";
    const int fd = mkstemp(path_.data());
    if (fd < 0) return;
    made_ = true;
    while (!bytes.empty()) {
      const ssize_t n = write(fd, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    close(fd);
    whole_ = bytes.empty();
  }
  ~TemporaryFile() {
    if (made_) unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  bool ok() const { return whole_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool made_ = false, whole_ = false;
};

/// Standard output of a program; errors go to ours.
Result<std::string> run(std::vector<std::string> arguments) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {ErrorCode::io_error, "no pipe could be made"};
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  pid_t child = 0;
  const int error = posix_spawn(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t n = error != 0 ? 0 : read(ends[0], buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(buffer, static_cast<std::size_t>(n));
  }
  close(ends[0]);
  int status = 0;
  if (error == 0) {
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
  }
  if (error != 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return {ErrorCode::io_error, fmt::format("{} failed", arguments[0])};
  }
  return text;
}

}  // namespace

std::string find_disassembler() {
  std::vector<std::string> folders;
  std::string path = variable("PATH");
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = std::min(path.find(':', at), path.size());
    if (end > at && path[at] == '/') folders.push_back(path.substr(at, end - at));
    at = end + 1;
  }
  for (const char* home : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const std::string folder = variable(home); !folder.empty()) folders.push_back(folder + "/bin");
  }
  folders.emplace_back("/usr/local/cuda/bin");
  // cuobjdump calls nvdisasm, so that one comes first.
  for (const char* name : {"nvdisasm", "cuobjdump"}) {
    for (const std::string& folder : folders) {
      const std::string file = folder + "/" + name;
      if (access(file.c_str(), X_OK) == 0) return file;
    }
  }
  return "";
}

Result<std::string> disassemble(const std::string& cubin) {
  const std::string tool = find_disassembler();
  if (tool.empty()) {
    return {ErrorCode::unsupported,
            "no disassembler: neither nvdisasm nor cuobjdump in PATH, CUDA_HOME/bin or /usr/local/cuda/bin; "
            "the public wheel "
            "nvidia-cuda-nvdisasm has one"};
  }
  const TemporaryFile file(cubin);
  if (!file.ok()) return {ErrorCode::io_error, fmt::format("could not write {}", file.path())};
  const bool nvdisasm = tool.ends_with("nvdisasm");
  return run(nvdisasm ? std::vector<std::string>{tool, "-c", file.path()}
                      : std::vector<std::string>{tool, "-sass", file.path()});
}

}  // namespace varmoe::tools
