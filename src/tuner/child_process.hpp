#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tuner/line_buffer.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tuner {

/// A child that is talked to in lines: its stdin and stdout are ours, of its stderr the end is kept. It
/// leads a process group of its own, so that an interrupt from the terminal reaches the tuner alone, and
/// what the child starts ends with it. No descriptor of this process goes to it, nor of it to other
/// children; nothing here raises SIGPIPE. Used by one thread at a time.
class ChildProcess {
 public:
  using Clock = std::chrono::steady_clock;

  /// Starts argv[0] (a path; no shell, no search) with a clean signal mask. `longest_line`: bytes that a
  /// line of it may have. Errors: io_error.
  static Result<std::unique_ptr<ChildProcess>> start(const std::vector<std::string>& argv,
                                                     std::size_t longest_line);
  /// Ends it.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const noexcept { return pid_; }

  /// Queues a line; it is written while wait() waits.
  void send(std::string_view line);

  struct Event {
    enum class Kind : std::uint8_t {
      line,       ///< `line` came, without its newline
      closed,     ///< the child closed its stdout or ended; `line` is what came after its last newline
      overlong,   ///< a line longer than it may be
      timed_out,  ///< the deadline passed
      cancelled,
    } kind = Kind::closed;
    std::string line;
  };
  /// Waits for the next line; a deadline that has passed only looks. `cancel` (may be null) is looked at
  /// ten times a second.
  Event wait(Clock::time_point deadline, const std::atomic<bool>* cancel);

  /// Closes its stdin, gives it `grace` to exit, then kills its process group, and reaps it. Returns how it
  /// ended, as words: "exited with status 3", "was ended by signal 11 (Segmentation fault)", "was killed".
  /// Once ended, says the same again.
  const std::string& end(std::chrono::milliseconds grace);
  /// False when even a kill did not end it within seconds: it is stuck in the kernel. After end().
  bool gone() const noexcept { return pid_ < 0; }

  /// The last kilobytes of its stderr, fit for a message; empty when it wrote nothing.
  std::string stderr_tail();

 private:
  ChildProcess(pid_t pid, int in, int out, int err, std::size_t longest_line)
      : pid_(pid), in_(in), out_(out), err_(err), lines_(longest_line) {}
  void write_some();
  /// Returns false at the end of the stream.
  bool read_some();
  void drain_stderr();
  bool exited();
  bool wait_exit(std::chrono::milliseconds time);

  pid_t pid_;
  int in_, out_, err_;  ///< our ends; −1 once closed
  std::string outgoing_;
  LineBuffer lines_;
  std::string stderr_;
  std::string ended_;
  bool reaped_ = false;  ///< by the kernel
};

}  // namespace varmoe::tuner
