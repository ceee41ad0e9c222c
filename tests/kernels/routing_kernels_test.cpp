#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "compile/findings.hpp"
#include "emit/routing.hpp"
#include "kernels/families.hpp"
#include "support/router_methods.hpp"

using namespace varmoe;
using namespace kernels_test;

namespace {

struct Job {
  Kernel kernel;
  std::string arch, problem;
};

Kernel must(Result<emit::EmittedKernel> emitted, const std::string& what) {
  REQUIRE_MESSAGE(emitted.ok(), what, ": ", (emitted.ok() ? std::string() : emitted.error().message()));
  return {what, *std::move(emitted), false, 1};
}

/// Compiles every job, and complains of spills, stack frames and findings of the log.
void compile_jobs(std::vector<Job>& jobs) {
  parallel_for(jobs.size(), 0, [&](std::size_t i) {
    Job& job = jobs[i];
    const auto compiled = compile_one(job.kernel, job.arch);
    const Result<KernelBinary>& binary = *compiled;
    if (!binary) return void(job.problem = binary.error().message());
    for (const std::string& finding : compile::findings(*binary)) job.problem += finding + "; ";
    const ResourceUsage& used = binary->resources;
    if (used.spill_loads + used.spill_stores != 0) job.problem += "spills; ";
    if (used.stack_bytes != 0) job.problem += "a stack frame; ";
    if (used.static_smem + job.kernel.emitted.dynamic_smem_bytes > 99 * 1024)
      job.problem += "shared memory; ";
  });
  for (const Job& job : jobs)
    CHECK_MESSAGE(job.problem.empty(), job.kernel.what, ", ", job.arch, ": ", job.problem);
}

}  // namespace

TEST_CASE("the router compiles for every method, without spills, up to 1024 experts") {
  std::vector<Job> jobs;
  std::set<std::string> seen;
  for (const auto& method : test::router_methods()) {
    for (const std::int64_t experts : {8, 60, 256, 1024}) {
      for (const LogitType type : {LogitType::fp32, LogitType::bf16}) {
        const RouterSpec spec = test::router_of(method, experts, experts == 1024 ? 32 : 8, type);
        Kernel kernel = must(emit::emit_router(spec), method.name + ", " + router_signature(spec));
        if (seen.insert(kernel.emitted.entry_name).second) jobs.push_back({kernel, "sm_90a", {}});
        if (experts == 256 && type == LogitType::bf16) jobs.push_back({kernel, "sm_80", {}});
      }
    }
  }
  const test::RouterMethod deepseek = test::router_methods().at(10);
  REQUIRE(deepseek.grouped());
  for (const std::int64_t experts : {128, 384, 512})
    jobs.push_back({must(emit::emit_router(test::router_of(deepseek, experts, 8, LogitType::fp16)), "fp16"),
                    "sm_120",
                    {}});
  compile_jobs(jobs);
}

TEST_CASE("a router's product compiles for every pair of types without spills") {
  std::vector<Job> jobs;
  std::set<std::string> seen;
  const std::vector<std::int64_t> all_experts{8, 60, 256, 1024}, all_hidden{8, 200, 2048, 7168};
  const std::vector<LogitType> all_weights{LogitType::fp32, LogitType::bf16, LogitType::fp16};
  for (std::size_t e = 0; e < all_experts.size(); ++e) {
    for (std::size_t h = 0; h < all_hidden.size(); ++h) {
      for (const DType input : {DType::bf16, DType::fp16}) {
        for (std::size_t w = 0; w < all_weights.size(); ++w) {
          const std::int64_t experts = all_experts[e], hidden = all_hidden[h];
          const LogitType weight = all_weights[w];
          // Every pair of values, and every set of types at the sizes of DeepSeek-V3.
          const bool whole = experts == 256 && hidden == 7168;
          if (!whole && (e + h + static_cast<std::size_t>(input)) % 3 != w) continue;
          RouterSpec spec = test::router_of(test::router_methods().at(10), experts, 8);
          spec.hidden_size = hidden;
          spec.input_type = input;
          spec.weight_type = weight;
          spec.logit_bias = experts == 60;
          auto all = emit::emit_router_kernels(spec);
          REQUIRE_MESSAGE(all.ok(), (all.ok() ? std::string() : all.error().message()));
          REQUIRE(all->size() == 3);
          for (emit::EmittedKernel& kernel : *all) {
            if (!seen.insert(kernel.entry_name).second) continue;
            const std::string what =
                std::string(emit::to_string(kernel.stage)) + ", " + router_signature(spec);
            jobs.push_back({{what, kernel, false, 1}, "sm_90a", {}});
            // The portable path differs by instructions that do not depend on the type of 16-bit inputs.
            if (input == DType::bf16) jobs.push_back({{what, kernel, false, 1}, "sm_80", {}});
          }
        }
      }
    }
  }
  compile_jobs(jobs);
}

