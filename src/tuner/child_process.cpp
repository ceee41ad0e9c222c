#include "tuner/child_process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "base/text.hpp"

namespace varmoe::tuner {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kStderrKept = 4096, kStderrShown = 1000;
constexpr milliseconds kLook{100};
/// A killed process that is still there after this is stuck in the kernel.
constexpr milliseconds kKillTime{10000};

void close_fd(int& fd) {
  if (fd >= 0) ::close(fd);
  fd = -1;
}

/// Two descriptors, closed when this goes but for those taken.
struct Ends {
  int ours = -1, childs = -1;
  ~Ends() {
    close_fd(ours);
    close_fd(childs);
  }
  int take_ours() { return std::exchange(ours, -1); }
};

/// Out of the way of 0, 1 and 2, which may be free in this process: there the child's ends will be put, and
/// what this program prints would go to the child.
bool move_up(int& fd) {
  if (fd > STDERR_FILENO) return true;
  const int moved = ::fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (moved < 0) return false;
  ::close(fd);
  fd = moved;
  return true;
}

/// A pipe from the child; our end does not block.
bool open_pipe(Ends& ends) {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return false;
  ends.ours = fds[0];
  ends.childs = fds[1];
  return move_up(ends.ours) && move_up(ends.childs) && ::fcntl(ends.ours, F_SETFL, O_NONBLOCK) == 0;
}

/// To the child, by a socket: writing to it can be told not to raise SIGPIPE, which a pipe's writer cannot
/// refuse.
bool open_socket(Ends& ends) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) return false;
  ends.ours = fds[0];
  ends.childs = fds[1];
  return move_up(ends.ours) && move_up(ends.childs);
}

/// posix_spawn's two argument objects.
struct SpawnArguments {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  SpawnArguments() {
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawnattr_init(&attributes);
  }
  ~SpawnArguments() {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
  SpawnArguments(const SpawnArguments&) = delete;
  SpawnArguments& operator=(const SpawnArguments&) = delete;
};

/// Returns an errno; 0: started.
int spawn(const std::vector<std::string>& argv, int in, int out, int err, pid_t& pid) {
  SpawnArguments arguments;
  int code = 0;
  const auto check = [&code](int result) {
    if (code == 0) code = result;
  };
  check(::posix_spawn_file_actions_adddup2(&arguments.actions, in, STDIN_FILENO));
  check(::posix_spawn_file_actions_adddup2(&arguments.actions, out, STDOUT_FILENO));
  check(::posix_spawn_file_actions_adddup2(&arguments.actions, err, STDERR_FILENO));
  // Whatever this thread blocks or this program ignores is not the child's affair.
  sigset_t none, ordinary;
  ::sigemptyset(&none);
  ::sigemptyset(&ordinary);
  for (const int signal : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD, SIGXFSZ})
    ::sigaddset(&ordinary, signal);
  check(::posix_spawnattr_setsigmask(&arguments.attributes, &none));
  check(::posix_spawnattr_setsigdefault(&arguments.attributes, &ordinary));
  check(::posix_spawnattr_setpgroup(&arguments.attributes, 0));
  check(::posix_spawnattr_setflags(&arguments.attributes,
                                   POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP));
  std::vector<char*> pointers;
  for (const std::string& argument : argv) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  if (code == 0)
    code =
        ::posix_spawn(&pid, pointers[0], &arguments.actions, &arguments.attributes, pointers.data(), environ);
  return code;
}

std::string words(int wait_status, bool killed) {
  if (WIFEXITED(wait_status)) return fmt::format("exited with status {}", WEXITSTATUS(wait_status));
  const int signal = WTERMSIG(wait_status);
  if (killed && signal == SIGKILL) return "was killed";
  const char* name = ::sigdescr_np(signal);
  return fmt::format("was ended by signal {} ({})", signal, name == nullptr ? "unknown" : name);
}

}  // namespace

Result<std::unique_ptr<ChildProcess>> ChildProcess::start(const std::vector<std::string>& argv,
                                                          std::size_t longest_line) {
  if (argv.empty() || argv[0].empty()) return {ErrorCode::invalid_argument, "no program to start was given"};
  const auto failure = [&argv](int code) {
    return Error(ErrorCode::io_error,
                 fmt::format("cannot start '{}': {}", printable(argv[0]), std::strerror(code)));
  };
  Ends in, out, err;
  if (!open_socket(in) || !open_pipe(out) || !open_pipe(err)) return failure(errno);
  pid_t pid = -1;
  if (const int code = spawn(argv, in.childs, out.childs, err.childs, pid); code != 0) return failure(code);
  return std::unique_ptr<ChildProcess>(
      new ChildProcess(pid, in.take_ours(), out.take_ours(), err.take_ours(), longest_line));
}

