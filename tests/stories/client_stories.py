#!/usr/bin/env python3
"""What tools/examples/varmoe_client promises: its structs are those of varmoe.h, results are right, tensors are not copied, mistakes are named.

usage: client_stories.py REPOSITORY LIBRARY

Needs nothing but Python; with numpy its arrays are tried as well.
"""
import array
import ctypes as c
import math
import pathlib
import re
import subprocess
import sys
import unittest

ROOT, LIBRARY = pathlib.Path(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools" / "examples"))
import varmoe_client as client  # noqa: E402

HIDDEN, WIDTHS, WIDEST = 64, [8, 16], 16
SILU = 1 / (1 + math.exp(-1.0))


def silu(v):
    return v / (1 + math.exp(-v))


def bf16(values):
    """Aligned 16-bit numbers; every value must be a power of two or 0, so that none is rounded."""
    return client.host_copy(array.array("H", [int.from_bytes(array.array("f", [v]).tobytes(), sys.byteorder) >> 16 for v in values]))


def numbers(buffer):
    return [array.array("f", (v << 16).to_bytes(4, sys.byteorder))[0] for v in memoryview(buffer).cast("B").cast("H")]


def padded_weights():
    """gate and up are 1/64 and 1 in every column that an expert has, and so is down."""
    fc1, fc2 = [0.0] * (2 * 2 * WIDEST * HIDDEN), [0.0] * (2 * HIDDEN * WIDEST)
    for e, width in enumerate(WIDTHS):
        for row in range(width):
            for k in range(HIDDEN):
                fc1[((e * 2 + 0) * WIDEST + row) * HIDDEN + k] = 1 / 64
                fc1[((e * 2 + 1) * WIDEST + row) * HIDDEN + k] = 1.0
        for k in range(HIDDEN):
            for column in range(width):
                fc2[(e * HIDDEN + k) * WIDEST + column] = 1.0
    return bf16(fc1), bf16(fc2)


def one_expert(width):
    """fc1 and fc2 of an expert as padded_weights has them, contiguous."""
    return bf16([1 / 64] * (width * HIDDEN) + [1.0] * (width * HIDDEN)), bf16([1.0] * (HIDDEN * width))


def header_structs():
    """{struct's name: [(member, ctypes type's size)]} as varmoe.h has them."""
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "include" / "varmoe" / "varmoe.h").read_text(), flags=re.S)
    sizes = {"int32_t": 4, "float": 4}
    structs = {}
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", text, flags=re.S):
        members = []
        for declaration in filter(str.strip, body.split(";")):
            kind, member = re.fullmatch(r"(.*?)(\w+)", declaration.strip(), flags=re.S).groups()
            members.append((member, sizes.get(kind.strip(), 8)))
        structs[name] = members
    return structs


