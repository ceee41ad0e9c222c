#include "tools/gpu/trial_layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "cuda/stream.hpp"
#include "model/config_space.hpp"
#include "tools/gpu/weight_copies.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::tools {
namespace {

constexpr std::uint64_t kInputSeed = 0x51ed270b00000002;
/// From here on one copy of the weights is enough: its second half drives the first half out of L2.
constexpr double kOneCopyL2s = 16;

/// How far results may lie from the reference, for bf16; fp16 has a quarter of each.
struct Bars {
  double total = 5e-3;                    ///< ‖out − reference‖ / ‖reference‖ over all sampled rows
  double row = 1e-2;                      ///< of one row
  double relative = 1e-2, of_rms = 3e-2;  ///< of an element (CompareParams)
};
Bars bars_of(DType dtype) {
  Bars b;
  if (dtype == DType::fp16) b = {b.total / 4, b.row / 4, b.relative / 4, b.of_rms / 4};
  return b;
}

}  // namespace

TrialLayer::TrialLayer(std::shared_ptr<cuda::Device> device, const ReferenceKernels& kernels, void* stream,
                       const LayerSpec& spec, std::int64_t l2_bytes)
    : Trial(std::move(device), kernels, stream, spec), l2_bytes_(l2_bytes) {}

Result<std::unique_ptr<TrialLayer>> TrialLayer::create(std::shared_ptr<cuda::Device> device,
                                                       const ReferenceKernels& kernels, void* stream,
                                                       const LayerSpec& spec, std::int64_t l2_bytes) {
  std::unique_ptr<TrialLayer> layer(new TrialLayer(std::move(device), kernels, stream, spec, l2_bytes));
  if (auto status = layer->add_copy(); !status) return status.error();
  return layer;
}

Status TrialLayer::add_copy() {
  Copy copy;
  auto weights = allocate_weights(device_, spec_);
  if (!weights) return weights.error();
  copy.weights = *std::move(weights);
  auto table = [&] {
    const cuda::ContextScope current(*device_);  // encoding a tensor map asks for one
    return plan::make_expert_table(spec_, copy.weights.lie, tensor_maps());
  }();
  if (!table) return table.error();
  if (auto status = upload(device_, copy.table, *table); !status) return status;
  copy.context = plan::run_context(*device_, spec_, 0);
  copy.context.expert_table = copy.table.address();
  if (auto status = fill_weights(fills_, spec_, copy.weights, stream_); !status) return status;
  if (copies_.empty()) {
    if (auto status = upload(device_, experts_, reference_experts(spec_, copy.weights.lie)); !status)
      return status;
  }
  copies_.push_back(std::move(copy));
  // A copy from pageable memory may still be under way when its call has returned, and this stream does not
  // wait for it.
  return device_->synchronize();
}

Status TrialLayer::set_bucket(std::int64_t bucket) {
  if (bucket == bucket_) return {};
  const Status status = try_bucket(bucket);
  if (status || status.error().code() != ErrorCode::out_of_memory || copies_.size() < 2) return status;
  // Copies that other buckets asked for make room.
  copies_.erase(copies_.begin() + 1, copies_.end());
  return try_bucket(bucket);
}

