#include "tuner/worker_process.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>

#include "support/processes.hpp"
#include "tuner/worker_case.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What the worker says it inherited.
std::string inheritance(WorkerProcess& worker) {
  const auto answers = measure_all(worker, around(Misbehaviour::report));
  REQUIRE(answers.ok());
  return (*answers)[2].failure;
}

}  // namespace

TEST_CASE("one worker serves many requests, and answers come to their configs") {
  WorkerProcess worker(worker_options());
  for (int i = 0; i < 5; ++i) {
    MeasureRequest request{kUniform, 64, Effort::normal, {}};
    for (const int block_m : {16, 32, 64, 128}) {
      LayerConfig config;
      config.fc1.block_m = block_m;
      config.fc1.warps_m = 1;
      config.fc1.warps_n = 4;
      request.configs.push_back(config);
    }
    const auto answers = measure_all(worker, request);
    REQUIRE_MESSAGE(answers.ok(), (answers.ok() ? "" : answers.error().message()));
    for (std::size_t c = 0; c < request.configs.size(); ++c)
      CHECK((*answers)[c].fc1_us == 100 + request.configs[c].fc1.block_m);
  }
  CHECK(worker.starts() == 1);
}

TEST_CASE("a worker measures backward passes, and a crash costs one config of them") {
  MeasureRequest request{kUniform, 4096, Effort::normal};
  request.pass = TuningPass::backward;
  request.gradient_type = GradientType::fp32;
  for (const int raster : {3, kCrashingRaster, 5}) {
    BackwardConfig config = model::predict_products(kUniform, 4096, h200());
    config.dh.raster = config.dx.raster = raster;
    request.products.push_back(config);
  }
  CaptureLog lines;
  WorkerOptions options = worker_options();
  options.log = lines.log();
  WorkerProcess worker(options);
  const auto answers = measure_all(worker, request);
  REQUIRE_MESSAGE(answers.ok(), (answers.ok() ? "" : answers.error().message()));
  REQUIRE(answers->size() == 3);
  CHECK(fault_of((*answers)[0]).empty());
  CHECK((*answers)[0].us == 103);
  CHECK((*answers)[0].products->us_fc2_gradient == 4);
  CHECK((*answers)[1].failure.find("signal") != std::string::npos);
  CHECK((*answers)[2].us == 105);
  CHECK(worker.starts() == 2);
  const auto said = lines.lines();
  CHECK(std::any_of(said.begin(), said.end(), [&](const auto& line) {
    return line.text.find(request.config_text(1)) != std::string::npos;
  }));
}

TEST_CASE("turns and answers are passed on as they come, with the request's numbers") {
  class Log final : public MeasureEvents {
   public:
    void turn(std::size_t index) override { text += "t" + std::to_string(index); }
    void answer(std::size_t index, const Measurement&) override { text += "a" + std::to_string(index); }
    std::string text;
  } log;
  WorkerProcess worker(worker_options());
  CHECK(worker.measure(around(Misbehaviour::crash), log).ok());
  CHECK(log.text == "t0a0t1a1t2a2t3a3t4a4");
}

TEST_CASE("a request without configs needs no worker") {
  WorkerProcess worker(worker_options());
  CHECK(measure_all(worker, {kUniform, 64, Effort::quick, {}}).ok());
  CHECK(worker.starts() == 0);
}

TEST_CASE("a request larger than a pipe's buffer arrives") {
  WorkerProcess worker(worker_options());
  MeasureRequest request{kUniform, 64, Effort::quick, {}};
  for (int i = 0; i < 1500; ++i) request.configs.push_back(good_config(1 + i % 64));
  const auto answers = measure_all(worker, request);
  REQUIRE_MESSAGE(answers.ok(), (answers.ok() ? "" : answers.error().message()));
  for (const Measurement& answer : *answers) CHECK(fault_of(answer).empty());
}

TEST_CASE("a program that is not there is an error at once") {
  WorkerOptions options = worker_options();
  options.argv = {"/nonexistent/varmoe-tune", "worker"};
  WorkerProcess worker(options);
  const auto answers = measure_all(worker, around(Misbehaviour::none));
  REQUIRE(!answers.ok());
  CHECK(answers.error().code() == ErrorCode::io_error);
  CHECK(answers.error().message().find("/nonexistent/varmoe-tune") != std::string::npos);
  options.argv = {};
  WorkerProcess none(options);
  CHECK(!measure_all(none, around(Misbehaviour::none)).ok());
}

