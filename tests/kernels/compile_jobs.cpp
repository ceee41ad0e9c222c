#include "kernels/compile_jobs.hpp"

#include <doctest/doctest.h>

#include <utility>

#include "base/thread_pool.hpp"
#include "compile/findings.hpp"

namespace kernels_test {

using namespace varmoe;

void add_job(std::vector<Job>& jobs, std::set<std::string>& seen, const model::DeviceProfile& device,
             Result<emit::EmittedKernel> kernel, const std::string& what) {
  REQUIRE_MESSAGE(kernel.ok(), what, ": ", (kernel.ok() ? std::string() : kernel.error().message()));
  if (seen.insert(kernel->entry_name).second)
    jobs.push_back({{what, *std::move(kernel), false, 1}, &device, {}});
}

void compile_all(std::vector<Job>& jobs) {
  parallel_for(jobs.size(), 0, [&](std::size_t i) {
    Job& job = jobs[i];
    const auto compiled = compile_one(job.kernel, job.device->arch);
    const Result<KernelBinary>& binary = *compiled;
    if (!binary) return void(job.problem = binary.error().message());
    for (const std::string& finding : compile::findings(*binary)) job.problem += finding + "; ";
    const ResourceUsage& used = binary->resources;
    if (used.spill_loads + used.spill_stores != 0) job.problem += "spills; ";
    if (used.stack_bytes != 0) job.problem += "a stack frame; ";
    if (used.static_smem + job.kernel.emitted.dynamic_smem_bytes > job.device->smem_per_block)
      job.problem += "shared memory; ";
    if ((used.registers + 7) / 8 * 8 * job.kernel.emitted.block_threads > job.device->regs_per_sm)
      job.problem += "registers; ";
  });
  for (const Job& job : jobs)
    CHECK_MESSAGE(job.problem.empty(), job.kernel.what, ", ", job.device->arch, ": ", job.problem);
  MESSAGE(jobs.size(), " kernels");
}

}  // namespace kernels_test
