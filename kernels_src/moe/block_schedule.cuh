#pragma once

#include "moe/sort.cuh"
#include "prelude.cuh"
#include "ptx/grid_dependency.cuh"

// What the sort leaves for the GEMMs (tile lists, class boundaries, tickets), made from rows that lie by expert already: a caller's
// segments, in any of the forms of abi::SegmentSource. Each becomes a first row and a number of rows per expert; what reaches beyond the
// caller's arrays is cut off. One block.
namespace varmoe::moe {

template <class Layer, int kThreads>
struct Segments {
  using S = Sort<Layer, kThreads>;
  static constexpr int kExperts = Layer::kExperts;

  const abi::BlockScheduleParams& b;
  typename S::Shared& s;

  /// First rows: nobody counts slots here.
  VARMOE_DEVICE i32* first() const { return s.warp_count[0]; }

  /// An offset or count, as a number that the rows' 32 bits hold.
  VARMOE_DEVICE i32 number(const void* array, i32 at) const {
    const i64 n = b.are_64bit ? static_cast<const i64*>(array)[at] : static_cast<const i32*>(array)[at];
    return n < 0 ? 0 : n > b.rows ? b.rows : static_cast<i32>(n);
  }

  VARMOE_DEVICE void read() const {
    if (b.source == abi::SegmentSource::aligned) {
      read_blocks();
    } else {
      for (i32 e = threadIdx.x; e < kExperts; e += kThreads) {
        i32 begin = 0, rows;
        if (b.source == abi::SegmentSource::offsets) {
          begin = number(b.offsets, e);
          rows = max_of(0, number(b.offsets, e + 1) - begin);
          if (b.counts != nullptr) rows = min_of(rows, number(b.counts, e));
        } else {
          rows = number(b.counts, e);
          if (b.source == abi::SegmentSource::batched) {
            rows = min_of(rows, b.multiple);
            begin = e * b.multiple;
          }
        }
        first()[e] = begin;
        s.total[e] = rows;
      }
    }
    __syncthreads();
    if (b.source == abi::SegmentSource::counts) {
      // fc1_first is not in use yet.
      if (S::warp() == 0) S::scan(s.fc1_first, [&](i32 e) { return ceil_div(s.total[e], b.multiple) * b.multiple; });
      __syncthreads();
      for (i32 e = threadIdx.x; e < kExperts; e += kThreads) first()[e] = s.fc1_first[e];
      __syncthreads();
    }
    for (i32 e = threadIdx.x; e < kExperts; e += kThreads) {
      const i32 begin = max_of(0, min_of(first()[e], b.rows));
      first()[e] = begin;
      s.total[e] = min_of(s.total[e], b.rows - begin);
    }
    __syncthreads();
    // The tile lists hold b.rows rows: segments that overlap must not make more of them.
    if (S::warp() == 0) S::scan(s.offset, [&](i32 e) { return s.total[e]; });
    __syncthreads();
    for (i32 e = threadIdx.x; e < kExperts; e += kThreads) s.total[e] = max_of(0, min_of(s.total[e], b.rows - s.offset[e]));
    __syncthreads();
  }

 private:
  VARMOE_DEVICE bool is_row(i32 at) const { return static_cast<u32>(b.sorted_ids[at]) < static_cast<u32>(b.sentinel); }

  /// An expert's blocks follow each other, and its rows come first in them: only its last block is looked into.
  VARMOE_DEVICE void read_blocks() const {
    for (i32 e = threadIdx.x; e < kExperts; e += kThreads) first()[e] = s.total[e] = 0;
    __syncthreads();
    const i32 blocks = max_of(0, min_of(*b.padded_rows, b.rows)) / b.multiple;
    for (i32 i = threadIdx.x; i < blocks; i += kThreads) {
      const i32 e = b.expert_ids[i];
      if (e < 0 || e >= kExperts) continue;
      if (i == 0 || b.expert_ids[i - 1] != e) first()[e] = i * b.multiple;
      if (i + 1 == blocks || b.expert_ids[i + 1] != e) s.total[e] = i + 1;
    }
    __syncthreads();
    for (i32 e = threadIdx.x; e < kExperts; e += kThreads) {
      if (s.total[e] == 0) continue;
      i32 low = (s.total[e] - 1) * b.multiple, high = low + b.multiple;
      while (low < high) {
        const i32 middle = (low + high) / 2;
        if (is_row(middle)) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      s.total[e] = max_of(0, low - first()[e]);
    }
  }
};

template <class Layer, int kThreads>
VARMOE_DEVICE void block_schedule(const abi::BlockScheduleParams& b) {
  using S = Sort<Layer, kThreads>;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  const abi::SortParams& p = b.sort;
  const Segments<Layer, kThreads> segments{b, s};
  S::read_table(p, s);
  ptx::follow_earlier_kernels();
  segments.read();
  S::scan_all(p, s, true);
  for (i32 e = threadIdx.x; e < S::kExperts; e += kThreads) {
    s.offset[e] = segments.first()[e];
    p.expert_offsets[S::kExperts + 1 + e] = s.total[e];
  }
  __syncthreads();
  S::write_schedule(p, s);
}

}  // namespace varmoe::moe
