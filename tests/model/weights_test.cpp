#include "varmoe/weights.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using namespace varmoe;

namespace {

using Element = std::uint16_t;

/// Zeroed elements at a 64-byte boundary.
class Buffer {
 public:
  explicit Buffer(std::int64_t elements)
      : size_(elements), data_(static_cast<Element*>(::operator new (bytes(), std::align_val_t{64}))) {
    std::memset(data_, 0, bytes());
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::operator delete (data_, std::align_val_t{64}); }
  Element* data() { return data_; }
  Element& operator[](std::int64_t i) {
    if (i < 0 || i >= size_) throw std::out_of_range("Buffer");
    return data_[i];
  }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(size_ + 1) * sizeof(Element); }
  std::int64_t size_;
  Element* data_;
};

/// What stands for gate, up and down of an expert: distinct enough for these sizes.
Element gate_value(std::int64_t e, std::int64_t j, std::int64_t h) {
  return static_cast<Element>(1 + e * 20011 + j * 331 + h);
}
Element up_value(std::int64_t e, std::int64_t j, std::int64_t h) {
  return static_cast<Element>(7 + e * 15013 + j * 577 + 3 * h);
}
Element down_value(std::int64_t e, std::int64_t h, std::int64_t j) {
  return static_cast<Element>(13 + e * 9001 + h * 769 + 5 * j);
}

/// Index of gate (or up) column j at depth h in an fc1 matrix of stored width w with rows `stride` apart.
std::int64_t fc1_index(const LayerSpec& spec, bool up, std::int64_t j, std::int64_t h, std::int64_t w,
                       std::int64_t stride) {
  std::int64_t row = j;
  if (spec.gated()) {
    if (spec.gate_order == GateOrder::interleaved) {
      row = 2 * j + (up ? 1 : 0);
    } else {
      const bool second = (spec.gate_order == GateOrder::gate_first) == up;
      row = j + (second ? w : 0);
    }
  }
  return spec.fc1_layout == WeightLayout::nk ? row * stride + h : h * stride + row;
}

std::int64_t fc2_index(const LayerSpec& spec, std::int64_t h, std::int64_t j, std::int64_t stride) {
  return spec.fc2_layout == WeightLayout::nk ? h * stride + j : j * stride + h;
}

void fill_expert(const LayerSpec& spec, std::int64_t e, std::int64_t valid, std::int64_t stored, Buffer& fc1,
                 std::int64_t fc1_at, std::int64_t fc1_stride, Buffer& fc2, std::int64_t fc2_at,
                 std::int64_t fc2_stride) {
  for (std::int64_t j = 0; j < valid; ++j) {
    for (std::int64_t h = 0; h < spec.hidden_size; ++h) {
      if (spec.gated()) fc1[fc1_at + fc1_index(spec, false, j, h, stored, fc1_stride)] = gate_value(e, j, h);
      fc1[fc1_at + fc1_index(spec, true, j, h, stored, fc1_stride)] = up_value(e, j, h);
      fc2[fc2_at + fc2_index(spec, h, j, fc2_stride)] = down_value(e, h, j);
    }
  }
}

/// Reads every element back through the pointers and strides, as a kernel does.
void check_reads(const LayerSpec& spec, const Result<Weights>& weights) {
  REQUIRE_MESSAGE(weights, (weights ? "" : weights.error().message()));
  REQUIRE(weights->experts.size() == spec.expert_widths.size());
  std::int64_t wrong = 0;
  for (std::int64_t e = 0; e < spec.num_experts(); ++e) {
    const ExpertWeights& x = weights->experts[static_cast<std::size_t>(e)];
    const auto* gate = static_cast<const Element*>(x.gate);
    const auto* up = static_cast<const Element*>(x.up);
    const auto* down = static_cast<const Element*>(x.down);
    const bool nk = spec.fc1_layout == WeightLayout::nk;
    const bool joint = spec.gated() && spec.gate_order == GateOrder::interleaved && !nk;
    CHECK((gate != nullptr) == spec.gated());
    for (std::int64_t j = 0; j < spec.expert_widths[static_cast<std::size_t>(e)]; ++j) {
      for (std::int64_t h = 0; h < spec.hidden_size; ++h) {
        if (joint) {
          wrong += gate[h * x.fc1_stride + 2 * j] != gate_value(e, j, h);
          wrong += gate[h * x.fc1_stride + 2 * j + 1] != up_value(e, j, h);
        } else {
          const std::int64_t at = nk ? j * x.fc1_stride + h : h * x.fc1_stride + j;
          if (spec.gated()) wrong += gate[at] != gate_value(e, j, h);
          wrong += up[at] != up_value(e, j, h);
        }
        const std::int64_t at =
            spec.fc2_layout == WeightLayout::nk ? h * x.fc2_stride + j : j * x.fc2_stride + h;
        wrong += down[at] != down_value(e, h, j);
      }
    }
  }
  CHECK(wrong == 0);
}

