/* A C program that uses varmoe as installed: one tiny layer on the CPU backend, whose result is known exactly. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <varmoe/varmoe.h>

enum { TOKENS = 3, HIDDEN = 64, EXPERTS = 2, WIDTH = 8 };

static void must(int status, const char* what) {
  if (status == VARMOE_OK) return;
  fprintf(stderr, "%s: %s: %s\n", what, varmoe_status_name(status), varmoe_last_error());
  exit(1);
}

static uint16_t ones[2 * EXPERTS * WIDTH * HIDDEN];

int main(void) {
  const uint16_t one = 0x3F80;       /* 1 in bf16 */
  const uint16_t expected = 0x4380;  /* 64 inputs, relu, 8 outputs, routing weight 0.5: 256 */
  int64_t widths[EXPERTS] = {WIDTH, WIDTH};
  int32_t ids[TOKENS] = {0, 1, -1};
  float weights[TOKENS] = {0.5f, 0.5f, 0.5f};
  static uint16_t x[TOKENS * HIDDEN + 8], out[TOKENS * HIDDEN + 8];
  uint16_t* aligned_x = (uint16_t*)(((uintptr_t)x + 15) / 16 * 16);
  uint16_t* aligned_out = (uint16_t*)(((uintptr_t)out + 15) / 16 * 16);
  uint16_t* matrices = malloc(sizeof ones + 256);
  uint16_t* aligned = (uint16_t*)(((uintptr_t)matrices + 255) / 256 * 256);
  varmoe_engine_options engine_options;
  varmoe_layer_spec spec;
  varmoe_weights bound;
  varmoe_forward_args args;
  varmoe_engine* engine = NULL;
  varmoe_layer* layer = NULL;
  void* workspace;
  size_t bytes = 0;
  int i;

  if (matrices == NULL || strcmp(varmoe_version(), PACKAGE_VERSION) != 0) return 1;
  for (i = 0; i < 2 * EXPERTS * WIDTH * HIDDEN; ++i) aligned[i] = one;
  for (i = 0; i < TOKENS * HIDDEN; ++i) aligned_x[i] = one, aligned_out[i] = 0xFFFF;

  must(varmoe_engine_options_init(&engine_options, sizeof engine_options), "options");
  engine_options.device = VARMOE_CPU_DEVICE;
  must(varmoe_engine_create(&engine_options, &engine), "engine");
  must(varmoe_layer_spec_init(&spec, sizeof spec), "spec");
  spec.hidden_size = HIDDEN;
  spec.expert_widths = widths;
  spec.num_experts = EXPERTS;
  spec.top_k = 1;
  spec.activation = VARMOE_ACTIVATION_RELU;
  must(varmoe_layer_create(engine, &spec, NULL, &layer), "layer");
  must(varmoe_layer_prepare(layer, NULL, NULL), "prepare");
  must(varmoe_weights_init(&bound, sizeof bound), "weights");
  bound.storage = VARMOE_STORAGE_BLOCKS;
  bound.fc1 = aligned;
  bound.fc2 = aligned + EXPERTS * WIDTH * HIDDEN;
  must(varmoe_layer_bind(layer, &bound), "bind");
  must(varmoe_layer_workspace_bytes(layer, TOKENS, &bytes), "workspace");
  workspace = malloc(bytes + 256);
  if (workspace == NULL) return 1;
  must(varmoe_forward_args_init(&args, sizeof args), "arguments");
  args.tokens = TOKENS;
  args.x = aligned_x;
  args.topk_ids = ids;
  args.topk_weights = weights;
  args.out = aligned_out;
  args.workspace = (void*)(((uintptr_t)workspace + 255) / 256 * 256);
  args.workspace_bytes = bytes;
  must(varmoe_layer_forward(layer, &args), "forward");
  for (i = 0; i < TOKENS * HIDDEN; ++i) {
    const uint16_t want = i < 2 * HIDDEN ? expected : 0;
    if (aligned_out[i] != want) {
      fprintf(stderr, "element %d is %04x, not %04x\n", i, (unsigned)aligned_out[i], (unsigned)want);
      return 1;
    }
  }
  varmoe_layer_destroy(layer);
  varmoe_engine_destroy(engine);
  free(workspace);
  free(matrices);
  puts("C consumer: ok");
  return 0;
}
