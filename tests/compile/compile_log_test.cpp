#include "compile/compile_log.hpp"

#include <doctest/doctest.h>

#include "compile/compiler.hpp"
#include "compile/findings.hpp"

using namespace varmoe;
using namespace varmoe::compile;

namespace {

// What NVRTC 12.4 and 13.0 wrote of the same two kernels, one of which calls a function.
const char kLog124[] = R"(ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spill' for 'sm_90a'
ptxas info    : Function properties for spill
ptxas         .     2280 bytes stack frame, 2372 bytes spill stores, 2748 bytes spill loads
ptxas info    : Used 32 registers, 2280 bytes cumulative stack size
ptxas info    : Compiling entry function 'foo' for 'sm_90a'
ptxas info    : Function properties for foo
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, 512 bytes smem, 364 bytes cmem[0]
ptxas info    : Function properties for _Z1gPf
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
)";
const char kLog130[] = R"(ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spill' for 'sm_90a'
ptxas info    : Function properties for spill
ptxas         .     2288 bytes stack frame, 2384 bytes spill stores, 2776 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 2288 bytes cumulative stack size
ptxas info    : Compile time = 62.189 ms
ptxas info    : Compiling entry function 'foo' for 'sm_90a'
ptxas info    : Function properties for foo
ptxas         .     80 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 96 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compile time = 13.070 ms
ptxas info    : Function properties for _Z1gPf
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
)";

}  // namespace

TEST_CASE("resources are read from the logs of NVRTC 12 and 13") {
  CHECK(parse_resources(kLog124, "spill") == ResourceUsage{32, 2372, 2748, 2280, 0});
  CHECK(parse_resources(kLog124, "foo") == ResourceUsage{40, 0, 0, 0, 512});
  CHECK(parse_resources(kLog130, "spill") == ResourceUsage{32, 2384, 2776, 2288, 0});
  SUBCASE("what a called function spills counts") {
    CHECK(parse_resources(kLog130, "foo") == ResourceUsage{40, 4, 8, 96, 512});
  }
}

TEST_CASE("a log without the entry gives no resources") {
  CHECK(!parse_resources(kLog130, "fo"));
  CHECK(!parse_resources(kLog130, "foo2"));
  CHECK(!parse_resources("", "foo"));
  CHECK(!parse_resources("ptxas info    : Used 40 registers", "foo"));
  CHECK(!parse_resources(
      "ptxas info    : Compiling entry function 'foo' for 'sm_90a'\nptxas info    : Used many registers\n",
      "foo"));
  CHECK(
      !parse_resources("ptxas info    : Compiling entry function 'foo' for 'sm_90a'\nptxas info    : Used "
                       "99999999999 registers\n",
                       "foo"));
}

TEST_CASE("every C75xx line, spill and stack frame is a finding, and nothing else") {
  CHECK(log_findings("").empty());
  const auto of_130 = log_findings(kLog130);
  REQUIRE(of_130.size() == 3);
  CHECK(of_130[0] == "spill: 2288 bytes stack frame, 2384 bytes spill stores, 2776 bytes spill loads");
  CHECK(of_130[1].starts_with("foo: 80 bytes"));
  CHECK(of_130[2].starts_with("_Z1gPf: 16 bytes"));

  for (const char* code : {"7504", "7508", "7510", "7511", "7514", "7517", "7519", "7520"}) {
    const std::string line =
        std::string("ptxas info    : (C") + code + ") Potential Performance Loss: something";
    CHECK(log_findings(line + "\n") == std::vector<std::string>{line});
  }
  CHECK(log_findings("ptxas warning : C7508: 'setmaxnreg' ignored\n").size() == 1);
  // Names that only look like codes.
  CHECK(log_findings("Function properties for varmoe_C7510_x\nABC7510 C751 C75100 xC7510\n").empty());
}

TEST_CASE("findings of a binary without a log come from its resources") {
  KernelBinary binary;
  binary.entry_name = "foo";
  CHECK(findings(binary).empty());
  binary.resources.stack_bytes = 16;
  REQUIRE(findings(binary).size() == 1);
  CHECK(findings(binary)[0] == "foo: 16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads");
  binary.log =
      "Function properties for foo\n    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
  CHECK(findings(binary).size() == 1);
}

TEST_CASE("fault 28: a long log keeps its head, its tail and every finding between them") {
  CHECK(bounded_log("short\n") == "short\n");
  std::string log = "the first line\n";
  const std::string filler = "warning #177-D: variable was declared but never referenced\n";
  while (log.size() < 1'000'000) log += filler;
  log += "ptxas info    : (C7510) Potential Performance Loss: wgmma serialised\n";
  log +=
      "ptxas info    : Function properties for foo\nptxas         .     80 bytes stack frame, 0 bytes spill "
      "stores, 0 bytes spill loads\n";
  while (log.size() < 2'000'000) log += filler;
  log += "the last line\n";
  const std::string kept = bounded_log(log);
  CHECK(kept.size() <= kMaxLogBytes);
  CHECK(kept.starts_with("the first line\n"));
  CHECK(kept.ends_with("the last line\n"));
  CHECK(kept.find("bytes of log left out") != std::string::npos);
  CHECK(log_findings(kept) == log_findings(log));

  SUBCASE("also without a single line end") {
    const std::string solid(3'000'000, 'x');
    CHECK(bounded_log(solid).size() <= kMaxLogBytes);
    CHECK(bounded_log(solid).find("left out") != std::string::npos);
  }
}
