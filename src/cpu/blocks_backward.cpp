#include <algorithm>

#include "cpu/activation.hpp"
#include "cpu/blocks_impl.hpp"
#include "cpu/workspace.hpp"

/// The backward passes of down and up. Each is a few passes over rows or tiles, one after another; every
/// element is computed whole by one thread, in one order.
namespace varmoe::cpu {
namespace {

constexpr int kSumLanes = 8;  ///< a dot product's partial sums

/// `count` is a multiple of kSumLanes.
void add_products(const float* a, const float* b, std::int64_t count, float* lanes) {
  for (std::int64_t i = 0; i < count; i += kSumLanes)
    for (int l = 0; l < kSumLanes; ++l) lanes[l] += a[i + l] * b[i + l];
}
float sum_of(const float* lanes) {
  float sum = 0;
  for (int l = 0; l < kSumLanes; ++l) sum += lanes[l];
  return sum;
}

std::int64_t stride_of(std::int64_t given, std::int64_t standard) {
  return given != 0 ? given : standard;
}
std::int64_t h_columns(const LayerSpec& spec) {
  return (spec.widest_of_all() + 63) / 64 * 64;
}

/// Behind what products() takes of a workspace.
struct BackwardLayout {
  std::size_t g = 0, across = 0, weighed = 0, total_bytes = 0;
  BackwardLayout(const LayerSpec& spec, std::int64_t rows, int threads) noexcept
      : total_bytes(BlocksLayout(spec.all_experts(), threads).total_bytes) {
    const auto take = [&](std::int64_t count, std::size_t bytes) {
      const std::size_t at = total_bytes;
      total_bytes = (at + static_cast<std::size_t>(count) * bytes + 255) / 256 * 256;
      return at;
    };
    g = take(rows * h_columns(spec), sizeof(float));
    across = take(rows * z_rows(spec).stride, 2);
    weighed = take(spec.weight_on_input ? rows * spec.hidden_size : 0, 2);
  }
};

/// One backward. Rows are numbered without gaps in the workspace, from rows[e] on; a tile's caller's row is
/// its first_row + `begin`.
template <class Args>
class BlockBackward {
 public:
  BlockBackward(CpuBlocks::Impl& impl, const Args& args) noexcept
      : impl_(impl),
        a_(args),
        spec_(impl.spec),
        kernels_(impl.kernels),
        layout_(spec_, args.by_expert.rows, impl.team.size()),
        hidden_(spec_.hidden_size),
        columns_(h_columns(spec_)),
        z_stride_(stride_of(args.z_stride, z_rows(spec_).stride)),
        joint_(gate_and_up_joint(spec_)) {}

 protected:
  template <class T>
  T* place(std::size_t offset) const noexcept {
    return reinterpret_cast<T*>(static_cast<std::byte*>(a_.workspace) + offset);
  }

  /// fn(tile, begin) for tiles of whole rows.
  template <class Fn>
  void each_rows(std::int64_t depth, const Fn& fn) noexcept {
    impl_.products(
        a_.by_expert, a_.workspace, depth, kTileOutputs, [](std::int64_t) { return std::int64_t{1}; },
        [&](const Tile& t, std::int64_t begin, float*) { fn(t, begin); });
  }

  /// Row m of a tile among an expert's: where it lies in `across`, whose columns are rows.
  void across(const Tile& t, std::int64_t first_of_expert, std::int64_t rows, std::int64_t column, int m,
              const std::uint16_t* bits, std::int64_t count, std::int64_t half) const noexcept {
    std::uint16_t* const to = place<std::uint16_t>(layout_.across) + first_of_expert * z_rows(spec_).stride +
                              half * spec_.width_of(t.expert) * rows;
    for (std::int64_t i = 0; i < count; ++i)
      to[(column + i) * rows + t.first_row - first_of_expert + m] = bits[i];
  }

  /// Rows of each expert and where they begin, in both numberings, as the last pass left them.
  struct Places {
    const std::int64_t *begin, *rows;
    std::int64_t count(std::int64_t e) const { return rows[e + 1] - rows[e]; }
  };
  Places places() const noexcept {
    const BlocksLayout layout(spec_.all_experts(), impl_.team.size());
    return {place<const std::int64_t>(layout.begin), place<const std::int64_t>(layout.rows)};
  }

