#include "cuda/tensor_map.hpp"

#include <cuda.h>
#include <doctest/doctest.h>

#include <cstring>
#include <functional>

#include "cuda/fake_gpu.hpp"

using namespace varmoe;
using namespace varmoe::test;
using cuda::TensorBoxes;

namespace {

struct Fixture {
  std::shared_ptr<cuda::Device> device = fake_device();
  cuda::ContextScope current{*device};
  alignas(128) std::byte map[cuda::kTensorMapBytes] = {};

  Status encode(const TensorBoxes& boxes) { return cuda::encode_tensor_map(device->driver(), boxes, map); }
};

TensorBoxes three_dimensions() {
  TensorBoxes boxes;
  boxes.base = 0x7000000010;
  boxes.rank = 3;
  boxes.size = {72, 136, 2};
  boxes.stride = {288, cuda::kMaxTensorStride - 16};
  boxes.box = {64, 256, 2};
  return boxes;
}

}  // namespace

TEST_CASE("a tensor map arrives at the driver as it was asked for") {
  for (const bool bf16 : {true, false}) {
    Fixture f;
    TensorBoxes boxes = three_dimensions();
    boxes.bf16 = bf16;
    REQUIRE(f.encode(boxes).ok());
    CHECK(fake_cuda::call_log().back() == "cuTensorMapEncodeTiled");
    const auto made = fake_cuda::read_tensor_map(f.map);
    REQUIRE(made.has_value());
    CHECK(made->data_type ==
          static_cast<int>(bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16));
    CHECK(made->base == boxes.base);
    CHECK(made->size == std::vector<std::uint64_t>{72, 136, 2});
    CHECK(made->stride == std::vector<std::uint64_t>{288, cuda::kMaxTensorStride - 16});
    CHECK(made->box == std::vector<std::uint32_t>{64, 256, 2});
    CHECK(made->element_stride == std::vector<std::uint32_t>{1, 1, 1});
    CHECK(made->interleave == static_cast<int>(CU_TENSOR_MAP_INTERLEAVE_NONE));
    CHECK(made->swizzle == static_cast<int>(CU_TENSOR_MAP_SWIZZLE_128B));
    CHECK(made->fill == static_cast<int>(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  }
}

TEST_CASE("maps of every rank from 2 to 5 carry that many dimensions") {
  Fixture f;
  TensorBoxes boxes;
  boxes.base = 0x1000;
  boxes.size = {64, 8, 2, 4, 3};
  boxes.stride = {128, 1024, 16, 4096};
  boxes.box = {64, 8, 2, 4, 1};
  for (boxes.rank = 2; boxes.rank <= 5; ++boxes.rank) {
    REQUIRE(f.encode(boxes).ok());
    const auto made = fake_cuda::read_tensor_map(f.map);
    REQUIRE(made.has_value());
    CHECK(made->size.size() == boxes.rank);
    CHECK(made->stride.size() == boxes.rank - 1);
    CHECK(made->box.size() == boxes.rank);
  }
}

TEST_CASE("what no driver encodes is an error with the call's name, and writes nothing") {
  struct Change {
    const char* what;
    std::function<void(TensorBoxes&)> apply;
  };
  const Change changes[] = {
      {"rank 1", [](TensorBoxes& b) { b.rank = 1; }},
      {"base", [](TensorBoxes& b) { b.base += 8; }},
      {"no rows", [](TensorBoxes& b) { b.size[1] = 0; }},
      {"stride between 16 bytes", [](TensorBoxes& b) { b.stride[0] = 296; }},
      {"stride of 2^40", [](TensorBoxes& b) { b.stride[1] = cuda::kMaxTensorStride; }},
      {"empty box", [](TensorBoxes& b) { b.box[2] = 0; }},
      {"box of 257", [](TensorBoxes& b) { b.box[1] = 257; }},
      {"more than the swizzle's 128 bytes", [](TensorBoxes& b) { b.box[0] = 72; }},
  };
  for (const Change& change : changes) {
    CAPTURE(change.what);
    Fixture f;
    TensorBoxes boxes = three_dimensions();
    change.apply(boxes);
    const Status status = f.encode(boxes);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code() == ErrorCode::device_error);
    CHECK(contains(status.error().message(), "cuTensorMapEncodeTiled failed"));
    CHECK(fake_cuda::tensor_maps().empty());
    const std::byte none[cuda::kTensorMapBytes] = {};
    CHECK(std::memcmp(f.map, none, sizeof none) == 0);
  }
}

TEST_CASE("a map needs a context, and a place of its own alignment") {
  Fixture f;
  CHECK_FALSE(cuda::encode_tensor_map(f.device->driver(), three_dimensions(), f.map + 32).ok());
  fake_cuda::push_foreign_context();
  CHECK_FALSE(f.encode(three_dimensions()).ok());
  fake_cuda::pop_foreign_context();
  CHECK(f.encode(three_dimensions()).ok());
}
