#include <doctest/doctest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

namespace {

std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : otherwise;
}

/// A cache under random operations and faults, beside a model of what must be there.
class Soak {
 public:
  explicit Soak(std::uint64_t seed) : random_(seed) { reopen(); }

  void step() {
    switch (pick(20)) {
      case 0:
        reopen();
        break;
      case 1:
        damage();
        break;
      case 2:
        collect();
        break;
      case 3:
        if (pick(10) == 0) clear();
        break;
      case 4:
        misplace();
        break;
      case 5:
        inspect();
        break;
      case 6:
        cache_->reject(key_of(some_key())), expected_.clear();
        break;
      case 7:
      case 8:
      case 9:
        look_up();
        break;
      default:
        fetch();
        break;
    }
  }

  /// What a fresh process without faults must find.
  void check_acknowledged() {
    for (const auto& [key, version] : expected_) {
      CAPTURE(key);
      CHECK(on_disk(dir_.path(), key, version));
    }
  }

 private:
  static constexpr int kKeys = 25;
  int pick(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  int some_key() { return pick(kKeys); }
  CompilerVersion some_version() { return pick(4) == 0 ? kBuildB : kBuildA; }

  void reopen() {
    cache_.reset();
    faulty_ = std::make_unique<FaultyFileSystem>(unsynced());
    constexpr int kErrors[] = {EIO, ENOSPC, EMFILE, EACCES, EDQUOT, ENOLCK, EROFS};
    const int error = kErrors[pick(7)];
    switch (pick(5)) {
      case 0:
        faulty_->fail_call(1 + static_cast<std::uint64_t>(pick(300)), error, pick(4) == 0);
        break;
      case 1:
        faulty_->set_free_bytes(static_cast<std::size_t>(pick(5000)), ENOSPC);
        break;
      case 2:
        faulty_->interrupt_every_other();
        faulty_->short_writes(11);
        break;
      default:
        break;
    }
    CacheOptions options = cache_options(dir_.path(), faulty_.get());
    options.max_memory_bytes = 1000;
    cache_ = std::make_unique<CubinCache>(CubinCache::open(options, Log()));
  }
  void fetch() {
    const int key = some_key();
    const CompilerVersion version = some_version();
    FakeCompiler compiler(version, 100 + static_cast<std::size_t>(pick(200)));
    const Result<Fetched> fetched =
        cache_->fetch_or_build(key_of(key), kArch, compiler.build(key), {version});
    REQUIRE(fetched.ok());
    CHECK(is_kernel(*fetched->binary, key));
    if (cache_->writable()) CHECK(fetched->binary->compiler == version);
    if (fetched->stored) expected_.insert({key, version});
  }
  void look_up() {
    const int key = some_key();
    const std::optional<Fetched> hit = cache_->lookup(key_of(key), kArch);
    if (hit) CHECK(is_kernel(*hit->binary, key));
  }
  void damage() {
    const int key = some_key();
    const CompilerVersion version = some_version();
    const std::string path = entry_path(dir_.path(), key, version);
    if (!std::filesystem::is_regular_file(path)) return;
    std::string bytes = slurp(path);
    if (bytes.empty()) return;
    const std::size_t at = random_() % bytes.size();
    if (pick(2) == 0) {
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << pick(8)));
    } else {
      bytes.resize(at);
    }
    spit(path, bytes);
    expected_.erase({key, version});
  }
  void misplace() {
    const int key = some_key();
    const std::string path = entry_path(dir_.path(), key);
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
    expected_.erase({key, kBuildA});
    switch (pick(4)) {
      case 0:
        std::filesystem::create_directory(path, ignored);
        break;
      case 1:
        std::filesystem::create_symlink(entry_path(dir_.path(), some_key()), path, ignored);
        break;
      case 2:
        std::filesystem::copy_file(entry_path(dir_.path(), some_key()), path, ignored);
        break;
      default:
        spit(path, "");
        break;
    }
  }
  void collect() {
    cache_->gc(static_cast<std::uint64_t>(pick(20000)));
    forget_removed();
  }
  void clear() {
    static_cast<void>(cache_->clear());
    expected_.clear();
  }
  void inspect() {
    static_cast<void>(cache_->stats());
    for (const EntryInfo& entry : cache_->list()) CHECK(entry.image_bytes >= 100);
    static_cast<void>(cache_->verify(pick(2) == 0));
  }
  /// Collections may remove what they like; what is there must still be right.
  void forget_removed() {
    std::erase_if(expected_, [&](const auto& item) {
      return !std::filesystem::exists(entry_path(dir_.path(), item.first, item.second));
    });
  }

  std::mt19937_64 random_;
  TempDir dir_;
  std::unique_ptr<FaultyFileSystem> faulty_;
  std::unique_ptr<CubinCache> cache_;
  std::set<std::pair<int, CompilerVersion>> expected_;
};

}  // namespace

TEST_CASE("fault 43: soak: random operations with random faults and reopening") {
  const std::uint64_t operations = number_from_environment("SOAK_OPERATIONS", 2000);
  const std::uint64_t seed = number_from_environment("SOAK_SEED", 20250917);
  CAPTURE(seed);
  MESSAGE("cubin cache soak: ", operations, " operations, seed ", seed);
  Soak soak(seed);
  for (std::uint64_t n = 0; n < operations; ++n) {
    CAPTURE(n);
    soak.step();
    if (n % 100 == 99) soak.check_acknowledged();
  }
  soak.check_acknowledged();
}
