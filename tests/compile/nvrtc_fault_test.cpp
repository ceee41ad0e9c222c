#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <thread>

#include "compile/compile_pool.hpp"
#include "compile/compiler.hpp"
#include "compile/findings.hpp"
#include "compile/requests.hpp"
#include "support/fake_nvrtc.hpp"

using namespace varmoe;
using namespace varmoe::compile;
using fake_nvrtc::Mode;
using test::small_request;

namespace {

std::shared_ptr<Compiler> fake() {
  fake_nvrtc::reset();
  auto compiler = load_nvrtc(VARMOE_FAKE_NVRTC);
  REQUIRE(compiler.ok());
  return *compiler;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a kernel is compiled with the arch, the headers given and no other source") {
  const auto compiler = fake();
  auto request = small_request("kernel");
  request.headers = {{"a.cuh", "// a"}, {"tile/b.cuh", "// b"}};
  const auto binary = compiler->compile(request);
  REQUIRE(binary.ok());
  CHECK(!binary->image.empty());
  CHECK(!binary->is_ptx);
  CHECK(binary->arch == "sm_90a");
  CHECK(binary->entry_name == "kernel");
  CHECK(binary->compiler == CompilerVersion{13, 0, 88});
  CHECK(binary->resources.registers == 32);
  CHECK(binary->compile_ms >= 0);
  CHECK(findings(*binary).empty());
  CHECK(fake_nvrtc::last_header_names() == std::vector<std::string>{"a.cuh", "tile/b.cuh"});
  CHECK(fake_nvrtc::last_options() == std::vector<std::string>{"--gpu-architecture=sm_90a", "--std=c++17",
                                                               "--no-source-include", "--ptxas-options=-v"});
  CHECK(fake_nvrtc::live_programs() == 0);
}

TEST_CASE("an option of the caller is not given twice, line info is opt-in") {
  const auto compiler = fake();
  auto request = small_request("kernel");
  request.options = {"--no-source-include", "--std=c++17"};
  request.line_info = true;
  REQUIRE(compiler->compile(request).ok());
  CHECK(fake_nvrtc::last_options() == std::vector<std::string>{"--gpu-architecture=sm_90a",
                                                               "--no-source-include", "--std=c++17",
                                                               "--ptxas-options=-v", "--generate-line-info"});
}

TEST_CASE("fault 23: options that reach outside or spoil code are refused") {
  const auto compiler = fake();
  for (const char* option :
       {"-I/tmp", "--include-path=/tmp", "--pre-include=/etc/passwd", "-G", "--device-debug",
        "--gpu-architecture=sm_80", "-arch=sm_80", "--Ofast-compile=max"}) {
    auto request = small_request("kernel");
    request.options.push_back(option);
    const auto result = compiler->compile(request);
    REQUIRE(!result.ok());
    CHECK(result.error().code() == ErrorCode::invalid_argument);
    CHECK(contains(result.error().message(), option));
  }
  for (const char* arch : {"", "sm_", "90", "sm_90a --x", "sm_90ab", "compute_x", "sm_999999", "sm_-9"}) {
    const auto result = compiler->compile(small_request("kernel", arch));
    REQUIRE(!result.ok());
    CHECK(result.error().code() == ErrorCode::invalid_argument);
  }
  CHECK(fake_nvrtc::compiles() == 0);
}

TEST_CASE("a GPU newer than the compiler gets PTX of the newest architecture below it") {
  const auto compiler = fake();
  const auto refused = compiler->compile(small_request("kernel", "sm_130"));
  REQUIRE(!refused.ok());
  CHECK(refused.error().code() == ErrorCode::unsupported);
  CHECK(contains(refused.error().message(), "compute_120"));
  CHECK(*target_arch(compiler->architectures(), "sm_90a") == "sm_90a");
  CHECK(*target_arch(compiler->architectures(), "sm_130") == "compute_120");
  CHECK(*target_arch({80, 90}, "sm_89") == "compute_80");
  CHECK(target_arch({80, 90}, "sm_75").error().code() == ErrorCode::unsupported);
  CHECK_FALSE(target_arch({80, 90}, "ninety").ok());
  const auto ptx =
      compiler->compile(small_request("kernel", *target_arch(compiler->architectures(), "sm_130")));
  REQUIRE(ptx.ok());
  CHECK(ptx->is_ptx);
  CHECK(ptx->image.back() == std::byte{0});
}

TEST_CASE("fault 28: NVRTC missing") {
  const auto result = load_nvrtc("/nonexistent/libnvrtc.so.13");
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::no_compiler);
  CHECK(contains(result.error().message(), "/nonexistent/libnvrtc.so.13"));
  CHECK(contains(result.error().message(), "VARMOE_NVRTC_LIB"));
  CHECK(contains(result.error().message(), "12.4"));
}

