#define VARMOE_CPU_LANES 16
#include "cpu/kernels.inl"

namespace varmoe::cpu {

const Kernels& avx512_kernels() noexcept {
  static constexpr Kernels table{"avx512", product, scale_round, combine, widen};
  return table;
}

}  // namespace varmoe::cpu
