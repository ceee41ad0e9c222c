#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/memory.hpp"
#include "cuda/stream.hpp"
#include "gpu/device_layer.hpp"
#include "oracle/training_case.hpp"
#include "varmoe/training.hpp"

/// A training case on the GPU: uploaded, prepared and bound; forward and backward compared with the oracle.
namespace gpu {

class DeviceTraining {
 public:
  /// Throws std::runtime_error with the library's message on failure. `prepare`: for the case's tokens, else
  /// its first use prepares.
  explicit DeviceTraining(const oracle::TrainingCase& c, bool prepare = true, int max_sms = 0,
                          varmoe::Engine* on = nullptr);

  /// Uploads what outputs hold before, poisons workspace, saved bytes and the forward's output with
  /// `workspace_byte`, runs both passes, downloads. Fails the running test when memory outside was touched.
  oracle::TrainingOutput run(std::uint8_t workspace_byte = 0xff);
  /// The same twice: the bits must agree.
  oracle::TrainingOutput run_twice();

  /// The parts of run(), for graphs. upload_inputs: of a case of the same spec, tokens and storage.
  void upload_inputs(const oracle::TrainingCase& c);
  void reset_outputs(const oracle::TrainingCase& c, std::uint8_t workspace_byte = 0xff);
  varmoe::Status forward();
  varmoe::Status backward();
  oracle::TrainingOutput download();

  varmoe::TrainingLayer& layer() { return *layer_; }
  void* stream() const { return stream_->handle(); }
  /// Of the last forward, [T, H].
  std::vector<std::uint16_t> forward_out();

 private:
  struct Guarded {
    varmoe::cuda::DeviceBuffer buffer;
    std::size_t bytes = 0;
    const char* name = "";
  };
  Guarded allocate(const char* name, std::size_t bytes) const;
  void fill(const Guarded& to, std::uint8_t value) const;
  void upload(const Guarded& to, const void* data) const;
  void download(const Guarded& from, void* data) const;
  template <class Args>
  Args common() const;

  const oracle::TrainingCase& case_;
  std::unique_ptr<varmoe::TrainingLayer> layer_;
  std::unique_ptr<varmoe::cuda::Stream> stream_;
  Guarded weights_[oracle::GradientBuffers::kParts], gradients_[oracle::GradientBuffers::kParts];
  Guarded x_, ids_, topk_weights_, count_, map_, dout_, out_, dx_, dtopk_, saved_, workspace_;
};

/// run_twice() and a doctest check of the bars, of the forward's rows too; records the errors under `group`.
void check_training(const std::string& group, const oracle::TrainingCase& c);
void check_training(const std::string& group, const oracle::TrainingCase& c, DeviceTraining& training);

}  // namespace gpu
