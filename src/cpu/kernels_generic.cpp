#define VARMOE_CPU_LANES 4
#include "cpu/kernels.inl"

namespace varmoe::cpu {

const Kernels& generic_kernels() noexcept {
  static constexpr Kernels table{"generic", product, scale_round, combine, widen};
  return table;
}

}  // namespace varmoe::cpu
