#include "engine/kernel_builder.hpp"

#include <atomic>
#include <filesystem>
#include <mutex>
#include <thread>

#include "base/file_system.hpp"
#include "engine/kernel_plan.hpp"
#include "engine/layer_build.hpp"
#include "engine_fixture.hpp"
#include "support/fake_cubin.hpp"

using namespace varmoe;

namespace {

/// A compiler that makes fake cubins, counts, and fails on request.
class CountingCompiler : public compile::Compiler {
 public:
  Result<KernelBinary> compile(const compile::CompileRequest& request) override {
    ++compiles;
    {
      const std::lock_guard lock(mutex);
      requests.push_back(request);
    }
    if (fail) return Error(ErrorCode::compile_failed, "error: made to fail");
    KernelBinary binary;
    test::FakeCubin cubin;
    cubin.kernels.push_back({.entry = request.entry_name, .parameter_bytes = {}});
    cubin.code = request.text + request.arch;
    binary.image = test::make_fake_cubin(cubin);
    binary.is_ptx = request.arch.rfind("compute_", 0) == 0;
    binary.arch = request.arch;
    binary.entry_name = request.entry_name;
    binary.compiler = version_;
    binary.resources.registers = 77;
    binary.compile_ms = 5;
    binary.log = "ptxas info";
    return binary;
  }
  CompilerVersion version() const override { return version_; }
  std::string description() const override { return "a compiler for tests"; }
  std::vector<int> architectures() const override { return {80, 90, 100, 120}; }

  CompilerVersion version_{13, 0, 88};
  std::atomic<int> compiles{0};
  std::atomic<bool> fail{false};
  std::mutex mutex;
  std::vector<compile::CompileRequest> requests;
};

struct Bench {
  explicit Bench(const std::string& dir) {
    cubin::CacheOptions cache;
    cache.dir = dir;
    settings.cache = std::make_shared<cubin::CubinCache>(cubin::CubinCache::open(cache, log));
    engine::CompilerFinder finder;
    finder.load = [this]() -> Result<std::shared_ptr<compile::Compiler>> {
      ++loads;
      if (missing) return Error(ErrorCode::no_compiler, "NVRTC was not found");
      return std::shared_ptr<compile::Compiler>(compiler);
    };
    finder.search_text = [] { return std::string("the only search"); };
    finder.library_path = [] { return std::string("/proc/self/exe"); };
    settings.compiler = std::make_shared<engine::CompilerSource>(
        finder, cubin::CompilerStamps(posix_file_system(), dir), log);
    settings.arch = "sm_90a";
    settings.threads = 4;
    settings.log = log;
  }
  engine::KernelBuilder& builder() {
    if (!builder_) builder_ = std::make_unique<engine::KernelBuilder>(settings);
    return *builder_;
  }
  std::vector<engine::BuiltKernel> build(const LayerSpec& spec, const engine::BuildHooks& hooks = {}) {
    auto profile = model::find_profile("h200");
    REQUIRE(profile.ok());
    auto chooser = engine::ConfigChooser::create(*profile, {});
    REQUIRE(chooser.ok());
    const std::int64_t buckets[] = {64};
    auto plan = engine::plan_kernels(spec, buckets, *chooser, false);
    REQUIRE(plan.ok());
    auto built = builder().build(spec, plan->requests, hooks);
    REQUIRE(built.ok());
    return *std::move(built);
  }

  Log log;
  std::shared_ptr<CountingCompiler> compiler = std::make_shared<CountingCompiler>();
  std::atomic<int> loads{0};
  std::atomic<bool> missing{false};
  engine::BuilderSettings settings;

 private:
  std::unique_ptr<engine::KernelBuilder> builder_;
};

std::size_t failures(const std::vector<engine::BuiltKernel>& kernels) {
  std::size_t n = 0;
  for (const auto& kernel : kernels) n += kernel.error ? 1 : 0;
  return n;
}

}  // namespace

