#include "tools/gpu/backward_reference.hpp"

#include <utility>

namespace varmoe::tools {
namespace {

/// In the order of BackwardReference::Kernel.
constexpr const char* kEntries[] = {"varmoe_tool_backward_z",       "varmoe_tool_backward_g",
                                    "varmoe_tool_backward_rows",    "varmoe_tool_backward_dx",
                                    "varmoe_tool_backward_columns", "varmoe_tool_backward_gradients",
                                    "varmoe_tool_pick_rows",        "varmoe_tool_pick_gradients",
                                    "varmoe_tool_backward_compare", "varmoe_tool_scan_floats"};

constexpr const char* kText = R"(
struct Reference {
  const u16 *x, *dout;
  const Expert* experts;
  const int* samples;
  const int* ids;
  const float* topk_weights;
  const u16* shared_gate;
  const int *row_slots, *row_experts, *expert_begin;
  double *gate, *up, *g;
  double *dtopk, *dx;
  double *column_gate, *column_up, *column_h;
  double *dw1, *dw2;
  i64 hidden, width_stride, rows;
  int top_k, num_experts, num_shared, columns;
  int activation, gated, fp16, fc1_kn, fc2_kn, interleaved, weight_on_input;
  float alpha, limit;
};

__device__ double rounded(double v, int fp16) { return decode(encode(static_cast<float>(v), fp16), fp16); }

// Whether a row's weight multiplies its input; else it multiplies its output.
__device__ bool weighs_input(const Reference& p, int slot) { return p.weight_on_input && slot < p.top_k; }
// The same for all threads of a warp; all of them take part.
__device__ double weight_of(const Reference& p, i64 token, int slot) {
  if (slot < p.top_k) return p.topk_weights[token * p.top_k + slot];
  if (!p.shared_gate) return 1.0;
  double dot = 0;
  for (i64 k = threadIdx.x % 32; k < p.hidden; k += 32)
    dot += decode(p.x[token * p.hidden + k], p.fp16) * decode(p.shared_gate[k], p.fp16);
  return 1.0 / (1.0 + exp(-warp_sum(dot)));
}

// Elements of an expert's matrices: column n of the expert, entry k of the hidden dimension.
__device__ i64 fc1_at(const Reference& p, const Expert& e, i64 n, i64 k) {
  return p.interleaved ? k * e.fc1_stride + 2 * n : p.fc1_kn ? k * e.fc1_stride + n : n * e.fc1_stride + k;
}
__device__ double gate_weight(const Reference& p, const Expert& e, i64 n, i64 k) {
  return decode(e.gate[fc1_at(p, e, n, k)], p.fp16);
}
__device__ double up_weight(const Reference& p, const Expert& e, i64 n, i64 k) {
  return p.interleaved ? decode(e.gate[fc1_at(p, e, n, k) + 1], p.fp16) : decode(e.up[fc1_at(p, e, n, k)], p.fp16);
}
__device__ double down_weight(const Reference& p, const Expert& e, i64 n, i64 k) {
  return decode(e.down[p.fc2_kn ? n * e.fc2_stride + k : k * e.fc2_stride + n], p.fp16);
}

// h = f(gate, up) and its derivatives by gate and by up; of an activation without a gate all is by up.
struct Activated {
  double h, by_gate, by_up;
};
__device__ Activated activate(const Reference& p, double gate, double up) {
  const double a = p.gated ? gate : up;
  const double s = 1.0 / (1.0 + exp(-a));
  const double c = 0.79788456080286535588;
  const double t = tanh(c * (a + 0.044715 * a * a * a));
  const double normal = 0.5 * erfc(-a * 0.70710678118654752440);
  const double density = 0.39894228040143267794 * exp(-0.5 * a * a);
  const double silu = a * s, silu_slope = s * (1.0 + a * (1.0 - s));
  const double gelu_tanh = 0.5 * a * (1.0 + t);
  const double gelu_tanh_slope = 0.5 * (1.0 + t) + 0.5 * a * (1.0 - t * t) * c * (1.0 + 0.134145 * a * a);
  const double gelu_erf = a * normal, gelu_erf_slope = normal + a * density;
  switch (p.activation) {
    case 0:
      return {silu * up, silu_slope * up, silu};
    case 1:
      return {gelu_tanh * up, gelu_tanh_slope * up, gelu_tanh};
    case 2:
      return {gelu_erf * up, gelu_erf_slope * up, gelu_erf};
    case 3: {
      const double limit = p.limit, alpha = p.alpha;
      const double v = fmin(gate, limit), u = fmax(fmin(up, limit), -limit);
      const double sigma = 1.0 / (1.0 + exp(-alpha * v));
      const double slope = sigma + alpha * v * sigma * (1.0 - sigma);
      return {v * sigma * (u + 1.0), gate >= limit ? 0.0 : slope * (u + 1.0), fabs(up) >= limit ? 0.0 : v * sigma};
    }
    case 4:
      return {silu, 0.0, silu_slope};
    case 5:
      return {gelu_tanh, 0.0, gelu_tanh_slope};
    case 6:
      return {gelu_erf, 0.0, gelu_erf_slope};
    case 7:
      return {fmax(up, 0.0), 0.0, up > 0 ? 1.0 : 0.0};
    case 8:
      return {up > 0 ? up * up : 0.0, 0.0, up > 0 ? 2.0 * up : 0.0};
    default:
      return {up, 0.0, 1.0};
  }
}

// What one column of a row makes of what a forward keeps: z, or W1·x where the weight multiplies the input.
struct Column {
  double h, by_gate, by_up;  // ∂loss/∂z = by · g
  double weight_gradient;    // what it adds to the weight's gradient, of g
};
__device__ Column column_of(const Reference& p, const Expert& e, i64 n, int slot, double weight, double gate, double up, double g) {
  if (!weighs_input(p, slot)) {
    const Activated a = activate(p, gate, up);
    return {weight * a.h, weight * a.by_gate, weight * a.by_up, g * a.h};
  }
  double z_gate = weight * gate, z_up = weight * up;
  if (e.gate_bias) z_gate += decode(e.gate_bias[n * e.fc1_bias_stride], p.fp16);
  if (e.up_bias) z_up += decode(e.up_bias[n * e.fc1_bias_stride], p.fp16);
  const Activated a = activate(p, z_gate, z_up);
  return {a.h, weight * a.by_gate, weight * a.by_up, g * (a.by_gate * gate + a.by_up * up)};
}

// What is kept of sampled pairs. nk: a warp an output, so that its lanes read one row; kn: a thread an output.
extern "C" __global__ void varmoe_tool_backward_z(Reference p) {
  const int pair = blockIdx.y, lane = threadIdx.x % 32, slots = p.top_k + p.num_shared;
  const i64 token = p.samples[pair / slots];
  const int id = expert_of(p, token, pair % slots);
  if (id < 0) return;
  const Expert e = p.experts[id];
  const i64 n = p.fc1_kn ? static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x
                         : static_cast<i64>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (n >= e.width) return;
  double gate = 0, up = 0;
  for (i64 k = p.fc1_kn ? 0 : lane; k < p.hidden; k += p.fc1_kn ? 1 : 32) {
    const double v = decode(p.x[token * p.hidden + k], p.fp16);
    if (p.gated) gate += v * gate_weight(p, e, n, k);
    up += v * up_weight(p, e, n, k);
  }
  if (!p.fc1_kn) {
    gate = warp_sum(gate);
    up = warp_sum(up);
    if (lane != 0) return;
  }
  if (e.gate_bias && !p.weight_on_input) gate += decode(e.gate_bias[n * e.fc1_bias_stride], p.fp16);
  if (e.up_bias && !p.weight_on_input) up += decode(e.up_bias[n * e.fc1_bias_stride], p.fp16);
  p.gate[pair * p.width_stride + n] = rounded(gate, p.fp16);
  p.up[pair * p.width_stride + n] = rounded(up, p.fp16);
}

// g = W2ᵀ·dout of sampled pairs. Here kn has rows of the hidden dimension.
extern "C" __global__ void varmoe_tool_backward_g(Reference p) {
  const int pair = blockIdx.y, lane = threadIdx.x % 32, slots = p.top_k + p.num_shared;
  const i64 token = p.samples[pair / slots];
  const int id = expert_of(p, token, pair % slots);
  if (id < 0) return;
  const Expert e = p.experts[id];
  const i64 n = p.fc2_kn ? static_cast<i64>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32
                         : static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= e.width) return;
  double g = 0;
  for (i64 k = p.fc2_kn ? lane : 0; k < p.hidden; k += p.fc2_kn ? 32 : 1)
    g += decode(p.dout[token * p.hidden + k], p.fp16) * down_weight(p, e, n, k);
  if (p.fc2_kn) {
    g = warp_sum(g);
    if (lane != 0) return;
  }
  p.g[pair * p.width_stride + n] = rounded(g, p.fp16);
}

// Gradients of the weights of sampled pairs; z becomes dz in its place.
extern "C" __global__ void varmoe_tool_backward_rows(Reference p) {
  const int pair = blockIdx.x, slots = p.top_k + p.num_shared, slot = pair % slots;
  const i64 token = p.samples[pair / slots];
  const int id = expert_of(p, token, slot);
  if (id < 0) {
    if (threadIdx.x == 0) p.dtopk[pair] = 0;
    return;
  }
  const Expert e = p.experts[id];
  const double weight = weight_of(p, token, slot);
  double dot = 0;
  for (i64 n = threadIdx.x; n < e.width; n += blockDim.x) {
    const i64 at = pair * p.width_stride + n;
    const double g = p.g[at];
    const Column c = column_of(p, e, n, slot, weight, p.gate[at], p.up[at], g);
    dot += c.weight_gradient;
    p.gate[at] = rounded(g * c.by_gate, p.fp16);
    p.up[at] = rounded(g * c.by_up, p.fp16);
  }
  if (e.down_bias && !weighs_input(p, slot)) {
    for (i64 k = threadIdx.x; k < p.hidden; k += blockDim.x)
      dot += decode(e.down_bias[k], p.fp16) * decode(p.dout[token * p.hidden + k], p.fp16);
  }
  dot = block_sum(dot);
  if (threadIdx.x == 0) p.dtopk[pair] = dot;
}

// dx of sampled tokens. nk: a thread an output; kn: a warp.
extern "C" __global__ void varmoe_tool_backward_dx(Reference p) {
  const int sample = blockIdx.y, lane = threadIdx.x % 32, slots = p.top_k + p.num_shared;
  const i64 token = p.samples[sample];
  const i64 c = p.fc1_kn ? static_cast<i64>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32
                         : static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  // All threads of a warp are needed for the weight of shared experts.
  const double shared = p.shared_gate ? weight_of(p, token, p.top_k) : 1.0;
  double sum = 0, of_shared = 0;
  for (int slot = 0; slot < slots; ++slot) {
    const int id = expert_of(p, token, slot);
    if (id < 0) continue;
    const i64 pair = static_cast<i64>(sample) * slots + slot;
    if (slot >= p.top_k) of_shared += p.dtopk[pair];
    if (c >= p.hidden) continue;
    const Expert e = p.experts[id];
    for (i64 n = p.fc1_kn ? lane : 0; n < e.width; n += p.fc1_kn ? 32 : 1) {
      const i64 at = pair * p.width_stride + n;
      if (p.gated) sum += p.gate[at] * gate_weight(p, e, n, c);
      sum += p.up[at] * up_weight(p, e, n, c);
    }
  }
  if (p.fc1_kn) sum = warp_sum(sum);
  if (c >= p.hidden || (p.fc1_kn && lane != 0)) return;
  if (p.shared_gate) sum += shared * (1.0 - shared) * of_shared * decode(p.shared_gate[c], p.fp16);
  p.dx[sample * p.hidden + c] = sum;
}

__device__ i64 sampled_column(int columns, i64 width, int c) {
  return columns > 1 ? c * (width - 1) / (columns - 1) : 0;
}

// dz and w·h of one sampled column, in all rows: a warp a row.
extern "C" __global__ void varmoe_tool_backward_columns(Reference p) {
  const i64 row = static_cast<i64>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int column = blockIdx.y, lane = threadIdx.x % 32, slots = p.top_k + p.num_shared;
  if (row >= p.rows) return;
  const Expert e = p.experts[p.row_experts[row]];
  const i64 n = sampled_column(p.columns, e.width, column);
  const i64 token = p.row_slots[row] / slots;
  const int slot = p.row_slots[row] % slots;
  const double weight = weight_of(p, token, slot);
  double gate = 0, up = 0, g = 0;
  for (i64 k = lane; k < p.hidden; k += 32) {
    const double v = decode(p.x[token * p.hidden + k], p.fp16);
    if (p.gated) gate += v * gate_weight(p, e, n, k);
    up += v * up_weight(p, e, n, k);
    g += decode(p.dout[token * p.hidden + k], p.fp16) * down_weight(p, e, n, k);
  }
  gate = warp_sum(gate);
  up = warp_sum(up);
  g = rounded(warp_sum(g), p.fp16);
  if (lane != 0) return;
  if (e.gate_bias && !p.weight_on_input) gate += decode(e.gate_bias[n * e.fc1_bias_stride], p.fp16);
  if (e.up_bias && !p.weight_on_input) up += decode(e.up_bias[n * e.fc1_bias_stride], p.fp16);
  const Column c = column_of(p, e, n, slot, weight, rounded(gate, p.fp16), rounded(up, p.fp16), g);
  const i64 at = column * p.rows + row;
  p.column_gate[at] = rounded(g * c.by_gate, p.fp16);
  p.column_up[at] = rounded(g * c.by_up, p.fp16);
  p.column_h[at] = rounded(c.h, p.fp16);
}

// The sampled column's gradients: a thread an entry of the hidden dimension.
extern "C" __global__ void varmoe_tool_backward_gradients(Reference p) {
  const i64 k = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int expert = blockIdx.y / p.columns, column = blockIdx.y % p.columns, slots = p.top_k + p.num_shared;
  if (k >= p.hidden) return;
  double gate = 0, up = 0, down = 0;
  for (i64 row = p.expert_begin[expert]; row < p.expert_begin[expert + 1]; ++row) {
    const i64 token = p.row_slots[row] / slots, at = column * p.rows + row;
    const double x = decode(p.x[token * p.hidden + k], p.fp16);
    if (p.gated) gate += p.column_gate[at] * x;
    up += p.column_up[at] * x;
    down += p.column_h[at] * decode(p.dout[token * p.hidden + k], p.fp16);
  }
  const i64 place = static_cast<i64>(expert) * p.columns + column;
  if (p.gated) {
    p.dw1[2 * place * p.hidden + k] = gate;
    p.dw1[(2 * place + 1) * p.hidden + k] = up;
  } else {
    p.dw1[place * p.hidden + k] = up;
  }
  p.dw2[place * p.hidden + k] = down;
}

struct Pick {
  const Expert* gradients;
  const u16* dx;
  const float* dtopk;
  const int* samples;
  const double* dtopk_reference;
  double *picked_dx, *picked_dtopk, *picked_dw1, *picked_dw2;
  i64 hidden;
  int top_k, slots, columns, experts;
  int gated, fp16, fp32_gradients, fc1_kn, fc2_kn, interleaved;
};
extern "C" __global__ void varmoe_tool_pick_rows(Pick p) {
  const i64 c = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  const i64 sample = blockIdx.y, token = p.samples[sample];
  if (c < p.hidden) p.picked_dx[sample * p.hidden + c] = decode(p.dx[token * p.hidden + c], p.fp16);
  if (c < p.slots) p.picked_dtopk[sample * p.slots + c] = c < p.top_k ? p.dtopk[token * p.top_k + c] : p.dtopk_reference[sample * p.slots + c];
}
__device__ double element(const Pick& p, const u16* base, i64 at) {
  return p.fp32_gradients ? static_cast<double>(reinterpret_cast<const float*>(base)[at]) : decode(base[at], p.fp16);
}
extern "C" __global__ void varmoe_tool_pick_gradients(Pick p) {
  const i64 k = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= p.hidden) return;
  const i64 place = blockIdx.y;
  const Expert e = p.gradients[place / p.columns];
  const i64 n = sampled_column(p.columns, e.width, static_cast<int>(place % p.columns));
  const i64 fc1 = p.interleaved ? k * e.fc1_stride + 2 * n : p.fc1_kn ? k * e.fc1_stride + n : n * e.fc1_stride + k;
  const i64 fc2 = p.fc2_kn ? n * e.fc2_stride + k : k * e.fc2_stride + n;
  const double up = p.interleaved ? element(p, e.gate, fc1 + 1) : element(p, e.up, fc1);
  if (p.gated) {
    p.picked_dw1[2 * place * p.hidden + k] = element(p, e.gate, fc1);
    p.picked_dw1[(2 * place + 1) * p.hidden + k] = up;
  } else {
    p.picked_dw1[place * p.hidden + k] = up;
  }
  p.picked_dw2[place * p.hidden + k] = element(p, e.down, fc2);
}