ChildProcess::~ChildProcess() {
  end(milliseconds(0));
  close_fd(in_);
  close_fd(out_);
  close_fd(err_);
}

void ChildProcess::send(std::string_view line) {
  outgoing_ += line;
  outgoing_ += '\n';
}

void ChildProcess::write_some() {
  const ssize_t sent = ::send(in_, outgoing_.data(), outgoing_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent > 0) {
    outgoing_.erase(0, static_cast<std::size_t>(sent));
  } else if (sent < 0 && errno != EAGAIN && errno != EINTR) {
    outgoing_.clear();  // nobody reads it: its stdout will say how it went on
  }
}

bool ChildProcess::read_some() {
  char bytes[65536];
  const ssize_t count = ::read(out_, bytes, sizeof bytes);
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  lines_.add({bytes, static_cast<std::size_t>(count)});
  return count > 0;
}

void ChildProcess::drain_stderr() {
  // Bounded, so that a child that never stops writing cannot hold us here.
  for (int i = 0; err_ >= 0 && i < 64; ++i) {
    char bytes[4096];
    const ssize_t count = ::read(err_, bytes, sizeof bytes);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) {
      close_fd(err_);
      return;
    }
    stderr_.append(bytes, static_cast<std::size_t>(count));
    if (stderr_.size() > 2 * kStderrKept) stderr_.erase(0, stderr_.size() - kStderrKept);
  }
}

ChildProcess::Event ChildProcess::wait(Clock::time_point deadline, const std::atomic<bool>* cancel) {
  using Kind = Event::Kind;
  for (;;) {
    if (auto line = lines_.next()) return {Kind::line, *std::move(line)};
    if (lines_.overlong()) return {Kind::overlong, {}};
    if (out_ < 0) return {Kind::closed, std::string(lines_.rest())};
    if (cancel != nullptr && cancel->load()) return {Kind::cancelled, {}};
    const auto left = std::max(std::chrono::ceil<milliseconds>(deadline - Clock::now()), milliseconds(0));
    pollfd watched[3] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}, {outgoing_.empty() ? -1 : in_, POLLOUT, 0}};
    // Negative descriptors are passed over; an interrupted poll has set nothing and is repeated.
    if (::poll(watched, 3, static_cast<int>(std::min(left, kLook).count())) <= 0) {
      if (Clock::now() >= deadline) return {Kind::timed_out, {}};
      continue;
    }
    if (watched[1].revents != 0) drain_stderr();
    if (watched[2].revents != 0) write_some();
    if (watched[0].revents != 0 && !read_some()) close_fd(out_);
  }
}

bool ChildProcess::exited() {
  siginfo_t info{};
  // Left unreaped: its pid, and with it the number of its group, stays taken until the group has been killed.
  reaped_ =
      ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 && errno == ECHILD;
  return reaped_ || info.si_pid == pid_;
}

bool ChildProcess::wait_exit(milliseconds time) {
  const auto deadline = Clock::now() + time;
  for (milliseconds pause{1}; !exited(); pause = std::min(2 * pause, milliseconds(20))) {
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(pause);
  }
  return true;
}

const std::string& ChildProcess::end(milliseconds grace) {
  if (pid_ < 0) return ended_;
  close_fd(in_);
  const bool by_itself = wait_exit(grace);
  // Where this program ignores SIGCHLD the kernel reaps, and the number may be another's by now.
  if (!reaped_) ::kill(-pid_, SIGKILL);
  if (!by_itself && !wait_exit(kKillTime)) {
    ended_ = fmt::format("(process {}) does not end, even when killed", pid_);
    return ended_;
  }
  drain_stderr();
  int status = 0;
  pid_t reaped;
  do {
    reaped = ::waitpid(pid_, &status, 0);
  } while (reaped < 0 && errno == EINTR);
  ended_ = reaped < 0 ? "ended" : words(status, !by_itself);
  pid_ = -1;
  return ended_;
}

std::string ChildProcess::stderr_tail() {
  drain_stderr();
  std::string_view tail = stderr_;
  while (!tail.empty() && (tail.back() == '\n' || tail.back() == ' ')) tail.remove_suffix(1);
  if (tail.size() > kStderrShown) tail.remove_prefix(tail.size() - kStderrShown);
  return printable(tail, kStderrShown);
}

}  // namespace varmoe::tuner
