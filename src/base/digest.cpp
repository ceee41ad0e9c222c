#include "base/digest.hpp"

#include <xxhash.h>

#include <cstring>

namespace varmoe {
namespace {

constexpr char kHexDigits[] = "0123456789abcdef";

int hex_value(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

std::string Digest::hex() const {
  std::string text;
  text.reserve(2 * bytes.size());
  for (std::uint8_t byte : bytes) {
    text.push_back(kHexDigits[byte >> 4]);
    text.push_back(kHexDigits[byte & 15]);
  }
  return text;
}

std::optional<Digest> Digest::from_hex(std::string_view text) {
  Digest digest;
  if (text.size() != 2 * digest.bytes.size()) return std::nullopt;
  for (std::size_t i = 0; i < digest.bytes.size(); ++i) {
    const int high = hex_value(text[2 * i]);
    const int low = hex_value(text[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    digest.bytes[i] = static_cast<std::uint8_t>(high * 16 + low);
  }
  return digest;
}

struct Hasher::State {
  XXH3_state_t xxh3;

  /// Kind, then a 64-bit number in little-endian order: a field's length, or an integer field's value.
  void head(char kind, std::uint64_t number) {
    unsigned char bytes[9];
    bytes[0] = static_cast<unsigned char>(kind);
    for (int i = 0; i < 8; ++i) bytes[1 + i] = static_cast<unsigned char>(number >> (8 * i));
    XXH3_128bits_update(&xxh3, bytes, sizeof bytes);
  }
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(&state_->xxh3);
}
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;
Hasher::~Hasher() = default;

Hasher& Hasher::field(std::string_view text) {
  return field(std::span(reinterpret_cast<const std::byte*>(text.data()), text.size()));
}

Hasher& Hasher::field(std::span<const std::byte> bytes) {
  state_->head('b', bytes.size());
  if (!bytes.empty()) XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
  return *this;
}

Hasher& Hasher::integer(std::uint64_t value) {
  state_->head('i', value);
  return *this;
}

Digest Hasher::finish() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state_->xxh3));
  Digest digest;
  static_assert(sizeof canonical.digest == sizeof digest.bytes);
  std::memcpy(digest.bytes.data(), canonical.digest, sizeof canonical.digest);
  return digest;
}

std::uint64_t checksum64(std::span<const std::byte> bytes) noexcept {
  // A null pointer with length 0 is what an empty span has; XXH3 wants some address.
  return XXH3_64bits(bytes.empty() ? "" : static_cast<const void*>(bytes.data()), bytes.size());
}

}  // namespace varmoe
