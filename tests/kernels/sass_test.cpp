#include <doctest/doctest.h>

#include <algorithm>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_pool.hpp"
#include "kernels/families.hpp"
#include "kernels/sass.hpp"
#include "tools/common/disassemble.hpp"

using namespace varmoe;
using namespace kernels_test;

TEST_CASE("opcodes are read from both disassemblers' forms") {
  CHECK(opcodes("        /*0010*/                   LDC R1, c[0x0][0x28] ;\n        /*0a20*/              "
                "@!P0 LDGSTS.E.BYPASS.128 [R3], "
                "desc[UR4][R4.64] ;\n /*1f0*/ X\n") == std::set<std::string>{"LDC", "LDGSTS"});
}

TEST_CASE("a main loop is read from both disassemblers' forms, without what stands around it") {
  // The slow path of a wait lies behind the loop and branches back into it.
  const std::string labelled =
      "        /*0000*/                   MEMBAR.ALL.GPU ;\n"
      ".L_x_1:\n"
      "        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R21+URZ], R20 ;\n"
      "        /*0020*/              @!P1 BRA `(.L_x_3) ;\n"
      ".L_x_2:\n"
      "        /*0030*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;\n"
      "        /*0040*/              @!P0 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R152+URZ], RZ ;\n"
      "        /*0050*/               @P2 BRA `(.L_x_1) ;\n"
      "        /*0060*/                   EXIT ;\n"
      ".L_x_3:\n"
      "        /*0070*/                   MEMBAR.SC.GPU ;\n"
      "        /*0080*/                   BRA `(.L_x_2) ;\n";
  std::string addressed = std::regex_replace(labelled, std::regex(R"(\.L_x_\d:\n)"), "");
  addressed = std::regex_replace(addressed, std::regex(R"(`\(\.L_x_1\))"), "0x10");
  addressed = std::regex_replace(addressed, std::regex(R"(`\(\.L_x_2\))"), "0x30");
  addressed = std::regex_replace(addressed, std::regex(R"(`\(\.L_x_3\))"), "0x70");
  const std::set<std::string> loop = {"BRA", "HGMMA.64x256x16.F32.BF16", "SYNCS.ARRIVE.TRANS64.A1T0",
                                      "SYNCS.PHASECHK.TRANS64.TRYWAIT"};
  CHECK(main_loop(labelled) == loop);
  CHECK(main_loop(addressed) == loop);
  CHECK(main_loop(std::regex_replace(labelled, std::regex("SYNCS.ARRIVE"),
                                     "MEMBAR.ALL.GPU ;\n /*0048*/ SYNCS.ARRIVE"))
            .count("MEMBAR.ALL.GPU") == 1);
  CHECK(is_device_fence("MEMBAR.ALL.GPU"));
  CHECK(is_device_fence("MEMBAR.SC.SYS"));
  CHECK_FALSE(is_device_fence("MEMBAR.ALL.CTA"));
}

TEST_CASE(
    "the whole-layer kernel multiplies on tensor cores, copies in bulk without a loop over lanes, and has no "
    "local memory" *
    doctest::skip(tools::find_disassembler().empty())) {
  for (const auto& device : devices()) {
    if (device.arch != "sm_90a") continue;
    const auto kernels = whole_layer_kernels(device);
    const Kernel& kernel = kernels.front();
    const auto sass = machine_code(kernel, device.arch);
    REQUIRE(sass.ok());
    const auto found = opcodes(*sass);
    CHECK(found.count("HMMA") == 1);
    CHECK(found.count("UBLKCP") == 1);
    CHECK(found.count("LDL") + found.count("STL") == 0);
    // Not guarded by elect.sync, each copy would stand in a loop over the lanes that ask for one.
    static const std::regex loop(R"(UBLKCP[^;]*;\s*/\*[0-9a-f]+\*/\s+@P\d BRA\.U\.ANY)");
    CHECK_FALSE(std::regex_search(*sass, loop));
  }
}

TEST_CASE("the GEMM kernels use what their main loop is made of, no local memory, and multicast in clusters" *
          doctest::skip(tools::find_disassembler().empty())) {
  struct Job {
    Kernel kernel;
    std::string arch;
    std::string problem;
  };
  std::vector<Job> jobs;
  const auto add = [&](Kernel& kernel, const std::string& arch) {
    const emit::Stage stage = kernel.emitted.stage;
    if (stage == emit::Stage::fc1 || stage == emit::Stage::fc2) jobs.push_back({std::move(kernel), arch, {}});
  };
  for (const auto& device : devices()) {
    // sm_86 and sm_89 run sm_80's instructions, which are read there.
    if (device.arch == "sm_86" || device.arch == "sm_89") continue;
    for (const Family& family : families()) {
      // The main loop is the same for every activation.
      if (family.name.find("uniform") == std::string::npos && family.name.find("kn") == std::string::npos &&
          family.name.find("runtime") == std::string::npos) {
        continue;
      }
      for (Kernel& kernel : kernels_of(family, device)) add(kernel, device.arch);
    }
    if (device.arch == "sm_90a") {
      for (Kernel& kernel : hopper_kernels(device)) add(kernel, device.arch);
    }
  }
  REQUIRE(jobs.size() >= 24);
  CHECK(std::count_if(jobs.begin(), jobs.end(), [](const Job& job) { return job.kernel.cluster > 1; }) >= 10);
  parallel_for(jobs.size(), 0, [&](std::size_t i) {
    Job& job = jobs[i];
    const auto sass = machine_code(job.kernel, job.arch);
    job.problem = sass ? product_problem(job.kernel, *sass) : sass.error().message();
  });
  for (const Job& job : jobs) CHECK_MESSAGE(job.problem.empty(), job.kernel.what, ":", job.problem);
}
