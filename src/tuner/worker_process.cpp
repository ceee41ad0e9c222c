#include "tuner/worker_process.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "base/text.hpp"
#include "tuner/worker_protocol.hpp"

namespace varmoe::tuner {
namespace {

using std::chrono::milliseconds;
using Event = ChildProcess::Event;

/// A child that closed its stdout is about to end; how it does is worth waiting for.
constexpr milliseconds kEndingTime{1000};
/// At the end a healthy child exits when its stdin ends.
constexpr milliseconds kFarewellTime{2000};

std::string with_tail(std::string reason, const std::string& tail) {
  return tail.empty() ? reason : fmt::format("{}; its stderr ends: {}", reason, tail);
}

}  // namespace

/// One request to a running child, until everything is answered or something goes wrong.
class WorkerProcess::Exchange {
 public:
  /// `wanted`: the configs of the request that are asked for; those answered leave it.
  Exchange(ChildProcess& child, const WorkerOptions& options, const MeasureRequest& request,
           std::vector<std::size_t>& wanted, MeasureEvents& events, std::size_t& faults_in_row)
      : child_(child),
        options_(options),
        request_(request),
        wanted_(wanted),
        asked_(wanted),
        events_(events),
        faults_in_row_(faults_in_row) {}

  /// Returns why the child is no longer fit for use; empty: all is answered.
  std::string run(std::int64_t id) {
    child_.send(request_line(id, request_.only(asked_)));
    const auto begin = ChildProcess::Clock::now();
    // However often it turns from one config to another, all of them have this long.
    const auto end = begin + options_.config_timeout * static_cast<std::int64_t>(asked_.size());
    while (!wanted_.empty()) {
      auto deadline = end;
      if (named_) deadline = std::min(end, ChildProcess::Clock::now() + options_.config_timeout);
      const Event event = child_.wait(deadline, options_.cancel);
      if (event.kind != Event::Kind::line) return reason_of(event);
      if (std::string wrong = take(id, event.line); !wrong.empty()) return wrong;
    }
    return {};
  }

  bool cancelled() const noexcept { return cancelled_; }
  /// Whether the child ended by itself, so that how it did belongs to the reason.
  bool closed() const noexcept { return closed_; }
  /// The config that the child was working on, if that is known.
  std::optional<std::size_t> blamed() const {
    if (named_) return named_;
    return asked_.size() == 1 ? std::optional(asked_[0]) : std::nullopt;
  }

 private:
  std::string reason_of(const Event& event) {
    switch (event.kind) {
      case Event::Kind::closed:
        closed_ = true;
        return "the worker";  // how it ended comes after it
      case Event::Kind::overlong:
        return "the worker wrote garbage: a line without end";
      case Event::Kind::cancelled:
        cancelled_ = true;
        return "cancelled";
      default:
        return fmt::format("the worker gave no answer in {:.3g} s",
                           std::chrono::duration<double>(options_.config_timeout).count() *
                               (named_ ? 1.0 : static_cast<double>(asked_.size())));
    }
  }

  bool is_wanted(std::size_t index) const {
    return std::find(wanted_.begin(), wanted_.end(), index) != wanted_.end();
  }

  /// Returns what is wrong with the line; empty: nothing.
  std::string take(std::int64_t id, const std::string& line) {
    auto reply = read_reply(line);
    if (!reply) return fmt::format("the worker wrote garbage: {}", printable(reply.error().message(), 400));
    if (reply->kind == WorkerReply::Kind::error)
      return fmt::format("the worker gave up: {}", printable(reply->message, 1000));
    if (reply->id != id) return fmt::format("the worker answered request {} in place of {}", reply->id, id);
    if (reply->index >= asked_.size() || !is_wanted(asked_[reply->index]))
      return fmt::format("the worker spoke of config {}, which is not asked for", reply->index);
    const std::size_t index = asked_[reply->index];
    if (reply->kind == WorkerReply::Kind::turn) {
      named_ = index;
      events_.turn(index);
      return {};
    }
    const bool same = request_.pass == TuningPass::backward
                          ? reply->products == request_.products[index]
                          : !reply->products && reply->config == request_.configs[index];
    if (!same) return "the worker answered about another config";
    if (named_ == index) named_.reset();
    std::erase(wanted_, index);
    faults_in_row_ = 0;
    events_.answer(index, reply->measurement);
    return {};
  }

