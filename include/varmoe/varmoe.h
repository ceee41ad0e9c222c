#ifndef VARMOE_VARMOE_H_
#define VARMOE_VARMOE_H_

/*
 * The C API of varmoe: Mixture-of-Experts layers, compiled for each layer's expert sizes.
 *
 *   engine → layer → prepare → bind → forward
 *   engine → training layer → prepare → bind, bind_gradients → forward, backward
 *
 * Conventions
 * - Every function that can fail returns an int: VARMOE_OK or one of VARMOE_E_*. The sentence that belongs to
 * the last failure on the calling thread is varmoe_last_error(). Nothing is thrown through this interface.
 * - A failing function leaves its outputs null or zero, and the objects it was given as they were.
 * - Structs are versioned by their first member. Set one up with its _init function, which takes sizeof the
 * struct as the caller was compiled; a struct smaller than that of version 0.1 is refused, a larger one (a
 * newer caller) is taken if the members that this library does not know are zero.
 * - Null where a pointer is required is VARMOE_E_INVALID_ARGUMENT. Every _destroy function accepts null.
 * - Thread safety is that of the C++ API (engine.hpp): engines and layers may be used by several threads at
 * once; bind must not run concurrently with forward of the same layer.
 * - Callbacks must not throw or longjmp.
 */

#include <stddef.h>
#include <stdint.h>

#if defined(VARMOE_STATIC)
#define VARMOE_C_API
#elif defined(__GNUC__)
#define VARMOE_C_API __attribute__((visibility("default")))
#else
#define VARMOE_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Return codes; the numbers are stable. */
enum {
  VARMOE_OK = 0,
  VARMOE_E_INVALID_ARGUMENT = 1,
  VARMOE_E_INVALID_SPEC = 2,
  VARMOE_E_INVALID_CONFIG = 3,
  VARMOE_E_INVALID_ENVIRONMENT = 4,
  VARMOE_E_UNSUPPORTED = 5,
  VARMOE_E_NOT_PREPARED = 6,
  VARMOE_E_NOT_BOUND = 7,
  VARMOE_E_NO_DEVICE = 8,
  VARMOE_E_DRIVER_TOO_OLD = 9,
  VARMOE_E_NO_COMPILER = 10,
  VARMOE_E_COMPILE_FAILED = 11,
  VARMOE_E_OUT_OF_MEMORY = 12,
  VARMOE_E_WORKSPACE_TOO_SMALL = 13,
  VARMOE_E_IO_ERROR = 14,
  VARMOE_E_DEVICE_ERROR = 15,
  VARMOE_E_CANCELLED = 16,
  VARMOE_E_INTERNAL = 17
};

enum { VARMOE_DTYPE_BF16 = 0, VARMOE_DTYPE_FP16 = 1 };

enum {
  VARMOE_ACTIVATION_SILU_MUL = 0,      /* silu(gate) * up */
  VARMOE_ACTIVATION_GELU_TANH_MUL = 1, /* gelu(gate) * up, tanh approximation */
  VARMOE_ACTIVATION_GELU_ERF_MUL = 2,  /* gelu(gate) * up, exact */
  VARMOE_ACTIVATION_SWIGLU_OAI = 3,    /* gpt-oss; reads alpha and limit */
  VARMOE_ACTIVATION_SILU = 4,
  VARMOE_ACTIVATION_GELU_TANH = 5,
  VARMOE_ACTIVATION_GELU_ERF = 6,
  VARMOE_ACTIVATION_RELU = 7,
  VARMOE_ACTIVATION_RELU2 = 8, /* max(x, 0)^2 */
  VARMOE_ACTIVATION_IDENTITY = 9
};

enum { VARMOE_LAYOUT_NK = 0, VARMOE_LAYOUT_KN = 1 };
enum { VARMOE_GATE_FIRST = 0, VARMOE_GATE_UP_FIRST = 1, VARMOE_GATE_INTERLEAVED = 2 };
enum { VARMOE_ID_INT32 = 0, VARMOE_ID_INT64 = 1 };
/* Rows of `out` whose token has no expert here. */
enum { VARMOE_ABSENT_WRITE_ZEROS = 0, VARMOE_ABSENT_UNTOUCHED = 1 };
enum { VARMOE_CACHE_RW = 0, VARMOE_CACHE_RO = 1, VARMOE_CACHE_OFF = 2 };
enum { VARMOE_JIT_ON = 0, VARMOE_JIT_CACHED_ONLY = 1 };
enum { VARMOE_TUNE_REPLAY = 0, VARMOE_TUNE_OFF = 1, VARMOE_TUNE_ONLINE = 2 };
enum {
  VARMOE_LOG_TRACE = 0,
  VARMOE_LOG_DEBUG = 1,
  VARMOE_LOG_INFO = 2,
  VARMOE_LOG_WARN = 3,
  VARMOE_LOG_ERROR = 4
};
enum { VARMOE_CONFIG_OVERRIDE = 0, VARMOE_CONFIG_TUNED = 1, VARMOE_CONFIG_PREDICTED = 2 };

/* How the weights of a layer are stored; see weights.hpp for the shapes. */
enum {
  VARMOE_STORAGE_BLOCKS = 0, /* fc1, fc2: each expert's matrices contiguous, one expert after another */
  VARMOE_STORAGE_PADDED = 1, /* fc1, fc2: as if every expert had width padded_width */
  VARMOE_STORAGE_PACKED = 2, /* kn only. gate (null when not gated) and up [H, sum I], fc2 [sum I, H] */
  VARMOE_STORAGE_PACKED_JOINT =
      3, /* kn only. fc1 [H, 2 sum I], each expert's gate and up side by side; fc2 [sum I, H] */
  VARMOE_STORAGE_POINTERS = 4, /* fc1_pointers, fc2_pointers: one of each per expert */
  VARMOE_STORAGE_EXPERTS = 5   /* experts: pointers and strides of every matrix */
};

/* Routers; see router_spec.hpp. */
enum { VARMOE_LOGITS_FP32 = 0, VARMOE_LOGITS_BF16 = 1, VARMOE_LOGITS_FP16 = 2 };
enum { VARMOE_SCORING_SOFTMAX = 0, VARMOE_SCORING_SIGMOID = 1 };
enum { VARMOE_ORDER_BEFORE_TOP_K = 0, VARMOE_ORDER_AFTER_TOP_K = 1 };
enum { VARMOE_GROUP_SCORE_MAX = 0, VARMOE_GROUP_SCORE_TOP2_SUM = 1 };
enum { VARMOE_OUTSIDE_GROUPS_NEVER = 0, VARMOE_OUTSIDE_GROUPS_AS_ZERO = 1 };
/* Where each of a router's losses lies; see router_statistics.hpp. */
enum {
  VARMOE_LOSS_Z = 0,
  VARMOE_LOSS_LOAD_BALANCE = 1,
  VARMOE_LOSS_GROUP_BALANCE = 2,
  VARMOE_LOSS_COMPUTE = 3
};

