#!/usr/bin/env python3
"""What tools/examples/varmoe_autograd.py, tools/examples/train.py and tools/compare_backward promise, on the CPU.

usage: training_stories.py REPOSITORY LIBRARY

Without torch: their help, usage errors, and that they say what is missing.
"""
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT, LIBRARY = pathlib.Path(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools" / "examples"))
TRAIN, COMPARE = ROOT / "tools" / "examples" / "train.py", ROOT / "tools" / "compare_backward"
HAS_TORCH = importlib.util.find_spec("torch") is not None


def run(tool, *arguments):
    return subprocess.run([sys.executable, "-B", tool, *arguments], capture_output=True, text=True)


class Programs(unittest.TestCase):
    def test_help_and_usage_errors(self):
        for tool, words, wrong in (
                (TRAIN, ("--compare", "0.9999", "1 %", "Exit status"),
                 (["--steps", "0"], ["--widths", "64,x"], ["--top-k", "9"], ["--backend", "jax"], ["--device", "tpu"])),
                (COMPARE, ("fp64", "1e-2", "CUDA graph", "grouped_mm", "SonicMoE", "Exit status"),
                 ([], ["--check", "--time"], ["--check", "--layouts", "mn"], ["--check", "--rows", "9_*"], ["--time", "--iterations", "0"]))):
            shown = run(tool, "--help")
            self.assertEqual(shown.returncode, 0, shown.stderr)
            for word in words:
                self.assertIn(word, shown.stdout)
            for arguments in wrong:
                self.assertEqual(run(tool, *arguments).returncode, 2, (tool.name, arguments))
        shown = run(COMPARE, "--time", "--rows", "8_uniform-2048", "nothing")
        self.assertIn("--rows nothing: fits none of 8_uniform-2048", shown.stderr)

    def test_rows_are_those_of_the_named_sets(self):
        """Widths, counts and top-k, as src/model/named_sets.cpp writes them down."""
        text = (ROOT / "src" / "model" / "named_sets.cpp").read_text()
        sets = {name: ([tuple(map(int, pair)) for pair in re.findall(r"\{(\d+), (\d+)\}", classes)], int(top_k))
                for name, classes, top_k in re.findall(r'relu2_set\("(\w+)", \{(.*?)\}, (\d+)\)', text)}
        self.assertEqual(len(sets), 8)
        loader = importlib.machinery.SourceFileLoader("compare_backward", str(COMPARE))
        tool = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        loader.exec_module(tool)
        self.assertEqual(tool.SETS, sets)
        self.assertEqual({row.hidden for row in tool.check_rows()}, {256, 2048})
        self.assertIn((16384, 2048, [768] * 128, 8), [(r.tokens, r.hidden, r.widths, r.top_k) for r in tool.time_rows()])

    @unittest.skipIf(HAS_TORCH, "torch is here")
    def test_without_torch_they_say_so(self):
        for tool, *arguments in ((TRAIN, "--device", "cpu"), (COMPARE, "--check", "--small", "--device", "cpu")):
            shown = run(tool, "--library", LIBRARY, *arguments)
            self.assertEqual((shown.returncode, "torch" in shown.stderr), (3, True))

    @unittest.skipUnless(HAS_TORCH, "no torch here")
    def test_gradients_are_those_of_fp64(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "rows"
            for more in ((), ("--gradient-type", "fp32", "--no-preactivation")):
                shown = run(COMPARE, "--library", LIBRARY, "--check", "--small", "--device", "cpu", "--rows", "8_variable-256", "mixed-2048", "--json", path,
                            *more)
                self.assertEqual(shown.returncode, 0, shown.stdout + shown.stderr)
                self.assertIn("4 of 4 ok", shown.stdout)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            self.assertEqual(len(rows), 8)
            for row in rows:
                self.assertEqual(set(row["errors"]), {"out", "dx", "dW1", "dW2", "dw"})
                self.assertTrue(all(0 < error < 1e-2 for error in row["errors"].values()))

    @unittest.skipUnless(HAS_TORCH, "no torch here")
    def test_times_come_with_agreement(self):
        shown = run(COMPARE, "--library", LIBRARY, "--time", "--small", "--device", "cpu", "--rows", "64_variable-256", "sonic-1536-1024*", "--iterations", "1")
        self.assertEqual(shown.returncode, 0, shown.stdout + shown.stderr)
        self.assertIn("2 of 2 ok", shown.stdout)

    @unittest.skipUnless(HAS_TORCH, "no torch here")
    def test_a_few_steps_of_training_are_those_of_torch(self):
        few = ("--library", LIBRARY, "--device", "cpu", "--steps", "6", "--tokens", "32", "--hidden", "64", "--blocks", "2", "--widths", "32,16,8,24")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "losses"
            shown = run(TRAIN, *few, "--compare", "--json", path)
            self.assertEqual(shown.returncode, 0, shown.stdout + shown.stderr)
            self.assertRegex(shown.stdout, r"varmoe +0\.\d+% .* ok")
            curves = json.loads(path.read_text())
        ours, torchs, other = curves["varmoe"], curves["torch"], curves["torch, other seed"]
        self.assertLess(max(abs(a - b) for a, b in zip(ours, torchs)), 0.01)
        self.assertGreater(max(abs(a - b) for a, b in zip(other, torchs)), 0.02)
        self.assertEqual(run(TRAIN, *few, "--backend", "torch").returncode, 0)
        shown = run(TRAIN, *few, "--compare", "--weight-on-input")
        self.assertEqual(shown.returncode, 0, shown.stdout + shown.stderr)
        self.assertEqual(run(TRAIN, *few, "--hidden", "65").returncode, 2)


@unittest.skipUnless(HAS_TORCH, "no torch here")
class Autograd(unittest.TestCase):
    """MoELayer beside expert_loop, whose gradients are torch's own."""
    WIDTHS = [8, 40, 16, 24]

    @classmethod
    def setUpClass(cls):
        global torch, autograd
        import torch
        import varmoe_autograd as autograd
        import varmoe_client
        cls.engine = varmoe_client.Library(LIBRARY).engine("cpu", cpu_threads=1)

    def make(self, **more):
        torch.manual_seed(3)
        self.layer = autograd.MoELayer(self.engine, 64, self.WIDTHS, 2, **more)
        self.x = torch.randn(3, 7, 64).bfloat16().requires_grad_()
        scores = torch.randn(3, 7, 4).softmax(dim=-1).topk(2)
        self.ids, self.weights = scores.indices, scores.values.detach().requires_grad_()
        self.dout = torch.randn(3, 7, 64).bfloat16()
        return self.layer

    def step(self):
        out = self.layer(self.x, self.ids, self.weights)
        out.backward(self.dout)
        return out

    def gradients(self):
        return [p.grad.clone() for p in self.layer.parameters()]

    def assert_near(self, got, wanted, bound=1e-2):
        wanted = wanted.detach().double().reshape(-1)
        self.assertLess(float((got.detach().double().reshape(-1) - wanted).norm() / wanted.norm()), bound)

    def test_gradients_of_everything(self):
        for activation in ("silu_mul", "relu2"):
            for layout in ("nk", "kn"):
                for dtype in (torch.bfloat16, torch.float32):
                    for gradients in ("in_place", "returned"):
                        inward = int(dtype == torch.float32 and gradients == "returned")
                        with self.subTest(activation=activation, layout=layout, dtype=dtype, gradients=gradients, weight_on_input=inward):
                            layer = self.make(activation=activation, fc1_layout=layout, fc2_layout=layout, parameter_dtype=dtype, gradients=gradients,
                                              weight_on_input=inward)
                            out = self.step()
                            x, weights = (t.detach().double().view(21, -1).requires_grad_() for t in (self.x, self.weights))
                            experts = [tuple(m.detach().bfloat16().double().requires_grad_() for m in pair) for pair in layer.experts()]
                            wanted = autograd.expert_loop(x, self.ids.view(21, 2), weights, experts, activation, layout == "kn", layout == "kn", inward)
                            wanted.backward(self.dout.double().view(21, 64))
                            self.assert_near(out, wanted)
                            self.assert_near(self.x.grad, x.grad)
                            self.assert_near(self.weights.grad, weights.grad)
                            for pair, views in zip(experts, layer.experts(lambda p: p.grad)):
                                for matrix, view in zip(pair, views):
                                    self.assertEqual(view.dtype, dtype)
                                    self.assert_near(view, matrix.grad)

    def test_gradients_accumulate_until_they_are_cleared(self):
        for gradients in ("in_place", "returned"):
            with self.subTest(gradients):
                layer = self.make(gradients=gradients, parameter_dtype=torch.float32)
                optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
                self.step()
                once = self.gradients()
                self.step()
                for got, wanted in zip(self.gradients(), once):
                    self.assert_near(got, 2 * wanted, 1e-6)
                for to_none in (True, False):
                    optimizer.zero_grad(set_to_none=to_none)
                    self.step()
                    for got, wanted in zip(self.gradients(), once):
                        self.assertTrue(torch.equal(got, wanted))
                # One cleared and one not; then one that somebody else made.
                layer.fc1.grad = None
                self.step()
                self.assert_near(layer.fc1.grad, once[0], 1e-6)
                self.assert_near(layer.fc2.grad, 2 * once[1], 1e-6)
                layer.fc1.grad = torch.ones_like(layer.fc1)
                self.step()
                self.assert_near(layer.fc1.grad, once[0] + 1, 1e-6)
                self.assert_near(layer.fc2.grad, 3 * once[1], 1e-6)

    def test_in_place_is_in_the_same_buffer_every_time(self):
        layer = self.make()
        self.step()
        where = layer.fc1.grad.data_ptr()
        layer.zero_grad()
        self.assertIsNone(layer.fc1.grad)
        self.step()
        self.assertEqual(layer.fc1.grad.data_ptr(), where)

    def test_what_needs_no_gradient_gets_none(self):
        layer = self.make()
        layer.fc1.requires_grad_(False)
        self.x, self.weights = self.x.detach(), self.weights.detach()
        self.step()
        self.assertIsNone(layer.fc1.grad)
        self.assertIsNotNone(layer.fc2.grad)
        layer.fc2.requires_grad_(False)
        self.assertFalse(layer(self.x, self.ids, self.weights).requires_grad)
        self.x.requires_grad_()
        layer.fc2.grad = None
        self.step()
        self.assertIsNotNone(self.x.grad)
        self.assertIsNone(layer.fc2.grad)

    def test_parameters_changed_before_the_backward_are_noticed(self):
        layer = self.make()
        out = layer(self.x, self.ids, self.weights)
        with torch.no_grad():
            layer.fc1.mul_(2)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            out.backward(self.dout)

    def test_parameters_may_move(self):
        layer = self.make()
        first = self.step().detach()
        state = {name: value.clone() for name, value in layer.state_dict().items()}
        layer.fc1.data = layer.fc1.data * 2  # elsewhere
        self.assertFalse(torch.equal(layer(self.x, self.ids, self.weights), first))
        layer.load_state_dict(state)
        self.assertTrue(torch.equal(layer(self.x, self.ids, self.weights), first))

    def test_torch_autograd_grad_with_returned_gradients(self):
        layer = self.make(gradients="returned")
        out = layer(self.x, self.ids, self.weights)
        dx, dfc2 = torch.autograd.grad(out, (self.x, layer.fc2), self.dout)
        self.assertIsNone(layer.fc2.grad)
        self.step()
        self.assertTrue(torch.equal(dx, self.x.grad) and torch.equal(dfc2, layer.fc2.grad))

    def test_rows_with_gaps_no_rows_and_double_backward(self):
        layer = self.make()
        self.step()
        dx = self.x.grad.clone()
        wide = torch.zeros(21, 80, dtype=torch.bfloat16)
        wide[:, 8:72] = self.x.detach().view(21, 64)
        gaps = wide.requires_grad_()[:, 8:72]
        layer(gaps, self.ids.view(21, 2), self.weights.view(21, 2)).backward(self.dout.view(21, 64))
        self.assertTrue(torch.equal(wide.grad[:, 8:72].reshape(-1), dx.view(-1)))
        # A sum's gradient has a stride of 0.
        layer(self.x, self.ids, self.weights).sum().backward()
        layer.zero_grad()
        none = torch.zeros(0, 64, dtype=torch.bfloat16, requires_grad=True)
        layer(none, self.ids.view(21, 2)[:0], self.weights.view(21, 2)[:0]).sum().backward()
        self.assertFalse(bool(layer.fc1.grad.any()))
        out = layer(self.x, self.ids, self.weights)
        dx, = torch.autograd.grad(out, self.x, torch.ones_like(out).requires_grad_(), create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "once_differentiable"):
            dx.sum().backward()

    def test_biases_and_shared_experts_have_gradients(self):
        """By differences of the loss along each gradient, of steps that bf16 cannot lose: fp32 parameters are rounded, so the step is large."""
        for more in ({"bias": 1}, {"shared_widths": [16, 8], "shared_gate": 1}):
            with self.subTest(**more):
                layer = self.make(parameter_dtype=torch.float32, **more)
                self.step()
                for name, parameter in layer.named_parameters():
                    gradient = parameter.grad.clone()
                    norm = float(gradient.norm())
                    self.assertGreater(norm, 0, name)
                    step = gradient * (0.2 / norm)
                    losses = []
                    for sign in (1, -1):
                        with torch.no_grad():
                            parameter.add_(step, alpha=sign)
                            losses.append(float((layer(self.x, self.ids, self.weights).double() * self.dout.double()).sum()))
                            parameter.add_(step, alpha=-sign)
                    self.assertAlmostEqual((losses[0] - losses[1]) / 0.4 / norm, 1.0, delta=0.1, msg=name)

    def test_experts_alone_on_rows_that_lie_by_expert(self):
        torch.manual_seed(5)
        counts, count = torch.tensor([3, 0, 6, 2]), 16
        experts = torch.repeat_interleave(torch.arange(4), counts)
        for weighted in (False, True):
            for gradients in ("in_place", "returned"):
                with self.subTest(weighted=weighted, gradients=gradients):
                    module = autograd.MoEExperts(self.engine, 64, self.WIDTHS, 2, gradients=gradients, weighted_down=weighted)
                    x = torch.randn(count, 64).bfloat16().requires_grad_()
                    weights = torch.rand(count).requires_grad_() if weighted else None
                    by = module.layer.by_expert(count, "counts", expert_counts=counts)
                    y = module(x, by, weights)
                    dy = torch.randn(count, 64).bfloat16()
                    y.backward(dy)
                    rows = x.detach()[:11].double().requires_grad_()
                    w = (weights.detach()[:11].double() if weighted else torch.ones(11, dtype=torch.float64)).requires_grad_()
                    pairs = [tuple(m.detach().double().requires_grad_() for m in pair) for pair in module.experts()]
                    wanted = autograd.expert_loop(rows, experts[:, None], w[:, None], pairs)
                    wanted.backward(dy.double()[:11])
                    self.assert_near(y[:11], wanted)
                    self.assert_near(x.grad[:11], rows.grad)
                    self.assertEqual(float(x.grad[11:].abs().sum()), 0.0)
                    if weighted:
                        self.assert_near(weights.grad[:11], w.grad)
                        self.assertEqual(float(weights.grad[11:].abs().sum()), 0.0)
                    for e, (pair, views) in enumerate(zip(pairs, module.experts(lambda p: p.grad))):
                        for matrix, view in zip(pair, views):
                            if counts[e] == 0:
                                self.assertEqual(float(view.abs().sum()), 0.0)
                            else:
                                self.assert_near(view, matrix.grad)

    def test_mistakes_are_named(self):
        with self.assertRaisesRegex(ValueError, "gradients = 'summed': must be in_place or returned"):
            self.make(gradients="summed")
        with self.assertRaisesRegex(ValueError, "parameter_dtype is torch.float16: must be torch.bfloat16 or torch.float32"):
            self.make(parameter_dtype=torch.float16)
        self.make()
        with self.assertRaisesRegex(ValueError, "x is fp32: must be bf16"):
            self.layer(self.x.float(), self.ids, self.weights)
        with self.assertRaisesRegex(ValueError, "topk_weights has 20 rows: must have 21"):
            self.layer(self.x, self.ids, self.weights.view(21, 2)[:20])


if __name__ == "__main__":
    unittest.main()
