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
    blocks.up_call(rows, x_rows, h)()

What serves as a tensor: torch tensors, numpy arrays, array.array, ctypes arrays, anything with the buffer interface, and plain addresses (int). Where
it says its shape, element type and strides, they are checked; else the library takes the address at its word, and `tokens` must be given.
bf16 has no name in numpy and array.array: give 16-bit integers (uint16, "H").

Each call that fails raises VarmoeError with the library's sentence. Objects free themselves; close() or `with` does so at a time of your choice.
Keep an engine as long as forwards run and captured graphs of its layers are used.
"""
import ctypes as c
import pathlib

CPU = -1


class VarmoeError(RuntimeError):
    """A call that failed: `code` is one of VARMOE_E_*, `name` its name ("not_prepared"), the text the library's sentence."""

    def __init__(self, code, name, sentence):
        super().__init__(sentence or name)
        self.code, self.name = code, name


# Enumerators by name, in the order of their numbers.
DTYPES = ("bf16", "fp16")
ACTIVATIONS = ("silu_mul", "gelu_tanh_mul", "gelu_erf_mul", "swiglu_oai", "silu", "gelu_tanh", "gelu_erf", "relu", "relu2", "identity")
LAYOUTS = ("nk", "kn")
GATE_ORDERS = ("first", "up_first", "interleaved")
STORAGES = ("blocks", "padded", "packed", "packed_joint", "pointers", "experts")
ELEMENTS = ("fp32", "bf16", "fp16")
ENUMERATORS = {
    "activation": ACTIVATIONS, "dtype": DTYPES, "fc1_layout": LAYOUTS, "fc2_layout": LAYOUTS, "gate_order": GATE_ORDERS,
    "cache_mode": ("rw", "ro", "off"), "jit": ("on", "cached_only"), "tune": ("replay", "off", "online"), "storage": STORAGES,
    "logit_type": ELEMENTS, "scoring": ("softmax", "sigmoid"), "order": ("before_top_k", "after_top_k"), "group_score": ("max", "top2_sum"),
    "outside_groups": ("never", "as_zero"), "input_type": DTYPES, "weight_type": ELEMENTS, "dlogit_type": ELEMENTS, "dweight_type": ELEMENTS,
    "layout": ("offsets", "counts", "batched", "aligned_blocks"), "index_type": ("int32", "int64"), "map_to": ("slots", "tokens"),
    "absent_tokens": ("write_zeros", "untouched"), "id_type": ("int32", "int64"), "gradient_type": ("layer_dtype", "fp32"),
}

PTR, I32, I64, F32, F64, SIZE, STR = c.c_void_p, c.c_int32, c.c_int64, c.c_float, c.c_double, c.c_size_t, c.c_char_p


class Struct(c.Structure):
    """A struct of varmoe.h; `c_name` is its name there. A newer library's may have grown further members: they keep their defaults."""
    c_name = ""

    def assign(self, values):
        """Sets members by name; an enumerator by its name or number, strings as text."""
        kinds = dict(self._fields_)
        for name, value in values.items():
            if name not in kinds or name == "struct_size":
                known = ", ".join(n for n in kinds if n not in ("struct_size", "reserved"))
                raise TypeError(f"{self.c_name} has no member {name}: its members are {known}")
            if isinstance(value, str) and kinds[name] is not STR:
                names = ENUMERATORS.get(name, ())
                if value not in names:
                    raise ValueError(f"{self.c_name}: {name} = {value!r}: must be one of {', '.join(names)}" if names else
                                     f"{self.c_name}: {name} = {value!r}: must be a number")
                value = names.index(value)
            setattr(self, name, value.encode() if isinstance(value, str) else value)


class EngineOptions(Struct):
    c_name = "varmoe_engine_options"
    _fields_ = [("struct_size", SIZE), ("device", I32), ("cache_mode", I32), ("jit", I32), ("compile_threads", I32), ("cpu_threads", I32),
                ("cache_max_bytes", I64), ("cache_dir", STR), ("cubin_path", PTR), ("cubin_path_count", SIZE), ("nvrtc_lib", STR), ("dump_dir", STR),
                ("fc1_config", STR), ("fc2_config", STR), ("log", PTR), ("log_user", PTR), ("tuning_db", PTR), ("tuning_db_count", SIZE), ("tune", I32),
                ("dh_config", STR), ("dx_config", STR), ("dw1_config", STR), ("dw2_config", STR)]


class LayerSpec(Struct):
    c_name = "varmoe_layer_spec"
    _fields_ = [("struct_size", SIZE), ("hidden_size", I64), ("expert_widths", c.POINTER(I64)), ("num_experts", SIZE), ("top_k", I64),
                ("activation", I32), ("dtype", I32), ("fc1_layout", I32), ("fc2_layout", I32), ("gate_order", I32), ("batch_invariant", I32),
                ("alpha", F32), ("limit", F32), ("shared_widths", c.POINTER(I64)), ("num_shared", SIZE), ("shared_gate", I32), ("bias", I32),
                ("weight_on_input", I32), ("reserved", I32)]


class LayerOptions(Struct):
    c_name = "varmoe_layer_options"
    _fields_ = [("struct_size", SIZE), ("max_workspace_bytes", SIZE), ("max_sms", I32), ("reserved", I32)]


class PrepareOptions(Struct):
    c_name = "varmoe_prepare_options"
    _fields_ = [("struct_size", SIZE), ("tokens", c.POINTER(I64)), ("token_count", SIZE), ("min_tokens", I64), ("max_tokens", I64), ("progress", PTR),
                ("progress_user", PTR)]


class ExpertWeights(Struct):
    """An array element: no struct_size. Pointers are addresses; strides in elements."""
    c_name = "varmoe_expert_weights"
    _fields_ = [("gate", PTR), ("up", PTR), ("down", PTR), ("fc1_stride", I64), ("fc2_stride", I64)]


class ExpertBiases(Struct):
    """An array element, as ExpertWeights."""
    c_name = "varmoe_expert_biases"
    _fields_ = [("gate", PTR), ("up", PTR), ("down", PTR), ("fc1_stride", I64)]


class Weights(Struct):
    c_name = "varmoe_weights"
    _fields_ = [("struct_size", SIZE), ("storage", I32), ("reserved", I32), ("fc1", PTR), ("fc2", PTR), ("gate", PTR), ("up", PTR),
                ("padded_width", I64), ("fc1_pointers", c.POINTER(PTR)), ("fc2_pointers", c.POINTER(PTR)), ("fc1_stride", I64), ("fc2_stride", I64),
                ("experts", PTR), ("num_experts", SIZE), ("shared_fc1", PTR), ("shared_fc2", PTR), ("shared_fc1_pointers", c.POINTER(PTR)),
                ("shared_fc2_pointers", c.POINTER(PTR)), ("shared_experts", PTR), ("num_shared", SIZE), ("shared_gate", PTR), ("fc1_bias", PTR),
                ("fc2_bias", PTR), ("fc1_bias_pointers", c.POINTER(PTR)), ("fc2_bias_pointers", c.POINTER(PTR)), ("expert_biases", PTR)]


class ForwardArgs(Struct):
    c_name = "varmoe_forward_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("x", PTR), ("x_stride", I64), ("topk_ids", PTR), ("topk_weights", PTR), ("out", PTR),
                ("out_stride", I64), ("id_type", I32), ("accumulate", I32), ("token_count", PTR), ("workspace", PTR), ("workspace_bytes", SIZE),
                ("stream", PTR), ("expert_map", PTR), ("num_global_experts", I64), ("absent_tokens", I32), ("reserved", I32)]


class UpArgs(Struct):
    c_name = "varmoe_up_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("x", PTR), ("x_stride", I64), ("topk_ids", PTR), ("h", PTR), ("h_stride", I64),
                ("expert_offsets", PTR), ("slot_row", PTR), ("id_type", I32), ("reserved", I32), ("token_count", PTR), ("workspace", PTR),
                ("workspace_bytes", SIZE), ("stream", PTR)]


class BlocksOptions(Struct):
    c_name = "varmoe_blocks_options"
    _fields_ = [("struct_size", SIZE), ("max_sms", I32), ("weighted_down", I32), ("training", I32), ("gradient_type", I32)]