/* Elements of the gradients of weights; see training.hpp. */
enum { VARMOE_GRADIENT_LAYER_DTYPE = 0, VARMOE_GRADIENT_FP32 = 1 };
enum {
  VARMOE_ROWS_OFFSETS = 0,
  VARMOE_ROWS_COUNTS = 1,
  VARMOE_ROWS_BATCHED = 2,
  VARMOE_ROWS_ALIGNED_BLOCKS = 3
};
enum { VARMOE_ROW_MAP_SLOTS = 0, VARMOE_ROW_MAP_TOKENS = 1 };

/* The device number of the CPU backend. */
#define VARMOE_CPU_DEVICE (-1)

typedef struct varmoe_engine varmoe_engine;
typedef struct varmoe_layer varmoe_layer;
typedef struct varmoe_training_layer varmoe_training_layer;
typedef struct varmoe_blocks varmoe_blocks;
typedef struct varmoe_report varmoe_report;
typedef struct varmoe_router varmoe_router;
typedef struct varmoe_block_aligner varmoe_block_aligner;
typedef struct varmoe_router_statistics varmoe_router_statistics;
typedef struct varmoe_router_gradient varmoe_router_gradient;

/* Receives one line at a time, without newline, from any thread. `line` is valid during the call. */
typedef void (*varmoe_log_fn)(void* user, int level, const char* line);
/* Called after each kernel, from a compile thread. A value other than 0 stops the prepare between kernels. */
typedef int (*varmoe_progress_fn)(void* user, size_t done, size_t total);

/* What is left null or negative falls back to the VARMOE_* variable, then to the default. */
typedef struct varmoe_engine_options {
  size_t struct_size;
  int32_t device;                /* CUDA device ordinal, or VARMOE_CPU_DEVICE; 0 */
  int32_t cache_mode;            /* VARMOE_CACHE_*; -1: unset */
  int32_t jit;                   /* VARMOE_JIT_*; -1: unset */
  int32_t compile_threads;       /* 0: unset */
  int32_t cpu_threads;           /* CPU backend; 0: one per core */
  int64_t cache_max_bytes;       /* -1: unset */
  const char* cache_dir;         /* writable cubin cache */
  const char* const* cubin_path; /* read-only prebuilt layers, first wins */
  size_t cubin_path_count;
  const char* nvrtc_lib;
  const char* dump_dir;
  const char* fc1_config; /* tile overrides, e.g. "block_m=64,stages=4" */
  const char* fc2_config;
  varmoe_log_fn log; /* null: stderr */
  void* log_user;
  const char* const* tuning_db; /* folders or files of tuning records, first wins */
  size_t tuning_db_count;
  int32_t tune; /* VARMOE_TUNE_*; -1: unset */
  /* tile overrides of a training layer's backward products: dout*W2, dz*W1, dW1, dW2 */
  const char* dh_config;
  const char* dx_config;
  const char* dw1_config;
  const char* dw2_config;
} varmoe_engine_options;

typedef struct varmoe_layer_spec {
  size_t struct_size;
  int64_t hidden_size;          /* multiple of 8, at least 64 */
  const int64_t* expert_widths; /* one per expert; multiples of 8; copied */
  size_t num_experts;
  int64_t top_k;
  int32_t activation;           /* VARMOE_ACTIVATION_*; SILU_MUL */
  int32_t dtype;                /* VARMOE_DTYPE_*; BF16 */
  int32_t fc1_layout;           /* VARMOE_LAYOUT_*; NK */
  int32_t fc2_layout;           /* VARMOE_LAYOUT_*; NK */
  int32_t gate_order;           /* VARMOE_GATE_*; FIRST */
  int32_t batch_invariant;      /* 0 or 1 */
  float alpha;                  /* swiglu_oai; 1.702 */
  float limit;                  /* swiglu_oai; 7.0 */
  const int64_t* shared_widths; /* one per shared expert, which every token visits; multiples of 8; copied */
  size_t num_shared;            /* 0 ... 16 */
  int32_t shared_gate;          /* 0 or 1: sigmoid(x . w_g) weights the shared experts' output (Qwen2-MoE) */
  int32_t bias;                 /* 0 or 1: fc1 and fc2 add a bias */
  int32_t weight_on_input;      /* 0 or 1: the routing weight multiplies fc1's sums, not fc2's (Llama-4) */
  int32_t reserved;             /* 0 */
} varmoe_layer_spec;

typedef struct varmoe_layer_options {
  size_t struct_size;
  size_t max_workspace_bytes; /* 0: no bound; else tokens are processed in chunks */
  int32_t max_sms;            /* 0: all */
  int32_t reserved;           /* 0 */
} varmoe_layer_options;

typedef struct varmoe_prepare_options {
  size_t struct_size;
  const int64_t*
      tokens; /* token counts, each rounded up to its bucket; null: all of [min_tokens, max_tokens] */
  size_t token_count;
  int64_t min_tokens;          /* 1 */
  int64_t max_tokens;          /* 4096 */
  varmoe_progress_fn progress; /* may be null */
  void* progress_user;
} varmoe_prepare_options;

/* One expert's matrices. This struct is an array element: it never changes. */
typedef struct varmoe_expert_weights {
  const void* gate; /* null when not gated; interleaved kn: the fc1 matrix itself */
  const void* up;
  const void* down;
  int64_t fc1_stride; /* elements between stored rows */
  int64_t fc2_stride;
} varmoe_expert_weights;

/* One expert's biases, of the layer's dtype. This struct is an array element: it never changes. */
typedef struct varmoe_expert_biases {
  const void* gate; /* null when not gated */
  const void* up;
  const void* down;
  int64_t fc1_stride; /* elements between entries of gate and of up: 1, or 2 where the two alternate */
} varmoe_expert_biases;

