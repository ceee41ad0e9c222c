#pragma once

#include <cstdint>

#include "varmoe/layer_spec.hpp"

namespace varmoe::cpu {

/// out[i] = f(gate[i·step], up[i·step]) in fp32; `gate` is unread when the activation is not gated. `out` may
/// be `up` or `gate` itself.
void apply_activation(Activation activation, const ActivationParams& params, const float* gate,
                      const float* up, std::int64_t step, std::int64_t count, float* out);

/// h[i] = f(gate[i], up[i]) as apply_activation has it, d_gate[i] = ∂f/∂gate and d_up[i] = ∂f/∂up there, 0 at
/// kinks; `gate` and `d_gate` are left alone when the activation is not gated. Outputs overlap no input.
void activation_slopes(Activation activation, const ActivationParams& params, const float* gate,
                       const float* up, std::int64_t count, float* h, float* d_gate, float* d_up);

}  // namespace varmoe::cpu