TEST_CASE("a build compiles each kernel once; the next one finds all of them without loading a compiler") {
  test::TempDir dir;
  {
    Bench bench(dir.path());
    const auto kernels = bench.build(test::small_spec());
    REQUIRE(failures(kernels) == 0);
    CHECK(bench.compiler->compiles == static_cast<int>(kernels.size()));
    CHECK(bench.loads == 1);
    for (const auto& kernel : kernels) {
      CHECK_FALSE(kernel.report.hit);
      CHECK(kernel.report.origin == "compiled");
      CHECK(kernel.report.registers == 77);
      CHECK(kernel.report.compile_ms == 5);
      CHECK(kernel.report.key.size() == 32);
      CHECK(kernel.report.name == kernel.binary->entry_name);
    }
  }
  // Another cache object in the same process shares the memory layer, so what is asked here is "not
  // compiled".
  Bench bench(dir.path());
  const auto kernels = bench.build(test::small_spec());
  REQUIRE(failures(kernels) == 0);
  CHECK(bench.loads == 0);
  CHECK(bench.compiler->compiles == 0);
  for (const auto& kernel : kernels) CHECK(kernel.report.hit);
}

TEST_CASE("layers with one class set share every kernel, however their experts are arranged") {
  test::TempDir dir;
  Bench bench(dir.path());
  const auto first = bench.build(test::pruned_spec(0));
  const int compiles = bench.compiler->compiles;
  const auto second = bench.build(test::pruned_spec(1));
  CHECK(bench.compiler->compiles == compiles);
  REQUIRE(first.size() == second.size());
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].report.key == second[i].report.key);
}

TEST_CASE("fault 28: a failed compile is an error with the log, and is tried anew the next time") {
  test::TempDir dir;
  Bench bench(dir.path());
  bench.compiler->fail = true;
  auto kernels = bench.build(test::small_spec());
  CHECK(failures(kernels) == kernels.size());
  CHECK(kernels[0].error->code() == ErrorCode::compile_failed);
  CHECK(kernels[0].report.error.find("made to fail") != std::string::npos);
  bench.compiler->fail = false;
  kernels = bench.build(test::small_spec());
  CHECK(failures(kernels) == 0);
}

TEST_CASE("fault 28: no NVRTC is one search a build, and is looked for again by the next") {
  test::TempDir dir;
  Bench bench(dir.path());
  bench.missing = true;
  auto kernels = bench.build(test::small_spec());
  CHECK(failures(kernels) == kernels.size());
  CHECK(kernels[0].error->code() == ErrorCode::no_compiler);
  CHECK(bench.loads == 1);
  bench.missing = false;
  kernels = bench.build(test::small_spec());
  CHECK(failures(kernels) == 0);
}

TEST_CASE("cached_only compiles nothing and takes what is cached, of whatever build") {
  test::TempDir dir;
  {
    Bench bench(dir.path());
    bench.settings.jit = JitMode::cached_only;
    const auto kernels = bench.build(test::small_spec());
    CHECK(failures(kernels) == kernels.size());
    CHECK(kernels[0].error->code() == ErrorCode::not_prepared);
    CHECK(kernels[0].error->message().find("cached_only") != std::string::npos);
    CHECK(bench.loads == 0);
  }
  {
    Bench bench(dir.path());
    bench.compiler->version_ = {12, 4, 1};
    CHECK(failures(bench.build(test::small_spec())) == 0);
  }
  Bench bench(dir.path());
  bench.settings.jit = JitMode::cached_only;
  CHECK(failures(bench.build(test::small_spec())) == 0);
  CHECK(bench.loads == 0);
}

TEST_CASE("a cancelled build leaves what is done and says cancelled of the rest") {
  test::TempDir dir;
  Bench bench(dir.path());
  bench.settings.threads = 1;
  std::atomic<bool> cancel{false};
  engine::BuildHooks hooks;
  hooks.cancel = &cancel;
  hooks.progress = [&](std::size_t done, std::size_t) { cancel = done >= 2; };
  const auto kernels = bench.build(test::small_spec(), hooks);
  CHECK(failures(kernels) == kernels.size() - 2);
  std::size_t cancelled = 0;
  for (const auto& kernel : kernels)
    cancelled += kernel.error && kernel.error->code() == ErrorCode::cancelled;
  CHECK(cancelled == kernels.size() - 2);
  CHECK(bench.compiler->compiles == 2);
}