struct Compare {
  const double *actual, *reference;
  double* results;
  i64 columns;
  double relative, of_rms;
  int group, unused;
};
extern "C" __global__ void varmoe_tool_backward_compare(Compare p) {
  const i64 r = blockIdx.x, begin = r - r % p.group;
  double squares = 0;
  for (i64 i = threadIdx.x; i < p.group * p.columns; i += blockDim.x) {
    const double v = p.reference[begin * p.columns + i];
    squares += v * v;
  }
  const double floor = p.of_rms * sqrt(block_sum(squares) / static_cast<double>(p.group * p.columns));
  double own = 0, error = 0, beyond = 0;
  for (i64 c = threadIdx.x; c < p.columns; c += blockDim.x) {
    const double reference = p.reference[r * p.columns + c], off = p.actual[r * p.columns + c] - reference;
    if (!(fabs(off) <= p.relative * fabs(reference) + floor)) beyond += 1;
    own += reference * reference;
    error += off * off;
  }
  own = block_sum(own);
  beyond = block_sum(beyond);
  error = block_sum(error);
  if (threadIdx.x != 0) return;
  p.results[3 * r] = beyond;
  p.results[3 * r + 1] = error;
  p.results[3 * r + 2] = own;
}

struct Scan {
  const u32* at;
  u64 count;
  u64* sums;
};
extern "C" __global__ void varmoe_tool_scan_floats(Scan p) {
  const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
  u64 bad = 0, sum = 0;
  for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += step) {
    const u32 bits = p.at[i];
    if ((bits & 0x7f800000u) == 0x7f800000u) ++bad;
    sum += mix(mix(i) ^ bits);
  }
  if (bad != 0) atomicAdd(p.sums, bad);
  atomicAdd(p.sums + 1, sum);
}
)";

