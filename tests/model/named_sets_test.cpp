#include "model/named_sets.hpp"

#include <doctest/doctest.h>

using namespace varmoe;
using namespace varmoe::model;

TEST_CASE("every named set is valid and found by its name, at other hidden sizes too") {
  CHECK(named_sets().size() == 10);
  for (const NamedSet& set : named_sets()) {
    CAPTURE(set.name);
    CHECK(set.spec.validate());
    REQUIRE(named_set(set.name));
    CHECK(*named_set(set.name) == set.spec);
    REQUIRE(named_set(set.name, 256));
    CHECK(named_set(set.name, 256)->hidden_size == 256);
    CHECK(named_set(set.name, 256)->expert_widths == set.spec.expert_widths);
  }
  CHECK_FALSE(named_set("8_uniform", 100));
  const auto missing = named_set("9_uniform");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().message().find("128_variable") != std::string::npos);
}

TEST_CASE("the sets hold the experts they are known for") {
  const auto classes = [](const char* name) { return width_classes(*named_set(name)); };
  CHECK(classes("8_uniform") == std::vector<WidthClass>{{512, 8}});
  CHECK(classes("8_variable") == std::vector<WidthClass>{{256, 4}, {512, 4}});
  CHECK(classes("16_uniform") == std::vector<WidthClass>{{256, 16}});
  CHECK(classes("16_variable") == std::vector<WidthClass>{{128, 4}, {256, 8}, {512, 4}});
  CHECK(classes("64_uniform") == std::vector<WidthClass>{{256, 64}});
  CHECK(classes("64_variable") == std::vector<WidthClass>{{128, 16}, {256, 32}, {512, 16}});
  CHECK(classes("128_uniform") == std::vector<WidthClass>{{256, 128}});
  CHECK(classes("128_variable") == std::vector<WidthClass>{{128, 32}, {256, 64}, {512, 32}});
  CHECK(classes("gated_4_widths") == std::vector<WidthClass>{{128, 16}, {256, 16}, {384, 16}, {512, 16}});
  CHECK(classes("gated_16_widths").size() == 16);
  CHECK(named_set("gated_16_widths")->expert_widths[17] == 256);
  CHECK(named_set("8_uniform")->top_k == 2);
  CHECK(named_set("64_uniform")->top_k == 8);
  CHECK(named_set("64_uniform")->activation == Activation::relu2);
  CHECK(named_set("gated_4_widths")->activation == Activation::silu_mul);
}