TEST_CASE("fault 28: a library that is no NVRTC") {
  const auto result = load_nvrtc("libm.so.6");
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::no_compiler);
  CHECK(contains(result.error().message(), "is no NVRTC: it has no nvrtcVersion"));
}

TEST_CASE("fault 28: another version") {
  fake_nvrtc::reset();
  for (const auto& [major, minor] : {std::pair{12, 3}, {11, 8}, {12, 0}}) {
    fake_nvrtc::set_version(major, minor, 1);
    const auto result = load_nvrtc(VARMOE_FAKE_NVRTC);
    REQUIRE(!result.ok());
    CHECK(result.error().code() == ErrorCode::no_compiler);
    CHECK(contains(result.error().message(), "is NVRTC " + std::to_string(major) + "." +
                                                 std::to_string(minor) + "; 12.4 or newer is needed"));
  }
  for (const auto& [major, minor] : {std::pair{12, 4}, {12, 9}, {13, 0}, {14, 1}}) {
    fake_nvrtc::set_version(major, minor, 77);
    const auto result = load_nvrtc(VARMOE_FAKE_NVRTC);
    REQUIRE(result.ok());
    CHECK((*result)->version() == CompilerVersion{major, minor, 77});
    CHECK(contains((*result)->description(), VARMOE_FAKE_NVRTC));
  }
}

TEST_CASE("fault 28: an NVRTC without version or builtins is refused with the reason") {
  fake_nvrtc::reset();
  fake_nvrtc::set_mode(Mode::version_fails);
  auto result = load_nvrtc(VARMOE_FAKE_NVRTC);
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::no_compiler);
  CHECK(contains(result.error().message(), "does not tell its version"));

  fake_nvrtc::set_mode(Mode::no_builtins);
  result = load_nvrtc(VARMOE_FAKE_NVRTC);
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::no_compiler);
  CHECK(contains(result.error().message(), "failed to open libnvrtc-builtins"));
}

TEST_CASE("fault 28: an error carries the log") {
  const auto compiler = fake();
  fake_nvrtc::set_mode(Mode::error);
  const auto result = compiler->compile(small_request("kernel"));
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::compile_failed);
  for (const char* part :
       {"kernel", "sm_90a", "13.0.88", "NVRTC_ERROR_COMPILATION", "identifier \"nonsense\" is undefined"}) {
    CHECK_MESSAGE(contains(result.error().message(), part), part);
  }
  CHECK(fake_nvrtc::live_programs() == 0);
  // Nothing is remembered of it.
  fake_nvrtc::set_mode(Mode::ok);
  CHECK(compiler->compile(small_request("kernel")).ok());
}

TEST_CASE("fault 28: an empty cubin is an error") {
  const auto compiler = fake();
  fake_nvrtc::set_mode(Mode::empty);
  const auto result = compiler->compile(small_request("kernel"));
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::compile_failed);
  CHECK(contains(result.error().message(), "empty image"));
}

TEST_CASE("fault 28: an image without the entry asked for is an error") {
  const auto compiler = fake();
  auto request = small_request("kernel");
  request.entry_name = "another";
  const auto result = compiler->compile(request);
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::compile_failed);
  CHECK(contains(result.error().message(), "no kernel named another"));
}

