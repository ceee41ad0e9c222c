#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/digest.hpp"
#include "base/file_system.hpp"
#include "cubin/cache.hpp"
#include "cubin/entry.hpp"
#include "support/capture_log.hpp"
#include "support/temp_dir.hpp"

/// What the tests of the cubin cache share: kernels whose bytes follow from a number, and a compiler that
/// counts.
namespace varmoe::test {

/// These tests make tens of thousands of small files: in memory, where there is a place for that and nobody
/// chose another.
inline const bool kTempInMemory = [] {
  if (std::getenv("TMPDIR") != nullptr || ::access("/dev/shm", W_OK | X_OK) != 0) return false;
  return ::setenv("TMPDIR", "/dev/shm", 0) == 0;
}();

inline constexpr CompilerVersion kBuildA{13, 0, 48};
inline constexpr CompilerVersion kBuildB{13, 0, 88};
inline const std::string kArch = "sm_90a";

inline Digest key_of(int i) {
  return Hasher().field(std::string_view("test key")).field(i).finish();
}

/// The kernel number i as this compiler makes it. Its bytes tell both.
inline KernelBinary kernel_of(int i, const CompilerVersion& version = kBuildA, std::size_t bytes = 200) {
  KernelBinary binary;
  const Digest seed = Hasher().field(std::string_view("image")).field(i).field(version.build).finish();
  binary.image.resize(bytes);
  for (std::size_t b = 0; b < bytes; ++b) binary.image[b] = std::byte(seed.bytes[b % 16] ^ (b * 7 + b / 256));
  binary.arch = kArch;
  binary.entry_name = "kernel_" + std::to_string(i);
  binary.compiler = version;
  binary.resources = {40 + i % 100, 0, 0, 16, 1024};
  binary.compile_ms = 12.5;
  binary.log = "";
  return binary;
}

inline bool same_kernel(const KernelBinary& a, const KernelBinary& b) {
  return a.image == b.image && a.is_ptx == b.is_ptx && a.arch == b.arch && a.entry_name == b.entry_name &&
         a.compiler == b.compiler && a.resources == b.resources && a.compile_ms == b.compile_ms &&
         a.log == b.log;
}
/// Whether it is kernel number i, made by whichever of the two compilers.
inline bool is_kernel(const KernelBinary& binary, int i) {
  return same_kernel(binary, kernel_of(i, kBuildA, binary.image.size())) ||
         same_kernel(binary, kernel_of(i, kBuildB, binary.image.size()));
}

/// The real file system, save that fsync is only pretended: these tests kill processes, not machines (fault
/// 01 has a power cut of its own), and write thousands of files.
class UnsyncedFileSystem final : public ForwardingFileSystem {
 public:
  UnsyncedFileSystem() : ForwardingFileSystem(posix_file_system()) {}
  int fsync(int) noexcept override { return 0; }
};
inline FileSystem& unsynced() {
  static UnsyncedFileSystem fs;
  return fs;
}

/// Makes kernels and counts.
class FakeCompiler {
 public:
  explicit FakeCompiler(CompilerVersion version = kBuildA, std::size_t bytes = 200)
      : version_(version), bytes_(bytes) {}
  cubin::CubinCache::Build build(int i) {
    return [this, i]() -> Result<KernelBinary> {
      ++compiles;
      return kernel_of(i, version_, bytes_);
    };
  }
  std::atomic<int> compiles{0};

 private:
  CompilerVersion version_;
  std::size_t bytes_;
};

inline cubin::CacheOptions cache_options(const std::string& dir, FileSystem* fs = nullptr) {
  cubin::CacheOptions options;
  options.dir = dir;
  options.max_bytes = 0;
  options.lock_wait = std::chrono::seconds(120);
  options.file_system = fs != nullptr ? fs : &unsynced();
  return options;
}

inline cubin::CubinCache open_cache(const std::string& dir, const Log& log = Log(),
                                    FileSystem* fs = nullptr) {
  return cubin::CubinCache::open(cache_options(dir, fs), log);
}

/// A build that must not happen.
inline Result<KernelBinary> no_build() {
  return Error(ErrorCode::no_compiler, "the test expected a hit");
}

/// What a process without memory of it finds on disk.
inline bool on_disk(const std::string& dir, int i, const CompilerVersion& at_hand = kBuildA) {
  // A file system object of its own keeps it apart from caches that this test has open on the folder.
  UnsyncedFileSystem own_view;
  const cubin::CubinCache cache = open_cache(dir, Log(), &own_view);
  const std::optional<cubin::Fetched> hit = cache.lookup(key_of(i), kArch, at_hand);
  return hit && hit->origin == cubin::Origin::disk &&
         same_kernel(*hit->binary, kernel_of(i, at_hand, hit->binary->image.size()));
}

inline std::string entry_path(const std::string& dir, int i, const CompilerVersion& version = kBuildA) {
  return dir + "/cubin/" + cubin::shard_name(key_of(i)) + "/" + cubin::entry_file_name(key_of(i), version);
}

inline std::string to_text(const std::vector<std::byte>& bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}
inline std::vector<std::byte> to_bytes(const std::string& text) {
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}
/// Recomputes the checksum at the end of an encoded entry, as a tamperer would.
inline void reseal(std::vector<std::byte>& entry) {
  const std::uint64_t sum = checksum64(std::span(entry).first(entry.size() - 8));
  for (std::size_t i = 0; i < 8; ++i) entry[entry.size() - 8 + i] = std::byte((sum >> (8 * i)) & 0xFF);
}

inline void age_file(const std::string& path, std::chrono::seconds age) {
  std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - age);
}

inline std::size_t count_temps(const std::string& dir) {
  std::size_t n = 0;
  for (const auto& item : std::filesystem::recursive_directory_iterator(dir)) {
    const std::string name = item.path().filename();
    if (name.starts_with(".varmoe-") && name.ends_with(".tmp")) ++n;
  }
  return n;
}

}  // namespace varmoe::test