/* Only the members of the chosen storage are read. */
typedef struct varmoe_weights {
  size_t struct_size;
  int32_t storage;  /* VARMOE_STORAGE_* */
  int32_t reserved; /* 0 */
  const void* fc1;
  const void* fc2;
  const void* gate;     /* PACKED */
  const void* up;       /* PACKED */
  int64_t padded_width; /* PADDED */
  const void* const* fc1_pointers;
  const void* const* fc2_pointers;
  int64_t fc1_stride; /* POINTERS: elements; 0: contiguous */
  int64_t fc2_stride;
  const varmoe_expert_weights* experts;
  size_t num_experts; /* POINTERS, EXPERTS: entries of the arrays; must be the layer's number of experts */
  /* Of the layer's shared experts, whatever the storage; one of the three ways. */
  const void* shared_fc1; /* contiguous, one after another, as BLOCKS */
  const void* shared_fc2;
  const void* const* shared_fc1_pointers; /* [num_shared], contiguous matrices, as POINTERS */
  const void* const* shared_fc2_pointers;
  const varmoe_expert_weights* shared_experts; /* [num_shared], as EXPERTS */
  size_t num_shared;       /* entries of the arrays; must be the layer's number of shared experts */
  const void* shared_gate; /* w_g [H]; null unless the layer has a shared gate */
  /* Of a layer with biases; see Weights::with_biases. */
  const void* fc1_bias; /* BLOCKS, PACKED, PACKED_JOINT: each expert's, one after another; PADDED: padded */
  const void* fc2_bias; /* [E, H] */
  const void* const* fc1_bias_pointers; /* POINTERS */
  const void* const* fc2_bias_pointers;
  const varmoe_expert_biases* expert_biases; /* EXPERTS */
} varmoe_weights;

/* Device pointers on a GPU engine, host pointers on the CPU engine. */
typedef struct varmoe_forward_args {
  size_t struct_size;
  int64_t tokens;
  const void* x;              /* [tokens, H], 16-byte aligned */
  int64_t x_stride;           /* elements; 0: H */
  const void* topk_ids;       /* [tokens, k]; -1 or >= E contributes zero */
  const float* topk_weights;  /* [tokens, k] */
  void* out;                  /* [tokens, H], 16-byte aligned; must not overlap x */
  int64_t out_stride;         /* elements; 0: H */
  int32_t id_type;            /* VARMOE_ID_* */
  int32_t accumulate;         /* 0: out = result; 1: out += result */
  const int32_t* token_count; /* optional device-side token count */
  void* workspace;            /* 256-byte aligned */
  size_t workspace_bytes;
  void* stream; /* CUstream or cudaStream_t; ignored on the CPU */
  const int32_t*
      expert_map; /* optional device-side [num_global_experts]: id -> the layer's expert, else none */
  int64_t num_global_experts; /* 0 without expert_map */
  int32_t absent_tokens;      /* VARMOE_ABSENT_*; WRITE_ZEROS */
  int32_t reserved;           /* 0 */
} varmoe_forward_args;

/* The up-projection alone; see UpArgs in engine.hpp. S: the layer's shared experts. */
typedef struct varmoe_up_args {
  size_t struct_size;
  int64_t tokens;
  const void* x;           /* [tokens, H], 16-byte aligned */
  int64_t x_stride;        /* elements; 0: H */
  const void* topk_ids;    /* [tokens, k]; -1 or >= E makes no row */
  void* h;                 /* [tokens * (k + S), h_stride], 16-byte aligned */
  int64_t h_stride;        /* elements; 0: the widest of all experts rounded up to 64, which is the least */
  int32_t* expert_offsets; /* [E + S + 1] */
  int32_t* slot_row;       /* [tokens, k + S]; -1: no row */
  int32_t id_type;         /* VARMOE_ID_* */
  int32_t reserved;        /* 0 */
  const int32_t* token_count;
  void* workspace;
  size_t workspace_bytes;
  void* stream;
} varmoe_up_args;

typedef struct varmoe_training_options {
  size_t struct_size;
  int32_t save_preactivation; /* 0 or 1: forward keeps z in `saved`, else backward computes it again; 1 */
  int32_t gradient_type;      /* VARMOE_GRADIENT_*; LAYER_DTYPE */
  int32_t max_sms;            /* 0: all */
  int32_t reserved;           /* 0 */
} varmoe_training_options;

/* Device pointers on a GPU engine, host pointers on the CPU engine. What forward had too is what forward was
 * given, unchanged. See BackwardArgs in training.hpp. */
typedef struct varmoe_backward_args {
  size_t struct_size;
  int64_t tokens;            /* 0: weight gradients without accumulation become zero */
  const void* x;             /* [tokens, H], 16-byte aligned */
  int64_t x_stride;          /* elements; 0: H */
  const void* topk_ids;      /* [tokens, k] */
  const float* topk_weights; /* [tokens, k] */
  const void* dout;          /* [tokens, H], 16-byte aligned */
  int64_t dout_stride;       /* elements; 0: H */
  const void* saved;         /* what forward wrote; null when varmoe_training_layer_saved_bytes is 0 */
  size_t saved_bytes;
  void* dx;                 /* [tokens, H], 16-byte aligned; null: not computed */
  int64_t dx_stride;        /* elements; 0: H */
  float* dtopk_weights;     /* [tokens, k]; null: not computed */
  int32_t id_type;          /* VARMOE_ID_* */
  int32_t weight_gradients; /* 0 or 1: what varmoe_training_layer_bind_gradients named is computed; 1 */
  int32_t accumulate_weight_gradients; /* 0 or 1: added to what is there; 0 */
  int32_t accumulate_dx;               /* 0 or 1: dx += instead of dx =; 0 */
  const int32_t* token_count;          /* optional device-side token count */
  const int32_t*
      expert_map; /* optional device-side [num_global_experts]: id -> the layer's expert, else none */
  int64_t num_global_experts; /* 0 without expert_map */
  void* workspace;            /* 256-byte aligned */
  size_t workspace_bytes;
  void* stream; /* CUstream or cudaStream_t; ignored on the CPU */
} varmoe_backward_args;

/* A layer's building blocks, each usable alone; see blocks.hpp. E counts shared experts, k their slots. */
typedef struct varmoe_blocks_options {
  size_t struct_size;
  int32_t max_sms;       /* 0: all */
  int32_t weighted_down; /* 0 or 1: down takes row_weights; 0 */
  int32_t training;      /* 0 or 1: down_backward and up_backward are there, and up can keep z; 0 */
  int32_t gradient_type; /* VARMOE_GRADIENT_* of weights; LAYER_DTYPE */
} varmoe_blocks_options;

