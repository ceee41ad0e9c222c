#pragma once

#include <cstddef>
#include <cstdint>

#include "oracle/oracle.hpp"
#include "varmoe/layer_spec.hpp"

/// What is asked of a random layer (oracle/random_case.hpp).
namespace oracle {

enum class Storage : std::uint8_t {
  blocks,
  padded,
  packed,        ///< kn only
  packed_joint,  ///< kn only
  pointers,      ///< experts in shuffled order with gaps, contiguous matrices
  strided,       ///< as pointers, but every row is a slice of a longer one
  by_hand,       ///< gate and up in tensors of their own, ExpertWeights filled by hand; not interleaved
};
inline constexpr Storage kStorages[] = {Storage::blocks,       Storage::padded,   Storage::packed,
                                        Storage::packed_joint, Storage::pointers, Storage::strided,
                                        Storage::by_hand};
inline const char* to_string(Storage s) {
  static constexpr const char* names[] = {"blocks",   "padded",  "packed", "packed_joint",
                                          "pointers", "strided", "by_hand"};
  return names[static_cast<std::size_t>(s)];
}
/// Whether a spec's layouts and gate order can lie in this storage.
inline bool storage_fits(const varmoe::LayerSpec& spec, Storage s) {
  const bool kn = spec.fc1_layout == varmoe::WeightLayout::kn && spec.fc2_layout == varmoe::WeightLayout::kn;
  const bool interleaved = is_gated(spec.activation) && spec.gate_order == varmoe::GateOrder::interleaved;
  if (s == Storage::packed) return kn && !interleaved;
  if (s == Storage::packed_joint) return kn;
  if (s == Storage::by_hand) return !interleaved;
  return true;
}

enum class Routing : std::uint8_t {
  uniform,
  zipf,         ///< expert of rank r with weight 1 / r^1.2, ranks shuffled by the seed
  one_expert,   ///< everything to one expert: k times per token
  half_on_one,  ///< half of the slots to one expert
};
inline constexpr Routing kRoutings[] = {Routing::uniform, Routing::zipf, Routing::one_expert,
                                        Routing::half_on_one};
inline const char* to_string(Routing r) {
  static constexpr const char* names[] = {"uniform", "zipf", "one_expert", "half_on_one"};
  return names[static_cast<std::size_t>(r)];
}

struct CaseOptions {
  std::int64_t tokens = 16;
  std::uint64_t seed = 1;
  Storage storage = Storage::blocks;
  Routing routing = Routing::uniform;
  double invalid_fraction = 0;  ///< of the slots: −1, E, E + 5, INT32_MAX or INT32_MIN instead of an expert
  double duplicate_fraction =
      0;  ///< of the slots: repeat the token's first id (one_expert and half_on_one repeat anyway)
  std::int64_t empty_every = 0;   ///< n > 0: experts whose number is 1 modulo n get no row (n ≥ 2)
  std::int64_t x_stride = 0;      ///< 0: H. The gap is poison
  std::int64_t out_stride = 0;    ///< 0: H
  bool accumulate = false;        ///< `out` starts with numbers instead of poison
  std::int64_t padded_width = 0;  ///< Storage::padded; 0: the widest + 16
  int threads = 0;                ///< for filling
};

}  // namespace oracle
