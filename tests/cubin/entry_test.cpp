#include "cubin/entry.hpp"

#include <doctest/doctest.h>

#include <random>

#include "cubin/fixture.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

namespace {

std::vector<std::byte> encoded(int i) {
  return *encode_entry(key_of(i), kernel_of(i));
}

}  // namespace

TEST_CASE("an entry decodes to what was encoded") {
  KernelBinary binary = kernel_of(1);
  binary.log = "ptxas info: 40 registers\n";
  binary.resources = {255, 8, 16, -1, 227 * 1024};
  binary.is_ptx = true;
  binary.compile_ms = 431.25;
  const std::vector<std::byte> bytes = *encode_entry(key_of(1), binary);
  const DecodedEntry decoded = decode_entry(bytes, key_of(1), kArch);
  REQUIRE(decoded.entry);
  CHECK(decoded.entry->key == key_of(1));
  CHECK(same_kernel(decoded.entry->binary, binary));
  CHECK(*encode_entry(key_of(1), binary) == bytes);
}

TEST_CASE("the bytes of an entry are the documented ones") {
  const std::vector<std::byte> bytes = encoded(1);
  CHECK(bytes[0] == std::byte{0x89});
  CHECK(to_text(bytes).substr(1, 4) == "VMCU");
  CHECK(bytes[8] == std::byte{1});  // format version, little-endian
  CHECK(std::memcmp(bytes.data() + 24, key_of(1).bytes.data(), 16) == 0);
  CHECK(bytes.size() == 24 + 72 + kArch.size() + std::string("kernel_1").size() + 200 + 8);
}

TEST_CASE("what cannot be an entry is refused by name") {
  const auto refused = [](KernelBinary binary, const std::string& word) {
    const Result<std::vector<std::byte>> bytes = encode_entry(key_of(1), binary);
    return !bytes.ok() && bytes.error().code() == ErrorCode::invalid_argument &&
           bytes.error().message().find(word) != std::string::npos;
  };
  KernelBinary binary = kernel_of(1);
  binary.image.clear();
  CHECK(refused(binary, "image is empty"));
  binary = kernel_of(1);
  binary.arch.clear();
  CHECK(refused(binary, "arch"));
  binary.arch.assign(65, 'x');
  CHECK(refused(binary, "arch"));
  binary = kernel_of(1);
  binary.entry_name.assign(5000, 'x');
  CHECK(refused(binary, "entry name"));
  binary = kernel_of(1);
  binary.compiler.build = -1;
  CHECK(refused(binary, "compiler version"));
}

TEST_CASE("a long log is cut, a senseless time dropped") {
  KernelBinary binary = kernel_of(1);
  binary.log.assign(10 << 20, 'w');
  binary.compile_ms = -1;
  const DecodedEntry decoded = decode_entry(*encode_entry(key_of(1), binary));
  REQUIRE(decoded.entry);
  CHECK(decoded.entry->binary.log.size() == kMaxLogBytes);
  CHECK(decoded.entry->binary.compile_ms == 0);
}

TEST_CASE("fault 15: an entry cut at every length, or grown, is a miss") {
  std::vector<std::byte> bytes = encoded(2);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    CAPTURE(n);
    // A copy of exactly n bytes, so that a sanitizer sees every read beyond.
    const std::vector<std::byte> part(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
    const DecodedEntry decoded = decode_entry(part);
    CHECK(!decoded.entry);
    CHECK(decoded.defect == EntryDefect::truncated);
  }
  bytes.push_back(std::byte{0});
  CHECK(decode_entry(bytes).defect == EntryDefect::trailing);
}

TEST_CASE("fault 16: one flipped bit anywhere in an entry is a miss") {
  std::vector<std::byte> bytes = encoded(3);
  REQUIRE(decode_entry(bytes).entry);
  std::size_t accepted = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] ^= std::byte(1 << bit);
      if (decode_entry(bytes).entry) ++accepted;
      bytes[i] ^= std::byte(1 << bit);
    }
  }
  CHECK(accepted == 0);
  CHECK(decode_entry(bytes).entry);
}

TEST_CASE("fault 17: a sound entry of another key, arch or format is a miss") {
  std::vector<std::byte> bytes = encoded(4);
  CHECK(decode_entry(bytes, key_of(5), kArch).defect == EntryDefect::other_key);
  CHECK(decode_entry(bytes, key_of(4), "sm_80").defect == EntryDefect::other_arch);
  CHECK(decode_entry(bytes, key_of(4), kArch).entry);
  for (const int version : {0, 2, 255}) {
    bytes[8] = std::byte(version);
    reseal(bytes);
    const DecodedEntry decoded = decode_entry(bytes, key_of(4), kArch);
    CHECK(!decoded.entry);
    CHECK(decoded.defect == EntryDefect::other_version);
  }
}

