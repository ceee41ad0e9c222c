#include "cubin/cache.hpp"

#include <doctest/doctest.h>

#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

TEST_CASE("a kernel is compiled once, then comes from memory, then from disk") {
  TempDir dir;
  FakeCompiler compiler;
  {
    const CubinCache cache = open_cache(dir.path());
    CHECK(cache.writable());
    CHECK(cache.root() == dir / "cubin");
    CHECK(!cache.lookup(key_of(1), kArch, kBuildA));
    const Result<Fetched> first = cache.fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA});
    REQUIRE(first.ok());
    CHECK(first->origin_text() == "compiled");
    CHECK(first->stored);
    const Result<Fetched> second = cache.fetch_or_build(key_of(1), kArch, no_build, {kBuildA});
    REQUIRE(second.ok());
    CHECK(second->origin_text() == "memory");
    CHECK(second->binary == first->binary);
    CHECK(cache.counters().builds == 1);
    CHECK(cache.counters().misses == 2);
    CHECK(cache.counters().memory_hits == 1);
    CHECK(cache.counters().stores == 1);
  }
  const CubinCache cache = open_cache(dir.path());
  const Result<Fetched> third = cache.fetch_or_build(key_of(1), kArch, no_build, {kBuildA});
  REQUIRE(third.ok());
  CHECK(third->origin_text() == "disk");
  CHECK(same_kernel(*third->binary, kernel_of(1)));
  CHECK(compiler.compiles == 1);
  CHECK(cache.counters().disk_hits == 1);
}

TEST_CASE("engines that open one folder share memory, by whatever path they name it") {
  TempDir dir;
  std::filesystem::create_directory(dir / "cache");
  std::filesystem::create_directory_symlink(dir / "cache", dir / "link");
  const CubinCache a = open_cache(dir / "cache");
  const CubinCache b = open_cache(dir / "link");
  REQUIRE(a.store(key_of(1), kernel_of(1)).ok());
  const std::optional<Fetched> hit = b.lookup(key_of(1), kArch, kBuildA);
  REQUIRE(hit);
  CHECK(hit->origin == Origin::memory);
  const CubinCache other = open_cache(dir / "other");
  CHECK(!other.lookup(key_of(1), kArch, kBuildA));
}

TEST_CASE("the compiler at hand is asked for only when the user's own cache has an entry to compare") {
  TempDir dir;
  int asked = 0;
  const AtHand at_hand([&]() -> std::optional<CompilerVersion> {
    ++asked;
    return kBuildA;
  });
  {
    const CubinCache cache = open_cache(dir / "own");
    CHECK(!cache.lookup(key_of(1), kArch, at_hand));
    CHECK(asked == 0);
    REQUIRE(cache.store(key_of(1), kernel_of(1)).ok());
  }
  {
    const CubinCache cache = open_cache(dir / "own");
    CHECK(cache.lookup(key_of(1), kArch, at_hand));
    CHECK(asked == 1);
  }
  // As a read-only layer the same folder answers without the question.
  CacheOptions options = cache_options(dir / "empty");
  options.read_only_layers = {dir / "own"};
  const CubinCache cache = CubinCache::open(options, Log());
  for (int i = 0; i < 3; ++i) CHECK(cache.lookup(key_of(1), kArch, at_hand));
  CHECK(asked == 1);
}