class RowsByExpert(Struct):
    c_name = "varmoe_rows_by_expert"
    _fields_ = [("struct_size", SIZE), ("rows", I64), ("layout", I32), ("index_type", I32), ("expert_offsets", PTR), ("expert_counts", PTR),
                ("multiple", I64), ("sorted_token_ids", PTR), ("expert_ids", PTR), ("num_tokens_post_pad", PTR), ("routed_rows", I64)]


class GatherArgs(Struct):
    c_name = "varmoe_gather_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("x", PTR), ("x_stride", I64), ("rows", I64), ("row_map", PTR), ("row_count", PTR), ("out", PTR),
                ("stream", PTR), ("map_to", I32), ("reserved", I32)]


class SlotRowsArgs(Struct):
    c_name = "varmoe_slot_rows_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("rows", I64), ("row_map", PTR), ("row_count", PTR), ("slot_row", PTR), ("stream", PTR)]


class GroupedUpArgs(Struct):
    c_name = "varmoe_grouped_up_args"
    _fields_ = [("struct_size", SIZE), ("by_expert", PTR), ("x", PTR), ("x_stride", I64), ("row_weights", PTR), ("h", PTR), ("h_stride", I64),
                ("workspace", PTR), ("workspace_bytes", SIZE), ("stream", PTR), ("z", PTR), ("z_stride", I64)]


class GroupedDownBackwardArgs(Struct):
    c_name = "varmoe_grouped_down_backward_args"
    _fields_ = [("struct_size", SIZE), ("by_expert", PTR), ("dy", PTR), ("dy_stride", I64), ("h", PTR), ("h_stride", I64), ("z", PTR), ("z_stride", I64),
                ("row_weights", PTR), ("dh", PTR), ("dz", PTR), ("drow_weights", PTR), ("weight_gradients", I32), ("accumulate_weight_gradients", I32),
                ("workspace", PTR), ("workspace_bytes", SIZE), ("stream", PTR)]


class GroupedUpBackwardArgs(Struct):
    c_name = "varmoe_grouped_up_backward_args"
    _fields_ = [("struct_size", SIZE), ("by_expert", PTR), ("x", PTR), ("x_stride", I64), ("z", PTR), ("z_stride", I64), ("dh", PTR), ("dh_stride", I64),
                ("row_weights", PTR), ("dz", PTR), ("dx", PTR), ("drow_weights", PTR), ("weight_gradients", I32), ("accumulate_weight_gradients", I32),
                ("workspace", PTR), ("workspace_bytes", SIZE), ("stream", PTR)]


class GroupedDownArgs(Struct):
    c_name = "varmoe_grouped_down_args"
    _fields_ = [("struct_size", SIZE), ("by_expert", PTR), ("h", PTR), ("h_stride", I64), ("row_weights", PTR), ("y", PTR), ("workspace", PTR),
                ("workspace_bytes", SIZE), ("stream", PTR)]


class CombineArgs(Struct):
    c_name = "varmoe_combine_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("rows", I64), ("y", PTR), ("slot_row", PTR), ("topk_weights", PTR), ("shared_weights", PTR),
                ("out", PTR), ("out_stride", I64), ("accumulate", I32), ("absent_tokens", I32), ("token_count", PTR), ("stream", PTR)]


class CombineBackwardArgs(Struct):
    c_name = "varmoe_combine_backward_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("rows", I64), ("dout", PTR), ("dout_stride", I64), ("slot_row", PTR), ("topk_weights", PTR),
                ("shared_weights", PTR), ("y", PTR), ("dy", PTR), ("dtopk_weights", PTR), ("dshared_weights", PTR), ("token_count", PTR), ("stream", PTR)]


class TrainingOptions(Struct):
    c_name = "varmoe_training_options"
    _fields_ = [("struct_size", SIZE), ("save_preactivation", I32), ("gradient_type", I32), ("max_sms", I32), ("reserved", I32)]


class BackwardArgs(Struct):
    c_name = "varmoe_backward_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("x", PTR), ("x_stride", I64), ("topk_ids", PTR), ("topk_weights", PTR), ("dout", PTR),
                ("dout_stride", I64), ("saved", PTR), ("saved_bytes", SIZE), ("dx", PTR), ("dx_stride", I64), ("dtopk_weights", PTR), ("id_type", I32),
                ("weight_gradients", I32), ("accumulate_weight_gradients", I32), ("accumulate_dx", I32), ("token_count", PTR), ("expert_map", PTR),
                ("num_global_experts", I64), ("workspace", PTR), ("workspace_bytes", SIZE), ("stream", PTR)]


class RouterSpec(Struct):
    c_name = "varmoe_router_spec"
    _fields_ = [("struct_size", SIZE), ("num_experts", I64), ("top_k", I64), ("logit_type", I32), ("scoring", I32), ("order", I32),
                ("renormalize", I32), ("epsilon", F32), ("scaling_factor", F32), ("correction_bias", I32), ("group_score", I32), ("num_groups", I64),
                ("top_groups", I64), ("outside_groups", I32), ("weight_on_input", I32), ("hidden_size", I64), ("input_type", I32), ("weight_type", I32),
                ("logit_bias", I32)]


class RouteArgs(Struct):
    c_name = "varmoe_route_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("logits", PTR), ("logit_stride", I64), ("correction_bias", PTR), ("topk_ids", PTR),
                ("topk_weights", PTR), ("scores", PTR), ("token_count", PTR), ("stream", PTR), ("x", PTR), ("x_stride", I64), ("weight", PTR),
                ("weight_stride", I64), ("logit_bias", PTR), ("logits_out", PTR), ("workspace", PTR), ("workspace_bytes", SIZE)]


class RouterStatisticsSpec(Struct):
    c_name = "varmoe_router_statistics_spec"
    _fields_ = [("struct_size", SIZE), ("num_experts", I64), ("top_k", I64), ("logit_type", I32), ("scoring", I32)]


class RouterStatisticsArgs(Struct):
    c_name = "varmoe_router_statistics_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("logits", PTR), ("logit_stride", I64), ("topk_ids", PTR), ("id_type", I32), ("reserved", I32),
                ("expert_widths", PTR), ("tokens_per_expert", PTR), ("mean_scores", PTR), ("losses", PTR), ("token_count", PTR), ("workspace", PTR),
                ("workspace_bytes", SIZE), ("stream", PTR)]


class RouterGradientSpec(Struct):
    c_name = "varmoe_router_gradient_spec"
    _fields_ = [("struct_size", SIZE), ("router", PTR), ("losses", I32), ("dlogit_type", I32), ("dweight_type", I32), ("reserved", I32)]


class RouterGradientArgs(Struct):
    c_name = "varmoe_router_gradient_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("logits", PTR), ("logit_stride", I64), ("topk_ids", PTR), ("dtopk_weights", PTR),
                ("dlogits", PTR), ("dlogit_stride", I64), ("id_type", I32), ("z_coefficient", F32), ("load_balance_coefficient", F32),
                ("group_balance_coefficient", F32), ("compute_coefficient", F32), ("reserved", I32), ("loss_tokens", I64), ("tokens_per_expert", PTR),
                ("mean_scores", PTR), ("expert_widths", PTR), ("token_count", PTR), ("workspace", PTR), ("workspace_bytes", SIZE), ("stream", PTR)]


class RouterProductGradientArgs(Struct):
    c_name = "varmoe_router_product_gradient_args"
    _fields_ = [("struct_size", SIZE), ("tokens", I64), ("dlogits", PTR), ("dlogit_stride", I64), ("x", PTR), ("x_stride", I64), ("weight", PTR),
                ("weight_stride", I64), ("dx", PTR), ("dx_stride", I64), ("dweight", PTR), ("dweight_stride", I64), ("dlogit_bias", PTR),
                ("accumulate_dx", I32), ("accumulate_weight", I32), ("token_count", PTR), ("stream", PTR)]


class AlignSpec(Struct):
    c_name = "varmoe_align_spec"
    _fields_ = [("struct_size", SIZE), ("num_experts", I64), ("block_size", I64)]


