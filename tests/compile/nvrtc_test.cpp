// The NVRTC of this machine. Where there is none these cases say so and end.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "compile/compile_pool.hpp"
#include "compile/compiler.hpp"
#include "compile/cubin_info.hpp"
#include "compile/findings.hpp"
#include "compile/requests.hpp"

using namespace varmoe;
using namespace varmoe::compile;
using test::small_request;
namespace fs = std::filesystem;

namespace {

std::shared_ptr<Compiler> real() {
  const char* path = std::getenv("VARMOE_NVRTC_LIB");
  static const auto compiler = load_nvrtc(path ? path : "");
  if (compiler) return *compiler;
  MESSAGE("skipped: " << compiler.error().message());
  return nullptr;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "varmoe-nvrtc-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()));
    path = name;
  }
  ~TemporaryFolder() { fs::remove_all(path); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  fs::path path;
};

CompileRequest rich_request() {
  CompileRequest request;
  request.text = R"(
#include "tile/a.cuh"
extern "C" __global__ void __launch_bounds__(256) rich(float* p, int n) {
  __shared__ float s[128];
  s[threadIdx.x & 127] = p[threadIdx.x];
  __syncthreads();
  p[threadIdx.x] = scaled(s[n & 127]);
}
)";
  request.headers = {{"tile/a.cuh", "__device__ inline float scaled(float x) {\n  return 2.0f * x;\n}\n"}};
  request.options = {"--std=c++17"};
  request.arch = "sm_90a";
  request.entry_name = "rich";
  return request;
}

}  // namespace

TEST_CASE("NVRTC: version with its build number, architectures, description") {
  const auto compiler = real();
  if (!compiler) return;
  CHECK(compiler->version() >= CompilerVersion{12, 4, 1});
  const auto archs = compiler->architectures();
  CHECK(std::find(archs.begin(), archs.end(), 90) != archs.end());
  CHECK(compiler->description().find("libnvrtc") != std::string::npos);
}

TEST_CASE("NVRTC: resources from the log agree with those from the cubin") {
  const auto compiler = real();
  if (!compiler) return;
  for (const char* arch : {"sm_80", "sm_90a"}) {
    auto request = rich_request();
    request.arch = arch;
    const auto binary = compiler->compile(request);
    REQUIRE_MESSAGE(binary.ok(), (binary.ok() ? "" : binary.error().message()));
    CHECK(binary->resources.registers > 0);
    CHECK(binary->resources.static_smem == 512);
    CHECK(findings(*binary).empty());
    CHECK(binary->log.find("Used ") != std::string::npos);
    CHECK(cubin_resources(binary->image, "rich") == binary->resources);
  }
}

TEST_CASE("NVRTC: spills are findings") {
  const auto compiler = real();
  if (!compiler) return;
  CompileRequest request = small_request("spill");
  request.text = R"(extern "C" __global__ void __launch_bounds__(1024, 2) spill(float* p, int n) {
  float a[100];
#pragma unroll
  for (int i = 0; i < 100; i++) a[i] = p[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 100; i++) p[(i * 7 % 100) * n + threadIdx.x] = a[i] * a[(i * 3 + 1) % 100];
}
)";
  const auto binary = compiler->compile(request);
  REQUIRE(binary.ok());
  CHECK(binary->resources.spill_stores > 0);
  CHECK(binary->resources.stack_bytes > 0);
  CHECK(findings(*binary).size() == 1);
}

TEST_CASE(
    "NVRTC: an error names the line, and a header that was not given is not found, even in the working "
    "directory") {
  const auto compiler = real();
  if (!compiler) return;
  auto request = small_request("kernel");
  request.text = "extern \"C\" __global__ void kernel() { nonsense; }\n";
  auto result = compiler->compile(request);
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::compile_failed);
  CHECK(result.error().message().find("\"nonsense\" is undefined") != std::string::npos);

  const TemporaryFolder folder;
  std::ofstream(folder.path / "planted.cuh") << "#define X 1\n";
  const fs::path before = fs::current_path();
  fs::current_path(folder.path);
  request.text = "#include \"planted.cuh\"\nextern \"C\" __global__ void kernel() {}\n";
  result = compiler->compile(request);
  fs::current_path(before);
  REQUIRE(!result.ok());
  CHECK(result.error().message().find("planted.cuh") != std::string::npos);
}

TEST_CASE("NVRTC: PTX for a newer GPU") {
  const auto compiler = real();
  if (!compiler) return;
  const std::string arch = target_arch(compiler->architectures(), "sm_9990").value();
  CHECK(arch.starts_with("compute_"));
  const auto binary = compiler->compile(small_request("kernel", arch));
  REQUIRE(binary.ok());
  CHECK(binary->is_ptx);
  const std::string ptx(reinterpret_cast<const char*>(binary->image.data()));
  CHECK(ptx.find(".entry kernel(") != std::string::npos);
}

TEST_CASE("NVRTC: a compile that was cancelled before it began does not begin") {
  const auto compiler = real();
  if (!compiler) return;
  const std::atomic<bool> cancel{true};
  auto request = small_request("kernel");
  request.cancel = &cancel;
  const auto result = compiler->compile(request);
  REQUIRE(!result.ok());
  CHECK(result.error().code() == ErrorCode::cancelled);
}

TEST_CASE("fault 05: NVRTC: threads that compile the same kernel all get the same bytes") {
  const auto compiler = real();
  if (!compiler) return;
  CompileAllOptions options;
  options.threads = 4;
  const auto results = compile_all(compiler, std::vector<CompileRequest>(8, rich_request()), options);
  for (const auto& result : results) {
    REQUIRE(result.ok());
    CHECK(result->image == results[0]->image);
  }
}

TEST_CASE("fault 38: NVRTC: two processes in different folders make the same cubin") {
  const auto compiler = real();
  if (!compiler) return;
  for (const bool line_info : {false, true}) {
    auto request = rich_request();
    request.line_info = line_info;
    const auto here = compiler->compile(request);
    REQUIRE(here.ok());
    const TemporaryFolder folder;
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      fs::current_path(folder.path);
      const auto there = compiler->compile(request);
      if (!there) _exit(1);
      std::ofstream(folder.path / "image", std::ios::binary)
          .write(reinterpret_cast<const char*>(there->image.data()),
                 static_cast<std::streamsize>(there->image.size()));
      _exit(0);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(status == 0);
    std::ifstream file(folder.path / "image", std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    CHECK(bytes == std::string(reinterpret_cast<const char*>(here->image.data()), here->image.size()));
  }
}