/// Every layout, gate order and an ungated activation, over three unequal experts.
std::vector<LayerSpec> every_storage_kind() {
  std::vector<LayerSpec> specs;
  for (const Activation activation : {Activation::silu_mul, Activation::relu2}) {
    for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
      for (const WeightLayout fc1 : {WeightLayout::nk, WeightLayout::kn}) {
        for (const WeightLayout fc2 : {WeightLayout::nk, WeightLayout::kn}) {
          LayerSpec spec;
          spec.hidden_size = 64;
          spec.expert_widths = {16, 8, 24};
          spec.top_k = 1;
          spec.activation = activation;
          spec.gate_order = order;
          spec.fc1_layout = fc1;
          spec.fc2_layout = fc2;
          specs.push_back(spec);
        }
      }
    }
  }
  return specs;
}

std::int64_t halves(const LayerSpec& spec) {
  return spec.gated() ? 2 : 1;
}
std::int64_t fc1_stride(const LayerSpec& spec, std::int64_t stored) {
  return spec.fc1_layout == WeightLayout::nk ? spec.hidden_size : halves(spec) * stored;
}
std::int64_t fc2_stride(const LayerSpec& spec, std::int64_t stored) {
  return spec.fc2_layout == WeightLayout::nk ? stored : spec.hidden_size;
}

}  // namespace

TEST_CASE("blocks and padded: every element is found where it was put") {
  for (const LayerSpec& spec : every_storage_kind()) {
    for (const std::int64_t padded : {0, 24, 40}) {
      CAPTURE(tuning_signature(spec));
      CAPTURE(padded);
      const std::int64_t total = padded == 0 ? spec.total_width() : padded * spec.num_experts();
      Buffer fc1(halves(spec) * total * spec.hidden_size), fc2(total * spec.hidden_size);
      std::int64_t before = 0;
      for (std::int64_t e = 0; e < spec.num_experts(); ++e) {
        const std::int64_t width = spec.expert_widths[static_cast<std::size_t>(e)];
        const std::int64_t stored = padded == 0 ? width : padded;
        fill_expert(spec, e, width, stored, fc1, halves(spec) * before * spec.hidden_size,
                    fc1_stride(spec, stored), fc2, before * spec.hidden_size, fc2_stride(spec, stored));
        before += stored;
      }
      check_reads(spec, padded == 0 ? Weights::blocks(spec, fc1.data(), fc2.data())
                                    : Weights::padded(spec, fc1.data(), fc2.data(), padded));
    }
  }
}

