"""A Mixture-of-Experts layer for training with torch: varmoe's forward and backward as an autograd function and a module.

    import torch, varmoe_client
    from varmoe_autograd import MoELayer
    engine = varmoe_client.Library().engine(device=0)       # "cpu": tensors on the CPU
    moe = MoELayer(engine, hidden_size=2048, expert_widths=[768, 512, 512, 256], top_k=2, device="cuda")
    out = moe(x, topk_ids, topk_weights)                    # x [..., H] bf16, ids int32 or int64 [..., k], weights fp32 [..., k]
    out.backward(dout)                                      # x.grad, topk_weights.grad, moe.fc1.grad, moe.fc2.grad

Nothing is copied: the library reads and writes torch's memory, on torch's current stream (the backward's is that of the forward). After the first forward
and backward of a token count (MoELayer.prepare compiles beforehand) both can be captured in a CUDA graph.

Parameters. One tensor each for all experts, one expert after another whatever their widths, so that an optimizer has few: fc1 and fc2, with bias=1
fc1_bias and fc2_bias, with shared_widths shared_fc1 and shared_fc2, with shared_gate=1 that. MoELayer.experts() gives each expert's matrices as views.
  parameter_dtype = the layer's dtype (default)   the library reads the parameters themselves; gradients are of the same dtype
  parameter_dtype = torch.float32                 each forward rounds them to the layer's dtype; gradients are fp32 and were never rounded

Gradients. There is one persistent buffer per parameter.
  gradients="in_place" (default)   backward writes into the buffer, which becomes the parameter's .grad. Where .grad is None (zero_grad, whose default
      is set_to_none=True) it is overwritten, so nobody zeroes it; where .grad is the buffer, backward adds to it: gradient accumulation without a
      pass of its own. A .grad of somebody else's is added to. What follows from that: a .grad that is kept beyond zero_grad is written
      again by the next backward (clone it); torch sees no gradients of these parameters, so their hooks, DistributedDataParallel and torch.autograd.grad
      do not either.
  gradients="returned"             backward returns copies, and torch does with them what it does with all gradients.

MoEExperts has the experts alone, on rows that lie by expert already (varmoe_client.Blocks.by_expert says which are whose): what is between an all-to-all and
its return.

x may have gaps between rows. Gradients of gradients are not there (an error). Ids that name no expert (−1) contribute nothing and get weights' gradients of 0.
"""
import torch
import varmoe_client
from torch.autograd.function import once_differentiable

GATED = varmoe_client.ACTIVATIONS[:4]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def aligned_bytes(size, device):
    """`size` bytes at a 256-byte aligned address."""
    raw = torch.empty(size + 256, dtype=torch.uint8, device=device)
    begin = -raw.data_ptr() % 256
    return raw[begin:begin + size]


def as_rows(tensor):
    """The tensor itself where the library can read its rows, else a contiguous copy."""
    stride = tensor.stride(0)
    fits = tensor.stride(1) == 1 and stride >= tensor.shape[1] and stride % 8 == 0 and tensor.data_ptr() % 16 == 0
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


class MoEFunction(torch.autograd.Function):
    """x [T, H], topk_weights [T, k], topk_ids [T, k] → out [T, H]; the module's parameters are inputs so that autograd knows of them."""

    @staticmethod
    def forward(ctx, x, topk_weights, topk_ids, module, *parameters):
        x, topk_weights, topk_ids = as_rows(x), topk_weights.contiguous(), topk_ids.contiguous()
        layer, tokens = module.layer, x.shape[0]
        module.place()
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        saved = aligned_bytes(layer.saved_bytes(tokens), x.device)
        layer.forward(x, topk_ids, topk_weights, out, saved=saved, workspace=aligned_bytes(layer.workspace_bytes(tokens), x.device))
        # The parameters, too: torch then notices when one was changed between forward and backward.
        ctx.save_for_backward(x, topk_weights, topk_ids, saved, *parameters)
        ctx.module = module
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, topk_weights, topk_ids, saved, *parameters = ctx.saved_tensors
        module, layer, tokens = ctx.module, ctx.module.layer, x.shape[0]
        wanted = ctx.needs_input_grad[4:]
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if ctx.needs_input_grad[0] else None
        dweights = torch.empty_like(topk_weights) if ctx.needs_input_grad[1] else None
        accumulate = any(wanted) and module.gradients == "in_place" and module.begin_gradients(wanted)
        layer.backward(x, topk_ids, topk_weights, as_rows(dout), saved, dx=dx, dtopk_weights=dweights, weight_gradients=any(wanted),
                       accumulate_weight_gradients=accumulate, workspace=aligned_bytes(layer.workspace_bytes(tokens), x.device))
        if module.gradients == "in_place":
            module.end_gradients(wanted)
            return (dx, dweights, None, None) + (None,) * len(parameters)
        return (dx, dweights, None, None) + tuple(b.clone() if w else None for b, w in zip(module.gradient_buffers, wanted))


