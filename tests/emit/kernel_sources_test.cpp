#include "emit/kernel_sources.hpp"

#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "emit/blocks.hpp"
#include "emit/emit_case.hpp"
#include "emit/routing.hpp"
#include "emit/training.hpp"
#include "model/backward_layer.hpp"
#include "support/temp_dir.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

const std::string kFolder = std::string(VARMOE_SOURCE_DIR) + "/kernels_src";

/// Every *.cuh below a folder: name relative to it, text.
std::map<std::string, std::string> files_below(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().extension() != ".cuh") continue;
    files[std::filesystem::relative(entry.path(), folder).generic_string()] = slurp(entry.path());
  }
  return files;
}

std::string trimmed(const std::string& line) {
  const auto begin = line.find_first_not_of(" \t");
  return begin == std::string::npos ? "" : line.substr(begin);
}

/// Include directives that NVRTC obeys: __CUDACC__ and __CUDACC_RTC__ are defined. Conditions are the forms
/// that kernels_src/ uses; another one fails the test.
std::vector<std::string> active_includes(const std::string& text) {
  std::vector<std::string> includes;
  std::vector<bool> active = {true};
  std::istringstream lines(text);
  for (std::string raw; std::getline(lines, raw);) {
    const std::string line = trimmed(raw);
    if (line.empty() || line[0] != '#') continue;
    const std::string directive = trimmed(line.substr(1));
    if (directive.rfind("if", 0) == 0) {
      const bool known = directive == "if defined(__CUDACC_RTC__) || defined(__CUDACC__)" ||
                         directive == "if defined(__CUDACC__)" ||
                         directive == "if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900";
      if (!known) FAIL_CHECK("a condition this test does not know: " << line);
      active.push_back(active.back());
    } else if (directive == "else") {
      REQUIRE(active.size() > 1);
      active.back() = false;
    } else if (directive == "endif") {
      REQUIRE(active.size() > 1);
      active.pop_back();
    } else if (directive.rfind("include", 0) == 0) {
      if (active.back()) includes.push_back(trimmed(directive.substr(7)));
    } else {
      const bool harmless = directive.rfind("pragma ", 0) == 0 || directive.rfind("define ", 0) == 0;
      if (!harmless) FAIL_CHECK("a directive this test does not know: " << line);
    }
  }
  CHECK(active.size() == 1);
  return includes;
}

/// The headers that a text reaches among `files`.
std::set<std::string> reached(const std::string& text, const std::map<std::string, std::string>& files) {
  std::set<std::string> names;
  std::vector<std::string> open = {text};
  while (!open.empty()) {
    const std::string next = open.back();
    open.pop_back();
    for (const std::string& include : active_includes(next)) {
      // Only quoted names: NVRTC has no folder to find <…> in.
      REQUIRE_MESSAGE((include.size() > 2 && include.front() == '"' && include.back() == '"'), include);
      const std::string name = include.substr(1, include.size() - 2);
      REQUIRE_MESSAGE(files.count(name) == 1, name);
      if (names.insert(name).second) open.push_back(files.at(name));
    }
  }
  return names;
}

/// Back to the embedded texts at the end of a test.
struct EmbeddedAgain {
  ~EmbeddedAgain() { static_cast<void>(emit::use_kernels_dir("")); }
};

}  // namespace

TEST_CASE("a kernel carries the headers that it reaches and no others, as they are on disk") {
  const auto files = files_below(kFolder);
  std::set<std::string> used;
  std::vector<KernelRequest> requests;
  for (const Stage stage : kStages) {
    requests.push_back(request_of(stage));
    if (!is_gemm(stage)) continue;
    for (const Schedule schedule : kHopperSchedules) requests.push_back(wgmma_request(stage, schedule));
  }
  std::vector<EmittedKernel> kernels;
  for (KernelRequest request : requests) {
    for (const bool runtime : {false, true}) {
      request.runtime_width = runtime;
      kernels.push_back(must_emit(pruned_spec(), request));
    }
  }
  for (const Schedule schedule : {Schedule::mma_sync, Schedule::wgmma_pingpong}) {
    KernelRequest request =
        schedule == Schedule::mma_sync ? request_of(Stage::fc1) : wgmma_request(Stage::fc1, schedule);
    request.backward = emit::activation_backward(pruned_spec());
    kernels.push_back(must_emit(model::backward_layer(pruned_spec()), request));
  }
  KernelRequest whole_layer;
  whole_layer.stage = Stage::whole_layer;
  whole_layer.one_launch.max_tokens = 8;
  kernels.push_back(must_emit(pruned_spec(), whole_layer));
  RouterSpec router;
  router.num_experts = 8;
  router.top_k = 2;
  router.hidden_size = 64;
  const auto of_router = emit::emit_router_kernels(router).value();
  kernels.insert(kernels.end(), of_router.begin(), of_router.end());
  const auto of_statistics = emit::emit_router_statistics({8, 2}).value();
  kernels.insert(kernels.end(), of_statistics.begin(), of_statistics.end());
  const auto of_gradient = emit::emit_router_gradient({router, loss_bit(RouterLoss::load_balance)}).value();
  kernels.insert(kernels.end(), of_gradient.begin(), of_gradient.end());
  kernels.push_back(emit::emit_align({8, 128}, Stage::align_single).value());
  for (const Stage stage :
       {Stage::block_schedule, Stage::block_gather, Stage::block_slot_rows, Stage::combine_gradient,
        Stage::activation_gradient, Stage::row_weight_gradient, Stage::weigh_rows})
    kernels.push_back(emit::emit_block(pruned_spec(), stage, 256).value());
  for (const Stage stage : {Stage::topk_weight_gradient, Stage::gradient_schedule, Stage::fc1_gradient,
                            Stage::fc1_bias_gradient, Stage::shared_gate_gradient}) {
    emit::GradientRequest request;
    request.stage = stage;
    for (const Schedule schedule : {Schedule::mma_sync, Schedule::wgmma}) {
      request.config.schedule = schedule;
      kernels.push_back(emit::emit_gradient(pruned_spec(), request).value());
    }
  }
  for (const EmittedKernel& kernel : kernels) {
    CAPTURE(kernel.entry_name);
    std::set<std::string> names;
    std::string before;
    for (const SourceHeader& header : kernel.headers) {
      CAPTURE(header.name);
      CHECK(before < header.name);  // sorted, none twice
      before = header.name;
      CHECK(names.insert(header.name).second);
      REQUIRE(files.count(header.name) == 1);
      CHECK(header.text == files.at(header.name));
    }
    CHECK(names == reached(kernel.text, files));
    used.merge(names);
  }
  // No file of kernels_src/ lies idle.
  for (const auto& [name, text] : files) CHECK_MESSAGE(used.count(name) == 1, name);
}