TEST_CASE("resealed entries with fields out of range are misses") {
  const std::vector<std::byte> good = encoded(6);
  const auto defect_with = [&](std::size_t offset, std::initializer_list<int> values) {
    std::vector<std::byte> bytes = good;
    for (const int value : values) bytes[offset++] = std::byte(value);
    reseal(bytes);
    const DecodedEntry decoded = decode_entry(bytes);
    return decoded.entry ? std::string("accepted") : std::string(to_string(decoded.defect));
  };
  const std::string bad_header = to_string(EntryDefect::bad_header);
  CHECK(defect_with(24 + 16, {0xFF, 0xFF, 0xFF, 0xFF}) == bad_header);        // compiler major −1
  CHECK(defect_with(24 + 28, {2}) == bad_header);                             // an unknown flag
  CHECK(defect_with(24 + 52, {0, 0, 0, 0, 0, 0, 0xF0, 0x7F}) == bad_header);  // infinite compile time
  CHECK(defect_with(24 + 52, {0, 0, 0, 0, 0, 0, 0xF8, 0x7F}) == bad_header);  // NaN
  CHECK(defect_with(24 + 60, {0, 0, 0, 0}) == bad_header);  // empty arch: the strings no longer fit
  CHECK(defect_with(24 + 60, {0xFF, 0xFF, 0xFF, 0xFF}) == bad_header);  // arch of 4 GiB
  CHECK(defect_with(12, {0xFF, 0xFF, 0xFF, 0xFF}) == bad_header);       // header of 4 GiB
  CHECK(defect_with(16, {0, 0, 0, 0, 0, 0, 0, 0}) == bad_header);       // image of nothing
  CHECK(defect_with(16, {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}) == bad_header);
  CHECK(defect_with(16, {0xFF}) == to_string(EntryDefect::truncated));
  CHECK(defect_with(16, {1}) == to_string(EntryDefect::trailing));
}

TEST_CASE("fault 41: mutated and random bytes never crash the entry reader, and nothing wrong is accepted") {
  std::mt19937_64 random(20250917);
  const std::vector<std::byte> good = encoded(7);
  std::size_t accepted_resealed = 0;
  for (int round = 0; round < 30000; ++round) {
    std::vector<std::byte> bytes = good;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int e = 0; e < edits && !bytes.empty(); ++e) {
      // Half of the edits fall on the header, where the reader has its branches.
      const std::size_t span = random() % 2 == 0 ? std::min<std::size_t>(bytes.size(), 110) : bytes.size();
      const std::size_t at = random() % span;
      switch (random() % 6) {
        case 0:
          bytes[at] = std::byte(random() & 0xFF);
          break;
        case 1:
          bytes[at] ^= std::byte(1 << (random() % 8));
          break;
        case 2:
          bytes.resize(at);
          break;
        case 3:
          bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), random() % 64,
                       std::byte(random() & 0xFF));
          break;
        case 4:
          bytes.erase(
              bytes.begin() + static_cast<std::ptrdiff_t>(at),
              bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes.size(), at + random() % 64)));
          break;
        case 5: {
          constexpr int kEdges[] = {0x00, 0x01, 0x7F, 0x80, 0xFF};
          for (std::size_t i = at; i < std::min(bytes.size(), at + 4); ++i)
            bytes[i] = std::byte(kEdges[random() % 5]);
          break;
        }
      }
    }
    const bool changed = bytes != good;
    const DecodedEntry plain = decode_entry(bytes);
    CHECK(bool(plain.entry) == !changed);
    // With the checksum put right, the fields are what stands between the reader and nonsense.
    if (bytes.size() < 8) continue;
    reseal(bytes);
    const DecodedEntry resealed = decode_entry(bytes);
    if (!resealed.entry) {
      CHECK(std::string(to_string(resealed.defect)) != "unknown defect");
      continue;
    }
    ++accepted_resealed;
    const Entry& entry = *resealed.entry;
    CHECK(!entry.binary.image.empty());
    CHECK(!entry.binary.arch.empty());
    CHECK(entry.binary.image.size() < bytes.size());
    // What is accepted has exactly one spelling.
    const Result<std::vector<std::byte>> again = encode_entry(entry.key, entry.binary);
    REQUIRE(again.ok());
    CHECK(*again == bytes);
  }
  CHECK(accepted_resealed > 1000);  // the mutations do reach past the checksum
}

TEST_CASE("file names: one spelling, any other is no entry") {
  const std::string name = entry_file_name(key_of(1), {13, 0, 48});
  CHECK(name == key_of(1).hex() + "-13.0.48.vmc1");
  const std::optional<EntryName> parsed = parse_entry_file_name(name);
  REQUIRE(parsed);
  CHECK(parsed->key == key_of(1));
  CHECK(parsed->compiler == CompilerVersion{13, 0, 48});
  const std::string hex = key_of(1).hex();
  for (const std::string& bad :
       {std::string(), hex, hex + "-13.0.48.vmc2", hex + "-13.0.48.vmc0", hex + "-13.0.48.vmc11",
        hex + "-13.0.48.vmc", hex + "-013.0.48.vmc1", hex + "-13.0.-4.vmc1", hex + "-13.0.-0.vmc1",
        hex + "-13.0.+4.vmc1", hex + "-13.0.vmc1", hex + "-..0.vmc1", hex + "-13.0.4294967296.vmc1",
        hex + "-13.0.48.vmc1 ", hex + "-13.0.48.vmc1.tmp", " " + name, "X" + name.substr(1), name.substr(1),
        hex + "_13.0.48.vmc1"}) {
    CAPTURE(bad);
    CHECK(!parse_entry_file_name(bad));
  }
}
