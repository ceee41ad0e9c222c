#include <algorithm>

#include "abi.cuh"
#include "model/gradient_config.hpp"
#include "plan/blocks.hpp"
#include "plan/gradient_run.hpp"
#include "plan/grouped_run.hpp"

/// The backward passes of down and up: the products of a TrainingLayer's backward, on a caller's segments.
namespace varmoe::plan {
namespace {

using emit::Stage;

/// Of both, so that one workspace serves either.
struct BackwardLayout : GroupedLayout {
  GradientLayout gradients;
  std::size_t partials = 0, wh = 0, weighed = 0;

  BackwardLayout(const LayerSpec& spec, std::int64_t max_width, std::int64_t rows) noexcept
      : GroupedLayout(grouped_layout(spec, rows)) {
    gradients = GradientLayout(spec.all_experts(), rows,
                               [this](std::int64_t count, std::size_t bytes) { return place(count, bytes); });
    partials = place(rows * model::most_partials(max_width), sizeof(float));
    wh = place(rows * model::h_columns(max_width), 2);
    weighed = place(spec.weight_on_input ? rows * spec.hidden_size : 0, 2);
  }
};

template <class Args>
class BlockBackward {
 public:
  BlockBackward(const BlocksContext& context, const BlockKernels& kernels, const Args& args) noexcept
      : context_(context),
        kernels_(kernels),
        a_(args),
        spec_(*context.forward.spec),
        layout_(spec_, context.forward.max_width, args.by_expert.rows),
        run_(context.backward, kernels.backward, args.by_expert, layout_, args.workspace, args.stream),
        workspace_(reinterpret_cast<std::uint64_t>(args.workspace)) {}

 protected:
  GradientRun gradients() const noexcept {
    const std::int64_t rows = a_.by_expert.rows;
    return {context_.forward,
            kernels_,
            context_.gradients,
            {run_.expert_rows(), nullptr, rows, rows},
            workspace_,
            layout_.gradients,
            a_.accumulate_weight_gradients,
            a_.stream};
  }
  std::int64_t h_columns() const noexcept { return model::h_columns(context_.forward.max_width); }
  std::int64_t stride_of(std::int64_t given, std::int64_t standard) const noexcept {
    return given != 0 ? given : standard;
  }
  abi::BlockRowsParams rows_params() const noexcept {
    abi::BlockRowsParams p{};
    p.experts = run_.experts();
    p.tiles = run_.tiles(Stage::fc2);
    p.tile_counts = run_.tile_counts();
    p.classes = run_.classes();
    return p;
  }
  /// A warp a row.
  std::int64_t row_blocks(const LoadedKernel& kernel) const noexcept {
    return run_.elementwise_blocks(kernel, a_.by_expert.rows * 32, 1);
  }

  const BlocksContext& context_;
  const BlockKernels& kernels_;
  const Args& a_;
  const LayerSpec& spec_;
  const BackwardLayout layout_;
  const GroupedRun run_;
  const std::uint64_t workspace_;
};

class DownBackward : BlockBackward<GroupedDownBackwardArgs> {
 public:
  using BlockBackward::BlockBackward;

  Status run() const noexcept {
    const bool from_z = a_.z != nullptr;
    const bool produces = from_z || a_.row_weights != nullptr || a_.dh != nullptr;
    if (auto ok = run_.schedule(kernels_.schedule); !ok) return ok;
    if (produces) {
      if (auto ok = from_z || a_.row_weights != nullptr ? turn_back(from_z) : dh(); !ok) return ok;
    }
    if (a_.drow_weights != nullptr) {
      if (auto ok = row_weights(); !ok) return ok;
    }
    return a_.weight_gradients ? weights(from_z) : Status{};
  }

 private:
  Rows dy() const noexcept { return {a_.dy, stride_of(a_.dy_stride, spec_.hidden_size), spec_.hidden_size}; }

  Status dh() const noexcept {
    GroupedProduct p;
    p.a = dy();
    p.out = a_.dh;
    p.out_stride = stride_of(a_.h_stride, h_columns());
    return run_.product(Stage::fc1, kernels_.backward[Stage::fc1], p);
  }

  /// dz of z; or dh of h by the same means, whose activation is none. Both leave w·h and parts of ⟨g, h⟩.
  Status turn_back(bool from_z) const noexcept {
    const model::PartialSums sums = partial_sums();
    GroupedProduct p;
    p.a = dy();
    p.out = at<void>(workspace_, layout_.wh);
    p.out_stride = h_columns();
    p.row_weight = a_.row_weights;
    p.z = const_cast<void*>(from_z ? a_.z : a_.h);
    p.z_stride = from_z ? stride_of(a_.z_stride, z_columns(spec_, context_.forward.max_width))
                        : stride_of(a_.h_stride, h_columns());
    p.dz = from_z ? a_.dz : a_.dh;
    p.partials = at<float>(workspace_, layout_.partials);
    p.partial_stride = sums.of_row;
    return run_.product(Stage::fc1, from_z ? kernels_.dz : kernels_.backward[Stage::fc1], p);
  }