TEST_CASE("progress counts every kernel once, one call at a time") {
  test::TempDir dir;
  Bench bench(dir.path());
  std::vector<std::size_t> seen;
  std::size_t all = 0;
  engine::BuildHooks hooks;
  hooks.progress = [&](std::size_t done, std::size_t total) { seen.push_back(done), all = total; };
  const auto kernels = bench.build(test::small_spec(), hooks);
  REQUIRE(seen.size() == kernels.size());
  CHECK(all == kernels.size());
  for (std::size_t i = 0; i < seen.size(); ++i) CHECK(seen[i] == i + 1);
}

TEST_CASE("an exception from a hook becomes the kernel's error") {
  test::TempDir dir;
  Bench bench(dir.path());
  engine::BuildHooks hooks;
  hooks.finish = [](engine::BuiltKernel&) -> Status { throw std::runtime_error("from the hook"); };
  const auto kernels = bench.build(test::small_spec(), hooks);
  CHECK(failures(kernels) == kernels.size());
  CHECK(kernels[0].error->code() == ErrorCode::internal);
}

TEST_CASE("a GPU newer than the compiler gets PTX of the newest architecture it knows") {
  test::TempDir dir;
  Bench bench(dir.path());
  bench.settings.arch = "sm_130";
  auto kernels = bench.build(test::small_spec());
  REQUIRE(failures(kernels) == 0);
  CHECK(kernels[0].binary->is_ptx);
  CHECK(bench.compiler->requests[0].arch == "compute_120");
  // Found again without asking a compiler which architectures it knows.
  Bench again(dir.path());
  again.settings.arch = "sm_130";
  kernels = again.build(test::small_spec());
  CHECK(failures(kernels) == 0);
  CHECK(again.loads == 0);
}

TEST_CASE("line info and architecture are part of the key") {
  test::TempDir dir;
  Bench plain(dir.path()), lines(dir.path()), other(dir.path());
  lines.settings.line_info = true;
  other.settings.arch = "sm_80";
  const auto a = plain.build(test::small_spec()), b = lines.build(test::small_spec()),
             c = other.build(test::small_spec());
  CHECK(a[0].report.key != b[0].report.key);
  CHECK(a[0].report.key != c[0].report.key);
  CHECK(lines.compiler->requests[0].line_info);
  CHECK_FALSE(plain.compiler->requests[0].line_info);
}

TEST_CASE("fault 05: threads and builders on one folder compile each kernel once") {
  test::TempDir dir;
  Bench a(dir.path()), b(dir.path());
  b.compiler = a.compiler;
  static_cast<void>(a.builder());
  static_cast<void>(b.builder());
  std::atomic<int> bad{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i)
    threads.emplace_back([&, i] {
      auto profile = model::find_profile("h200");
      auto chooser = engine::ConfigChooser::create(*profile, {});
      const std::int64_t buckets[] = {64};
      auto plan = engine::plan_kernels(test::small_spec(), buckets, *chooser, false);
      auto built = (i % 2 ? a : b).builder().build(test::small_spec(), plan->requests);
      if (!built.ok() || failures(*built) != 0) ++bad;
    });
  for (auto& thread : threads) thread.join();
  CHECK(bad == 0);
  CHECK(a.compiler->compiles == static_cast<int>(a.build(test::small_spec()).size()));
}

TEST_CASE("VARMOE_DUMP_DIR gets source, headers, cubin and resource use of each kernel, hits included") {
  test::TempDir dir, dump;
  Bench first(dir.path());
  first.build(test::small_spec());
  Bench bench(dir.path());
  bench.settings.dump_dir = dump / "kernels";
  const auto kernels = bench.build(test::small_spec());
  REQUIRE(failures(kernels) == 0);
  for (const auto& kernel : kernels) {
    const std::string base = dump / ("kernels/" + kernel.report.name);
    CHECK(test::slurp(base + ".cu") == kernel.unit->emitted.text);
    CHECK(test::slurp(base + ".cubin").size() == kernel.binary->image.size());
    const std::string text = test::slurp(base + ".txt");
    CHECK_MESSAGE(text.find("registers: 77") != std::string::npos, text);
    CHECK(text.find("ptxas info") != std::string::npos);
    for (const auto& header : kernel.unit->emitted.headers)
      CHECK(test::slurp(dump / ("kernels/include/" + header.name)) == header.text);
  }
}