TEST_CASE("packed and packed_joint: kn columns of all experts side by side") {
  for (const LayerSpec& spec : every_storage_kind()) {
    CAPTURE(tuning_signature(spec));
    const std::int64_t total = spec.total_width(), hidden = spec.hidden_size;
    const bool kn = spec.fc1_layout == WeightLayout::kn && spec.fc2_layout == WeightLayout::kn;
    const bool interleaved = spec.gated() && spec.gate_order == GateOrder::interleaved;
    Buffer joint(halves(spec) * total * hidden), gate(total * hidden), up(total * hidden),
        down(total * hidden);
    if (!kn) {
      CHECK_FALSE(Weights::packed_joint(spec, joint.data(), down.data()));
      CHECK_FALSE(Weights::packed(spec, spec.gated() ? gate.data() : nullptr, up.data(), down.data()));
      continue;
    }
    std::int64_t before = 0;
    for (std::int64_t e = 0; e < spec.num_experts(); ++e) {
      const std::int64_t width = spec.expert_widths[static_cast<std::size_t>(e)];
      fill_expert(spec, e, width, width, joint, halves(spec) * before, halves(spec) * total, down,
                  before * hidden, hidden);
      for (std::int64_t j = 0; j < width; ++j) {
        for (std::int64_t h = 0; h < hidden; ++h) {
          gate[h * total + before + j] = gate_value(e, j, h);
          up[h * total + before + j] = up_value(e, j, h);
        }
      }
      before += width;
    }
    check_reads(spec, Weights::packed_joint(spec, joint.data(), down.data()));
    const auto apart = Weights::packed(spec, spec.gated() ? gate.data() : nullptr, up.data(), down.data());
    if (interleaved) {
      REQUIRE_FALSE(apart);
      CHECK(apart.error().message().find("packed_joint") != std::string::npos);
    } else {
      check_reads(spec, apart);
    }
  }
}

TEST_CASE("pointers: one matrix an expert, contiguous or slices of wider tensors") {
  for (const LayerSpec& spec : every_storage_kind()) {
    for (const std::int64_t extra : {0, 8, 40}) {
      CAPTURE(tuning_signature(spec));
      const std::int64_t widest = spec.max_width();
      const std::int64_t stride1 = extra == 0 ? 0 : fc1_stride(spec, widest) + extra;
      const std::int64_t stride2 = extra == 0 ? 0 : fc2_stride(spec, widest) + extra;
      std::vector<std::unique_ptr<Buffer>> buffers;
      std::vector<const void*> fc1, fc2;
      for (std::int64_t e = 0; e < spec.num_experts(); ++e) {
        const std::int64_t width = spec.expert_widths[static_cast<std::size_t>(e)];
        buffers.push_back(std::make_unique<Buffer>(20000));
        buffers.push_back(std::make_unique<Buffer>(20000));
        Buffer &one = *buffers[buffers.size() - 2], &two = *buffers.back();
        fill_expert(spec, e, width, width, one, 0, stride1 != 0 ? stride1 : fc1_stride(spec, width), two, 0,
                    stride2 != 0 ? stride2 : fc2_stride(spec, width));
        fc1.push_back(one.data());
        fc2.push_back(two.data());
      }
      check_reads(spec, Weights::pointers(spec, fc1, fc2, stride1, stride2));
    }
  }
}

TEST_CASE("what is wrong with weights is said with expert and matrix") {
  LayerSpec spec;
  spec.hidden_size = 64;
  spec.expert_widths = {16, 8, 24};
  spec.top_k = 1;
  Buffer fc1(6 * 64 * 48), fc2(64 * 48);
  const auto message = [](const auto& result) {
    return result ? std::string("accepted") : result.error().message();
  };
  const auto contains = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };

  CHECK(contains(message(Weights::blocks(spec, nullptr, fc2.data())), "fc1 is null"));
  CHECK(contains(message(Weights::blocks(spec, fc1.data(), nullptr)), "fc2 is null"));
  CHECK(contains(message(Weights::blocks(spec, fc1.data() + 1, fc2.data())), "16-byte aligned"));
  for (const std::int64_t padded :
       {std::int64_t{-8}, std::int64_t{0}, std::int64_t{16}, std::int64_t{28}, std::int64_t{1} << 40}) {
    CHECK(contains(message(Weights::padded(spec, fc1.data(), fc2.data(), padded)), "padded_width"));
  }
  const std::vector<const void*> three1(3, fc1.data()), three2(3, fc2.data()), two(2, fc1.data());
  CHECK(contains(message(Weights::pointers(spec, two, three2)), "2 fc1"));
  CHECK(contains(message(Weights::pointers(spec, three1, three2, 56)), "fc1_stride is 56"));
  CHECK(contains(message(Weights::pointers(spec, three1, three2, 68)), "fc1_stride is 68"));
  CHECK(contains(message(Weights::pointers(spec, three1, three2, 0, 16)), "expert 2: fc2_stride is 16"));
  CHECK(contains(message(Weights::pointers(spec, three1, three2, -64)), "fc1_stride is -64"));
  CHECK(contains(message(Weights::pointers(spec, three1, three2, INT64_MAX)), "fc1_stride"));
  std::vector<const void*> hole = three1;
  hole[1] = nullptr;
  CHECK(contains(message(Weights::pointers(spec, hole, three2)), "expert 1: fc1 is null"));
  CHECK(contains(message(Weights::pointers(spec, three1, hole)), "expert 1: down is null"));

  auto weights = Weights::blocks(spec, fc1.data(), fc2.data());
  REQUIRE(weights);
  Weights broken = *weights;
  broken.experts[2].gate = nullptr;
  CHECK(contains(message(broken.validate(spec)), "expert 2: gate is null"));
  broken = *weights;
  broken.experts.pop_back();
  CHECK(contains(message(broken.validate(spec)), "weights of 2 experts"));
  spec.activation = Activation::relu2;
  CHECK(contains(message(weights->validate(spec)), "gate must be null"));
  spec.hidden_size = 63;
  CHECK(contains(message(Weights::blocks(spec, fc1.data(), fc2.data())), "hidden_size"));
}