TEST_CASE("router statistics compile up to 1024 experts") {
  std::vector<Job> jobs;
  for (const std::int64_t experts : {1, 60, 96, 256, 1024}) {
    for (const Scoring scoring : {Scoring::softmax, Scoring::sigmoid}) {
      for (const LogitType type : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
        // Types differ in how a logit is read: each with every scoring, and with every number of experts
        // once.
        if (type != LogitType::fp32 && (experts % 10 == 6) != (scoring == Scoring::sigmoid)) continue;
        auto all = emit::emit_router_statistics({experts, std::min<std::int64_t>(experts, 8), type, scoring});
        REQUIRE(all.ok());
        for (emit::EmittedKernel& kernel : *all) {
          for (const char* arch : {"sm_80", "sm_90a"})
            jobs.push_back({{emit::to_string(kernel.stage), kernel, false, 1}, arch, {}});
        }
      }
    }
  }
  compile_jobs(jobs);
}

TEST_CASE("a router's gradient compiles for every method up to 1024 experts without spills") {
  std::vector<Job> jobs;
  std::set<std::string> seen;
  const auto add = [&](const RouterGradientSpec& spec, const std::string& what) {
    auto all = emit::emit_router_gradient(spec);
    REQUIRE_MESSAGE(all.ok(), (all.ok() ? std::string() : all.error().message()));
    for (emit::EmittedKernel& kernel : *all) {
      if (!seen.insert(kernel.entry_name).second) continue;
      const std::string text = std::string(emit::to_string(kernel.stage)) + ", " + what;
      jobs.push_back({{text, kernel, false, 1}, "sm_90a", {}});
      if (spec.router.num_experts == 60) jobs.push_back({{text, kernel, false, 1}, "sm_80", {}});
    }
  };
  std::uint32_t index = 0;
  for (const auto& method : test::router_methods()) {
    ++index;
    for (const std::int64_t experts : {8, 60, 1024}) {
      for (const LogitType type : {LogitType::fp32, LogitType::bf16}) {
        for (const std::uint32_t losses : {0u, 1u, 2u, 15u}) {
          // Fewer losses are less of the same code: each with every method, at one of the four sets of
          // others.
          const std::uint32_t place = (experts == 8 ? 0u : 1u) + (type == LogitType::fp32 ? 0u : 2u);
          if (losses != 15 && (experts == 60 || (index + losses) % 4 != place)) continue;
          RouterGradientSpec spec{test::router_of(method, experts, experts == 1024 ? 32 : 8, type), losses};
          spec.dlogit_type = type;
          add(spec, method.name + ", " + router_signature(spec.router));
        }
      }
    }
  }
  compile_jobs(jobs);
}

TEST_CASE("the gradient of a router's product compiles for every set of types without spills") {
  std::vector<Job> jobs;
  for (const std::int64_t experts : {8, 256, 1024}) {
    for (const std::int64_t hidden : {8, 7168}) {
      for (const DType input : {DType::bf16, DType::fp16}) {
        for (const LogitType weight : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
          // Every set of types with many columns; with few, every type and each of the experts once.
          const std::int64_t third = (experts / 128 + static_cast<int>(input)) % 3;
          if (hidden == 8 && third != static_cast<std::int64_t>(weight) % 3) continue;
          RouterGradientSpec spec{test::router_of(test::router_methods().at(1), experts, 8)};
          spec.router.hidden_size = hidden;
          spec.router.input_type = input;
          spec.router.weight_type = weight;
          spec.dweight_type = weight;
          auto all = emit::emit_router_gradient(spec);
          REQUIRE_MESSAGE(all.ok(), (all.ok() ? std::string() : all.error().message()));
          for (std::size_t i = 1; i < all->size(); ++i) {
            for (const char* arch : {"sm_80", "sm_90a"}) {
              if (input == DType::fp16 && std::string(arch) == "sm_80") continue;
              jobs.push_back(
                  {{std::string(emit::to_string((*all)[i].stage)) + ", " + router_signature(spec.router),
                    (*all)[i], false, 1},
                   arch,
                   {}});
            }
          }
        }
      }
    }
  }
  compile_jobs(jobs);
}

TEST_CASE("moe_align_block_size compiles up to 1024 experts") {
  std::vector<Job> jobs;
  for (const std::int64_t experts : {1, 60, 256, 1024}) {
    for (const emit::Stage stage :
         {emit::Stage::align_single, emit::Stage::align_count, emit::Stage::align_scatter}) {
      for (const char* arch : {"sm_80", "sm_90a", "sm_120"}) {
        jobs.push_back({must(emit::emit_align({experts, 128}, stage), emit::to_string(stage)), arch, {}});
      }
    }
  }
  compile_jobs(jobs);
}
