#!/usr/bin/env python3
"""What tools/compare_peers promises on a machine without torch and GPU: its usage errors, and that its ctypes mirror of the C API fits the library.

usage: compare_stories.py REPOSITORY LIBRARY
"""
import ctypes as c
import importlib.machinery
import importlib.util
import math
import pathlib
import subprocess
import sys
import unittest

ROOT, LIBRARY = pathlib.Path(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
TOOL = ROOT / "tools" / "compare_peers"


def load_tool():
    loader = importlib.machinery.SourceFileLoader("compare_peers", str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


class Compare(unittest.TestCase):
    def run_tool(self, *arguments):
        return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True)

    def test_help_names_layers_peers_and_method(self):
        shown = self.run_tool("--help")
        self.assertEqual(shown.returncode, 0)
        for word in ("--routing", "cublas", "grouped_mm", "L2 flushed", "Exit status"):
            self.assertIn(word, shown.stdout)

    def test_wrong_arguments_are_usage_errors_that_say_what_would_be_right(self):
        for arguments, says in ((["--layers", "mixtral:8"], "mixtral-8x7b"), (["--layers", "mixtral-8x7b"], "NAME:T"),
                                (["--layers", "mixtral-8x7b:0"], "NAME:T"), (["--peers", "torch,triton"], "must be of torch, cublas"),
                                (["--routing", "flat"], "zipf")):
            shown = self.run_tool(*arguments)
            self.assertEqual(shown.returncode, 2, arguments)
            self.assertIn(says, shown.stderr)

    def test_the_mirror_of_the_c_api_runs_a_layer(self):
        """On the CPU backend: a struct that the library reads otherwise would be refused, or give another result."""
        tool = load_tool()
        library = tool.Varmoe(LIBRARY)
        options = library.made(tool.EngineOptions, "varmoe_engine_options_init")
        options.device, options.cpu_threads = -1, 1
        engine = c.c_void_p()
        library.check(library.lib.varmoe_engine_create(c.byref(options), c.byref(engine)))
        hidden, widths, widest, tokens = 64, [8, 16], 16, 3
        layer = library.layer(engine, hidden, widths, 1, tokens)

        def bf16(values):
            # Aligned, and every value a power of two: exact.
            raw = (c.c_uint16 * (len(values) + 128))()
            shift = (-c.addressof(raw) % 256) // 2
            array = (c.c_uint16 * len(values)).from_buffer(raw, shift * 2)
            for i, value in enumerate(values):
                array[i] = c.c_uint32.from_buffer(c.c_float(value)).value >> 16
            return array

        class Tensor:
            def __init__(self, array):
                self.array = array

            def data_ptr(self):
                return c.addressof(self.array)

        # Padded storage: gate and up are 1/64 and 1 in every column that an expert has, and so is down.
        fc1 = [0.0] * (2 * 2 * widest * hidden)
        fc2 = [0.0] * (2 * hidden * widest)
        for e, width in enumerate(widths):
            for row in range(width):
                for k in range(hidden):
                    fc1[((e * 2 + 0) * widest + row) * hidden + k] = 1 / 64
                    fc1[((e * 2 + 1) * widest + row) * hidden + k] = 1.0
            for k in range(hidden):
                for column in range(width):
                    fc2[(e * hidden + k) * widest + column] = 1.0
        weights = Tensor(bf16(fc1)), Tensor(bf16(fc2))
        library.bind(layer, *weights, widest)
        x, out = bf16([1.0] * (tokens * hidden)), bf16([0.0] * (tokens * hidden))
        ids = (c.c_int32 * tokens)(0, 1, -1)
        routing = (c.c_float * tokens)(1.0, 0.5, 1.0)
        size = library.workspace_bytes(layer, tokens)
        workspace = bf16([0.0] * (size // 2 + 1))
        args = library.made(tool.ForwardArgs, "varmoe_forward_args_init")
        args.tokens, args.x, args.out = tokens, c.addressof(x), c.addressof(out)
        args.topk_ids, args.topk_weights = c.addressof(ids), c.addressof(routing)
        args.workspace, args.workspace_bytes = c.addressof(workspace), size
        library.check(library.lib.varmoe_layer_forward(layer, c.byref(args)))
        silu = 1 / (1 + math.exp(-1.0))  # gate sums to 1, up to 64
        for token, expected in enumerate((8 * 64 * silu, 0.5 * 16 * 64 * silu, 0.0)):
            for k in (0, hidden - 1):
                got = c.c_float.from_buffer(c.c_uint32(out[token * hidden + k] << 16)).value
                self.assertAlmostEqual(got, expected, delta=abs(expected) * 0.01)
        library.lib.varmoe_layer_destroy(layer)
        library.lib.varmoe_engine_destroy(engine)

    def test_an_error_of_the_library_is_its_sentence(self):
        tool = load_tool()
        library = tool.Varmoe(LIBRARY)
        with self.assertRaisesRegex(RuntimeError, "hidden|multiple of 8|width"):
            options = library.made(tool.EngineOptions, "varmoe_engine_options_init")
            options.device = -1
            engine = c.c_void_p()
            library.check(library.lib.varmoe_engine_create(c.byref(options), c.byref(engine)))
            library.layer(engine, 63, [8], 1, 1)


if __name__ == "__main__":
    unittest.main()