TEST_CASE("biases: where each expert's lie, and what is wrong with them") {
  LayerSpec spec;
  spec.hidden_size = 64;
  spec.expert_widths = {16, 8, 24};
  spec.top_k = 1;
  Buffer fc1(6 * 64 * 48), fc2(64 * 48);
  const auto matrices = Weights::blocks(spec, fc1.data(), fc2.data());
  REQUIRE(matrices);
  const std::uint16_t* const b1 = fc1.data();
  const std::uint16_t* const b2 = fc2.data();
  const auto message = [](const auto& result) {
    return result ? std::string("accepted") : result.error().message();
  };
  const auto contains = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(contains(message(matrices->with_biases(spec, b1, b2)), "the layer has none"));
  Weights given = *matrices;
  given.experts[1].down_bias = b2;
  CHECK(contains(message(given.validate(spec)), "expert 1: down_bias must be null"));
  spec.bias = true;
  CHECK(contains(message(matrices->validate(spec)), "expert 0: gate_bias is null: the layer has biases"));
  CHECK(contains(message(matrices->with_biases(spec, nullptr, b2)), "fc1_bias is null"));
  CHECK(contains(message(matrices->with_biases(spec, b1, nullptr)), "fc2_bias is null"));
  CHECK(contains(message(matrices->with_biases(spec, b1, b2, 16)), "padded_width is 16"));
  const std::vector<const void*> two(2, b1), hole = {b1, nullptr, b1}, three(3, b2);
  CHECK(contains(message(matrices->with_biases(spec, two, three)), "2 fc1_bias and 3 fc2_bias"));
  CHECK(contains(message(matrices->with_biases(spec, hole, three)), "expert 1: fc1_bias is null"));
  CHECK(contains(message(matrices->with_biases(spec, three, hole)), "expert 1: fc2_bias is null"));
  const auto* odd = reinterpret_cast<const std::byte*>(b1) + 1;
  CHECK(contains(message(matrices->with_biases(spec, odd, b2)), "which is not 2-byte aligned"));
  Weights few = *matrices;
  few.experts.pop_back();
  CHECK(contains(message(few.with_biases(spec, b1, b2)), "weights of 2 experts"));

  const auto last = [&](std::int64_t padded) {
    const auto with = matrices->with_biases(spec, b1, b2, padded);
    REQUIRE(with);
    REQUIRE(with->experts[2].gate == matrices->experts[2].gate);
    return with->experts[2];
  };
  CHECK(last(0).gate_bias == b1 + 2 * 24);
  CHECK(last(0).up_bias == b1 + 2 * 24 + 24);
  CHECK(last(0).down_bias == b2 + 2 * 64);
  CHECK(last(0).fc1_bias_stride == 1);
  CHECK(last(32).gate_bias == b1 + 2 * 2 * 32);
  CHECK(last(32).up_bias == b1 + 2 * 2 * 32 + 32);
  CHECK(last(32).down_bias == b2 + 2 * 64);
  spec.gate_order = GateOrder::up_first;
  CHECK(last(0).up_bias == b1 + 2 * 24);
  CHECK(last(0).gate_bias == b1 + 2 * 24 + 24);
  spec.gate_order = GateOrder::interleaved;
  CHECK(last(0).gate_bias == b1 + 2 * 24);
  CHECK(last(0).up_bias == b1 + 2 * 24 + 1);
  CHECK(last(0).fc1_bias_stride == 2);
  CHECK(last(32).up_bias == b1 + 2 * 2 * 32 + 1);
  auto pointers = matrices->with_biases(spec, {b1 + 1, b1 + 3, b1 + 5}, {b2, b2 + 7, b2 + 9});
  REQUIRE(pointers);
  CHECK(pointers->experts[1].up_bias == b1 + 4);
  CHECK(pointers->experts[1].down_bias == b2 + 7);
  pointers->experts[1].fc1_bias_stride = 3;
  CHECK(contains(message(pointers->validate(spec)), "expert 1: fc1_bias_stride is 3; must be 1 or 2"));

  spec.activation = Activation::relu2;
  const auto plain = Weights::blocks(spec, fc1.data(), fc2.data());
  REQUIRE(plain);
  const auto ungated = plain->with_biases(spec, b1, b2);
  REQUIRE(ungated);
  CHECK(ungated->experts[2].gate_bias == nullptr);
  CHECK(ungated->experts[2].up_bias == b1 + 24);
  Weights wrong = *ungated;
  wrong.experts[0].gate_bias = b1;
  CHECK(contains(message(wrong.validate(spec)), "gate_bias must be null: the activation is not gated"));
}