  /// Σ over an expert's rows of across[j] ⊗ ordered rows, for `halves` matrices of [width, H] each;
  /// put(tile, half, sums): a tile's are at j·kTileOutputs + i. `ordered`: [.., stride] by the caller's rows,
  /// or by those without gaps.
  template <class Put>
  void outer(int halves, const std::uint16_t* ordered, std::int64_t stride, bool without_gaps,
             const Put& put) noexcept {
    const std::int64_t all = spec_.all_experts(), over = (hidden_ + kTileOutputs - 1) / kTileOutputs;
    const BlocksLayout layout(all, impl_.team.size());
    const Places at = places();
    auto* const tasks = place<std::int64_t>(layout.tasks);
    double work = 0;
    tasks[0] = 0;
    for (std::int64_t e = 0; e < all; ++e) {  // of experts without rows too: they get zeros
      tasks[e + 1] = tasks[e] + halves * over * ((spec_.width_of(e) + kTileRows - 1) / kTileRows);
      work += static_cast<double>(at.count(e) * halves) * static_cast<double>(spec_.width_of(e) * hidden_);
    }
    each_task(impl_.team, impl_.team.worth(work), tasks[all], [&](std::int64_t task, int member) {
      const std::int64_t e = expert_of_task(all, tasks, task), rows = at.count(e);
      if (rows == 0 && a_.accumulate_weight_gradients) return;
      const std::int64_t local = task - tasks[e], half = local % halves, width = spec_.width_of(e);
      Tile t;
      t.expert = e;
      t.first_row = local / halves / over * kTileRows;
      t.rows = static_cast<int>(std::min<std::int64_t>(kTileRows, width - t.first_row));
      t.first_output = local / halves % over * kTileOutputs;
      t.outputs = static_cast<int>(std::min<std::int64_t>(kTileOutputs, hidden_ - t.first_output));
      float* const scratch = place<float>(layout.scratch) + static_cast<std::size_t>(member) * kTileScratch;
      float* const sums = scratch + kProductScratch;
      const std::uint16_t* const transposed = place<const std::uint16_t>(layout_.across) +
                                              at.rows[e] * z_rows(spec_).stride + half * width * rows;
      if (rows == 0) {
        std::fill_n(sums, kTileRows * kTileOutputs, 0.0f);
      } else {
        const std::uint16_t* lines[kTileRows];
        for (int j = 0; j < t.rows; ++j) lines[j] = transposed + (t.first_row + j) * rows;
        Product p;
        p.dtype = spec_.dtype;
        p.layout = WeightLayout::kn;
        p.rows = lines;
        p.row_count = t.rows;
        p.weights = ordered + (without_gaps ? at.rows[e] : at.begin[e]) * stride + t.first_output;
        p.weight_stride = stride;
        p.outputs = t.outputs;
        p.depth = rows;
        p.c = sums;
        p.scratch = scratch;
        kernels_.product(p);
      }
      put(t, half, transposed, rows, at.begin[e], sums);
    });
  }

  CpuBlocks::Impl& impl_;
  const Args& a_;
  const LayerSpec& spec_;
  const Kernels& kernels_;
  const BackwardLayout layout_;
  const std::int64_t hidden_, columns_, z_stride_;
  const bool joint_;
};

/// Stores dz of `count` columns from `begin` on, and zeros behind the last: from slopes, which it overwrites,
/// and w·dh. `row`: of dz. Leaves the rounded halves in `gate` and `up`.
void store_dz(const LayerSpec& spec, const Kernels& kernels, std::int64_t expert, std::int64_t begin,
              std::int64_t count, float* d_gate, float* d_up, const float* dh, bool joint, std::uint16_t* row,
              std::uint16_t* gate, std::uint16_t* up) noexcept {
  const BlockRow at(spec, expert);
  const std::int64_t width = spec.width_of(expert), step = joint ? 2 : 1;
  const auto half = [&](float* slope, std::uint16_t* bits, std::uint16_t* to) {
    for (std::int64_t i = 0; i < count; ++i) slope[i] *= dh[i];
    kernels.scale_round(spec.dtype, slope, 1.0f, count, bits);
    for (std::int64_t i = 0; i < count; ++i) to[(begin + i) * step] = bits[i];
    if (begin + count == width)
      for (std::int64_t i = width; i < at.whole; ++i) to[i * step] = 0;
  };
  if (spec.gated()) half(d_gate, gate, row);
  half(d_up, up, joint ? row + 1 : row + at.up);
}

class DownBackward : BlockBackward<GroupedDownBackwardArgs> {
 public:
  using BlockBackward::BlockBackward;

