#include "varmoe/kernel_config.hpp"

#include <doctest/doctest.h>

#include <string>
#include <utility>

using namespace varmoe;

namespace {
bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}
}  // namespace

TEST_CASE("a config's text has every key in order and reads back") {
  GemmConfig config;
  CHECK(to_string(config) ==
        "schedule=mma_sync,block_m=128,block_n=128,block_k=64,stages=3,warps_m=2,warps_n=2,ctas_per_sm=1,"
        "raster=8,row_step=16,cluster=1,gather=fused");
  for (const Schedule schedule : {Schedule::mma_sync, Schedule::wgmma, Schedule::wgmma_pingpong}) {
    for (const auto& [row_step, cluster] : {std::pair{8, 2}, std::pair{16, 1}, std::pair{32, 2}}) {
      config = {.schedule = schedule,
                .block_m = 64,
                .block_n = 176,
                .block_k = 32,
                .stages = 5,
                .warps_m = 4,
                .warps_n = 1,
                .ctas_per_sm = 3,
                .raster = 16,
                .row_step = row_step,
                .cluster = cluster,
                .gather = GatherMode::copy};
      CAPTURE(to_string(config));
      auto overrides = parse_gemm_overrides(to_string(config));
      REQUIRE(overrides);
      REQUIRE(overrides->size() == 1);
      CHECK((*overrides)[0].apply(GemmConfig{}) == config);
    }
  }
}

TEST_CASE("schedules have names of their own") {
  CHECK(to_string(Schedule::mma_sync) == std::string("mma_sync"));
  CHECK(to_string(Schedule::wgmma) == std::string("wgmma"));
  CHECK(to_string(Schedule::wgmma_pingpong) == std::string("wgmma_pingpong"));
  CHECK(to_string(static_cast<Schedule>(9)) == std::string("invalid"));
  GemmConfig config;
  config.schedule = Schedule::wgmma_pingpong;
  CHECK(contains(to_string(config), "schedule=wgmma_pingpong,block_m="));
}

TEST_CASE("an override that turns to the portable schedule leaves the cluster behind, unless it names one") {
  GemmConfig base;
  base.schedule = Schedule::wgmma;
  base.cluster = 2;
  const auto applied = [&](const char* text) {
    auto overrides = parse_gemm_overrides(text);
    REQUIRE(overrides);
    return (*overrides)[0].apply(base).cluster;
  };
  CHECK(applied("schedule=mma_sync,block_m=64") == 1);
  CHECK(applied("cluster=2,schedule=mma_sync") == 2);
  CHECK(applied("schedule=wgmma_pingpong") == 2);
  CHECK(applied("block_m=64") == 2);
}

TEST_CASE("an override replaces the keys it names, in its token range") {
  auto overrides = parse_gemm_overrides(
      " block_m=64 , tokens=1-64,gather=copy ;tokens=4096-, block_n = 256;stages=4,tokens=7");
  REQUIRE(overrides);
  REQUIRE(overrides->size() == 3);
  GemmConfig base;
  base.raster = 3;
  GemmConfig expected = base;
  expected.block_m = 64;
  expected.gather = GatherMode::copy;
  CHECK((*overrides)[0].apply(base) == expected);
  CHECK((*overrides)[0].min_tokens == 1);
  CHECK((*overrides)[0].max_tokens == 64);
  CHECK((*overrides)[1].min_tokens == 4096);
  CHECK((*overrides)[1].max_tokens == INT64_MAX);
  CHECK((*overrides)[1].apply(base).block_n == 256);
  CHECK((*overrides)[2].min_tokens == 7);
  CHECK((*overrides)[2].max_tokens == 7);
  CHECK(parse_gemm_overrides("")->empty());
  CHECK(parse_gemm_overrides("  ")->empty());
}

TEST_CASE("an override without a range holds for all tokens") {
  auto overrides = parse_gemm_overrides("stages=4");
  REQUIRE(overrides);
  CHECK((*overrides)[0].min_tokens == 0);
  CHECK((*overrides)[0].max_tokens == INT64_MAX);
}

TEST_CASE("fault 24: an override outside the grammar or the space names key, value and choices") {
  struct Case {
    const char* text;
    const char* names;
    const char* choices;
  };
  const Case cases[] = {
      {"block_m=44", "block_m=44", "a multiple of 8 from 8 to 256"},
      {"block_m=-16", "block_m=-16", "from 8 to 256"},
      {"block_m=264", "block_m=264", "from 8 to 256"},
      {"block_m=4294967424", "block_m=4294967424", "from 8 to 256"},  // 128 modulo 2^32
      {"block_n=40", "block_n=40", "a multiple of 16 from 32 to 256"},
      {"block_n=0", "block_n=0", "from 32 to 256"},
      {"block_k=16", "block_k=16", "32, 64, 128"},
      {"stages=9", "stages=9", "from 2 to 8"},
      {"stages=1.9", "stages=1.9", "from 2 to 8"},
      {"stages=true", "stages=true", "from 2 to 8"},
      {"stages=", "stages=", "from 2 to 8"},
      {"warps_n=3", "warps_n=3", "1, 2, 4, 8"},
      {"gather=maybe", "gather=maybe", "fused, copy"},
      {"row_step=4", "row_step=4", "8, 16, 32"},
      {"row_step=64", "row_step=64", "8, 16, 32"},
      {"cluster=0", "cluster=0", "1, 2"},
      {"cluster=3", "cluster=3", "1, 2"},
      {"cluster=4", "cluster=4", "1, 2"},
      {"cluster=2,cluster=2", "cluster", "twice"},
      {"clusters=2", "clusters", "did you mean cluster"},
      {"schedule=wgmma_ping", "schedule=wgmma_ping", "mma_sync, wgmma, wgmma_pingpong"},
      {"schedule=", "schedule=", "mma_sync, wgmma, wgmma_pingpong"},
      {"schedule=1", "schedule=1", "mma_sync, wgmma, wgmma_pingpong"},
      {"tokens=64-1,stages=4", "tokens=64-1", "range"},
      {"tokens=-5,stages=4", "tokens=-5", "range"},
      {"tokens=18446744073709551616", "tokens=18446744073709551616", "range"},
      {"stages=4,stages=4", "stages", "twice"},
      {"block_m", "block_m", "key=value"},
      {"stages=4;", "", "key=value"},
      {"stages=4;;stages=3", "", "key=value"},
      {"blck_m=64", "blck_m", "did you mean block_m"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text);
    const auto result = parse_gemm_overrides(c.text);
    REQUIRE_FALSE(result);
    CHECK(result.error().code() == ErrorCode::invalid_config);
    CHECK(contains(result.error().message(), c.names));
    CHECK(contains(result.error().message(), c.choices));
  }
}

TEST_CASE("fault 23: hostile override text is shown cut and escaped") {
  for (const char* prefix : {"", "stages=", "gather=", "schedule=", "tokens="}) {
    const std::string hostile = prefix + std::string("*/\n\x1b[2J#include <x>") + std::string(1 << 20, 'B');
    const auto result = parse_gemm_overrides(hostile);
    REQUIRE_FALSE(result);
    CHECK(result.error().message().size() < 1000);
    CHECK_FALSE(contains(result.error().message(), "\n"));
    CHECK_FALSE(contains(result.error().message(), "\x1b"));
  }
}

TEST_CASE("an override made by hand from bad text changes nothing") {
  GemmOverride bad;
  bad.text = "block_m=64,stages=99";
  CHECK(bad.apply(GemmConfig{}) == GemmConfig{});
}
