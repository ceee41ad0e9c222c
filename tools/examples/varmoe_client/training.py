"""A layer with its backward pass."""
import ctypes as c

from .layer import AnyLayer
from .structs import BackwardArgs, PTR, SIZE
from .tensors import address, scratch


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
