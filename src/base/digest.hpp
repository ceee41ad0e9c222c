#pragma once

#include <array>
#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

/// Digests name things (cubin keys, provenance) and detect damage. They are XXH3: fast and well mixed, but
/// not cryptographic. Trust in a file comes from who owns it (cache_dir.hpp), never from its checksum.
namespace varmoe {

/// 128 bits, in big-endian byte order: hex() reads like the number.
struct Digest {
  std::array<std::uint8_t, 16> bytes{};

  /// 32 lower-case hex digits.
  std::string hex() const;
  /// The inverse of hex(); anything but exactly 32 lower-case hex digits is nullopt, so that a digest has one
  /// spelling.
  static std::optional<Digest> from_hex(std::string_view text);

  bool operator==(const Digest&) const = default;
  auto operator<=>(const Digest&) const = default;
};

/// Digest over a sequence of fields. Each field enters with its kind and its length, so that sequences that
/// differ only in where one field ends and the next begins have different digests. The result is the same on
/// every machine.
class Hasher {
 public:
  Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;
  ~Hasher();

  Hasher& field(std::string_view text);
  Hasher& field(std::span<const std::byte> bytes);
  /// Integers of any type; negative ones are sign-extended to 64 bits. Floating point does not convert
  /// silently: hash its bit pattern.
  template <std::integral T>
  Hasher& field(T value) {
    return integer(static_cast<std::uint64_t>(value));
  }

  /// Digest of the fields so far; more may follow.
  Digest finish() const;

 private:
  Hasher& integer(std::uint64_t value);
  struct State;
  std::unique_ptr<State> state_;
};

/// XXH3-64 of the bytes, for detecting damage in files.
std::uint64_t checksum64(std::span<const std::byte> bytes) noexcept;

}  // namespace varmoe
