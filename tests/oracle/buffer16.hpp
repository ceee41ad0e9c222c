#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace oracle {

/// 256-byte aligned elements, not initialised.
class Buffer16 {
 public:
  Buffer16() = default;
  explicit Buffer16(std::int64_t count) : size_(count) {
    if (count > 0) {
      const auto bytes = (static_cast<std::size_t>(count) * 2 + 255) / 256 * 256;
      data_.reset(static_cast<std::uint16_t*>(std::aligned_alloc(256, bytes)));
      if (data_ == nullptr) throw std::bad_alloc();
    }
  }
  std::uint16_t* data() { return data_.get(); }
  const std::uint16_t* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * 2; }
  std::uint16_t& operator[](std::int64_t i) { return data_.get()[i]; }
  std::uint16_t operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(std::uint16_t* p) const { std::free(p); }
  };
  std::unique_ptr<std::uint16_t, Free> data_;
  std::int64_t size_ = 0;
};

}  // namespace oracle
