#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// The loops of the CPU layer, compiled once for each instruction set and chosen when the process starts.
namespace varmoe::cpu {

/// Rows of one product at most, and outputs of one product at most (a multiple of 32).
inline constexpr int kTileRows = 48;
inline constexpr int kTileOutputs = 128;
/// Floats of scratch that a product needs: the rows and the weights of one block of K, as fp32.
inline constexpr std::size_t kBlockDepth = 1024;   ///< nk
inline constexpr std::size_t kBlockDepthKn = 256;  ///< kn
inline constexpr std::size_t kRowScratch = kTileRows * kBlockDepth;
inline constexpr std::size_t kWeightScratch = kTileOutputs * kBlockDepthKn;
inline constexpr std::size_t kProductScratch = kRowScratch + kWeightScratch;

/// c[m][n] = Σ_k rows[m][k] · w(n, k), accumulated in fp32. How each sum is associated depends on `depth`,
/// layout and instruction set alone: not on the other rows, nor on how outputs are split among products.
struct Product {
  DType dtype = DType::bf16;
  WeightLayout layout = WeightLayout::nk;
  const std::uint16_t* const* rows = nullptr;  ///< row_count pointers to `depth` elements
  int row_count = 0;                           ///< 1 … kTileRows
  const std::uint16_t* weights =
      nullptr;  ///< element (0, 0); nk: output n's row at n·stride, kn: k's row at k·stride
  std::int64_t weight_stride = 0;
  int outputs = 0;           ///< a multiple of 8, at most kTileOutputs
  std::int64_t depth = 0;    ///< K, at least 1
  float* c = nullptr;        ///< row m at m·kTileOutputs; columns beyond `outputs` may be overwritten
  float* scratch = nullptr;  ///< kProductScratch floats, 64-byte aligned
};

struct Kernels {
  const char* name;
  void (*product)(const Product&);
  /// out[i] = round(values[i] · scale).
  void (*scale_round)(DType dtype, const float* values, float scale, std::int64_t count, std::uint16_t* out);
  /// out[i] = round(Σ_j rows[j][i], in ascending j, + old[i] if `old` is not null). No row: zero, or the old
  /// value.
  void (*combine)(DType dtype, const std::uint16_t* const* rows, int row_count, const std::uint16_t* old,
                  std::int64_t count, std::uint16_t* out);
  void (*widen)(DType dtype, const std::uint16_t* in, std::int64_t count, float* out);
};

/// Those that this machine runs, best first.
std::vector<const Kernels*> available_kernels();
/// The one of this name; empty: the best. Another is `unsupported`.
Result<const Kernels*> kernels_named(std::string_view name);

const Kernels& generic_kernels() noexcept;
const Kernels& avx2_kernels() noexcept;
const Kernels& avx512_kernels() noexcept;

}  // namespace varmoe::cpu
