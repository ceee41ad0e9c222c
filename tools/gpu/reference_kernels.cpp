#include "tools/gpu/reference_kernels.hpp"

#include <utility>

namespace varmoe::tools {
namespace {

/// In the order of ReferenceKernels::Kernel.
constexpr const char* kEntries[] = {"varmoe_tool_fill", "varmoe_tool_reference_h",
                                    "varmoe_tool_reference_out", "varmoe_tool_compare", "varmoe_tool_scan"};

constexpr const char* kText = R"(
struct Fill {
  u16* at;
  u64 count, seed;
  float scale;
  int fp16;
};
extern "C" __global__ void varmoe_tool_fill(Fill p) {
  const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += step) {
    const float unit = static_cast<float>(mix(p.seed + i) >> 40) * 0x1p-23f - 1.0f;
    p.at[i] = encode(unit * p.scale, p.fp16);
  }
}

struct Reference {
  const u16* x;
  const Expert* experts;
  const int* samples;
  const int* ids;
  const float* topk_weights;
  double *h, *out;
  const u16* shared_gate;
  i64 hidden, h_stride;
  int top_k, num_experts, activation, gated, fp16, fc1_kn, fc2_kn, interleaved;
  float alpha, limit;
  int num_shared, weight_on_input;
};

// In the order of varmoe/layer_spec.hpp's Activation.
__device__ double activate(const Reference& p, double gate, double up) {
  const double a = p.gated ? gate : up;
  const double silu = a / (1.0 + exp(-a));
  const double gelu_tanh = 0.5 * a * (1.0 + tanh(0.79788456080286535588 * (a + 0.044715 * a * a * a)));
  const double gelu_erf = 0.5 * a * erfc(-a * 0.70710678118654752440);
  switch (p.activation) {
    case 0:
      return silu * up;
    case 1:
      return gelu_tanh * up;
    case 2:
      return gelu_erf * up;
    case 3: {
      const double limit = p.limit;
      const double g = fmin(gate, limit), u = fmax(fmin(up, limit), -limit);
      return g / (1.0 + exp(-static_cast<double>(p.alpha) * g)) * (u + 1.0);
    }
    case 4:
      return silu;
    case 5:
      return gelu_tanh;
    case 6:
      return gelu_erf;
    case 7:
      return fmax(up, 0.0);
    case 8:
      return up > 0 ? up * up : 0.0;
    default:
      return up;
  }
}

// nk: a warp an output, so that its lanes read one row; kn: a thread an output, so that neighbours read neighbours.
extern "C" __global__ void varmoe_tool_reference_h(Reference p) {
  const int pair = blockIdx.y, lane = threadIdx.x % 32;
  const int slots = p.top_k + p.num_shared;
  const i64 token = p.samples[pair / slots];
  const int id = expert_of(p, token, pair % slots);
  if (id < 0) return;
  const Expert e = p.experts[id];
  const i64 n = p.fc1_kn ? static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x
                         : static_cast<i64>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (n >= e.width) return;
  const u16* x = p.x + token * p.hidden;
  double gate = 0, up = 0;
  if (p.fc1_kn) {
    for (i64 k = 0; k < p.hidden; ++k) {
      const double v = decode(x[k], p.fp16);
      const i64 row = k * e.fc1_stride;
      if (p.interleaved) {
        gate += v * decode(e.gate[row + 2 * n], p.fp16);
        up += v * decode(e.gate[row + 2 * n + 1], p.fp16);
      } else {
        if (p.gated) gate += v * decode(e.gate[row + n], p.fp16);
        up += v * decode(e.up[row + n], p.fp16);
      }
    }
  } else {
    for (i64 k = lane; k < p.hidden; k += 32) {
      const double v = decode(x[k], p.fp16);
      if (p.gated) gate += v * decode(e.gate[n * e.fc1_stride + k], p.fp16);
      up += v * decode(e.up[n * e.fc1_stride + k], p.fp16);
    }
    gate = warp_sum(gate);
    up = warp_sum(up);
    if (lane != 0) return;
  }
  if (p.weight_on_input && pair % slots < p.top_k) {
    const double weight = p.topk_weights[token * p.top_k + pair % slots];
    gate *= weight;
    up *= weight;
  }
  if (e.gate_bias) gate += decode(e.gate_bias[n * e.fc1_bias_stride], p.fp16);
  if (e.up_bias) up += decode(e.up_bias[n * e.fc1_bias_stride], p.fp16);
  const float h = static_cast<float>(activate(p, gate, up));
  p.h[pair * p.h_stride + n] = decode(encode(h, p.fp16), p.fp16);
}

extern "C" __global__ void varmoe_tool_reference_out(Reference p) {
  const int sample = blockIdx.y, lane = threadIdx.x % 32;
  const i64 token = p.samples[sample];
  const i64 c = p.fc2_kn ? static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x
                         : static_cast<i64>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (c >= p.hidden) return;
  double sum = 0, shared = 1;
  if (p.shared_gate) {
    double dot = 0;
    for (i64 i = 0; i < p.hidden; ++i) dot += decode(p.x[token * p.hidden + i], p.fp16) * decode(p.shared_gate[i], p.fp16);
    shared = 1.0 / (1.0 + exp(-dot));
  }
  const int slots = p.top_k + p.num_shared;
  for (int slot = 0; slot < slots; ++slot) {
    const int id = expert_of(p, token, slot);
    if (id < 0) continue;
    const Expert e = p.experts[id];
    const double* h = p.h + (static_cast<i64>(sample) * slots + slot) * p.h_stride;
    double y = 0;
    if (p.fc2_kn) {
      for (i64 i = 0; i < e.width; ++i) y += h[i] * decode(e.down[i * e.fc2_stride + c], p.fp16);
    } else {
      for (i64 i = lane; i < e.width; i += 32) y += h[i] * decode(e.down[c * e.fc2_stride + i], p.fp16);
      y = warp_sum(y);
    }
    if (e.down_bias) y += decode(e.down_bias[c], p.fp16);
    double weight = shared;
    if (slot < p.top_k) weight = p.weight_on_input ? 1.0 : static_cast<double>(p.topk_weights[token * p.top_k + slot]);
    sum += weight * y;
  }
  if (p.fc2_kn || lane == 0) p.out[sample * p.hidden + c] = sum;
}

struct Compare {
  const u16* actual;
  const double* reference;
  const int *rows, *row_of, *columns;
  double* results;
  i64 actual_stride, reference_stride;
  double relative, of_rms;
  int fp16, unused;
};
extern "C" __global__ void varmoe_tool_compare(Compare p) {
  const int r = blockIdx.x, columns = p.columns[r];
  const double* reference = p.reference + r * p.reference_stride;
  const i64 row = columns == 0 ? 0 : p.row_of ? p.row_of[p.rows[r]] : p.rows[r];
  const u16* actual = p.actual + row * p.actual_stride;
  double squares = 0, error = 0, beyond = 0;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) squares += reference[c] * reference[c];
  squares = block_sum(squares);
  const double floor = columns == 0 ? 0 : p.of_rms * sqrt(squares / columns);
  for (int c = threadIdx.x; c < columns; c += blockDim.x) {
    // A row that was never routed lies nowhere: all of it is wrong.
    const double off = row < 0 ? __longlong_as_double(0x7ff8000000000000ll) : decode(actual[c], p.fp16) - reference[c];
    if (!(fabs(off) <= p.relative * fabs(reference[c]) + floor)) beyond += 1;
    error += off * off;
  }
  beyond = block_sum(beyond);
  error = block_sum(error);
  if (threadIdx.x != 0) return;
  p.results[3 * r] = beyond;
  p.results[3 * r + 1] = error;
  p.results[3 * r + 2] = squares;
}

