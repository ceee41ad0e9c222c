#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace varmoe::fuzz {

/// Takes fields off the front of the bytes; zeros when they are used up.
class Fields {
 public:
  explicit Fields(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  template <class T>
  T take() {
    T value{};
    const std::size_t n = std::min(sizeof(T), bytes_.size());
    if (n > 0) std::memcpy(&value, bytes_.data(), n);
    bytes_ = bytes_.subspan(n);
    return value;
  }
  /// Mostly a sound number, sometimes any.
  std::int64_t number(std::int64_t multiple, std::int64_t most) {
    const auto kind = take<std::uint8_t>();
    if (kind < 8) return take<std::int64_t>();
    return multiple * (1 + take<std::uint16_t>() % most);
  }
  /// From 0 to `count` - 1.
  int choice(int count) { return take<std::uint8_t>() % count; }
  bool flag() { return choice(2) == 1; }
  bool empty() const { return bytes_.empty(); }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace varmoe::fuzz
