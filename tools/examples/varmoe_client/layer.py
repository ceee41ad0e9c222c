"""Layers: the forward, and its up-projection alone."""
import ctypes as c

from .handle import Call, Handle
from .structs import DTYPES, ForwardArgs, PTR, UpArgs, Weights
from .tensors import address, contiguous, element, expert_weights, length, require, rows, scratch


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
