#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "oracle/half_types.hpp"
#include "varmoe/layer_spec.hpp"

/// Numbers of seeds and places, the same bits on every machine.
namespace oracle {

namespace detail {

inline std::uint64_t mix(std::uint64_t z) {  // splitmix64's finaliser
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
inline std::uint64_t mix(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0, std::uint64_t c = 0) {
  return mix(mix(mix(mix(seed) ^ a) ^ b) ^ c);
}
/// In [0, 1).
inline double unit(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// 16 random bits → a number uniform in ±sigma·√3, encoded.
inline std::vector<std::uint16_t> value_table(varmoe::DType dtype, double sigma) {
  std::vector<std::uint16_t> table(65536);
  for (int i = 0; i < 65536; ++i) {
    table[static_cast<std::size_t>(i)] =
        encode(dtype, ((i + 0.5) / 32768.0 - 1.0) * 1.7320508075688772 * sigma);
  }
  return table;
}

/// Root mean square of f for inputs of the distribution used here, roughly: keeps outputs O(1).
inline double activation_rms(varmoe::Activation a) {
  switch (a) {
    case varmoe::Activation::silu_mul:
      return 0.55;
    case varmoe::Activation::gelu_tanh_mul:
    case varmoe::Activation::gelu_erf_mul:
      return 0.65;
    case varmoe::Activation::swiglu_oai:
      return 0.9;
    case varmoe::Activation::silu:
      return 0.55;
    case varmoe::Activation::gelu_tanh:
    case varmoe::Activation::gelu_erf:
      return 0.65;
    case varmoe::Activation::relu:
      return 0.7;
    case varmoe::Activation::relu2:
      return 1.2;
    case varmoe::Activation::identity:
      return 1.0;
  }
  return 1.0;
}

}  // namespace detail

}  // namespace oracle
