"""An engine, which makes everything else."""
import ctypes as c

from .blocks import Blocks
from .handle import Handle
from .layer import Layer
from .router import BlockAligner, Router, RouterGradient, RouterStatistics
from .structs import (AlignSpec, BlocksOptions, Counters, I64, LayerOptions, LayerSpec, PTR, RouterGradientSpec, RouterSpec, RouterStatisticsSpec, SIZE,
                      TrainingOptions)
from .training import TrainingLayer


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
