#pragma once

#include "prelude.cuh"

namespace varmoe::moe {

/// Element types of logits and of the router's weight.
enum class LogitElement : i32 { fp32 = 0, bf16 = 1, fp16 = 2 };

}  // namespace varmoe::moe
