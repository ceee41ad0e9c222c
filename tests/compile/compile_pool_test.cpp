#include "compile/compile_pool.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "compile/requests.hpp"
#include "support/fake_nvrtc.hpp"

using namespace varmoe;
using namespace varmoe::compile;
using test::small_request;

namespace {

/// A compiler that does what a test says.
class ScriptedCompiler : public Compiler {
 public:
  explicit ScriptedCompiler(std::function<Result<KernelBinary>(const CompileRequest&)> script)
      : script_(std::move(script)) {}
  Result<KernelBinary> compile(const CompileRequest& request) override { return script_(request); }
  CompilerVersion version() const override { return {13, 0, 88}; }
  std::string description() const override { return "scripted"; }
  std::vector<int> architectures() const override { return {90}; }

 private:
  std::function<Result<KernelBinary>(const CompileRequest&)> script_;
};

Result<KernelBinary> binary_of(const CompileRequest& request) {
  KernelBinary binary;
  binary.entry_name = request.entry_name;
  binary.image.resize(8);
  return binary;
}

std::vector<CompileRequest> requests(int n) {
  std::vector<CompileRequest> out;
  for (int i = 0; i < n; ++i) out.push_back(small_request("k" + std::to_string(i)));
  return out;
}

}  // namespace

TEST_CASE("nothing to do") {
  CHECK(compile_all(std::make_shared<ScriptedCompiler>(binary_of), {}).empty());
}

TEST_CASE("results come in request order, callbacks once each and one at a time") {
  const auto compiler =
      std::make_shared<ScriptedCompiler>([](const CompileRequest& r) -> Result<KernelBinary> {
        if (r.entry_name == "k7") return Error(ErrorCode::compile_failed, "seven");
        return binary_of(r);
      });
  std::atomic<int> inside{0};
  std::set<std::size_t> seen;
  std::size_t last = 0;
  CompileAllOptions options;
  options.threads = 4;
  options.on_result = [&](std::size_t index, const Result<KernelBinary>& result) {
    CHECK(++inside == 1);
    CHECK(result.ok() == (index != 7));
    CHECK(seen.insert(index).second);
    --inside;
  };
  options.progress = [&](std::size_t done, std::size_t total) {
    CHECK(++inside == 1);
    CHECK(done == ++last);
    CHECK(total == 20);
    --inside;
  };
  const auto results = compile_all(compiler, requests(20), options);
  REQUIRE(results.size() == 20);
  for (std::size_t i = 0; i < 20; ++i) {
    if (i == 7) {
      CHECK(results[i].error().message() == "seven");
    } else {
      REQUIRE(results[i].ok());
      CHECK(results[i]->entry_name == "k" + std::to_string(i));
    }
  }
  CHECK(seen.size() == 20);
  CHECK(last == 20);
}

TEST_CASE("requests run at once, no more than there are threads") {
  std::atomic<int> running{0};
  std::atomic<int> met{0};
  const auto compiler = std::make_shared<ScriptedCompiler>([&](const CompileRequest& r) {
    CHECK(++running <= 3);
    ++met;
    while (met < 3) std::this_thread::yield();  // ends only when three are under way together
    --running;
    return binary_of(r);
  });
  CompileAllOptions options;
  options.threads = 3;
  for (const auto& result : compile_all(compiler, requests(9), options)) CHECK(result.ok());
}

TEST_CASE("cancel keeps what is done, stops what is under way and begins nothing new") {
  std::atomic<bool> cancel{false};
  const auto compiler =
      std::make_shared<ScriptedCompiler>([&](const CompileRequest& r) -> Result<KernelBinary> {
        if (r.entry_name == "k0" || r.entry_name == "k1") return binary_of(r);
        CHECK(r.entry_name == "k2");
        cancel = true;
        while (!r.cancel->load()) std::this_thread::yield();
        return Error(ErrorCode::cancelled, "stopped");
      });
  CompileAllOptions options;
  options.threads = 1;
  options.cancel = &cancel;
  const auto results = compile_all(compiler, requests(5), options);
  REQUIRE(results.size() == 5);
  CHECK(results[0].ok());
  CHECK(results[1].ok());
  for (std::size_t i = 2; i < 5; ++i) {
    REQUIRE(!results[i].ok());
    CHECK(results[i].error().code() == ErrorCode::cancelled);
  }
}

TEST_CASE("a compiler or a callback that throws is an error of that request alone") {
  const auto compiler =
      std::make_shared<ScriptedCompiler>([](const CompileRequest& r) -> Result<KernelBinary> {
        if (r.entry_name == "k1") throw std::runtime_error("oh");
        if (r.entry_name == "k2") throw 42;
        return binary_of(r);
      });
  CompileAllOptions options;
  options.on_result = [](std::size_t index, const Result<KernelBinary>&) {
    if (index == 3) throw std::runtime_error("disk");
  };
  const auto results = compile_all(compiler, requests(5), options);
  CHECK(results[0].ok());
  CHECK(results[1].error().code() == ErrorCode::internal);
  CHECK(results[2].error().code() == ErrorCode::internal);
  CHECK(results[3].error().code() == ErrorCode::internal);
  CHECK(results[4].ok());
}

TEST_CASE("fault 28: every thread stuck at once still ends with an error for each") {
  std::atomic<bool> release{false};
  std::atomic<int> left{0};
  {
    const auto compiler = std::make_shared<ScriptedCompiler>([&](const CompileRequest& r) {
      while (!release) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++left;
      return binary_of(r);
    });
    CompileAllOptions options;
    options.threads = 2;
    options.limit = std::chrono::milliseconds(5);
    for (const auto& result : compile_all(compiler, requests(2), options)) {
      REQUIRE(!result.ok());
      CHECK(result.error().code() == ErrorCode::compile_failed);
    }
  }
  release = true;
  while (left < 2) std::this_thread::yield();
}

TEST_CASE("fault 05: threads that compile the same kernel all get the same bytes") {
  fake_nvrtc::reset();
  const auto compiler = load_nvrtc(VARMOE_FAKE_NVRTC);
  REQUIRE(compiler.ok());
  CompileAllOptions options;
  options.threads = 8;
  const auto results =
      compile_all(*compiler, std::vector<CompileRequest>(32, small_request("same")), options);
  for (const auto& result : results) {
    REQUIRE(result.ok());
    CHECK(result->image == results[0]->image);
  }
  CHECK(fake_nvrtc::live_programs() == 0);
}
