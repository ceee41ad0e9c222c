"""The structs of varmoe/varmoe.h, and its enumerators by name."""
import ctypes as c

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
