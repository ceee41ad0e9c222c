#include "cpu/kernels.hpp"

#include <fmt/format.h>

#include <string>
#include <vector>

#if defined(VARMOE_CPU_X86)
#include <cpuid.h>
#endif

namespace varmoe::cpu {

namespace {

#if defined(VARMOE_CPU_X86)
// __builtin_cpu_supports, which also asks whether the system saves the registers, knows no "f16c" in every
// compiler.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1u << 29)) != 0;
}
#endif

}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> list;
#if defined(VARMOE_CPU_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    list.push_back(&avx512_kernels());
  }
  if (avx2) list.push_back(&avx2_kernels());
#endif
  list.push_back(&generic_kernels());
  return list;
}

Result<const Kernels*> kernels_named(std::string_view name) {
  const auto list = available_kernels();
  std::vector<std::string> names;
  for (const Kernels* k : list) {
    if (name.empty() || name == k->name) return k;
    names.emplace_back(k->name);
  }
  return Error(ErrorCode::unsupported,
               fmt::format("instruction set \"{}\" is not available; this machine has {}", name.substr(0, 32),
                           fmt::join(names, ", ")));
}

}  // namespace varmoe::cpu