TEST_CASE("an entry of another build is made again in the user's own cache, and taken as it is elsewhere") {
  TempDir dir;
  FakeCompiler b(kBuildB);
  REQUIRE(open_cache(dir / "cache").store(key_of(1), kernel_of(1, kBuildA)).ok());

  SUBCASE("own cache, another build at hand: made again, and both stay") {
    const CubinCache cache = open_cache(dir / "cache");
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, b.build(1), {kBuildB});
    REQUIRE(fetched.ok());
    CHECK(fetched->origin == Origin::compiled);
    CHECK(cache.counters().other_builds >= 1);
    CHECK(on_disk(dir / "cache", 1, kBuildA));
    CHECK(on_disk(dir / "cache", 1, kBuildB));
  }
  SUBCASE("own cache, in memory already: the same rule") {
    const CubinCache cache = open_cache(dir / "cache");
    REQUIRE(cache.lookup(key_of(1), kArch, kBuildA));
    CHECK(!cache.lookup(key_of(1), kArch, kBuildB));
    REQUIRE(cache.fetch_or_build(key_of(1), kArch, b.build(1), {kBuildB}).ok());
    CHECK(cache.lookup(key_of(1), kArch, kBuildA)->binary->compiler == kBuildA);
    CHECK(cache.lookup(key_of(1), kArch, kBuildB)->binary->compiler == kBuildB);
    CHECK(cache.lookup(key_of(1), kArch, kBuildB)->origin == Origin::memory);
  }
  SUBCASE("own cache, no compiler at hand: taken, the newest first") {
    CHECK(open_cache(dir / "cache").lookup(key_of(1), kArch)->binary->compiler == kBuildA);
    REQUIRE(open_cache(dir / "cache").store(key_of(1), kernel_of(1, kBuildB)).ok());
    CHECK(open_cache(dir / "cache").lookup(key_of(1), kArch)->binary->compiler == kBuildB);
  }
  SUBCASE("the same folder read-only, or as a layer: taken") {
    CacheOptions options = cache_options(dir / "cache");
    options.mode = CacheMode::ro;
    const std::optional<Fetched> hit = CubinCache::open(options, Log()).lookup(key_of(1), kArch, kBuildB);
    REQUIRE(hit);
    CHECK(hit->origin == Origin::disk);
    options = cache_options(dir / "other");
    options.read_only_layers = {dir / "cache"};
    const Result<Fetched> layered =
        CubinCache::open(options, Log()).fetch_or_build(key_of(1), kArch, no_build, {kBuildB});
    REQUIRE(layered.ok());
    CHECK(layered->origin_text() == "readonly:" + dir / "cache");
  }
}

TEST_CASE("read-only layers: the first that has a kernel wins, and the user's own wins over all") {
  TempDir dir;
  const auto distinct = [](int i) {
    KernelBinary binary = kernel_of(1);
    binary.compile_ms = i;
    return binary;
  };
  REQUIRE(open_cache(dir / "one").store(key_of(1), distinct(1)).ok());
  REQUIRE(open_cache(dir / "two").store(key_of(1), distinct(2)).ok());
  REQUIRE(open_cache(dir / "two").store(key_of(2), kernel_of(2)).ok());
  CacheOptions options = cache_options(dir / "own");
  options.read_only_layers = {dir / "one", "", dir / "two"};
  {
    const CubinCache cache = CubinCache::open(options, Log());
    CHECK(cache.lookup(key_of(1), kArch, kBuildA)->binary->compile_ms == 1);
    CHECK(cache.lookup(key_of(2), kArch, kBuildA)->layer == dir / "two");
    CHECK(cache.counters().read_only_hits == 2);
  }
  REQUIRE(open_cache(dir / "own").store(key_of(1), distinct(3)).ok());
  CHECK(CubinCache::open(options, Log()).lookup(key_of(1), kArch, kBuildA)->binary->compile_ms == 3);
}

TEST_CASE("a layer that is not there is one warning and no more") {
  TempDir dir;
  CaptureLog log;
  CacheOptions options = cache_options(dir / "own");
  options.read_only_layers = {dir / "absent"};
  FakeCompiler compiler;
  const CubinCache cache = CubinCache::open(options, log);
  CHECK(cache.fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA}).ok());
  CHECK(log.count(LogLevel::warn) == 1);
  CHECK(log.contains(dir / "absent"));
  CHECK(!std::filesystem::exists(dir / "absent"));
}

