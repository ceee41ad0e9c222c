#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Images that look like cubins where it matters: an ELF of machine 190 with .text.<entry>, REGCOUNT,
/// FRAME_SIZE, MAX_THREADS and parameter sizes in .nv.info. Made by the fake NVRTC, read by the fake driver
/// (which reads real cubins as well).
namespace varmoe::test {

struct FakeKernel {
  std::string entry;
  std::uint32_t registers = 32;
  std::uint32_t frame_bytes = 0;
  std::uint32_t static_smem = 0;
  std::uint32_t max_threads = 1024;
  std::vector<std::uint32_t> parameter_bytes;  ///< sizes of the arguments; each aligned to itself
};

struct FakeCubin {
  int arch = 90;            ///< compute capability × 10
  int compiler_major = 13;  ///< decides the ELF's ABI version, which older drivers refuse
  std::vector<FakeKernel> kernels;
  std::string code = "code";  ///< bytes of each .text section
};

std::vector<std::byte> make_fake_cubin(const FakeCubin& cubin);

/// What a driver would see in an image, given without its size.
struct ImageInfo {
  bool is_ptx = false;
  int arch = 0;
  int min_driver = 0;  ///< oldest CUDA version that takes it
  std::vector<FakeKernel> kernels;
  const FakeKernel* find(std::string_view entry) const;
};
/// Nothing when it is neither a cubin nor PTX.
std::optional<ImageInfo> read_image(const void* image);

}  // namespace varmoe::test
