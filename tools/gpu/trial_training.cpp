#include "tools/gpu/trial_training.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "cuda/stream.hpp"
#include "model/backward_layer.hpp"

namespace varmoe::tools {
namespace {

/// Of each expert's gradients: what is compared.
constexpr std::int64_t kColumns = 4;
constexpr std::uint64_t kInputSeed = 0x51ed270b00000002, kGradientSeed = 0x51ed270b20000004;

/// How far results may lie from the reference, for bf16; fp16 has a quarter of each. Rows of dz lie on
/// several roundings, so an element has more room than in a forward; the norm has the tests' bar.
struct Bars {
  double total = 1e-2;  ///< ‖result − reference‖ / ‖reference‖ of all that is compared
  double relative = 3e-2, of_rms = 5e-2;  ///< of an element (BackwardCompareParams)
  /// Share of the elements that may lie beyond: a z that falls on the other side of a kink changes a row.
  double share = 0;
};
Bars bars_of(const LayerSpec& spec) {
  Bars b;
  if (spec.dtype == DType::fp16) b = {b.total / 4, b.relative / 4, b.of_rms / 4, 0};
  if (spec.activation == Activation::relu || spec.activation == Activation::swiglu_oai) b.share = 1e-3;
  return b;
}

std::uint64_t doubles(std::int64_t count) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(count, 1)) * sizeof(double);
}

}  // namespace

TrialTraining::TrialTraining(std::shared_ptr<cuda::Device> device, const ReferenceKernels& fills,
                             const BackwardReference& references, void* stream, const LayerSpec& spec,
                             GradientType type)
    : Trial(std::move(device), fills, stream, spec),
      references_(references),
      back_(model::backward_layer(spec)),
      type_(type) {}

Result<std::unique_ptr<TrialTraining>> TrialTraining::create(std::shared_ptr<cuda::Device> device,
                                                             const ReferenceKernels& fills,
                                                             const BackwardReference& references,
                                                             void* stream, const LayerSpec& spec,
                                                             GradientType type) {
  std::unique_ptr<TrialTraining> layer(
      new TrialTraining(std::move(device), fills, references, stream, spec, type));
  if (auto status = layer->make_weights(); !status) return status.error();
  return layer;
}

std::int64_t TrialTraining::places() const noexcept {
  return spec_.all_experts() * kColumns;
}

Status TrialTraining::make_weights() {
  auto weights = allocate_weights(device_, spec_);
  if (!weights) return weights.error();
  weights_ = *std::move(weights);
  auto gradients = allocate_weights(device_, spec_, type_ == GradientType::fp32 ? 4 : 2);
  if (!gradients) return gradients.error();
  gradients_ = *std::move(gradients);
  if (auto status = fill_weights(fills_, spec_, weights_, stream_); !status) return status;
  const cuda::Driver* maps = tensor_maps();
  struct Tables {
    Result<std::vector<std::byte>> forward, backward, gradients;
  };
  const Tables tables = [&] {
    const cuda::ContextScope current(*device_);  // encoding a tensor map asks for one
    return Tables{plan::make_expert_table(spec_, weights_.lie, maps),
                  plan::make_backward_table(spec_, weights_.lie, maps),
                  plan::make_gradient_table(spec_, gradients_.lie)};
  }();
  const std::pair<cuda::DeviceBuffer*, const Result<std::vector<std::byte>>*> uploads[] = {
      {&forward_table_, &tables.forward},
      {&backward_table_, &tables.backward},
      {&gradient_table_, &tables.gradients}};
  for (const auto& [buffer, table] : uploads) {
    if (!*table) return table->error();
    if (auto status = upload(device_, *buffer, **table); !status) return status;
  }
  if (auto status = upload(device_, experts_, reference_experts(spec_, weights_.lie)); !status) return status;
  if (auto status = upload(device_, gradient_experts_, reference_experts(spec_, gradients_.lie)); !status)
    return status;
  context_.forward = plan::run_context(*device_, spec_, 0);
  context_.backward = plan::run_context(*device_, back_, 0);
  context_.forward.expert_table = forward_table_.address();
  context_.backward.expert_table = backward_table_.address();
  context_.gradients = gradient_table_.address();
  // A copy from pageable memory may still be under way when its call has returned, and this stream does not
  // wait for it.
  return device_->synchronize();
}

