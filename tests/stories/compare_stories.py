#!/usr/bin/env python3
"""What tools/compare_peers, compare_router, compare_up and compare_transformers promise on a machine without torch and GPU: their usage errors, and that the library takes their routers and layers.

usage: compare_stories.py REPOSITORY LIBRARY
"""
import array
import importlib.machinery
import importlib.util
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


class CompareRouter(unittest.TestCase):
    TOOL = ROOT / "tools" / "compare_router"

    def test_help_and_usage_errors(self):
        shown = subprocess.run([sys.executable, self.TOOL, "--help"], capture_output=True, text=True)
        self.assertEqual(shown.returncode, 0)
        for word in ("deepseek_v3", "moe_align_block_size", "Exit status"):
            self.assertIn(word, shown.stdout)
        for arguments in (["--shapes", "128"], ["--tokens", "x"], ["--methods", "tanh"], ["--logits", "fp8"]):
            self.assertEqual(subprocess.run([sys.executable, self.TOOL, *arguments], capture_output=True).returncode, 2, arguments)

    def test_methods_are_routers_that_the_library_takes(self):
        """On the CPU backend, each chooses as its formula says."""
        tool = load_tool(self.TOOL)
        engine = tool.varmoe_client.Library(LIBRARY).engine("cpu", cpu_threads=1)
        experts, top_k = 16, 2
        logits, bias = array.array("f", [float(e % 5) + e / 100 for e in range(experts)]), array.array("f", [0] * experts)
        for method, fields in tool.METHODS.items():
            with self.subTest(method):
                ids, weights = array.array("i", [-1] * top_k), array.array("f", [-1] * top_k)
                engine.router(experts, top_k, **fields).route(logits, ids, weights, tokens=1, correction_bias=bias)
                # Groups of two: the second best of expert 14's group is its undoing where two count.
                self.assertEqual(ids.tolist(), [9, 13] if method == "deepseek_v3" else [14, 9])
                if fields.get("renormalize") or method == "after":
                    self.assertAlmostEqual(sum(weights), fields.get("scaling_factor", 1.0), places=5)


class CompareTransformers(unittest.TestCase):
    TOOL = ROOT / "tools" / "compare_transformers"

    def test_help_and_usage_errors(self):
        shown = subprocess.run([sys.executable, self.TOOL, "--help"], capture_output=True, text=True)
        self.assertEqual(shown.returncode, 0)
        for word in ("--own-router", "--vllm-shapes", "6e-3", "Exit status"):
            self.assertIn(word, shown.stdout)
        for arguments in (["--families", "dbrx"], ["--tokens", "1,x"], ["--tokens", "0"], ["--device", "tpu"]):
            self.assertEqual(subprocess.run([sys.executable, self.TOOL, *arguments], capture_output=True).returncode, 2, arguments)

    def test_its_routers_and_layers_are_such_as_the_library_takes(self):
        tool = load_tool(self.TOOL)
        engine = tool.varmoe_client.Library(LIBRARY).engine("cpu", cpu_threads=1)
        for family, entry in tool.FAMILIES.items():
            for size in ("small", "full"):
                with self.subTest(family, size=size):
                    config = entry[size]
                    experts = next(config[name] for name in ("num_local_experts", "num_experts", "n_routed_experts") if name in config)
                    width = config.get("moe_intermediate_size", config.get("intermediate_size"))
                    engine.router(experts, config["num_experts_per_tok"], **entry["router"])
                    engine.router(experts, config["num_experts_per_tok"], hidden_size=config["hidden_size"], **entry["router"])
                    engine.layer(config["hidden_size"], [width] * experts, config["num_experts_per_tok"], **entry.get("layer", {}))


class CompareUp(unittest.TestCase):
    TOOL = ROOT / "tools" / "compare_up"

    def run_tool(self, *arguments):
        return subprocess.run([sys.executable, self.TOOL, "--library", LIBRARY, *arguments], capture_output=True, text=True)

    def test_help_and_usage_errors(self):
        shown = self.run_tool("--help")
        self.assertEqual(shown.returncode, 0)
        for word in ("Layer::up", "--shared-width", "5e-3", "Exit status"):
            self.assertIn(word, shown.stdout)
        for arguments in (["--tokens", "0"], ["--tokens", "1,x"], ["--top-k", "9"], ["--device", "tpu"]):
            self.assertEqual(self.run_tool(*arguments).returncode, 2, arguments)

    @unittest.skipUnless(importlib.util.find_spec("torch"), "no torch here")
    def test_its_comparison_holds_on_the_cpu(self):
        shown = self.run_tool("--device", "cpu", "--tokens", "1,37", "--hidden", "256", "--width", "192", "--shared-width", "320")
        self.assertEqual(shown.returncode, 0, shown.stdout + shown.stderr)
        self.assertEqual(shown.stdout.count(" ok"), 2)

    @unittest.skipIf(importlib.util.find_spec("torch"), "torch is here")
    def test_without_torch_it_says_so(self):
        shown = self.run_tool("--device", "cpu")
        self.assertEqual((shown.returncode, "torch" in shown.stdout), (3, True))


if __name__ == "__main__":
    unittest.main()