  Status row_weights() const noexcept {
    const model::PartialSums sums = partial_sums();
    abi::BlockRowsParams p = rows_params();
    p.biases = spec_.bias ? at<const abi::ExpertBias>(context_.forward.expert_table,
                                                      ExpertTableLayout(spec_.all_experts()).biases)
                          : nullptr;
    p.a = a_.dy;
    p.a_stride = dy().stride;
    p.partials = at<const float>(workspace_, layout_.partials);
    p.dots = a_.drow_weights;
    p.span = static_cast<i32>(sums.span);
    p.partial_stride = static_cast<i32>(sums.of_row);
    return run_.launch(kernels_.row_weight_gradient, row_blocks(kernels_.row_weight_gradient), p);
  }

  Status weights(bool from_z) const noexcept {
    const Rows wh = from_z || a_.row_weights != nullptr
                        ? Rows{at<const void>(workspace_, layout_.wh), h_columns(), h_columns()}
                        : Rows{a_.h, stride_of(a_.h_stride, h_columns()), h_columns()};
    const GradientRun run = gradients();
    if (auto ok = run.schedule(); !ok) return ok;
    if (auto ok = run.product(model::GemmStage::fc2, wh, dy(), dy()); !ok) return ok;
    return spec_.bias ? run.fc2_bias(dy(), a_.row_weights) : Status{};
  }

  model::PartialSums partial_sums() const noexcept {
    return model::partial_sums(kernels_.backward.config.fc1, context_.forward.max_width);
  }
};

class UpBackward : BlockBackward<GroupedUpBackwardArgs> {
 public:
  using BlockBackward::BlockBackward;

  Status run() const noexcept {
    const bool weighs = a_.row_weights != nullptr;
    if (auto ok = run_.schedule(kernels_.schedule); !ok) return ok;
    if (a_.dh != nullptr) {
      if (auto ok = activation(); !ok) return ok;
    }
    if (a_.dx != nullptr) {
      GroupedProduct p;
      p.a = dz();
      p.out = a_.dx;
      p.out_stride = spec_.hidden_size;
      if (auto ok = run_.product(Stage::fc2, kernels_.backward[Stage::fc2], p); !ok) return ok;
      // As it is the gradient of x times the weight.
      const Rows product{a_.dx, spec_.hidden_size, spec_.hidden_size};
      if (weighs) {
        if (auto ok = weigh(product, a_.dx, a_.drow_weights); !ok) return ok;
      }
    }
    return a_.weight_gradients ? weights(weighs) : Status{};
  }

 private:
  Rows x() const noexcept { return {a_.x, stride_of(a_.x_stride, spec_.hidden_size), spec_.hidden_size}; }
  std::int64_t z_stride() const noexcept {
    return stride_of(a_.z_stride, z_columns(spec_, context_.forward.max_width));
  }
  Rows dz() const noexcept { return {a_.dz, z_stride(), z_columns(spec_, context_.forward.max_width)}; }

  Status activation() const noexcept {
    abi::GemmParams p{};
    p.experts = run_.experts();
    p.tiles = run_.tiles(Stage::fc2);
    p.tile_counts = run_.tile_counts();
    p.classes = run_.classes();
    p.a = a_.dh;
    p.a_stride = stride_of(a_.dh_stride, h_columns());
    p.z = const_cast<void*>(a_.z);
    p.z_stride = z_stride();
    p.dz = a_.dz;
    const LoadedKernel& kernel = kernels_.activation_gradient;
    // The kernel's slices, of 512 columns.
    const std::int64_t slices = (h_columns() + 511) / 512;
    return run_.launch(kernel,
                       run_.most_blocks(kernel, run_.most_tiles(kernels_.backward.config.fc2) * slices), p);
  }

  /// out = w·rows, and ⟨rows, x⟩ where `dots` is not null.
  Status weigh(const Rows& rows, void* out, float* dots) const noexcept {
    abi::BlockRowsParams p = rows_params();
    p.a = rows.at;
    p.a_stride = rows.stride;
    p.b = dots != nullptr ? a_.x : nullptr;
    p.b_stride = x().stride;
    p.out = out;
    p.out_stride = spec_.hidden_size;
    p.weights = a_.row_weights;
    p.dots = dots;
    return run_.launch(kernels_.weigh_rows, row_blocks(kernels_.weigh_rows), p);
  }

  Status weights(bool weighs) const noexcept {
    Rows of = x();
    if (weighs) {
      auto* const weighed = at<void>(workspace_, layout_.weighed);
      if (auto ok = weigh(of, weighed, nullptr); !ok) return ok;
      of = {weighed, spec_.hidden_size, spec_.hidden_size};
    }
    const GradientRun run = gradients();
    if (auto ok = run.schedule(); !ok) return ok;
    if (auto ok = run.product(model::GemmStage::fc1, dz(), of, of); !ok) return ok;
    return spec_.bias ? run.fc1_bias(dz()) : Status{};
  }
};

}  // namespace

std::size_t blocks_backward_workspace_bytes(const LayerSpec& spec, std::int64_t rows) noexcept {
  return BackwardLayout(spec, spec.widest_of_all(), rows).total_bytes;
}

Status run_block_down_backward(const BlocksContext& context, const BlockKernels& kernels,
                               const GroupedDownBackwardArgs& args) noexcept {
  return DownBackward(context, kernels, args).run();
}

Status run_block_up_backward(const BlocksContext& context, const BlockKernels& kernels,
                             const GroupedUpBackwardArgs& args) noexcept {
  return UpBackward(context, kernels, args).run();
}

}  // namespace varmoe::plan
