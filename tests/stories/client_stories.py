#!/usr/bin/env python3
"""What tools/examples/varmoe_client.py promises: its structs are those of varmoe.h, results are right, tensors are not copied, mistakes are named.

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

    def test_its_structs_are_the_headers_first_members(self):
        """A struct of the library that grew takes a shorter one, so the client may lack the last members, but none between."""
        of_header = header_structs()
        structs = client.Struct.__subclasses__()
        self.assertGreater(len(structs), 10)
        for struct in structs:
            with self.subTest(struct.c_name):
                members = [(name, c.sizeof(kind)) for name, kind in struct._fields_]
                self.assertEqual(members, of_header[struct.c_name][:len(members)])

    def test_enumerators_are_numbered_as_in_the_header(self):
        text = (ROOT / "include" / "varmoe" / "varmoe.h").read_text()
        for prefix, names in (("DTYPE", client.DTYPES), ("ACTIVATION", client.ACTIVATIONS), ("LAYOUT", client.LAYOUTS), ("GATE", client.GATE_ORDERS),
                              ("STORAGE", client.STORAGES), ("LOGITS", client.ELEMENTS), ("SCORING", client.ENUMERATORS["scoring"]),
                              ("ORDER", client.ENUMERATORS["order"]), ("GROUP_SCORE", client.ENUMERATORS["group_score"]),
                              ("OUTSIDE_GROUPS", client.ENUMERATORS["outside_groups"]), ("CACHE", client.ENUMERATORS["cache_mode"]),
                              ("JIT", client.ENUMERATORS["jit"]), ("TUNE", client.ENUMERATORS["tune"])):
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
        fc1 = [bf16([1 / 64] * (w * HIDDEN) + [1.0] * (w * HIDDEN)) for w in WIDTHS]
        fc2 = [bf16([1.0] * (HIDDEN * w)) for w in WIDTHS]
        layer = self.layer()
        layer.bind(fc1, fc2, storage="pointers")
        out = bf16([0.0] * HIDDEN)
        layer.forward(bf16([1.0] * HIDDEN), array.array("q", [1]), array.array("f", [1.0]), out, tokens=1)
        self.assertAlmostEqual(numbers(out)[HIDDEN - 1], 16 * 64 * SILU, delta=8)

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
        with self.assertRaisesRegex(ValueError, "list 1 and 2 matrices: must be 2 each"):
            layer.bind([1], [1, 2], storage="pointers")

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