TEST_CASE("mode ro writes nothing, mode off touches nothing") {
  TempDir dir;
  FakeCompiler compiler;
  CacheOptions options = cache_options(dir / "cache");
  options.mode = CacheMode::ro;
  {
    const CubinCache cache = CubinCache::open(options, Log());
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA});
    REQUIRE(fetched.ok());
    CHECK(!fetched->stored);
    CHECK(cache.store(key_of(2), kernel_of(2)).ok());
    CHECK(cache.lookup(key_of(2), kArch, kBuildA)->origin == Origin::memory);
    CHECK(!cache.writable());
    CHECK(!cache.gc(1).ran);
    CHECK(!cache.clear().ok());
  }
  CHECK(!std::filesystem::exists(dir / "cache"));

  REQUIRE(open_cache(dir / "cache").store(key_of(3), kernel_of(3)).ok());
  options.mode = CacheMode::off;
  FaultyFileSystem fs(unsynced());
  options.file_system = &fs;
  const CubinCache cache = CubinCache::open(options, Log());
  CHECK(cache.fetch_or_build(key_of(3), kArch, compiler.build(3), {kBuildA})->origin == Origin::compiled);
  CHECK(cache.fetch_or_build(key_of(3), kArch, no_build, {kBuildA})->origin == Origin::memory);
  CHECK(fs.calls() == 0);
  CHECK(!CubinCache::open(options, Log()).lookup(key_of(3), kArch, kBuildA));

  // Prebuilt layers were asked for by name: they serve without a folder of one's own, too.
  options.read_only_layers = {dir / "cache"};
  const CubinCache layered = CubinCache::open(options, Log());
  CHECK(layered.fetch_or_build(key_of(3), kArch, no_build, {kBuildA})->origin != Origin::compiled);
  CHECK(layered.fetch_or_build(key_of(4), kArch, compiler.build(4), {kBuildA})->origin == Origin::compiled);
  CHECK(!open_cache(dir / "cache").lookup(key_of(4), kArch, kBuildA));
}

TEST_CASE("without a folder the cache works in memory") {
  FakeCompiler compiler;
  CaptureLog log;
  const CubinCache cache = open_cache("", log);
  CHECK(!cache.writable());
  CHECK(cache.fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA})->origin == Origin::compiled);
  CHECK(cache.fetch_or_build(key_of(1), kArch, no_build, {kBuildA})->origin == Origin::memory);
  CHECK(cache.clear().ok());
  CHECK(!cache.lookup(key_of(1), kArch, kBuildA));
  CHECK(log.count(LogLevel::warn) == 0);
}

TEST_CASE("fault 28: a failed compile is returned and remembered nowhere") {
  TempDir dir;
  const CubinCache cache = open_cache(dir.path());
  const auto fail = [](ErrorCode code) {
    return [code]() -> Result<KernelBinary> { return Error(code, "line 1: error"); };
  };
  const Result<Fetched> failed = cache.fetch_or_build(key_of(1), kArch, fail(ErrorCode::compile_failed));
  REQUIRE(!failed.ok());
  CHECK(failed.error().code() == ErrorCode::compile_failed);
  CHECK(failed.error().message() == "line 1: error");
  CHECK(cache.fetch_or_build(key_of(1), kArch, fail(ErrorCode::no_compiler)).error().code() ==
        ErrorCode::no_compiler);

  const auto code_of = [&](const CubinCache::Build& build) {
    const Result<Fetched> result = cache.fetch_or_build(key_of(1), kArch, build);
    return result.ok() ? ErrorCode::ok : result.error().code();
  };
  CHECK(code_of([]() -> Result<KernelBinary> { throw std::runtime_error("oops"); }) == ErrorCode::internal);
  CHECK(code_of([]() -> Result<KernelBinary> { throw 1; }) == ErrorCode::internal);
  CHECK(code_of([]() -> Result<KernelBinary> { return KernelBinary(); }) == ErrorCode::internal);
  CHECK(code_of([]() -> Result<KernelBinary> {
          KernelBinary binary = kernel_of(1);
          binary.arch = "sm_80";
          return binary;
        }) == ErrorCode::internal);
  CHECK(cache.counters().failed_builds == 6);
  CHECK(cache.stats().folders.at(0).entries == 0);

  FakeCompiler compiler;
  CHECK(cache.fetch_or_build(key_of(1), kArch, compiler.build(1)).ok());
}