class Client(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.library = client.Library(LIBRARY)

    def setUp(self):
        self.engine = self.library.engine("cpu", cpu_threads=1)

    def layer(self, **more):
        return self.engine.layer(HIDDEN, WIDTHS, 1, **more)

    def test_its_structs_are_the_headers(self):
        """Every struct of the header, with every member."""
        structs = {struct.c_name: [(name, c.sizeof(kind)) for name, kind in struct._fields_] for struct in client.Struct.__subclasses__()}
        for name, members in header_structs().items():
            with self.subTest(name):
                self.assertEqual(structs.pop(name, None), members)
        self.assertEqual(structs, {})

    def test_enumerators_are_numbered_as_in_the_header(self):
        text = (ROOT / "include" / "varmoe" / "varmoe.h").read_text()
        for prefix, names in (("DTYPE", client.DTYPES), ("ACTIVATION", client.ACTIVATIONS), ("LAYOUT", client.LAYOUTS), ("GATE", client.GATE_ORDERS),
                              ("STORAGE", client.STORAGES), ("LOGITS", client.ELEMENTS), ("SCORING", client.ENUMERATORS["scoring"]),
                              ("ORDER", client.ENUMERATORS["order"]), ("GROUP_SCORE", client.ENUMERATORS["group_score"]),
                              ("OUTSIDE_GROUPS", client.ENUMERATORS["outside_groups"]), ("CACHE", client.ENUMERATORS["cache_mode"]),
                              ("JIT", client.ENUMERATORS["jit"]), ("TUNE", client.ENUMERATORS["tune"]),
                              ("ABSENT", client.ENUMERATORS["absent_tokens"]), ("ID", client.ENUMERATORS["id_type"]),
                              ("GRADIENT", client.ENUMERATORS["gradient_type"]),
                              ("LOSS", client.RouterStatistics.losses)):
            for number, name in enumerate(names):
                self.assertRegex(text, rf"\bVARMOE_{prefix}_{name.upper()}\s*=\s*{number}\b")

    def test_a_layer_of_unequal_widths(self):
        layer = self.layer()
        layer.prepare([3])
        layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST)
        x, out = bf16([1.0] * (3 * HIDDEN)), bf16([0.0] * (3 * HIDDEN))
        layer.forward(x, array.array("i", [0, 1, -1]), array.array("f", [1.0, 0.5, 1.0]), out, tokens=3)
        got = numbers(out)
        for token, expected in enumerate((8 * 64 * SILU, 0.5 * 16 * 64 * SILU, 0.0)):  # gate sums to 1, up to 64
            for k in range(HIDDEN):
                self.assertAlmostEqual(got[token * HIDDEN + k], expected, delta=abs(expected) * 0.01)
        again = layer.call(x, array.array("i", [0, 1, -1]), array.array("f", [1.0, 0.5, 1.0]), out, tokens=3, accumulate=True)
        again()
        self.assertAlmostEqual(numbers(out)[0], 2 * got[0], delta=got[0] * 0.01)

    def test_weights_as_a_list_of_matrices(self):
        """int64 ids, and matrices of their own per expert."""
        fc1, fc2 = zip(*map(one_expert, WIDTHS))
        layer = self.layer()
        layer.bind(fc1, fc2, storage="pointers")
        out = bf16([0.0] * HIDDEN)
        layer.forward(bf16([1.0] * HIDDEN), array.array("q", [1]), array.array("f", [1.0]), out, tokens=1)
        self.assertAlmostEqual(numbers(out)[HIDDEN - 1], 16 * 64 * SILU, delta=8)

    def forward(self, layer, ids, weights, **more):
        """out's first column of a forward whose x is 1; every other column must equal it. `out` holds 2 before."""
        tokens = len(ids) // layer.top_k
        out = bf16([2.0] * (tokens * HIDDEN))
        layer.forward(bf16([1.0] * (tokens * HIDDEN)), array.array("i", ids), array.array("f", weights), out, tokens=tokens, **more)
        got = numbers(out)
        for token in range(tokens):
            self.assertEqual(set(got[token * HIDDEN:(token + 1) * HIDDEN]), {got[token * HIDDEN]})
        return got[::HIDDEN]

    def assert_near(self, got, expected):
        self.assertEqual(len(got), len(expected))
        for a, b in zip(got, expected):
            self.assertAlmostEqual(a, b, delta=abs(b) * 0.01)

    def test_biases(self):
        """Of expert 1: gate 1 + 1, up 64 + 64, down − 1024; expert 0 has 512 at the end alone."""
        expected = (8 * 64 * SILU + 512, 0.5 * (16 * 128 * silu(2.0) - 1024))
        layer = self.layer(bias=True)
        down = bf16([512.0] * HIDDEN + [-1024.0] * HIDDEN)
        layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST, fc2_bias=down,
                   fc1_bias=bf16([0.0] * (2 * WIDEST) + [1.0] * WIDEST + [64.0] * WIDEST))
        self.assert_near(self.forward(layer, [0, 1], [1.0, 0.5]), expected)
        matrices = [one_expert(w) for w in WIDTHS]
        layer.bind(*zip(*matrices), storage="pointers", fc1_bias=[bf16([0.0] * 16), bf16([1.0] * 16 + [64.0] * 16)],
                   fc2_bias=[bf16([512.0] * HIDDEN), bf16([-1024.0] * HIDDEN)])
        self.assert_near(self.forward(layer, [0, 1], [1.0, 0.5]), expected)
        # The same by hand: experts and their biases as arrays of the header's structs.
        halves = [bf16([0.0] * 16), bf16([64.0] * 16), bf16([1.0] * 16)]
        experts, biases = (client.ExpertWeights * 2)(), (client.ExpertBiases * 2)()
        for i, (fc1, fc2) in enumerate(matrices):
            begin = client.address(fc1)
            experts[i].assign({"gate": begin, "up": begin + WIDTHS[i] * HIDDEN * 2, "down": client.address(fc2), "fc1_stride": HIDDEN,
                               "fc2_stride": WIDTHS[i]})
            biases[i].assign({"gate": client.address(halves[2 * i]), "up": client.address(halves[i]), "down": client.address(down) + i * HIDDEN * 2,
                              "fc1_stride": 1})
        layer.bind(storage="experts", experts=experts, expert_biases=biases)
        self.assert_near(self.forward(layer, [0, 1], [1.0, 0.5]), expected)

    def test_routing_weights_on_the_input(self):
        layer = self.layer(weight_on_input=True)
        layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST)
        self.assert_near(self.forward(layer, [0, 1], [2.0, 0.5]), (8 * 128 * silu(2.0), 16 * 32 * silu(0.5)))

    def test_shared_experts(self):
        """Bound in each of the three ways, with a gate of sigmoid(1) and without; a token without experts has them as well."""
        fc1, fc2 = zip(one_expert(24), one_expert(8))
        joined = [client.host_copy(b"".join(map(bytes, parts))) for parts in (fc1, fc2)]
        array_of = (client.ExpertWeights * 2)()
        for one, a, b, width in zip(array_of, fc1, fc2, (24, 8)):
            one.assign({"gate": client.address(a), "up": client.address(a) + width * HIDDEN * 2, "down": client.address(b), "fc1_stride": HIDDEN,
                        "fc2_stride": width})
        ways = ({"shared_fc1": joined[0], "shared_fc2": joined[1]}, {"shared_fc1": fc1, "shared_fc2": fc2}, {"shared_experts": array_of})
        for gated in (0, 1):
            layer = self.layer(shared_widths=[24, 8], shared_gate=gated)
            gate = {"shared_gate": bf16([1 / 64] * HIDDEN)} if gated else {}
            always = 32 * 64 * SILU * (SILU if gated else 1)
            for way in ways:
                with self.subTest(gated=gated, way=list(way)):
                    layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST, **way, **gate)
                    self.assert_near(self.forward(layer, [0, -1, 1], [1.0, 1.0, 0.5]),
                                     (always + 8 * 64 * SILU, always, always + 0.5 * 16 * 64 * SILU))

    def test_ids_of_the_whole_model(self):
        """Experts 7 and 2 of nine are here; token 1's is elsewhere, token 2's beyond all."""
        layer = self.layer()
        layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST)
        here = array.array("i", [-1, -1, 1, -1, -1, -1, -1, 0, -1])
        expected = (8 * 64 * SILU, 0.0, 0.0, 16 * 64 * SILU)
        self.assert_near(self.forward(layer, [7, 3, 9, 2], [1.0] * 4, expert_map=here), expected)
        self.assert_near(self.forward(layer, [7, 3, 9, 2], [1.0] * 4, expert_map=here, absent_tokens="untouched"), (expected[0], 2.0, 2.0, expected[3]))
        with self.assertRaisesRegex(ValueError, "expert_map is int64: must be int32"):
            self.forward(layer, [7], [1.0], expert_map=array.array("q", here))
        with self.assertRaisesRegex(ValueError, "absent_tokens = 'zeros': must be one of write_zeros, untouched"):
            self.forward(layer, [7], [1.0], absent_tokens="zeros")

    def test_up_projection_alone(self):
        """Rows by expert: token 2's of expert 0, token 0's of expert 1, then the shared expert's of all tokens."""
        layer = self.layer(shared_widths=[8])
        fc1, fc2 = one_expert(8)
        layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST, shared_fc1=fc1, shared_fc2=fc2)
        self.assertEqual((layer.up_slots, layer.up_stride), (2, 64))
        h, offsets, row = bf16([0.0] * (6 * 64)), array.array("i", [9] * 4), array.array("i", [9] * 6)
        x = bf16([1.0] * HIDDEN + [4.0] * HIDDEN + [2.0] * HIDDEN)
        layer.up_call(x, array.array("i", [1, -1, 0]), h, offsets, row, tokens=3)()
        self.assertEqual((offsets.tolist(), row.tolist()), ([0, 1, 2, 5], [1, 2, -1, 3, 0, 4]))
        got = numbers(h)
        for at, (width, v) in enumerate(((8, 2), (16, 1), (8, 1), (8, 4), (8, 2))):
            self.assert_near(got[at * 64:at * 64 + width], [64 * v * silu(v)] * width)
        with self.assertRaisesRegex(TypeError, "tokens must be given"):
            layer.up_call(x, array.array("i", [1, -1, 0]), h, offsets, row)

    def test_building_blocks(self):
        """Three tokens; rows of expert 0, then of expert 1, each at a multiple of 4: token 2's, then token 0's."""
        blocks = self.engine.blocks(HIDDEN, WIDTHS, 1)
        blocks.prepare([4])
        blocks.bind(*padded_weights(), storage="padded", padded_width=WIDEST)
        x, rows = bf16([1.0] * HIDDEN + [4.0] * HIDDEN + [2.0] * HIDDEN), bf16([9.0] * (8 * HIDDEN))
        row_map, slot_row = array.array("i", [2, -1, -1, -1, 0, -1, -1, -1]), array.array("i", [9] * 3)
        blocks.gather_call(x, row_map, rows, tokens=3, rows=8)()
        self.assertEqual([numbers(rows)[r * HIDDEN] for r in range(8)], [2, 9, 9, 9, 1, 9, 9, 9])
        counts = array.array("q", [1, 1] + [0] * (len(WIDTHS) - 2))
        by = blocks.by_expert(8, "counts", expert_counts=counts, multiple=4)
        h, y, out = bf16([0.0] * (8 * 64)), bf16([9.0] * (8 * HIDDEN)), bf16([7.0] * (3 * HIDDEN))
        blocks.up_call(by, rows, h)()
        self.assert_near(numbers(h)[:8] + numbers(h)[4 * 64:4 * 64 + 16], [64 * 2 * silu(2)] * 8 + [64 * SILU] * 16)
        blocks.down_call(by, h, y)()
        blocks.slot_rows_call(row_map, slot_row, tokens=3, rows=8)()
        self.assertEqual(slot_row.tolist(), [4, -1, 0])
        blocks.combine_call(y, slot_row, out, tokens=3, rows=8, topk_weights=array.array("f", [0.5, 1.0, 1.0]))()
        self.assert_near([numbers(out)[t * HIDDEN] for t in range(3)], [0.5 * 16 * 64 * SILU, 0.0, 8 * 64 * 2 * silu(2)])
        dy, dweights = bf16([9.0] * (8 * HIDDEN)), array.array("f", [7.0] * 3)
        ones = bf16([1.0] * (3 * HIDDEN))
        blocks.combine_backward_call(ones, slot_row, 3, 8, dy=dy, y=y, dtopk_weights=dweights, topk_weights=array.array("f", [0.5, 1.0, 1.0]))()
        self.assertEqual([numbers(dy)[r * HIDDEN] for r in range(8)], [1, 9, 9, 9, 0.5, 9, 9, 9])
        self.assert_near(dweights.tolist(), [HIDDEN * numbers(y)[4 * HIDDEN], 0.0, HIDDEN * numbers(y)[0]])
        with self.assertRaisesRegex(ValueError, "expert_counts is fp32: must be int32 or int64"):
            blocks.by_expert(8, "counts", expert_counts=array.array("f", [1.0]))
        with self.assertRaisesRegex(client.VarmoeError, "expert_offsets is null"):
            blocks.up_call(blocks.by_expert(8), rows, h)()

    def test_backward_of_building_blocks(self):
        """Rows as above: 2 of expert 0, 1 of expert 1 and of weight 1/2; dy is 1. z: gate is x, up is 64 · x; dh is 64 times the weight."""
        blocks = self.engine.blocks(HIDDEN, WIDTHS, 1, weighted_down=True, training=True, gradient_type="fp32")
        blocks.bind(*padded_weights(), storage="padded", padded_width=WIDEST)
        gradients = [client.host_copy(bytes([255]) * (n * 24 * HIDDEN * 4)) for n in (2, 1)]
        blocks.bind_gradients(*gradients)
        by = blocks.by_expert(8, "counts", expert_counts=array.array("i", [1, 1]), multiple=4)
        x = bf16([2.0] * HIDDEN + [float("nan")] * (3 * HIDDEN) + [1.0] * HIDDEN + [float("nan")] * (3 * HIDDEN))
        weights, dweights = array.array("f", [1.0] * 4 + [0.5] * 4), array.array("f", [7.0] * 8)
        slope = lambda v: silu(v) / v * (1 + v - silu(v))
        floats = lambda buffer: list(memoryview(buffer).cast("B").cast("f"))
        rows = ((0, 8, 2.0, 1.0), (4, 16, 1.0, 0.5))  # where, width, x, weight
        for from_z in (False, True):
            h, dh = bf16([0.0] * (8 * 64)), bf16([9.0] * (8 * 64))
            z, dz, dx = bf16([0.0] * (8 * 128)), bf16([9.0] * (8 * 128)), bf16([9.0] * (8 * HIDDEN))
            blocks.up_call(by, x, h, z=z)()
            dy = bf16([1.0] * (8 * HIDDEN))
            if from_z:
                blocks.down_backward_call(by, dy, z=z, dz=dz, row_weights=weights, drow_weights=dweights)()
                blocks.up_backward_call(by, dz, x=x, dx=dx)()
            else:
                blocks.down_backward_call(by, dy, h=h, dh=dh, row_weights=weights, drow_weights=dweights)()
                self.assert_near(numbers(dh)[:8] + numbers(dh)[4 * 64:4 * 64 + 16], [64.0] * 8 + [32.0] * 16)
                blocks.up_backward_call(by, dz, x=x, z=z, dh=dh, dx=dx)()
            wanted = [7.0] * 8 if not from_z else dweights.tolist()
            for row, width, value, weight in rows:
                wanted[row] = 64 * width * 64 * value * silu(value)
                gate, up = 64 * weight * 64 * value * slope(value), 64 * weight * silu(value)
                self.assert_near(numbers(z)[row * 128:row * 128 + width] + numbers(z)[row * 128 + 64:row * 128 + 64 + width],
                                 [value] * width + [64 * value] * width)
                self.assert_near(numbers(dz)[row * 128:row * 128 + width] + numbers(dz)[row * 128 + 64:row * 128 + 64 + width],
                                 [gate] * width + [up] * width)
                self.assert_near(numbers(dx)[row * HIDDEN:(row + 1) * HIDDEN], [width * (gate / 64 + up)] * HIDDEN)
            self.assert_near(dweights.tolist(), wanted)
            self.assertEqual(numbers(dx)[HIDDEN:4 * HIDDEN], [9.0] * (3 * HIDDEN))
            dw1, dw2 = map(floats, gradients)
            at = 0
            for row, width, value, weight in rows:
                gate, up = 64 * weight * 64 * value * slope(value), 64 * weight * silu(value)
                n = width * HIDDEN
                self.assert_near(dw1[2 * at:2 * at + n], [gate * value] * n)
                self.assert_near(dw1[2 * at + n:2 * at + 2 * n], [up * value] * n)
                self.assert_near(dw2[at:at + n], [weight * 64 * value * silu(value)] * n)
                at += n
        with self.assertRaisesRegex(client.VarmoeError, "h and z are given"):
            blocks.down_backward_call(by, dy, h=h, z=z, dh=dh, row_weights=weights)()

    def test_training(self):
        """x and dout are 1. Expert 0: z = 64 in 8 columns, h = 64² and out its sum; g = 64, dz = 64 · 2 · 64 times the weight."""
        for kind, element in (("layer_dtype", 2), ("fp32", 4)):
            layer = self.engine.training_layer(HIDDEN, WIDTHS, 1, activation="relu2", gradient_type=kind, save_preactivation=kind == "fp32")
            layer.prepare([2])
            layer.bind(bf16([1.0] * (24 * HIDDEN)), bf16([1.0] * (24 * HIDDEN)))
            ids, weights = array.array("i", [0, -1]), array.array("f", [0.5, 1.0])
            x, out, dout, dx = (bf16([v] * (2 * HIDDEN)) for v in (1.0, 2.0, 1.0, 2.0))
            dweights = array.array("f", [7.0, 7.0])
            saved = layer.forward(x, ids, weights, out, tokens=2)
            self.assertEqual(saved is None, kind == "layer_dtype")
            self.assertEqual(set(numbers(out)[:HIDDEN]), {0.5 * 8 * 64 * 64})
            # By expert: fc1's gradients in one array, fc2's in another of four-byte numbers where they are such.
            gradients = [client.host_copy(bytes([255]) * (24 * HIDDEN * element)) for _ in range(2)]
            with self.assertRaisesRegex(client.VarmoeError, "before bind_gradients"):
                layer.backward(x, ids, weights, dout, saved, tokens=2)
            layer.bind_gradients(*gradients)
            for times in (1, 2):
                layer.backward(x, ids, weights, dout, saved, dx=dx, dtopk_weights=dweights, tokens=2, accumulate_weight_gradients=times == 2)
                self.assertEqual(dweights.tolist(), [8 * 64 * 64 * 64.0, 0.0])
                self.assertEqual(numbers(dx), [8 * 64 * 64.0] * HIDDEN + [0.0] * HIDDEN)
                for buffer, expected in zip(gradients, (64.0 * 64, 0.5 * 64 * 64)):
                    got = list(memoryview(buffer).cast("B").cast("f")) if element == 4 else numbers(buffer)
                    self.assertEqual(got, [times * expected] * (8 * HIDDEN) + [0.0] * (16 * HIDDEN))
            with self.assertRaisesRegex(ValueError, "dtopk_weights is int32: must be fp32"):
                layer.backward_call(x, ids, weights, dout, saved, dtopk_weights=ids, tokens=2)
            with self.assertRaisesRegex(TypeError, "tokens must be given"):
                layer.backward_call(x, ids, weights, dout, saved)
            if kind == "fp32":
                with self.assertRaisesRegex(ValueError, "fc2 is int32: must be fp32"):
                    layer.bind_gradients(gradients[0], ids)

    def test_router_and_blocks(self):
        logits = array.array("f", [0.0, 3.0, 1.0, 2.0])
        ids, weights, scores = array.array("i", [0, 0]), array.array("f", [0, 0]), array.array("f", [0] * 4)
        self.engine.router(4, 2, renormalize=1).route(logits, ids, weights, tokens=1, scores=scores)
        self.assertEqual(ids.tolist(), [1, 3])
        self.assertAlmostEqual(weights[0], 1 / (1 + math.exp(-1)), places=6)
        self.assertAlmostEqual(sum(scores), 1.0, places=6)
        aligner = self.engine.block_aligner(4, block_size=2)
        places, blocks = aligner.sizes(2)
        sorted_ids, expert_ids, padded = array.array("i", [9] * places), array.array("i", [9] * blocks), array.array("i", [9])
        aligner.align(ids, sorted_ids, expert_ids, padded)
        self.assertEqual((padded.tolist(), sorted_ids.tolist(), expert_ids.tolist()), ([4], [0, 2, 1, 2], [1, 3]))

    def test_a_router_that_multiplies_itself_and_its_statistics(self):
        router = self.engine.router(2, 1, hidden_size=8, weight_type="bf16", logit_bias=1)
        ids, weights, logits = array.array("i", [7, 7]), array.array("f", [0, 0]), array.array("f", [0] * 4)
        router.call_product(bf16([1.0] * 8 + [-1.0] * 8), bf16([1.0] * 8 + [2.0] * 8), ids, weights, tokens=2, logits_out=logits,
                            logit_bias=array.array("f", [0.5, 0]))()
        self.assertEqual((logits.tolist(), ids.tolist()), ([8.5, 16.0, -7.5, -16.0], [1, 0]))
        counts, losses = array.array("i", [0, 0]), array.array("f", [0] * 4)
        self.engine.router_statistics(2, 1).call(array.array("f", [0] * 4), array.array("i", [1, 1]), losses, counts, tokens=2,
                                                 expert_widths=array.array("i", [8, 24]))()
        self.assertEqual(counts.tolist(), [0, 2])
        for name, expected in (("z", math.log(2) ** 2), ("load_balance", 1.0), ("group_balance", 1.0), ("compute", 1.5)):
            self.assertAlmostEqual(losses[client.RouterStatistics.losses.index(name)], expected, places=6)

    def test_a_routers_gradient(self):
        gradient = self.engine.router_gradient(2, 1, losses=("z", "compute"), scoring="sigmoid", hidden_size=8, logit_bias=1)
        gradient.prepare()
        dlogits = array.array("f", [7] * 4)
        gradient.call(array.array("f", [0] * 4), dlogits, array.array("i", [1, -1]), array.array("f", [4, 9]), tokens=2)()
        self.assertEqual(dlogits.tolist(), [0, 1, 0, 0])
        gradient.call(array.array("f", [0] * 4), dlogits, coefficients={"z": 1}, tokens=2)()
        for value in dlogits:
            self.assertAlmostEqual(value, math.log(2) / 2, places=6)
        x, weight, dx = bf16([1.0] * 8 + [-1.0] * 8), bf16([1.0] * 8 + [2.0] * 8), bf16([0.0] * 16)
        dweight, bias = client.host_copy(array.array("f", [7.0] * 16)), array.array("f", [7, 7])
        gradient.call_product(array.array("f", [1, 0.5, 0, 0.25]), x, weight, dx, dweight, bias, tokens=2)()
        self.assertEqual(numbers(dx), [2.0] * 8 + [0.5] * 8)
        self.assertEqual(memoryview(dweight).cast("B").cast("f").tolist(), [1.0] * 8 + [0.25] * 8)
        self.assertEqual(bias.tolist(), [1, 0.75])
        with self.assertRaisesRegex(client.VarmoeError, "coefficients.1. = 1: must be 0"):
            gradient.call(array.array("f", [0] * 4), dlogits, coefficients={"load_balance": 1}, tokens=2)()
        with self.assertRaisesRegex(TypeError, "no member balance_coefficient"):
            gradient.call(array.array("f", [0] * 4), dlogits, coefficients={"balance": 1}, tokens=2)

    def test_mistakes_are_named(self):
        with self.assertRaisesRegex(client.VarmoeError, "hidden") as caught:
            self.engine.layer(63, [8], 1)
        self.assertEqual(caught.exception.name, "invalid_spec")
        with self.assertRaisesRegex(TypeError, "no member widths"):
            self.layer(widths=3)
        with self.assertRaisesRegex(ValueError, "activation = 'tanh': must be one of silu_mul"):
            self.layer(activation="tanh")
        layer = self.layer()
        with self.assertRaisesRegex(TypeError, "tokens must be given"):
            layer.call(bf16([0] * HIDDEN), array.array("i", [0]), array.array("f", [0]), bf16([0] * HIDDEN))
        with self.assertRaisesRegex(ValueError, "topk_weights is int32: must be fp32"):
            layer.call(bf16([0] * HIDDEN), array.array("i", [0]), array.array("i", [0]), bf16([0] * HIDDEN), tokens=1)
        with self.assertRaisesRegex(client.VarmoeError, "before bind"):
            layer.forward(bf16([0] * HIDDEN), array.array("i", [0]), array.array("f", [0]), bf16([0] * HIDDEN), tokens=1)
        with self.assertRaisesRegex(ValueError, "fc1 lists 1 tensors: must be 2"):
            layer.bind([1], [1, 2], storage="pointers")
        with self.assertRaisesRegex(ValueError, "fc2_bias is fp32: must be bf16"):
            layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST, fc2_bias=array.array("f", [0] * HIDDEN))
        with self.assertRaisesRegex(client.VarmoeError, "biases are set; the layer has none"):
            layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST, fc2_bias=bf16([0] * (2 * HIDDEN)))
        with self.assertRaisesRegex(ValueError, "shared_fc1 lists 1 tensors: must be 2"):
            self.layer(shared_widths=[8, 8]).bind(*padded_weights(), storage="padded", padded_width=WIDEST, shared_fc1=[1], shared_fc2=[1, 2])

    def test_numpy_arrays(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("no numpy here")
        wide = numpy.frombuffer(client.host_copy(bytes(3 * (HIDDEN + 8) * 2)), dtype=numpy.uint16).reshape(3, HIDDEN + 8)
        wide[:, :HIDDEN] = 0x3F80
        out = numpy.frombuffer(client.host_buffer(3 * HIDDEN * 2), dtype=numpy.uint16).reshape(3, HIDDEN)
        layer = self.layer()
        layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST)
        ids, weights = numpy.array([[0], [1], [-1]], dtype=numpy.int32), numpy.ones((3, 1), dtype=numpy.float32)
        layer.forward(wide[:, :HIDDEN], ids, weights, out)
        self.assertAlmostEqual(numbers(out.tobytes())[HIDDEN], 16 * 64 * SILU, delta=8)
        with self.assertRaisesRegex(ValueError, r"x has the shape \(3, 72\): must be \[T, 64\]"):
            layer.forward(wide, ids, weights, out)
        with self.assertRaisesRegex(ValueError, "x is fp32: must be bf16"):
            layer.forward(numpy.ones((3, HIDDEN), dtype=numpy.float32), ids, weights, out)
        # A shared expert as (gate, up, down), the two first out of one matrix whose rows alternate.
        fc1 = numpy.frombuffer(client.host_buffer(16 * HIDDEN * 2), dtype=numpy.uint16).reshape(16, HIDDEN)
        fc1[0::2], fc1[1::2] = 0x3C80, 0x3F80
        down = numpy.frombuffer(one_expert(8)[1], dtype=numpy.uint16).reshape(HIDDEN, 8)
        layer = self.layer(shared_widths=[8])
        layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST, shared_experts=[(fc1[0::2], fc1[1::2], down)])
        layer.forward(wide[:, :HIDDEN], ids, weights, out)
        self.assertAlmostEqual(numbers(out.tobytes())[2 * HIDDEN], 8 * 64 * SILU, delta=4)
        with self.assertRaisesRegex(ValueError, r"shared_experts\[0\]\.up has 64 elements between rows: must have as many as the gate, 128"):
            layer.bind(*padded_weights(), storage="padded", padded_width=WIDEST, shared_experts=[(fc1[0::2], fc1[:8], down)])
        h = numpy.frombuffer(client.host_buffer(6 * 72 * 2), dtype=numpy.uint16).reshape(6, 72)
        offsets, row = numpy.full(4, 9, dtype=numpy.int32), numpy.full((3, 2), 9, dtype=numpy.int32)
        layer.up_call(wide[:, :HIDDEN], ids, h, offsets, row)()
        self.assertEqual((offsets.tolist(), row.tolist()), ([0, 1, 2, 5], [[0, 2], [1, 3], [-1, 4]]))
        self.assertAlmostEqual(numbers(h.tobytes())[4 * 72 + 7], 64 * SILU, delta=0.5)
        with self.assertRaisesRegex(ValueError, "h has 5 rows: must have 6"):
            layer.up_call(wide[:, :HIDDEN], ids, h[:5], offsets, row)
        with self.assertRaisesRegex(ValueError, "expert_offsets has 3 elements: must have 4"):
            layer.up_call(wide[:, :HIDDEN], ids, h, offsets[:3], row)

    def test_objects_are_freed_in_any_order(self):
        layer = self.layer()
        self.engine.close()
        layer.close()
        layer.close()

    def test_the_example_checks_itself(self):
        shown = subprocess.run([sys.executable, "-B", ROOT / "tools" / "examples" / "forward.py", LIBRARY], capture_output=True, text=True)
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertRegex(shown.stdout, r"(CPU|GPU|NVIDIA).*: error \d\.\de-0[3-9]")


if __name__ == "__main__":
    unittest.main()