  ChildProcess& child_;
  const WorkerOptions& options_;
  const MeasureRequest& request_;
  std::vector<std::size_t>& wanted_;
  const std::vector<std::size_t> asked_;
  MeasureEvents& events_;
  std::size_t& faults_in_row_;
  std::optional<std::size_t> named_;
  bool cancelled_ = false, closed_ = false;
};

WorkerProcess::~WorkerProcess() {
  stop_child(kFarewellTime);
}

std::string WorkerProcess::description() const {
  const std::string name = options_.name.empty() ? "tuning worker" : options_.name;
  return pid() < 0 ? name : fmt::format("{} (process {})", name, child_->pid());
}

WorkerProcess::Ending WorkerProcess::stop_child(milliseconds grace) {
  Ending ending;
  if (child_ == nullptr) return ending;
  ending.how = child_->end(grace);
  ending.tail = child_->stderr_tail();
  if (child_->gone()) {
    child_.reset();
  } else {
    ending.status =
        Error(ErrorCode::device_error, fmt::format("{}: the worker {}", description(), ending.how));
  }
  return ending;
}

bool WorkerProcess::idle_child_is_sound() {
  return child_->wait(ChildProcess::Clock::now(), nullptr).kind == Event::Kind::timed_out;
}

Status WorkerProcess::ensure_started() {
  if (child_ != nullptr && idle_child_is_sound()) return {};
  if (Ending old = stop_child(milliseconds(0)); !old.status) return old.status;
  std::string reason;
  const std::size_t attempts = std::max<std::size_t>(options_.start_attempts, 1);
  for (std::size_t attempt = 0; attempt < attempts; ++attempt) {
    auto child = ChildProcess::start(options_.argv, kMaxReplyLine);
    if (!child) return child.error();
    child_ = *std::move(child);
    const Event event = child_->wait(ChildProcess::Clock::now() + options_.start_timeout, options_.cancel);
    const Status hello = event.kind == Event::Kind::line
                             ? read_hello(event.line)
                             : Status(ErrorCode::invalid_argument, "it said nothing");
    if (hello) {
      ++starts_;
      return {};
    }
    const bool closed = event.kind == Event::Kind::closed;
    const Ending ending = stop_child(closed ? kEndingTime : milliseconds(0));
    if (!ending.status) return ending.status;
    if (event.kind == Event::Kind::cancelled) return {ErrorCode::cancelled, "cancelled"};
    reason = with_tail(closed ? fmt::format("it {}", ending.how) : printable(hello.error().message(), 400),
                       ending.tail);
    options_.log.warn("{}: a worker did not start: {}", description(), reason);
  }
  return {ErrorCode::device_error, fmt::format("{}: the worker '{}' does not start, tried {} times: {}",
                                               description(), printable(options_.argv[0]), attempts, reason)};
}

Status WorkerProcess::measure(const MeasureRequest& request, MeasureEvents& events) {
  std::vector<std::size_t> pending;
  for (std::size_t i = 0; i < request.count(); ++i) pending.push_back(i);
  const auto fail = [&](std::size_t index, std::string reason) {
    std::erase(pending, index);
    Measurement failed;
    failed.failure = std::move(reason);
    events.answer(index, failed);
  };
  faults_in_row_ = 0;
  bool one_by_one = false;
  while (!pending.empty()) {
    if (Status status = ensure_started(); !status) return status;
    const std::size_t most = one_by_one ? 1 : kMaxRequestConfigs;
    std::vector<std::size_t> wanted(
        pending.begin(), pending.begin() + static_cast<std::ptrdiff_t>(std::min(pending.size(), most)));
    const std::vector<std::size_t> asked = wanted;
    Exchange exchange(*child_, options_, request, wanted, events, faults_in_row_);
    std::string reason = exchange.run(++last_id_);
    for (const std::size_t index : asked) {
      if (std::find(wanted.begin(), wanted.end(), index) == wanted.end()) std::erase(pending, index);
    }
    if (reason.empty()) continue;

    const Ending ending = stop_child(exchange.closed() ? kEndingTime : milliseconds(0));
    if (exchange.cancelled()) return {ErrorCode::cancelled, "cancelled"};
    if (!ending.status) return ending.status;
    if (exchange.closed()) reason += " " + ending.how;
    reason = with_tail(reason, ending.tail);
    const std::optional<std::size_t> blamed = exchange.blamed();
    if (!blamed) {
      options_.log.warn("{}: {}; going on one config at a time", description(), reason);
      one_by_one = true;
      continue;
    }
    options_.log.warn("{}: {}: {}", description(), request.config_text(*blamed), reason);
    fail(*blamed, reason);
    if (++faults_in_row_ < options_.most_faults_in_row) continue;
    const std::vector<std::size_t> rest = pending;
    for (const std::size_t index : rest)
      fail(index, fmt::format("not measured: {} configs before it each cost a worker, the last one: {}",
                              faults_in_row_, reason));
  }
  return {};
}

}  // namespace varmoe::tuner
