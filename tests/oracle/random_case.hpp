#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "oracle/half_types.hpp"
#include "oracle/oracle.hpp"
#include "oracle/parallel.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

/// Seeded random layers, in every storage of varmoe/weights.hpp, with every kind of routing. Where each
/// element lies is worked out here a second time, independently of src/model/weights.cpp. What is not part of
/// a matrix is poison (NaN). Values depend on seed and logical place alone: the same layer in another storage
/// or layout has the same values. Nothing of libm's exp, log, … enters: the same bits on every machine.
namespace oracle {

/// 256-byte aligned elements, not initialised.
class Buffer16 {
 public:
  Buffer16() = default;
  explicit Buffer16(std::int64_t count) : size_(count) {
    if (count > 0) {
      const auto bytes = (static_cast<std::size_t>(count) * 2 + 255) / 256 * 256;
      data_.reset(static_cast<std::uint16_t*>(std::aligned_alloc(256, bytes)));
      if (data_ == nullptr) throw std::bad_alloc();
    }
  }
  std::uint16_t* data() { return data_.get(); }
  const std::uint16_t* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * 2; }
  std::uint16_t& operator[](std::int64_t i) { return data_.get()[i]; }
  std::uint16_t operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(std::uint16_t* p) const { std::free(p); }
  };
  std::unique_ptr<std::uint16_t, Free> data_;
  std::int64_t size_ = 0;
};

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