/* Which rows of a batch are which expert's; what the layout does not name is null or 0. */
typedef struct varmoe_rows_by_expert {
  size_t struct_size;
  int64_t rows;               /* R, padding included */
  int32_t layout;             /* VARMOE_ROWS_*; OFFSETS */
  int32_t index_type;         /* VARMOE_ID_* of expert_offsets and expert_counts; INT32 */
  const void* expert_offsets; /* [E + 1]: OFFSETS */
  const void* expert_counts;  /* [E]: COUNTS, BATCHED; optional with OFFSETS */
  int64_t multiple; /* COUNTS: of each first row; ALIGNED_BLOCKS: of the blocks; BATCHED: R / E; 1 */
  const int32_t* sorted_token_ids;    /* [R]: ALIGNED_BLOCKS */
  const int32_t* expert_ids;          /* [R / multiple]: ALIGNED_BLOCKS */
  const int32_t* num_tokens_post_pad; /* [1]: ALIGNED_BLOCKS */
  int64_t routed_rows;                /* ALIGNED_BLOCKS: the sentinel */
} varmoe_rows_by_expert;

typedef struct varmoe_gather_args {
  size_t struct_size;
  int64_t tokens;
  const void* x;            /* [tokens, H], 16-byte aligned */
  int64_t x_stride;         /* elements; 0: H */
  int64_t rows;             /* R */
  const int32_t* row_map;   /* [R]; out of range: no row */
  const int32_t* row_count; /* optional device-side number of rows */
  void* out;                /* [R, H], 16-byte aligned */
  void* stream;
  int32_t map_to;   /* VARMOE_ROW_MAP_*; SLOTS */
  int32_t reserved; /* 0 */
} varmoe_gather_args;

typedef struct varmoe_slot_rows_args {
  size_t struct_size;
  int64_t tokens;
  int64_t rows;             /* R */
  const int32_t* row_map;   /* [R], of slots */
  const int32_t* row_count; /* optional device-side number of rows */
  int32_t* slot_row;        /* [tokens, k]; -1: no row */
  void* stream;
} varmoe_slot_rows_args;

typedef struct varmoe_grouped_up_args {
  size_t struct_size;
  const varmoe_rows_by_expert* by_expert;
  const void* x;            /* [R, H], 16-byte aligned */
  int64_t x_stride;         /* elements; 0: H */
  const float* row_weights; /* [R], of a layer with weight_on_input; else null */
  void* h;                  /* [R, h_stride], 16-byte aligned */
  int64_t h_stride;         /* elements; 0: the widest of all experts rounded up to 64, which is the least */
  void* workspace;          /* 256-byte aligned */
  size_t workspace_bytes;
  void* stream;
  void* z;          /* [R, z_stride], 16-byte aligned, of blocks made with training; null: not kept */
  int64_t z_stride; /* elements; 0: the widest rounded up to 64, twice with a gate, which is the least */
} varmoe_grouped_up_args;

typedef struct varmoe_grouped_down_args {
  size_t struct_size;
  const varmoe_rows_by_expert* by_expert;
  const void* h;            /* [R, h_stride], 16-byte aligned */
  int64_t h_stride;         /* elements; 0: the widest of all experts rounded up to 64 */
  const float* row_weights; /* [R], of blocks made with weighted_down; else null */
  void* y;                  /* [R, H], 16-byte aligned */
  void* workspace;          /* 256-byte aligned */
  size_t workspace_bytes;
  void* stream;
} varmoe_grouped_down_args;

/* Of blocks made with training; see blocks.hpp. */
typedef struct varmoe_grouped_down_backward_args {
  size_t struct_size;
  const varmoe_rows_by_expert* by_expert;
  const void* dy;    /* [R, H], 16-byte aligned */
  int64_t dy_stride; /* elements; 0: H */
  const void* h;     /* [R, h_stride], what down read; null with z */
  int64_t h_stride;  /* elements, of h and dh; 0, and least: the widest of all experts rounded up to 64 */
  const void* z;     /* [R, z_stride], what up kept, instead of h */
  int64_t z_stride;  /* elements, of z and dz; as varmoe_grouped_up_args */
  const float* row_weights;            /* [R], of blocks made with weighted_down; else null */
  void* dh;                            /* [R, h_stride]; null with z, or not computed */
  void* dz;                            /* [R, z_stride], with z */
  float* drow_weights;                 /* [R] with row_weights; null: not computed */
  int32_t weight_gradients;            /* 0 or 1: dW2 and db2 are computed; 1 */
  int32_t accumulate_weight_gradients; /* 0 or 1: added to what is there; 0 */
  void* workspace;                     /* 256-byte aligned, of varmoe_blocks_backward_workspace_bytes */
  size_t workspace_bytes;
  void* stream;
} varmoe_grouped_down_backward_args;

typedef struct varmoe_grouped_up_backward_args {
  size_t struct_size;
  const varmoe_rows_by_expert* by_expert;
  const void* x;            /* [R, H], what up read, 16-byte aligned; null without gradients of weights */
  int64_t x_stride;         /* elements; 0: H */
  const void* z;            /* [R, z_stride], what up kept; null without dh */
  int64_t z_stride;         /* elements, of z and dz; as varmoe_grouped_up_args */
  const void* dh;           /* [R, dh_stride]; null: dz is there already */
  int64_t dh_stride;        /* elements; 0: the widest of all experts rounded up to 64, which is the least */
  const float* row_weights; /* [R], of a layer with weight_on_input; else null */
  void* dz;                 /* [R, z_stride]: written from dh and z, or read */
  void* dx;                 /* [R, H], 16-byte aligned; null: not computed */
  float* drow_weights;      /* [R] with row_weights and dx; null: not computed */
  int32_t weight_gradients; /* 0 or 1: dW1 and db1 are computed; 1 */
  int32_t accumulate_weight_gradients; /* 0 or 1: added to what is there; 0 */
  void* workspace;                     /* 256-byte aligned, of varmoe_blocks_backward_workspace_bytes */
  size_t workspace_bytes;
  void* stream;
} varmoe_grouped_up_backward_args;

typedef struct varmoe_combine_args {
  size_t struct_size;
  int64_t tokens;
  int64_t rows;                /* R */
  const void* y;               /* [R, H], 16-byte aligned */
  const int32_t* slot_row;     /* [tokens, k]; negative: no row */
  const float* topk_weights;   /* [tokens, k] of the routed slots; null: every row counts once */
  const float* shared_weights; /* [tokens], of a layer with a shared gate; else null */
  void* out;                   /* [tokens, H], 16-byte aligned */
  int64_t out_stride;          /* elements; 0: H */
  int32_t accumulate;          /* 0: out = result; 1: out += result */
  int32_t absent_tokens;       /* VARMOE_ABSENT_*; WRITE_ZEROS */
  const int32_t* token_count;  /* optional device-side token count */
  void* stream;
} varmoe_combine_args;