// The text above declares the same structs.
static_assert(sizeof(BackwardReferenceParams) == 240 && sizeof(BackwardPickParams) == 120 &&
              sizeof(BackwardCompareParams) == 56 && sizeof(FloatScanParams) == 24);

}  // namespace

Result<BackwardReference> BackwardReference::create(std::shared_ptr<cuda::Device> device,
                                                    compile::Compiler& compiler, const std::string& arch) {
  auto kernels = PlainKernels::create(std::move(device), compiler, arch, kText, kEntries);
  if (!kernels) return kernels.error();
  return BackwardReference(*std::move(kernels));
}

Status BackwardReference::reference(const BackwardReferenceParams& p, std::int64_t samples,
                                    std::int64_t max_width, void* stream) const {
  const auto blocks = [](std::int64_t outputs, bool warp_each) {
    return PlainKernels::blocks_of(outputs, warp_each);
  };
  const std::int64_t pairs = samples * (p.top_k + p.num_shared);
  const std::int64_t places = std::int64_t{p.num_experts + p.num_shared} * p.columns;
  const struct {
    Kernel kernel;
    std::int64_t blocks_x, blocks_y;
  } steps[] = {{kZ, blocks(max_width, p.fc1_kn == 0), pairs},
               {kG, blocks(max_width, p.fc2_kn != 0), pairs},
               {kRows, pairs, 1},
               {kDx, blocks(p.hidden, p.fc1_kn != 0), samples},
               {kColumns, blocks(p.rows, true), p.columns},
               {kGradients, blocks(p.hidden, false), places}};
  for (const auto& step : steps) {
    if (auto ok = kernels_.launch(step.kernel, step.blocks_x, step.blocks_y, p, stream); !ok) return ok;
  }
  return {};
}

Status BackwardReference::pick(const BackwardPickParams& p, std::int64_t samples, void* stream) const {
  const std::int64_t blocks = PlainKernels::blocks_of(p.hidden, false);
  if (auto ok = kernels_.launch(kPickRows, blocks, samples, p, stream); !ok) return ok;
  return kernels_.launch(kPickGradients, blocks, std::int64_t{p.experts} * p.columns, p, stream);
}

Status BackwardReference::compare(const BackwardCompareParams& params, std::int64_t rows,
                                  void* stream) const {
  return kernels_.launch(kCompare, rows, 1, params, stream);
}

Status BackwardReference::scan(const FloatScanParams& params, void* stream) const {
  return kernels_.launch(kScan, PlainKernels::kStreamBlocks, 1, params, stream);
}

}  // namespace varmoe::tools