TEST_CASE("a dump folder that cannot be written costs one warning and no kernel") {
  test::TempDir dir;
  test::spit(dir / "file", "in the way");
  test::CaptureLog log;
  Bench bench(dir.path());
  bench.settings.log = log;
  bench.settings.dump_dir = dir / "file/dump";
  CHECK(failures(bench.build(test::small_spec())) == 0);
  CHECK(log.count(LogLevel::warn) == 1);
  CHECK(log.contains("VARMOE_DUMP_DIR"));
}

TEST_CASE("compile_layer reports each kernel once, with the buckets that use it") {
  test::TempDir dir;
  Bench bench(dir.path());
  auto profile = model::find_profile("h200");
  auto chooser = engine::ConfigChooser::create(*profile, {});
  PrepareOptions options;
  options.tokens = {1, 64, 4096};
  auto report = engine::compile_layer(test::small_spec(), options, *chooser, bench.builder());
  REQUIRE(report.ok());
  std::vector<std::string> keys;
  std::vector<std::int64_t> fc1_buckets;
  for (const auto& kernel : report->kernels) {
    CHECK(std::find(keys.begin(), keys.end(), kernel.key) == keys.end());
    keys.push_back(kernel.key);
    CHECK_FALSE(kernel.token_buckets.empty());
    CHECK(std::is_sorted(kernel.token_buckets.begin(), kernel.token_buckets.end()));
    if (kernel.stage == "fc1")
      fc1_buckets.insert(fc1_buckets.end(), kernel.token_buckets.begin(), kernel.token_buckets.end());
  }
  std::sort(fc1_buckets.begin(), fc1_buckets.end());
  CHECK(fc1_buckets == std::vector<std::int64_t>{1, 64, 4096});
  CHECK(bench.compiler->compiles == static_cast<int>(keys.size()));

  auto general = engine::compile_layer(test::small_spec(), options, *chooser, bench.builder(), true);
  REQUIRE(general.ok());
  CHECK(std::any_of(general->kernels.begin(), general->kernels.end(),
                    [](const auto& k) { return k.runtime_width; }));
}

TEST_CASE("more than kMaxWidthClasses widths take the runtime-width kernels") {
  LayerSpec spec = uniform_spec(128, kMaxWidthClasses + 1, 64, 2);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 8 * static_cast<std::int64_t>(e + 1);
  CHECK(engine::needs_runtime_width(spec));
  CHECK_FALSE(engine::needs_runtime_width(test::pruned_spec()));
  test::TempDir dir;
  Bench bench(dir.path());
  auto profile = model::find_profile("h200");
  auto chooser = engine::ConfigChooser::create(*profile, {});
  PrepareOptions options;
  options.tokens = {64};
  auto report = engine::compile_layer(spec, options, *chooser, bench.builder());
  REQUIRE(report.ok());
  for (const auto& kernel : report->kernels) {
    CHECK_MESSAGE(kernel.error.empty(), kernel.error);
    if (kernel.stage == "fc1" || kernel.stage == "fc2") CHECK(kernel.runtime_width);
  }
}

TEST_CASE("token counts of a prepare are checked and rounded up to buckets") {
  PrepareOptions options;
  options.tokens = {1, 3, 4, 100, 64, 65};
  CHECK(*engine::buckets_to_prepare(options) == std::vector<std::int64_t>{1, 4, 64, 128});
  options.tokens = {0};
  CHECK(engine::buckets_to_prepare(options).error().code() == ErrorCode::invalid_argument);
  options.tokens.clear();
  options.min_tokens = 3;
  options.max_tokens = 9;
  CHECK(*engine::buckets_to_prepare(options) == std::vector<std::int64_t>{4, 8, 16});
  options.max_tokens = 2;
  CHECK(engine::buckets_to_prepare(options).error().message().find("min_tokens = 3") != std::string::npos);
}
