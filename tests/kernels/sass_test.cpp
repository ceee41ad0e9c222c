#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
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

/// Opcodes with modifiers of the loops that multiply: around each HGMMA the shortest stretch from a branch's
/// target to the branch. Targets are labels to nvdisasm, addresses to cuobjdump.
std::set<std::string> main_loop(const std::string& sass) {
  static const std::regex label(R"(^\s*(\.L_\w+):)");
  static const std::regex instruction(R"(^\s*/\*0*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);)");
  static const std::regex target(R"((\.L_\w+|0x[0-9a-f]+))");
  std::vector<std::string> code;
  std::map<std::string, std::size_t> places;
  std::vector<std::pair<std::string, std::size_t>> branches;  // target, place
  std::istringstream lines(sass);
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_search(line, match, label)) {
      places[match[1]] = code.size();
    } else if (std::regex_search(line, match, instruction)) {
      places["0x" + match[1].str()] = code.size();
      const std::string operands = match[3];
      code.push_back(match[2]);
      std::smatch to;
      if (code.back().rfind("BRA", 0) == 0 && std::regex_search(operands, to, target))
        branches.emplace_back(to[1], code.size() - 1);
    }
  }
  std::set<std::string> found;
  for (std::size_t at = 0; at < code.size(); ++at) {
    if (code[at].rfind("HGMMA", 0) != 0) continue;
    std::size_t begin = 0, end = 0;
    for (const auto& [name, last] : branches) {
      const auto first = places.find(name);
      if (first == places.end() || first->second > at || last < at) continue;
      if (end != 0 && last + 1 - first->second >= end - begin) continue;
      begin = first->second;
      end = last + 1;
    }
    found.insert(code.begin() + static_cast<std::ptrdiff_t>(begin),
                 code.begin() + static_cast<std::ptrdiff_t>(end));
  }
  return found;
}

/// A fence of all of the GPU's memory.
bool is_device_fence(const std::string& opcode) {
  return opcode.rfind("MEMBAR", 0) == 0 &&
         (opcode.find(".CTA") == std::string::npos || opcode.find(".SC") != std::string::npos);
}

}  // namespace

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
    const auto compiled = compile_one(kernel, device.arch);
    REQUIRE(compiled->ok());
    const KernelBinary& binary = **compiled;
    const auto sass =
        tools::disassemble({reinterpret_cast<const char*>(binary.image.data()), binary.image.size()});
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
    const auto compiled = compile_one(job.kernel, job.arch);
    const Result<KernelBinary>& binary = *compiled;
    if (!binary) return void(job.problem = binary.error().message());
    auto sass =
        tools::disassemble({reinterpret_cast<const char*>(binary->image.data()), binary->image.size()});
    if (!sass) return void(job.problem = sass.error().message());
    const auto found = opcodes(*sass);
    // mma.sync, ldmatrix, cp.async; or wgmma, the copy engine, stmatrix.
    using Needed = std::vector<const char*>;
    for (const char* needed :
         job.kernel.wgmma ? Needed{"HGMMA", "UTMALDG", "STSM"} : Needed{"HMMA", "LDSM", "LDGSTS"}) {
      if (!found.count(needed)) job.problem += std::string(" lacks ") + needed;
    }
    for (const char* local : {"LDL", "STL"}) {
      if (found.count(local)) job.problem += std::string(" has ") + local;
    }
    static const std::regex multicast(R"(UTMALDG\.\dD\.MULTICAST)");
    if (std::regex_search(*sass, multicast) != (job.kernel.cluster > 1))
      job.problem += job.kernel.cluster > 1 ? " lacks multicast" : " has multicast";
    if (!job.kernel.wgmma) return;
    // One a stage costs a fifth of the time.
    const auto loop = main_loop(*sass);
    if (loop.empty()) job.problem += " lacks a main loop";
    for (const std::string& opcode : loop) {
      if (is_device_fence(opcode)) job.problem += " has " + opcode + " in its main loop";
    }
  });
  for (const Job& job : jobs) CHECK_MESSAGE(job.problem.empty(), job.kernel.what, ":", job.problem);
}