TEST_CASE("threads: one compile for a key, and a failure of one caller's own is not the others'") {
  TempDir dir;
  const CubinCache cache = open_cache(dir.path());
  SUBCASE("success") {
    std::atomic<int> compiles{0}, good{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 16; ++t) {
      threads.emplace_back([&] {
        const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, [&]() -> Result<KernelBinary> {
          ++compiles;
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          return kernel_of(1);
        });
        if (fetched.ok() && is_kernel(*fetched->binary, 1)) ++good;
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(compiles == 1);
    CHECK(good == 16);
  }
  SUBCASE("compile_failed is everybody's") {
    // All wait until the first compile is under way, so that they wait for it.
    std::atomic<int> compiles{0}, failed{0}, asking{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
      threads.emplace_back([&] {
        ++asking;
        const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, [&]() -> Result<KernelBinary> {
          ++compiles;
          while (asking < 8) std::this_thread::yield();
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          return Error(ErrorCode::compile_failed, "no");
        });
        if (!fetched.ok() && fetched.error().code() == ErrorCode::compile_failed) ++failed;
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(failed == 8);
    CHECK(compiles <= 8);
  }
  SUBCASE("no_compiler is the leader's own: the next one compiles") {
    std::atomic<bool> leading{false};
    std::thread leader([&] {
      const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, [&]() -> Result<KernelBinary> {
        leading = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        return Error(ErrorCode::no_compiler, "none here");
      });
      CHECK(!fetched.ok());
    });
    while (!leading) std::this_thread::yield();
    FakeCompiler compiler;
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, compiler.build(1));
    leader.join();
    REQUIRE(fetched.ok());
    CHECK(fetched->origin == Origin::compiled);
  }
  SUBCASE("a waiting thread can be cancelled, the leader goes on") {
    std::atomic<bool> leading{false}, let_go{false}, cancel{false};
    std::thread leader([&] {
      const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, [&]() -> Result<KernelBinary> {
        leading = true;
        while (!let_go) std::this_thread::yield();
        return kernel_of(1);
      });
      CHECK(fetched.ok());
    });
    while (!leading) std::this_thread::yield();
    std::thread canceller([&] { cancel = true; });
    FetchOptions options;
    options.cancel = &cancel;
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, no_build, options);
    let_go = true;
    canceller.join();
    leader.join();
    REQUIRE(!fetched.ok());
    CHECK(fetched.error().code() == ErrorCode::cancelled);
  }
}

TEST_CASE("memory is bounded by bytes, least recently used first out") {
  TempDir dir;
  CacheOptions options = cache_options("");
  options.max_memory_bytes = 1000;
  const CubinCache cache = CubinCache::open(options, Log());
  REQUIRE(cache.clear().ok());
  for (int i = 0; i < 5; ++i) REQUIRE(cache.store(key_of(i), kernel_of(i, kBuildA, 200)).ok());
  CHECK(cache.lookup(key_of(0), kArch));  // used: now younger than 1
  REQUIRE(cache.store(key_of(5), kernel_of(5, kBuildA, 200)).ok());
  CHECK(cache.lookup(key_of(0), kArch));
  CHECK(!cache.lookup(key_of(1), kArch));
  CHECK(cache.stats().memory_bytes == 1000);
  REQUIRE(cache.store(key_of(6), kernel_of(6, kBuildA, 5000)).ok());
  CHECK(cache.stats().memory_entries == 1);
  CHECK(cache.lookup(key_of(6), kArch));
}

TEST_CASE("fault 29: a kernel that the driver refused is made once more, past disk and layers") {
  TempDir dir;
  REQUIRE(open_cache(dir / "layer").store(key_of(1), kernel_of(1)).ok());
  REQUIRE(open_cache(dir / "own").store(key_of(1), kernel_of(1)).ok());
  CacheOptions options = cache_options(dir / "own");
  options.read_only_layers = {dir / "layer"};
  FakeCompiler compiler;
  {
    const CubinCache cache = CubinCache::open(options, Log());
    REQUIRE(cache.lookup(key_of(1), kArch, kBuildA));
    cache.reject(key_of(1));
    CHECK(!cache.lookup(key_of(1), kArch, kBuildA));
    CHECK(cache.stats().folders.at(0).set_aside == 1);
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA});
    REQUIRE(fetched.ok());
    CHECK(fetched->origin == Origin::compiled);
    CHECK(cache.lookup(key_of(1), kArch, kBuildA));
  }
  CHECK(on_disk(dir / "own", 1));
  CHECK(on_disk(dir / "layer", 1));
}

TEST_CASE("store refuses what is no kernel, and keeps nothing of it") {
  TempDir dir;
  const CubinCache cache = open_cache(dir.path());
  KernelBinary binary = kernel_of(1);
  binary.image.clear();
  const Status stored = cache.store(key_of(1), binary);
  REQUIRE(!stored.ok());
  CHECK(stored.error().code() == ErrorCode::invalid_argument);
  CHECK(!cache.lookup(key_of(1), kArch));
}
