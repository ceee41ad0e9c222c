#!/usr/bin/env python3
"""Tests of include_direction.py on small made-up trees."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import include_direction  # noqa: E402


class IncludeDirection(unittest.TestCase):
    def offences(self, files):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder).resolve()
            (root / "src").mkdir()
            for name, text in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return include_direction.offences_of(root)[0]

    def assert_one(self, files, words):
        found = self.offences(files)
        self.assertEqual(len(found), 1, found)
        self.assertIn(words, found[0])

    def test_downward_and_own_room_are_allowed(self):
        self.assertEqual(self.offences({
            "src/plan/a.cpp": '#include "plan/a.hpp"\n#include "emit/b.hpp"\n#include "varmoe/engine.hpp"\n#include <vector>\n',
            "src/cuda/a.cpp": "#include <cuda.h>\n", "src/compile/a.cpp": "#include <nvrtc.h>\n",
            "src/model/a.cpp": "#include <nlohmann/json.hpp>\n", "tools/a.cpp": '#include "engine/a.hpp"\n#include <CLI/CLI.hpp>\n',
            "include/varmoe/a.hpp": '#include <string>\n#include "varmoe/error.hpp"\n'}), [])

    def test_upward(self):
        self.assert_one({"src/model/a.cpp": '\n#include "plan/b.hpp"\n'}, "src/model/a.cpp:2: model includes a higher room")

    def test_sibling(self):
        self.assert_one({"src/emit/a.hpp": '#include "compile/b.hpp"\n'}, "a sibling")

    def test_indented_and_spaced_includes_are_seen(self):
        self.assert_one({"src/base/a.cpp": '  #  include "model/b.hpp"\n'}, "a higher room")

    def test_cuda_header_elsewhere(self):
        self.assert_one({"src/engine/a.cpp": "#include <cuda.h>\n"}, "belongs to cuda alone")

    def test_nvrtc_header_elsewhere(self):
        self.assert_one({"src/cuda/a.cpp": "#include <nvrtc.h>\n"}, "belongs to compile alone")

    def test_json_elsewhere(self):
        self.assert_one({"tools/a.cpp": "#include <nlohmann/json.hpp>\n"}, "belongs to model, tuningdb alone")

    def test_an_owned_header_in_a_private_header_is_allowed(self):
        self.assertEqual(self.offences({"src/cuda/table.hpp": "#include <cuda.h>\n",
                                        "src/cuda/a.cpp": '#include "cuda/table.hpp"\n'}), [])

    def test_an_owned_header_reached_through_another_room(self):
        self.assert_one({"src/cuda/table.hpp": "#include <cuda.h>\n", "src/cuda/a.hpp": '#include "cuda/table.hpp"\n',
                         "src/plan/a.cpp": '#include "cuda/a.hpp"\n'}, 'src/plan/a.cpp: "cuda/a.hpp" includes <cuda.h>')

    def test_the_kernel_abi_is_for_emit_and_plan(self):
        self.assertEqual(self.offences({"src/emit/a.cpp": '#include "abi.cuh"\n', "src/plan/a.cpp": '#include "abi.cuh"\n'}), [])
        self.assert_one({"src/model/a.cpp": '#include "abi.cuh"\n'}, "names no room")
        self.assertEqual(self.offences({"src/plan/a.cpp": '#include "schedule/row_tiles.cuh"\n'}), [])
        self.assert_one({"src/emit/a.cpp": '#include "schedule/row_tiles.cuh"\n'}, "names no room")
        self.assert_one({"src/plan/a.cpp": '#include "schedule/tile_map.cuh"\n'}, "names no room")

    def test_relative_include(self):
        self.assert_one({"src/plan/a.cpp": '#include "a.hpp"\n'}, "names no room")

    def test_public_header_that_reaches_inside(self):
        self.assert_one({"include/varmoe/a.hpp": '#include "base/log.hpp"\n'}, "a public header includes")

    def test_public_header_with_another_library(self):
        self.assert_one({"include/varmoe/a.hpp": "#include <fmt/core.h>\n"}, "not the standard library")

    def test_unknown_room(self):
        self.assert_one({"src/utils/a.cpp": "int x;\n"}, "no room")


if __name__ == "__main__":
    unittest.main()