namespace detail {

inline std::uint64_t mix(std::uint64_t z) {  // splitmix64's finaliser
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
inline std::uint64_t mix(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0, std::uint64_t c = 0) {
  return mix(mix(mix(mix(seed) ^ a) ^ b) ^ c);
}
/// In [0, 1).
inline double unit(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// 16 random bits → a number uniform in ±sigma·√3, encoded.
inline std::vector<std::uint16_t> value_table(varmoe::DType dtype, double sigma) {
  std::vector<std::uint16_t> table(65536);
  for (int i = 0; i < 65536; ++i) {
    table[static_cast<std::size_t>(i)] =
        encode(dtype, ((i + 0.5) / 32768.0 - 1.0) * 1.7320508075688772 * sigma);
  }
  return table;
}

/// Root mean square of f for inputs of the distribution used here, roughly: keeps outputs O(1).
inline double activation_rms(varmoe::Activation a) {
  switch (a) {
    case varmoe::Activation::silu_mul:
      return 0.55;
    case varmoe::Activation::gelu_tanh_mul:
    case varmoe::Activation::gelu_erf_mul:
      return 0.65;
    case varmoe::Activation::swiglu_oai:
      return 0.9;
    case varmoe::Activation::silu:
      return 0.55;
    case varmoe::Activation::gelu_tanh:
    case varmoe::Activation::gelu_erf:
      return 0.65;
    case varmoe::Activation::relu:
      return 0.7;
    case varmoe::Activation::relu2:
      return 1.2;
    case varmoe::Activation::identity:
      return 1.0;
  }
  return 1.0;
}

}  // namespace detail

/// Which buffer of a case a matrix lies in.
enum class Part : std::uint8_t { fc1, up, fc2 };

/// A matrix's place: element (output, k) at parts[part][offset + output·out_stride + k·k_stride].
struct Place {
  Part part = Part::fc1;
  std::int64_t offset = 0, out_stride = 0, k_stride = 0;
};
/// A bias's place in fc1_bias or fc2_bias: element i at offset + i·stride.
struct BiasPlace {
  std::int64_t offset = 0, stride = 1;
};
struct ExpertPlaces {
  Place gate, up, down;
  BiasPlace gate_bias, up_bias, down_bias;
};

/// Where every expert's matrices lie in a storage, and how large the buffers are.
struct StoragePlan {
  std::int64_t size[3] = {0, 0, 0};  ///< elements of fc1 (or gate), up, fc2; up is 0 where fc1 holds both
  std::vector<ExpertPlaces> experts;
  std::int64_t fc1_row = 0, fc2_row = 0;  ///< Storage::strided: elements between stored rows
  /// Shared experts, behind the routed ones in fc1 and fc2; storages that scatter experts scatter these too.
  std::vector<ExpertPlaces> shared;
  std::int64_t shared_gate = 0;        ///< where w_g begins in fc2
  std::int64_t bias_size[2] = {0, 0};  ///< elements of fc1_bias, fc2_bias
};

/// Where biases lie: each expert's one after another; in the storage "padded" padded too; in those of
/// pointers with a gap before each, at odd elements; by_hand gate and up apart with poison between entries.
inline void plan_biases(const varmoe::LayerSpec& spec, Storage storage, std::int64_t padded_width,
                        StoragePlan& plan) {
  const bool gated = is_gated(spec.activation);
  const bool interleaved = gated && spec.gate_order == varmoe::GateOrder::interleaved;
  const bool up_first = gated && spec.gate_order == varmoe::GateOrder::up_first;
  const bool scattered =
      storage == Storage::pointers || storage == Storage::strided || storage == Storage::by_hand;
  const std::int64_t gap = scattered ? 3 : 0;
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e) {
    ExpertPlaces& p = plan.experts[e];
    const std::int64_t stored = storage == Storage::padded ? padded_width : spec.expert_widths[e];
    std::int64_t& fc1 = plan.bias_size[0];
    fc1 += gap;
    if (storage == Storage::by_hand) {
      p.up_bias = {fc1, 2};
      p.gate_bias = {fc1 + 2 * stored, 2};
      fc1 += 4 * stored;
    } else if (!gated) {
      p.up_bias = {fc1, 1};
      fc1 += stored;
    } else {
      const std::int64_t stride = interleaved ? 2 : 1, second = fc1 + (interleaved ? 1 : stored);
      p.gate_bias = {up_first ? second : fc1, stride};
      p.up_bias = {up_first ? fc1 : second, stride};
      fc1 += 2 * stored;
    }
    plan.bias_size[1] += gap;
    p.down_bias = {plan.bias_size[1], 1};
    plan.bias_size[1] += spec.hidden_size;
  }
}

inline StoragePlan plan_storage(const varmoe::LayerSpec& spec, Storage storage, std::int64_t padded_width,
                                std::uint64_t seed) {
  if (!storage_fits(spec, storage)) throw std::logic_error("oracle: this storage does not fit the spec");
  const std::int64_t H = spec.hidden_size;
  const auto E = static_cast<std::int64_t>(spec.expert_widths.size());
  const bool gated = is_gated(spec.activation), nk1 = spec.fc1_layout == varmoe::WeightLayout::nk,
             nk2 = spec.fc2_layout == varmoe::WeightLayout::nk;
  const bool interleaved = gated && spec.gate_order == varmoe::GateOrder::interleaved;
  const bool up_first = gated && spec.gate_order == varmoe::GateOrder::up_first;
  const std::int64_t halves = gated ? 2 : 1;
  std::int64_t widest = 0, total = 0;
  for (const std::int64_t w : spec.expert_widths) widest = std::max(widest, w), total += w;
  StoragePlan plan;
  plan.experts.resize(static_cast<std::size_t>(E));

  // Gate and up inside one fc1 matrix that begins at `offset`, whose stored rows are `row` apart and whose
  // second half begins `half` outputs after the first.
  const auto place_fc1 = [&](ExpertPlaces& p, std::int64_t offset, std::int64_t row, std::int64_t half) {
    const std::int64_t output = nk1 ? row : 1, k = nk1 ? 1 : row;
    if (!gated) {
      p.up = {Part::fc1, offset, output, k};
    } else if (interleaved) {
      p.gate = {Part::fc1, offset, 2 * output, k};
      p.up = {Part::fc1, offset + output, 2 * output, k};
    } else {
      p.gate = {Part::fc1, offset + (up_first ? half * output : 0), output, k};
      p.up = {Part::fc1, offset + (up_first ? 0 : half * output), output, k};
    }
  };
  const auto place_fc2 = [&](ExpertPlaces& p, std::int64_t offset, std::int64_t row) {
    p.down = {Part::fc2, offset, nk2 ? row : 1, nk2 ? 1 : row};
  };

  const bool scattered =
      storage == Storage::pointers || storage == Storage::strided || storage == Storage::by_hand;
  const std::int64_t gap = scattered ? 40 : 0;  // poison between experts
  const auto add_shared = [&] {
    for (const std::int64_t w : spec.shared_widths) {
      ExpertPlaces& p = plan.shared.emplace_back();
      place_fc1(p, plan.size[0] + gap, nk1 ? H : halves * w, w);
      plan.size[0] += gap + halves * w * H;
      place_fc2(p, plan.size[2] + gap, nk2 ? w : H);
      plan.size[2] += gap + w * H;
    }
    plan.shared_gate = plan.size[2] + gap;
    if (spec.shared_gate) plan.size[2] += gap + H;
  };

  if (storage == Storage::packed || storage == Storage::packed_joint) {
    std::int64_t before = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      ExpertPlaces& p = plan.experts[static_cast<std::size_t>(e)];
      const std::int64_t w = spec.expert_widths[static_cast<std::size_t>(e)];
      if (storage == Storage::packed) {
        p.gate = {Part::fc1, before, 1, total};
        p.up = {gated ? Part::up : Part::fc1, before, 1, total};
      } else {
        place_fc1(p, halves * before, halves * total, w);
      }
      place_fc2(p, before * H, H);
      before += w;
    }
    plan.size[0] = H * total * (storage == Storage::packed ? 1 : halves);
    plan.size[1] = storage == Storage::packed && gated ? H * total : 0;
    plan.size[2] = H * total;
    add_shared();
    return plan;
  }

