#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/tuning.hpp"

/// What the search asks of whoever times configs, and what it gets back. Who measures (a GPU in this
/// process, one in a child, a test's landscape) is hidden behind Measurer.
namespace varmoe::tuner {

/// How much time a config is worth.
enum class Effort : std::uint8_t {
  quick,   ///< a few replays: tells a good config from a bad one
  normal,  ///< enough replays to order configs that differ by some percent
  final_,  ///< many replays, the configs of the request in turn, so that drifting clocks meet them all alike
};

/// Configs of one pass of a layer at a token bucket, to be measured with `bucket` tokens.
struct MeasureRequest {
  LayerSpec spec;
  std::int64_t bucket = 1;
  Effort effort = Effort::quick;
  std::vector<LayerConfig> configs = {};  ///< of a forward
  TuningPass pass = TuningPass::forward;
  GradientType gradient_type = GradientType::layer_dtype;  ///< of a backward pass
  std::vector<BackwardConfig> products = {};               ///< of a backward pass, in place of `configs`

  std::size_t count() const noexcept {
    return pass == TuningPass::backward ? products.size() : configs.size();
  }
  /// The same request of these of its configs alone.
  MeasureRequest only(const std::vector<std::size_t>& indices) const;
  /// For messages: `fc1 …, fc2 …`.
  std::string config_text(std::size_t index) const;
};

/// What came of one config. With an empty `failure` every time is a median in µs.
struct Measurement {
  double us = 0;         ///< a whole forward, rows routed uniformly
  double skewed_us = 0;  ///< a whole forward, few experts having most rows
  double fc1_us = 0;     ///< what fc1 (and the gather before it) adds to the forward, rows routed uniformly
  double fc2_us = 0;     ///< what fc2 adds
  double spread = 0;     ///< (slowest − fastest) / median of the samples of `us`
  /// Both routings were compared with a reference, buffers poisoned before, and right.
  bool verified = false;
  double err1 = 0;  ///< share (0 … 1) of the elements of h beyond the tolerance; 0 where h was not compared
  double err2 = 0;  ///< share of the elements of out beyond the tolerance
  std::string failure;  ///< why there are no figures; empty: there are
  /// Of a backward pass, in place of fc1_us, fc2_us, err1 and err2: what each product adds to the pass, dh
  /// with the gathers. `us` and `skewed_us` are those of a whole backward.
  std::optional<BackwardFigures> products = {};
};

/// Times beyond these are no times of a kernel: nothing runs in a nanosecond, and nobody waits for a
/// quarter of an hour.
inline constexpr double kLeastMicroseconds = 1e-3, kMostMicroseconds = 1e9;
inline constexpr double kMostSpread = 1e6;

/// Why the config may not be chosen, or empty: its failure; a figure that is not finite or out of range;
/// not verified.
std::string fault_of(const Measurement& measurement);

/// Receives what a Measurer finds while it works. Called from the thread that called measure().
class MeasureEvents {
 public:
  virtual ~MeasureEvents() = default;
  /// From now on config `index` of the request is worked on: what goes wrong is its fault. Optional; as
  /// often as the measurer turns from one config to another.
  virtual void turn(std::size_t index) { static_cast<void>(index); }
  /// What came of config `index`; once for each, in any order.
  virtual void answer(std::size_t index, const Measurement& measurement) = 0;
};

/// Compiles, checks and times configs on one device. One request at a time.
class Measurer {
 public:
  virtual ~Measurer() = default;
  /// Answers every config of the request. A config that does not compile, run or compute right is an answer
  /// with a `failure`, or one that is not verified. An error means that nothing more can be measured here
  /// (no device, a lost context), or `cancelled`; configs that were not answered by then stay without an
  /// answer.
  virtual Status measure(const MeasureRequest& request, MeasureEvents& events) = 0;
  /// For messages: which device, which process.
  virtual std::string description() const = 0;
};

/// For messages: `fc1 …, fc2 …`; `dh …, dx …, fc1_gradient …, fc2_gradient …`.
std::string text_of(const LayerConfig& config);
std::string text_of(const BackwardConfig& config);

/// The answers in the order of the request's configs; one that did not come says so in its `failure`.
Result<std::vector<Measurement>> measure_all(Measurer& measurer, const MeasureRequest& request);

const char* to_string(Effort effort) noexcept;

}  // namespace varmoe::tuner
