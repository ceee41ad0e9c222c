#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tuner/measurer.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

/// What a tuner and its worker say to each other: one JSON object a line, both ways. Everything is written
/// and read here, and read strictly: every field must be there, none else, each in its range. The worker
/// says hello once it is ready, the tuner sends requests:
///
///     {"protocol": 1, "config_space": 3}
///     {"request": 7, "effort": "quick", "bucket": 64, "spec": {…}, "configs": [{…}, …]}
///     {"request": 8, "effort": "quick", "bucket": 64, "spec": {…}, "gradients": "fp32", "configs": [{…}, …]}
///
/// (the second of a backward pass, whose configs are of its four products) and the worker replies with these;
/// a turn says what it works on from now on, after an error it exits:
///
///     {"request": 7, "turn": 0}
///     {"request": 7, "answer": 0, "config": {…}, "us": 12.5, …}
///     {"request": 7, "answer": 0, "config": {…}, "failure": "does not compile"}
///     {"request": 7, "error": "no device"}
///
/// A worker ends when its input does.
namespace varmoe::tuner {

inline constexpr std::int64_t kProtocolVersion = 3;
inline constexpr std::size_t kMaxRequestConfigs = 1024;
/// A longer line is garbage.
inline constexpr std::size_t kMaxRequestLine = std::size_t{4} << 20, kMaxReplyLine = std::size_t{64} << 10;

/// Lines are without their newline. What is written for a valid spec and configs, the readers take.
std::string hello_line();
std::string request_line(std::int64_t id, const MeasureRequest& request);
std::string turn_line(std::int64_t id, std::size_t index);
/// Figures that are out of range (fault_of) go as a failure, since JSON has no NaN; one that is only not
/// verified keeps them.
std::string answer_line(std::int64_t id, std::size_t index, const LayerConfig& config,
                        const Measurement& measurement);
std::string answer_line(std::int64_t id, std::size_t index, const BackwardConfig& config,
                        const Measurement& measurement);
/// The same of a request's config.
std::string answer_line(std::int64_t id, std::size_t index, const MeasureRequest& request,
                        const Measurement& measurement);
std::string error_line(std::int64_t id, std::string_view message);

struct WorkerRequest {
  std::int64_t id = 0;
  MeasureRequest request;
};
struct WorkerReply {
  std::int64_t id = 0;
  enum class Kind : std::uint8_t { turn, answer, error } kind = Kind::error;
  std::size_t index = 0;                   ///< turn, answer
  LayerConfig config;                      ///< answer: what was measured, so that a mix-up shows
  std::optional<BackwardConfig> products;  ///< answer of a backward pass, in place of `config`
  Measurement measurement;                 ///< answer
  std::string message;                     ///< error
};

/// The errors (invalid_argument) name the field, its value and what is allowed. A worker of another
/// protocol or config space is refused.
Status read_hello(std::string_view line);
/// The spec is valid, each config is one that kernels can be emitted for.
Result<WorkerRequest> read_request(std::string_view line);
Result<WorkerReply> read_reply(std::string_view line);

/// The spec alone.
std::string spec_json(const LayerSpec& spec);

}  // namespace varmoe::tuner
