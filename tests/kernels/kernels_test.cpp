#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/thread_pool.hpp"
#include "compile/findings.hpp"
#include "kernels/families.hpp"

using namespace varmoe;
using namespace kernels_test;

TEST_CASE("every kernel family compiles for every arch within its limits, without spills and findings") {
  struct Job {
    Kernel kernel;
    const model::DeviceProfile* device;
    std::string problem;
    double ms = 0;
  };
  const auto targets = devices();
  std::vector<Job> jobs;
  for (const auto& device : targets) {
    std::set<std::string> seen;  // families share their sort and combine kernels
    const auto add = [&](Kernel& kernel) {
      if (seen.insert(kernel.emitted.entry_name).second) jobs.push_back({std::move(kernel), &device, {}, 0});
    };
    // sm_86 and sm_89 run sm_80's instructions within other limits: a third of the families each.
    const std::vector<Family> all = families();
    for (std::size_t i = 0; i < all.size(); ++i) {
      if ((device.arch == "sm_86" && i % 3 != 0) || (device.arch == "sm_89" && i % 3 != 1)) continue;
      for (Kernel& kernel : kernels_of(all[i], device)) add(kernel);
    }
    if (device.arch == "sm_90a") {
      for (Kernel& kernel : hopper_kernels(device)) add(kernel);
      for (Kernel& kernel : whole_layer_kernels(device)) add(kernel);
    }
  }
  parallel_for(jobs.size(), 0, [&](std::size_t i) {
    Job& job = jobs[i];
    const auto complain = [&](const std::string& text) {
      job.problem += (job.problem.empty() ? "" : "; ") + text;
    };
    const auto compiled = compile_one(job.kernel, job.device->arch);
    const Result<KernelBinary>& binary = *compiled;
    if (!binary) return complain(binary.error().message());
    job.ms = binary->compile_ms;
    const ResourceUsage& used = binary->resources;
    const emit::EmittedKernel& kernel = job.kernel.emitted;
    for (const std::string& finding : compile::findings(*binary)) complain(finding);
    if (used.spill_loads + used.spill_stores != 0) complain("spills");
    if (used.stack_bytes != 0) complain("a stack frame of " + std::to_string(used.stack_bytes) + " bytes");
    const std::int64_t smem = used.static_smem + kernel.dynamic_smem_bytes;
    if (smem > job.device->smem_per_block) complain(std::to_string(smem) + " bytes of shared memory");
    // 1 KiB a block is the system's.
    if ((smem + 1024) * kernel.ctas_per_sm > job.device->smem_per_sm)
      complain("shared memory of all blocks of an SM");
    const std::int64_t allocated = (used.registers + 7) / 8 * 8 * kernel.block_threads;
    if (used.registers <= 0 || allocated * kernel.ctas_per_sm > job.device->regs_per_sm) {
      complain(std::to_string(used.registers) + " registers for " + std::to_string(kernel.block_threads) +
               " threads");
    }
    if (kernel.block_threads * kernel.ctas_per_sm > job.device->threads_per_sm)
      complain("threads of all blocks of an SM");
  });
  double slowest = 0, sum = 0;
  std::map<std::string, int> of_arch;
  for (const Job& job : jobs) {
    CHECK_MESSAGE(job.problem.empty(), job.kernel.what, ": ", job.problem);
    slowest = std::max(slowest, job.ms);
    sum += job.ms;
    ++of_arch[job.device->arch];
  }
  for (const auto& [arch, count] : of_arch)
    CHECK_MESSAGE(count >= (arch == "sm_86" || arch == "sm_89" ? 15 : 40), arch, " has ", count,
                  " kernels only");
  MESSAGE(jobs.size(), " kernels, ", sum / 1000, " s of compiling, the slowest ", slowest, " ms");
}
