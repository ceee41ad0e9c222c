#!/usr/bin/env python3
"""varmoe-tune as a user meets it.

usage: tune_stories.py SOURCE PROGRAMS [unittest options]
"""
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import time
import unittest
from random import Random

import story
from story import NOBODY, PROGRAMS, Story

SMALL = ("--set", "8_variable", "--hidden-size", "256", "--device", "h200", "--tokens", "64")


class Compile(Story):
    def summary(self, result):
        (summary,) = self.lines(result, "summary")
        return summary

    def compile(self, *arguments, status=0, env=None, **more):
        return self.summary(self.tune("compile", *SMALL, "--json", *arguments, status=status, env=env, **more))

    def test_first_misses_then_hits_without_nvrtc(self):
        first = self.compile()
        self.assertEqual((first["hits"], first["failed"]), (0, 0))
        self.assertGreaterEqual(first["compiled"], 4)
        self.assertTrue(first["nvrtc_loaded"])
        again = self.compile()
        self.assertEqual((again["hits"], again["compiled"]), (first["compiled"], 0))
        self.assertFalse(again["nvrtc_loaded"])
        without = self.compile(env={"VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so"})
        self.assertEqual(without["hits"], first["compiled"])

    def test_one_row_per_kernel(self):
        result = self.tune("compile", *SMALL)
        for word in ("stage", "registers", "smem", "spills", "compile ms", "fc1", "fc2", "combine", "predicted", "miss"):
            self.assertIn(word, result.stdout)
        rows = self.lines(self.tune("compile", *SMALL, "--json"), "kernel")
        for row in rows:
            self.assertEqual(row["spill_bytes"], 0, row)
            self.assertEqual(row["findings"], [], row)
            self.assertGreater(row["registers"], 0)
            self.assertTrue(row["hit"])
            self.assertEqual(row["origin"], "disk")

    def test_layers_of_a_pruned_model_share_kernels(self):
        result = self.tune("compile", "--model", self.model("pruned-qwen3-30b"), "--device", "h200", "--tokens", "64", "--json")
        rows = self.lines(result, "kernel")
        self.assertGreater(self.summary(result)["layers"], 40)
        self.assertLess(len(rows), 12)
        self.assertTrue(all(row["layers"] == self.summary(result)["layers"] for row in rows))

    def test_a_models_router_is_compiled_with_its_layers(self):
        many = ("compile", "--model", self.model("deepseek-v3"), "--dtype", "bf16", "--device", "h200", "--tokens", "1", "--json")
        rows = [row for row in self.lines(self.tune(*many), "kernel") if row["stage"] == "route"]
        self.assertEqual([(row["layers"], row["hit"], row["spill_bytes"]) for row in rows], [(58, False, 0)])
        rows = [row for row in self.lines(self.tune(*many), "kernel") if row["stage"] == "route"]
        self.assertTrue(rows[0]["hit"])

    def test_what_training_needs_is_prebuilt(self):
        result = self.tune("compile", *SMALL, "--training", "--json")
        rows = self.lines(result, "kernel")
        stages = {row["stage"] for row in rows}
        self.assertLessEqual({"sort_single", "fc1", "fc2", "combine", "dh", "dx", "topk_weight_gradient", "gradient_schedule", "fc1_gradient",
                              "fc2_gradient"}, stages)
        self.assertEqual([row for row in rows if row["spill_bytes"] or row["findings"] or row["error"]], [])
        first = self.summary(result)
        self.assertEqual((first["hits"], first["compiled"]), (0, len(rows)))
        without = {"VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so", "VARMOE_JIT": "cached_only"}
        self.assertEqual(self.compile("--training", env=without)["hits"], first["compiled"])
        # fc1 that keeps nothing is new; the one that keeps z now makes it again. Gradients of another type are two kernels.
        again = self.compile("--training", "--recompute")
        self.assertEqual((again["hits"], again["compiled"]), (first["compiled"], 1))
        self.assertEqual(self.compile("--training", "--fp32-gradients")["compiled"], 2)
        self.tune("compile", *SMALL, "--recompute", status=2)
        self.tune("compile", *SMALL, "--fp32-gradients", status=2)
        # Of weights on the input the sort (one of both passes), fc1 and dh are others, of the combine the backward's serves both.
        rows = self.lines(self.tune("compile", *SMALL, "--training", "--weight-on-input", "--json"), "kernel")
        self.assertEqual([row for row in rows if row["spill_bytes"] or row["findings"] or row["error"]], [])
        self.assertEqual({row["stage"] for row in rows if not row["hit"]}, {"fc1", "dh"})

    def test_what_building_blocks_need_is_prebuilt(self):
        layer = self.summary(self.tune("compile", *SMALL, "--json"))
        result = self.tune("compile", *SMALL, "--blocks", "--json")
        rows = self.lines(result, "kernel")
        self.assertEqual({row["stage"] for row in rows} ^ {"up", "down", "combine", "combine_sum", "block_schedule", "block_gather", "block_slot_rows",
                                                           "combine_gradient"}, set())
        self.assertEqual([row for row in rows if row["spill_bytes"] or row["findings"] or row["error"]], [])
        # down and combine are the layer's.
        self.assertTrue(all(row["hit"] for row in rows if row["stage"] in ("down", "combine")), layer)
        weighted = self.lines(self.tune("compile", *SMALL, "--blocks", "--weighted-down", "--json"), "kernel")
        self.assertEqual({row["stage"] for row in weighted if not row["hit"]}, {"down"})
        self.tune("compile", *SMALL, "--weighted-down", status=2)
        learning = self.lines(self.tune("compile", *SMALL, "--blocks", "--weighted-down", "--training", "--fp32-gradients", "--json"), "kernel")
        self.assertEqual({row["stage"] for row in learning} - {row["stage"] for row in rows},
                         {"up_saving", "dh", "dz", "dx", "activation_gradient", "row_weight_gradient", "gradient_schedule", "fc1_gradient", "fc2_gradient"})
        self.assertEqual([row for row in learning if row["spill_bytes"] or row["findings"] or row["error"]], [])
        self.tune("compile", *SMALL, "--blocks", "--training", "--recompute", status=2)

    def test_fault_13_no_home_and_nothing_written_elsewhere(self):
        temporary = self.root / "tmp"
        temporary.mkdir()
        result = self.tune("compile", *SMALL, env={"HOME": None, "TMPDIR": str(temporary)}, status=3)
        self.assert_says(result, "VARMOE_CACHE_DIR", "not kept")
        self.assertEqual(os.listdir(self.cwd), [])
        self.assertEqual(os.listdir(temporary), [])
        quiet = self.tune("compile", *SMALL, env={"HOME": None, "VARMOE_CACHE": "off"})
        self.assertNotIn("not kept", quiet.stderr)

    def test_fault_13_relative_xdg_cache_home_is_not_used(self):
        self.tune("compile", *SMALL, env={"XDG_CACHE_HOME": "cache"})
        self.assertEqual(os.listdir(self.cwd), [])
        self.assertTrue(self.cache.is_dir())

    def test_cache_dir_option_may_be_relative(self):
        self.tune("compile", *SMALL, "--cache-dir", "mine")
        self.assertTrue((self.cwd / "mine").is_dir())
        self.assertFalse(self.cache.exists())

    def test_fault_20_a_folder_that_others_can_write_is_refused_with_the_remedy(self):
        self.cache.mkdir(parents=True)
        self.cache.chmod(0o777)
        result = self.tune("compile", *SMALL, status=3)
        self.assert_says(result, "refused", "chmod go-w")
        self.assertEqual(list(self.cache.iterdir()), [])

    def test_fault_36_a_copied_cache_serves_as_a_read_only_layer(self):
        first = self.compile()
        layer = self.root / "image"
        shutil.copytree(self.cache, layer)
        shutil.rmtree(self.cache)
        os.chmod(layer, 0o755)
        copy = self.compile(env={"VARMOE_CUBIN_PATH": str(layer), "VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so",
                                 "VARMOE_JIT": "cached_only"})
        self.assertEqual((copy["hits"], copy["compiled"]), (first["compiled"], 0))

    @unittest.skipUnless(os.geteuid() == 0, "changes its user: needs root")
    def test_fault_36_root_built_cache_under_another_user(self):
        self.compile()
        layer = self.root / "image"
        shutil.copytree(self.cache, layer)
        for folder, _, files in os.walk(layer):
            os.chmod(folder, 0o755)
            for name in files:
                os.chmod(os.path.join(folder, name), 0o644)
        os.chmod(self.root, 0o755)
        home = self.root / "nobody"
        home.mkdir()
        os.chown(home, NOBODY, NOBODY)
        probe = subprocess.run([PROGRAMS / "varmoe-tune", "--version"], user=NOBODY, group=NOBODY, cwd="/",
                               capture_output=True) if os.access(PROGRAMS, os.X_OK) else None
        if probe is None or probe.returncode != 0:
            self.skipTest("another user cannot reach the programs")
        result = self.tune("compile", *SMALL, "--json", user=NOBODY, group=NOBODY,
                           env={"HOME": str(home), "VARMOE_CUBIN_PATH": str(layer), "VARMOE_JIT": "cached_only"})
        self.assertEqual(self.summary(result)["compiled"], 0)

    def test_fault_38_two_packs_of_two_compiles_are_the_same_bytes(self):
        for number in ("1", "2"):
            self.tune("pack", *SMALL, "--out", self.root / number, "--cache-dir", self.root / ("cache" + number))
        contents = [{str(p.relative_to(self.root / n)): p.read_bytes() for p in (self.root / n).rglob("*") if p.is_file()} for n in ("1", "2")]
        self.assertEqual(contents[0], contents[1])
        self.compile(env={"VARMOE_CUBIN_PATH": str(self.root / "1"), "VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so", "VARMOE_JIT": "cached_only"})

    def test_read_only_cache(self):
        first = self.compile()
        before = sorted(p.name for p in self.cache.rglob("*"))
        again = self.compile(env={"VARMOE_CACHE": "ro"})
        self.assertEqual(again["hits"], first["compiled"])
        self.tune("compile", *SMALL, "--dtype", "fp16", env={"VARMOE_CACHE": "ro"})
        self.assertEqual(sorted(p.name for p in self.cache.rglob("*")), before)
        self.tune("cache", "clear", env={"VARMOE_CACHE": "ro"}, status=3)

    def test_cached_only_on_an_empty_cache(self):
        result = self.tune("compile", *SMALL, env={"VARMOE_JIT": "cached_only"}, status=1)
        self.assert_says(result, "cached_only")

    def test_fault_28_no_nvrtc_says_where_it_looked(self):
        result = self.tune("compile", *SMALL, env={"VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so"}, status=3)
        self.assert_says(result, "/nonexistent/libnvrtc.so")
        # One missing compiler is one sentence, however many kernels wanted it.
        self.assertEqual(result.stderr.count("error:"), 2)
        self.assert_says(result, "more kernels failed")
        self.assertGreater(self.compile()["compiled"], 0)

    def test_fault_09_a_file_size_limit_is_no_crash_and_leaves_no_half_entry(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        result = self.tune("compile", *SMALL, status=1, preexec_fn=limit)
        self.assert_says(result, "could not be written")
        self.tune("cache", "verify")
        self.assertGreater(self.compile()["compiled"], 0)

    def test_ctrl_c_keeps_what_is_done(self):
        many = ("compile", "--model", self.model("mixtral-8x7b"), "--device", "h200", "--tokens", "1,8,64,512,4096,16384", "-j",
                "1", "--json")
        child = subprocess.Popen([PROGRAMS / "varmoe-tune", *map(str, many)], env=self.environment, cwd=self.cwd,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not list(self.cache.rglob("*.vmc1")) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=120)
        done = len(list(self.cache.rglob("*.vmc1")))
        self.assertGreater(done, 0)
        summary = [json.loads(line) for line in output.splitlines() if '"summary"' in line]
        if child.returncode == 0:
            self.skipTest("it was done before the signal came")
        self.assertEqual(child.returncode, 1)
        self.assertTrue(summary and summary[0]["interrupted"])
        self.assertGreaterEqual(self.summary(self.tune(*many))["hits"], done)

    def test_fault_16_damaged_entries_are_made_again(self):
        first = self.compile()
        victim = sorted(self.cache.rglob("*.vmc1"))[0]
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        result = self.tune("cache", "verify", status=1)
        self.assert_says(result, victim.name)
        again = self.compile()
        self.assertEqual((again["hits"], again["compiled"]), (first["compiled"] - 1, 1))
        self.tune("cache", "verify")


class Overrides(Story):
    def test_taken(self):
        for where in ({"env": {"VARMOE_FC1_CONFIG": "stages=2"}}, {"env": {"VARMOE_CONFIG": "stages=2"}},
                      {"arguments": ("--fc1-config", "stages=2")}):
            result = self.tune("plan", *SMALL, "--json", *where.get("arguments", ()), env=where.get("env"))
            (bucket,) = self.lines(result, "bucket")
            self.assertIn("stages=2", bucket["fc1"])
            self.assertEqual(bucket["config_source"], "override")

    def test_option_beats_variable(self):
        result = self.tune("plan", *SMALL, "--json", "--fc1-config", "stages=3", env={"VARMOE_FC1_CONFIG": "stages=2"})
        self.assertIn("stages=3", self.lines(result, "bucket")[0]["fc1"])

    def test_fault_24_a_bad_one_is_refused_with_the_choices(self):
        for text, words in (("block_m=77", ("block_m", "77", "8 to 256")), ("blok_m=64", ("blok_m", "block_m")),
                            ("stages=99", ("stages", "99"))):
            result = self.tune("compile", *SMALL, env={"VARMOE_FC1_CONFIG": text}, status=3)
            self.assert_says(result, *words)
            result = self.tune("compile", *SMALL, "--fc1-config", text, status=2)
            self.assert_says(result, *words)
        self.assertFalse(list(self.cache.rglob("*.vmc1")))


class Input(Story):
    def refused(self, *arguments, words=(), status=2):
        result = self.tune("plan", *arguments, "--device", "h200", status=status)
        self.assert_says(result, *words)
        self.assertNotIn("terminate", result.stderr)
        return result

    def test_every_shipped_model_is_planned(self):
        for path in sorted((story.SOURCE / "models").glob("*.json")):
            dtype = () if "gpt-oss" not in path.name and "deepseek-v3" not in path.name else ("--dtype", "bf16")
            result = self.tune("plan", "--model", path, "--device", "h200", "--json", *dtype)
            self.assertGreaterEqual(len(self.lines(result, "bucket")), 3, path)

    def test_a_quantised_checkpoint_wants_a_dtype(self):
        self.refused("--model", self.model("deepseek-v3"), words=("dtype",))

    def test_fault_21_bad_files_are_named(self):
        self.refused("--model", self.root / "absent.json", words=("absent.json",), status=3)
        for name, text in (("empty.json", ""), ("half.json", '{"hidden_size": '), ("nul.json", "\0"), ("list.json", "[1]"),
                           ("deep.json", "[" * 100000), ("utf8.json", b'{"model_type": "\xff"}'), ("trailing.json", "{} {}"),
                           ("twice.json", '{"varmoe_layer": 1, "varmoe_layer": 1}')):
            self.refused("--model", self.write(name, text), words=(name,))

    def test_fault_22_bad_numbers_are_named(self):
        for value in ("4294967296000000", "-1", "1.9", "true", '"64"', "0", "9223372036854775807", "63"):
            path = self.write("layer.json", '{"varmoe_layer": 1, "hidden_size": %s, "expert_widths": [64, 64], "top_k": 1}' % value)
            self.refused("--model", path, words=("hidden_size",))
        overflow = self.write("layer.json", '{"varmoe_layer": 1, "hidden_size": 1e400, "expert_widths": [64], "top_k": 1}')
        self.refused("--model", overflow, words=("layer.json", "1e400"))

    def test_flags(self):
        flags = ("--hidden-size", "256", "--top-k", "2")
        self.tune("plan", *flags, "--experts", "4", "--width", "64", "--device", "h200")
        self.tune("plan", *flags, "--widths", "64x3,128", "--device", "h200")
        self.refused(*flags, "--widths", "64x", words=("--widths", "64x"))
        self.refused(*flags, "--widths", "64x4", "--width", "8", words=("--widths",))
        self.refused(*flags, "--experts", "4", "--width", "63", words=("63",))
        self.refused(words=("--model", "--set"))
        self.refused("--set", "8_uniform", "--model", "x", words=("--model", "--set"))
        self.refused("--set", "9_uniform", words=("9_uniform", "8_uniform"))
        self.refused("--set", "8_uniform", "--activation", "tanh", words=("tanh", "relu2"))
        self.refused("--set", "8_uniform", "--tokens", "1,x", words=("--tokens", "'x'"))
        self.refused("--set", "8_uniform", "--tokens", "0", words=("--tokens",))
        self.refused("--set", "8_uniform", "--layer", "1", words=("--layer",))
        self.refused("--model", self.model("qwen3-30b-a3b"), "--layer", "480", words=("--layer", "480"))

    def test_unknown_option_verb_and_device(self):
        self.tune("plan", "--no-such-option", status=2)
        self.tune("fly", status=2)
        self.tune(status=2)
        result = self.tune("plan", "--set", "8_uniform", "--device", "h2000", status=2)
        self.assert_says(result, "h2000", "h200")
        result = self.tune("plan", "--set", "8_uniform", env={"VARMOE_DEVICE_PROFILE": "h2000"}, status=3)
        self.assert_says(result, "VARMOE_DEVICE_PROFILE")

    def test_help_and_version(self):
        for arguments in (("--help",), ("compile", "--help"), ("cache", "gc", "--help"), ("--version",)):
            self.assertTrue(self.tune(*arguments).stdout)

    def test_errors_are_json_too(self):
        result = self.tune("plan", "--set", "9_uniform", "--json", "--device", "h200", status=2)
        (error,) = self.lines(result, "error")
        self.assertIn("9_uniform", error["message"])


class Fuzz(Story):
    def test_fault_41_random_command_lines_end_with_a_documented_status(self):
        seed = int(os.environ.get("STORY_SEED", time.time_ns() % 1000000))
        random = Random(seed)
        options = ["--set", "--model", "--device", "--tokens", "--hidden-size", "--experts", "--width", "--widths", "--top-k",
                   "--activation", "--dtype", "--fc1-layout", "--gate-order", "--layer", "--alpha", "--limit", "--fc1-config",
                   "--fc2-config", "--cache-dir", "--jobs", "--json", "--batch-invariant", "--bias",
                   "--weight-on-input", "--stage", "--fp32-gradients"]
        values = ["8_variable", "fc1_gradient", "dx", "h200", "64", "1,64", "0", "-1", "", "9" * 40, "1e9", "nan", "bf16", "kn", "silu_mul", "64x4",
                  "64x0,8", "block_m=64", "block_m=64;tokens=1-2", "=,;=", "x" * 3000, "\x01\xff", "--", "{}", "/dev/null", "/", "."]
        for i in range(150):
            line = [random.choice(["plan", "plan", "plan", "env", "doctor", "cache", "emit", "bogus"])]
            for _ in range(random.randrange(8)):
                line.append(random.choice(options))
                if random.random() < 0.9:
                    line.append(random.choice(values))
            result = subprocess.run([PROGRAMS / "varmoe-tune", *line], capture_output=True, env=self.environment, cwd=self.cwd,
                                    timeout=60)
            self.assertIn(result.returncode, (0, 1, 2, 3), f"seed {seed}, run {i}: {line}\n{result.stderr[-2000:]}")
            self.assertNotIn(b"a bug in", result.stderr, f"seed {seed}, run {i}: {line}")


class Emit(Story):
    def source(self, *arguments, **more):
        return self.tune("emit", *arguments, "--device", "h200", "--tokens", "64", **more).stdout

    def test_source_and_forms(self):
        text = self.source("--set", "8_variable")
        self.assertIn('extern "C"', text)
        self.assertGreater(len(self.source("--set", "8_variable", "--headers")), len(text))
        self.assertIn(".target", self.source("--set", "8_variable", "--form", "ptx"))
        cubin = self.root / "fc1.cubin"
        self.source("--set", "8_variable", "--form", "cubin", "--out", cubin)
        self.assertEqual(cubin.read_bytes()[:4], b"\x7fELF")
        result = self.tune("emit", "--set", "8_variable", "--device", "h200", "--stage", "fc3", status=2)
        self.assert_says(result, "fc3", "combine", "fc1_gradient")

    def test_stages_of_training(self):
        # The name of each is in its text; the products' are those of a layer's.
        entries = {"fc1_saving": "fc1", "dh": "fc1", "dx": "fc2"}
        every = ("--set", "8_variable", "--bias")
        texts = {"fc1": self.source(*every), "fc2": self.source(*every, "--stage", "fc2")}
        for stage in ("fc1_saving", "dh", "dx", "topk_weight_gradient", "gradient_schedule", "fc1_gradient", "fc2_gradient",
                      "fc1_bias_gradient", "fc2_bias_gradient"):
            texts[stage] = self.source(*every, "--stage", stage)
            self.assertIn(f" varmoe_{entries.get(stage, stage)}_", texts[stage])
        self.assertEqual(len(set(texts.values())), len(texts))
        gated = ("--set", "8_variable", "--shared-widths", "256", "--shared-gate")
        self.assertIn("varmoe_shared_gate_gradient_", self.source(*gated, "--stage", "shared_gate_gradient"))
        for stage, changes in (("fc1_gradient", True), ("fc2_bias_gradient", True), ("dx", False)):
            self.assertEqual(self.source(*every, "--stage", stage, "--fp32-gradients") != texts[stage], changes, stage)
        self.assertIn(".target", self.source(*every, "--stage", "fc2_gradient", "--form", "ptx"))

    def test_the_backward_passs_overrides_are_those_of_a_training_layer(self):
        one = ("--set", "8_variable", "--stage", "fc1_gradient")
        config = {"VARMOE_DW1_CONFIG": "schedule=mma_sync,block_m=64,block_n=128,stages=3"}
        self.assertIn("varmoe_fc1_gradient_mma_sync_m64n128s3_", self.source(*one, env=config))
        self.assertNotIn("mma_sync_m64n128s3", self.source(*one))

    def test_a_stage_of_training_that_the_layer_lacks_is_refused_with_the_reason(self):
        def refused(*arguments, words):
            result = self.tune("emit", "--set", "8_variable", "--device", "h200", *arguments, status=2)
            self.assert_says(result, *words)
        refused("--stage", "fc1_bias_gradient", words=("fc1_bias_gradient", "biases", "--bias"))
        refused("--stage", "fc2_bias_gradient", words=("fc2_bias_gradient", "biases", "--bias"))
        refused("--stage", "shared_gate_gradient", words=("shared_gate_gradient", "gate", "--shared-gate"))
        refused("--fp32-gradients", words=("--fp32-gradients", "fc1_gradient"))

    def test_fault_23_no_text_from_outside_reaches_the_source(self):
        layer = {"varmoe_layer": 1, "hidden_size": 256, "expert_widths": [64, 128], "top_k": 2}
        clean = self.source("--model", self.write("layer.json", json.dumps(layer)))
        evil = '*/ #include "/etc/passwd"\n__global__ void f() {} //' + "x" * 100000
        hostile = self.write("*_#include <x>;.json", json.dumps({**layer, "name": evil}))
        self.assertEqual(self.source("--model", hostile, env={"VARMOE_EVIL": evil}), clean)

    def test_only_what_matters_changes_the_source(self):
        one = self.source("--hidden-size", "256", "--widths", "64,128", "--top-k", "2")
        self.assertEqual(self.source("--hidden-size", "256", "--widths", "128,64", "--top-k", "2"), one)
        self.assertNotEqual(self.source("--hidden-size", "256", "--widths", "64,136", "--top-k", "2"), one)


class Cache(Story):
    def test_stats_gc_clear_extract(self):
        self.tune("compile", *SMALL)
        (folder,) = self.lines(self.tune("cache", "stats", "--json"), "folder")
        self.assertGreaterEqual(folder["entries"], 4)
        entries = self.lines(self.tune("cache", "stats", "--entries", "--json"), "entry")
        self.assertEqual(len(entries), folder["entries"])
        out = self.root / "one.cubin"
        self.tune("cache", "extract", entries[0]["key"], "--out", out)
        self.assertEqual(out.read_bytes()[:4], b"\x7fELF")
        self.tune("cache", "extract", "zz", "--out", out, status=2)
        self.tune("cache", "extract", "0" * 32, "--out", out, status=3)
        self.tune("cache", "gc", "--max-size", "much", status=2)
        self.tune("cache", "gc", "--max-size", "1K")
        self.assertEqual(self.lines(self.tune("cache", "stats", "--json"), "folder")[0]["entries"], 0)
        self.tune("compile", *SMALL)
        self.tune("cache", "clear")
        self.assertFalse(list(self.cache.rglob("*.vmc1")))

    def test_no_cache_at_all(self):
        self.tune("cache", "stats", env={"HOME": None})
        self.tune("cache", "clear", env={"HOME": None}, status=3)


class Records(Story):
    """Tuning records: one file a device, found by layer, merged, checked."""

    LAYER = ("--experts", "8", "--width", "128", "--top-k", "2", "--hidden-size", "256", "--device", "h200")

    def record(self, **changes):
        gemm = {"schedule": "wgmma", "block_m": 32, "block_n": 128, "block_k": 64, "stages": 5, "warps_m": 1, "warps_n": 8, "ctas_per_sm": 1,
                "raster": 11, "row_step": 16, "cluster": 1, "gather": "fused"}
        return {"arch": "sm_90a", "cu_num": 132, "device": "NVIDIA H200", "token": 64, "model_dim": 256, "inter_dim": 128, "expert": 8, "topk": 2,
                "act_type": "silu_mul", "dtype": "bf16", "q_dtype_a": "bf16", "q_dtype_w": "bf16", "q_type": "none", "use_g1u1": True,
                "doweight_stage1": False, "fc1_layout": "nk", "fc2_layout": "nk", "gate_order": "gate_first", "bias": False, "batch_invariant": False,
                "fc1": gemm, "fc2": gemm, "sort": {"block_threads": 1024, "single_block_rows": 3072}, "gather": {"block_threads": 256},
                "combine": {"block_threads": 256},
                "one_launch": {"max_tokens": 0, "teams": 2}, "us1": 5, "err1": 0, "us2": 3, "err2": 0, "us": 10, "tflops": 1, "bw": 100, "baseline_us": 11,
                "spread": 0.01, "verified": True, "epochs": {"fc1": 3, "fc2": 3, "sort": 1, "gather": 1, "combine": 1},
                "config_space": 5, "library": "0.1.0", "kernel_digest": "00", "nvrtc": "13.0.88", "driver": "580.82.07",
                "date": "2026-11-21T15:04:05Z", "sm_clock_mhz": 1755, "memory_clock_mhz": 3201, "candidates": 12, **changes}

    def database(self, name, *records):
        folder = self.root / name
        folder.mkdir(mode=0o700)
        path = folder / "nvidia-h200.json"
        path.write_text(json.dumps({"varmoe_tuning": 1, "records": list(records)}))
        path.chmod(0o600)
        return folder

    def bucket(self, *arguments, env=None):
        (bucket,) = self.lines(self.tune("plan", *self.LAYER, "--json", *arguments, env=env), "bucket")
        return bucket

    def test_a_record_goes_before_the_cost_model_wherever_it_lies(self):
        folder = self.database("db", self.record())
        predicted = self.bucket("--tokens", "64")
        self.assertEqual((predicted["config_source"], predicted["match_quality"]), ("predicted", "predicted"))
        for found in (self.bucket("--tokens", "64", "--tuning-db", folder),
                      self.bucket("--tokens", "64", env={"VARMOE_TUNING_DB": str(folder)})):
            self.assertEqual((found["config_source"], found["match_quality"]), ("tuned", "exact"))
            self.assertIn("raster=11", found["fc1"])
            self.assertIn(str(folder), found["record"])
        self.assertEqual(self.bucket("--tokens", "128", "--tuning-db", folder)["match_quality"], "near_bucket")
        self.assertEqual(self.bucket("--tokens", "1024", "--tuning-db", folder)["config_source"], "predicted")
        off = self.bucket("--tokens", "64", "--tuning-db", folder, env={"VARMOE_TUNE": "off"})
        self.assertEqual(off["config_source"], "predicted")

    def test_kernels_are_compiled_for_the_record(self):
        folder = self.database("db", self.record())
        rows = self.lines(self.tune("compile", *self.LAYER, "--tokens", "64", "--json", "--tuning-db", folder), "kernel")
        fc1 = [row for row in rows if row["stage"] == "fc1"]
        self.assertEqual([row["config_source"] for row in fc1], ["tuned"])
        self.assertIn("raster=11", fc1[0]["config"])

    def test_merged_records_are_found_and_shown(self):
        folder = self.database("db", self.record())
        user = self.cache / "tuning"
        summary = self.lines(self.tune("merge", folder, "--into", user, "--json"), "summary")[0]
        self.assertEqual((summary["saved"], summary["kept"]), (1, 0))
        self.assertEqual(self.bucket("--tokens", "64")["match_quality"], "exact")
        self.assert_says(self.tune("show"), "NVIDIA H200", "8 experts of 128", "wgmma 32x128", "verified")
        worse = self.database("older", self.record(us=9, date="2020-01-01T00:00:00Z"))
        summary = self.lines(self.tune("merge", worse, "--into", user, "--json"), "summary")[0]
        self.assertEqual((summary["saved"], summary["kept"]), (0, 1))
        (shown,) = [r for r in self.lines(self.tune("show", "--json"), "record") if r["from"] != "shipped"]
        self.assertEqual(shown["us"], 10)

    def test_fault_24_a_record_outside_the_config_space_is_not_used_and_says_so(self):
        bad = self.record()
        bad["fc1"] = {**bad["fc1"], "block_m": 200, "row_step": 32}
        folder = self.database("db", bad)
        self.assertEqual(self.bucket("--tokens", "64", "--tuning-db", folder)["config_source"], "predicted")
        self.assert_says(self.tune("check", folder, status=1), "block_m is 200", "row_step=32")
        self.assert_says(self.tune("merge", folder, "--into", self.root / "into", status=1), "left out", "block_m is 200")

    def test_fault_22_check_names_file_record_and_field(self):
        folder = self.database("db", self.record(), self.record(token=65, us="fast"))
        result = self.tune("check", folder, status=1)
        self.assert_says(result, "nvidia-h200.json")
        self.assertTrue("token" in result.stdout or "us" in result.stdout)
        self.assertEqual(self.bucket("--tokens", "64", "--tuning-db", folder)["match_quality"], "exact")

    def test_exported_records_come_back_from_the_csv(self):
        folder = self.database("db", self.record())
        self.tune("export", folder, "--out", self.root / "tuned.csv")
        header, row = csv.reader((self.root / "tuned.csv").read_text().splitlines())
        self.assertIn("model_dim", header)
        self.assertEqual(len(header), len(row))
        summary = self.lines(self.tune("import", self.root / "tuned.csv", "--device", "h200", "--into", self.root / "back", "--json"), "summary")[0]
        self.assertEqual((summary["saved"], summary["hints"]), (1, 0))
        back = self.bucket("--tokens", "64", "--tuning-db", self.root / "back")
        self.assertEqual((back["config_source"], back["match_quality"]), ("tuned", "stale_epoch"))
        self.assertIn("raster=11", back["fc1"])

    def test_other_libraries_configs_are_hints_and_no_records(self):
        vllm = self.root / "E=8,N=128,device_name=NVIDIA_H200.json"
        vllm.write_text(json.dumps({"64": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 8,
                                           "num_warps": 4, "num_stages": 3}}))
        summary = self.lines(self.tune("import", vllm, "--device", "h200", "--into", self.root / "into", "--json"), "summary")[0]
        self.assertEqual((summary["saved"], summary["hints"]), (0, 1))
        self.assert_says(self.tune("import", self.write("no.csv", "a,b\n1,2\n"), "--device", "h200", "--into", self.root / "into", status=2), "no.csv")

    def test_tuning_while_serving_is_refused_by_name(self):
        self.assert_says(self.tune("plan", *self.LAYER, env={"VARMOE_TUNE": "online"}, status=3), "VARMOE_TUNE=online", "replay")


