#!/usr/bin/env python3
"""The verbs of varmoe-tune that measure, from end to end on a GPU that is none (tests/support/fake_gpu.cpp).

usage: measure_stories.py SOURCE PROGRAMS FAKE_LIBCUDA FAKE_NVRTC [unittest options]
"""
import html.parser
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import unittest

FAKE_GPU, FAKE_NVRTC = pathlib.Path(sys.argv[3]).resolve(), pathlib.Path(sys.argv[4]).resolve()
del sys.argv[3:5]

import story  # noqa: E402 (reads its own arguments when it is imported)
from story import PROGRAMS, SOURCE, Story  # noqa: E402

LAYER = ("--experts", "8", "--width", "128", "--top-k", "2", "--hidden-size", "256")


class GpuStory(Story):
    def setUp(self):
        super().setUp()
        self.environment["LD_LIBRARY_PATH"] = str(FAKE_GPU.parent)
        self.environment["VARMOE_NVRTC_LIB"] = str(FAKE_NVRTC)
        self.records = self.cache / "tuning"

    def summary(self, result):
        (summary,) = self.lines(result, "summary")
        return summary

    def run_tune(self, *arguments, status=0, env=None):
        return self.tune("tune", *LAYER, "--json", *arguments, status=status, env=env)

    def counts(self, *arguments, **more):
        s = self.summary(self.run_tune(*arguments, **more))
        return tuple(s[name] for name in ("tuned", "fresh", "failed", "left"))

    def trials(self, folder=None):
        path = (folder or self.records) / "nvidia-h200.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line]

    def start(self, *arguments, env=None):
        return subprocess.Popen([PROGRAMS / "varmoe-tune", "tune", *LAYER, "--json", *map(str, arguments)],
                                env={**self.environment, **(env or {})}, cwd=self.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def plan(self, *arguments):
        return self.lines(self.tune("plan", *LAYER, "--device", "h200", "--json", *arguments), "bucket")


class Tune(GpuStory):
    def test_records_are_made_and_found_by_the_engine(self):
        result = self.run_tune("--tokens", "1,64")
        self.assertEqual(len(self.lines(result, "item")), 2)
        self.assertEqual(self.summary(result)["end"], "finished")
        for bucket in self.plan("--tokens", "1,64"):
            self.assertEqual((bucket["config_source"], bucket["match_quality"]), ("tuned", "exact"))
        self.tune("check", self.records)
        (first, *_) = json.loads((self.records / "nvidia-h200.json").read_text())["records"]
        self.assertTrue(first["verified"])
        self.assertEqual(first["nvrtc"], "13.0.88")
        self.assertRegex(first["kernel_digest"], "^[0-9a-f]{32}$")
        self.assertRegex(first["date"], "^20..-..-..T..:..:..Z$")
        self.assertGreater(first["baseline_us"], 0)
        self.assertGreater(first["candidates"], 10)
        self.assertGreaterEqual(len(self.trials()), first["candidates"])

    def test_a_second_run_measures_nothing_and_retune_all(self):
        self.assertEqual(self.counts("--tokens", "1,2"), (2, 0, 0, 0))
        before = len(self.trials())
        self.assertEqual(self.counts("--tokens", "1,2,4"), (1, 2, 0, 0))
        self.assertEqual({t["token"] for t in self.trials()[before:]}, {4})
        self.assertEqual(self.counts("--tokens", "1,2", "--retune"), (2, 0, 0, 0))

    def test_a_named_folder_is_complete_by_itself(self):
        self.run_tune("--tokens", "1")
        into = self.root / "db"
        self.assertEqual(self.counts("--tokens", "1,2", "--into", into), (2, 0, 0, 0))
        self.assertEqual(self.counts("--tokens", "1,2", "--into", into), (0, 2, 0, 0))
        self.assertEqual([p.name for p in sorted(into.iterdir()) if p.suffix == ".json"], ["nvidia-h200.json"])

    def test_layers_that_share_a_key_are_tuned_once_and_siblings_briefly(self):
        pruned = ("tune", "--hidden-size", "256", "--top-k", "2")
        one = self.lines(self.tune(*pruned, "--widths", "128x4,256x4", "--tokens", "64", "--json"), "item")
        again = self.summary(self.tune(*pruned, "--widths", "256x4,128x4", "--tokens", "64", "--json"))
        self.assertEqual((again["tuned"], again["fresh"]), (0, 1))
        sibling = self.lines(self.tune(*pruned, "--widths", "128x5,256x3", "--tokens", "64", "--json"), "item")
        self.assertLess(sibling[0]["tried"], one[0]["tried"] / 2)

    def test_several_gpus_share_the_list(self):
        result = self.run_tune("--tokens", "1,2,4,8,16,32", "--gpus", "all", env={"FAKE_GPU_DEVICES": "3"})
        self.assertEqual(self.summary(result)["tuned"], 6)
        self.assertEqual(len(self.plan("--tokens", "1,2,4,8,16,32")), 6)

    def test_progress_and_text(self):
        progress = self.lines(self.run_tune("--tokens", "1,2"), "progress")
        self.assertEqual([p["done"] for p in progress], [0, 1, 2])
        self.assertIn("left_s", progress[1])
        self.assert_says(self.tune("tune", *LAYER, "--tokens", "4"), "4 tokens", "cost model's choice", "1 of 1 tuned", str(self.records))

    def test_fault_31_a_candidate_that_crashes_hangs_or_is_wrong_costs_itself_alone(self):
        for what, more in (("CRASH", ()), ("HANG", ("--config-timeout", "2s")), ("WRONG", ())):
            with self.subTest(what):
                bad = "fc1_wgmma_pingpong_m16n64s8r8t16_"  # the cost model's choice
                result = self.run_tune("--tokens", "64", "--into", self.root / what, *more, env={"FAKE_GPU_" + what: bad})
                (item,) = self.lines(result, "item")
                self.assertTrue(item["found"])
                self.assertGreater(item["failed_configs"], 0)
                self.assertNotIn("schedule=wgmma_pingpong,block_m=16,block_n=64,block_k=64,stages=8", item["fc1"])
                failures = {t["failure"] for t in self.trials(self.root / what) if "failure" in t}
                expected = {"CRASH": "signal", "HANG": "no answer in 2 s", "WRONG": "wrong result"}[what]
                self.assertTrue(any(expected in f for f in failures), failures)

    def test_fault_31_where_all_are_wrong_nothing_is_saved(self):
        result = self.run_tune("--tokens", "64", status=1, env={"FAKE_GPU_WRONG": "fc1"})
        self.assertEqual(self.summary(result)["failed"], 1)
        self.assert_says(result, "none of", "wrong result")
        self.assertFalse((self.records / "nvidia-h200.json").exists())

    def test_fault_31_a_worker_that_never_starts_is_told_with_its_own_words(self):
        result = self.run_tune("--tokens", "64", status=3, env={"VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so"})
        self.assertEqual(self.summary(result)["end"], "no_measurer")
        self.assert_says(result, "/nonexistent/libnvrtc.so")

    def wait_for_records(self, count):
        deadline = time.monotonic() + 60
        path = self.records / "nvidia-h200.json"
        while time.monotonic() < deadline:
            if path.exists() and len(json.loads(path.read_text())["records"]) >= count:
                return
            time.sleep(0.005)
        self.fail("no records came")

    def test_fault_32_killed_and_taken_up_again(self):
        tokens = ",".join(str(1 << i) for i in range(12))
        for ending in (signal.SIGKILL, signal.SIGINT):
            with self.subTest(ending):
                shutil.rmtree(self.records, ignore_errors=True)
                child = self.start("--tokens", tokens)
                self.wait_for_records(2)
                child.send_signal(ending)
                output, _ = child.communicate(timeout=60)
                done = {r["token"] for r in json.loads((self.records / "nvidia-h200.json").read_text())["records"]}
                if len(done) == 12:
                    self.skipTest("it was done before the signal came")
                if ending == signal.SIGINT:
                    self.assertEqual(child.returncode, 1)
                    self.assertIn('"end":"cancelled"', output)
                before = len(self.trials())
                self.assertEqual(self.counts("--tokens", tokens), (12 - len(done), len(done), 0, 0))
                self.assertFalse({t["token"] for t in self.trials()[before:]} & done)

    def test_fault_32_time_limit(self):
        tokens = ",".join(str(1 << i) for i in range(12))
        result = self.run_tune("--tokens", tokens, "--time-limit", "0.3s", status=1)
        summary = self.summary(result)
        self.assertEqual(summary["end"], "time_limit")
        self.assertEqual(summary["tuned"] + summary["left"], 12)
        self.assertEqual(self.counts("--tokens", tokens), (summary["left"], summary["tuned"], 0, 0))

    def test_fault_30_without_a_gpu_it_says_what_to_do(self):
        result = self.run_tune("--tokens", "64", status=3, env={"LD_LIBRARY_PATH": None, "CUDA_VISIBLE_DEVICES": ""})
        self.assert_says(result, "GPU", "merge")

    def test_other_libraries_tiles_are_tried_first(self):
        vllm = self.write("E=8,N=128,device_name=NVIDIA_H200.json",
                          json.dumps({"64": {"BLOCK_SIZE_M": 128, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 8, "num_warps": 4,
                                             "num_stages": 3}}))
        self.run_tune("--tokens", "64,1024", "--hints", vllm)
        first = [t for t in self.trials() if t["token"] == 64][:4]
        self.assertTrue(any("block_m=128,block_n=64," in t["fc1"] for t in first), first)
        self.run_tune("--tokens", "64", "--hints", "/nonexistent", status=3)

    def test_wrong_options(self):
        for arguments in (("--time-limit", "soon"), ("--gpus", "7"), ("--gpus", "x"), ("--tokens", "0"), ("--misses", "/nonexistent")):
            status = 3 if "--misses" in arguments else 2
            self.tune("tune", *(() if "--misses" in arguments else LAYER), *arguments, status=status)
        self.tune("tune", status=2)
        self.tune("tune", *LAYER, "--misses", "x", status=2)


class Misses(GpuStory):
    def test_what_a_server_met_is_tuned_and_then_no_longer_missed(self):
        misses = self.root / "misses"
        env = {"VARMOE_RECORD_MISSES": str(misses), "VARMOE_LOG": "info"}
        result = self.tune("compile", *LAYER, "--device", "h200", "--tokens", "1,64", env=env)
        self.assert_says(result, "varmoe-tune tune --hidden-size 256 --experts 8 --width 128 --top-k 2 --tokens 64")
        self.assertEqual(len(misses.read_text().splitlines()), 2)
        self.tune("compile", *LAYER, "--device", "h200", "--tokens", "1,64", env=env)
        self.assertEqual(len(misses.read_text().splitlines()), 2)
        self.tune("compile", *LAYER, "--device", "a100-80gb", "--tokens", "64", env=env)
        tuned = self.tune("tune", "--misses", misses, "--json")
        self.assertEqual(self.summary(tuned)["tuned"], 2)
        self.assert_says(self.tune("tune", "--misses", misses), "2 were there already", "A100")
        misses.unlink()
        self.tune("compile", *LAYER, "--device", "h200", "--tokens", "1,64", env=env)
        self.assertFalse(misses.exists())

    def test_the_command_of_the_log_makes_the_record(self):
        result = self.tune("plan", "--widths", "256x2,128x6", "--hidden-size", "256", "--top-k", "2", "--activation", "swiglu_oai",
                           "--fc1-layout", "kn", "--device", "h200", "--tokens", "64", env={"VARMOE_LOG": "info"})
        (line,) = [line for line in result.stderr.splitlines() if "varmoe-tune tune " in line]
        self.tune(*line.split("varmoe-tune ")[1].split())
        bucket = self.lines(self.tune("plan", "--widths", "256x2,128x6", "--hidden-size", "256", "--top-k", "2", "--activation", "swiglu_oai",
                                      "--fc1-layout", "kn", "--device", "h200", "--tokens", "64", "--json"), "bucket")[0]
        self.assertEqual(bucket["match_quality"], "exact")


class TuneTraining(GpuStory):
    PRODUCTS = ("dh", "dx", "fc1_gradient", "fc2_gradient")

    def backward(self, *arguments):
        return [b for b in self.plan("--training", *arguments) if b["pass"] == "backward"]

    def test_both_passes_are_tuned_and_found_by_a_training_layer(self):
        result = self.run_tune("--tokens", "64,2048", "--training")
        items = self.lines(result, "item")
        self.assertEqual([(i["tokens"], i["pass"]) for i in items],
                         [(64, "forward"), (64, "backward, bf16 gradients"), (2048, "forward"), (2048, "backward, bf16 gradients")])
        for item in items[1::2]:
            self.assertTrue(item["found"] and item["verified"])
            for product in self.PRODUCTS:
                self.assertIn("stages=", item[product])
                self.assertIn("us_" + product, item)
        self.tune("check", self.records)
        records = json.loads((self.records / "nvidia-h200.json").read_text())["records"]
        self.assertEqual([r.get("pass") for r in records], [None, None, "backward", "backward"])
        self.assertEqual(records[2]["gradient_dtype"], "bf16")
        self.assertRegex(records[2]["kernel_digest"], "^[0-9a-f]{32}$")
        self.assertGreater(records[2]["candidates"], 10)
        self.assertGreater(records[2]["baseline_us"], 0)
        for plan in self.backward("--tokens", "64,2048"):
            self.assertEqual((plan["config_source"], plan["match_quality"]), ("tuned", "exact"))
        # Gradients of another type are another record; the forward's serves both.
        self.assertEqual({p["config_source"] for p in self.backward("--tokens", "64", "--fp32-gradients")}, {"predicted"})
        self.assertEqual({b["config_source"] for b in self.plan("--tokens", "64", "--training", "--fp32-gradients") if b["pass"] == "forward"}, {"tuned"})

    def test_a_second_run_measures_what_is_missing_alone(self):
        self.assertEqual(self.counts("--tokens", "64"), (1, 0, 0, 0))
        self.assertEqual(self.counts("--tokens", "64", "--training"), (1, 1, 0, 0))
        self.assertEqual(self.counts("--tokens", "64", "--training"), (0, 2, 0, 0))
        self.assertEqual(self.counts("--tokens", "64", "--training", "--fp32-gradients"), (1, 1, 0, 0))
        # The products are the same where z is computed again.
        result = self.tune("tune", *LAYER, "--tokens", "64", "--training", "--recompute")
        self.assert_says(result, "0 of 2 tuned, 2 were there already", "one record serves both")
        self.assertEqual(self.counts("--tokens", "64", "--training", "--retune"), (2, 0, 0, 0))

    def test_every_trial_is_logged_and_reported(self):
        self.run_tune("--tokens", "64", "--training")
        logged = [t for t in self.trials() if "dh" in t]
        self.assertTrue(logged)
        for trial in logged:
            self.assertGreater(trial["fc1_gradient_us"], 0)
        page = self.root / "report.html"
        result = self.tune("report", self.records, "--html", page, "--json")
        (forward, backward) = self.lines(result, "record")
        self.assertEqual((forward["pass"], backward["pass"]), ("forward", "backward, bf16 gradients"))
        self.assertEqual(backward["trials"], len(logged))
        self.assertGreater(backward["floor_us"], forward["floor_us"])
        for text in ("backward, bf16 gradients", "dh wgmma", "fc2_gradient wgmma: block_m"):
            self.assertIn(text, page.read_text())
        shown = self.tune("show", self.records)
        self.assert_says(shown, "fc1_gradient", "backward, bf16 gradients", "verified")
        (_, record) = self.lines(self.tune("show", self.records, "--json"), "record")
        self.assertEqual({p for p in self.PRODUCTS if "block_m=" in record[p]}, set(self.PRODUCTS))

    def test_fault_31_a_product_that_crashes_or_is_wrong_costs_itself_alone(self):
        for what, word in (("CRASH", "signal"), ("WRONG", "wrong result")):
            with self.subTest(what):
                result = self.run_tune("--tokens", "64", "--training", "--into", self.root / what, env={"FAKE_GPU_" + what: "fc1_gradient_wgmma_m128n64"})
                (item,) = [i for i in self.lines(result, "item") if i["pass"] != "forward"]
                self.assertTrue(item["found"])
                self.assertGreater(item["failed_configs"], 0)
                self.assertNotIn("schedule=wgmma,block_m=128,block_n=64,", item["fc1_gradient"])
                failures = {t["failure"] for t in self.trials(self.root / what) if "failure" in t}
                self.assertTrue(any(word in f for f in failures), failures)

    def test_verify_runs_backward_passes_too(self):
        self.run_tune("--tokens", "64", "--training")
        summary = self.summary(self.tune("verify", self.records, "--json"))
        self.assertEqual((summary["records"], summary["right"], summary["wrong"]), (2, 2, 0))
        result = self.tune("verify", self.records, "--json", status=1, env={"FAKE_GPU_WRONG": "fc2_gradient"})
        (bad,) = [r for r in self.lines(result, "record") if not r["right"]]
        self.assertEqual(bad["pass"], "backward, bf16 gradients")
        self.assertIn("wrong result", bad["fault"])

    def test_wrong_options(self):
        self.run_tune("--tokens", "64", "--fp32-gradients", status=2)
        self.assert_says(self.tune("tune", "--misses", "/dev/null", "--training", status=2), "--training goes with layers")

    def test_a_pack_for_training_has_the_kernels_of_both_passes_and_their_records(self):
        self.run_tune("--tokens", "64", "--training")
        packed = self.summary(self.tune("pack", *LAYER, "--device", "h200", "--tokens", "64", "--training", "--out", self.root / "pack", "--json",
                                        "--tuning-db", self.records, "--cache-dir", self.root / "one"))
        self.assertEqual(packed["records"], 2)
        made = self.tune("compile", *LAYER, "--device", "h200", "--tokens", "64", "--training", "--tuning-db", self.root / "pack" / "tuning",
                         "--cache-dir", self.root / "two", "--json")
        kernels = self.lines(made, "kernel")
        self.assertEqual(len(kernels), packed["kernels"])
        self.assertEqual({k["config_source"] for k in kernels if k["stage"] in self.PRODUCTS}, {"tuned"})
        forward = self.summary(self.tune("pack", *LAYER, "--device", "h200", "--tokens", "64", "--out", self.root / "forward", "--json"))
        self.assertEqual(forward["records"], 1)
        self.assertLess(forward["kernels"], packed["kernels"])


class Verify(GpuStory):
    def test_every_record_is_run(self):
        self.run_tune("--tokens", "1,64")
        summary = self.summary(self.tune("verify", self.records, "--json"))
        self.assertEqual((summary["records"], summary["right"], summary["wrong"]), (2, 2, 0))
        self.assert_says(self.tune("verify", self.records, "--gpus", "all", env={"FAKE_GPU_DEVICES": "2"}), "2 right", "the record says")

    def test_fault_31_wrong_and_crashing_records_are_named(self):
        self.run_tune("--tokens", "1,64")
        for what, word in (("WRONG", "wrong result"), ("CRASH", "signal")):
            result = self.tune("verify", self.records, "--json", status=1, env={"FAKE_GPU_" + what: "whole_layer_t8"})  # of the bucket 1
            summary = self.summary(result)
            self.assertEqual((summary["right"], summary["wrong"]), (1, 1))
            (bad,) = [r for r in self.lines(result, "record") if not r["right"]]
            self.assertEqual(bad["tokens"], 1)
            self.assertIn(word, bad["fault"])

    def test_nothing_to_verify_is_no_success(self):
        self.tune("verify", self.write_db("a100", {"device": "NVIDIA A100-SXM4-80GB", "arch": "sm_80", "cu_num": 108}), status=1)
        self.tune("verify", "/nonexistent", status=1)

    def write_db(self, name, changes):
        self.run_tune("--tokens", "1")
        folder = self.root / name
        folder.mkdir(mode=0o700)
        data = json.loads((self.records / "nvidia-h200.json").read_text())
        data["records"][0].update(changes)
        (folder / "x.json").write_text(json.dumps(data))
        (folder / "x.json").chmod(0o600)
        return folder

    def test_fault_30_without_a_gpu(self):
        self.assert_says(self.tune("verify", status=3, env={"LD_LIBRARY_PATH": None}), "GPU")


class Report(GpuStory):
    def page(self, *arguments, **more):
        self.tune("report", *arguments, "--html", "report.html", **more)
        return (self.cwd / "report.html").read_text()

    def check_page(self, page):
        """Well formed, and nothing is fetched from anywhere."""
        problems, stack, void = [], [], {"meta", "br", "wbr", "line", "polyline"}

        class Reader(html.parser.HTMLParser):
            def handle_starttag(self, tag, attributes):
                if tag in ("script", "link", "img", "iframe", "object", "use"):
                    problems.append(tag)
                problems.extend(name for name, _ in attributes if name in ("src", "href", "xlink:href") or name.startswith("on"))
                if tag not in void:
                    stack.append(tag)

            def handle_startendtag(self, tag, attributes):
                if tag in void:
                    self.handle_starttag(tag, attributes)
                else:
                    problems.append(tag + "/")

            def handle_endtag(self, tag):
                if not stack or stack.pop() != tag:
                    problems.append("/" + tag)

        Reader().feed(page)
        self.assertEqual((problems, stack), ([], []))
        for word in ("http:", "https:", "@import", "url("):
            self.assertNotIn(word, page)

    def test_a_page_of_its_own_with_landscape_winners_floor_and_baseline(self):
        self.run_tune("--tokens", "1,64,1024")
        page = self.page()
        self.check_page(page)
        for word in ("NVIDIA H200", "8 experts of 128", "floor", "cost model", "fc1 wgmma", "fc2 wgmma", "block_m", "leaders", "one launch", "<svg"):
            self.assertIn(word, page)
        self.assertEqual(page, self.page())
        self.assert_says(self.tune("report"), "share of floor", "gain", "verified")
        self.assertEqual(len(self.lines(self.tune("report", self.records, "--json"), "record")), 3)

    def test_without_a_log_and_with_one_elsewhere(self):
        self.run_tune("--tokens", "64", "--into", self.root / "db", "--trial-log", self.root / "log")
        self.assertNotIn("trials</summary>", self.page(self.root / "db"))
        page = self.page(self.root / "db", "--trials", self.root / "log")
        self.assertIn("trials</summary>", page)
        self.check_page(page)
        self.run_tune("--tokens", "64", "--into", self.root / "db", "--trial-log", "none", "--retune")

    def test_fault_21_a_damaged_log_and_a_killed_run_s_cut_line(self):
        self.run_tune("--tokens", "64")
        log = self.records / "nvidia-h200.jsonl"
        log.write_bytes(log.read_bytes()[:-30] + b'\n{"key": 1}\n\xff\xfe\n[[[[')
        self.check_page(self.page())

    def test_fault_23_names_from_outside_stay_text(self):
        self.run_tune("--tokens", "64")
        path = self.records / "nvidia-h200.json"
        path.write_text(path.read_text().replace("NVIDIA H200", "<script>alert(1)</script><img src=x>"))
        page = self.page()
        self.check_page(page)
        self.assertIn("&lt;script&gt;", page)

    def test_no_records(self):
        self.check_page(self.page())
        self.tune("report", "/nonexistent", status=1)


class Pack(GpuStory):
    """What a server finds in a pack: varmoe-bench on the GPU stands for it."""

    def serve(self, folder, *more, tokens, status=0):
        """Kernels of a server that has the folder and nothing else: no compiler, no cache, another home."""
        home = self.root / "server"
        home.mkdir(exist_ok=True, mode=0o700)
        result = self.bench(*LAYER, "--tokens", tokens, "--no-check", "--iterations", "1", "--json", *more, status=status,
                            env={"HOME": str(home), "VARMOE_CUBIN_PATH": str(folder), "VARMOE_TUNING_DB": str(folder / "tuning"),
                                 "VARMOE_JIT": "cached_only", "VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so"})
        return self.lines(result, "kernel")

    def entries(self, folder):
        return sorted(p.name for p in folder.rglob("*.vmc1"))

    def pack(self, out, *more):
        return self.summary(self.tune("pack", *LAYER, "--device", "h200", "--tokens", "1,64", "--out", out, "--json", *more))

    def test_fault_36_all_kernels_that_a_server_asks_for_and_no_others(self):
        self.run_tune("--tokens", "1,64")
        summary = self.pack(self.root / "pack")
        self.assertEqual(summary["records"], 2)
        moved = self.root / "elsewhere" / "varmoe"
        moved.parent.mkdir()
        shutil.move(self.root / "pack", moved)
        for path in [moved, *moved.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        kernels = self.serve(moved, tokens="1,64")
        self.assertEqual(len(kernels), len(self.entries(moved)))
        self.assertEqual({k["origin"] for k in kernels}, {f"readonly:{moved}"})
        self.assertEqual({k["config_source"] for k in kernels}, {"tuned"})
        self.serve(moved, tokens="1,64,4096", status=1)  # 4096 was not packed
        for path in [moved, *moved.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)

    def test_compile_against_records_makes_what_a_server_asks_for_and_no_others(self):
        self.run_tune("--tokens", "1,64", "--into", self.root / "db")
        made = self.tune("compile", *LAYER, "--device", "h200", "--tokens", "1,64", "--tuning-db", self.root / "db", "--cache-dir",
                         self.root / "image", "--json")
        self.assertEqual({k["config_source"] for k in self.lines(made, "kernel")}, {"tuned"})
        shutil.copytree(self.root / "db", self.root / "image" / "tuning")
        for path in [self.root / "image", *(self.root / "image").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        kernels = self.serve(self.root / "image", tokens="1,64")
        self.assertEqual(len(kernels), len(self.entries(self.root / "image")))

    def test_a_model_s_router_is_in_its_pack(self):
        model = SOURCE / "models/qwen3-30b-a3b.json"
        self.tune("pack", model, "--device", "h200", "--tokens", "64", "--out", self.root / "pack")
        # A server of this pack alone: no cache of its own, no compiler.
        server = {"VARMOE_CUBIN_PATH": self.root / "pack", "VARMOE_TUNING_DB": self.root / "pack" / "tuning", "VARMOE_CACHE": "off",
                  "VARMOE_JIT": "cached_only", "VARMOE_NVRTC_LIB": "/nonexistent/libnvrtc.so"}
        made = self.tune("compile", "--model", model, "--device", "h200", "--tokens", "64", "--json", env=server)
        kernels = self.lines(made, "kernel")
        self.assertIn("route", {k["stage"] for k in kernels})
        self.assertTrue(all(k["hit"] for k in kernels))

    def test_fault_38_two_packs_are_the_same_bytes(self):
        self.run_tune("--tokens", "1,64", "--into", self.root / "db")
        for number in ("1", "2"):
            self.pack(self.root / number, "--tuning-db", self.root / "db", "--cache-dir", self.root / ("cache" + number))
        contents = [{str(p.relative_to(self.root / n)): p.read_bytes() for p in (self.root / n).rglob("*") if p.is_file()} for n in ("1", "2")]
        self.assertEqual(contents[0], contents[1])
        self.assertGreater(len(contents[0]), 5)

    def test_what_is_there_is_replaced_only_where_it_is_a_pack(self):
        self.pack(self.root / "pack")
        self.tune("pack", *LAYER, "--device", "h200", "--tokens", "4", "--out", self.root / "pack")
        self.assertIn('"tokens": [4]', (self.root / "pack" / "pack.json").read_text())
        precious = self.root / "precious"
        precious.mkdir()
        (precious / "thesis").write_text("text")
        self.assert_says(self.tune("pack", *LAYER, "--device", "h200", "--out", precious, status=3), "no pack")
        self.assertEqual((precious / "thesis").read_text(), "text")
        self.assertFalse([p for p in self.root.iterdir() if ".tmp-" in p.name])

    def test_the_lines_for_a_container(self):
        self.run_tune("--tokens", "1")
        result = self.tune("pack", *LAYER, "--device", "h200", "--tokens", "1", "--out", "out", "--path", "/srv/moe", "--fc1-config", "raster=4")
        self.assert_says(result, "COPY out /srv/moe", "VARMOE_CUBIN_PATH=/srv/moe", "VARMOE_TUNING_DB=/srv/moe/tuning", "VARMOE_JIT=cached_only",
                         'VARMOE_FC1_CONFIG="raster=4"')

    def test_several_models(self):
        summary = self.summary(self.tune("pack", self.model("qwen3-30b-a3b"), self.model("mixtral-8x7b"), "--device", "h200", "--tokens", "64",
                                         "--out", "both", "--json"))
        one = self.summary(self.tune("pack", self.model("mixtral-8x7b"), "--device", "h200", "--tokens", "64", "--out", "one", "--json"))
        self.assertGreater(summary["kernels"], one["kernels"])
        self.tune("pack", "--device", "h200", "--out", "none", status=2)


if __name__ == "__main__":
    story.main()