TEST_CASE("cancelling ends a worker that hangs, long before its time-out") {
  std::atomic<bool> cancel{false};
  WorkerOptions options = worker_options();
  options.cancel = &cancel;
  WorkerProcess worker(options);
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    cancel = true;
  });
  const auto start = Clock::now();
  const auto answers = measure_all(worker, around(Misbehaviour::hang));
  canceller.join();
  REQUIRE(!answers.ok());
  CHECK(answers.error().code() == ErrorCode::cancelled);
  CHECK(seconds_since(start) < 5);
  CHECK(childless());
}

TEST_CASE("a worker inherits stdin, stdout and stderr alone, no blocked signal and none ignored") {
  WorkerProcess first(worker_options()), second(worker_options());
  // As in a thread of a pool, in a program that ignores SIGPIPE.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, &before);
  const auto handler = ::signal(SIGPIPE, SIG_IGN);
  const std::string of_first = inheritance(first), of_second = inheritance(second);
  ::signal(SIGPIPE, handler);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  CHECK(of_second.find("SigBlk:0000000000000000") != std::string::npos);
  // Bit 12 is SIGPIPE's.
  const std::size_t ignored = of_second.find("SigIgn:");
  REQUIRE(ignored != std::string::npos);
  CHECK((std::stoull(of_second.substr(ignored + 7), nullptr, 16) & (1ull << 12)) == 0);
  // The second was started beside the first one's open pipes. What the test itself was given is in both.
  CHECK(of_first == of_second);
  CHECK(of_first.find("descriptors 0 1 2") == 0);
}

TEST_CASE("a worker works with the program's own stdin, stdout and stderr closed") {
  const ChildStatus status = run_child([] {
    for (const int fd : {0, 1, 2}) ::close(fd);
    WorkerProcess worker(worker_options());
    const auto answers = measure_all(worker, around(Misbehaviour::crash));
    if (!answers.ok() || !fault_of((*answers)[0]).empty() || !fault_of((*answers)[4]).empty()) return 1;
    // Nothing of ours has taken their places: what the program prints must not reach the worker.
    for (const int fd : {0, 1, 2}) {
      if (::fcntl(fd, F_GETFD) != -1) return 2;
    }
    return 0;
  });
  CHECK(status.exit_code() == 0);
}

TEST_CASE("what a library prints on a worker's stdout does not get between its answers") {
  WorkerProcess worker(worker_options({"--honest"}));
  const auto answers = measure_all(worker, around(Misbehaviour::none));
  REQUIRE_MESSAGE(answers.ok(), (answers.ok() ? "" : answers.error().message()));
  for (const Measurement& answer : *answers) CHECK(fault_of(answer).empty());
  CHECK(worker.starts() == 1);
}

TEST_CASE("a worker that waits for work exits by itself when the tuner is done with it") {
  const auto start = Clock::now();
  {
    WorkerProcess worker(worker_options({"--honest"}));
    CHECK(measure_all(worker, around(Misbehaviour::none)).ok());
  }
  CHECK(seconds_since(start) < 2);
  CHECK(childless());
}

TEST_CASE("fault 32: a worker whose tuner was killed ends, even while it hangs in a config") {
  Shared<std::atomic<int>> worker_pid;
  const pid_t tuner = start_child([&] {
    WorkerProcess worker(worker_options({"--honest", "--hang"}));
    class Tell final : public MeasureEvents {
     public:
      Tell(WorkerProcess& w, std::atomic<int>& to) : worker_(w), pid_(to) {}
      void turn(std::size_t) override { pid_ = worker_.pid(); }
      void answer(std::size_t, const Measurement&) override {}

     private:
      WorkerProcess& worker_;
      std::atomic<int>& pid_;
    } tell(worker, *worker_pid);
    return worker.measure(around(Misbehaviour::none), tell) ? 0 : 1;
  });
  const auto start = Clock::now();
  while (*worker_pid == 0 && seconds_since(start) < 20)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  REQUIRE(*worker_pid > 1);
  ::kill(tuner, SIGKILL);
  CHECK(wait_for(tuner).signal() == SIGKILL);
  const auto gone = [&] {
    std::ifstream file("/proc/" + std::to_string(worker_pid->load()) + "/stat");
    std::string text;
    std::getline(file, text);
    const std::size_t end = text.rfind(')');
    return end == std::string::npos || text.compare(end, 3, ") Z") == 0;
  };
  while (!gone() && seconds_since(start) < 20) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(gone());
}
