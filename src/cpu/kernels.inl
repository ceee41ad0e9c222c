// The loops, included once per instruction set by kernels_<name>.cpp, which defines VARMOE_CPU_LANES (floats
// in a vector). Those files are compiled with options that other machines cannot run, so everything here has
// internal linkage and no inline function of the standard library is called: the linker could keep this
// file's copy for the whole program.

#include <utility>

#include "cpu/kernels.hpp"

#if VARMOE_CPU_LANES >= 8
#include <immintrin.h>
#endif

namespace varmoe::cpu {
namespace {

constexpr int kLanes = VARMOE_CPU_LANES;
// Accumulators in registers: rows × outputs of the nk loop, rows × vectors of the kn loop.
constexpr int kNkRows = 4, kNkOutputs = kLanes == 16 ? 4 : 2;
constexpr int kKnRows = kLanes == 16 ? 8 : 6, kKnVectors = 2;
constexpr int kKnOutputs = kKnVectors * kLanes;
static_assert(kTileOutputs % kKnOutputs == 0 && kBlockDepth % kLanes == 0);
static_assert(kNkOutputs * kBlockDepth <= kWeightScratch);

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector load(const float* p) {
  return *reinterpret_cast<const Unaligned*>(p);
}
inline void store(float* p, Vector v) {
  *reinterpret_cast<Unaligned*>(p) = v;
}

// Always fused where there is a fused instruction: left to the compiler, two instances of a loop might differ
// in bits.
#if VARMOE_CPU_LANES == 16
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}
#elif VARMOE_CPU_LANES == 8
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}
#else
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return a * b + c;
}
#endif

// ---- conversions ----

inline float bits_to_float(std::uint32_t u) {
  return __builtin_bit_cast(float, u);
}
inline std::uint32_t float_to_bits(float f) {
  return __builtin_bit_cast(std::uint32_t, f);
}

void widen_bf16(const std::uint16_t* in, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = bits_to_float(static_cast<std::uint32_t>(in[i]) << 16);
}

void narrow_bf16(const float* in, float scale, std::int64_t n, std::uint16_t* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t u = float_to_bits(in[i] * scale);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const std::uint32_t nan = (u >> 16) | 0x40u;
    out[i] = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
}

inline float widen_fp16_one(std::uint16_t h) {
  // Exponent and fraction moved into place, then × 2^112 corrects the bias, subnormals included.
  const std::uint32_t magnitude = static_cast<std::uint32_t>(h & 0x7fffu) << 13;
  const std::uint32_t scaled = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  const std::uint32_t value = magnitude >= (0x7c00u << 13) ? (scaled | 0x7f800000u) : scaled;
  return bits_to_float(value | (static_cast<std::uint32_t>(h & 0x8000u) << 16));
}

inline std::uint16_t narrow_fp16_one(float f) {
  const std::uint32_t u = float_to_bits(f), a = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
  std::uint32_t r;
  if (a >= 0x47800000u) {  // 65536 and more, infinity, NaN
    r = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (a < 0x38800000u) {  // below 2^-14: 0.5 has the last place of a subnormal, adding it rounds there
    r = float_to_bits(bits_to_float(a) + 0.5f) - 0x3f000000u;
  } else {  // a carry out of the fraction runs into the exponent, and at 65520 into infinity
    r = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | r);
}

void widen_fp16(const std::uint16_t* in, std::int64_t n, float* out) {
  std::int64_t i = 0;
#if VARMOE_CPU_LANES >= 8
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
#endif
  for (; i < n; ++i) out[i] = widen_fp16_one(in[i]);
}

void narrow_fp16(const float* in, float scale, std::int64_t n, std::uint16_t* out) {
  std::int64_t i = 0;
#if VARMOE_CPU_LANES >= 8
  const __m256 factor = _mm256_set1_ps(scale);
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(in + i), factor);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#endif
  for (; i < n; ++i) out[i] = narrow_fp16_one(in[i] * scale);
}

void widen(DType t, const std::uint16_t* in, std::int64_t n, float* out) {
  t == DType::bf16 ? widen_bf16(in, n, out) : widen_fp16(in, n, out);
}