class Environment(Story):
    def test_every_variable_is_listed(self):
        names = {v["name"] for v in self.lines(self.tune("env", "--json"), "variable")}
        self.assertLessEqual({"VARMOE_CACHE_DIR", "VARMOE_JIT", "VARMOE_FC1_CONFIG", "VARMOE_NVRTC_LIB"}, names)
        values = {v["name"]: v["value"] for v in self.lines(self.tune("env", "--json", env={"VARMOE_JIT": "on"}), "variable")}
        self.assertEqual(values["VARMOE_JIT"], "on")

    def test_fault_42_a_bad_value_names_variable_value_and_choices(self):
        for verb in (("env",), ("plan", "--set", "8_uniform", "--device", "h200"), ("doctor",), ("cache", "stats")):
            self.assert_says(self.tune(*verb, env={"VARMOE_JIT": "maybe"}, status=3), "VARMOE_JIT", "maybe", "cached_only")

    def test_fault_42_an_unknown_name_warns_with_the_nearest(self):
        result = self.tune("plan", "--set", "8_uniform", "--device", "h200", env={"VARMOE_CACHE_DIRR": "/x"})
        self.assert_says(result, "VARMOE_CACHE_DIRR", "VARMOE_CACHE_DIR")

    def test_fault_42_huge_values(self):
        result = self.tune("env", env={"VARMOE_JIT": "x" * 100000}, status=3)
        self.assertLess(len(result.stderr), 5000)


class Doctor(Story):
    def test_says_what_is_here(self):
        result = self.tune("doctor", "--device", "h200")
        self.assert_says(result, "NVRTC", "target", "sm_90a", "cache", "CPU backend", "verdict")

    def test_fault_28_without_nvrtc(self):
        result = self.tune("doctor", "--device", "h200", env={"VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so"}, status=3)
        self.assert_says(result, "/nonexistent/libnvrtc.so", "VARMOE_CUBIN_PATH")


if __name__ == "__main__":
    story.main()
