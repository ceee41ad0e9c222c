"""Routing: the router, its statistics and its backward pass, and moe_align_block_size."""
from .handle import Call, Handle
from .structs import AlignArgs, DTYPES, ELEMENTS, I64, RouteArgs, RouterGradientArgs, RouterProductGradientArgs, RouterStatisticsArgs
from .tensors import address, length, require, rows, scratch


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