void scale_round(DType t, const float* in, float scale, std::int64_t n, std::uint16_t* out) {
  t == DType::bf16 ? narrow_bf16(in, scale, n, out) : narrow_fp16(in, scale, n, out);
}

// ---- nk: vectors along K, one dot product per output ----

template <int kHalf>
constexpr int half_index(int lane) {  // the first kHalf lanes of each 2·kHalf of two vectors, in order
  const int vector = lane / (kLanes / 2), at = lane % (kLanes / 2);
  return vector * kLanes + at / kHalf * 2 * kHalf + at % kHalf;
}
template <int kHalf, int... kLane>
inline Vector fold(Vector a, Vector b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, half_index<kHalf>(kLane)...) +
         __builtin_shufflevector(a, b, (half_index<kHalf>(kLane) + kHalf)...);
}
/// v[0] = the sums of kLanes vectors. Every sum is associated alike (lane i with i + half, then halves
/// again), wherever its vector stands.
template <int kHalf>
inline void sum_lanes(Vector* v) {
  if constexpr (kHalf >= 1) {
    for (int i = 0; i < kHalf; ++i) {
      v[i] = fold<kHalf>(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, kLanes>());
    }
    sum_lanes<kHalf / 2>(v);
  }
}

template <int kRows>
void nk_block(const float* a, const float* w, std::int64_t depth, float* c, bool first) {
  constexpr int kSums = kRows * kNkOutputs, kPadded = (kSums + kLanes - 1) / kLanes * kLanes;
  Vector sum[kPadded] = {};
  for (std::int64_t k = 0; k < depth; k += kLanes) {
    Vector wk[kNkOutputs];
#pragma GCC unroll 4
    for (int n = 0; n < kNkOutputs; ++n) wk[n] = load(w + n * static_cast<std::int64_t>(kBlockDepth) + k);
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const Vector ak = load(a + m * static_cast<std::int64_t>(kBlockDepth) + k);
#pragma GCC unroll 4
      for (int n = 0; n < kNkOutputs; ++n) {
        sum[m * kNkOutputs + n] = multiply_add(ak, wk[n], sum[m * kNkOutputs + n]);
      }
    }
  }
  float result[kPadded];
#pragma GCC unroll 4
  for (int g = 0; g < kPadded; g += kLanes) {
    sum_lanes<kLanes / 2>(sum + g);
    store(result + g, sum[g]);
  }
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kNkOutputs; ++n) {
      float* at = c + m * kTileOutputs + n;
      *at = first ? result[m * kNkOutputs + n] : *at + result[m * kNkOutputs + n];
    }
  }
}

void nk_product(const Product& p) {
  constexpr auto kDepth = static_cast<std::int64_t>(kBlockDepth);
  float* const a = p.scratch;
  float* const w = p.scratch + kRowScratch;
  for (std::int64_t k0 = 0; k0 < p.depth; k0 += kDepth) {
    const std::int64_t depth = p.depth - k0 < kDepth ? p.depth - k0 : kDepth;
    const std::int64_t padded = (depth + kLanes - 1) / kLanes * kLanes;
    const auto fill = [&](const std::uint16_t* from, float* to) {
      widen(p.dtype, from + k0, depth, to);
      for (std::int64_t k = depth; k < padded; ++k) to[k] = 0;
    };
    for (int m = 0; m < p.row_count; ++m) fill(p.rows[m], a + m * kDepth);
    for (int n = 0; n < p.outputs; n += kNkOutputs) {
      for (int j = 0; j < kNkOutputs; ++j) fill(p.weights + (n + j) * p.weight_stride, w + j * kDepth);
      int m = 0;
      const bool first = k0 == 0;
      for (; m + kNkRows <= p.row_count; m += kNkRows) {
        nk_block<kNkRows>(a + m * kDepth, w, padded, p.c + m * kTileOutputs + n, first);
      }
      const float* rest = a + m * kDepth;
      float* c = p.c + m * kTileOutputs + n;
      switch (p.row_count - m) {
        case 3:
          nk_block<3>(rest, w, padded, c, first);
          break;
        case 2:
          nk_block<2>(rest, w, padded, c, first);
          break;
        case 1:
          nk_block<1>(rest, w, padded, c, first);
          break;
        default:
          break;
      }
    }
  }
}

