#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <vector>

/// Child processes for fault tests. Children are forked, so a test must have no other threads running when it
/// starts them. Checks of the test framework do not reach the parent: a child says what it found by its exit
/// code or through Shared memory.
namespace varmoe::test {

/// How a child ended.
struct ChildStatus {
  int wait_status = 0;
  /// Its exit code; −1 when a signal ended it.
  int exit_code() const { return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1; }
  /// The signal that ended it; 0 when it exited.
  int signal() const { return WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0; }
};

/// The exit code of a child whose body threw.
inline constexpr int kThrew = 125;

/// Forks; the child runs `body` and exits with what it returns, without running the parent's exit handlers.
inline pid_t start_child(const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid < 0) throw std::runtime_error("fork failed");
  if (pid == 0) {
    int code = kThrew;
    try {
      code = body();
    } catch (...) {
    }
    ::_exit(code);
  }
  return pid;
}

inline ChildStatus wait_for(pid_t pid) {
  ChildStatus status;
  while (::waitpid(pid, &status.wait_status, 0) < 0) {
    if (errno != EINTR) throw std::runtime_error("waitpid failed");
  }
  return status;
}

inline ChildStatus run_child(const std::function<int()>& body) {
  return wait_for(start_child(body));
}

/// Children released together: each is forked and waits; once all are there, `release` (or destruction) lets
/// them go at once.
class ChildGroup {
 public:
  /// body(i) for i in [0, n).
  ChildGroup(int n, const std::function<int(int)>& body) {
    int ready[2], go[2];
    if (::pipe(ready) != 0 || ::pipe(go) != 0) throw std::runtime_error("pipe failed");
    for (int i = 0; i < n; ++i) {
      pids_.push_back(start_child([&, i] {
        ::close(ready[0]);
        ::close(go[1]);
        const char here = 1;
        if (::write(ready[1], &here, 1) != 1) return kThrew;
        ::close(ready[1]);
        char byte;
        while (::read(go[0], &byte, 1) < 0 && errno == EINTR) {  // end of file is the signal to go
        }
        ::close(go[0]);
        return body(i);
      }));
    }
    ::close(ready[1]);
    ::close(go[0]);
    char byte;
    for (int i = 0; i < n; ++i) {
      while (::read(ready[0], &byte, 1) < 0 && errno == EINTR) {
      }
    }
    ::close(ready[0]);
    go_ = go[1];
  }
  ~ChildGroup() {
    if (go_ >= 0) wait();
  }
  ChildGroup(const ChildGroup&) = delete;
  ChildGroup& operator=(const ChildGroup&) = delete;

  void release() {
    if (go_ >= 0) ::close(go_);
    go_ = -1;
  }
  const std::vector<pid_t>& pids() const { return pids_; }
  void kill_all(int signal) {
    for (pid_t pid : pids_) ::kill(pid, signal);
  }
  std::vector<ChildStatus> wait() {
    release();
    std::vector<ChildStatus> all;
    for (pid_t pid : pids_) all.push_back(wait_for(pid));
    pids_.clear();
    return all;
  }

 private:
  std::vector<pid_t> pids_;
  int go_ = -1;
};

/// Runs body(0) … body(n − 1) in n processes released together and waits for all.
inline std::vector<ChildStatus> run_together(int n, const std::function<int(int)>& body) {
  return ChildGroup(n, body).wait();
}

/// One T that parent and children see; T must be fit for it (atomics, plain data).
template <class T>
class Shared {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  Shared() {
    void* memory = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
    value_ = new (memory) T{};
  }
  ~Shared() { ::munmap(value_, sizeof(T)); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  T& operator*() { return *value_; }
  T* operator->() { return value_; }

 private:
  T* value_;
};

}  // namespace varmoe::test