namespace {

/// An address of which nothing is read. Arrays lie 2^28 apart, so that an address tells which one it is in.
constexpr std::uintptr_t kArray = std::uintptr_t{1} << 28;
const void* array(std::uintptr_t number) {
  return reinterpret_cast<const void*>(number * kArray);
}

/// Whether `wide` is `narrow` with elements of twice the size: strides are the same, and each address is its
/// array's plus twice the offset. `moved` counts addresses that are not their array's.
void check_twice(const std::vector<ExpertWeights>& narrow, const std::vector<ExpertWeights>& wide,
                 int& moved) {
  REQUIRE(narrow.size() == wide.size());
  for (std::size_t e = 0; e < narrow.size(); ++e) {
    CAPTURE(e);
    const ExpertWeights &n = narrow[e], &w = wide[e];
    CHECK(w.fc1_stride == n.fc1_stride);
    CHECK(w.fc2_stride == n.fc2_stride);
    CHECK(w.fc1_bias_stride == n.fc1_bias_stride);
    for (const auto member :
         {&ExpertWeights::gate, &ExpertWeights::up, &ExpertWeights::down, &ExpertWeights::gate_bias,
          &ExpertWeights::up_bias, &ExpertWeights::down_bias}) {
      const auto from = reinterpret_cast<std::uintptr_t>(n.*member),
                 to = reinterpret_cast<std::uintptr_t>(w.*member), offset = from % kArray;
      CHECK(to == from - offset + 2 * offset);
      moved += offset != 0;
    }
  }
}

}  // namespace

