#include "tools/bench/l2_flush.hpp"

#include <utility>

#include "compile/compiler.hpp"
#include "cuda/launch.hpp"

namespace varmoe::tools {
namespace {

constexpr std::size_t kBytes = std::size_t{256} << 20;
constexpr unsigned kBlocks = 1024, kThreads = 256;
constexpr const char* kEntry = "varmoe_bench_read";
// The sum is stored under a condition that random bits practically never meet, so the reads stay and nothing
// is written.
constexpr const char* kText = R"(
extern "C" __global__ void varmoe_bench_read(const uint4* p, unsigned long long n, unsigned* out) {
  unsigned x = 0;
  for (unsigned long long i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull) {
    const uint4 v = p[i];
    x ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (x == 0x2545f491u && blockIdx.x == 0xffffffffu) *out = x;
}
)";

}  // namespace

L2Flush::L2Flush(std::shared_ptr<cuda::Device> device, cuda::Module module, cuda::DeviceBuffer buffer)
    : device_(std::move(device)), module_(std::move(module)), buffer_(std::move(buffer)) {}

Result<L2Flush> L2Flush::create(std::shared_ptr<cuda::Device> device, const std::string& arch,
                                const std::string& nvrtc_lib) {
  auto compiler = compile::load_nvrtc(nvrtc_lib);
  if (!compiler) return compiler.error();
  compile::CompileRequest request;
  request.text = kText;
  request.options = {"--std=c++17"};
  request.arch = arch;
  request.entry_name = kEntry;
  auto binary = (*compiler)->compile(request);
  if (!binary) return binary.error();
  auto module = cuda::Module::load(device, *binary, 0);
  if (!module) return module.error();
  auto buffer = cuda::DeviceBuffer::allocate(device, kBytes);
  if (!buffer) return buffer.error();
  return L2Flush(std::move(device), *std::move(module), *std::move(buffer));
}

Status L2Flush::enqueue(const cuda::Stream& stream) {
  std::uint64_t address = buffer_.address();
  unsigned long long words = kBytes / 16;
  std::uint64_t out = address;
  void* arguments[] = {&address, &words, &out};
  return cuda::launch(device_->driver(), module_.function(), {kBlocks}, {kThreads}, 0, stream.handle(),
                      arguments);
}

}  // namespace varmoe::tools
