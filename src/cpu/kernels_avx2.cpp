#define VARMOE_CPU_LANES 8
#include "cpu/kernels.inl"

namespace varmoe::cpu {

const Kernels& avx2_kernels() noexcept {
  static constexpr Kernels table{"avx2", product, scale_round, combine, widen};
  return table;
}

}  // namespace varmoe::cpu