Status TrialLayer::try_bucket(std::int64_t bucket) {
  bucket_ = 0;  // until all of it is there
  const auto tokens = static_cast<std::size_t>(bucket), hidden = static_cast<std::size_t>(spec_.hidden_size);
  choose_samples(bucket);
  // What went before makes room first.
  for (cuda::DeviceBuffer* buffer : {&x_, &out_, &workspace_, &results_}) *buffer = cuda::DeviceBuffer();
  for (Routed& routed : routed_) routed = Routed();
  if (auto status = allocate(device_, x_, tokens * hidden * 2); !status) return status;
  if (auto status = allocate(device_, out_, tokens * hidden * 2); !status) return status;
  const std::size_t workspace = plan::workspace_layout(spec_, nullptr, bucket).total_bytes;
  if (auto status = allocate(device_, workspace_, workspace); !status) return status;
  const auto results = static_cast<std::size_t>(3 * (samples() + pairs()) + 2) * sizeof(double);
  if (auto status = allocate(device_, results_, results); !status) return status;

  if (auto status = fill_rows(x_, kInputSeed); !status) return status;
  std::vector<std::int32_t> slots;
  const std::int64_t slots_each = this->slots();
  for (const std::int32_t token : sample_) {
    for (std::int64_t j = 0; j < slots_each; ++j)
      slots.push_back(static_cast<std::int32_t>(token * slots_each + j));
  }
  if (auto status = upload(device_, samples_, sample_); !status) return status;
  if (auto status = upload(device_, pair_slots_, slots); !status) return status;
  const std::vector<std::int32_t> columns(sample_.size(), static_cast<std::int32_t>(hidden));
  if (auto status = upload(device_, out_columns_, columns); !status) return status;

  double hit = 0;
  for (const RoutingKind kind : kRoutingKinds) {
    const Routing routing = random_routing(spec_, bucket, kind, 1 + static_cast<std::uint64_t>(kind));
    if (kind == RoutingKind::uniform) hit = weight_bytes_hit(spec_, routing.ids);
    Routed& routed = of(kind);
    if (auto status = upload_ids(routing, routed); !status) return status;
    std::vector<std::int32_t> widths;
    for (const std::int32_t slot : slots) {
      const std::int64_t id = expert_of(routing, slot / slots_each, slot % slots_each);
      const std::int64_t width = id < 0 ? 0 : spec_.width_of(id);
      widths.push_back(static_cast<std::int32_t>(width));
      routed.h_elements += width;
    }
    if (auto status = upload(device_, routed.h_columns, widths); !status) return status;
  }
  if (auto status = device_->synchronize(); !status) return status;  // as in add_copy
  for (const RoutingKind kind : kRoutingKinds) {
    if (auto status = make_reference(kind); !status) return status;
  }

  const bool one = hit >= kOneCopyL2s * static_cast<double>(l2_bytes_);
  const std::size_t wanted = one ? 1 : weight_copies(hit, l2_bytes_, 2);
  const std::size_t bytes = copies_.front().weights.bytes();
  while (copies_.size() < wanted) {
    auto memory = cuda::memory_info(*device_);
    if (!memory) return memory.error();
    if (memory->free_bytes < bytes + memory->total_bytes / 20) break;
    if (auto status = add_copy(); !status) return status;
  }
  used_copies_ = std::min(copies_.size(), wanted);
  if (auto status = cuda::synchronize_stream(*device_, stream_); !status) return status;
  bucket_ = bucket;
  return {};
}

Status TrialLayer::make_reference(RoutingKind kind) {
  Routed& routed = of(kind);
  const auto h = static_cast<std::size_t>(pairs() * spec_.widest_of_all()) * sizeof(double);
  if (auto status = allocate(device_, routed.h, h); !status) return status;
  if (auto status = allocate(device_, routed.out,
                             static_cast<std::size_t>(samples() * spec_.hidden_size) * sizeof(double));
      !status) {
    return status;
  }
  // What the reference does not write is compared with nothing, but if it wrote nothing at all, nothing must
  // pass.
  if (auto status = poison(routed.out, kPoisonNan); !status) return status;
  ReferenceParams p;
  describe_layer(spec_, p);
  p.x = x_.address();
  p.experts = experts_.address();
  p.samples = samples_.address();
  p.ids = routed.ids.address();
  p.topk_weights = routed.weights.address();
  p.h = routed.h.address();
  p.out = routed.out.address();
  p.h_stride = spec_.widest_of_all();
  if (spec_.shared_gate) p.shared_gate = copies_.front().weights.shared_gate.address();
  return fills_.reference(p, samples(), spec_.widest_of_all(), stream_);
}

Status TrialLayer::forward(const plan::KernelSet& kernels, RoutingKind routing, std::size_t copy) {
  auto args = call_of<ForwardArgs>(of(routing));
  args.out = out_.data();
  const cuda::ContextScope current(*device_);
  if (!current.ok()) return current.status();
  return plan::run(copies_[copy].context, kernels, args, bucket_);
}

Status TrialLayer::run_poisoned(const plan::KernelSet& kernels, RoutingKind routing, std::uint8_t value) {
  if (auto status = poison(out_, kPoisonNan); !status) return status;
  if (auto status = poison(workspace_, value); !status) return status;
  return forward(kernels, routing, 0);
}