  // The others put one fc1 and one fc2 matrix an expert somewhere.
  std::vector<std::int64_t> order(static_cast<std::size_t>(E));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (scattered) {
    for (std::int64_t i = E - 1; i > 0; --i) {
      const auto j = static_cast<std::int64_t>(detail::mix(seed, 77, static_cast<std::uint64_t>(i)) %
                                               static_cast<std::uint64_t>(i + 1));
      std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(j)]);
    }
  }
  plan.fc1_row = (nk1 ? H : halves * widest) + 24;
  plan.fc2_row = (nk2 ? widest : H) + 8;
  for (const std::int64_t e : order) {
    ExpertPlaces& p = plan.experts[static_cast<std::size_t>(e)];
    const std::int64_t w = spec.expert_widths[static_cast<std::size_t>(e)];
    const std::int64_t stored = storage == Storage::padded ? padded_width : w;
    if (storage == Storage::by_hand) {
      const std::int64_t row = (nk1 ? H : w) + 16;
      const std::int64_t output = nk1 ? row : 1, k = nk1 ? 1 : row, rows = nk1 ? w : H;
      p.gate = {Part::fc1, plan.size[0] + gap, output, k};
      p.up = {gated ? Part::up : Part::fc1, (gated ? plan.size[1] : plan.size[0]) + gap, output, k};
      plan.size[0] += gap + rows * row;
      if (gated) plan.size[1] += gap + rows * row;
    } else {
      std::int64_t row = nk1 ? H : halves * stored;
      if (storage == Storage::strided) row = plan.fc1_row;
      place_fc1(p, plan.size[0] + gap, row, stored);
      plan.size[0] += gap + (nk1 ? halves * stored : H) * row;
    }
    std::int64_t row2 = nk2 ? stored : H;
    if (storage == Storage::strided) row2 = plan.fc2_row;
    place_fc2(p, plan.size[2] + gap, row2);
    plan.size[2] += gap + (nk2 ? H : stored) * row2;
  }
  add_shared();
  return plan;
}

/// A layer's weights, inputs and routing in host memory.
struct RandomCase {
  varmoe::LayerSpec spec;
  CaseOptions options;
  StoragePlan plan;
  Buffer16 fc1, up, fc2;        ///< the storage's buffers; `up` only where gate and up are apart
  Buffer16 fc1_bias, fc2_bias;  ///< of a layer with biases
  Buffer16 x;                   ///< [T, x_stride]
  Buffer16 out;                 ///< [T, out_stride]: poison, or numbers when accumulating
  std::int64_t x_stride = 0, out_stride = 0;
  std::vector<std::int64_t> ids64;  ///< [T, k]
  std::vector<std::int32_t> ids32;  ///< the same
  std::vector<float> topk_weights;  ///< [T, k]

