#include <doctest/doctest.h>

#include <mutex>
#include <regex>
#include <set>
#include <vector>

#include "base/thread_pool.hpp"
#include "kernels/families.hpp"
#include "tools/common/disassemble.hpp"

using namespace varmoe;
using namespace kernels_test;

namespace {

/// Opcodes without modifiers: "HMMA", "LDGSTS", …; whole tokens at the place of the opcode, in nvdisasm's and
/// cuobjdump's form.
std::set<std::string> opcodes(const std::string& sass) {
  static const std::regex instruction(R"(/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*))");
  std::set<std::string> found;
  for (auto it = std::sregex_iterator(sass.begin(), sass.end(), instruction); it != std::sregex_iterator();
       ++it) {
    found.insert((*it)[1]);
  }
  return found;
}

}  // namespace

TEST_CASE("opcodes are read from both disassemblers' forms") {
  CHECK(opcodes("        /*0010*/                   LDC R1, c[0x0][0x28] ;\n        /*0a20*/              "
                "@!P0 LDGSTS.E.BYPASS.128 [R3], "
                "desc[UR4][R4.64] ;\n /*1f0*/ X\n") == std::set<std::string>{"LDC", "LDGSTS"});
}

TEST_CASE("the GEMM kernels use what their main loop is made of, and no local memory" *
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
  parallel_for(jobs.size(), 0, [&](std::size_t i) {
    Job& job = jobs[i];
    const auto compiled = compile_one(job.kernel, job.arch);
    const Result<KernelBinary>& binary = *compiled;
    if (!binary) return void(job.problem = binary.error().message());
    auto sass =
        tools::disassemble({reinterpret_cast<const char*>(binary->image.data()), binary->image.size()});
    if (!sass) return void(job.problem = sass.error().message());
    const auto found = opcodes(*sass);
    // mma.sync, ldmatrix, cp.async; or wgmma, the copy engine, stmatrix.
    using Needed = std::vector<const char*>;
    for (const char* needed : job.kernel.wgmma ? Needed{"HGMMA", "UTMALDG", "STSM"} : Needed{"HMMA", "LDSM", "LDGSTS"}) {
      if (!found.count(needed)) job.problem += std::string(" lacks ") + needed;
    }
    for (const char* local : {"LDL", "STL"}) {
      if (found.count(local)) job.problem += std::string(" has ") + local;
    }
  });
  for (const Job& job : jobs) CHECK_MESSAGE(job.problem.empty(), job.kernel.what, ":", job.problem);
}
