#include "tuner/serve_worker.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "tuner/line_buffer.hpp"
#include "tuner/worker_protocol.hpp"

namespace varmoe::tuner {
namespace {

Error pipe_error(std::string_view what, int code) {
  return Error(ErrorCode::io_error, fmt::format("worker: {}: {}", what, std::strerror(code)));
}

Status write_line(int out, std::string line) {
  line += '\n';
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t written = ::write(out, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return pipe_error("cannot write", errno);
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  return {};
}

/// The next line; nullopt at the end of input.
Result<std::optional<std::string>> read_line(int in, LineBuffer& buffer) {
  for (;;) {
    if (auto line = buffer.next()) return line;
    if (buffer.overlong()) return {ErrorCode::invalid_argument, "worker: a request is too long"};
    char bytes[4096];
    const ssize_t count = ::read(in, bytes, sizeof bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return pipe_error("cannot read", errno);
    if (count == 0) return std::optional<std::string>();
    buffer.add({bytes, static_cast<std::size_t>(count)});
  }
}

/// Sends what the measurer finds; after a line that could not be sent, nothing more.
class Replies final : public MeasureEvents {
 public:
  Replies(int out, const WorkerRequest& request) : out_(out), request_(request) {}
  void turn(std::size_t index) override { send(turn_line(request_.id, index)); }
  void answer(std::size_t index, const Measurement& measurement) override {
    if (index < request_.request.count())
      send(answer_line(request_.id, index, request_.request, measurement));
  }
  const Status& status() const { return status_; }

 private:
  void send(std::string line) {
    if (status_) status_ = write_line(out_, std::move(line));
  }
  int out_;
  const WorkerRequest& request_;
  Status status_;
};

Status serve_request(int out, Measurer& measurer, std::string_view line) {
  auto request = read_request(line);
  if (!request) {
    static_cast<void>(write_line(out, error_line(0, request.error().message())));
    return request.error();
  }
  Replies replies(out, *request);
  Status status = measurer.measure(request->request, replies);
  if (!replies.status()) return replies.status();
  if (!status) static_cast<void>(write_line(out, error_line(request->id, status.error().message())));
  return status;
}

}  // namespace

Status serve_worker(int in, int out, Measurer& measurer) {
  if (Status status = write_line(out, hello_line()); !status) return status;
  LineBuffer buffer(kMaxRequestLine);
  for (;;) {
    auto line = read_line(in, buffer);
    if (!line) return line.error();
    if (!*line) return {};
    if (Status status = serve_request(out, measurer, **line); !status) return status;
  }
}

Result<int> take_stdout() {
  const int taken = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
  if (taken < 0) return pipe_error("cannot duplicate stdout", errno);
  if (::dup2(STDERR_FILENO, STDOUT_FILENO) < 0) {
    const int code = errno;
    ::close(taken);
    return pipe_error("cannot redirect stdout", code);
  }
  return taken;
}

struct ExitOnHangUp::Impl {
  std::atomic<bool> over{false};
  std::thread thread;

  void watch(int in) {
    constexpr int kLookMilliseconds = 200;
    while (!over.load()) {
      // No event is asked for, so that bytes to read do not wake it: the end of the other side always does.
      pollfd watched{in, 0, 0};
      if (::poll(&watched, 1, kLookMilliseconds) > 0 && (watched.revents & (POLLHUP | POLLERR)) != 0)
        ::_exit(3);
    }
  }
};

ExitOnHangUp::ExitOnHangUp(int in) : impl_(std::make_unique<Impl>()) {
  impl_->thread = std::thread([this, in] { impl_->watch(in); });
}

ExitOnHangUp::~ExitOnHangUp() {
  impl_->over = true;
  impl_->thread.join();
}

}  // namespace varmoe::tuner