  void run() noexcept {
    g();
    each_rows(columns_, [&](const Tile& t, std::int64_t begin) { rows(t, begin); });
    if (a_.weight_gradients) weights();
  }

 private:
  std::int64_t dy_stride() const noexcept { return stride_of(a_.dy_stride, hidden_); }
  std::int64_t h_stride() const noexcept { return stride_of(a_.h_stride, columns_); }
  const std::uint16_t* dy(std::int64_t row) const noexcept { return elements(a_.dy) + row * dy_stride(); }
  float weight(std::int64_t row) const noexcept {
    return a_.row_weights != nullptr ? a_.row_weights[row] : 1.0f;
  }

  void g() noexcept {
    impl_.products(
        a_.by_expert, a_.workspace, hidden_, kTileOutputs, [&](std::int64_t e) { return spec_.width_of(e); },
        [&](const Tile& t, std::int64_t begin, float* scratch) {
          const ExpertWeights& w = impl_.experts[static_cast<std::size_t>(t.expert)];
          const std::uint16_t* lines[kTileRows];
          for (int m = 0; m < t.rows; ++m) lines[m] = dy(begin + t.first_row + m);
          Product p;
          p.dtype = spec_.dtype;
          p.layout = spec_.fc2_layout == WeightLayout::nk ? WeightLayout::kn : WeightLayout::nk;
          p.rows = lines;
          p.row_count = t.rows;
          p.weights = elements(w.down) + t.first_output * (p.layout == WeightLayout::nk ? w.fc2_stride : 1);
          p.weight_stride = w.fc2_stride;
          p.outputs = t.outputs;
          p.depth = hidden_;
          p.c = scratch + kProductScratch;
          p.scratch = scratch;
          kernels_.product(p);
          for (int m = 0; m < t.rows; ++m)
            std::copy_n(p.c + m * kTileOutputs, t.outputs,
                        place<float>(layout_.g) + (t.first_row + m) * columns_ + t.first_output);
        });
  }

  /// dh or dz, w·h transposed, and the weights' gradients of some rows.
  void rows(const Tile& t, std::int64_t begin) noexcept {
    const std::int64_t width = spec_.width_of(t.expert);
    const Places at = places();
    const BlockRow half(spec_, t.expert);
    float gate[kTileOutputs], up[kTileOutputs], h[kTileOutputs], g[kTileOutputs], d_gate[kTileOutputs],
        d_up[kTileOutputs];
    std::uint16_t bits[kTileOutputs], more[kTileOutputs];
    for (int m = 0; m < t.rows; ++m) {
      const std::int64_t row = begin + t.first_row + m;
      const float w = weight(row);
      float lanes[kSumLanes] = {};
      for (std::int64_t c = 0; c < width; c += kTileOutputs) {
        const std::int64_t count = std::min<std::int64_t>(kTileOutputs, width - c);
        std::copy_n(place<const float>(layout_.g) + (t.first_row + m) * columns_ + c, count, g);
        if (a_.z != nullptr) {
          const std::uint16_t* const z = elements(a_.z) + row * z_stride_ + c;
          if (spec_.gated()) kernels_.widen(spec_.dtype, z, count, gate);
          kernels_.widen(spec_.dtype, z + half.up, count, up);
          activation_slopes(spec_.activation, spec_.activation_params, gate, up, count, h, d_gate, d_up);
        } else if (a_.h != nullptr) {
          kernels_.widen(spec_.dtype, elements(a_.h) + row * h_stride() + c, count, h);
        }
        if (a_.drow_weights != nullptr) add_products(g, h, count, lanes);
        if (a_.weight_gradients) {
          kernels_.scale_round(spec_.dtype, h, w, count, bits);
          across(t, at.rows[t.expert], at.count(t.expert), c, m, bits, count, 0);
        }
        if (a_.z != nullptr) {
          for (std::int64_t i = 0; i < count; ++i) g[i] *= w;
          store_dz(spec_, kernels_, t.expert, c, count, d_gate, d_up, g, joint_,
                   static_cast<std::uint16_t*>(a_.dz) + row * z_stride_, bits, more);
        } else if (a_.dh != nullptr) {
          kernels_.scale_round(spec_.dtype, g, w, count,
                               static_cast<std::uint16_t*>(a_.dh) + row * h_stride() + c);
        }
      }
      if (a_.drow_weights != nullptr) a_.drow_weights[row] = sum_of(lanes) + bias(t.expert, row);
    }
  }

