"""varmoe from Python: the C API (varmoe/varmoe.h) through ctypes, without copies and without anything to install.

    import varmoe_client
    library = varmoe_client.Library()                       # or the path of libvarmoe_jit.so
    engine = library.engine(device=0)                       # "cpu": host pointers
    layer = engine.layer(hidden_size=2048, expert_widths=[768, 512, 512, 256], top_k=2)
    layer.prepare([1, 64, 4096])
    layer.bind(fc1, fc2)                                    # tensors stay where they are; the layer keeps a reference to them
    layer.forward(x, topk_ids, topk_weights, out)           # torch tensors: enqueued on torch's current stream

    layer = engine.layer(2048, [768] * 32, 8, shared_widths=[1536], shared_gate=1)      # or bias=1, weight_on_input=1
    layer.bind(fc1, fc2, shared_experts=[(gate, up, down)], shared_gate=w)              # or fc1_bias=…, fc2_bias=…
    layer.forward(x, topk_ids, topk_weights, out, expert_map=local_expert_of_each_id)

    layer = engine.training_layer(2048, [768, 512, 512, 256], 2, gradient_type="fp32")  # with a backward pass; autograd: varmoe_autograd.py
    layer.bind(fc1, fc2)
    layer.bind_gradients(dfc1, dfc2)                        # written by backward
    saved = layer.forward(x, topk_ids, topk_weights, out)
    layer.backward(x, topk_ids, topk_weights, dout, saved, dx=dx, dtopk_weights=dtopk_weights)

    blocks = engine.blocks(2048, [768, 512, 512, 256], 2)   # gather, up, down and combine, each alone, on rows in your order
    rows = blocks.by_expert(R, expert_offsets=offsets)      # or layout="counts", "batched", "aligned_blocks"
    blocks.up_call(rows, x_rows, h)()                     # with engine.blocks(..., training=True) also z, down_backward_call and up_backward_call

What serves as a tensor: torch tensors, numpy arrays, array.array, ctypes arrays, anything with the buffer interface, and plain addresses (int). Where
it says its shape, element type and strides, they are checked; else the library takes the address at its word, and `tokens` must be given.
bf16 has no name in numpy and array.array: give 16-bit integers (uint16, "H").

Each call that fails raises VarmoeError with the library's sentence. Objects free themselves; close() or `with` does so at a time of your choice.
Keep an engine as long as forwards run and captured graphs of its layers are used.
"""
# One file a part; this is what a program uses.
from .structs import (ACTIVATIONS, AlignArgs, AlignSpec, BackwardArgs, BlocksOptions, CombineArgs, CombineBackwardArgs, Counters, DTYPES, ELEMENTS,
                      ENUMERATORS, EngineOptions, ExpertBiases, ExpertWeights, F32, F64, ForwardArgs, GATE_ORDERS, GatherArgs, GroupedDownArgs,
                      GroupedDownBackwardArgs, GroupedUpArgs, GroupedUpBackwardArgs, I32, I64, KernelReport, LAYOUTS, LayerOptions, LayerSpec, PTR, PrepareOptions, RouteArgs, RouterGradientArgs,
                      RouterGradientSpec, RouterProductGradientArgs, RouterSpec, RouterStatisticsArgs, RouterStatisticsSpec, RowsByExpert, SIZE,
                      STORAGES, STR, SlotRowsArgs, Struct, TrainingOptions, UpArgs, Weights)
from .tensors import address, contiguous, element, expert_weights, host_buffer, host_copy, length, require, rows, scratch, stream_of
from .handle import Call, Handle, VarmoeError
from .layer import AnyLayer, Layer
from .training import TrainingLayer
from .blocks import Blocks
from .router import BlockAligner, Router, RouterGradient, RouterStatistics
from .engine import Engine
from .library import CPU, Library, find_library
