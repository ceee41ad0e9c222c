"""A layer's parts, each usable alone."""
import ctypes as c

from .handle import Call
from .layer import AnyLayer
from .structs import (CombineArgs, CombineBackwardArgs, GatherArgs, GroupedDownArgs, GroupedDownBackwardArgs, GroupedUpArgs, GroupedUpBackwardArgs, PTR,
                      RowsByExpert, SlotRowsArgs)
from .tensors import address, require, rows, scratch
from .training import Learns


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
