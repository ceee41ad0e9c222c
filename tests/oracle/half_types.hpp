#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "varmoe/layer_spec.hpp"

/// bf16 and fp16 of the oracle's own: written from the formats' definitions and slow on purpose; nothing of
/// src/ is used.
namespace oracle {

/// A binary floating-point format with 16 bits.
struct Format {
  int mantissa_bits;  ///< stored, without the hidden one
  int max_exponent;   ///< of the largest finite number 2^max_exponent · (2 − 2^−mantissa_bits)
};
inline constexpr Format kBf16{7, 127};
inline constexpr Format kFp16{10, 15};

inline constexpr Format format_of(varmoe::DType dtype) {
  return dtype == varmoe::DType::bf16 ? kBf16 : kFp16;
}

/// A quiet NaN in both formats: what may never be read.
inline constexpr std::uint16_t kPoison = 0x7fff;

/// The number that the bits stand for. Exact.
inline double decode(Format f, std::uint16_t bits) {
  const int m = f.mantissa_bits;
  const int exponent_field = (bits >> m) & ((1 << (15 - m)) - 1);
  const int fraction = bits & ((1 << m) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent_field == 2 * f.max_exponent + 1) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  const int min_exponent = 1 - f.max_exponent;
  if (exponent_field == 0) return sign * std::ldexp(fraction, min_exponent - m);
  return sign * std::ldexp((1 << m) + fraction, exponent_field - f.max_exponent - m);
}

/// Rounds once, to nearest with ties to even; subnormals are kept, what overflows becomes infinity, NaN stays
/// NaN.
inline std::uint16_t encode(Format f, double value) {
  const int m = f.mantissa_bits;
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const auto infinity = static_cast<std::uint16_t>((2 * f.max_exponent + 1) << m);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | infinity | (1 << (m - 1)));
  if (std::isinf(value)) return static_cast<std::uint16_t>(sign | infinity);
  const double magnitude = std::fabs(value);
  if (magnitude == 0) return sign;
  const int min_exponent = 1 - f.max_exponent;
  int exponent = std::ilogb(magnitude);
  if (exponent < min_exponent) exponent = min_exponent;
  // In units of the last place the number is below 2^(m+1): scaling is exact, nearbyint is the one rounding.
  const auto units = static_cast<std::int64_t>(std::nearbyint(std::ldexp(magnitude, m - exponent)));
  // Adding makes the carry into the exponent (and into infinity) come by itself.
  const std::int64_t bits = (static_cast<std::int64_t>(exponent - min_exponent) << m) + units;
  return static_cast<std::uint16_t>(sign | (bits >= infinity ? infinity : bits));
}

inline double decode(varmoe::DType t, std::uint16_t bits) {
  return decode(format_of(t), bits);
}
inline std::uint16_t encode(varmoe::DType t, double value) {
  return encode(format_of(t), value);
}
/// `value` rounded to the format, as a number.
inline double round_to(varmoe::DType t, double value) {
  return decode(t, encode(t, value));
}

}  // namespace oracle