Status TrialTraining::set_bucket(std::int64_t bucket) {
  if (bucket == bucket_) return {};
  bucket_ = 0;  // until all of it is there
  const auto tokens = static_cast<std::size_t>(bucket), hidden = static_cast<std::size_t>(spec_.hidden_size);
  choose_samples(bucket);
  const std::int64_t halves = spec_.gated() ? 2 : 1;
  const std::int64_t compared = 2 * samples() + (halves + 1) * places();
  const std::pair<cuda::DeviceBuffer*, std::uint64_t> buffers[] = {
      {&x_, tokens * hidden * 2},
      {&dout_, tokens * hidden * 2},
      {&out_, tokens * hidden * 2},
      {&dx_, tokens * hidden * 2},
      {&dtopk_, tokens * static_cast<std::size_t>(spec_.top_k) * 4},
      {&saved_, plan::training_saved_bytes(spec_, bucket, true)},
      {&workspace_, plan::training_workspace_bytes(spec_, bucket, true)},
      {&picked_dx_, doubles(samples() * spec_.hidden_size)},
      {&picked_dtopk_, doubles(samples() * slots())},
      {&picked_dw1_, doubles(halves * places() * spec_.hidden_size)},
      {&picked_dw2_, doubles(places() * spec_.hidden_size)},
      {&results_, doubles(3 * compared)},
      {&sums_, 2 * sizeof(std::uint64_t)}};
  // What went before makes room first.
  for (const auto& [buffer, bytes] : buffers) *buffer = cuda::DeviceBuffer();
  for (Routed& routed : routed_) routed = Routed();
  for (const auto& [buffer, bytes] : buffers) {
    if (auto status = allocate(device_, *buffer, bytes); !status) return status;
  }
  if (auto status = fill_rows(x_, kInputSeed); !status) return status;
  if (auto status = fill_rows(dout_, kGradientSeed); !status) return status;
  if (auto status = upload(device_, samples_, sample_); !status) return status;
  bucket_ = bucket;
  for (const RoutingKind kind : kRoutingKinds) {
    if (auto status = make_reference(kind); !status) {
      bucket_ = 0;
      return status;
    }
  }
  return {};
}

Status TrialTraining::make_reference(RoutingKind kind) {
  Routed& routed = of(kind);
  const Routing routing = random_routing(spec_, bucket_, kind, 1 + static_cast<std::uint64_t>(kind));
  // Rows in expert order.
  std::vector<std::vector<std::int32_t>> rows(static_cast<std::size_t>(spec_.all_experts()));
  for (std::int64_t token = 0; token < bucket_; ++token) {
    for (std::int64_t slot = 0; slot < slots(); ++slot) {
      const std::int64_t id = expert_of(routing, token, slot);
      if (id >= 0 && id < spec_.all_experts())
        rows[static_cast<std::size_t>(id)].push_back(static_cast<std::int32_t>(token * slots() + slot));
    }
  }
  std::vector<std::int32_t> row_slots, row_experts, begin = {0};
  for (std::size_t e = 0; e < rows.size(); ++e) {
    row_slots.insert(row_slots.end(), rows[e].begin(), rows[e].end());
    row_experts.insert(row_experts.end(), rows[e].size(), static_cast<std::int32_t>(e));
    begin.push_back(static_cast<std::int32_t>(row_slots.size()));
  }
  const auto count = static_cast<std::int64_t>(row_slots.size());
  // Nothing of size 0 is allocated.
  if (row_slots.empty()) row_slots = row_experts = {0};
  cuda::DeviceBuffer slots_at, experts_at, begin_at, gate, up, g, column_gate, column_up, column_h;
  if (auto status = upload_ids(routing, routed); !status) return status;
  if (auto status = upload(device_, slots_at, row_slots); !status) return status;
  if (auto status = upload(device_, experts_at, row_experts); !status) return status;
  if (auto status = upload(device_, begin_at, begin); !status) return status;
  const std::int64_t halves = spec_.gated() ? 2 : 1, width = spec_.widest_of_all();
  const std::pair<cuda::DeviceBuffer*, std::int64_t> buffers[] = {
      {&gate, samples() * slots() * width},
      {&up, samples() * slots() * width},
      {&g, samples() * slots() * width},
      {&column_gate, kColumns * count},
      {&column_up, kColumns * count},
      {&column_h, kColumns * count},
      {&routed.dtopk, samples() * slots()},
      {&routed.dx, samples() * spec_.hidden_size},
      {&routed.dw1, halves * places() * spec_.hidden_size},
      {&routed.dw2, places() * spec_.hidden_size}};
  for (const auto& [buffer, elements] : buffers) {
    if (auto status = allocate(device_, *buffer, doubles(elements)); !status) return status;
    // If the reference wrote nothing at all, nothing must pass.
    if (auto status = poison(*buffer, kPoisonNan); !status) return status;
  }
  BackwardReferenceParams p;
  describe_layer(spec_, p);
  p.x = x_.address();
  p.dout = dout_.address();
  p.experts = experts_.address();
  p.samples = samples_.address();
  p.ids = routed.ids.address();
  p.topk_weights = routed.weights.address();
  if (spec_.shared_gate) p.shared_gate = weights_.shared_gate.address();
  p.row_slots = slots_at.address();
  p.row_experts = experts_at.address();
  p.expert_begin = begin_at.address();
  p.gate = gate.address();
  p.up = up.address();
  p.g = g.address();
  p.dtopk = routed.dtopk.address();
  p.dx = routed.dx.address();
  p.column_gate = column_gate.address();
  p.column_up = column_up.address();
  p.column_h = column_h.address();
  p.dw1 = routed.dw1.address();
  p.dw2 = routed.dw2.address();
  p.width_stride = width;
  p.rows = count;
  p.columns = kColumns;
  // Uploads from pageable memory first; and the scratch goes when this returns.
  if (auto status = device_->synchronize(); !status) return status;
  if (auto status = references_.reference(p, samples(), width, stream_); !status) return status;
  return cuda::synchronize_stream(*device_, stream_);
}