  /// ⟨b2, dy⟩.
  float bias(std::int64_t expert, std::int64_t row) const noexcept {
    const void* bias = impl_.experts[static_cast<std::size_t>(expert)].down_bias;
    if (bias == nullptr) return 0.0f;
    float lanes[kSumLanes] = {}, b[kTileOutputs], d[kTileOutputs];
    for (std::int64_t i = 0; i < hidden_; i += kTileOutputs) {
      const std::int64_t count = std::min<std::int64_t>(kTileOutputs, hidden_ - i);
      kernels_.widen(spec_.dtype, elements(bias) + i, count, b);
      kernels_.widen(spec_.dtype, dy(row) + i, count, d);
      add_products(b, d, count, lanes);
    }
    return sum_of(lanes);
  }

  void weights() noexcept {
    outer(1, elements(a_.dy), dy_stride(), false,
          [&](const Tile& t, std::int64_t, const std::uint16_t*, std::int64_t count, std::int64_t begin,
              float* sums) {
            const ExpertGradients& to = impl_.gradients.expert(t.expert);
            // The tile is dW2 transposed.
            impl_.gradients.put_tile(kernels_, {to.down.base, to.down.input_step, to.down.output_step},
                                     t.first_row, t.rows, t.first_output, t.outputs, sums,
                                     a_.accumulate_weight_gradients);
            if (to.down_bias.base == nullptr || t.first_row != 0) return;
            float total[kTileOutputs] = {}, line[kTileOutputs];
            for (std::int64_t r = begin; r < begin + count; ++r) {
              kernels_.widen(spec_.dtype, dy(r) + t.first_output, t.outputs, line);
              const float w = weight(r);
              for (int i = 0; i < t.outputs; ++i) total[i] += w * line[i];
            }
            impl_.gradients.put(kernels_, to.down_bias.base, t.first_output, 1, total, t.outputs,
                                a_.accumulate_weight_gradients);
          });
  }
};

class UpBackward : BlockBackward<GroupedUpBackwardArgs> {
 public:
  using BlockBackward::BlockBackward;

  void run() noexcept {
    // Also where there is nothing to do: the weights' gradients read what it finds out about the segments.
    each_rows(columns_, [&](const Tile& t, std::int64_t begin) { rows(t, begin); });
    if (a_.dx != nullptr) {
      dx();
      if (a_.row_weights != nullptr)
        each_rows(hidden_, [&](const Tile& t, std::int64_t begin) { weigh_dx(t, begin); });
    }
    if (a_.weight_gradients) weights();
  }

 private:
  std::int64_t x_stride() const noexcept { return stride_of(a_.x_stride, hidden_); }
  std::uint16_t* dz(std::int64_t row) const noexcept {
    return static_cast<std::uint16_t*>(a_.dz) + row * z_stride_;
  }