typedef struct varmoe_combine_backward_args {
  size_t struct_size;
  int64_t tokens;
  int64_t rows;                /* R */
  const void* dout;            /* [tokens, H], 16-byte aligned */
  int64_t dout_stride;         /* elements; 0: H */
  const int32_t* slot_row;     /* [tokens, k] */
  const float* topk_weights;   /* as varmoe_combine_args */
  const float* shared_weights; /* as varmoe_combine_args */
  const void* y;               /* [R, H], 16-byte aligned; null without gradients of weights */
  void* dy;                    /* [R, H], 16-byte aligned; null: not computed */
  float* dtopk_weights;        /* [tokens, k] of the routed slots; null: not computed */
  float* dshared_weights;      /* [tokens, S]; null: not computed */
  const int32_t* token_count;  /* optional device-side token count */
  void* stream;
} varmoe_combine_backward_args;

typedef struct varmoe_router_spec {
  size_t struct_size;
  int64_t num_experts;     /* 1 ... 1024 */
  int64_t top_k;           /* 1 ... 32, at most num_experts */
  int32_t logit_type;      /* VARMOE_LOGITS_*; FP32 */
  int32_t scoring;         /* VARMOE_SCORING_*; SOFTMAX */
  int32_t order;           /* VARMOE_ORDER_*: softmax before or after top-k; BEFORE_TOP_K */
  int32_t renormalize;     /* 0 or 1: w = s / (sum of the chosen + epsilon) */
  float epsilon;           /* 0 */
  float scaling_factor;    /* 1 */
  int32_t correction_bias; /* 0 or 1: experts are chosen by score + bias */
  int32_t group_score;     /* VARMOE_GROUP_SCORE_*; MAX */
  int64_t num_groups;      /* 1 */
  int64_t top_groups;      /* 1 */
  int32_t outside_groups;  /* VARMOE_OUTSIDE_GROUPS_*; NEVER */
  int32_t weight_on_input; /* 0 or 1: Llama-4; varmoe_route_and_forward wants the layer's to be the same */
  int64_t hidden_size;     /* 0: given logits; else H, and the router multiplies x by its weight itself */
  int32_t input_type;      /* VARMOE_DTYPE_* of x; BF16 */
  int32_t weight_type;     /* VARMOE_LOGITS_* of the weight; BF16 */
  int32_t logit_bias;      /* 0 or 1: a bias is added to the logits */
} varmoe_router_spec;

/* Device pointers on a GPU engine, host pointers on the CPU engine. */
typedef struct varmoe_route_args {
  size_t struct_size;
  int64_t tokens;
  const void* logits;           /* [tokens, E] */
  int64_t logit_stride;         /* elements; 0: E */
  const float* correction_bias; /* [E]; required by a spec with correction_bias */
  int32_t* topk_ids;            /* [tokens, k], best first */
  float* topk_weights;          /* [tokens, k] */
  float* scores;                /* optional [tokens, E] */
  const int32_t* token_count;   /* optional device-side token count */
  void* stream;
  /* Of a router with hidden_size, instead of logits (null then). */
  const void* x;           /* [tokens, H], 16-byte aligned */
  int64_t x_stride;        /* elements; 0: H */
  const void* weight;      /* [E, H], 16-byte aligned */
  int64_t weight_stride;   /* elements; 0: H */
  const float* logit_bias; /* [E]; required by a spec with logit_bias */
  float* logits_out;       /* optional [tokens, E] */
  void* workspace;         /* 16-byte aligned; null where none is needed */
  size_t workspace_bytes;
} varmoe_route_args;

typedef struct varmoe_align_spec {
  size_t struct_size;
  int64_t num_experts; /* 1 ... 1024 */
  int64_t block_size;  /* 128 */
} varmoe_align_spec;

typedef struct varmoe_align_args {
  size_t struct_size;
  int64_t rows;                 /* R: routed rows */
  const void* topk_ids;         /* [R]; -1 or >= E takes no place */
  int32_t id_type;              /* VARMOE_ID_* */
  int32_t reserved;             /* 0 */
  int32_t* sorted_token_ids;    /* [sorted_size]; R where there is no row */
  int64_t sorted_size;          /* 0: varmoe_sorted_ids_size, the least */
  int32_t* expert_ids;          /* [varmoe_aligned_blocks]; -1 beyond the last block */
  int32_t* num_tokens_post_pad; /* [1] */
  void* workspace;              /* 16-byte aligned; null where none is needed */
  size_t workspace_bytes;
  void* stream;
} varmoe_align_args;

/* See router_statistics.hpp, also for the formulas. */
typedef struct varmoe_router_statistics_spec {
  size_t struct_size;
  int64_t num_experts; /* 1 ... 1024 */
  int64_t top_k;       /* 1 ... 32 */
  int32_t logit_type;  /* VARMOE_LOGITS_*; FP32 */
  int32_t scoring;     /* VARMOE_SCORING_*; SOFTMAX */
} varmoe_router_statistics_spec;

/* Device pointers on a GPU engine, host pointers on the CPU engine. Outputs that are null are not computed.
 */
typedef struct varmoe_router_statistics_args {
  size_t struct_size;
  int64_t tokens;
  const void* logits;           /* [tokens, E] */
  int64_t logit_stride;         /* elements; 0: E */
  const void* topk_ids;         /* [tokens, k] */
  int32_t id_type;              /* VARMOE_ID_* */
  int32_t reserved;             /* 0 */
  const int32_t* expert_widths; /* [E]; null: all equal */
  int32_t* tokens_per_expert;   /* [E] */
  float* mean_scores;           /* [E] */
  float* losses;                /* [4]: z, load balance, balance within equal widths, compute */
  const int32_t* token_count;   /* optional device-side token count */
  void* workspace;              /* 16-byte aligned; null where none is needed */
  size_t workspace_bytes;
  void* stream;
} varmoe_router_statistics_args;

/* See router_gradient.hpp, also for the formulas. */
typedef struct varmoe_router_gradient_spec {
  size_t struct_size;
  const varmoe_router_spec* router; /* read by create alone */
  int32_t losses;                   /* sum of 1 << VARMOE_LOSS_*: may have a coefficient; 0 */
  int32_t dlogit_type;              /* VARMOE_LOGITS_*; FP32, or the logits' */
  int32_t dweight_type;             /* VARMOE_LOGITS_*; FP32 */
  int32_t reserved;                 /* 0 */
} varmoe_router_gradient_spec;

