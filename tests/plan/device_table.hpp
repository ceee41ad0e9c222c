#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "plan/expert_table.hpp"
#include "plan/plan.hpp"

namespace varmoe::test {

/// The bytes of make_expert_table, taken apart.
struct DeviceTable {
  std::vector<abi::ExpertEntry> entries;
  std::vector<i32> order, class_begin, one_class;
};

inline DeviceTable take_apart(const std::vector<std::byte>& bytes, std::int64_t experts) {
  const plan::ExpertTableLayout layout(experts);
  REQUIRE(bytes.size() == layout.bytes);
  DeviceTable table;
  const auto take = [&](auto& out, std::size_t offset, std::int64_t count) {
    out.resize(static_cast<std::size_t>(count));
    REQUIRE(offset + out.size() * sizeof(out[0]) <= bytes.size());
    std::memcpy(out.data(), bytes.data() + offset, out.size() * sizeof(out[0]));
  };
  take(table.entries, layout.entries, experts);
  take(table.order, layout.order, experts);
  take(table.class_begin, layout.class_begin, abi::kMaxClasses + 1);
  take(table.one_class, layout.one_class, 2);
  return table;
}

/// The table of a layer whose weights lie at `base`, expert after expert.
inline DeviceTable device_table(const LayerSpec& spec, std::uintptr_t base = 0x100000) {
  const auto weights =
      Weights::blocks(spec, reinterpret_cast<const void*>(base), reinterpret_cast<const void*>(base * 2));
  REQUIRE_MESSAGE(weights.ok(), (weights.ok() ? "" : weights.error().message()));
  const auto bytes = plan::make_expert_table(spec, *weights);
  REQUIRE(bytes.ok());
  return take_apart(*bytes, spec.num_experts());
}

}  // namespace varmoe::test