TEST_CASE("four bytes an element: every offset of every storage and layout is twice that of two bytes") {
  for (LayerSpec spec : every_storage_kind()) {
    CAPTURE(tuning_signature(spec));
    spec.shared_widths = {32, 8};
    const bool kn = spec.fc1_layout == WeightLayout::kn && spec.fc2_layout == WeightLayout::kn;
    const bool interleaved = spec.gated() && spec.gate_order == GateOrder::interleaved;
    const std::vector<const void*> fc1 = {array(1), array(2), array(3)}, fc2 = {array(4), array(5), array(6)};
    const auto twice = [&](const char* what, const auto& make) {
      CAPTURE(what);
      const Result<Weights> narrow = make(2), wide = make(4);
      REQUIRE_MESSAGE(narrow, (narrow ? "" : narrow.error().message()));
      REQUIRE_MESSAGE(wide, (wide ? "" : wide.error().message()));
      int moved = 0;
      check_twice(narrow->experts, wide->experts, moved);
      check_twice(narrow->shared, wide->shared, moved);
      CHECK(wide->shared_gate == narrow->shared_gate);
      return moved;
    };
    // Of experts 1 and 2 everything lies behind expert 0's, and so does a second half of fc1.
    const int matrices = spec.gated() ? 3 : 2;
    const bool joint = interleaved && spec.fc1_layout == WeightLayout::kn;  // `up` is not used
    const int all = 2 * (joint ? 2 : matrices), halves_moved = spec.gated() && !joint ? 1 : 0;
    CHECK(twice("blocks", [&](std::int64_t bytes) {
            return Weights::blocks(spec, array(1), array(2), bytes);
          }) == all + halves_moved);
    CHECK(twice("padded", [&](std::int64_t bytes) {
            return Weights::padded(spec, array(1), array(2), 40, bytes);
          }) == all + halves_moved);
    if (kn) {
      CHECK(twice("packed_joint", [&](std::int64_t bytes) {
              return Weights::packed_joint(spec, array(1), array(2), bytes);
            }) == all + halves_moved);
    }
    if (kn && !interleaved) {
      CHECK(twice("packed", [&](std::int64_t bytes) {
              return Weights::packed(spec, spec.gated() ? array(1) : nullptr, array(2), array(3), bytes);
            }) == 2 * matrices);
    }
    for (const std::int64_t stride : {0, 128}) {
      CHECK(twice("pointers", [&](std::int64_t bytes) {
              return Weights::pointers(spec, fc1, fc2, stride, stride, bytes);
            }) == 3 * halves_moved);
    }

    const auto shared = [&](const auto& set) {
      return [&](std::int64_t bytes) -> Result<Weights> {
        Weights weights;
        if (const Status status = set(weights, bytes); !status) return status.error();
        return weights;
      };
    };
    spec.shared_gate = true;
    CHECK(twice("set_shared_blocks", shared([&](Weights& w, std::int64_t bytes) {
                  return w.set_shared_blocks(spec, array(1), array(2), array(3), bytes);
                })) == (joint ? 2 : matrices) + halves_moved);
    CHECK(
        twice(
            "set_shared_pointers", shared([&](Weights& w, std::int64_t bytes) {
              return w.set_shared_pointers(spec, {array(1), array(2)}, {array(3), array(4)}, array(5), bytes);
            })) == 2 * halves_moved);
    spec.shared_gate = false;
    spec.shared_widths.clear();

    // Matrices of pointers that no bias moves: what is counted is biases.
    spec.bias = true;
    const int second = spec.gated() ? 1 : 0;  // of a gated layer expert 0's second half too
    const int fixed = 3 * halves_moved;
    for (const std::int64_t padded : {0, 40}) {
      CHECK(twice("with_biases", [&](std::int64_t bytes) {
              return Weights::pointers(spec, fc1, fc2, 0, 0, bytes)
                  ->with_biases(spec, array(7), array(8), padded, bytes);
            }) == fixed + 2 * matrices + second);
    }
    CHECK(twice("with_biases, pointers", [&](std::int64_t bytes) {
            return Weights::pointers(spec, fc1, fc2, 0, 0, bytes)->with_biases(spec, fc2, fc1, bytes);
          }) == fixed + 3 * second);
  }
}