  /// dz, and it transposed; x times weights.
  void rows(const Tile& t, std::int64_t begin) noexcept {
    const std::int64_t width = spec_.width_of(t.expert);
    const Places at = places();
    const BlockRow half(spec_, t.expert);
    float gate[kTileOutputs], up[kTileOutputs], h[kTileOutputs], g[kTileOutputs], d_gate[kTileOutputs],
        d_up[kTileOutputs];
    std::uint16_t gate_bits[kTileOutputs], up_bits[kTileOutputs];
    for (int m = 0; m < t.rows; ++m) {
      const std::int64_t row = begin + t.first_row + m;
      for (std::int64_t c = 0; c < width; c += kTileOutputs) {
        const std::int64_t count = std::min<std::int64_t>(kTileOutputs, width - c);
        if (a_.dh != nullptr) {
          const std::uint16_t* const z = elements(a_.z) + row * z_stride_ + c;
          if (spec_.gated()) kernels_.widen(spec_.dtype, z, count, gate);
          kernels_.widen(spec_.dtype, z + half.up, count, up);
          kernels_.widen(spec_.dtype, elements(a_.dh) + row * stride_of(a_.dh_stride, columns_) + c, count,
                         g);
          activation_slopes(spec_.activation, spec_.activation_params, gate, up, count, h, d_gate, d_up);
          store_dz(spec_, kernels_, t.expert, c, count, d_gate, d_up, g, joint_, dz(row), gate_bits, up_bits);
        } else {
          for (std::int64_t i = 0; i < count; ++i) {
            gate_bits[i] = dz(row)[joint_ ? 2 * (c + i) : c + i];
            up_bits[i] = dz(row)[joint_ ? 2 * (c + i) + 1 : half.up + c + i];
          }
        }
        if (!a_.weight_gradients) continue;
        const std::int64_t first = at.rows[t.expert], rows = at.count(t.expert);
        if (spec_.gated()) across(t, first, rows, c, m, gate_bits, count, 1);
        across(t, first, rows, c, m, up_bits, count, 0);
      }
      if (!a_.weight_gradients || a_.row_weights == nullptr) continue;
      float x[kTileOutputs];
      for (std::int64_t i = 0; i < hidden_; i += kTileOutputs) {
        const std::int64_t count = std::min<std::int64_t>(kTileOutputs, hidden_ - i);
        kernels_.widen(spec_.dtype, elements(a_.x) + row * x_stride() + i, count, x);
        kernels_.scale_round(spec_.dtype, x, a_.row_weights[row], count,
                             place<std::uint16_t>(layout_.weighed) + (t.first_row + m) * hidden_ + i);
      }
    }
  }

  void dx() noexcept {
    impl_.products(
        a_.by_expert, a_.workspace, z_rows(spec_).stride, kTileOutputs, [&](std::int64_t) { return hidden_; },
        [&](const Tile& t, std::int64_t begin, float* scratch) {
          const ExpertWeights& w = impl_.experts[static_cast<std::size_t>(t.expert)];
          const std::uint16_t* lines[kTileRows];
          float* const sums = scratch + kProductScratch;
          float* const more = sums + kTileRows * kTileOutputs;
          Product p;
          p.dtype = spec_.dtype;
          p.layout = spec_.fc1_layout == WeightLayout::nk ? WeightLayout::kn : WeightLayout::nk;
          p.rows = lines;
          p.row_count = t.rows;
          p.weight_stride = w.fc1_stride;
          p.outputs = t.outputs;
          p.depth = spec_.width_of(t.expert) * (joint_ ? 2 : 1);
          p.scratch = scratch;
          const std::int64_t offset = t.first_output * (p.layout == WeightLayout::nk ? w.fc1_stride : 1);
          const auto product = [&](const void* weights, std::int64_t column, float* c) {
            for (int m = 0; m < t.rows; ++m) lines[m] = dz(begin + t.first_row + m) + column;
            p.weights = elements(weights) + offset;
            p.c = c;
            kernels_.product(p);
          };
          if (joint_) {
            product(w.gate, 0, sums);
          } else {
            product(w.up, BlockRow(spec_, t.expert).up, sums);
            if (spec_.gated()) {
              product(w.gate, 0, more);
              for (int m = 0; m < t.rows; ++m)
                for (int i = 0; i < t.outputs; ++i) sums[m * kTileOutputs + i] += more[m * kTileOutputs + i];
            }
          }
          for (int m = 0; m < t.rows; ++m)
            kernels_.scale_round(
                spec_.dtype, sums + m * kTileOutputs, 1.0f, t.outputs,
                static_cast<std::uint16_t*>(a_.dx) + (begin + t.first_row + m) * hidden_ + t.first_output);
        });
  }