TEST_CASE("fault 28: a log of 100 MB is bounded, in errors and in results") {
  const auto compiler = fake();
  fake_nvrtc::set_mode(Mode::error_huge_log);
  const auto error = compiler->compile(small_request("kernel"));
  REQUIRE(!error.ok());
  CHECK(error.error().message().size() < kMaxLogBytes + 1000);
  CHECK(contains(error.error().message(), "last line of the log"));
  fake_nvrtc::set_mode(Mode::huge_log);
  const auto binary = compiler->compile(small_request("kernel"));
  REQUIRE(binary.ok());
  CHECK(binary->log.size() <= kMaxLogBytes);
  CHECK(binary->resources.registers == 32);  // its line is the last of the log
}

TEST_CASE("without a log the resources come from the cubin") {
  const auto compiler = fake();
  fake_nvrtc::set_mode(Mode::no_log);
  const auto binary = compiler->compile(small_request("kernel"));
  REQUIRE(binary.ok());
  CHECK(binary->log.empty());
  CHECK(binary->resources.registers == 32);
}

TEST_CASE("spills and C75xx lines are findings") {
  const auto compiler = fake();
  fake_nvrtc::set_mode(Mode::spills);
  const auto binary = compiler->compile(small_request("kernel"));
  REQUIRE(binary.ok());
  CHECK(binary->resources.spill_stores == 16);
  CHECK(binary->resources.spill_loads == 24);
  CHECK(binary->resources.stack_bytes == 80);
  CHECK(findings(*binary).size() == 2);
}

TEST_CASE("fault 28: a hang is given up after the limit and its thread left behind") {
  auto compiler = fake();
  fake_nvrtc::set_mode(Mode::hang, 1, 1);  // the second compile hangs
  std::vector<CompileRequest> requests;
  for (int i = 0; i < 6; ++i) requests.push_back(small_request("kernel" + std::to_string(i)));
  std::size_t last = 0;
  CompileAllOptions options;
  options.threads = 1;  // the stuck thread must be replaced for the rest to be done
  options.limit = std::chrono::milliseconds(20);
  options.progress = [&](std::size_t done, std::size_t total) {
    CHECK(done == ++last);
    CHECK(total == 6);
  };
  const auto results = compile_all(compiler, requests, options);
  REQUIRE(results.size() == 6);
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(results[i].ok() == (i != 1));
    if (i == 1) {
      CHECK(results[i].error().code() == ErrorCode::compile_failed);
      CHECK(contains(results[i].error().message(), "kernel1 for sm_90a took longer than 20 ms"));
    } else {
      CHECK(results[i]->entry_name == "kernel" + std::to_string(i));
    }
  }
  CHECK(last == 6);
  CHECK(fake_nvrtc::hung() == 1);
  compiler.reset();
  fake_nvrtc::release_hung();  // the thread left behind ends, owning all it needs
  while (fake_nvrtc::live_programs() != 0) std::this_thread::yield();
}

TEST_CASE("fault 28: a compiler that can be stopped is stopped at the limit") {
  const auto compiler = fake();
  fake_nvrtc::set_mode(Mode::hang_cooperative);
  CompileAllOptions options;
  options.limit = std::chrono::milliseconds(20);
  const auto results = compile_all(compiler, {small_request("a"), small_request("b")}, options);
  for (const auto& result : results) {
    REQUIRE(!result.ok());
    CHECK(result.error().code() == ErrorCode::compile_failed);
    CHECK(contains(result.error().message(), "took longer than 20 ms"));
  }
  CHECK(fake_nvrtc::hung() == 0);
  CHECK(fake_nvrtc::live_programs() == 0);
}

TEST_CASE("fault 28: a crash takes its own process and no other") {
  const auto compiler = fake();
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);  // not the test runner's handler
    fake_nvrtc::set_mode(Mode::crash);
    static_cast<void>(compiler->compile(small_request("kernel")));
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(compiler->compile(small_request("kernel")).ok());
}
