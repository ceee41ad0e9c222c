#pragma once

#include "moe/sort.cuh"

// moe_align_block_size: the routed rows in expert order, each expert's run padded to whole blocks, for GEMM kernels whose blocks of
// rows belong to one expert each. The sort's counting with other offsets; stable, so the same on each run.
//
// Few rows: one launch does it all (align_single). More: align_count writes a histogram per block of rows, align_scatter places
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

  /// Rows of an expert with its padding.
  VARMOE_DEVICE static i32 padded(const abi::AlignParams& p, i32 rows) { return ceil_div(rows, p.block_size) * p.block_size; }

  /// s.offset: where each expert's blocks begin, from its padded rows there.
  VARMOE_DEVICE static void scan_blocks(typename S::Shared& s) {
    if (S::warp() == 0) S::scan(s.offset, [&](i32 e) { return s.offset[e]; });
    __syncthreads();
  }

  /// Sentinels, the blocks' experts and the padded count: all but the rows themselves. By `writers` blocks, of which this is number `writer`.
  VARMOE_DEVICE static void write_blocks(const abi::AlignParams& p, const typename S::Shared& s, i32 writer, i32 writers) {
    for (i32 e = writer * S::kWarps + S::warp(); e < S::kExperts; e += writers * S::kWarps) {
      for (i32 i = s.offset[e] + s.total[e] + S::lane(); i < s.offset[e + 1]; i += 32) p.sorted_token_ids[i] = p.rows;
      for (i32 b = s.offset[e] / p.block_size + S::lane(); b < s.offset[e + 1] / p.block_size; b += 32) p.expert_ids[b] = e;
    }
    const i32 end = s.offset[S::kExperts], thread = writer * kThreads + static_cast<i32>(threadIdx.x);
    for (i32 i = end + thread; i < p.sorted_size; i += writers * kThreads) p.sorted_token_ids[i] = p.rows;
    for (i32 b = end / p.block_size + thread; b < p.blocks; b += writers * kThreads) p.expert_ids[b] = -1;
    if (thread == 0) *p.num_tokens_post_pad = end;
  }
};

/// The first block places the rows, the others write the rest. Each counts for itself, which is less than to wait for another.
template <class Layer, int kThreads>
VARMOE_DEVICE void align_single(const abi::AlignParams& p) {
  using A = Align<Layer, kThreads>;
  using S = typename A::S;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  const abi::SortParams sort = A::sort_params(p);
  const i32 busy = S::busy_warps(0, p.rows), block = static_cast<i32>(blockIdx.x);
  S::clear(s, busy);
  ptx::follow_earlier_kernels();
  __syncthreads();
  typename S::Held held;
  S::count(sort, s, 0, p.rows, held);
  S::rank_warps(s, busy, [&](i32 e, i32 rows) {
    s.total[e] = rows;
    s.offset[e] = A::padded(p, rows);
  });
  __syncthreads();
  A::scan_blocks(s);
  if (block == 0) {
    S::place(sort, s, 0, p.rows, held, [&](i32 e) { return s.offset[e]; });
  } else {
    A::write_blocks(p, s, block - 1, static_cast<i32>(gridDim.x) - 1);
  }
}

template <class Layer, int kThreads>
VARMOE_DEVICE void align_count(const abi::AlignParams& p) {
  using A = Align<Layer, kThreads>;
  using S = typename A::S;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  S::clear(s, S::busy_warps(0, p.slots_per_block));
  ptx::follow_earlier_kernels();
  __syncthreads();
  const i32 begin = min_of(p.rows, static_cast<i32>(blockIdx.x) * p.slots_per_block);
  const i32 end = min_of(p.rows, begin + p.slots_per_block);
  typename S::Held held;
  S::count(A::sort_params(p), s, begin, end, held);
  i32* histogram = p.block_histogram + static_cast<i64>(blockIdx.x) * S::kExperts;
  S::rank_warps(s, S::busy_warps(begin, end), [&](i32 e, i32 rows) { histogram[e] = rows; });
}

template <class Layer, int kThreads>
VARMOE_DEVICE void align_scatter(const abi::AlignParams& p) {
  using A = Align<Layer, kThreads>;
  using S = typename A::S;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  // The blocks behind those of rows write what is not a row.
  const i32 blocks = ceil_div(p.rows, p.slots_per_block), block = static_cast<i32>(blockIdx.x);
  const abi::SortParams sort = A::sort_params(p);
  const i32 begin = min_of(p.rows, block * p.slots_per_block), end = min_of(p.rows, begin + p.slots_per_block), busy = S::busy_warps(begin, end);
  for (i32 e = threadIdx.x; e < S::kExperts; e += kThreads) s.total[e] = s.fc1_outputs[e] = 0;
  S::clear(s, busy);
  ptx::follow_earlier_kernels();
  __syncthreads();
  typename S::Held held;
  if (block < blocks) {
    S::count(sort, s, begin, end, held);
    S::rank_warps(s, busy, [](i32, i32) {});
  }
  S::sum_blocks(sort, s, block, blocks);
  __syncthreads();
  for (i32 e = threadIdx.x; e < S::kExperts; e += kThreads) s.offset[e] = A::padded(p, s.total[e]);
  __syncthreads();
  A::scan_blocks(s);
  if (block < blocks) {
    S::place(sort, s, begin, end, held, [&](i32 e) { return s.offset[e] + s.fc1_outputs[e]; });
  } else {
    A::write_blocks(p, s, block - blocks, static_cast<i32>(gridDim.x) - blocks);
  }
}

}  // namespace varmoe::moe
