#!/usr/bin/env python3
"""Tests of tools/gpu_suite_digest and tools/check_gpu_evidence on made-up trees, and of how gpu_suite merges records.

usage: gpu_evidence_test.py REPOSITORY
"""
import importlib.machinery
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOLS = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2]) / "tools"
TODAY = "2030-03-10"


def gpu_suite():
    """tools/gpu_suite as a module."""
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("gpu_suite", str(TOOLS / "gpu_suite"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


class GpuEvidence(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = pathlib.Path(self.folder.name)
        for name in ("kernels_src/a.cuh", "src/base/a.cpp", "tests/gpu/a_test.cpp"):
            self.write(name, f"text of {name}\n")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def digest(self):
        run = subprocess.run([sys.executable, TOOLS / "gpu_suite_digest", self.root], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    def record(self, **changes):
        record = {"schema": 1, "digest": self.digest(), "date": TODAY, "device": "NVIDIA H200", "driver": "580", "passed": 5,
                  "failed": 0, "skipped": [{"name": "racecheck", "reason": "not allowed there"}],
                  "worst_errors": {"bf16": {"frobenius": 0.002}}, "disassembly": {"findings": []},
                  "benchmark": [{"layer": "a", "us": 1.0}]}
        record.update(changes)
        record = {key: value for key, value in record.items() if value is not None}
        self.write("tests/gpu/last_run.json", json.dumps(record))

    def check(self, *arguments):
        run = subprocess.run([sys.executable, TOOLS / "check_gpu_evidence", "--today", TODAY, *arguments, self.root],
                             capture_output=True, text=True)
        return run.returncode, run.stdout + run.stderr

    def assert_fails(self, words):
        status, text = self.check()
        self.assertEqual(status, 1, text)
        self.assertIn("FAILED", text)
        self.assertIn(words, text)

    def test_sound_record_passes(self):
        self.record()
        status, text = self.check()
        self.assertEqual(status, 0, text)
        self.assertIn("5 passed, 1 skipped on NVIDIA H200", text)

    def test_every_file_that_decides_changes_the_digest(self):
        before = self.digest()
        for name in ("kernels_src/a.cuh", "src/base/a.cpp", "tests/gpu/a_test.cpp"):
            original = (self.root / name).read_text()
            self.write(name, original + " ")
            self.assertNotEqual(self.digest(), before, name)
            self.write(name, original)
        self.assertEqual(self.digest(), before)

    def test_new_renamed_and_moved_files_change_the_digest(self):
        seen = {self.digest()}
        self.write("kernels_src/b.cuh", "")
        seen.add(self.digest())
        (self.root / "kernels_src/b.cuh").rename(self.root / "kernels_src/c.cuh")
        seen.add(self.digest())
        (self.root / "kernels_src/c.cuh").unlink()
        # The same bytes with a moved boundary between two files.
        self.write("kernels_src/a.cuh", "text of ")
        self.write("kernels_src/b.cuh", "kernels_src/a.cuh\n")
        seen.add(self.digest())
        self.assertEqual(len(seen), 4)

    def test_the_record_other_folders_and_leftovers_do_not_enter(self):
        before = self.digest()
        for name in ("tests/gpu/last_run.json", "docs/a.md", "tests/base/a_test.cpp", "src/.a.cpp.swp", "src/a.cpp~",
                     "tests/gpu/__pycache__/a.pyc"):
            self.write(name, "x")
        self.assertEqual(self.digest(), before)

    def test_another_tree_fails(self):
        self.record()
        self.write("src/base/a.cpp", "changed\n")
        self.assert_fails("another tree")

    def test_warn_only_says_it_and_passes(self):
        self.record()
        self.write("src/base/a.cpp", "changed\n")
        status, text = self.check("--warn-only")
        self.assertEqual(status, 0)
        self.assertIn("warning", text)
        self.assertIn("another tree", text)

    def test_failures_fail(self):
        self.record(failed=1)
        self.assert_fails("1 GPU tests failed")

    def test_skips_need_a_reason(self):
        for entry in ({"name": "memcheck"}, {"name": "memcheck", "reason": "  "}, "memcheck"):
            self.record(skipped=[entry])
            self.assert_fails("memcheck was skipped without a reason")

    def test_findings_in_the_disassembly_fail(self):
        self.record(disassembly={"findings": ["fc1: LDL"]})
        self.assert_fails("fc1: LDL")

    def test_every_field_is_needed(self):
        for field in ("schema", "digest", "date", "device", "driver", "passed", "failed", "skipped", "worst_errors",
                      "disassembly", "benchmark"):
            self.record(**{field: None})
            status, text = self.check()
            self.assertEqual(status, 1, f"{field}: {text}")

    def test_an_empty_run_fails(self):
        self.record(passed=0)
        self.assert_fails("nothing passed")

    def test_counts_are_counts(self):
        for value in (True, -1, 1.5, "5"):
            self.record(failed=value)
            self.assert_fails("not a count")

    def test_no_record(self):
        self.assert_fails("no record of a GPU run")

    def test_damaged_records(self):
        for text in ("", "{", "[]", '{"digest": "a", "digest": "b"}', "\0"):
            self.write("tests/gpu/last_run.json", text)
            status, output = self.check()
            self.assertEqual(status, 1, output)
            self.assertNotIn("Traceback", output)

    def test_pending_passes_for_two_days_with_a_loud_line(self):
        for date in ("2030-03-10", "2030-03-08"):
            self.record(pending={"date": date, "reason": "no GPU until Tuesday"}, digest="0")
            status, text = self.check()
            self.assertEqual(status, 0, text)
            self.assertIn("!!! PENDING !!!", text)
            self.assertIn("no GPU until Tuesday", text)

    def test_pending_alone_passes(self):
        self.write("tests/gpu/last_run.json", json.dumps({"pending": {"date": TODAY, "reason": "first commit"}}))
        self.assertEqual(self.check()[0], 0)

    def test_pending_ends(self):
        self.record(pending={"date": "2030-03-07", "reason": "no GPU"}, digest="0")
        self.assert_fails("more than 2 days ago")

    def test_pending_cannot_be_dated_ahead(self):
        self.record(pending={"date": "2030-04-01", "reason": "no GPU"}, digest="0")
        self.assert_fails("future")

    def test_pending_needs_date_and_reason(self):
        for pending in ({"date": TODAY}, {"reason": "x"}, {"date": "soon", "reason": "x"}, "yes", {"date": 1, "reason": "x"}):
            self.record(pending=pending, digest="0")
            self.assertEqual(self.check()[0], 1, pending)

    def test_pending_excuses_no_failure(self):
        self.record(pending={"date": TODAY, "reason": "no GPU"}, digest="0", failed=2)
        self.assert_fails("2 GPU tests failed")

    def test_pending_parts_may_be_missing_where_they_are_named(self):
        pending = {"date": TODAY, "reason": "cut off"}
        to_come = [{"name": part, "reason": "the run was cut off before it"} for part in ("sanitizer", "disassembly", "benchmark")]
        missing = {"disassembly": None, "benchmark": None}
        self.record(pending=pending, skipped=to_come, **missing)
        self.assertEqual(self.check()[0], 0)
        self.record(skipped=to_come, **missing)
        self.assert_fails("disassembly.findings is missing")
        self.record(pending=pending, skipped=to_come[:2], **missing)
        self.assert_fails("benchmark is missing")
        # What is there must be sound.
        self.record(pending=pending, skipped=to_come, disassembly={"findings": ["LDL"]}, benchmark=None)
        self.assert_fails("LDL")

    def test_a_merged_record_has_both_runs_parts_and_is_pending_no_more(self):
        suite = gpu_suite()
        earlier = {"passed": 127, "failed": 0, "worst_errors": {"bf16": {}}, "pending": {"date": TODAY, "reason": "cut off"}, "failures": [],
                   "skipped": [{"name": "benchmark", "reason": "the run was cut off before it"}, {"name": "racecheck of a", "reason": "two streams"}]}
        record = {"passed": 30, "failed": 0, "skipped": [], "failures": [], "benchmark": [{"us": 1.0}]}
        suite.merge(record, earlier, ["benchmark"])
        self.assertEqual(record["passed"], 157)
        self.assertEqual([s["name"] for s in record["skipped"]], ["racecheck of a"])
        self.assertIn("worst_errors", record)
        self.assertNotIn("pending", record)

    def test_benchmarks_run_one_at_a_time_on_each_gpu(self):
        gpus, together = {}, []

        def job(number):
            def start(gpu):
                self.assertNotIn(gpu, gpus.values())
                gpus[number] = gpu
                together.append(len(gpus))
                return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.05)"])
            return f"job {number}", start, number
        ended = []
        for process, (_, _, number) in gpu_suite().one_a_gpu([job(n) for n in range(5)], 2):
            self.assertEqual(process.returncode, 0)
            ended.append(number)
            del gpus[number]
        self.assertEqual(sorted(ended), list(range(5)))
        self.assertEqual(max(together), 2)

    def test_processes_share_all_cases(self):
        (self.root / "bin").mkdir(exist_ok=True)
        program = self.root / "bin/varmoe_test_gpu"
        program.write_text("#!/bin/sh\necho '[doctest] unskipped test cases passing the current filters: 13'\n")
        program.chmod(0o755)
        shares = gpu_suite().Suite(self.root, 1).shares(["--test-case=small*"], 6)
        self.assertEqual(shares, [("1/3", ["--first=1", "--last=6"]), ("2/3", ["--first=7", "--last=12"]), ("3/3", ["--first=13"])])


if __name__ == "__main__":
    unittest.main()