  /// Views for the oracle. They point into this case.
  OracleLayer oracle_layer() const {
    OracleLayer layer;
    layer.hidden_size = spec.hidden_size;
    layer.top_k = spec.top_k;
    layer.activation = spec.activation;
    layer.params = spec.activation_params;
    layer.dtype = spec.dtype;
    layer.weight_on_input = spec.weight_on_input;
    const auto bias = [](const Buffer16& b, const BiasPlace& p) {
      return OracleVector{b.data() + p.offset, p.stride};
    };
    const auto matrix = [&](const Place& p) {
      const Buffer16& b = p.part == Part::fc1 ? fc1 : p.part == Part::up ? up : fc2;
      return OracleMatrix{b.data() + p.offset, p.out_stride, p.k_stride};
    };
    for (std::size_t e = 0; e < spec.expert_widths.size(); ++e) {
      const ExpertPlaces& p = plan.experts[e];
      OracleExpert expert;
      expert.width = spec.expert_widths[e];
      if (is_gated(spec.activation)) expert.gate = matrix(p.gate);
      expert.up = matrix(p.up);
      expert.down = matrix(p.down);
      if (spec.bias) {
        if (is_gated(spec.activation)) expert.gate_bias = bias(fc1_bias, p.gate_bias);
        expert.up_bias = bias(fc1_bias, p.up_bias);
        expert.down_bias = bias(fc2_bias, p.down_bias);
      }
      layer.experts.push_back(expert);
    }
    for (std::size_t e = 0; e < spec.shared_widths.size(); ++e) {
      const ExpertPlaces& p = plan.shared[e];
      layer.shared.push_back({spec.shared_widths[e],
                              is_gated(spec.activation) ? matrix(p.gate) : OracleMatrix{}, matrix(p.up),
                              matrix(p.down)});
    }
    if (spec.shared_gate) layer.shared_gate = fc2.data() + plan.shared_gate;
    return layer;
  }
  OracleCall oracle_call() const {
    OracleCall call;
    call.x = x.data();
    call.x_stride = x_stride;
    call.ids = ids64.data();
    call.weights = topk_weights.data();
    call.old_out = options.accumulate ? out.data() : nullptr;
    call.out_stride = out_stride;
    return call;
  }
  std::vector<double> reference(int threads = 0) const {
    return oracle_forward(oracle_layer(), oracle_call(), options.tokens, threads);
  }
  std::vector<double> reference(std::span<const std::int64_t> tokens, int threads = 0) const {
    return oracle_forward(oracle_layer(), oracle_call(), tokens, threads);
  }