  /// dx is that of w·x: its product with x is w's gradient, w times it x's.
  void weigh_dx(const Tile& t, std::int64_t begin) noexcept {
    float x[kTileOutputs], p[kTileOutputs];
    for (int m = 0; m < t.rows; ++m) {
      const std::int64_t row = begin + t.first_row + m;
      auto* const dx = static_cast<std::uint16_t*>(a_.dx) + row * hidden_;
      float lanes[kSumLanes] = {};
      for (std::int64_t i = 0; i < hidden_; i += kTileOutputs) {
        const std::int64_t count = std::min<std::int64_t>(kTileOutputs, hidden_ - i);
        kernels_.widen(spec_.dtype, dx + i, count, p);
        if (a_.drow_weights != nullptr) {
          kernels_.widen(spec_.dtype, elements(a_.x) + row * x_stride() + i, count, x);
          add_products(p, x, count, lanes);
        }
        kernels_.scale_round(spec_.dtype, p, a_.row_weights[row], count, dx + i);
      }
      if (a_.drow_weights != nullptr) a_.drow_weights[row] = sum_of(lanes);
    }
  }

  void weights() noexcept {
    const bool weighed = a_.row_weights != nullptr;
    outer(spec_.gated() ? 2 : 1, weighed ? place<const std::uint16_t>(layout_.weighed) : elements(a_.x),
          weighed ? hidden_ : x_stride(), weighed,
          [&](const Tile& t, std::int64_t half, const std::uint16_t* transposed, std::int64_t count,
              std::int64_t, float* sums) {
            const ExpertGradients& to = impl_.gradients.expert(t.expert);
            impl_.gradients.put_tile(kernels_, half == 1 ? to.gate : to.up, t.first_row, t.rows,
                                     t.first_output, t.outputs, sums, a_.accumulate_weight_gradients);
            const GradientVector& bias = half == 1 ? to.gate_bias : to.up_bias;
            if (bias.base == nullptr || t.first_output != 0) return;
            float total[kTileRows], piece[kTileOutputs];
            for (int j = 0; j < t.rows; ++j) {
              total[j] = 0;
              for (std::int64_t r = 0; r < count; r += kTileOutputs) {
                const std::int64_t n = std::min<std::int64_t>(kTileOutputs, count - r);
                kernels_.widen(spec_.dtype, transposed + (t.first_row + j) * count + r, n, piece);
                for (std::int64_t i = 0; i < n; ++i) total[j] += piece[i];
              }
            }
            impl_.gradients.put(kernels_, bias.base, t.first_row * bias.step, bias.step, total, t.rows,
                                a_.accumulate_weight_gradients);
          });
  }
};

}  // namespace

void CpuBlocks::bind_gradients(const Weights& gradients) {
  impl_->gradients = Gradients(impl_->spec, impl_->gradient_type, gradients);
}

std::size_t CpuBlocks::backward_workspace_bytes(std::int64_t rows) const noexcept {
  return BackwardLayout(impl_->spec, rows, impl_->team.size()).total_bytes;
}

void CpuBlocks::clear_gradients(bool fc1) noexcept {
  impl_->gradients.clear(impl_->spec, {.fc1 = fc1, .fc2 = !fc1, .shared_gate = false});
}

Status CpuBlocks::down_backward(const GroupedDownBackwardArgs& args) noexcept {
  DownBackward(*impl_, args).run();
  return {};
}

Status CpuBlocks::up_backward(const GroupedUpBackwardArgs& args) noexcept {
  UpBackward(*impl_, args).run();
  return {};
}

}  // namespace varmoe::cpu
