#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/memory.hpp"
#include "cuda/stream.hpp"
#include "oracle/compare.hpp"
#include "oracle/random_case.hpp"
#include "varmoe/varmoe.hpp"

/// A random case on the GPU: weights uploaded, layer prepared and bound, forwards compared with the oracle.
namespace gpu {

/// Why there is nothing to run on; empty when there is a GPU.
std::string why_no_gpu();
/// Device 0, opened once.
std::shared_ptr<varmoe::cuda::Device> device();
/// An engine on device 0 with a cache folder of this process's own, shared by the tests.
varmoe::Engine& engine();
/// The folder of that cache.
const std::string& cache_dir();

struct RunOptions {
  std::int64_t tokens = -1;         ///< of the case's; −1: all
  std::int64_t device_tokens = -1;  ///< device-side token count; −1: none
  bool ids_64 = false;
  const std::vector<std::int32_t>* expert_map = nullptr;  ///< ForwardArgs::expert_map, uploaded
  bool keep_absent = false;                               ///< AbsentTokens::untouched
  std::int64_t sample = 0;  ///< rows compared; 0: as many as the oracle does in about a second
};

class DeviceLayer {
 public:
  /// Uploads the case and makes the layer. Throws std::runtime_error with the library's message on failure.
  explicit DeviceLayer(const oracle::RandomCase& c, varmoe::LayerOptions options = {},
                       varmoe::Engine* on = nullptr);

  /// Poisons `out` and workspace, runs, downloads; again; fails the running test when the two differ or
  /// memory outside was touched.
  std::vector<std::uint16_t> forward_twice(const RunOptions& options = {});
  /// The same, compared with the oracle.
  oracle::Comparison compare(const RunOptions& options = {});

  varmoe::Layer& layer() { return *layer_; }
  const oracle::RandomCase& source() const { return case_; }
  /// Arguments of a forward on the uploaded inputs with a workspace of exactly the bytes asked for.
  varmoe::ForwardArgs args(const RunOptions& options);
  void poison_out();
  std::vector<std::uint16_t> download_out();
  void* stream() const { return stream_->handle(); }
  void synchronize();
  std::uint64_t ids_address() const { return ids32_.address(); }

 private:
  const oracle::RandomCase& case_;
  std::unique_ptr<varmoe::Layer> layer_;
  std::unique_ptr<varmoe::cuda::Stream> stream_;
  varmoe::cuda::DeviceBuffer fc1_, up_, fc2_, fc1_bias_, fc2_bias_, x_, out_, ids32_, ids64_, weights_,
      count_, map_, workspace_;
};

/// compare() and a doctest check of the bars; records the errors under `group`.
void check_case(const std::string& group, DeviceLayer& layer, const RunOptions& options = {});

inline varmoe::PrepareOptions buckets(std::vector<std::int64_t> tokens) {
  varmoe::PrepareOptions options;
  options.tokens = std::move(tokens);
  return options;
}

/// Value or a thrown std::runtime_error.
template <class T>
T must(varmoe::Result<T> result, const char* what) {
  if (!result) throw std::runtime_error(std::string(what) + ": " + result.error().message());
  return *std::move(result);
}
inline void must(const varmoe::Status& status, const char* what) {
  if (!status) throw std::runtime_error(std::string(what) + ": " + status.error().message());
}

}  // namespace gpu