/* Device pointers on a GPU engine, host pointers on the CPU engine. */
typedef struct varmoe_router_gradient_args {
  size_t struct_size;
  int64_t tokens;
  const void* logits;         /* [tokens, E] */
  int64_t logit_stride;       /* elements; 0: E */
  const void* topk_ids;       /* [tokens, k]; -1 or >= E has no gradient */
  const float* dtopk_weights; /* [tokens, k]; null: the losses' gradients alone */
  void* dlogits;              /* [tokens, E] */
  int64_t dlogit_stride;      /* elements; 0: E */
  int32_t id_type;            /* VARMOE_ID_* */
  float z_coefficient;        /* of each loss: the gradient by it; 0: does not take part */
  float load_balance_coefficient;
  float group_balance_coefficient;
  float compute_coefficient;
  int32_t reserved;                 /* 0 */
  int64_t loss_tokens;              /* that losses are means over; 0: tokens, or what token_count says */
  const int32_t* tokens_per_expert; /* [E]; required by every loss but z */
  const float* mean_scores;         /* [E]; required by group balance */
  const int32_t* expert_widths;     /* [E]; null: all equal */
  const int32_t* token_count;       /* optional device-side token count */
  void* workspace;                  /* 16-byte aligned; null where none is needed */
  size_t workspace_bytes;
  void* stream;
} varmoe_router_gradient_args;

/* Outputs that are null are not computed. Strides in elements; 0: H (of dlogits: E). */
typedef struct varmoe_router_product_gradient_args {
  size_t struct_size;
  int64_t tokens;
  const float* dlogits; /* [tokens, E] */
  int64_t dlogit_stride;
  const void* x; /* [tokens, H], 16-byte aligned; required with dweight */
  int64_t x_stride;
  const void* weight; /* [E, H], 16-byte aligned; required with dx */
  int64_t weight_stride;
  void* dx; /* [tokens, H], 16-byte aligned */
  int64_t dx_stride;
  void* dweight; /* [E, H], 16-byte aligned */
  int64_t dweight_stride;
  float* dlogit_bias;         /* [E]; of a router with logit_bias */
  int32_t accumulate_dx;      /* 0: dx = result; 1: dx += result */
  int32_t accumulate_weight;  /* the same of dweight and dlogit_bias */
  const int32_t* token_count; /* optional device-side token count */
  void* stream;
} varmoe_router_product_gradient_args;

typedef struct varmoe_counters {
  size_t struct_size;
  uint64_t cache_hits;
  uint64_t cache_misses;
  uint64_t compiles;
  uint64_t kernels_loaded;
  uint64_t module_bytes;
  uint64_t forwards;
  uint64_t configs_override;
  uint64_t configs_tuned;
  uint64_t configs_predicted;
} varmoe_counters;

/* One kernel of a prepare. Strings belong to the report. */
typedef struct varmoe_kernel_report {
  size_t struct_size;
  const char* stage;
  const char* name;
  const char* key;
  const char* config;
  const char* origin;
  const char* error; /* "" when it is ready */
  const int64_t* token_buckets;
  size_t token_bucket_count;
  int32_t config_source; /* VARMOE_CONFIG_* */
  int32_t runtime_width; /* 0 or 1 */
  int32_t hit;           /* 0 or 1 */
  int32_t registers;
  int32_t spill_bytes;
  int32_t static_smem_bytes;
  int32_t dynamic_smem_bytes;
  int32_t reserved;
  double compile_ms;
} varmoe_kernel_report;

/* The version of the library that is loaded, e.g. "0.1.0". */
VARMOE_C_API const char* varmoe_version(void);
/* The name of a return code, e.g. "not_prepared"; "unknown" for other numbers. */
VARMOE_C_API const char* varmoe_status_name(int status);
/* The sentence of the last failure on this thread, "" when there was none. Valid until the next failure on
 * this thread. */
VARMOE_C_API const char* varmoe_last_error(void);

/* Each sets struct_size and the defaults. `struct_size` is sizeof the struct as the caller was compiled. */
VARMOE_C_API int varmoe_engine_options_init(varmoe_engine_options* options, size_t struct_size);
VARMOE_C_API int varmoe_layer_spec_init(varmoe_layer_spec* spec, size_t struct_size);
VARMOE_C_API int varmoe_layer_options_init(varmoe_layer_options* options, size_t struct_size);
VARMOE_C_API int varmoe_prepare_options_init(varmoe_prepare_options* options, size_t struct_size);
VARMOE_C_API int varmoe_weights_init(varmoe_weights* weights, size_t struct_size);
VARMOE_C_API int varmoe_forward_args_init(varmoe_forward_args* args, size_t struct_size);
VARMOE_C_API int varmoe_up_args_init(varmoe_up_args* args, size_t struct_size);
VARMOE_C_API int varmoe_blocks_options_init(varmoe_blocks_options* options, size_t struct_size);
VARMOE_C_API int varmoe_rows_by_expert_init(varmoe_rows_by_expert* rows, size_t struct_size);
VARMOE_C_API int varmoe_gather_args_init(varmoe_gather_args* args, size_t struct_size);
VARMOE_C_API int varmoe_slot_rows_args_init(varmoe_slot_rows_args* args, size_t struct_size);
VARMOE_C_API int varmoe_grouped_up_args_init(varmoe_grouped_up_args* args, size_t struct_size);
VARMOE_C_API int varmoe_grouped_down_args_init(varmoe_grouped_down_args* args, size_t struct_size);
VARMOE_C_API int varmoe_grouped_down_backward_args_init(varmoe_grouped_down_backward_args* args,
                                                        size_t struct_size);
VARMOE_C_API int varmoe_grouped_up_backward_args_init(varmoe_grouped_up_backward_args* args,
                                                      size_t struct_size);
