#!/usr/bin/env python3
"""varmoe-bench as a user without a GPU meets it.

usage: bench_stories.py SOURCE PROGRAMS [unittest options]
"""
import unittest

import story
from story import Story

TINY = ("--device", "cpu", "--threads", "2", "--iterations", "2", "--warmup", "0")
SMALL = ("--set", "8_variable", "--hidden-size", "256", *TINY)


class Bench(Story):
    def rows(self, *arguments, **more):
        return self.lines(self.bench(*arguments, "--json", **more), "row")

    def test_runs_checks_and_times(self):
        rows = self.rows(*SMALL, "--tokens", "1,7,64")
        self.assertEqual([row["tokens"] for row in rows], [1, 7, 64])
        for row in rows:
            self.assertTrue(row["check"])
            self.assertTrue(row["repeatable"])
            self.assertLess(row["frobenius"], 5e-3)
            self.assertGreater(row["us"], 0)
            self.assertGreater(row["tflops"], 0)
            self.assertLessEqual(row["experts_hit"], 8)
            self.assertNotIn("share_of_floor", row)

    def test_an_altered_weight_is_noticed(self):
        for more in ((), ("--activation", "silu_mul"), ("--activation", "swiglu_oai"), ("--dtype", "fp16"),
                     ("--fc1-layout", "kn", "--fc2-layout", "kn", "--storage", "packed")):
            result = self.bench(*SMALL, "--tokens", "16", "--inject-error", *more, status=1)
            self.assert_says(result, "failed as it must", "FAILED")

    def test_storages_routings_and_dtypes(self):
        kn = ("--activation", "silu_mul", "--fc1-layout", "kn", "--fc2-layout", "kn")
        cases = [("--storage", s) for s in ("padded", "pointers", "strided")]
        cases += [(*kn, "--storage", s) for s in ("packed", "packed_joint", "by_hand")]
        cases += [("--routing", r) for r in ("zipf", "one_expert", "half_on_one")]
        cases += [("--dtype", "fp16"), ("--activation", "silu_mul", "--gate-order", "interleaved")]
        for case in cases:
            with self.subTest(case):
                self.assertTrue(self.rows(*SMALL, "--tokens", "33", *case)[0]["check"])

    def test_a_models_router_alone(self):
        for model, more in (("deepseek-v3", ("--dtype", "bf16")), ("qwen3-30b-a3b", ()), ("gpt-oss-120b", ("--dtype", "bf16", "--logits", "fp32")),
                            ("llama4-scout", ()), ("deepseek-v2-lite", ())):
            with self.subTest(model):
                result = self.bench("--router", "--model", self.model(model), *more, *TINY, "--tokens", "1,65", "--json")
                rows = self.lines(result, "router")
                self.assertEqual([(row["tokens"], row["check"]) for row in rows], [(1, True), (65, True)])
        self.assert_says(self.bench("--router", "--set", "8_uniform", *TINY, "--tokens", "3"), "describes no router", "ok")
        self.assert_says(self.bench("--set", "8_uniform", *TINY, "--logits", "fp32", status=2), "--router")

    def test_batch_sizes_times_sequences(self):
        rows = self.rows(*SMALL, "--batch-sizes", "1,2", "--seq", "8,16", "--no-check")
        self.assertEqual([row["tokens"] for row in rows], [8, 16, 32])

    def test_without_a_gpu_the_cpu_runs_and_says_so(self):
        result = self.bench("--set", "8_uniform", "--hidden-size", "256", "--tokens", "4", "--iterations", "1")
        if "sm_" not in result.stdout:
            self.assert_says(result, "no GPU here", "CPU")

    def test_a_layer_of_a_model(self):
        layer = self.write("layer.json", '{"varmoe_layer": 1, "hidden_size": 256, "top_k": 2, "layers": ['
                           '{"expert_widths": [64, 128]}, {"expert_widths": [128, 192, 64]}]}')
        result = self.bench("--model", layer, "--layer", "1", *TINY, "--tokens", "5", "--detailed")
        self.assert_says(result, "3 experts", "Frobenius", "ok")

    def test_what_this_version_has_not_is_said(self):
        self.assert_says(self.bench(*SMALL, "--mode", "backward", status=2), "GPU")
        self.assert_says(self.bench(*SMALL, "--recompute", status=2), "--mode")
        self.assert_says(self.bench(*SMALL, "--scatter", "fused", status=2), "separate")

    def test_bad_input(self):
        self.bench("--device", "cpu", status=2)
        self.bench(*SMALL, "--tokens", "-5", status=2)
        self.bench(*SMALL, "--routing", "fair", status=2)
        self.bench(*SMALL, "--storage", "packed", status=2)
        self.bench(*SMALL, "--inject-error", "--no-check", status=2)
        self.bench(*SMALL, "--seq", "8", status=2)
        self.bench("--set", "8_uniform", "--device", "gpu", status=2)

    def test_fault_30_a_gpu_that_is_not_there(self):
        result = self.bench("--set", "8_uniform", "--hidden-size", "256", "--device", "1000", status=3)
        self.assertTrue(result.stderr.startswith("error: "))


if __name__ == "__main__":
    story.main()
