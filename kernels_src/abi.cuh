#pragma once

// Structures that host and device share. The host includes this file too: no CUDA in it. Emitted source asserts sizes and
// offsets against what the host saw when it was built, so a stale kernel text cannot be launched with other parameters.

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
namespace varmoe {
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
}  // namespace varmoe
#else
#include <cstdint>
namespace varmoe {
using i32 = std::int32_t;
using u32 = std::uint32_t;
using i64 = long long;
using u64 = unsigned long long;
}  // namespace varmoe
#endif

namespace varmoe::abi {

/// Raised whenever a structure below changes meaning.
inline constexpr int kAbiVersion = 8;
/// Width classes that a specialised kernel may have.
inline constexpr int kMaxClasses = 16;

/// A CUtensorMap, opaque: made by the driver on the host, read by the copy engine. 128-aligned in CUDA 13, 64 before.
struct alignas(128) TensorMap {
  u64 opaque[16];
};

/// One expert of a bound layer. Addresses of 16-byte aligned matrices; strides in elements.
struct alignas(16) ExpertEntry {
  u64 gate;        // fc1 gate matrix; interleaved kn: the whole fc1 matrix; 0 when not gated
  u64 up;          // fc1 up matrix
  u64 down;        // fc2 matrix
  i64 fc1_stride;
  i64 fc2_stride;
  i32 width;       // I_e
  i32 width_class; // index into the class list, widest first; 0 in runtime-width layers
  i32 up_first;    // the up matrix lies before the gate matrix, so tensor maps list it first
  i32 reserved[3];
};

/// One expert's biases; a table beside the experts', so that layers without pay nothing. Addresses of two-byte elements.
struct alignas(16) ExpertBias {
  u64 gate;        // [I_e], fc1_stride elements apart; 0 when not gated
  u64 up;          // [I_e]
  u64 down;        // [H]
  i32 fc1_stride;  // 1, or 2 where gate and up alternate
  i32 reserved;
};

/// Up to block_m consecutive routed rows of one expert, and what a GEMM would else look up before it may ask for weights.
struct alignas(16) RowTile {
  i32 expert;
  i32 row_begin;   // in expert order
  i32 rows;        // 1 … block_m; 0: there to complete a cluster
  i32 kind;        // kTile…
};
inline constexpr i32 kTileClass = 0xffff;        // the expert's width class
inline constexpr i32 kTileUpFirst = 1 << 16;     // ExpertEntry::up_first
inline constexpr i32 kTileReadOnce = 1 << 17;    // the expert has no other tile (or cluster of tiles): L2 need not keep its weights

/// Written by the sort: where each class's row tiles begin in the two tile lists (its last entry used is the list's length).
struct TileCounts {
  i32 fc1_begin[kMaxClasses + 1];
  i32 fc2_begin[kMaxClasses + 1];
  i32 rows;        // valid routed rows
  i32 fc1_tickets; // output tiles handed out so far beyond the first of each block; the sort zeroes them
  i32 fc2_tickets;
  i32 reserved;
};

/// Parameters of the three sort kernels. A layer's shared experts count as its last ones, and as the last slots of every token: E, k and
/// slots below have them in, topk_ids has not.
struct SortParams {
  const void* topk_ids;          // [tokens, k] int32 or int64
  const i32* token_count;        // device-side token count of the whole batch, or null
  const ExpertEntry* experts;    // [E]
  const i32* expert_order;       // [E] experts by class, widest class first, then by index
  const i32* class_begin;        // [classes + 1] into expert_order
  i32* expert_offsets;           // [E + 1] first row of each expert
  i32* row_source;               // [rows] row → token·k + slot
  i32* slot_row;                 // [tokens·k] token·k + slot → row, or −1
  i32* block_histogram;          // [blocks, E], two-launch sort only
  RowTile* fc1_tiles;
  RowTile* fc2_tiles;
  TileCounts* tile_counts;
  i32* fc1_tile_prefix;          // [E + 1] output tiles before the experts of expert_order; null unless runtime-width
  i32* h_pending;                // [E] gets each expert's output tiles of fc1; null: nobody counts them
  i32 tokens;                    // of this chunk
  i32 token_begin;               // of this chunk within the batch
  i32 ids_are_64bit;
  i32 slots_per_block;           // two-launch sort: routed slots that one block handles
  i32 fc1_block_m;
  i32 fc2_block_m;
  i32 fc1_row_step;              // an expert's row tiles are equally tall but for this rounding; block_m: all but its last are full
  i32 fc2_row_step;
  i32 fc1_cluster;               // an expert has a multiple of this many row tiles: blocks of a cluster share its weights
  i32 fc2_cluster;
  i32 fc1_tile_columns;          // columns of h per output tile
  i32 classes;
  // Of layers with a shared gate.
  const void* x;
  const u64* shared_gate;        // address of w_g [H], in the layer's table
  float* shared_weight;          // [tokens] gets each token's weight of its shared experts
  i64 x_stride;                  // elements
  const i32* expert_map;         // [global_experts] id → expert of this layer, or none; null: ids are this layer's
  const float* topk_weights;     // [tokens, k]; weight on input
  float* row_weight;             // [rows] gets each row's weight; weight on input
  i32 global_experts;
  i32 sort_blocks;               // sort_single, sort_count: blocks that sort; those after them work out weights of shared experts
};

/// Where a caller says that each expert's rows lie (RowLayout of blocks.hpp).
enum class SegmentSource : i32 {
  offsets = 0,  // offsets, and counts or null
  counts = 1,   // counts; segments one after another, each begins at a multiple of `multiple`
  batched = 2,  // counts; expert e begins at e·multiple
  aligned = 3,  // sorted_ids, expert_ids, padded_rows; blocks of `multiple` rows
};

/// Parameters of the kernel that makes tile lists from a caller's segments instead of sorting.
struct BlockScheduleParams {
  SortParams sort;               // what there is to write, and how; expert_offsets is [2E + 1]: first rows, all rows, rows of each
  const void* offsets;           // [E + 1] int32 or int64
  const void* counts;            // [E] int32 or int64
  const i32* sorted_ids;         // [rows]
  const i32* expert_ids;         // [rows / multiple]
  const i32* padded_rows;        // [1]
  SegmentSource source;
  i32 are_64bit;                 // offsets and counts
  i32 rows;                      // that the caller's arrays have
  i32 multiple;
  i32 sentinel;                  // sorted_ids at and beyond it, and negative ones, are no rows
};

/// Parameters of the kernels that a row map drives: rows of a batch → tokens, and back.
struct RowMapParams {
  const i32* row_map;            // [rows] row → token·k + slot, or → token; out of range: no row. slot_rows: null: clears slot_row
  const i32* row_count;          // device-side number of rows, or null
  const void* x;                 // gather: [tokens, H]
  void* out;                     // gather: [rows, H] contiguous
  i32* slot_row;                 // slot_rows: [tokens·k]
  i64 x_stride;                  // elements
  i32 rows;
  i32 limit;                     // map entries below it are rows
  i32 names_tokens;              // gather: entries are tokens
};

/// Parameters of the combine's gradient: dy[slot_row[s]] = w_s·dout[t], and ⟨dout[t], y[slot_row[s]]⟩, the gradient of w_s.
struct CombineGradientParams {
  const void* dout;              // [tokens, H]
  const void* y;                 // [rows, H] contiguous; null without gradients of weights
  void* dy;                      // [rows, H] contiguous, or null
  const i32* slot_row;           // [tokens, k]
  const float* topk_weights;     // [tokens, k] of the routed slots; null: 1
  const float* shared_weight;    // [tokens], or null: 1
  float* topk_gradient;          // [tokens, k] of the routed slots, or null
  float* shared_gradient;        // [tokens, S], or null
  const i32* token_count;        // device-side token count, or null
  i64 dout_stride;               // elements
  i32 tokens;
  i32 reserved;
};

/// Parameters of the gather kernel: out[r] = x[row_source[r] / k].
struct GatherParams {
  const void* x;
  void* out;                     // [rows, H] contiguous
  const i32* row_source;
  const TileCounts* tile_counts;
  i64 x_stride;
};

/// Parameters of the combine kernel: out[t] (+)= Σ_slot weight[t·k + slot]·y[slot_row[t·k + slot]], ascending slot; weight on
/// input: without the weight. Slots of shared experts come after those of topk_weights.
struct CombineParams {
  const void* y;                 // [rows, H] contiguous
  void* out;
  const i32* slot_row;
  const float* topk_weights;     // [tokens, k]
  const i32* token_count;
  i64 out_stride;
  i32 tokens;
  i32 token_begin;
  i32 accumulate;
  i32 keep_absent;               // tokens without any row: out stays as it is
  const float* shared_weight;    // [tokens], of layers with a shared gate
};

/// Parameters of the router kernel.
struct RouteParams {
  const void* logits;            // [tokens, E] rows of logit_stride elements
  const float* correction_bias;  // [E]; null unless the router has one
  i32* topk_ids;                 // [tokens, k]
  float* topk_weights;           // [tokens, k]
  float* scores;                 // [tokens, E], or null
  const i32* token_count;        // device-side token count, or null
  i64 logit_stride;              // elements
  i32 tokens;
  i32 wide_loads;                // base and stride allow a lane's elements in one load
  // Of a router that multiplies itself: logits are then `partials` arrays [tokens, E], summed in order.
  const float* logit_bias;       // [E], or null
  float* logits_out;             // [tokens, E], or null
  i32 partials;
  i32 reserved;
};

/// Parameters of the kernels that multiply x by the router's weight.
struct RouterProductParams {
  const void* x;                 // [tokens, H] rows of x_stride elements
  const void* weight;            // [E, H] rows of weight_stride elements
  float* partials;               // [chunks, tokens, E], or [1, tokens, E]
  const i32* token_count;        // device-side token count, or null
  i64 x_stride;
  i64 weight_stride;
  i32 tokens;
  i32 split;                     // 1: a block sums the chunk of K that its grid.z names; 0: all, in order
};

/// Parameters of the kernels that sum up what a router did.
struct RouterStatisticsParams {
  const void* logits;            // [tokens, E] rows of logit_stride elements
  const void* topk_ids;          // [tokens, k] int32 or int64
  const i32* expert_widths;      // [E], or null
  const i32* token_count;        // device-side token count, or null
  i32* tokens_per_expert;        // [E], or null
  float* mean_scores;            // [E], or null
  float* losses;                 // [4], or null
  float* block_scores;           // [blocks, E]
  i32* block_counts;             // [blocks, E]
  float* block_z;                // [blocks]
  i64 logit_stride;
  i32 tokens;
  i32 tokens_per_block;
  i32 blocks;
  i32 ids_are_64bit;
  i32 wide_loads;
  i32 reserved;
};

/// Parameters of the kernels that go from the gradients of topk_weights and of a router's losses to those of its logits.
struct RouterGradientParams {
  const void* logits;            // [tokens, E] rows of logit_stride elements
  const void* topk_ids;          // [tokens, k] int32 or int64; null without dtopk_weights
  const float* dtopk_weights;    // [tokens, k], or null
  void* dlogits;                 // [tokens, E] rows of dlogit_stride elements
  const i32* token_count;        // device-side token count, or null
  const i32* tokens_per_expert;  // [E], or null
  const float* mean_scores;      // [E], or null
  const i32* expert_widths;      // [E], or null
  float* terms;                  // [E]: what the losses' gradients by P come to for one token; null: nothing
  i64 logit_stride;
  i64 dlogit_stride;
  i64 loss_tokens;               // 0: the tokens there are
  float coefficients[4];         // of the losses, in their order
  i32 tokens;
  i32 ids_are_64bit;
  i32 wide_loads;
  i32 reserved;
};

/// Parameters of the kernels that go from the gradients of logits to those of x and of the router's weight.
struct RouterProductGradientParams {
  const float* dlogits;          // [tokens, E] rows of dlogit_stride elements
  const void* x;                 // [tokens, H]
  const void* weight;            // [E, H]
  void* dx;                      // [tokens, H]
  void* dweight;                 // [E, H]; null: only the bias's
  float* dlogit_bias;            // [E], or null
  const i32* token_count;        // device-side token count, or null
  i64 dlogit_stride;
  i64 x_stride;
  i64 weight_stride;
  i64 dx_stride;
  i64 dweight_stride;
  i32 tokens;
  i32 accumulate;                // to dx, or to dweight and dlogit_bias
};

/// Parameters of the kernels that align routed rows to blocks of one expert each.
struct AlignParams {
  const void* topk_ids;          // [rows] int32 or int64
  i32* sorted_token_ids;         // [sorted_size]
  i32* expert_ids;               // [blocks]
  i32* num_tokens_post_pad;      // [1]
  i32* block_histogram;          // [grid, E], two-launch form only
  i32 rows;                      // R; the sentinel too
  i32 ids_are_64bit;
  i32 block_size;
  i32 sorted_size;               // entries of sorted_token_ids that are written
  i32 blocks;                    // entries of expert_ids that are written
  i32 slots_per_block;           // two-launch form: rows that one thread block handles
};

/// Parameters of fc1 and fc2.
struct GemmParams {
  const void* a;                 // fc1: x, or its gathered copy; fc2: h
  void* out;                     // fc1: h; fc2: y
  const ExpertEntry* experts;
  const RowTile* tiles;
  const TileCounts* tile_counts;
  const i32* row_source;
  const i32* expert_offsets;     // runtime-width fc1
  const i32* expert_order;       // runtime-width fc1
  const i32* tile_prefix;        // runtime-width fc1
  i64 a_stride;                  // elements
  i64 out_stride;                // elements
  const TensorMap* weight_maps;  // [E] wgmma: fc1's or fc2's weights
  i32* tickets;                  // wgmma: in tile_counts
  i32* h_pending;                // wgmma: [E] output tiles of fc1 that are not stored yet: fc1 counts down, fc2 starts before fc1 ends and
                                 // waits for its expert's zero; null: fc2 waits for all of fc1
  const ExpertBias* biases;      // [E]; null without biases
  const float* row_weight;       // [rows] weight on input: fc1's; g's
  TensorMap row_map;             // wgmma, rows by box: a as [rows, K]
  void* z;                       // fc1 of a forward that trains: gate, and up round_up(width, 64) columns on; of weight on input without weight and bias
  i64 z_stride;                  // elements
  // Of g = dout·W2, fc1 of a layer turned round: reads z, and instead of g writes w·h to `out` (of weight on input h) and what follows.
  void* dz;                      // [rows, z_stride]: as z; alternating where W1's gate and up alternate
  float* partials;               // [rows, partial_stride] over each span of columns ⟨g, h⟩, or of weight on input ⟨dz/w, z⟩
  const float* shared_weight;    // [tokens], of layers with a shared gate
  i32 partial_stride;
  i32 classes;                   // of kernels that walk row tiles by themselves: their list ends at fc2_begin[classes]
  void* unweighted_dz;           // as dz, rows not multiplied by their weights: of weight on input with biases (`biases` is the forward's there)
};

/// Where one expert's gradients go: as ExpertEntry and ExpertBias, of elements of two or four bytes.
struct alignas(16) GradientEntry {
  u64 gate;        // interleaved kn: the whole fc1 matrix; 0 when not gated
  u64 up;
  u64 down;
  i64 fc1_stride;
  i64 fc2_stride;
  u64 gate_bias;   // [I_e], bias_stride elements apart; 0 without
  u64 up_bias;
  u64 down_bias;   // [H]
  i32 bias_stride;
  i32 width;       // I_e
  i32 reserved[2];
};

/// How one expert's rows are shared out among blocks: schedule/gradient_tiles.cuh.
inline constexpr i32 kGradientSlots = 192;     // that a product's parts never exceed
inline constexpr i32 kLeastPartRows = 512;     // experts of fewer than 1.5 times as many rows are not split
struct GradientSplit {
  i32 part_rows;  // of every part but the last; 0: one block sums all rows
  i32 slot;       // of its first tile's first part, in `partials`
};

/// Parameters of the kernel that orders the output tiles of the weights' gradients: experts with most rows first.
struct GradientScheduleParams {
  const GradientEntry* experts;  // [E]
  const i32* expert_offsets;     // [E + 1], or of a caller's segments [2E + 1]: first rows, all rows, rows of each
  i32* expert_order;             // [E]
  i32* fc1_prefix;               // [E + 1] parts of output tiles before the experts of expert_order
  i32* fc2_prefix;
  GradientSplit* fc1_splits;     // [E], of expert_order
  GradientSplit* fc2_splits;
  i32* tickets;                  // [2] zeroed: fc1's, fc2's
  i32* arrivals;                 // [2 · 2 · kGradientSlots] zeroed
  i32 experts_count;
  i32 fc1_width_block;           // columns of dz, of one half, per output tile
  i32 fc1_width_scale;           // 2: gate and up alternate in one matrix
  i32 fc1_tiles_per_width;       // halves · tiles of H
  i32 fc2_width_block;
  i32 fc2_tiles_per_width;
};

/// Parameters of the kernels that sum outer products over an expert's rows: fc1's dW = Σ dz ⊗ x, fc2's Σ dout ⊗ w·h.
struct WeightGradientParams {
  const GradientEntry* gradients;  // [E]
  const i32* expert_offsets;       // [E + 1], or [2E + 1] as the schedule's
  const i32* expert_order;         // [E]
  const i32* tile_prefix;          // [E + 1]
  const GradientSplit* splits;     // [E]
  float* partials;                 // [kGradientSlots][elements of a tile] sums of parts
  i32* arrivals;                   // [2 · kGradientSlots] parts that are there, of a tile's half
  const i32* row_source;           // [rows]; of a caller's segments null
  const void* rows;                // dz or w·h, by row
  const void* tokens;              // x or dout, by token; of a caller's segments by row
  i64 rows_stride;                 // elements
  i64 tokens_stride;
  i32* ticket;                     // wgmma: output tiles handed out beyond the first of each block
  i32 experts;
  i32 accumulate;
  TensorMap rows_map;              // wgmma
  TensorMap tokens_map;            // wgmma: of a copy by row
};

/// Parameters of the kernel that adds up what g's product left of each row's ⟨g, h⟩.
struct TopkWeightGradientParams {
  const float* partials;         // [rows, partial_stride]: a sum a span of columns
  const ExpertEntry* experts;    // [E]
  const ExpertBias* biases;      // [E]; null without biases
  const i32* expert_offsets;     // [E + 1]
  const i32* slot_row;           // [tokens, slots]
  float* topk_gradient;          // [tokens, k], or null
  float* shared_gradient;        // [tokens, S], of layers with a shared gate
  const void* dout;              // with biases
  const i32* token_count;        // or null
  i64 dout_stride;               // elements
  i32 tokens;
  i32 span;                      // columns
  i32 partial_stride;
  i32 reserved;
};

/// Parameters of the kernels that walk a caller's rows by expert: the gradients of rows' weights, and rows times weights.
struct BlockRowsParams {
  const ExpertEntry* experts;    // [E]
  const ExpertBias* biases;      // [E]; null without biases
  const RowTile* tiles;          // fc2's
  const TileCounts* tile_counts;
  const void* a;                 // [rows, H]: dy, or rows to weigh
  const void* b;                 // [rows, H] weighing: rows whose products with those of `a` are dots; null: none are wanted
  void* out;                     // [rows, H] weighing: w·a
  const float* weights;          // [rows]
  const float* partials;         // [rows, partial_stride] ⟨g, h⟩ over each span of columns
  float* dots;                   // [rows]
  i64 a_stride;                  // elements
  i64 b_stride;
  i64 out_stride;
  i32 span;                      // columns
  i32 partial_stride;
  i32 classes;                   // the tile list ends at fc2_begin[classes]
  i32 reserved;
};

/// Parameters of the kernels that sum biases' gradients: fc1's over dz, fc2's over w·dout.
struct BiasGradientParams {
  const GradientEntry* gradients;  // [E]
  const i32* expert_offsets;       // [E + 1], or [2E + 1] as the schedule's
  const i32* row_source;           // of a caller's segments null: dout and weights lie by row
  const void* rows;                // dz; of weight on input unweighted
  const void* dout;
  const float* topk_weights;       // [tokens, k]; of a caller's segments [rows], or null: 1; not read of weight on input
  i64 rows_stride;                 // elements
  i64 dout_stride;
  i32 experts;
  i32 accumulate;
};

/// Parameters of the kernel that gives the gradients of the shared gate: dw_g = Σ s_t·x_t, dx_t += s_t·w_g, s_t = σ(1 − σ)·Σ dw.
struct SharedGateGradientParams {
  const float* shared_weight;    // [tokens]
  const float* shared_gradient;  // [tokens, S]
  const void* x;
  const u64* shared_gate;        // address of w_g
  const u64* gradient;           // where the address of the gradient [H] lies, or null
  void* dx;                      // or null
  const i32* token_count;
  i64 x_stride;                  // elements
  i64 dx_stride;
  i32 tokens;
  i32 accumulate;
};

/// The most blocks of a whole-layer launch.
inline constexpr int kMaxLayerBlocks = 256;

/// By what the blocks of one whole-layer launch agree (moe/layer_control.cuh). Lies in the workspace, needs no initial contents.
struct LayerControl {
  u64 state;
  i32 units_done;                // units of fc1 whose h is stored
  i32 blocks_done;
  i32 claimed[kMaxLayerBlocks];  // whether a block has taken share i of fc1
};

/// Parameters of the whole-layer kernel.
struct LayerParams {
  const void* x;
  void* out;
  const void* topk_ids;          // [tokens, k] int32 or int64
  const float* topk_weights;     // [tokens, k]
  const i32* token_count;        // device-side token count of the whole batch, or null
  const ExpertEntry* experts;    // [E]
  void* h;                       // [tokens·k, h_stride]
  LayerControl* control;
  u64 nonce;                     // random, even, not 0: states of `control` that memory does not hold by chance
  i64 x_stride;                  // elements
  i64 out_stride;
  i64 h_stride;
  i32 tokens;                    // of this chunk
  i32 token_begin;               // of this chunk within the batch
  i32 ids_are_64bit;
  i32 accumulate;
  const i32* expert_map;         // as the sort's
  i32 global_experts;
  i32 reserved;
};

}  // namespace varmoe::abi