VARMOE_C_API int varmoe_combine_args_init(varmoe_combine_args* args, size_t struct_size);
VARMOE_C_API int varmoe_combine_backward_args_init(varmoe_combine_backward_args* args, size_t struct_size);
VARMOE_C_API int varmoe_training_options_init(varmoe_training_options* options, size_t struct_size);
VARMOE_C_API int varmoe_backward_args_init(varmoe_backward_args* args, size_t struct_size);
VARMOE_C_API int varmoe_counters_init(varmoe_counters* counters, size_t struct_size);
VARMOE_C_API int varmoe_kernel_report_init(varmoe_kernel_report* report, size_t struct_size);
VARMOE_C_API int varmoe_router_spec_init(varmoe_router_spec* spec, size_t struct_size);
VARMOE_C_API int varmoe_route_args_init(varmoe_route_args* args, size_t struct_size);
VARMOE_C_API int varmoe_align_spec_init(varmoe_align_spec* spec, size_t struct_size);
VARMOE_C_API int varmoe_align_args_init(varmoe_align_args* args, size_t struct_size);
VARMOE_C_API int varmoe_router_statistics_spec_init(varmoe_router_statistics_spec* spec, size_t struct_size);
VARMOE_C_API int varmoe_router_statistics_args_init(varmoe_router_statistics_args* args, size_t struct_size);
VARMOE_C_API int varmoe_router_gradient_spec_init(varmoe_router_gradient_spec* spec, size_t struct_size);
VARMOE_C_API int varmoe_router_gradient_args_init(varmoe_router_gradient_args* args, size_t struct_size);
VARMOE_C_API int varmoe_router_product_gradient_args_init(varmoe_router_product_gradient_args* args,
                                                          size_t struct_size);

/* `options` may be null: all defaults. */
VARMOE_C_API int varmoe_engine_create(const varmoe_engine_options* options, varmoe_engine** engine);
/* Layers may outlive the engine handle; captured graphs must not outlive both. */
VARMOE_C_API void varmoe_engine_destroy(varmoe_engine* engine);
VARMOE_C_API int varmoe_engine_counters(const varmoe_engine* engine, varmoe_counters* counters);
/*
 * "NVIDIA H200, sm_90a, 132 SMs, driver 13.0" or "CPU, 8 threads". Writes at most `capacity` bytes, always
 * terminated;
 * `*needed` (may be null) is the length with the terminator. `buffer` may be null when `capacity` is 0.
 */
VARMOE_C_API int varmoe_engine_description(const varmoe_engine* engine, char* buffer, size_t capacity,
                                           size_t* needed);

/* `options` may be null. */
VARMOE_C_API int varmoe_layer_create(varmoe_engine* engine, const varmoe_layer_spec* spec,
                                     const varmoe_layer_options* options, varmoe_layer** layer);
VARMOE_C_API void varmoe_layer_destroy(varmoe_layer* layer);

/* Compiles or loads every kernel of the named buckets. `options` and `report` may be null. */
VARMOE_C_API int varmoe_layer_prepare(varmoe_layer* layer, const varmoe_prepare_options* options,
                                      varmoe_report** report);
VARMOE_C_API void varmoe_report_destroy(varmoe_report* report);
/* 0 for null. */
VARMOE_C_API size_t varmoe_report_kernel_count(const varmoe_report* report);
VARMOE_C_API int varmoe_report_kernel(const varmoe_report* report, size_t index,
                                      varmoe_kernel_report* kernel);
VARMOE_C_API double varmoe_report_total_ms(const varmoe_report* report);

/* Records where the weights lie; may be repeated. Not while a stream captures. */
VARMOE_C_API int varmoe_layer_bind(varmoe_layer* layer, const varmoe_weights* weights);
VARMOE_C_API int varmoe_layer_workspace_bytes(const varmoe_layer* layer, int64_t tokens, size_t* bytes);
/* Enqueues the layer on args->stream; may be captured in a CUDA graph once the layer is prepared. */
VARMOE_C_API int varmoe_layer_forward(varmoe_layer* layer, const varmoe_forward_args* args);
/* Enqueues sort and up-projection alone; rows of h by expert. */
VARMOE_C_API int varmoe_layer_up(varmoe_layer* layer, const varmoe_up_args* args);

/* A layer with its backward pass; see training.hpp. `options` may be null. */
VARMOE_C_API int varmoe_training_layer_create(varmoe_engine* engine, const varmoe_layer_spec* spec,
                                              const varmoe_training_options* options,
                                              varmoe_training_layer** layer);
VARMOE_C_API void varmoe_training_layer_destroy(varmoe_training_layer* layer);
/* Every kernel of forward and backward. `options` and `report` may be null. */
VARMOE_C_API int varmoe_training_layer_prepare(varmoe_training_layer* layer,
                                               const varmoe_prepare_options* options, varmoe_report** report);
VARMOE_C_API int varmoe_training_layer_bind(varmoe_training_layer* layer, const varmoe_weights* weights);
/* Where backward writes the gradients of weights, biases and the shared gate, in any storage; its elements
 * (strides and offsets count them) are of the options' gradient_type. */
VARMOE_C_API int varmoe_training_layer_bind_gradients(varmoe_training_layer* layer,
                                                      const varmoe_weights* gradients);
/* Bytes that forward keeps for backward; 0 without save_preactivation. */
VARMOE_C_API int varmoe_training_layer_saved_bytes(const varmoe_training_layer* layer, int64_t tokens,
                                                   size_t* bytes);
/* Of forward and backward, the greater of the two. */
VARMOE_C_API int varmoe_training_layer_workspace_bytes(const varmoe_training_layer* layer, int64_t tokens,
                                                       size_t* bytes);
/* `saved`: 256-byte aligned, the caller's until backward has run; null when saved_bytes is 0. */
VARMOE_C_API int varmoe_training_layer_forward(varmoe_training_layer* layer, const varmoe_forward_args* args,
                                               void* saved, size_t saved_bytes);
VARMOE_C_API int varmoe_training_layer_backward(varmoe_training_layer* layer,
                                                const varmoe_backward_args* args);

/* Building blocks of a layer, each usable alone; see blocks.hpp. `options` may be null. */
VARMOE_C_API int varmoe_blocks_create(varmoe_engine* engine, const varmoe_layer_spec* spec,
                                      const varmoe_blocks_options* options, varmoe_blocks** blocks);
VARMOE_C_API void varmoe_blocks_destroy(varmoe_blocks* blocks);
VARMOE_C_API int varmoe_blocks_prepare(varmoe_blocks* blocks, const varmoe_prepare_options* options,
                                       varmoe_report** report);
