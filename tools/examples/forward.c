/*
 * A MoE layer through the C API: create, prepare, bind, forward. With a GPU it runs there directly and from a captured CUDA graph,
 * without one on the CPU. The result is checked against a plain loop.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_dl.h"
#include "varmoe/varmoe.h"

enum { HIDDEN = 128, EXPERTS = 4, TOKENS = 16, TOP_K = 2, TOTAL_WIDTH = 64 + 32 + 64 + 96 };
static const int64_t widths[EXPERTS] = {64, 32, 64, 96};

/* fp32 copies of what the layer gets as bf16; every value here is exact in bf16. */
static float fc1[TOTAL_WIDTH * HIDDEN], fc2[HIDDEN * TOTAL_WIDTH], x[TOKENS * HIDDEN];
static int32_t ids[TOKENS * TOP_K];
static float topk_weights[TOKENS * TOP_K];

#define VARMOE(call) \
  if ((call) != VARMOE_OK) return fprintf(stderr, "%s: %s\n", #call, varmoe_last_error()), 0
#define CUDA(call) \
  if ((call) != CUDA_SUCCESS) return fprintf(stderr, "%s failed\n", #call), 0

static uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)(bits >> 16);
}

static float from_bf16(uint16_t value) {
  const uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

/* Multiples of 1/64 in (-1, 1): seven bits. */
static float draw(void) {
  static uint32_t seed = 7;
  seed = seed * 1664525u + 1013904223u;
  return (float)((int)(seed >> 25) - 63) / 64.0f;
}

/* What an ungated layer with relu2 computes, in fp32. Storage "blocks": expert after expert, fc1 [I, H], fc2 [H, I]. */
static void reference(float* out) {
  int t, j, i, n;
  for (t = 0; t < TOKENS; ++t) {
    for (n = 0; n < HIDDEN; ++n) out[t * HIDDEN + n] = 0;
    for (j = 0; j < TOP_K; ++j) {
      const int expert = ids[t * TOP_K + j];
      const float* up = fc1;
      const float* down = fc2;
      float h[96];
      for (i = 0; i < expert; ++i) up += widths[i] * HIDDEN, down += HIDDEN * widths[i];
      for (i = 0; i < widths[expert]; ++i) {
        float sum = 0;
        for (n = 0; n < HIDDEN; ++n) sum += up[i * HIDDEN + n] * x[t * HIDDEN + n];
        h[i] = sum > 0 ? sum * sum : 0;
      }
      for (n = 0; n < HIDDEN; ++n) {
        float sum = 0;
        for (i = 0; i < widths[expert]; ++i) sum += down[n * widths[expert] + i] * h[i];
        out[t * HIDDEN + n] += topk_weights[t * TOP_K + j] * sum;
      }
    }
  }
}

static int agrees(const uint16_t* out, const char* what) {
  static float expected[TOKENS * HIDDEN];
  double error = 0, size = 0;
  int i;
  reference(expected);
  for (i = 0; i < TOKENS * HIDDEN; ++i) {
    const double difference = (double)from_bf16(out[i]) - expected[i];
    error += difference * difference;
    size += (double)expected[i] * expected[i];
  }
  printf("  %s: relative difference from a plain loop %.2e\n", what, sqrt(error / size));
  return sqrt(error / size) < 1e-2;
}

static uint16_t* bf16_copy(const float* values, size_t count) {
  uint16_t* copy = aligned_alloc(256, (count * 2 + 255) / 256 * 256);
  size_t i;
  for (i = 0; copy && i < count; ++i) copy[i] = to_bf16(values[i]);
  return copy;
}

static int bind_blocks(varmoe_layer* layer, const void* fc1_at, const void* fc2_at) {
  varmoe_weights weights;
  VARMOE(varmoe_weights_init(&weights, sizeof weights));
  weights.storage = VARMOE_STORAGE_BLOCKS;
  weights.fc1 = fc1_at;
  weights.fc2 = fc2_at;
  VARMOE(varmoe_layer_bind(layer, &weights));
  return 1;
}

static int run_on_cpu(varmoe_layer* layer, varmoe_forward_args* args) {
  uint16_t *fc1_at = bf16_copy(fc1, sizeof fc1 / 4), *fc2_at = bf16_copy(fc2, sizeof fc2 / 4);
  uint16_t *x_at = bf16_copy(x, sizeof x / 4), *out = bf16_copy(x, sizeof x / 4);
  void* workspace = aligned_alloc(256, (args->workspace_bytes + 255) / 256 * 256);
  int good;
  if (!fc1_at || !fc2_at || !x_at || !out || !workspace) return 0;
  if (!bind_blocks(layer, fc1_at, fc2_at)) return 0;
  args->x = x_at;
  args->topk_ids = ids;
  args->topk_weights = topk_weights;
  args->out = out;
  args->workspace = workspace;
  VARMOE(varmoe_layer_forward(layer, args));
  good = agrees(out, "forward");
  free(fc1_at), free(fc2_at), free(x_at), free(out), free(workspace);
  return good;
}

static int to_device(const struct cuda_dl* cuda, CUdeviceptr* address, const void* contents, size_t bytes) {
  CUDA(cuda->alloc(address, bytes));
  if (contents) CUDA(cuda->copy_in(*address, contents, bytes));
  return 1;
}

static int run_on_gpu(const struct cuda_dl* cuda, varmoe_layer* layer, varmoe_forward_args* args) {
  uint16_t *fc1_bits = bf16_copy(fc1, sizeof fc1 / 4), *fc2_bits = bf16_copy(fc2, sizeof fc2 / 4);
  uint16_t *x_bits = bf16_copy(x, sizeof x / 4), *out = bf16_copy(x, sizeof x / 4);
  CUdeviceptr fc1_at, fc2_at, x_at, ids_at, weights_at, out_at, workspace;
  CUstream stream;
  CUgraph graph;
  CUgraphExec exec;
  int good;
  if (!fc1_bits || !fc2_bits || !x_bits || !out) return 0;
  if (!to_device(cuda, &fc1_at, fc1_bits, sizeof fc1 / 2) || !to_device(cuda, &fc2_at, fc2_bits, sizeof fc2 / 2) ||
      !to_device(cuda, &x_at, x_bits, sizeof x / 2) || !to_device(cuda, &ids_at, ids, sizeof ids) ||
      !to_device(cuda, &weights_at, topk_weights, sizeof topk_weights) || !to_device(cuda, &out_at, NULL, sizeof x / 2) ||
      !to_device(cuda, &workspace, NULL, args->workspace_bytes))
    return 0;
  if (!bind_blocks(layer, (const void*)fc1_at, (const void*)fc2_at)) return 0;
  CUDA(cuda->stream_create(&stream, CU_STREAM_NON_BLOCKING));
  args->x = (const void*)x_at;
  args->topk_ids = (const void*)ids_at;
  args->topk_weights = (const float*)weights_at;
  args->out = (void*)out_at;
  args->workspace = (void*)workspace;
  args->stream = stream;
  VARMOE(varmoe_layer_forward(layer, args));
  CUDA(cuda->stream_wait(stream));
  CUDA(cuda->copy_out(out, out_at, sizeof x / 2));
  good = agrees(out, "forward");

  CUDA(cuda->fill(out_at, 0xff, sizeof x / 2));
  CUDA(cuda->capture_begin(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  VARMOE(varmoe_layer_forward(layer, args));
  CUDA(cuda->capture_end(stream, &graph));
  CUDA(cuda->instantiate(&exec, graph, 0));
  CUDA(cuda->graph_launch(exec, stream));
  CUDA(cuda->stream_wait(stream));
  CUDA(cuda->copy_out(out, out_at, sizeof x / 2));
  good = agrees(out, "captured graph") && good;

  CUDA(cuda->exec_destroy(exec));
  CUDA(cuda->graph_destroy(graph));
  CUDA(cuda->stream_destroy(stream));
  CUDA(cuda->free(fc1_at));
  CUDA(cuda->free(fc2_at));
  CUDA(cuda->free(x_at));
  CUDA(cuda->free(ids_at));
  CUDA(cuda->free(weights_at));
  CUDA(cuda->free(out_at));
  CUDA(cuda->free(workspace));
  free(fc1_bits), free(fc2_bits), free(x_bits), free(out);
  return good;
}

/* Prints one line a kernel. */
static int prepare(varmoe_layer* layer) {
  const int64_t tokens[] = {TOKENS};
  varmoe_prepare_options options;
  varmoe_report* report = NULL;
  size_t i;
  VARMOE(varmoe_prepare_options_init(&options, sizeof options));
  options.tokens = tokens;
  options.token_count = 1;
  VARMOE(varmoe_layer_prepare(layer, &options, &report));
  for (i = 0; i < varmoe_report_kernel_count(report); ++i) {
    varmoe_kernel_report kernel;
    VARMOE(varmoe_kernel_report_init(&kernel, sizeof kernel));
    VARMOE(varmoe_report_kernel(report, i, &kernel));
    printf("  %-12s %-9s %3d registers\n", kernel.stage, kernel.origin, kernel.registers);
  }
  varmoe_report_destroy(report);
  return 1;
}

static int run(void) {
  varmoe_engine_options options;
  varmoe_layer_spec spec;
  varmoe_forward_args args;
  varmoe_engine* engine = NULL;
  varmoe_layer* layer = NULL;
  struct cuda_dl cuda;
  char description[128];
  int on_gpu = 1, status, good;

  VARMOE(varmoe_engine_options_init(&options, sizeof options));
  status = varmoe_engine_create(&options, &engine);
  if (status == VARMOE_E_NO_DEVICE) {
    on_gpu = 0;
    options.device = VARMOE_CPU_DEVICE;
    status = varmoe_engine_create(&options, &engine);
  }
  VARMOE(status);
  VARMOE(varmoe_engine_description(engine, description, sizeof description, NULL));
  printf("varmoe %s on %s\n", varmoe_version(), description);

  VARMOE(varmoe_layer_spec_init(&spec, sizeof spec));
  spec.hidden_size = HIDDEN;
  spec.expert_widths = widths;
  spec.num_experts = EXPERTS;
  spec.top_k = TOP_K;
  spec.activation = VARMOE_ACTIVATION_RELU2;
  VARMOE(varmoe_layer_create(engine, &spec, NULL, &layer));
  if (!prepare(layer)) return 0;

  VARMOE(varmoe_forward_args_init(&args, sizeof args));
  args.tokens = TOKENS;
  VARMOE(varmoe_layer_workspace_bytes(layer, TOKENS, &args.workspace_bytes));
  if (!on_gpu) {
    good = run_on_cpu(layer, &args);
  } else if (!cuda_dl_open(&cuda)) {
    good = fprintf(stderr, "the CUDA driver lacks a function\n") < 0;
  } else {
    good = run_on_gpu(&cuda, layer, &args);
  }
  varmoe_layer_destroy(layer);
  varmoe_engine_destroy(engine);
  return good;
}

int main(void) {
  size_t i;
  for (i = 0; i < sizeof fc1 / sizeof fc1[0]; ++i) fc1[i] = draw();
  for (i = 0; i < sizeof fc2 / sizeof fc2[0]; ++i) fc2[i] = draw();
  for (i = 0; i < sizeof x / sizeof x[0]; ++i) x[i] = draw();
  for (i = 0; i < TOKENS * TOP_K; ++i) {
    ids[i] = (int32_t)((i * 3 + i / 5) % EXPERTS);
    topk_weights[i] = i % 2 ? 0.25f : 0.75f;
  }
  return run() ? EXIT_SUCCESS : EXIT_FAILURE;
}