// ---- kn: vectors along the outputs, every sum in ascending k ----

template <int kRows>
void kn_block(const float* a, const float* w, std::int64_t depth, float* c, bool first) {
  Vector sum[kRows][kKnVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < kKnVectors; ++v)
      sum[m][v] = first ? Vector{} : load(c + m * kTileOutputs + v * kLanes);
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector wk[kKnVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kKnVectors; ++v) wk[v] = load(w + k * kKnOutputs + v * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const Vector ak = a[m * static_cast<std::int64_t>(kBlockDepthKn) + k] - Vector{};
#pragma GCC unroll 2
      for (int v = 0; v < kKnVectors; ++v) sum[m][v] = multiply_add(ak, wk[v], sum[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < kKnVectors; ++v) store(c + m * kTileOutputs + v * kLanes, sum[m][v]);
  }
}

void kn_product(const Product& p) {
  constexpr std::int64_t kAhead = 12;  // rows
  constexpr auto kDepth = static_cast<std::int64_t>(kBlockDepthKn);
  float* const a = p.scratch;
  float* const w = p.scratch + kRowScratch;
  for (std::int64_t k0 = 0; k0 < p.depth; k0 += kDepth) {
    const std::int64_t depth = p.depth - k0 < kDepth ? p.depth - k0 : kDepth;
    for (int m = 0; m < p.row_count; ++m) widen(p.dtype, p.rows[m] + k0, depth, a + m * kDepth);
    // A row of weights is read through once; its pieces of kKnOutputs go to panels of their own.
    for (std::int64_t k = 0; k < depth; ++k) {
      const std::uint16_t* row = p.weights + (k0 + k) * p.weight_stride;
      if (k0 + k + kAhead <
          p.depth) {  // the machine's own prefetcher does not follow rows that are pages apart
        for (int n = 0; n < p.outputs; n += 32) __builtin_prefetch(row + kAhead * p.weight_stride + n);
      }
      for (int n = 0; n < p.outputs; n += kKnOutputs) {
        const int count = p.outputs - n < kKnOutputs ? p.outputs - n : kKnOutputs;
        float* to = w + n * kDepth + k * kKnOutputs;
        widen(p.dtype, row + n, count, to);
        for (int i = count; i < kKnOutputs; ++i) to[i] = 0;
      }
    }
    for (int n = 0; n < p.outputs; n += kKnOutputs) {
      const float* panel = w + n * kDepth;
      const bool first = k0 == 0;
      int m = 0;
      for (; m + kKnRows <= p.row_count; m += kKnRows) {
        kn_block<kKnRows>(a + m * kDepth, panel, depth, p.c + m * kTileOutputs + n, first);
      }
      for (; m + 2 <= p.row_count; m += 2) {
        kn_block<2>(a + m * kDepth, panel, depth, p.c + m * kTileOutputs + n, first);
      }
      if (m < p.row_count) kn_block<1>(a + m * kDepth, panel, depth, p.c + m * kTileOutputs + n, first);
    }
  }
}

void product(const Product& p) {
  p.layout == WeightLayout::nk ? nk_product(p) : kn_product(p);
}

// ---- combine ----

void combine(DType t, const std::uint16_t* const* rows, int row_count, const std::uint16_t* old,
             std::int64_t count, std::uint16_t* out) {
  constexpr std::int64_t kChunk = 512;
  float sum[kChunk], term[kChunk];
  for (std::int64_t i = 0; i < count; i += kChunk) {
    const std::int64_t n = count - i < kChunk ? count - i : kChunk;
    for (std::int64_t j = 0; j < n; ++j) sum[j] = 0;
    for (int r = 0; r <= row_count; ++r) {
      const std::uint16_t* row = r < row_count ? rows[r] : old;
      if (row == nullptr) continue;
      widen(t, row + i, n, term);
      for (std::int64_t j = 0; j < n; ++j) sum[j] += term[j];
    }
    scale_round(t, sum, 1.0f, n, out + i);
  }
}

}  // namespace
}  // namespace varmoe::cpu
