#!/usr/bin/env python3
"""What tools/compare_peers and tools/compare_router promise on a machine without torch and GPU: their usage errors, and that their ctypes mirrors of the C API fit the library.

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


def load_tool(path=TOOL):
    loader = importlib.machinery.SourceFileLoader(path.name, str(path))
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


class CompareRouter(unittest.TestCase):
    TOOL = ROOT / "tools" / "compare_router"

    def test_help_and_usage_errors(self):
        shown = subprocess.run([sys.executable, self.TOOL, "--help"], capture_output=True, text=True)
        self.assertEqual(shown.returncode, 0)
        for word in ("deepseek_v3", "moe_align_block_size", "Exit status"):
            self.assertIn(word, shown.stdout)
        for arguments in (["--shapes", "128"], ["--tokens", "x"], ["--methods", "tanh"], ["--logits", "fp8"]):
            self.assertEqual(subprocess.run([sys.executable, self.TOOL, *arguments], capture_output=True).returncode, 2, arguments)

    def test_the_mirror_of_the_c_api_routes_and_aligns(self):
        tool, peers = load_tool(self.TOOL), load_tool()
        library = peers.Varmoe(LIBRARY)
        options = library.made(peers.EngineOptions, "varmoe_engine_options_init")
        options.device, options.cpu_threads = -1, 1
        engine = c.c_void_p()
        library.check(library.lib.varmoe_engine_create(c.byref(options), c.byref(engine)))
        experts, top_k = 16, 2
        logits = (c.c_float * experts)(*[float(e % 5) + e / 100 for e in range(experts)])
        bias = (c.c_float * experts)()
        for method, fields in tool.METHODS.items():
            with self.subTest(method):
                spec = library.made(tool.RouterSpec, "varmoe_router_spec_init")
                spec.num_experts, spec.top_k = experts, top_k
                for name, value in fields.items():
                    setattr(spec, name, value)
                router = c.c_void_p()
                library.check(library.lib.varmoe_router_create(engine, c.byref(spec), c.byref(router)))
                ids, weights = (c.c_int32 * top_k)(), (c.c_float * top_k)()
                args = library.made(tool.RouteArgs, "varmoe_route_args_init")
                args.tokens, args.logits, args.correction_bias = 1, c.addressof(logits), c.addressof(bias)
                args.topk_ids, args.topk_weights = c.addressof(ids), c.addressof(weights)
                library.check(library.lib.varmoe_router_route(router, c.byref(args)))
                # Groups of two: the second best of expert 14's group is its undoing where two count.
                self.assertEqual(list(ids), [9, 13] if method == "deepseek_v3" else [14, 9])
                if fields.get("renormalize") or method == "after":
                    self.assertAlmostEqual(sum(weights), fields.get("scaling_factor", 1.0), places=5)
                library.lib.varmoe_router_destroy(router)
        align = library.made(tool.AlignSpec, "varmoe_align_spec_init")
        align.num_experts = experts
        aligner = c.c_void_p()
        library.check(library.lib.varmoe_block_aligner_create(engine, c.byref(align), c.byref(aligner)))
        places, blocks, padded = (c.c_int32 * 256)(), (c.c_int32 * 2)(), c.c_int32()
        args = library.made(tool.AlignArgs, "varmoe_align_args_init")
        args.rows, args.topk_ids, args.sorted_token_ids, args.expert_ids = 2, c.addressof(ids), c.addressof(places), c.addressof(blocks)
        args.num_tokens_post_pad = c.addressof(padded)
        library.check(library.lib.varmoe_block_aligner_align(aligner, c.byref(args)))
        self.assertEqual((padded.value, list(blocks), places[0], places[128], places[1]), (256, [9, 14], 1, 0, 2))
        library.lib.varmoe_block_aligner_destroy(aligner)
        library.lib.varmoe_engine_destroy(engine)


if __name__ == "__main__":
    unittest.main()
