#include <doctest/doctest.h>

#include "cubin/compiler_stamps.hpp"
#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

TEST_CASE("a compiler's version is remembered while its library is the same file") {
  TempDir dir;
  const std::string library = dir / "libnvrtc.so.13";
  spit(library, "an ELF, supposedly");
  const std::string cache = dir / "cache";
  CompilerStamps stamps(posix_file_system(), cache);
  CHECK(!stamps.recall("search"));
  REQUIRE(stamps.remember("search", library, kBuildA).ok());
  CHECK(stamps.recall("search") == kBuildA);
  CHECK(!stamps.recall("another search"));

  SUBCASE("another process knows too") {
    CHECK(CompilerStamps(posix_file_system(), cache).recall("search") == kBuildA);
  }
  SUBCASE("the library grew") {
    spit(library, "an ELF, supposedly, of another build");
    CHECK(!stamps.recall("search"));
  }
  SUBCASE("the library was replaced by one of the same size and date") {
    const auto date = std::filesystem::last_write_time(library);
    spit(dir / "new", "an ELF, SUPPOSEDLY");
    std::filesystem::last_write_time(dir / "new", date);
    std::filesystem::rename(dir / "new", library);
    CHECK(!stamps.recall("search"));
  }
  SUBCASE("the library was touched") {
    age_file(library, std::chrono::seconds(1000));
    CHECK(!stamps.recall("search"));
  }
  SUBCASE("the library is gone") {
    std::filesystem::remove(library);
    CHECK(!stamps.recall("search"));
  }
  SUBCASE("learning anew replaces what was known") {
    spit(library, "an ELF, supposedly, of another build");
    REQUIRE(stamps.remember("search", library, kBuildB).ok());
    CHECK(stamps.recall("search") == kBuildB);
  }
  SUBCASE("nothing new writes nothing") {
    FaultyFileSystem fs(unsynced());
    fs.fail_op(Op::write, FaultyFileSystem::kAll, EIO);
    CHECK(CompilerStamps(fs, cache).remember("search", library, kBuildA).ok());
    CHECK(!fs.fired());
    CHECK(!CompilerStamps(fs, cache).remember("search", library, kBuildB).ok());
  }
  SUBCASE("the newest searches are kept, and boundedly many") {
    for (int i = 0; i < 40; ++i)
      REQUIRE(stamps.remember("search " + std::to_string(i), library, kBuildB).ok());
    CHECK(stamps.recall("search 39") == kBuildB);
    CHECK(!stamps.recall("search"));
    CHECK(std::filesystem::file_size(cache + "/cubin/compilers") < 16 * 300);
  }
}

TEST_CASE("a damaged stamp file knows nothing, and is written anew") {
  TempDir dir;
  const std::string library = dir / "libnvrtc.so.13";
  spit(library, "an ELF, supposedly");
  CompilerStamps stamps(posix_file_system(), dir / "cache");
  REQUIRE(stamps.remember("search", library, kBuildA).ok());
  const std::string file = dir / "cache/cubin/compilers";
  const std::string good = slurp(file);
  for (std::size_t i = 0; i < good.size(); ++i) {
    CAPTURE(i);
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 1);
    spit(file, bad);
    CHECK(!stamps.recall("search"));
    spit(file, good.substr(0, i));
    CHECK(!stamps.recall("search"));
  }
  REQUIRE(stamps.remember("search", library, kBuildA).ok());
  CHECK(stamps.recall("search") == kBuildA);
  std::filesystem::remove(file);
  std::filesystem::create_symlink(library, file);
  CHECK(!stamps.recall("search"));
  REQUIRE(stamps.remember("search", library, kBuildA).ok());
  CHECK(slurp(library) == "an ELF, supposedly");
}

TEST_CASE("paths that do not name one file for good are not remembered") {
  TempDir dir;
  CompilerStamps stamps(posix_file_system(), dir / "cache");
  CHECK(!stamps.remember("search", "libnvrtc.so.13", kBuildA).ok());
  CHECK(!stamps.remember("search", "", kBuildA).ok());
  CHECK(!stamps.remember("search", dir / "absent.so", kBuildA).ok());
  CHECK(!stamps.remember("search", "/with\nnewline", kBuildA).ok());
  CHECK(!stamps.recall("search"));
  // Without a cache folder there is no place to remember in.
  CHECK(CompilerStamps(posix_file_system(), "").remember("search", "/lib/libc.so.6", kBuildA).ok());
  CHECK(!CompilerStamps(posix_file_system(), "").recall("search"));
}
