#pragma once

#include "moe/sort.cuh"

// moe_align_block_size: the routed rows in expert order, each expert's run padded to whole blocks, for GEMM kernels whose blocks of
// rows belong to one expert each. The sort's counting with other offsets; stable, so the same on each run.
//
// Few rows: one block does it all (align_single). More: align_count writes a histogram per block of rows, align_scatter places
// them.
namespace varmoe::moe {

template <class Layer, int kThreads>
struct Align {
  using S = Sort<Layer, kThreads>;
  static_assert(Layer::kTopK == 1, "rows are counted, not tokens");

  /// What the sort's functions read of their parameters.
  VARMOE_DEVICE static abi::SortParams sort_params(const abi::AlignParams& p) {
    abi::SortParams sort{};
    sort.topk_ids = p.topk_ids;
    sort.ids_are_64bit = p.ids_are_64bit;
    sort.row_source = p.sorted_token_ids;
    sort.block_histogram = p.block_histogram;
    sort.tokens = p.rows;
    sort.slots_per_block = p.slots_per_block;
    return sort;
  }

  /// s.offset: where each expert's blocks begin, from s.total.
  VARMOE_DEVICE static void scan_blocks(const abi::AlignParams& p, typename S::Shared& s) {
    if (S::warp() == 0) S::scan(s.offset, [&](i32 e) { return ceil_div(s.total[e], p.block_size) * p.block_size; });
    __syncthreads();
  }

  /// Sentinels, the blocks' experts and the padded count: all but the rows themselves.
  VARMOE_DEVICE static void write_blocks(const abi::AlignParams& p, const typename S::Shared& s) {
    for (i32 e = S::warp(); e < S::kExperts; e += S::kWarps) {
      for (i32 i = s.offset[e] + s.total[e] + S::lane(); i < s.offset[e + 1]; i += 32) p.sorted_token_ids[i] = p.rows;
      for (i32 b = s.offset[e] / p.block_size + S::lane(); b < s.offset[e + 1] / p.block_size; b += 32) p.expert_ids[b] = e;
    }
    const i32 padded = s.offset[S::kExperts], thread = static_cast<i32>(threadIdx.x);
    for (i32 i = padded + thread; i < p.sorted_size; i += kThreads) p.sorted_token_ids[i] = p.rows;
    for (i32 b = padded / p.block_size + thread; b < p.blocks; b += kThreads) p.expert_ids[b] = -1;
    if (thread == 0) *p.num_tokens_post_pad = padded;
  }
};

template <class Layer, int kThreads>
VARMOE_DEVICE void align_single(const abi::AlignParams& p) {
  using A = Align<Layer, kThreads>;
  using S = typename A::S;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  const abi::SortParams sort = A::sort_params(p);
  ptx::follow_earlier_kernels();
  S::count(sort, s, 0, p.rows);
  const i32 busy = S::busy_warps(0, p.rows);
  for (i32 e = threadIdx.x; e < S::kExperts; e += kThreads) s.total[e] = S::counted(s, busy, e);
  __syncthreads();
  A::scan_blocks(p, s);
  S::positions(s, busy, [&](i32 e) { return s.offset[e]; });
  S::place(sort, s, 0, p.rows);
  A::write_blocks(p, s);
}

template <class Layer, int kThreads>
VARMOE_DEVICE void align_count(const abi::AlignParams& p) {
  using A = Align<Layer, kThreads>;
  using S = typename A::S;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  ptx::follow_earlier_kernels();
  const i32 begin = min_of(p.rows, static_cast<i32>(blockIdx.x) * p.slots_per_block);
  const i32 end = min_of(p.rows, begin + p.slots_per_block), busy = S::busy_warps(begin, end);
  S::count(A::sort_params(p), s, begin, end);
  for (i32 e = threadIdx.x; e < S::kExperts; e += kThreads)
    p.block_histogram[static_cast<i64>(blockIdx.x) * S::kExperts + e] = S::counted(s, busy, e);
}

template <class Layer, int kThreads>
VARMOE_DEVICE void align_scatter(const abi::AlignParams& p) {
  using A = Align<Layer, kThreads>;
  using S = typename A::S;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  // One block more than there are blocks of rows: it writes what is not a row.
  const i32 blocks = static_cast<i32>(gridDim.x) - 1, block = static_cast<i32>(blockIdx.x);
  const abi::SortParams sort = A::sort_params(p);
  const i32 begin = min_of(p.rows, block * p.slots_per_block), end = min_of(p.rows, begin + p.slots_per_block);
  ptx::follow_earlier_kernels();
  for (i32 e = threadIdx.x; e < S::kExperts; e += kThreads) s.total[e] = s.fc1_outputs[e] = 0;
  if (block < blocks) S::count(sort, s, begin, end);
  __syncthreads();
  S::sum_blocks(sort, s, block, blocks);
  __syncthreads();
  A::scan_blocks(p, s);
  if (block == blocks) {
    A::write_blocks(p, s);
  } else {
    S::positions(s, S::busy_warps(begin, end), [&](i32 e) { return s.offset[e] + s.fc1_outputs[e]; });
    S::place(sort, s, begin, end);
  }
}

}  // namespace varmoe::moe
