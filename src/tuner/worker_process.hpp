#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/log.hpp"
#include "tuner/child_process.hpp"
#include "tuner/measurer.hpp"

namespace varmoe::tuner {

struct WorkerOptions {
  /// Program and arguments of a child that runs serve_worker for one device. The program is a path.
  std::vector<std::string> argv;
  std::string name;                                  ///< for messages: "GPU 1"
  std::chrono::milliseconds start_timeout{120'000};  ///< from start to hello: driver, context, compiler
  /// For one config, compiling included. A request of n configs may take n times as long until the first is
  /// named.
  std::chrono::milliseconds config_timeout{60'000};
  std::size_t start_attempts = 3;  ///< in a row, then measure() gives up
  /// Configs in a row that each cost a child; the rest of the request is then left unmeasured rather than
  /// losing one child after another to what is probably wrong with all of them.
  std::size_t most_faults_in_row = 16;
  const std::atomic<bool>* cancel = nullptr;  ///< set: the child is killed and measure() returns `cancelled`
  Log log;                                    ///< a warning for each fault
};

/// A Measurer in a child process, so that a candidate that crashes or hangs takes the child with it and not
/// the tuner.
///
/// The child is started by the first request and serves the next ones. When it crashes, hangs, or says what
/// it must not (no protocol, a time that is none, an answer about another config), the config it was
/// working on has failed, with the reason in its Measurement::failure; the child is killed, another
/// started, and the rest of the request goes on. Where the child has not named a config (a crash while it
/// compiles several), the rest is asked for one by one, so that the fault finds its config and the others
/// keep their figures; interleaving is lost then.
///
/// Errors of measure(): device_error when the child dies at start again and again, with the end of its
/// stderr; io_error when the program cannot be started; cancelled; device_error when a killed child does
/// not go away.
class WorkerProcess final : public Measurer {
 public:
  explicit WorkerProcess(WorkerOptions options) : options_(std::move(options)) {}
  /// Lets the child end by itself, for a moment, then kills it.
  ~WorkerProcess() override;

  Status measure(const MeasureRequest& request, MeasureEvents& events) override;
  std::string description() const override;

  std::size_t starts() const noexcept { return starts_; }  ///< children that came as far as hello
  /// The child that runs now; −1 without one.
  pid_t pid() const noexcept { return child_ == nullptr ? -1 : child_->pid(); }

 private:
  class Exchange;
  Status ensure_started();
  /// How a child ended, and the end of its stderr.
  struct Ending {
    std::string how, tail;
    Status status;  ///< an error when it does not end
  };
  Ending stop_child(std::chrono::milliseconds grace);
  /// Whether an idle child is still there and has said nothing unasked.
  bool idle_child_is_sound();

  WorkerOptions options_;
  std::unique_ptr<ChildProcess> child_;
  std::int64_t last_id_ = 0;
  std::size_t starts_ = 0;
  std::size_t faults_in_row_ = 0;
};

}  // namespace varmoe::tuner