Result<Verdict> TrialLayer::check(const plan::KernelSet& kernels, RoutingKind routing, bool twice) {
  const Bars bars = bars_of(spec_.dtype);
  const Routed& routed = of(routing);
  const auto rows = static_cast<std::size_t>(samples() + pairs());
  const std::uint64_t sums_at = results_.address() + 3 * rows * sizeof(double);
  const auto layout = plan::workspace_layout(spec_, &kernels.config, bucket_);

  // Poison in the results, so that a comparison that did not run is no success; the sums are added to.
  if (auto status = poison(results_, kPoisonNan); !status) return status.error();
  CompareParams out;
  out.actual = out_.address();
  out.reference = routed.out.address();
  out.rows = samples_.address();
  out.columns = out_columns_.address();
  out.results = results_.address();
  out.actual_stride = out.reference_stride = spec_.hidden_size;
  out.relative = bars.relative;
  out.of_rms = bars.of_rms;
  out.fp16 = fp16();
  CompareParams h = out;
  h.actual = workspace_.address() + layout.h;
  h.reference = routed.h.address();
  h.rows = pair_slots_.address();
  h.row_of = workspace_.address() + layout.slot_row;
  h.columns = routed.h_columns.address();
  h.results = results_.address() + 3 * static_cast<std::uint64_t>(samples()) * sizeof(double);
  h.actual_stride = model::h_columns(spec_.widest_of_all());
  h.reference_stride = spec_.widest_of_all();

  std::uint64_t checksums[2] = {0, 0};
  std::vector<double> results(3 * rows);
  Verdict verdict;
  for (int run = 0; run < (twice ? 2 : 1); ++run) {
    if (auto status = run_poisoned(kernels, routing, run == 0 ? kPoisonNan : kPoisonSmall); !status)
      return status.error();
    if (auto status = cuda::fill_async(*device_, sums_at, 0, 2 * sizeof(std::uint64_t), stream_); !status)
      return status.error();
    const ScanParams scan{out_.address(), out_.size() / 2, sums_at, fp16(), 0};
    if (auto status = fills_.scan(scan, stream_); !status) return status.error();
    if (run == 0) {
      if (auto status = fills_.compare(out, samples(), stream_); !status) return status.error();
      if (auto status = fills_.compare(h, pairs(), stream_); !status) return status.error();
    }
    if (auto status = cuda::synchronize_stream(*device_, stream_); !status) return status.error();
    std::uint64_t sums[2];
    if (auto status = cuda::copy_to_host(*device_, sums, sums_at, sizeof sums); !status)
      return status.error();
    checksums[run] = sums[1];
    if (sums[0] != 0 && verdict.fault.empty()) {
      verdict.fault = fmt::format("{} of {} elements of out are not finite or were not written", sums[0],
                                  out_.size() / 2);
    }
  }
  if (auto status =
          cuda::copy_to_host(*device_, results.data(), results_.address(), results.size() * sizeof(double));
      !status) {
    return status.error();
  }

  double beyond = 0, beyond_h = 0, error = 0, reference = 0, worst = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    const double* row = results.data() + 3 * r;
    if (r >= sample_.size()) {
      beyond_h += row[0];
      continue;
    }
    beyond += row[0];
    error += row[1];
    reference += row[2];
    // A row without experts is exactly zero; what is not a number is as wrong as can be.
    const double share = relative_error(row[1], row[2]);
    worst = share <= worst ? worst : share;
  }
  const double elements = static_cast<double>(samples() * spec_.hidden_size);
  verdict.err1 = share_of(beyond_h, static_cast<double>(routed.h_elements));
  verdict.err2 = share_of(beyond, elements);
  if (!verdict.fault.empty()) return verdict;
  const double total = relative_error(error, reference);
  if (verdict.err2 > 0) {
    verdict.fault =
        fmt::format("{:.3g} of h and {:.3g} of out are beyond the tolerance", verdict.err1, verdict.err2);
  } else if (!(worst <= bars.row) || !(total <= bars.total)) {
    verdict.fault = fmt::format(
        "the error is {:.3g} of the reference ({:.3g} in the worst row); {:.3g} ({:.3g}) are allowed", total,
        worst, bars.total, bars.row);
  } else if (twice && checksums[0] != checksums[1]) {
    verdict.fault = "a second run gave other bits";
  }
  return verdict;
}

}  // namespace varmoe::tools
