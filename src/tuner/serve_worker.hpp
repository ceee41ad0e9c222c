#pragma once

#include <memory>

#include "tuner/measurer.hpp"
#include "varmoe/error.hpp"

/// The worker's side of worker_protocol: the loop of a child process that measures for a tuner.
namespace varmoe::tuner {

/// Says hello on `out`, then answers the requests that come on `in` with what `measurer` finds, until `in`
/// ends: that is success. The descriptors stay the caller's. Errors: a request that is wrong, the
/// measurer's own error (both are told to the tuner as well), io_error. After an error the process should
/// exit: the tuner starts another.
Status serve_worker(int in, int out, Measurer& measurer);

/// Makes stdout mean stderr, and returns a descriptor of what stdout was: for `out` above, so that nothing
/// a library prints gets between the lines. The caller closes it. Errors: io_error.
Result<int> take_stdout();

/// While this lives, the process exits at once (status 3, without handlers) when the other end of `in` is
/// gone: a worker that hangs in a kernel would keep the device after its tuner was killed. `in` is a pipe
/// or a socket.
class ExitOnHangUp {
 public:
  explicit ExitOnHangUp(int in);
  ~ExitOnHangUp();
  ExitOnHangUp(const ExitOnHangUp&) = delete;
  ExitOnHangUp& operator=(const ExitOnHangUp&) = delete;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace varmoe::tuner
