#include <doctest/doctest.h>
#include <sys/stat.h>

#include "cubin/compiler_stamps.hpp"
#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"
#include "support/processes.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

TEST_CASE("fault 35: two versions on one cache, in turn, compile each kernel once each and never again") {
  constexpr int kKeys = 10;
  TempDir dir;
  FakeCompiler a(kBuildA), b(kBuildB);
  for (int turn = 0; turn < 10; ++turn) {
    const bool is_a = turn % 2 == 0;
    FakeCompiler& compiler = is_a ? a : b;
    const CompilerVersion at_hand = is_a ? kBuildA : kBuildB;
    const CubinCache cache = open_cache(dir.path());
    for (int i = 0; i < kKeys; ++i) {
      const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {at_hand});
      REQUIRE(fetched.ok());
      CHECK(fetched->binary->compiler == at_hand);
    }
  }
  CHECK(a.compiles == kKeys);
  CHECK(b.compiles == kKeys);
}

TEST_CASE("fault 35: two engines of one process with different compilers share a folder without ping-pong") {
  TempDir dir;
  FakeCompiler a(kBuildA), b(kBuildB);
  const CubinCache first = open_cache(dir.path()), second = open_cache(dir.path());
  for (int turn = 0; turn < 5; ++turn) {
    CHECK(first.fetch_or_build(key_of(1), kArch, a.build(1), {kBuildA})->binary->compiler == kBuildA);
    CHECK(second.fetch_or_build(key_of(1), kArch, b.build(1), {kBuildB})->binary->compiler == kBuildB);
  }
  CHECK(a.compiles == 1);
  CHECK(b.compiles == 1);
}

TEST_CASE("fault 36: a copied cache has every kernel, for another path and user, as cache or layer") {
  constexpr int kKeys = 20;
  TempDir dir;
  {
    const CubinCache cache = open_cache(dir / "first");
    for (int i = 0; i < kKeys; ++i) REQUIRE(cache.store(key_of(i), kernel_of(i)).ok());
  }
  std::filesystem::create_directories(dir / "another/place");
  std::filesystem::copy(dir / "first", dir / "another/place", std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(dir / "first");

  const auto all_hit = [&](const CacheOptions& options, const AtHand& at_hand) {
    CaptureLog log(LogLevel::warn);
    const CubinCache cache = CubinCache::open(options, log);
    int hits = 0;
    for (int i = 0; i < kKeys; ++i) {
      const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch, no_build, {at_hand});
      if (fetched.ok() && same_kernel(*fetched->binary, kernel_of(i)) && fetched->origin != Origin::memory)
        ++hits;
    }
    return hits == kKeys && log.lines().empty();
  };
  CacheOptions as_cache = cache_options(dir / "another/place");
  CHECK(all_hit(as_cache, kBuildA));
  CHECK(all_hit(as_cache, std::nullopt));
  as_cache.mode = CacheMode::ro;
  CHECK(all_hit(as_cache, kBuildB));
  CacheOptions as_layer = cache_options(dir / "own");
  as_layer.read_only_layers = {dir / "another/place"};
  CHECK(all_hit(as_layer, kBuildB));
  // Never asked: with a full layer no compiler need be found at all.
  CHECK(
      all_hit(as_layer, AtHand([]() -> std::optional<CompilerVersion> { throw std::logic_error("asked"); })));

  // Owned by root, mounted read-only, used by somebody else: what a container image looks like.
  if (::geteuid() != 0) {
    MESSAGE("not run: only root can become another user");
    return;
  }
  REQUIRE(::chmod(dir.path().c_str(), 0755) == 0);
  REQUIRE(::chmod((dir / "another").c_str(), 0555) == 0);
  for (const auto& item : std::filesystem::recursive_directory_iterator(dir / "another")) {
    REQUIRE(::chmod(item.path().c_str(), item.is_directory() ? 0555 : 0444) == 0);
  }
  const ChildStatus child = run_child([&] {
    if (::setegid(65534) != 0 || ::seteuid(65534) != 0) return 3;
    CacheOptions layered = cache_options("");
    layered.read_only_layers = {dir / "another/place"};
    if (!all_hit(layered, kBuildB)) return 1;
    // As the cache folder too, which resolve_cache_dir then calls read-only.
    CacheOptions own = cache_options(dir / "another/place");
    own.mode = CacheMode::ro;
    return all_hit(own, kBuildB) ? 0 : 2;
  });
  CHECK(child.exit_code() == 0);
}

TEST_CASE("fault 36: a layer of deduplicated files (hard links) serves") {
  TempDir dir;
  REQUIRE(open_cache(dir / "layer").store(key_of(1), kernel_of(1)).ok());
  std::filesystem::create_hard_link(entry_path(dir / "layer", 1), dir / "elsewhere");
  CacheOptions options = cache_options("");
  options.read_only_layers = {dir / "layer"};
  CHECK(CubinCache::open(options, Log()).lookup(key_of(1), kArch, kBuildA));
}

TEST_CASE("with a full cache no compiler is loaded: its version is remembered") {
  TempDir dir;
  const std::string library = dir / "libnvrtc.so.13";
  spit(library, "an ELF, supposedly");
  const std::string place = dir / "cache";
  int loads = 0;
  // As an engine does it: the stamp first, the library where the stamp knows nothing.
  const auto at_hand_of = [&](CompilerVersion real) {
    return AtHand([&, real]() -> std::optional<CompilerVersion> {
      CompilerStamps stamps(posix_file_system(), place);
      if (const std::optional<CompilerVersion> known = stamps.recall("search")) return known;
      ++loads;
      static_cast<void>(stamps.remember("search", library, real));
      return real;
    });
  };
  FakeCompiler a(kBuildA), b(kBuildB);
  CHECK(open_cache(place).fetch_or_build(key_of(1), kArch, a.build(1), {at_hand_of(kBuildA)}).ok());
  REQUIRE(CompilerStamps(posix_file_system(), place).remember("search", library, kBuildA).ok());
  CHECK(open_cache(place).fetch_or_build(key_of(1), kArch, a.build(1), {at_hand_of(kBuildA)})->origin ==
        Origin::disk);
  CHECK(loads == 0);
  // The library is upgraded in place: loaded once to learn so, and the kernel made again.
  spit(library, "an ELF, supposedly, of another build");
  CHECK(open_cache(place).fetch_or_build(key_of(1), kArch, b.build(1), {at_hand_of(kBuildB)})->origin ==
        Origin::compiled);
  CHECK(open_cache(place).fetch_or_build(key_of(1), kArch, b.build(1), {at_hand_of(kBuildB)})->origin ==
        Origin::disk);
  CHECK(loads == 1);
  CHECK(a.compiles == 1);
  CHECK(b.compiles == 1);
}
