#include "model/gemm_fields.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace varmoe::model {
namespace {

constexpr std::int32_t kRowStep[] = {8, 16, 32};
constexpr std::int32_t kCluster[] = {1, 2};
constexpr std::int32_t kBlockK[] = {32, 64, 128};
constexpr std::int32_t kWarpsM[] = {1, 2, 4};
constexpr std::int32_t kWarpsN[] = {1, 2, 4, 8};

constexpr GemmField kFields[] = {
    {"block_m", &GemmConfig::block_m, {}, 8, 256, 8},
    {"block_n", &GemmConfig::block_n, {}, 32, 256, 16},
    {"block_k", &GemmConfig::block_k, kBlockK},
    {"stages", &GemmConfig::stages, {}, 2, 8, 1},
    {"warps_m", &GemmConfig::warps_m, kWarpsM},
    {"warps_n", &GemmConfig::warps_n, kWarpsN},
    {"ctas_per_sm", &GemmConfig::ctas_per_sm, {}, 1, 8, 1},
    {"raster", &GemmConfig::raster, {}, 1, 64, 1},
    {"row_step", &GemmConfig::row_step, kRowStep},
    {"cluster", &GemmConfig::cluster, kCluster},
};

}  // namespace

bool GemmField::takes(std::int64_t value) const {
  if (!choices.empty()) return std::find(choices.begin(), choices.end(), value) != choices.end();
  return value >= min && value <= max && value % multiple == 0;
}

std::string GemmField::allowed() const {
  if (!choices.empty()) return fmt::format("one of {}", fmt::join(choices, ", "));
  if (multiple != 1) return fmt::format("a multiple of {} from {} to {}", multiple, min, max);
  return fmt::format("from {} to {}", min, max);
}

std::span<const GemmField> gemm_fields() {
  return kFields;
}

}  // namespace varmoe::model
