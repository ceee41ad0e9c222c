#include <doctest/doctest.h>

#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

TEST_CASE("list, stats and verify tell what is there") {
  TempDir dir;
  KernelBinary ptx = kernel_of(9);
  ptx.is_ptx = true;
  ptx.arch = "compute_90";
  REQUIRE(open_cache(dir / "layer").store(key_of(9), ptx).ok());
  CacheOptions options = cache_options(dir / "own");
  options.read_only_layers = {dir / "layer", dir / "absent"};
  options.max_bytes = 1 << 20;
  const CubinCache cache = CubinCache::open(options, Log());
  for (int i = 0; i < 5; ++i) REQUIRE(cache.store(key_of(i), kernel_of(i)).ok());
  REQUIRE(cache.store(key_of(0), kernel_of(0, kBuildB)).ok());

  const std::vector<EntryInfo> entries = cache.list();
  REQUIRE(entries.size() == 7);
  CHECK(std::is_sorted(entries.begin(), entries.end() - 1,
                       [](const EntryInfo& a, const EntryInfo& b) { return a.key < b.key; }));
  CHECK(entries.back().layer == dir / "layer");
  CHECK(entries.back().is_ptx);
  CHECK(entries.back().arch == "compute_90");
  CHECK(entries.back().entry_name == "kernel_9");
  CHECK(entries.front().layer.empty());
  CHECK(entries.front().image_bytes == 200);
  CHECK(std::filesystem::file_size(entries.front().path) == entries.front().file_bytes);

  const CacheStats stats = cache.stats();
  REQUIRE(stats.folders.size() == 3);
  CHECK(stats.folders[0].own);
  CHECK(stats.folders[0].entries == 6);
  CHECK(stats.folders[0].bytes > 6 * 200);
  CHECK(stats.folders[1].entries == 1);
  CHECK(!stats.folders[2].readable);
  CHECK(stats.folders[2].note.find(dir / "absent") != std::string::npos);
  CHECK(stats.max_bytes == 1 << 20);
  CHECK(stats.memory_entries == 6);
  CHECK(stats.counters.stores == 6);

  const VerifyReport report = cache.verify();
  CHECK(report.checked == 7);
  CHECK(report.good == 7);
  CHECK(report.bad.empty());
}

TEST_CASE("verify names every bad entry, and sets aside what is ours when asked") {
  TempDir dir;
  const CubinCache cache = open_cache(dir.path());
  for (int i = 0; i < 4; ++i) REQUIRE(cache.store(key_of(i), kernel_of(i)).ok());
  std::filesystem::resize_file(entry_path(dir.path(), 0), 50);
  const std::string other_shard = dir / (shard_name(key_of(1)) == "00" ? "cubin/01" : "cubin/00");
  std::filesystem::create_directories(other_shard);
  std::filesystem::rename(entry_path(dir.path(), 1), other_shard + "/" + entry_file_name(key_of(1), kBuildA));
  std::filesystem::rename(entry_path(dir.path(), 2), entry_path(dir.path(), 2, kBuildB));

  VerifyReport report = cache.verify();
  CHECK(report.checked == 4);
  CHECK(report.good == 1);
  REQUIRE(report.bad.size() == 3);
  for (const VerifyReport::Bad& bad : report.bad) {
    CHECK(std::filesystem::exists(bad.path));
    CHECK(!bad.reason.empty());
  }
  CHECK(cache.verify(true).bad.size() == 3);
  report = cache.verify();
  CHECK(report.checked == 1);
  CHECK(report.bad.empty());
  CHECK(cache.stats().folders.at(0).set_aside == 3);
}

TEST_CASE("extract writes the image alone") {
  TempDir dir;
  const CubinCache cache = open_cache(dir / "cache");
  REQUIRE(cache.store(key_of(1), kernel_of(1, kBuildA)).ok());
  REQUIRE(cache.store(key_of(1), kernel_of(1, kBuildB)).ok());
  spit(dir / "out.cubin", "what was there before, and longer than nothing");
  REQUIRE(cache.extract(key_of(1), dir / "out.cubin").ok());
  CHECK(slurp(dir / "out.cubin") == to_text(kernel_of(1, kBuildB).image));
  const Status absent = cache.extract(key_of(2), dir / "none.cubin");
  REQUIRE(!absent.ok());
  CHECK(absent.error().code() == ErrorCode::io_error);
  CHECK(absent.error().message().find(key_of(2).hex()) != std::string::npos);
  CHECK(!std::filesystem::exists(dir / "none.cubin"));
  CHECK(!cache.extract(key_of(1), dir / "absent/out.cubin").ok());
}

TEST_CASE("clear empties folder and memory, and says what it could not remove") {
  TempDir dir;
  FaultyFileSystem fs(unsynced());
  const CubinCache cache = open_cache(dir.path(), Log(), &fs);
  for (int i = 0; i < 5; ++i) REQUIRE(cache.store(key_of(i), kernel_of(i)).ok());
  fs.fail_op(Op::unlink, FaultyFileSystem::kAll, EACCES);
  const Result<GcReport> refused = cache.clear();
  REQUIRE(!refused.ok());
  CHECK(refused.error().message().find("5 of") != std::string::npos);
  CHECK(refused.error().message().find("EACCES") != std::string::npos);

  const CubinCache sound = open_cache(dir.path());
  const Result<GcReport> report = sound.clear();
  REQUIRE(report.ok());
  CHECK(report->entries_removed == 5);
  CHECK(sound.stats().folders.at(0).entries == 0);
  for (int i = 0; i < 5; ++i) CHECK(!sound.lookup(key_of(i), kArch, kBuildA));
  // And it works on.
  REQUIRE(sound.store(key_of(1), kernel_of(1)).ok());
  CHECK(on_disk(dir.path(), 1));
}
