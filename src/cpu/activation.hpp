#pragma once

#include <cstdint>

#include "varmoe/layer_spec.hpp"

namespace varmoe::cpu {

/// out[i] = f(gate[i·step], up[i·step]) in fp32; `gate` is unread when the activation is not gated. `out` may
/// be `up` or `gate` itself.
void apply_activation(Activation activation, const ActivationParams& params, const float* gate,
                      const float* up, std::int64_t step, std::int64_t count, float* out);

}  // namespace varmoe::cpu
