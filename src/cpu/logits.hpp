#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "varmoe/router_spec.hpp"

/// Numbers of the router's element types on the host.
namespace varmoe::cpu {

inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

template <LogitType kType>
float element_at(const void* base, std::int64_t at) {
  if constexpr (kType == LogitType::fp32)
    return static_cast<const float*>(base)[at];
  else if constexpr (kType == LogitType::bf16)
    return std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(base)[at])
                                << 16);
  else
    return half_to_float(static_cast<const std::uint16_t*>(base)[at]);
}

inline float element_at(LogitType type, const void* base, std::int64_t at) {
  switch (type) {
    case LogitType::fp32:
      return element_at<LogitType::fp32>(base, at);
    case LogitType::bf16:
      return element_at<LogitType::bf16>(base, at);
    case LogitType::fp16:
      return element_at<LogitType::fp16>(base, at);
  }
  return 0;
}

/// Nearest, ties to even; beyond fp16's range ∞.
inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: whole multiples of 2^-24
    const float whole = std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(whole));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

/// Nearest, ties to even.
inline std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void set_element(LogitType type, void* base, std::int64_t at, float value) {
  switch (type) {
    case LogitType::fp32:
      static_cast<float*>(base)[at] = value;
      return;
    case LogitType::bf16:
      static_cast<std::uint16_t*>(base)[at] = float_to_bf16(value);
      return;
    case LogitType::fp16:
      static_cast<std::uint16_t*>(base)[at] = float_to_half(value);
      return;
  }
}

}  // namespace varmoe::cpu