VARMOE_C_API int varmoe_blocks_bind(varmoe_blocks* blocks, const varmoe_weights* weights);
/* Of up and down, for at most so many rows. */
VARMOE_C_API int varmoe_blocks_workspace_bytes(const varmoe_blocks* blocks, int64_t rows, size_t* bytes);
VARMOE_C_API int varmoe_blocks_gather(varmoe_blocks* blocks, const varmoe_gather_args* args);
VARMOE_C_API int varmoe_blocks_slot_rows(varmoe_blocks* blocks, const varmoe_slot_rows_args* args);
VARMOE_C_API int varmoe_blocks_up(varmoe_blocks* blocks, const varmoe_grouped_up_args* args);
VARMOE_C_API int varmoe_blocks_down(varmoe_blocks* blocks, const varmoe_grouped_down_args* args);
VARMOE_C_API int varmoe_blocks_combine(varmoe_blocks* blocks, const varmoe_combine_args* args);
VARMOE_C_API int varmoe_blocks_combine_backward(varmoe_blocks* blocks,
                                                const varmoe_combine_backward_args* args);
/* Of blocks made with training: where the weights' gradients go, and the backward passes of down and up. */
VARMOE_C_API int varmoe_blocks_bind_gradients(varmoe_blocks* blocks, const varmoe_weights* gradients);
VARMOE_C_API int varmoe_blocks_backward_workspace_bytes(const varmoe_blocks* blocks, int64_t rows,
                                                        size_t* bytes);
VARMOE_C_API int varmoe_blocks_down_backward(varmoe_blocks* blocks,
                                             const varmoe_grouped_down_backward_args* args);
VARMOE_C_API int varmoe_blocks_up_backward(varmoe_blocks* blocks,
                                           const varmoe_grouped_up_backward_args* args);

/* Routers: logits to topk_ids and topk_weights; see router.hpp. */
VARMOE_C_API int varmoe_router_create(varmoe_engine* engine, const varmoe_router_spec* spec,
                                      varmoe_router** router);
VARMOE_C_API void varmoe_router_destroy(varmoe_router* router);
/* Its kernels serve every token count. `options` and `report` may be null. */
VARMOE_C_API int varmoe_router_prepare(varmoe_router* router, const varmoe_prepare_options* options,
                                       varmoe_report** report);
/* 0 for a router that is given logits. */
VARMOE_C_API int varmoe_router_workspace_bytes(const varmoe_router* router, int64_t tokens, size_t* bytes);
/* Enqueues the router on args->stream; may be captured in a CUDA graph once it is prepared. */
VARMOE_C_API int varmoe_router_route(varmoe_router* router, const varmoe_route_args* args);
/* Route, then forward on the same stream; `forward` reads the ids and weights that `route` writes. */
VARMOE_C_API int varmoe_route_and_forward(varmoe_router* router, const varmoe_route_args* route,
                                          varmoe_layer* layer, const varmoe_forward_args* forward);

/* moe_align_block_size; see router.hpp. */
VARMOE_C_API int varmoe_block_aligner_create(varmoe_engine* engine, const varmoe_align_spec* spec,
                                             varmoe_block_aligner** aligner);
VARMOE_C_API void varmoe_block_aligner_destroy(varmoe_block_aligner* aligner);
VARMOE_C_API int varmoe_block_aligner_prepare(varmoe_block_aligner* aligner,
                                              const varmoe_prepare_options* options, varmoe_report** report);
VARMOE_C_API int varmoe_block_aligner_workspace_bytes(const varmoe_block_aligner* aligner, int64_t rows,
                                                      size_t* bytes);
VARMOE_C_API int varmoe_block_aligner_align(varmoe_block_aligner* aligner, const varmoe_align_args* args);
/* Entries of sorted_token_ids that `rows` rows may need, and of expert_ids for so many; 0 for what is out of
 * range. */
VARMOE_C_API int64_t varmoe_sorted_ids_size(int64_t num_experts, int64_t block_size, int64_t rows);
VARMOE_C_API int64_t varmoe_aligned_blocks(int64_t block_size, int64_t sorted_size);

/* Counts and auxiliary losses of a router, for trainers; see router_statistics.hpp. */
VARMOE_C_API int varmoe_router_statistics_create(varmoe_engine* engine,
                                                 const varmoe_router_statistics_spec* spec,
                                                 varmoe_router_statistics** statistics);
VARMOE_C_API void varmoe_router_statistics_destroy(varmoe_router_statistics* statistics);
VARMOE_C_API int varmoe_router_statistics_prepare(varmoe_router_statistics* statistics,
                                                  const varmoe_prepare_options* options,
                                                  varmoe_report** report);
VARMOE_C_API int varmoe_router_statistics_workspace_bytes(const varmoe_router_statistics* statistics,
                                                          int64_t tokens, size_t* bytes);
VARMOE_C_API int varmoe_router_statistics_compute(varmoe_router_statistics* statistics,
                                                  const varmoe_router_statistics_args* args);

/* A router's backward pass; see router_gradient.hpp. */
VARMOE_C_API int varmoe_router_gradient_create(varmoe_engine* engine, const varmoe_router_gradient_spec* spec,
                                               varmoe_router_gradient** gradient);
VARMOE_C_API void varmoe_router_gradient_destroy(varmoe_router_gradient* gradient);
VARMOE_C_API int varmoe_router_gradient_prepare(varmoe_router_gradient* gradient,
                                                const varmoe_prepare_options* options,
                                                varmoe_report** report);
/* Of compute. 0 without a loss other than z. */
VARMOE_C_API int varmoe_router_gradient_workspace_bytes(const varmoe_router_gradient* gradient,
                                                        int64_t tokens, size_t* bytes);
/* From the gradients of topk_weights and of losses to those of logits. */
VARMOE_C_API int varmoe_router_gradient_compute(varmoe_router_gradient* gradient,
                                                const varmoe_router_gradient_args* args);
/* From the gradients of logits to those of x and of the router's weight and bias. */
VARMOE_C_API int varmoe_router_gradient_product(varmoe_router_gradient* gradient,
                                                const varmoe_router_product_gradient_args* args);

/* The smallest width >= width that kernels take. */
VARMOE_C_API int64_t varmoe_packed_width(int64_t width);
/* Pads one expert of any width with zero columns (host memory); see pack_expert in weights.hpp. */
VARMOE_C_API int varmoe_pack_expert(const varmoe_layer_spec* spec, int64_t width, const void* fc1,
                                    const void* fc2, void* packed_fc1, void* packed_fc2);
/* The same for fc1's bias; see pack_fc1_bias in weights.hpp. */
VARMOE_C_API int varmoe_pack_fc1_bias(const varmoe_layer_spec* spec, int64_t width, const void* fc1_bias,
                                      void* packed_fc1_bias);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VARMOE_VARMOE_H_ */
