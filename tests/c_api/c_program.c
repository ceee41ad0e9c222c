/* What a C program sees: this file is compiled as C, and its functions are called by the tests. */
#include <stdlib.h>
#include <string.h>

#include "varmoe/varmoe.h"

/* A whole life of a layer on the CPU, with every weight and input zero but one. Returns a code of the API, or a negative
 * number when the result is wrong. */
int varmoe_test_c_program(void) {
  enum { HIDDEN = 64, EXPERTS = 2, TOKENS = 3, TOP_K = 1 };
  const int64_t widths[EXPERTS] = {8, 16};
  varmoe_engine_options engine_options;
  varmoe_layer_spec spec;
  varmoe_weights weights;
  varmoe_forward_args args;
  varmoe_engine* engine = NULL;
  varmoe_layer* layer = NULL;
  varmoe_report* report = NULL;
  size_t workspace_bytes = 0;
  static uint16_t fc1[24 * HIDDEN + 128], fc2[HIDDEN * 24 + 128], x[TOKENS * HIDDEN + 128], out[TOKENS * HIDDEN + 128];
  static int32_t ids[TOKENS] = {0, 1, -1};
  static float topk_weights[TOKENS] = {1.0f, 1.0f, 1.0f};
  void* workspace = NULL;
  uint16_t *fc1_at, *fc2_at, *x_at, *out_at;
  int status, i;

  if ((status = varmoe_engine_options_init(&engine_options, sizeof engine_options)) != VARMOE_OK) return status;
  engine_options.device = VARMOE_CPU_DEVICE;
  engine_options.cpu_threads = 1;
  if ((status = varmoe_engine_create(&engine_options, &engine)) != VARMOE_OK) return status;

  if ((status = varmoe_layer_spec_init(&spec, sizeof spec)) != VARMOE_OK) return status;
  spec.hidden_size = HIDDEN;
  spec.expert_widths = widths;
  spec.num_experts = EXPERTS;
  spec.top_k = TOP_K;
  spec.activation = VARMOE_ACTIVATION_RELU2;
  if ((status = varmoe_layer_create(engine, &spec, NULL, &layer)) != VARMOE_OK) return status;
  varmoe_engine_destroy(engine); /* the layer keeps what it needs */
  if ((status = varmoe_layer_prepare(layer, NULL, &report)) != VARMOE_OK) return status;
  if (varmoe_report_kernel_count(report) != 0) return -1; /* the CPU has no kernels */
  varmoe_report_destroy(report);

#define ALIGN(p) ((uint16_t*)(((uintptr_t)(p) + 15) & ~(uintptr_t)15))
  fc1_at = ALIGN(fc1), fc2_at = ALIGN(fc2), x_at = ALIGN(x), out_at = ALIGN(out);
  /* Expert 0: h[0] = relu2(2 * x[5]) = 16 for x[5] = 2; out[7] = 0.5 * h[0] = 8. In bf16: 2 = 0x4000, 0.5 = 0x3f00. */
  fc1_at[0 * HIDDEN + 5] = 0x4000;
  fc2_at[7 * 8 + 0] = 0x3f00;
  for (i = 0; i < TOKENS; ++i) x_at[i * HIDDEN + 5] = 0x4000;
  memset(out_at, 0xff, TOKENS * HIDDEN * sizeof(uint16_t));

  if ((status = varmoe_weights_init(&weights, sizeof weights)) != VARMOE_OK) return status;
  weights.storage = VARMOE_STORAGE_BLOCKS;
  weights.fc1 = fc1_at;
  weights.fc2 = fc2_at;
  if ((status = varmoe_layer_bind(layer, &weights)) != VARMOE_OK) return status;

  if ((status = varmoe_layer_workspace_bytes(layer, TOKENS, &workspace_bytes)) != VARMOE_OK) return status;
  workspace = aligned_alloc(256, (workspace_bytes + 255) / 256 * 256);
  if ((status = varmoe_forward_args_init(&args, sizeof args)) != VARMOE_OK) return status;
  args.tokens = TOKENS;
  args.x = x_at;
  args.topk_ids = ids;
  args.topk_weights = topk_weights;
  args.out = out_at;
  args.workspace = workspace;
  args.workspace_bytes = workspace_bytes;
  status = varmoe_layer_forward(layer, &args);
  free(workspace);
  varmoe_layer_destroy(layer);
  if (status != VARMOE_OK) return status;
  for (i = 0; i < TOKENS * HIDDEN; ++i) {
    const uint16_t expected = i == 7 ? 0x4100 : 0; /* 8 in the row of expert 0, zero elsewhere */
    if ((out_at[i] & 0x7fff) != expected) return -2 - i;
  }
  return VARMOE_OK;
}
