#include "base/digest.hpp"

#include <doctest/doctest.h>

#include <set>
#include <vector>

#include "base/atomic_file.hpp"

using namespace varmoe;

namespace {

Digest of(std::vector<std::string> fields) {
  Hasher hasher;
  for (const std::string& field : fields) hasher.field(field);
  return hasher.finish();
}

}  // namespace

TEST_CASE("a digest is the same on every machine and in every version") {
  // Changing these voids every cubin cache: only together with the key schema.
  CHECK(Hasher().finish().hex() == "99aa06d3014798d86001c324468d497f");
  CHECK(checksum64({}) == 0x2d06800538d394c2);
  Hasher hasher;
  hasher.field("block_m").field(128).field(-1);
  CHECK(hasher.finish().hex() == "ffb15ff97c1636817ebafc7f63136da7");
}

TEST_CASE("fault 37: moved field boundaries, kinds and counts give other digests") {
  const std::vector<Digest> digests = {of({"ab", "c"}),
                                       of({"a", "bc"}),
                                       of({"abc"}),
                                       of({"abc", ""}),
                                       of({"", "abc"}),
                                       of({"c", "ab"}),
                                       of({}),
                                       of({""}),
                                       of({"", ""}),
                                       Hasher().field(1).finish(),
                                       Hasher().field("1").finish(),
                                       Hasher().field(0).finish(),
                                       Hasher().field(std::string(8, '\0')).finish()};
  CHECK(std::set<Digest>(digests.begin(), digests.end()).size() == digests.size());
  CHECK(of({"ab", "c"}) == of({"ab", "c"}));
}

TEST_CASE("integers hash by value, whatever their type") {
  CHECK(Hasher().field(std::int8_t{-3}).finish() == Hasher().field(std::int64_t{-3}).finish());
  CHECK(Hasher().field(7u).finish() == Hasher().field(std::uint64_t{7}).finish());
}

TEST_CASE("finish may be asked again and does not end the hasher") {
  Hasher hasher;
  hasher.field("a");
  const Digest first = hasher.finish();
  CHECK(hasher.finish() == first);
  hasher.field("b");
  CHECK(hasher.finish() == of({"a", "b"}));
}

TEST_CASE("hex and back; nothing but 32 lower-case digits is a digest") {
  const Digest digest = of({"x"});
  CHECK(digest.hex().size() == 32);
  CHECK(Digest::from_hex(digest.hex()) == digest);
  const std::string hex = digest.hex();
  CHECK_FALSE(Digest::from_hex(""));
  CHECK_FALSE(Digest::from_hex(hex.substr(1)));
  CHECK_FALSE(Digest::from_hex(hex + "0"));
  CHECK_FALSE(Digest::from_hex("g" + hex.substr(1)));
  CHECK_FALSE(Digest::from_hex("A" + hex.substr(1)));
  CHECK_FALSE(Digest::from_hex(" " + hex.substr(1)));
}

TEST_CASE("one flipped bit anywhere changes the checksum") {
  std::string text(300, 'x');
  const std::uint64_t whole = checksum64(as_bytes(text));
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      text[i] = static_cast<char>(text[i] ^ (1 << bit));
      if (checksum64(as_bytes(text)) == whole) FAIL("byte ", i, " bit ", bit);
      text[i] = static_cast<char>(text[i] ^ (1 << bit));
    }
  }
  CHECK(checksum64(as_bytes(text)) == whole);
}