Status TrialTraining::forward(const plan::TrainingKernels& kernels, RoutingKind routing) {
  auto args = call_of<ForwardArgs>(of(routing));
  args.out = out_.data();
  const cuda::ContextScope current(*device_);
  if (!current.ok()) return current.status();
  return plan::run_training_forward(context_, kernels, args, saved_.data());
}

Status TrialTraining::backward(const plan::TrainingKernels& kernels, RoutingKind routing) {
  auto args = call_of<BackwardArgs>(of(routing));
  args.dout = dout_.data();
  args.saved = saved_.data();
  args.saved_bytes = saved_.size();
  args.dx = dx_.data();
  args.dtopk_weights = static_cast<float*>(dtopk_.data());
  const cuda::ContextScope current(*device_);
  if (!current.ok()) return current.status();
  return plan::run_backward(context_, kernels, args);
}

Status TrialTraining::run_poisoned(const plan::TrainingKernels& kernels, RoutingKind routing,
                                   std::uint8_t value) {
  for (const cuda::DeviceBuffer* output :
       {&out_, &dx_, &dtopk_, &gradients_.fc1, &gradients_.fc2, &gradients_.fc1_bias, &gradients_.fc2_bias,
        &gradients_.shared_gate}) {
    if (auto status = poison(*output, kPoisonNan); !status) return status;
  }
  if (auto status = poison(workspace_, value); !status) return status;
  if (auto status = poison(saved_, value); !status) return status;
  if (auto status = forward(kernels, routing); !status) return status;
  // Nothing in the workspace is needed from one call to the next.
  if (auto status = poison(workspace_, value); !status) return status;
  return backward(kernels, routing);
}

Status TrialTraining::scan_outputs(std::uint64_t sums) {
  if (auto status = fills_.scan({dx_.address(), dx_.size() / 2, sums, fp16(), 0}, stream_); !status)
    return status;
  if (auto status = references_.scan({dtopk_.address(), dtopk_.size() / 4, sums}, stream_); !status)
    return status;
  for (const cuda::DeviceBuffer* part : {&gradients_.fc1, &gradients_.fc2, &gradients_.fc1_bias,
                                         &gradients_.fc2_bias, &gradients_.shared_gate}) {
    if (part->size() == 0) continue;
    const Status status = type_ == GradientType::fp32
                              ? references_.scan({part->address(), part->size() / 4, sums}, stream_)
                              : fills_.scan({part->address(), part->size() / 2, sums, fp16(), 0}, stream_);
    if (!status) return status;
  }
  return {};
}

std::array<TrialTraining::Comparison, 4> TrialTraining::comparisons(RoutingKind kind) {
  const Routed& routed = of(kind);
  const std::int64_t halves = spec_.gated() ? 2 : 1, hidden = spec_.hidden_size;
  return {{{picked_dtopk_.address(), routed.dtopk.address(), samples(), slots(), samples(),
            &BackwardVerdict::dtopk, "dtopk_weights"},
           {picked_dx_.address(), routed.dx.address(), samples(), hidden, 1, &BackwardVerdict::dx, "dx"},
           {picked_dw1_.address(), routed.dw1.address(), halves * places(), hidden, halves * kColumns,
            &BackwardVerdict::dw1, "dW1"},
           {picked_dw2_.address(), routed.dw2.address(), places(), hidden, kColumns, &BackwardVerdict::dw2,
            "dW2"}}};
}