  /// The library's description of these weights when the buffers lie at these addresses (device copies of
  /// fc1, up and fc2, or the buffers themselves). Uses the library's own storage functions.
  varmoe::Result<varmoe::Weights> weights(const void* fc1_at, const void* up_at, const void* fc2_at,
                                          const void* fc1_bias_at = nullptr,
                                          const void* fc2_bias_at = nullptr) const {
    auto made = routed_weights(fc1_at, up_at, fc2_at, fc1_bias_at, fc2_bias_at);
    if (!made || spec.shared_widths.empty()) return made;
    const auto at = [](const void* base, std::int64_t offset) -> const void* {
      return static_cast<const std::uint16_t*>(base) + offset;
    };
    const bool gated = is_gated(spec.activation);
    std::vector<const void*> fc1_list, fc2_list;
    for (const ExpertPlaces& p : plan.shared) {
      fc1_list.push_back(at(fc1_at, gated ? std::min(p.gate.offset, p.up.offset) : p.up.offset));
      fc2_list.push_back(at(fc2_at, p.down.offset));
    }
    const void* gate = spec.shared_gate ? at(fc2_at, plan.shared_gate) : nullptr;
    const bool apart = options.storage == Storage::pointers || options.storage == Storage::strided ||
                       options.storage == Storage::by_hand;
    const varmoe::Status set = apart
                                   ? made->set_shared_pointers(spec, fc1_list, fc2_list, gate)
                                   : made->set_shared_blocks(spec, fc1_list.front(), fc2_list.front(), gate);
    if (!set) return set.error();
    return made;
  }
  varmoe::Result<varmoe::Weights> routed_weights(const void* fc1_at, const void* up_at, const void* fc2_at,
                                                 const void* fc1_bias_at, const void* fc2_bias_at) const {
    varmoe::Result<varmoe::Weights> matrices = weight_matrices(fc1_at, up_at, fc2_at);
    if (!matrices || !spec.bias) return matrices;
    const auto at = [](const void* base, const BiasPlace& p) -> const void* {
      return static_cast<const std::uint16_t*>(base) + p.offset;
    };
    const bool gated = is_gated(spec.activation);
    switch (options.storage) {
      case Storage::padded:
        return matrices->with_biases(spec, fc1_bias_at, fc2_bias_at, options.padded_width);
      case Storage::pointers:
      case Storage::strided: {
        std::vector<const void*> fc1_list, fc2_list;
        for (const ExpertPlaces& p : plan.experts) {
          const bool gate_first = gated && p.gate_bias.offset < p.up_bias.offset;
          fc1_list.push_back(at(fc1_bias_at, gate_first ? p.gate_bias : p.up_bias));
          fc2_list.push_back(at(fc2_bias_at, p.down_bias));
        }
        return matrices->with_biases(spec, fc1_list, fc2_list);
      }
      case Storage::by_hand:
        for (std::size_t e = 0; e < plan.experts.size(); ++e) {
          const ExpertPlaces& p = plan.experts[e];
          varmoe::ExpertWeights& w = matrices->experts[e];
          if (gated) w.gate_bias = at(fc1_bias_at, p.gate_bias);
          w.up_bias = at(fc1_bias_at, p.up_bias);
          w.down_bias = at(fc2_bias_at, p.down_bias);
          w.fc1_bias_stride = p.up_bias.stride;
        }
        return matrices;
      default:
        return matrices->with_biases(spec, fc1_bias_at, fc2_bias_at);
    }
  }
  varmoe::Result<varmoe::Weights> weight_matrices(const void* fc1_at, const void* up_at,
                                                  const void* fc2_at) const {
    const auto at = [](const void* base, std::int64_t offset) -> const void* {
      return static_cast<const std::uint16_t*>(base) + offset;
    };
    switch (options.storage) {
      case Storage::blocks:
        return varmoe::Weights::blocks(spec, fc1_at, fc2_at);
      case Storage::padded:
        return varmoe::Weights::padded(spec, fc1_at, fc2_at, options.padded_width);
      case Storage::packed:
        return is_gated(spec.activation) ? varmoe::Weights::packed(spec, fc1_at, up_at, fc2_at)
                                         : varmoe::Weights::packed(spec, nullptr, fc1_at, fc2_at);
      case Storage::packed_joint:
        return varmoe::Weights::packed_joint(spec, fc1_at, fc2_at);
      case Storage::pointers:
      case Storage::strided: {
        std::vector<const void*> fc1_list, fc2_list;
        const bool gated = is_gated(spec.activation);
        for (const ExpertPlaces& p : plan.experts) {
          fc1_list.push_back(at(fc1_at, gated ? std::min(p.gate.offset, p.up.offset) : p.up.offset));
          fc2_list.push_back(at(fc2_at, p.down.offset));
        }
        const bool strided = options.storage == Storage::strided;
        return varmoe::Weights::pointers(spec, fc1_list, fc2_list, strided ? plan.fc1_row : 0,
                                         strided ? plan.fc2_row : 0);
      }
      case Storage::by_hand: {
        varmoe::Weights w;
        for (const ExpertPlaces& p : plan.experts) {
          varmoe::ExpertWeights e;
          if (is_gated(spec.activation)) e.gate = at(fc1_at, p.gate.offset);
          e.up = at(p.up.part == Part::up ? up_at : fc1_at, p.up.offset);
          e.down = at(fc2_at, p.down.offset);
          e.fc1_stride = std::max(p.up.out_stride, p.up.k_stride);
          e.fc2_stride = std::max(p.down.out_stride, p.down.k_stride);
          w.experts.push_back(e);
        }
        return w;
      }
    }
    throw std::logic_error("oracle: unknown storage");
  }
  varmoe::Result<varmoe::Weights> host_weights() const {
    return weights(fc1.data(), up.data(), fc2.data(), fc1_bias.data(), fc2_bias.data());
  }
};