TEST_CASE("a kernel that needs little carries little") {
  const auto has = [](Stage stage, const std::string& name) {
    const auto kernel = must_emit(pruned_spec(), stage);
    return std::any_of(kernel.headers.begin(), kernel.headers.end(),
                       [&](const SourceHeader& h) { return h.name == name; });
  };
  CHECK(has(Stage::fc1, "epilogue/activation.cuh"));
  CHECK_FALSE(has(Stage::fc2, "epilogue/activation.cuh"));
  CHECK_FALSE(has(Stage::sort_single, "moe/fc1.cuh"));
  CHECK_FALSE(has(Stage::combine, "moe/sort.cuh"));
  CHECK_FALSE(has(Stage::fc1, "ptx/wgmma.cuh"));
  for (const Stage stage : kStages) CHECK(has(stage, "abi.cuh"));
}

TEST_CASE("the embedded texts equal the folder's, byte for byte") {
  const EmbeddedAgain again;
  std::vector<EmittedKernel> embedded;
  for (const Stage stage : kStages) embedded.push_back(must_emit(pruned_spec(), stage));
  REQUIRE(emit::use_kernels_dir(kFolder).ok());
  for (const EmittedKernel& kernel : embedded)
    CHECK(same_kernel(kernel, must_emit(pruned_spec(), kernel.stage)));
}

TEST_CASE("use_kernels_dir reads the folder's files; an empty path returns to the embedded ones") {
  const EmbeddedAgain again;
  const EmittedKernel embedded = must_emit(pruned_spec(), Stage::combine);
  const TempDir dir;
  std::filesystem::copy(kFolder, dir / "kernels", std::filesystem::copy_options::recursive);
  const std::string edited = dir / "kernels/moe/combine.cuh";
  spit(edited, slurp(edited) + "// edited\n");
  spit(dir / "kernels/notes.txt", "no kernel source");
  REQUIRE(emit::use_kernels_dir(dir / "kernels").ok());
  const EmittedKernel from_disk = must_emit(pruned_spec(), Stage::combine);
  // The text is made of the spec alone; what changed travels as a header.
  CHECK(from_disk.text == embedded.text);
  CHECK_FALSE(same_kernel(from_disk, embedded));
  for (const SourceHeader& header : from_disk.headers) {
    const bool ends = header.text.size() > 10 && header.text.substr(header.text.size() - 10) == "// edited\n";
    CHECK(ends == (header.name == "moe/combine.cuh"));
  }
  // Kernels that do not reach it stay as they are.
  const EmittedKernel gather_from_disk = must_emit(pruned_spec(), Stage::gather);
  REQUIRE(emit::use_kernels_dir("").ok());
  CHECK(same_kernel(gather_from_disk, must_emit(pruned_spec(), Stage::gather)));
  CHECK(same_kernel(must_emit(pruned_spec(), Stage::combine), embedded));
}

TEST_CASE("a folder that is missing, a file or without kernel sources is an io_error and changes nothing") {
  const EmbeddedAgain again;
  const TempDir dir;
  const EmittedKernel before = must_emit(pruned_spec(), Stage::sort_single);
  std::filesystem::create_directory(dir / "empty");
  spit(dir / "file", "text");
  for (const char* name : {"missing", "empty", "file"}) {
    const Status status = emit::use_kernels_dir(dir / name);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == ErrorCode::io_error);
    CHECK(contains(status.error().message(), "VARMOE_KERNELS_DIR"));
    CHECK(contains(status.error().message(), dir / name));
    CHECK(same_kernel(must_emit(pruned_spec(), Stage::sort_single), before));
  }
}

TEST_CASE("a folder that lacks an included file fails the kernels that reach it, with its name") {
  const EmbeddedAgain again;
  const TempDir dir;
  std::filesystem::copy(kFolder, dir / "kernels", std::filesystem::copy_options::recursive);
  std::filesystem::remove(dir / "kernels/tile/swizzle.cuh");
  REQUIRE(emit::use_kernels_dir(dir / "kernels").ok());
  const auto kernel = emit::emit_kernel(pruned_spec(), request_of(Stage::fc1));
  REQUIRE_FALSE(kernel.ok());
  CHECK(contains(kernel.error().message(), "tile/swizzle.cuh"));
  CHECK(emit::emit_kernel(pruned_spec(), request_of(Stage::combine)).ok());
}