class AlignArgs(Struct):
    c_name = "varmoe_align_args"
    _fields_ = [("struct_size", SIZE), ("rows", I64), ("topk_ids", PTR), ("id_type", I32), ("reserved", I32), ("sorted_token_ids", PTR),
                ("sorted_size", I64), ("expert_ids", PTR), ("num_tokens_post_pad", PTR), ("workspace", PTR), ("workspace_bytes", SIZE), ("stream", PTR)]


class Counters(Struct):
    c_name = "varmoe_counters"
    _fields_ = [("struct_size", SIZE)] + [(name, c.c_uint64) for name in (
        "cache_hits", "cache_misses", "compiles", "kernels_loaded", "module_bytes", "forwards", "configs_override", "configs_tuned", "configs_predicted")]


class KernelReport(Struct):
    c_name = "varmoe_kernel_report"
    _fields_ = [("struct_size", SIZE), ("stage", STR), ("name", STR), ("key", STR), ("config", STR), ("origin", STR), ("error", STR),
                ("token_buckets", c.POINTER(I64)), ("token_bucket_count", SIZE), ("config_source", I32), ("runtime_width", I32), ("hit", I32),
                ("registers", I32), ("spill_bytes", I32), ("static_smem_bytes", I32), ("dynamic_smem_bytes", I32), ("reserved", I32), ("compile_ms", F64)]


# Tensors.

def address(tensor):
    """Where a tensor's first element lies; None for None."""
    if tensor is None or isinstance(tensor, int):
        return tensor
    if hasattr(tensor, "data_ptr"):
        return tensor.data_ptr()
    if hasattr(tensor, "__array_interface__"):
        return tensor.__array_interface__["data"][0]
    if hasattr(tensor, "buffer_info"):
        return tensor.buffer_info()[0]
    if isinstance(tensor, (c.Array, c._SimpleCData, c.Structure)):
        return c.addressof(tensor)
    view = memoryview(tensor)
    return c.addressof((c.c_char * view.nbytes).from_buffer(view)) if view.nbytes else None


def element(tensor):
    """"bf16", "fp16", "fp32", "int32", "int64", or "" where the tensor does not say so."""
    names = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32", "int32": "int32", "int64": "int64", "long": "int64"}
    if hasattr(tensor, "dtype"):
        return names.get(str(tensor.dtype).removeprefix("torch."), "")
    return {"f": "fp32", "i": "int32", "q": "int64"}.get(getattr(tensor, "typecode", ""), "")