struct Scan {
  const u16* at;
  u64 count;
  u64* sums;
  int fp16, unused;
};
extern "C" __global__ void varmoe_tool_scan(Scan p) {
  const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
  const u32 exponent = p.fp16 ? 0x7c00u : 0x7f80u;
  u64 bad = 0, sum = 0;
  for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += step) {
    const u16 bits = p.at[i];
    if ((bits & exponent) == exponent) ++bad;
    sum += mix(i << 16 | bits);
  }
  if (bad != 0) atomicAdd(p.sums, bad);
  atomicAdd(p.sums + 1, sum);
}
)";

// The text above declares the same structs.
static_assert(sizeof(FillParams) == 32 && sizeof(ReferenceExpert) == 80 && sizeof(ReferenceParams) == 128 &&
              sizeof(CompareParams) == 88 && sizeof(ScanParams) == 32);

}  // namespace

Result<ReferenceKernels> ReferenceKernels::create(std::shared_ptr<cuda::Device> device,
                                                  compile::Compiler& compiler, const std::string& arch) {
  auto kernels = PlainKernels::create(std::move(device), compiler, arch, kText, kEntries);
  if (!kernels) return kernels.error();
  return ReferenceKernels(*std::move(kernels));
}

Status ReferenceKernels::fill(const FillParams& params, void* stream) const {
  return kernels_.launch(kFill, PlainKernels::kStreamBlocks, 1, params, stream);
}

Status ReferenceKernels::reference(const ReferenceParams& params, std::int64_t samples,
                                   std::int64_t max_width, void* stream) const {
  if (auto status = kernels_.launch(kReferenceH, PlainKernels::blocks_of(max_width, params.fc1_kn == 0),
                                    samples * (params.top_k + params.num_shared), params, stream);
      !status) {
    return status;
  }
  return kernels_.launch(kReferenceOut, PlainKernels::blocks_of(params.hidden, params.fc2_kn == 0), samples,
                         params, stream);
}

Status ReferenceKernels::compare(const CompareParams& params, std::int64_t rows, void* stream) const {
  return kernels_.launch(kCompare, rows, 1, params, stream);
}

Status ReferenceKernels::scan(const ScanParams& params, void* stream) const {
  return kernels_.launch(kScan, PlainKernels::kStreamBlocks, 1, params, stream);
}

}  // namespace varmoe::tools