class ExpertsFunction(torch.autograd.Function):
    """rows x [R, H], weights of rows fp32 [R] or None → y [R, H]. dz is made in one product's epilogue: h is not kept."""

    @staticmethod
    def forward(ctx, x, row_weights, by_expert, module, *parameters):
        x, blocks, count = as_rows(x), module.layer, x.shape[0]
        row_weights = None if row_weights is None else row_weights.contiguous()
        module.place()
        made = lambda columns: torch.empty((count, columns), dtype=x.dtype, device=x.device)
        h, z, y = made(blocks.up_stride), made(blocks.z_stride), torch.zeros_like(made(module.hidden_size))
        workspace = aligned_bytes(blocks.workspace_bytes(count), x.device)
        blocks.up_call(by_expert, x, h, z=z, workspace=workspace)()
        blocks.down_call(by_expert, h, y, row_weights=row_weights, workspace=workspace)()
        ctx.save_for_backward(x, row_weights, z, *parameters)
        ctx.by_expert, ctx.module = by_expert, module
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, row_weights, z, *parameters = ctx.saved_tensors
        module, blocks, by_expert = ctx.module, ctx.module.layer, ctx.by_expert
        wanted = ctx.needs_input_grad[4:]
        # Padding has no gradient.
        dx = torch.zeros(x.shape, dtype=x.dtype, device=x.device) if ctx.needs_input_grad[0] else None
        dweights = torch.zeros_like(row_weights) if ctx.needs_input_grad[1] else None
        accumulate = any(wanted) and module.gradients == "in_place" and module.begin_gradients(wanted)
        of_weights = {"weight_gradients": any(wanted), "accumulate_weight_gradients": accumulate,
                      "workspace": aligned_bytes(blocks.backward_workspace_bytes(x.shape[0]), x.device)}
        dz = torch.empty_like(z)
        blocks.down_backward_call(by_expert, as_rows(dy), z=z, dz=dz, row_weights=row_weights, drow_weights=dweights, **of_weights)()
        blocks.up_backward_call(by_expert, dz, x=x, dx=dx, **of_weights)()
        if module.gradients == "in_place":
            module.end_gradients(wanted)
            return (dx, dweights, None, None) + (None,) * len(parameters)
        return (dx, dweights, None, None) + tuple(b.clone() if w else None for b, w in zip(module.gradient_buffers, wanted))