def rows(tensor, name, columns):
    """(rows, elements between rows) of a [T, columns] tensor; None where it has no shape."""
    shape = getattr(tensor, "shape", None)
    if shape is None:
        return None
    if len(shape) != 2 or shape[1] != columns:
        raise ValueError(f"{name} has the shape {tuple(shape)}: must be [T, {columns}]")
    strides = tensor.stride() if callable(getattr(tensor, "stride", None)) else [s // tensor.itemsize for s in tensor.strides]
    if columns > 1 and strides[1] != 1:
        raise ValueError(f"{name} has a stride of {strides[1]} elements between columns: must be 1")
    if shape[0] > 1 and strides[0] < columns:
        raise ValueError(f"{name} has {strides[0]} elements between rows: must be at least {columns}")
    return int(shape[0]), int(strides[0]) if shape[0] > 1 else columns


def require(tensor, name, allowed):
    """Its element type is of `allowed`, where it says so."""
    kind = element(tensor)
    if kind and kind not in allowed:
        raise ValueError(f"{name} is {kind}: must be {' or '.join(allowed)}")
    return kind


def length(tensor):
    """Elements of a tensor; None where it does not say so."""
    if hasattr(tensor, "numel"):
        return tensor.numel()
    return tensor.size if hasattr(tensor, "size") else len(tensor) if hasattr(tensor, "__len__") else None


def contiguous(tensor, name, columns, tokens):
    """A [T, columns] tensor without gaps between rows, of at least `tokens` where that is given; its T, or None where it has no shape."""
    shape = rows(tensor, name, columns)
    if shape is None:
        return None
    if shape[1] != columns:
        raise ValueError(f"{name} has {shape[1]} elements between rows: must be contiguous")
    if tokens is not None and shape[0] < tokens:
        raise ValueError(f"{name} has {shape[0]} rows: must have {tokens}")
    return shape[0]


def expert_weights(experts, name, dtype):
    """varmoe_expert_weights of a list of (gate, up, down), tensors that say their shapes; gate is None where the activation has none."""
    array = (ExpertWeights * len(experts))()
    for i, (one, matrices) in enumerate(zip(array, experts)):
        for member, tensor in zip(("gate", "up", "down"), matrices):
            if tensor is None:
                continue
            where = f"{name}[{i}].{member}"
            require(tensor, where, (dtype,))
            if len(getattr(tensor, "shape", ())) != 2:
                raise ValueError(f"{where} must have a shape of two dimensions: give an array of ExpertWeights where it has none")
            stride, kept = rows(tensor, where, tensor.shape[1])[1], "fc2_stride" if member == "down" else "fc1_stride"
            if getattr(one, kept) not in (0, stride):
                raise ValueError(f"{where} has {stride} elements between rows: must have as many as the gate, {getattr(one, kept)}")
            setattr(one, kept, stride)
            setattr(one, member, address(tensor))
    return array


def host_buffer(size, alignment=256):
    """`size` bytes of host memory at an aligned address, as a ctypes array."""
    raw = (c.c_uint8 * (size + alignment))()
    return (c.c_uint8 * size).from_buffer(raw, -c.addressof(raw) % alignment)


def host_copy(values, alignment=256):
    """The bytes of an array in host memory at an aligned address, as a ctypes array."""
    given = memoryview(values).cast("B")
    copy = host_buffer(given.nbytes, alignment)
    memoryview(copy).cast("B")[:] = given
    return copy


def stream_of(tensor):
    """torch's current stream of a tensor on a GPU; else null, the legacy default stream."""
    if getattr(getattr(tensor, "device", None), "type", "") != "cuda":
        return None
    import torch
    return torch.cuda.current_stream(tensor.device).cuda_stream


def scratch(tensor, size):
    """Workspace where the tensor lies: a torch tensor on its GPU, else host memory."""
    if getattr(getattr(tensor, "device", None), "type", "") == "cuda":
        import torch
        return torch.empty(max(size, 1), dtype=torch.uint8, device=tensor.device)
    return host_buffer(max(size, 1))


# Objects.

class Handle:
    """One object of the library and what destroys it."""
    destroy = ""

    def __init__(self, library, pointer, *keeps):
        self.library, self.pointer, self.keeps = library, pointer, list(keeps)

    def close(self):
        if self.pointer:
            getattr(self.library.lib, self.destroy)(self.pointer)
            self.pointer = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        try:
            self.close()
        except (AttributeError, TypeError):  # the interpreter is shutting down
            pass


class Call:
    """Arguments set up once, for loops and graph captures: call() enqueues on `stream`, None being torch's current stream where x lies on a GPU."""

    def __init__(self, handle, function, args, tensor, keeps, *more):
        self.handle, self.function, self.args, self.tensor, self.keeps, self.more = handle, function, args, tensor, keeps, more

    def __call__(self, stream=None):
        self.args.stream = stream if stream is not None else stream_of(self.tensor)
        self.handle.library.check(self.function(self.handle.pointer, c.byref(self.args), *self.more))


class AnyLayer(Handle):
    """What layers with and without a backward pass have in common; `prefix`: that of their functions."""
    prefix = ""

    def __init__(self, library, pointer, engine, spec):
        super().__init__(library, pointer, engine)
        self.hidden, self.top_k, self.experts, self.shared = spec.hidden_size, spec.top_k, spec.num_experts, spec.num_shared
        self.dtype = DTYPES[spec.dtype]
        # What up_call's h needs: rows per token, and the least elements between rows.
        self.up_slots = self.top_k + self.shared
        self.up_stride = (max(spec.expert_widths[:self.experts] + spec.shared_widths[:self.shared]) + 63) // 64 * 64

    def prepare(self, tokens=None):
        """Compiles or loads the kernels for these token counts; None: all of 1 … 4096. Returns the list of kernels' names and origins."""
        return self.library.prepare(self.prefix + "_prepare", self.pointer, tokens)

    def bind(self, fc1=None, fc2=None, storage="blocks", **members):
        """Where the weights lie; members are those of varmoe_weights: fc1_bias, fc2_bias, shared_fc1, shared_fc2, shared_gate, gate, up, padded_width,
        fc1_stride, … With storage "pointers" fc1, fc2 and their biases are lists of one tensor per expert; shared_fc1 and shared_fc2 may be lists with
        every storage. experts and shared_experts: lists of (gate, up, down), or arrays of ExpertWeights; expert_biases: an array of ExpertBiases."""
        weights, keeps = self.described(self.dtype, storage, {"fc1": fc1, "fc2": fc2, **members})
        self.library.check(getattr(self.library.lib, self.prefix + "_bind")(self.pointer, c.byref(weights)))
        self.bound = keeps

    def described(self, dtype, storage, members):
        """varmoe_weights of what bind is given, and what must be kept as long as they are bound."""
        weights = self.library.made(Weights)
        kinds = dict(Weights._fields_)
        values = {"storage": storage, "num_experts": self.experts, "num_shared": self.shared}
        keeps = list(members.values())
        for name, given in members.items():
            own = name.startswith("shared_")
            if name in ("experts", "shared_experts") and isinstance(given, (list, tuple)):
                given = expert_weights(given, name, dtype)
                keeps.append(given)
            listed = isinstance(given, (list, tuple)) if own else storage == "pointers" and given is not None
            if listed and name + "_pointers" in kinds:
                count = self.shared if own else self.experts
                if len(given) != count:
                    raise ValueError(f"{name} lists {len(given)} tensors: must be {count}")
                for one in given:
                    require(one, name, (dtype,))
                values[name + "_pointers"] = (PTR * count)(*map(address, given))
            elif kinds.get(name) is PTR:
                require(given, name, (dtype,))
                values[name] = address(given)
            else:
                values[name] = given
        weights.assign(values)
        return weights, keeps

    def workspace_bytes(self, tokens):
        return self.library.size(self.prefix + "_workspace_bytes", self.pointer, tokens)

    def routed(self, args, topk_ids, tokens, expert_map, **slots):
        """Checks ids, tensors with one fp32 number for each, and an expert map, and sets all but the ids; the number of tokens."""
        for name, tensor in {"topk_ids": topk_ids, **slots}.items():
            require(tensor, name, ("int32", "int64") if name == "topk_ids" else ("fp32",))
            held = contiguous(tensor, name, self.top_k, tokens)
            tokens = held if tokens is None else tokens
        if expert_map is not None:
            require(expert_map, "expert_map", ("int32",))
            args.num_global_experts = length(expert_map) or 0
        args.assign({"expert_map": address(expert_map), **{name: address(tensor) for name, tensor in slots.items()}})
        return tokens

    def call(self, x, topk_ids, topk_weights, out, tokens=None, accumulate=False, token_count=None, id_type=None, workspace=None, expert_map=None,
             absent_tokens="write_zeros"):
        """A forward's arguments as a Call. Without `workspace` (256-byte aligned, at least workspace_bytes(tokens)) it owns one. expert_map: int32, the
        layer's expert of each id, for topk_ids that name experts of the whole model; absent_tokens: "untouched" leaves rows of `out` without experts."""
        args = self.library.made(ForwardArgs)
        for tensor, name in ((x, "x"), (out, "out")):
            tokens = self.hidden_rows(args, tensor, name, tokens)
        tokens = self.routed(args, topk_ids, tokens, expert_map, topk_weights=topk_weights)
        args.assign({"out": address(out), "accumulate": int(accumulate), "absent_tokens": absent_tokens})
        return self.finished(args, self.prefix + "_forward", x, topk_ids, tokens, token_count, id_type, workspace, (topk_weights, out, expert_map))

    def hidden_rows(self, args, tensor, name, tokens):
        """Checks x, out or a gradient of theirs and sets its stride; the number of tokens, by this tensor where it was not known."""
        require(tensor, name, (self.dtype,))
        shape = rows(tensor, name, self.hidden)
        if shape is None:
            return tokens
        if tokens is not None and shape[0] < tokens:
            raise ValueError(f"{name} has {shape[0]} rows: must have {tokens}")
        setattr(args, name + "_stride", shape[1])
        return shape[0] if tokens is None else tokens

    def finished(self, args, function, x, topk_ids, tokens, token_count, id_type, workspace, keeps):
        """What all calls have in common."""
        if tokens is None:
            raise TypeError("tokens must be given where no tensor has a shape")
        size = self.workspace_bytes(tokens)
        workspace = scratch(x, size) if workspace is None else workspace
        args.assign({"tokens": tokens, "x": address(x), "topk_ids": address(topk_ids), "id_type": id_type or element(topk_ids) or "int32",
                     "token_count": address(token_count), "workspace": address(workspace), "workspace_bytes": size})
        return Call(self, getattr(self.library.lib, function), args, x, (x, topk_ids, token_count, workspace, *keeps))


class Layer(AnyLayer):
    destroy, prefix = "varmoe_layer_destroy", "varmoe_layer"

    def forward(self, x, topk_ids, topk_weights, out, stream=None, **more):
        """x, out [T, H]; topk_ids int32 or int64 [T, k]; topk_weights fp32 [T, k]. On a GPU the workspace it makes lives as long as torch's
        allocator says; make a Call, or give one, where other streams are in play."""
        self.call(x, topk_ids, topk_weights, out, **more)(stream)
        return out

    def up_call(self, x, topk_ids, h, expert_offsets, slot_row, tokens=None, token_count=None, id_type=None, workspace=None):
        """The up-projection alone as a Call: h [T · up_slots, at least up_stride] gets rows by expert, int32 expert_offsets [E + S + 1] where each expert's
        begin, int32 slot_row [T, up_slots] each slot's row or −1; S shared experts count as the last experts and slots."""
        args = self.library.made(UpArgs)
        tokens = self.hidden_rows(args, x, "x", tokens)
        require(topk_ids, "topk_ids", ("int32", "int64"))
        held = contiguous(topk_ids, "topk_ids", self.top_k, tokens)
        tokens = held if tokens is None else tokens
        require(slot_row, "slot_row", ("int32",))
        contiguous(slot_row, "slot_row", self.up_slots, tokens)
        require(expert_offsets, "expert_offsets", ("int32",))
        require(h, "h", (self.dtype,))
        least = self.experts + self.shared + 1
        if getattr(expert_offsets, "shape", None) is not None and length(expert_offsets) < least:
            raise ValueError(f"expert_offsets has {length(expert_offsets)} elements: must have {least}")
        shape = rows(h, "h", h.shape[-1]) if getattr(h, "shape", None) is not None else None
        if shape is not None:
            args.h_stride = shape[1]
            if tokens is not None and shape[0] < tokens * self.up_slots:
                raise ValueError(f"h has {shape[0]} rows: must have {tokens * self.up_slots}")
        args.assign({"h": address(h), "expert_offsets": address(expert_offsets), "slot_row": address(slot_row)})
        return self.finished(args, "varmoe_layer_up", x, topk_ids, tokens, token_count, id_type, workspace, (h, expert_offsets, slot_row))


class Learns:
    """Of what has gradients of weights."""

    def of_gradients(self, gradient_type):
        self.gradient_dtype = "fp32" if gradient_type == "fp32" else self.dtype

    def bind_gradients(self, fc1=None, fc2=None, storage="blocks", **members):
        """Where backward writes the gradients: members as of bind, of tensors whose elements are of gradient_dtype; they may be stored otherwise
        than the weights."""
        gradients, keeps = self.described(self.gradient_dtype, storage, {"fc1": fc1, "fc2": fc2, **members})
        self.library.check(getattr(self.library.lib, self.prefix + "_bind_gradients")(self.pointer, c.byref(gradients)))
        self.bound_gradients = keeps


class TrainingLayer(Learns, AnyLayer):
    """A layer with its backward pass: varmoe/training.hpp."""
    destroy, prefix = "varmoe_training_layer_destroy", "varmoe_training_layer"

    def __init__(self, library, pointer, engine, spec, gradient_type):
        super().__init__(library, pointer, engine, spec)
        self.of_gradients(gradient_type)

    def saved_bytes(self, tokens):
        return self.library.size("varmoe_training_layer_saved_bytes", self.pointer, tokens)

    def call(self, x, topk_ids, topk_weights, out, saved=None, **more):
        """A forward's arguments as a Call, `more` as of Layer.call; call.saved goes to the backward. Without `saved` (256-byte aligned, at least
        saved_bytes(tokens)) it makes one."""
        call = super().call(x, topk_ids, topk_weights, out, **more)
        size = self.saved_bytes(call.args.tokens)
        call.saved = saved if saved is not None or size == 0 else scratch(x, size)
        call.more = PTR(address(call.saved)), SIZE(size)
        return call

    def backward_call(self, x, topk_ids, topk_weights, dout, saved, dx=None, dtopk_weights=None, tokens=None, weight_gradients=True,
                      accumulate_weight_gradients=False, accumulate_dx=False, token_count=None, id_type=None, workspace=None, expert_map=None):
        """A backward's arguments as a Call: what forward was given, dout [T, H], and where dx [T, H] and fp32 dtopk_weights [T, k] go (None: not computed)."""
        args = self.library.made(BackwardArgs)
        for tensor, name in ((x, "x"), (dout, "dout"), (dx, "dx")):
            tokens = self.hidden_rows(args, tensor, name, tokens)
        slots = {"topk_weights": topk_weights} if dtopk_weights is None else {"topk_weights": topk_weights, "dtopk_weights": dtopk_weights}
        tokens = self.routed(args, topk_ids, tokens, expert_map, **slots)
        if tokens is None:
            raise TypeError("tokens must be given where no tensor has a shape")
        args.assign({"dout": address(dout), "dx": address(dx), "saved": address(saved), "saved_bytes": self.saved_bytes(tokens),
                     "weight_gradients": int(weight_gradients), "accumulate_weight_gradients": int(accumulate_weight_gradients),
                     "accumulate_dx": int(accumulate_dx)})
        return self.finished(args, "varmoe_training_layer_backward", x, topk_ids, tokens, token_count, id_type, workspace,
                             (topk_weights, dout, saved, dx, dtopk_weights, expert_map))

    def forward(self, x, topk_ids, topk_weights, out, stream=None, **more):
        """As Layer.forward; returns what backward needs, None where that is nothing."""
        call = self.call(x, topk_ids, topk_weights, out, **more)
        call(stream)
        return call.saved

    def backward(self, x, topk_ids, topk_weights, dout, saved, stream=None, **more):
        """Writes dx, dtopk_weights and what bind_gradients named; `more` as of backward_call."""
        self.backward_call(x, topk_ids, topk_weights, dout, saved, **more)(stream)


class Blocks(Learns, AnyLayer):
    """A layer's parts, each usable alone: varmoe/blocks.hpp. Every …_call gives a Call."""
    destroy, prefix = "varmoe_blocks_destroy", "varmoe_blocks"

    def __init__(self, library, pointer, engine, spec, gradient_type="layer_dtype"):
        super().__init__(library, pointer, engine, spec)
        self.of_gradients(gradient_type)
        # The least elements between rows of z and dz: gate and up.
        self.z_stride = self.up_stride * (2 if spec.activation < 4 else 1)

    def by_expert(self, rows, layout="offsets", **members):
        """Which of a batch's rows are which expert's, as up and down take it; members: those of varmoe_rows_by_expert that the layout names, int32 or
        int64 tensors of expert_offsets [E + 1] and expert_counts [E], int32 sorted_token_ids, expert_ids and num_tokens_post_pad, multiple, routed_rows."""
        by = self.library.made(RowsByExpert)
        by.tensors = dict(members)  # and keeps them
        for name, given in list(members.items()):
            if dict(RowsByExpert._fields_).get(name) is PTR:
                counted = name in ("expert_offsets", "expert_counts")
                kind = require(given, name, ("int32", "int64") if counted else ("int32",))
                if counted and kind:
                    members.setdefault("index_type", kind)
        by.assign({"rows": rows, "layout": layout, **{n: address(v) if dict(RowsByExpert._fields_).get(n) is PTR else v for n, v in members.items()}})
        return by

    def of_hidden(self, args, tensor, name, least, stride=None):
        """Checks a [rows, H] tensor of at least `least` rows; sets its stride where it may have one, else it must be contiguous."""
        require(tensor, name, (self.dtype,))
        shape = rows(tensor, name, self.hidden)
        if shape is None:
            return
        if shape[0] < least:
            raise ValueError(f"{name} has {shape[0]} rows: must have {least}")
        if stride is not None:
            setattr(args, stride, shape[1])
        elif shape[1] != self.hidden and least > 1:
            raise ValueError(f"{name} has {shape[1]} elements between rows: must be contiguous")

    def made_call(self, function, args, tensor, keeps, **members):
        for name, given in members.items():
            kind = dict(args._fields_)[name]
            if kind is PTR:
                require(given, name, ("fp32",) if "weights" in name else ("int32",) if name in ("row_map", "row_count", "slot_row", "token_count") else (self.dtype,))
        args.assign({n: address(v) if dict(args._fields_)[n] is PTR else v for n, v in members.items()})
        return Call(self, getattr(self.library.lib, "varmoe_blocks_" + function), args, tensor, (tensor, keeps, *members.values()))

    def gather_call(self, x, row_map, out, tokens, rows, map_to="slots", row_count=None):
        """out[r] = x[token of row_map[r]]: x [tokens, H], int32 row_map [rows], out [rows, H]."""
        args = self.library.made(GatherArgs)
        self.of_hidden(args, x, "x", tokens, "x_stride")
        self.of_hidden(args, out, "out", rows)
        return self.made_call("gather", args, x, (), x=x, row_map=row_map, out=out, tokens=tokens, rows=rows, map_to=map_to, row_count=row_count)

    def slot_rows_call(self, row_map, slot_row, tokens, rows, row_count=None):
        """The inverse of a row map of slots: int32 slot_row [tokens, k + S]."""
        args = self.library.made(SlotRowsArgs)
        return self.made_call("slot_rows", args, slot_row, (), row_map=row_map, slot_row=slot_row, tokens=tokens, rows=rows, row_count=row_count)

    def up_call(self, by_expert, x, h, row_weights=None, workspace=None, z=None):
        """h [rows, at least up_stride] of x [rows, H]; z [rows, at least z_stride], of blocks that learn: gets what the backward passes need."""
        args = self.library.made(GroupedUpArgs)
        self.of_hidden(args, x, "x", by_expert.rows, "x_stride")
        self.of_h(args, h, by_expert.rows)
        self.of_h(args, z, by_expert.rows, "z", "z_stride")
        return self.grouped("up", args, by_expert, x, workspace, x=x, h=h, row_weights=row_weights, z=z)

    def down_call(self, by_expert, h, y, row_weights=None, workspace=None):
        """y [rows, H] of h [rows, …]."""
        args = self.library.made(GroupedDownArgs)
        self.of_h(args, h, by_expert.rows)
        self.of_hidden(args, y, "y", by_expert.rows)
        return self.grouped("down", args, by_expert, h, workspace, h=h, y=y, row_weights=row_weights)

    def down_backward_call(self, by_expert, dy, h=None, z=None, dh=None, dz=None, row_weights=None, drow_weights=None, weight_gradients=True,
                           accumulate_weight_gradients=False, workspace=None):
        """Of blocks that learn: dy [rows, H], h and dh [rows, at least up_stride] of one stride; or z and dz [rows, at least z_stride] instead, which do the
        activation's backward too. fp32 drow_weights [rows]; those that are None are not computed."""
        args = self.library.made(GroupedDownBackwardArgs)
        self.of_hidden(args, dy, "dy", by_expert.rows, "dy_stride")
        for tensor, name in ((h, "h"), (dh, "dh"), (z, "z"), (dz, "dz")):
            self.of_h(args, tensor, by_expert.rows, name, ("z_stride" if "z" in name else "h_stride"))
        return self.grouped("down_backward", args, by_expert, dy, workspace, dy=dy, h=h, z=z, dh=dh, dz=dz, row_weights=row_weights,
                            drow_weights=drow_weights, weight_gradients=int(weight_gradients),
                            accumulate_weight_gradients=int(accumulate_weight_gradients))

    def up_backward_call(self, by_expert, dz, x=None, z=None, dh=None, dx=None, row_weights=None, drow_weights=None, weight_gradients=True,
                         accumulate_weight_gradients=False, workspace=None):
        """Of blocks that learn: dz of z and dh, or without them the dz that down_backward left; dx [rows, H]; those that are None are not computed."""
        args = self.library.made(GroupedUpBackwardArgs)
        self.of_hidden(args, x, "x", by_expert.rows, "x_stride")
        self.of_hidden(args, dx, "dx", by_expert.rows)
        for tensor, name, stride in ((z, "z", "z_stride"), (dz, "dz", "z_stride"), (dh, "dh", "dh_stride")):
            self.of_h(args, tensor, by_expert.rows, name, stride)
        return self.grouped("up_backward", args, by_expert, dz, workspace, x=x, z=z, dh=dh, dz=dz, dx=dx, row_weights=row_weights,
                            drow_weights=drow_weights, weight_gradients=int(weight_gradients),
                            accumulate_weight_gradients=int(accumulate_weight_gradients))

    def backward_workspace_bytes(self, rows):
        return self.library.size("varmoe_blocks_backward_workspace_bytes", self.pointer, rows)

    def of_h(self, args, h, least, name="h", stride="h_stride"):
        """Checks rows as long as its own; two that share a stride must agree."""
        require(h, name, (self.dtype,))
        shape = rows(h, name, h.shape[-1]) if getattr(h, "shape", None) is not None else None
        if shape is not None:
            if getattr(args, stride) not in (0, shape[1]):
                raise ValueError(f"{name} has {shape[1]} elements between rows: must have {getattr(args, stride)}, as the other has")
            setattr(args, stride, shape[1])
            if shape[0] < least:
                raise ValueError(f"{name} has {shape[0]} rows: must have {least}")

    def grouped(self, function, args, by_expert, tensor, workspace, **members):
        size = (self.backward_workspace_bytes if "backward" in function else self.workspace_bytes)(by_expert.rows)
        workspace = scratch(tensor, size) if workspace is None else workspace
        args.assign({"by_expert": c.addressof(by_expert), "workspace": address(workspace), "workspace_bytes": size})
        return self.made_call(function, args, tensor, (by_expert, workspace), **members)

    def combine_call(self, y, slot_row, out, tokens, rows, topk_weights=None, shared_weights=None, accumulate=False, absent_tokens="write_zeros",
                     token_count=None):
        """out [tokens, H] = Σ w · y over the token's slots; without topk_weights every row counts once."""
        args = self.library.made(CombineArgs)
        self.of_hidden(args, y, "y", rows)
        self.of_hidden(args, out, "out", tokens, "out_stride")
        return self.made_call("combine", args, y, (), y=y, slot_row=slot_row, out=out, tokens=tokens, rows=rows, topk_weights=topk_weights,
                              shared_weights=shared_weights, accumulate=int(accumulate), absent_tokens=absent_tokens, token_count=token_count)

    def combine_backward_call(self, dout, slot_row, tokens, rows, dy=None, dtopk_weights=None, y=None, topk_weights=None, shared_weights=None,
                              dshared_weights=None, token_count=None):
        """dy [rows, H] = w · dout, fp32 dtopk_weights [tokens, k] = ⟨dout, y⟩; those that are None are not computed."""
        args = self.library.made(CombineBackwardArgs)
        self.of_hidden(args, dout, "dout", tokens, "dout_stride")
        for tensor, name in ((y, "y"), (dy, "dy")):
            self.of_hidden(args, tensor, name, rows)
        return self.made_call("combine_backward", args, dout, (), dout=dout, slot_row=slot_row, tokens=tokens, rows=rows, dy=dy, y=y,
                              dtopk_weights=dtopk_weights, topk_weights=topk_weights, shared_weights=shared_weights, dshared_weights=dshared_weights,
                              token_count=token_count)


class Router(Handle):
    destroy = "varmoe_router_destroy"

    def __init__(self, library, pointer, engine, spec):
        super().__init__(library, pointer, engine)
        self.experts, self.top_k, self.logit_type = spec.num_experts, spec.top_k, ELEMENTS[spec.logit_type]
        self.hidden, self.input_type, self.weight_type = spec.hidden_size, DTYPES[spec.input_type], ELEMENTS[spec.weight_type]

    def prepare(self):
        return self.library.prepare("varmoe_router_prepare", self.pointer, None)

    def call(self, logits, topk_ids, topk_weights, scores=None, correction_bias=None, tokens=None, token_count=None):
        args = self.library.made(RouteArgs)
        stride = 0
        require(logits, "logits", (self.logit_type,))
        shape = rows(logits, "logits", self.experts)
        if shape is not None:
            tokens, stride = shape[0] if tokens is None else tokens, shape[1]
        if tokens is None:
            raise TypeError("tokens must be given where the logits have no shape")
        for tensor, name, kind in ((topk_ids, "topk_ids", "int32"), (topk_weights, "topk_weights", "fp32"), (scores, "scores", "fp32"),
                                   (correction_bias, "correction_bias", "fp32")):
            require(tensor, name, (kind,))
        args.assign({"tokens": tokens, "logits": address(logits), "logit_stride": stride, "correction_bias": address(correction_bias),
                     "topk_ids": address(topk_ids), "topk_weights": address(topk_weights), "scores": address(scores), "token_count": address(token_count)})
        return Call(self, self.library.lib.varmoe_router_route, args, logits, (logits, topk_ids, topk_weights, scores, correction_bias, token_count))

    def call_product(self, x, weight, topk_ids, topk_weights, logits_out=None, logit_bias=None, correction_bias=None, scores=None, tokens=None,
                     token_count=None, workspace=None):
        """For a router made with hidden_size: x [T, H] and its weight [E, H] instead of logits; logits_out: optional fp32 [T, E]."""
        args = self.library.made(RouteArgs)
        strides = {}
        for tensor, name, kind in ((x, "x", self.input_type), (weight, "weight", self.weight_type)):
            require(tensor, name, (kind,))
            shape = rows(tensor, name, self.hidden)
            if shape is not None:
                strides[name + "_stride"] = shape[1]
                if name == "x":
                    tokens = shape[0] if tokens is None else tokens
                elif shape[0] != self.experts:
                    raise ValueError(f"weight has {shape[0]} rows: must have {self.experts}")
        if tokens is None:
            raise TypeError("tokens must be given where x has no shape")
        outputs = {"topk_weights": topk_weights, "scores": scores, "correction_bias": correction_bias, "logit_bias": logit_bias, "logits_out": logits_out}
        require(topk_ids, "topk_ids", ("int32",))
        for name, tensor in outputs.items():
            require(tensor, name, ("fp32",))
        size = self.library.size("varmoe_router_workspace_bytes", self.pointer, tokens)
        workspace = scratch(x, size) if workspace is None else workspace
        args.assign({"tokens": tokens, "x": address(x), "weight": address(weight), "topk_ids": address(topk_ids), "token_count": address(token_count),
                     "workspace": address(workspace), "workspace_bytes": size, **strides, **{name: address(t) for name, t in outputs.items()}})
        return Call(self, self.library.lib.varmoe_router_route, args, x, (x, weight, topk_ids, *outputs.values(), token_count, workspace))

    def route(self, logits, topk_ids, topk_weights, stream=None, **more):
        """logits [T, E] of the spec's logit_type → topk_ids int32 [T, k], topk_weights fp32 [T, k]; scores: optional fp32 [T, E]."""
        self.call(logits, topk_ids, topk_weights, **more)(stream)


class RouterStatistics(Handle):
    destroy = "varmoe_router_statistics_destroy"
    losses = ("z", "load_balance", "group_balance", "compute")

    def __init__(self, library, pointer, engine, spec):
        super().__init__(library, pointer, engine)
        self.experts, self.top_k, self.logit_type = spec.num_experts, spec.top_k, ELEMENTS[spec.logit_type]

    def prepare(self):
        return self.library.prepare("varmoe_router_statistics_prepare", self.pointer, None)

    def call(self, logits, topk_ids, losses=None, tokens_per_expert=None, mean_scores=None, expert_widths=None, tokens=None, token_count=None,
             id_type=None, workspace=None):
        """logits [T, E], topk_ids [T, k] → losses fp32 [4] in the order of RouterStatistics.losses, tokens_per_expert int32 [E], mean_scores fp32 [E]."""
        require(logits, "logits", (self.logit_type,))
        shape = rows(logits, "logits", self.experts)
        stride = 0
        if shape is not None:
            tokens, stride = shape[0] if tokens is None else tokens, shape[1]
        if tokens is None:
            raise TypeError("tokens must be given where the logits have no shape")
        kind = id_type or require(topk_ids, "topk_ids", ("int32", "int64")) or "int32"
        for tensor, name, allowed in ((losses, "losses", "fp32"), (mean_scores, "mean_scores", "fp32"), (tokens_per_expert, "tokens_per_expert", "int32"),
                                      (expert_widths, "expert_widths", "int32")):
            require(tensor, name, (allowed,))
        size = self.library.size("varmoe_router_statistics_workspace_bytes", self.pointer, tokens)
        workspace = scratch(logits, size) if workspace is None else workspace
        args = self.library.made(RouterStatisticsArgs)
        args.assign({"tokens": tokens, "logits": address(logits), "logit_stride": stride, "topk_ids": address(topk_ids),
                     "id_type": ("int32", "int64").index(kind), "expert_widths": address(expert_widths), "tokens_per_expert": address(tokens_per_expert),
                     "mean_scores": address(mean_scores), "losses": address(losses), "token_count": address(token_count), "workspace": address(workspace),
                     "workspace_bytes": size})
        return Call(self, self.library.lib.varmoe_router_statistics_compute, args, logits,
                    (logits, topk_ids, losses, tokens_per_expert, mean_scores, expert_widths, token_count, workspace))


class RouterGradient(Handle):
    destroy = "varmoe_router_gradient_destroy"

    def __init__(self, library, pointer, engine, spec):
        super().__init__(library, pointer, engine)
        of = spec.of_router
        self.experts, self.top_k, self.hidden_size = of.num_experts, of.top_k, of.hidden_size
        self.logit_type, self.dlogit_type, self.dweight_type = ELEMENTS[of.logit_type], ELEMENTS[spec.dlogit_type], ELEMENTS[spec.dweight_type]
        self.input_type, self.weight_type = DTYPES[of.input_type], ELEMENTS[of.weight_type]

    def prepare(self):
        return self.library.prepare("varmoe_router_gradient_prepare", self.pointer, None)

    def call(self, logits, dlogits, topk_ids=None, dtopk_weights=None, coefficients=None, tokens_per_expert=None, mean_scores=None, expert_widths=None,
             loss_tokens=0, tokens=None, token_count=None, id_type=None, workspace=None):
        """logits [T, E], topk_ids and dtopk_weights [T, k] → dlogits [T, E]. coefficients: {"z": 1e-3, …}, by the names of RouterStatistics.losses."""
        strides = {}
        for tensor, name, kind in ((logits, "logits", self.logit_type), (dlogits, "dlogits", self.dlogit_type)):
            require(tensor, name, (kind,))
            shape = rows(tensor, name, self.experts)
            if shape is not None:
                tokens, strides[name] = shape[0] if tokens is None else tokens, shape[1]
        if tokens is None:
            raise TypeError("tokens must be given where the logits have no shape")
        kind = id_type or require(topk_ids, "topk_ids", ("int32", "int64")) or "int32"
        for tensor, name, allowed in ((dtopk_weights, "dtopk_weights", "fp32"), (mean_scores, "mean_scores", "fp32"),
                                      (tokens_per_expert, "tokens_per_expert", "int32"), (expert_widths, "expert_widths", "int32")):
            require(tensor, name, (allowed,))
        size = self.library.size("varmoe_router_gradient_workspace_bytes", self.pointer, tokens)
        workspace = scratch(logits, size) if workspace is None else workspace
        args = self.library.made(RouterGradientArgs)
        args.assign({"tokens": tokens, "logits": address(logits), "logit_stride": strides.get("logits", 0), "topk_ids": address(topk_ids),
                     "id_type": ("int32", "int64").index(kind), "dtopk_weights": address(dtopk_weights), "dlogits": address(dlogits),
                     "dlogit_stride": strides.get("dlogits", 0), "loss_tokens": loss_tokens, "tokens_per_expert": address(tokens_per_expert),
                     "mean_scores": address(mean_scores), "expert_widths": address(expert_widths), "token_count": address(token_count),
                     "workspace": address(workspace), "workspace_bytes": size,
                     **{f"{name}_coefficient": value for name, value in (coefficients or {}).items()}})
        return Call(self, self.library.lib.varmoe_router_gradient_compute, args, logits,
                    (logits, dlogits, topk_ids, dtopk_weights, tokens_per_expert, mean_scores, expert_widths, token_count, workspace))

    def call_product(self, dlogits, x=None, weight=None, dx=None, dweight=None, dlogit_bias=None, accumulate_dx=False, accumulate_weight=False,
                     tokens=None, token_count=None):
        """dlogits fp32 [T, E], x [T, H], weight [E, H] → dx [T, H], dweight [E, H], dlogit_bias fp32 [E]; those that are None are not computed."""
        strides = {}
        for tensor, name, kind, columns in ((dlogits, "dlogits", "fp32", self.experts), (x, "x", self.input_type, self.hidden_size),
                                            (dx, "dx", self.input_type, self.hidden_size), (weight, "weight", self.weight_type, self.hidden_size),
                                            (dweight, "dweight", self.dweight_type, self.hidden_size)):
            require(tensor, name, (kind,))
            shape = rows(tensor, name, columns)
            if shape is not None:
                strides[name] = shape[1]
                if name == "dlogits" and tokens is None:
                    tokens = shape[0]
        require(dlogit_bias, "dlogit_bias", ("fp32",))
        if tokens is None:
            raise TypeError("tokens must be given where dlogits has no shape")
        args = self.library.made(RouterProductGradientArgs)
        args.assign({"tokens": tokens, "dlogits": address(dlogits), "dlogit_stride": strides.get("dlogits", 0), "x": address(x),
                     "x_stride": strides.get("x", 0), "weight": address(weight), "weight_stride": strides.get("weight", 0), "dx": address(dx),
                     "dx_stride": strides.get("dx", 0), "dweight": address(dweight), "dweight_stride": strides.get("dweight", 0),
                     "dlogit_bias": address(dlogit_bias), "accumulate_dx": int(accumulate_dx), "accumulate_weight": int(accumulate_weight),
                     "token_count": address(token_count)})
        return Call(self, self.library.lib.varmoe_router_gradient_product, args, dlogits,
                    (dlogits, x, weight, dx, dweight, dlogit_bias, token_count))


class BlockAligner(Handle):
    destroy = "varmoe_block_aligner_destroy"

    def __init__(self, library, pointer, engine, spec):
        super().__init__(library, pointer, engine)
        self.experts, self.block_size = spec.num_experts, spec.block_size

    def prepare(self):
        return self.library.prepare("varmoe_block_aligner_prepare", self.pointer, None)

    def sizes(self, routed):
        """(entries of sorted_token_ids, entries of expert_ids) for so many routed rows."""
        places = self.library.lib.varmoe_sorted_ids_size(I64(self.experts), I64(self.block_size), I64(routed))
        return places, self.library.lib.varmoe_aligned_blocks(I64(self.block_size), I64(places))

    def call(self, topk_ids, sorted_token_ids, expert_ids, num_tokens_post_pad, routed=None, id_type=None, workspace=None):
        routed = routed if routed is not None else length(topk_ids)
        size = self.library.size("varmoe_block_aligner_workspace_bytes", self.pointer, routed)
        workspace = scratch(topk_ids, size) if workspace is None else workspace
        args = self.library.made(AlignArgs)
        kind = id_type or require(topk_ids, "topk_ids", ("int32", "int64")) or "int32"
        args.assign({"rows": routed, "topk_ids": address(topk_ids), "id_type": ("int32", "int64").index(kind), "sorted_token_ids": address(sorted_token_ids),
                     "expert_ids": address(expert_ids), "num_tokens_post_pad": address(num_tokens_post_pad), "workspace": address(workspace),
                     "workspace_bytes": size})
        return Call(self, self.library.lib.varmoe_block_aligner_align, args, topk_ids, (topk_ids, sorted_token_ids, expert_ids, num_tokens_post_pad, workspace))

    def align(self, topk_ids, sorted_token_ids, expert_ids, num_tokens_post_pad, stream=None, **more):
        """topk_ids [R] → int32 sorted_token_ids, expert_ids (of sizes(R) entries) and num_tokens_post_pad [1]."""
        self.call(topk_ids, sorted_token_ids, expert_ids, num_tokens_post_pad, **more)(stream)


class Engine(Handle):
    destroy = "varmoe_engine_destroy"

    def made(self, kind, spec, create, *between, more=()):
        pointer = PTR()
        self.library.check(getattr(self.library.lib, create)(self.pointer, c.byref(spec), *between, c.byref(pointer)))
        return kind(self.library, pointer, self, spec, *more)

    def layer_spec(self, hidden_size, expert_widths, top_k, shared_widths=(), **members):
        spec = self.library.made(LayerSpec)
        widths, shared = (I64 * len(expert_widths))(*expert_widths), (I64 * len(shared_widths))(*shared_widths)
        spec.assign({"hidden_size": hidden_size, "expert_widths": widths, "num_experts": len(expert_widths), "top_k": top_k, "shared_widths": shared,
                     "num_shared": len(shared_widths), **members})
        return spec

    def layer(self, hidden_size, expert_widths, top_k, max_workspace_bytes=0, max_sms=0, **members):
        """members: the others of varmoe_layer_spec, enumerators by name (activation="swiglu_oai", fc1_layout="kn", shared_widths=[1536], bias=1, …)."""
        spec = self.layer_spec(hidden_size, expert_widths, top_k, **members)
        options = self.library.made(LayerOptions)
        options.max_workspace_bytes, options.max_sms = max_workspace_bytes, max_sms
        return self.made(Layer, spec, "varmoe_layer_create", c.byref(options))

    def training_layer(self, hidden_size, expert_widths, top_k, save_preactivation=True, gradient_type="layer_dtype", max_sms=0, **members):
        """members: as of layer. gradient_type: "layer_dtype" or "fp32", of the weights' gradients; without save_preactivation backward computes it again."""
        spec = self.layer_spec(hidden_size, expert_widths, top_k, **members)
        options = self.library.made(TrainingOptions)
        options.assign({"save_preactivation": int(save_preactivation), "gradient_type": gradient_type, "max_sms": max_sms})
        return self.made(TrainingLayer, spec, "varmoe_training_layer_create", c.byref(options), more=(gradient_type,))

    def blocks(self, hidden_size, expert_widths, top_k, weighted_down=False, max_sms=0, training=False, gradient_type="layer_dtype", **members):
        """A layer's parts, each usable alone; members: as of layer. training: with down's and up's backward; gradient_type: as of training_layer."""
        spec = self.layer_spec(hidden_size, expert_widths, top_k, **members)
        options = self.library.made(BlocksOptions)
        options.assign({"weighted_down": int(weighted_down), "max_sms": max_sms, "training": int(training), "gradient_type": gradient_type})
        return self.made(Blocks, spec, "varmoe_blocks_create", c.byref(options), more=(gradient_type,))

    def router(self, num_experts, top_k, **members):
        """members: the others of varmoe_router_spec."""
        spec = self.library.made(RouterSpec)
        spec.assign({"num_experts": num_experts, "top_k": top_k, **members})
        return self.made(Router, spec, "varmoe_router_create")

    def router_statistics(self, num_experts, top_k, **members):
        """members: logit_type, scoring."""
        spec = self.library.made(RouterStatisticsSpec)
        spec.assign({"num_experts": num_experts, "top_k": top_k, **members})
        return self.made(RouterStatistics, spec, "varmoe_router_statistics_create")

    def router_gradient(self, num_experts, top_k, losses=(), dlogit_type="fp32", dweight_type="fp32", **members):
        """losses: names of RouterStatistics.losses that may have a coefficient; members: the others of varmoe_router_spec."""
        router, spec = self.library.made(RouterSpec), self.library.made(RouterGradientSpec)
        router.assign({"num_experts": num_experts, "top_k": top_k, **members})
        spec.assign({"router": c.addressof(router), "losses": sum(1 << RouterStatistics.losses.index(name) for name in losses),
                     "dlogit_type": dlogit_type, "dweight_type": dweight_type})
        spec.of_router = router  # and keeps it
        return self.made(RouterGradient, spec, "varmoe_router_gradient_create")

    def block_aligner(self, num_experts, block_size=128):
        spec = self.library.made(AlignSpec)
        spec.assign({"num_experts": num_experts, "block_size": block_size})
        return self.made(BlockAligner, spec, "varmoe_block_aligner_create")

    def counters(self):
        counters = self.library.made(Counters)
        self.library.check(self.library.lib.varmoe_engine_counters(self.pointer, c.byref(counters)))
        return {name: getattr(counters, name) for name, _ in Counters._fields_ if name != "struct_size"}

    def description(self):
        needed = SIZE()
        self.library.check(self.library.lib.varmoe_engine_description(self.pointer, None, SIZE(0), c.byref(needed)))
        text = c.create_string_buffer(needed.value)
        self.library.check(self.library.lib.varmoe_engine_description(self.pointer, text, needed, None))
        return text.value.decode()


def find_library():
    """libvarmoe_jit.so of a build folder of this checkout, else the name alone, for the dynamic loader to find."""
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    return next(iter(sorted(root.glob("build/**/libvarmoe_jit.so"))), "libvarmoe_jit.so")


class Library:
    """The shared library. `path`: the file; None: find_library()."""

    def __init__(self, path=None):
        self.lib = c.CDLL(str(path or find_library()))
        for name in ("varmoe_last_error", "varmoe_version", "varmoe_status_name"):
            getattr(self.lib, name).restype = STR
        for name in ("varmoe_sorted_ids_size", "varmoe_aligned_blocks"):
            getattr(self.lib, name).restype = I64
        self.lib.varmoe_report_kernel_count.restype = SIZE

    def version(self):
        return self.lib.varmoe_version().decode()

    def check(self, status):
        if status != 0:
            raise VarmoeError(status, self.lib.varmoe_status_name(status).decode(), self.lib.varmoe_last_error().decode())

    def made(self, kind):
        """A struct with the library's defaults."""
        value = kind()
        self.check(getattr(self.lib, kind.c_name + "_init")(c.byref(value), SIZE(c.sizeof(kind))))
        return value

    def size(self, function, pointer, count):
        size = SIZE()
        self.check(getattr(self.lib, function)(pointer, I64(count), c.byref(size)))
        return size.value

    def prepare(self, function, pointer, tokens):
        options = self.made(PrepareOptions)
        if tokens is not None:
            options.tokens, options.token_count = (I64 * len(tokens))(*tokens), len(tokens)
        report = PTR()
        self.check(getattr(self.lib, function)(pointer, c.byref(options), c.byref(report)))
        try:
            kernels = []
            for i in range(self.lib.varmoe_report_kernel_count(report)):
                kernel = self.made(KernelReport)
                self.check(self.lib.varmoe_report_kernel(report, SIZE(i), c.byref(kernel)))
                kernels.append({name: getattr(kernel, name).decode() for name in ("stage", "name", "config", "origin", "error")})
            return kernels
        finally:
            self.lib.varmoe_report_destroy(report)

    def engine(self, device=0, **members):
        """device: CUDA ordinal, or "cpu". members: the others of varmoe_engine_options (cache_dir, fc1_config, cpu_threads, …)."""
        options = self.made(EngineOptions)
        options.assign({"device": CPU if device == "cpu" else device, **members})
        pointer = PTR()
        self.check(self.lib.varmoe_engine_create(c.byref(options), c.byref(pointer)))
        return Engine(self, pointer)