/// Draws ids of `tokens` tokens.
inline std::vector<std::int64_t> random_ids(const varmoe::LayerSpec& spec, const CaseOptions& o) {
  const auto E = static_cast<std::int64_t>(spec.expert_widths.size());
  const std::int64_t k = spec.top_k;
  const auto random = [&](std::uint64_t what, std::int64_t t, std::int64_t j, std::uint64_t attempt = 0) {
    return detail::mix(o.seed, 1000 + what, static_cast<std::uint64_t>(t * k + j), attempt);
  };
  std::vector<std::int64_t> allowed;
  for (std::int64_t e = 0; e < E; ++e) {
    if (o.empty_every < 2 || e % o.empty_every != 1) allowed.push_back(e);
  }
  const auto n = static_cast<std::int64_t>(allowed.size());
  for (std::int64_t i = n - 1; i > 0;
       --i) {  // shuffled: the favourite of zipf, one_expert and half_on_one is any expert
    const std::uint64_t j =
        detail::mix(o.seed, 999, static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(i + 1);
    std::swap(allowed[static_cast<std::size_t>(i)], allowed[j]);
  }
  std::vector<double>
      cumulative;  // of Zipf(1.2); r^1.2 by fifth roots would need libm, so 1/(r·r^(1/5)) by Newton
  double sum = 0;
  for (std::int64_t r = 1; r <= n; ++r) {
    double root = 1.5;  // r^(1/5): + − × ÷ alone, the same bits everywhere
    for (int i = 0; i < 60; ++i) root = (4 * root + static_cast<double>(r) / (root * root * root * root)) / 5;
    sum += 1.0 / (static_cast<double>(r) * root);
    cumulative.push_back(sum);
  }
  const auto draw = [&](std::uint64_t bits) -> std::int64_t {
    if (o.routing == Routing::zipf) {
      const auto it = std::upper_bound(cumulative.begin(), cumulative.end(), detail::unit(bits) * sum);
      return allowed[static_cast<std::size_t>(std::min<std::ptrdiff_t>(it - cumulative.begin(), n - 1))];
    }
    return allowed[bits % static_cast<std::uint64_t>(n)];
  };

  std::vector<std::int64_t> ids(static_cast<std::size_t>(o.tokens * k));
  for (std::int64_t t = 0; t < o.tokens; ++t) {
    std::int64_t* row = ids.data() + t * k;
    for (std::int64_t j = 0; j < k; ++j) {
      if (o.routing == Routing::one_expert ||
          (o.routing == Routing::half_on_one && random(1, t, j) % 2 == 0)) {
        row[j] = allowed[0];
        continue;
      }
      for (std::uint64_t attempt = 0; attempt < 100; ++attempt) {  // distinct where there are experts enough
        row[j] = draw(random(2, t, j, attempt));
        if (j >= n || std::find(row, row + j, row[j]) == row + j) break;
      }
    }
    for (std::int64_t j = 1; j < k; ++j) {
      if (detail::unit(random(3, t, j)) < o.duplicate_fraction) row[j] = row[0];
    }
    for (std::int64_t j = 0; j < k; ++j) {
      if (detail::unit(random(4, t, j)) >= o.invalid_fraction) continue;
      const std::int64_t bad[] = {-1, E, E + 5, 2147483647, -2147483648LL};
      row[j] = bad[random(5, t, j) % 5];
    }
  }
  return ids;
}

inline RandomCase make_case(const varmoe::LayerSpec& spec, CaseOptions options) {
  RandomCase c;
  const std::int64_t H = spec.hidden_size, T = options.tokens, k = spec.top_k;
  if (options.padded_width == 0 && !spec.expert_widths.empty()) {
    options.padded_width = *std::max_element(spec.expert_widths.begin(), spec.expert_widths.end()) + 16;
  }
  c.spec = spec;
  c.options = options;
  c.plan = plan_storage(spec, options.storage, options.padded_width, options.seed);
  if (spec.bias) plan_biases(spec, options.storage, options.padded_width, c.plan);
  c.x_stride = options.x_stride != 0 ? options.x_stride : H;
  c.out_stride = options.out_stride != 0 ? options.out_stride : H;

  const auto poison = [&](Buffer16& b) {
    constexpr std::int64_t chunk = 1 << 20;
    parallel_for((b.size() + chunk - 1) / chunk, options.threads, [&](std::int64_t i) {
      std::fill(b.data() + i * chunk, b.data() + std::min(b.size(), (i + 1) * chunk), kPoison);
    });
  };
  c.fc1 = Buffer16(c.plan.size[0]);
  c.up = Buffer16(c.plan.size[1]);
  c.fc2 = Buffer16(c.plan.size[2]);
  c.fc1_bias = Buffer16(c.plan.bias_size[0]);
  c.fc2_bias = Buffer16(c.plan.bias_size[1]);
  c.x = Buffer16(T * c.x_stride);
  c.out = Buffer16(T * c.out_stride);
  const bool gaps = options.storage != Storage::blocks && options.storage != Storage::packed &&
                    options.storage != Storage::packed_joint;
  if (gaps) poison(c.fc1), poison(c.up), poison(c.fc2);
  poison(c.fc1_bias), poison(c.fc2_bias);
  poison(c.x);
  poison(c.out);

  // fc1 keeps unit variance for unit x; fc2 brings h back to it.
  const auto fc1_table = detail::value_table(spec.dtype, 1.0 / std::sqrt(static_cast<double>(H)));
  const auto x_table = detail::value_table(spec.dtype, 1.0);
  const auto bias_table = detail::value_table(spec.dtype, 0.5);
  const double h_rms = detail::activation_rms(spec.activation);
  struct Row {  // `count` elements `step` apart; element i is logical element first + i·logical_step of its
                // matrix
    std::uint16_t* at;
    const std::uint16_t* table;
    std::int64_t count, step, logical_step;
    std::uint64_t first, stream;
  };
  const auto fill = [](const Row& r) {
    for (std::int64_t i = 0; i < r.count; ++i) {
      r.at[i * r.step] =
          r.table[detail::mix(r.stream + r.first + static_cast<std::uint64_t>(i * r.logical_step)) >> 48];
    }
  };
  const auto fill_matrix = [&](std::uint64_t stream, Buffer16& b, const Place& p, const std::uint16_t* table,
                               std::int64_t outputs, std::int64_t depth) {
    const bool along_k = p.k_stride <= p.out_stride;
    const std::int64_t rows = along_k ? outputs : depth;
    constexpr std::int64_t chunk = 16;
    parallel_for((rows + chunk - 1) / chunk, options.threads, [&](std::int64_t i) {
      for (std::int64_t r = i * chunk; r < std::min(rows, (i + 1) * chunk); ++r) {
        std::uint16_t* at = b.data() + p.offset;
        const auto row = static_cast<std::uint64_t>(r);
        if (along_k) {
          fill({at + r * p.out_stride, table, depth, p.k_stride, 1, row * static_cast<std::uint64_t>(depth),
                stream});
        } else {
          fill({at + r * p.k_stride, table, outputs, p.out_stride, depth, row, stream});
        }
      }
    });
  };
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e) {
    const ExpertPlaces& p = c.plan.experts[e];
    const std::int64_t w = spec.expert_widths[e];
    const auto fc2_table = detail::value_table(spec.dtype, 1.0 / (h_rms * std::sqrt(static_cast<double>(w))));
    const auto stream = [&](std::uint64_t matrix) { return detail::mix(options.seed, matrix, e); };
    if (is_gated(spec.activation)) fill_matrix(stream(1), c.fc1, p.gate, fc1_table.data(), w, H);
    fill_matrix(stream(2), p.up.part == Part::up ? c.up : c.fc1, p.up, fc1_table.data(), w, H);
    fill_matrix(stream(3), c.fc2, p.down, fc2_table.data(), H, w);
    if (!spec.bias) continue;
    const auto fill_bias = [&](std::uint64_t which, Buffer16& b, const BiasPlace& place, std::int64_t count) {
      fill({b.data() + place.offset, bias_table.data(), count, place.stride, 1, 0, stream(which)});
    };
    if (is_gated(spec.activation)) fill_bias(11, c.fc1_bias, p.gate_bias, w);
    fill_bias(12, c.fc1_bias, p.up_bias, w);
    fill_bias(13, c.fc2_bias, p.down_bias, H);
  }
  for (std::size_t e = 0; e < spec.shared_widths.size(); ++e) {
    const ExpertPlaces& p = c.plan.shared[e];
    const std::int64_t w = spec.shared_widths[e];
    const auto fc2_table = detail::value_table(spec.dtype, 1.0 / (h_rms * std::sqrt(static_cast<double>(w))));
    const auto stream = [&](std::uint64_t matrix) { return detail::mix(options.seed, 10 + matrix, e); };
    if (is_gated(spec.activation)) fill_matrix(stream(1), c.fc1, p.gate, fc1_table.data(), w, H);
    fill_matrix(stream(2), c.fc1, p.up, fc1_table.data(), w, H);
    fill_matrix(stream(3), c.fc2, p.down, fc2_table.data(), H, w);
  }
  if (spec.shared_gate) {  // x·w_g of standard deviation 2: gates from near 0 to near 1
    const auto table = detail::value_table(spec.dtype, 2.0 / std::sqrt(static_cast<double>(H)));
    fill({c.fc2.data() + c.plan.shared_gate, table.data(), H, 1, 1, 0, detail::mix(options.seed, 14)});
  }
  parallel_for(T, options.threads, [&](std::int64_t t) {
    const auto first = static_cast<std::uint64_t>(t * H);
    fill({c.x.data() + t * c.x_stride, x_table.data(), H, 1, 1, first, detail::mix(options.seed, 4)});
    if (options.accumulate) {
      fill({c.out.data() + t * c.out_stride, x_table.data(), H, 1, 1, first, detail::mix(options.seed, 5)});
    }
  });

  c.ids64 = random_ids(spec, options);
  for (const std::int64_t id : c.ids64) c.ids32.push_back(static_cast<std::int32_t>(id));
  c.topk_weights.resize(static_cast<std::size_t>(T * k));
  for (std::int64_t t = 0; t < T; ++t) {  // renormalised to a sum of one
    double sum = 0;
    std::vector<double> w(static_cast<std::size_t>(k));
    for (std::int64_t j = 0; j < k; ++j) {
      w[static_cast<std::size_t>(j)] =
          0.1 + detail::unit(detail::mix(options.seed, 6, static_cast<std::uint64_t>(t),
                                         static_cast<std::uint64_t>(j)));
      sum += w[static_cast<std::size_t>(j)];
    }
    for (std::int64_t j = 0; j < k; ++j) {
      c.topk_weights[static_cast<std::size_t>(t * k + j)] =
          static_cast<float>(w[static_cast<std::size_t>(j)] / sum);
    }
  }
  return c;
}

/// Up to `count` tokens spread over 0 … T−1, first and last among them: what a large layer is checked on.
inline std::vector<std::int64_t> sample_tokens(std::int64_t tokens, std::int64_t count,
                                               std::uint64_t seed = 1) {
  std::vector<std::int64_t> sample;
  if (tokens <= count) {
    for (std::int64_t t = 0; t < tokens; ++t) sample.push_back(t);
    return sample;
  }
  sample = {0, tokens - 1};
  for (std::uint64_t i = 0; static_cast<std::int64_t>(sample.size()) < count; ++i) {
    const auto t = static_cast<std::int64_t>(detail::mix(seed, 8, i) % static_cast<std::uint64_t>(tokens));
    if (std::find(sample.begin(), sample.end(), t) == sample.end()) sample.push_back(t);
  }
  std::sort(sample.begin(), sample.end());
  return sample;
}

}  // namespace oracle