class MoEParameters(torch.nn.Module):
    """The parameters of a layer of varmoe; spec: the others of varmoe_layer_spec by name, as of Engine.layer."""

    def __init__(self, hidden_size, expert_widths, top_k, parameter_dtype=None, device=None, **spec):
        super().__init__()
        self.hidden_size, self.expert_widths, self.top_k, self.spec = hidden_size, list(expert_widths), top_k, spec
        self.dtype = DTYPES[spec.get("dtype", "bf16")]
        self.parameter_dtype = parameter_dtype or self.dtype
        if self.parameter_dtype not in (self.dtype, torch.float32):
            raise ValueError(f"parameter_dtype is {parameter_dtype}: must be {self.dtype} or torch.float32")
        self.activation = spec.get("activation", "silu_mul")
        self.halves = 2 if self.activation in GATED else 1
        self.fc1_kn, self.fc2_kn = spec.get("fc1_layout", "nk") == "kn", spec.get("fc2_layout", "nk") == "kn"
        total, shared = sum(self.expert_widths), sum(spec.get("shared_widths", ()))
        # Where experts lie as rows of one matrix, that is the shape.
        shapes = self.shapes("", total)
        if spec.get("bias"):
            shapes.update(fc1_bias=(self.halves * total,), fc2_bias=(len(self.expert_widths), hidden_size))
        if shared:
            shapes.update(self.shapes("shared_", shared))
        if spec.get("shared_gate"):
            shapes["shared_gate"] = (hidden_size,)
        self.names = list(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.empty(shape, dtype=self.parameter_dtype, device=device)))
        self.reset_parameters()

    def shapes(self, prefix, total):
        h, columns = self.hidden_size, self.halves * total
        return {prefix + "fc1": (columns * h,) if self.fc1_kn else (columns, h), prefix + "fc2": (total, h) if self.fc2_kn else (total * h,)}

    def parameter_list(self):
        return [getattr(self, name) for name in self.names]

    def experts(self, of=lambda parameter: parameter, prefix=""):
        """Of each expert (prefix "shared_": of each shared one) views of fc1, [2I, H] (kn: [H, 2I]; not gated: I), and fc2, [H, I] (kn: [I, H]). `of`: what of
        the parameters is meant, such as lambda p: p.grad."""
        fc1, fc2 = of(getattr(self, prefix + "fc1")).reshape(-1), of(getattr(self, prefix + "fc2")).reshape(-1)
        views, begin, h = [], 0, self.hidden_size
        for width in self.spec["shared_widths"] if prefix else self.expert_widths:
            columns = self.halves * width
            one, two = fc1[self.halves * begin * h:][:columns * h], fc2[begin * h:][:width * h]
            views.append((one.view(h, columns) if self.fc1_kn else one.view(columns, h), two.view(width, h) if self.fc2_kn else two.view(h, width)))
            begin += width
        return views

    @torch.no_grad()
    def reset_parameters(self):
        """Normal, of variance 1 ∕ (what is summed); drawn on the CPU, so that every device gets the same from one seed. Biases 0."""
        for name, parameter in zip(self.names, self.parameter_list()):
            if name.endswith("bias"):
                parameter.zero_()
            elif name == "shared_gate":
                parameter.copy_(torch.randn(self.hidden_size) * self.hidden_size ** -0.5)
        for prefix in ("", "shared_")[:2 if "shared_fc1" in self.names else 1]:
            for fc1, fc2 in self.experts(prefix=prefix):
                fc1.copy_(torch.randn(fc1.shape) * self.hidden_size ** -0.5)
                fc2.copy_(torch.randn(fc2.shape) * (fc2.numel() // self.hidden_size) ** -0.5)


class MoELayer(MoEParameters):
    """See the top of this file. options: save_preactivation=False lets backward compute fc1's sums again instead of keeping them; max_sms."""
    options = ("save_preactivation", "max_sms")

    def __init__(self, engine, hidden_size, expert_widths, top_k, gradients="in_place", **more):
        options = {name: more.pop(name) for name in self.options if name in more}
        super().__init__(hidden_size, expert_widths, top_k, **more)
        if gradients not in ("in_place", "returned"):
            raise ValueError(f"gradients = {gradients!r}: must be in_place or returned")
        self.gradients = gradients
        kind = "layer_dtype" if self.parameter_dtype == self.dtype else "fp32"
        self.layer = self.made_by(engine)(hidden_size, self.expert_widths, top_k, gradient_type=kind, **options, **self.spec)
        self.placed, self.rounded, self.gradient_buffers = None, None, None

    @staticmethod
    def made_by(engine):
        return engine.training_layer

    def prepare(self, tokens):
        """Compiles or loads the kernels for these token counts."""
        return self.layer.prepare(tokens)

    def place(self):
        """Tells the library where parameters and gradients lie, if that is new, and rounds fp32 parameters."""
        parameters = self.parameter_list()
        places = [parameter.data_ptr() for parameter in parameters]
        if places != self.placed:
            if any(not parameter.is_contiguous() for parameter in parameters):
                raise ValueError("MoELayer: a parameter is not contiguous")
            self.rounded = None if self.parameter_dtype == self.dtype else [p.detach().to(self.dtype) for p in parameters]
            self.layer.bind(**dict(zip(self.names, self.rounded or [p.detach() for p in parameters])))
            self.gradient_buffers = [torch.zeros_like(p, requires_grad=False) for p in parameters]
            self.layer.bind_gradients(**dict(zip(self.names, self.gradient_buffers)))
            self.placed = places
        if self.rounded:
            with torch.no_grad():
                torch._foreach_copy_(self.rounded, [p.detach() for p in parameters])

    def begin_gradients(self, wanted):
        """Before a backward that writes .grad: True where it must add to the buffers. All buffers are added to, or none."""
        mine = [w and p.grad is not None and p.grad.data_ptr() == b.data_ptr()
                for w, p, b in zip(wanted, self.parameter_list(), self.gradient_buffers)]
        if not any(mine):
            return False
        for kept, buffer in zip(mine, self.gradient_buffers):
            if not kept:
                buffer.zero_()
        return True

    def end_gradients(self, wanted):
        for w, parameter, buffer in zip(wanted, self.parameter_list(), self.gradient_buffers):
            if not w:
                continue
            if parameter.grad is None:
                parameter.grad = buffer
            elif parameter.grad.data_ptr() != buffer.data_ptr():
                parameter.grad.add_(buffer)

    def forward(self, x, topk_ids, topk_weights):
        rows = x.reshape(-1, self.hidden_size)
        out = MoEFunction.apply(rows, topk_weights.reshape(-1, self.top_k), topk_ids.reshape(-1, self.top_k), self, *self.parameter_list())
        return out.view(x.shape)


class MoEExperts(MoELayer):
    """The experts alone: rows x [R, H] that lie by expert → y [R, H], 0 in rows that are nobody's. options: weighted_down (then forward takes fp32 row_weights
    [R]); max_sms. Shared experts count as the last ones."""
    options = ("weighted_down", "max_sms")

    @staticmethod
    def made_by(engine):
        return lambda *arguments, **members: engine.blocks(*arguments, training=True, **members)

    def forward(self, x, by_expert, row_weights=None):
        """by_expert: self.layer.by_expert(R, ...), whose tensors stay as they are until the backward has run."""
        return ExpertsFunction.apply(x, row_weights, by_expert, self, *self.parameter_list())


def expert_loop(x, topk_ids, topk_weights, experts, activation="silu_mul", fc1_kn=False, fc2_kn=False, weight_on_input=False):
    """The layer in plain torch, one expert after another, in the dtype of x [T, H] (sums over a token's experts in fp32 at least): what gradients are compared
    with. experts: (fc1, fc2) of each, as MoEParameters.experts gives them; gate first; without biases and shared experts."""
    act = {"silu_mul": torch.nn.functional.silu, "gelu_tanh_mul": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
           "gelu_erf_mul": torch.nn.functional.gelu, "silu": torch.nn.functional.silu,
           "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"), "gelu_erf": torch.nn.functional.gelu,
           "relu": torch.nn.functional.relu, "relu2": lambda z: torch.nn.functional.relu(z).square(), "identity": lambda z: z}[activation]
    out = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for e, (fc1, fc2) in enumerate(experts):
        token, slot = (topk_ids == e).nonzero(as_tuple=True)
        weight = topk_weights[token, slot, None].to(out.dtype)
        z = x[token] @ (fc1 if fc1_kn else fc1.T)
        if weight_on_input:  # as the library: fc1's sums, not x, so that x is not rounded once more
            z = (z.to(out.dtype) * weight).to(x.dtype)
        if activation in GATED:
            gate, up = z.chunk(2, dim=1)
            h = act(gate) * up
        else:
            h = act(z)
        y = h @ (fc2 if fc2_kn else fc2.T)
        out = out.index_add(0, token, y.to(out.dtype) * (1 if weight_on_input else weight))
    return out.to(x.dtype)