TEST_CASE("bytes of an element are 2 or 4") {
  LayerSpec spec = uniform_spec(64, 3, 16, 1);
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.bias = true;
  LayerSpec shared = spec;
  shared.bias = false;
  shared.shared_widths = {16};
  const auto matrices = Weights::blocks(spec, array(1), array(2));
  REQUIRE(matrices);
  const std::vector<const void*> three(3, array(1)), one(1, array(1));
  for (const std::int64_t bytes : {-2, 0, 1, 3, 8}) {
    const auto refused = [&](const auto& result) {
      REQUIRE_FALSE(result);
      CHECK(result.error().code() == ErrorCode::invalid_argument);
      CHECK(result.error().message() ==
            "element_bytes is " + std::to_string(bytes) + "; must be 2, or 4 of gradients in fp32");
    };
    refused(Weights::blocks(spec, array(1), array(2), bytes));
    refused(Weights::padded(spec, array(1), array(2), 16, bytes));
    refused(Weights::packed(spec, array(1), array(2), array(3), bytes));
    refused(Weights::packed_joint(spec, array(1), array(2), bytes));
    refused(Weights::pointers(spec, three, three, 0, 0, bytes));
    refused(matrices->with_biases(spec, array(1), array(2), 0, bytes));
    refused(matrices->with_biases(spec, three, three, bytes));
    Weights weights = *matrices;
    refused(weights.set_shared_blocks(shared, array(1), array(2), nullptr, bytes));
    refused(weights.set_shared_pointers(shared, one, one, nullptr, bytes));
    CHECK(weights.shared.empty());
  }
}

TEST_CASE("the packer pads any width with zeros and moves nothing else") {
  CHECK(packed_width(1) == 8);
  CHECK(packed_width(8) == 8);
  CHECK(packed_width(1407) == 1408);
  for (LayerSpec spec : every_storage_kind()) {
    for (const std::int64_t width : {1, 5, 8, 13}) {
      CAPTURE(tuning_signature(spec));
      CAPTURE(width);
      const std::int64_t packed = packed_width(width);
      Buffer in1(halves(spec) * width * 64), in2(width * 64);
      fill_expert(spec, 0, width, width, in1, 0, fc1_stride(spec, width), in2, 0, fc2_stride(spec, width));
      Buffer out1(halves(spec) * packed * 64), out2(packed * 64);
      std::memset(out1.data(), 0xff, static_cast<std::size_t>(halves(spec) * packed * 64) * 2);
      std::memset(out2.data(), 0xff, static_cast<std::size_t>(packed * 64) * 2);
      REQUIRE(pack_expert(spec, width, in1.data(), in2.data(), out1.data(), out2.data()));

      std::int64_t wrong = 0;
      for (std::int64_t j = 0; j < packed; ++j) {
        for (std::int64_t h = 0; h < 64; ++h) {
          const bool real = j < width;
          if (spec.gated()) {
            wrong += out1[fc1_index(spec, false, j, h, packed, fc1_stride(spec, packed))] !=
                     (real ? gate_value(0, j, h) : 0);
          }
          wrong += out1[fc1_index(spec, true, j, h, packed, fc1_stride(spec, packed))] !=
                   (real ? up_value(0, j, h) : 0);
          wrong += out2[fc2_index(spec, h, j, fc2_stride(spec, packed))] != (real ? down_value(0, h, j) : 0);
        }
      }
      CHECK(wrong == 0);
    }
  }
  // fc1's bias pads as an output of fc1 does.
  for (LayerSpec spec : every_storage_kind()) {
    const std::int64_t width = 13, packed = 16;
    const bool split = spec.gated() && spec.gate_order != GateOrder::interleaved;
    std::vector<std::uint16_t> in(static_cast<std::size_t>(halves(spec) * width)),
        out(static_cast<std::size_t>(halves(spec) * packed), 0xffff), expected(out.size(), 0);
    for (std::size_t i = 0; i < in.size(); ++i) {
      in[i] = static_cast<std::uint16_t>(100 + i);
      expected[split && i >= 13 ? i + 3 : i] = in[i];
    }
    REQUIRE(pack_fc1_bias(spec, width, in.data(), out.data()));
    CHECK(out == expected);
    CHECK_FALSE(pack_fc1_bias(spec, width, nullptr, out.data()));
    CHECK_FALSE(pack_fc1_bias(spec, 0, in.data(), out.data()));
  }
  LayerSpec spec;
  spec.hidden_size = 64;
  Buffer some(64 * 64);
  CHECK_FALSE(pack_expert(spec, 0, some.data(), some.data(), some.data(), some.data()));
  CHECK_FALSE(pack_expert(spec, 8, some.data(), nullptr, some.data(), some.data()));
}