Result<BackwardVerdict> TrialTraining::check(const plan::TrainingKernels& kernels, RoutingKind kind,
                                             bool twice) {
  const Bars bars = bars_of(spec_);
  const auto compared = comparisons(kind);
  // Poison in the results, so that a comparison that did not run is no success.
  if (auto status = poison(results_, kPoisonNan); !status) return status.error();
  std::uint64_t checksums[2] = {0, 0};
  BackwardVerdict verdict;
  for (int run = 0; run < (twice ? 2 : 1); ++run) {
    if (auto status = run_poisoned(kernels, kind, run == 0 ? kPoisonNan : kPoisonSmall); !status)
      return status.error();
    if (auto status = poison(sums_, 0); !status) return status.error();
    if (auto status = scan_outputs(sums_.address()); !status) return status.error();
    if (run == 0) {
      BackwardPickParams pick;
      pick.gradients = gradient_experts_.address();
      pick.dx = dx_.address();
      pick.dtopk = dtopk_.address();
      pick.samples = samples_.address();
      pick.dtopk_reference = of(kind).dtopk.address();
      pick.picked_dx = picked_dx_.address();
      pick.picked_dtopk = picked_dtopk_.address();
      pick.picked_dw1 = picked_dw1_.address();
      pick.picked_dw2 = picked_dw2_.address();
      pick.hidden = spec_.hidden_size;
      pick.top_k = static_cast<std::int32_t>(spec_.top_k);
      pick.slots = static_cast<std::int32_t>(slots());
      pick.columns = kColumns;
      pick.experts = static_cast<std::int32_t>(spec_.all_experts());
      pick.gated = spec_.gated() ? 1 : 0;
      pick.fp16 = fp16();
      pick.fp32_gradients = type_ == GradientType::fp32 ? 1 : 0;
      pick.fc1_kn = spec_.fc1_layout == WeightLayout::kn ? 1 : 0;
      pick.fc2_kn = spec_.fc2_layout == WeightLayout::kn ? 1 : 0;
      pick.interleaved = pick.fc1_kn && spec_.gated() && spec_.gate_order == GateOrder::interleaved ? 1 : 0;
      if (auto status = references_.pick(pick, samples(), stream_); !status) return status.error();
      std::uint64_t results = results_.address();
      for (const Comparison& c : compared) {
        const BackwardCompareParams params{c.actual,
                                           c.reference,
                                           results,
                                           c.columns,
                                           bars.relative,
                                           bars.of_rms,
                                           static_cast<std::int32_t>(c.group),
                                           0};
        if (auto status = references_.compare(params, c.rows, stream_); !status) return status.error();
        results += static_cast<std::uint64_t>(3 * c.rows) * sizeof(double);
      }
    }
    if (auto status = cuda::synchronize_stream(*device_, stream_); !status) return status.error();
    std::uint64_t sums[2];
    if (auto status = cuda::copy_to_host(*device_, sums, sums_.address(), sizeof sums); !status)
      return status.error();
    checksums[run] = sums[1];
    if (sums[0] != 0 && verdict.fault.empty()) {
      verdict.fault = fmt::format(
          "{} elements of dx, dtopk_weights and the gradients are not finite or were not written", sums[0]);
    }
  }
  std::vector<double> results(results_.size() / sizeof(double));
  if (auto status = cuda::copy_to_host(*device_, results.data(), results_.address(), results_.size());
      !status)
    return status.error();
  const double* row = results.data();
  for (const Comparison& c : compared) {
    double beyond = 0, error = 0, reference = 0;
    for (std::int64_t r = 0; r < c.rows; ++r, row += 3) {
      beyond += row[0];
      error += row[1];
      reference += row[2];
    }
    const double share = share_of(beyond, static_cast<double>(c.rows * c.columns));
    verdict.*c.share = share;
    const double total = relative_error(error, reference);
    if (!verdict.fault.empty()) continue;
    if (share > bars.share) {
      verdict.fault = fmt::format("{:.3g} of {} are beyond the tolerance", share, c.name);
    } else if (!(total <= bars.total)) {
      verdict.fault = fmt::format("the error of {} is {:.3g} of the reference; {:.3g} are allowed", c.name,
                                  total, bars.total);
    }
  }
  if (verdict.fault.empty() && twice && checksums[0] != checksums[1])
    verdict.fault = "a second run gave other bits";
  return verdict;
}

}  // namespace varmoe::tools
