#!/usr/bin/env python3
"""fault 45: what is installed works for C and C++ hosts, by find_package, pkg-config and add_subdirectory; headers compile alone;
the shared library shows varmoe's symbols and nothing else; hosts with another fmt and spdlog are not mixed up with ours.

usage: packaging_test.py SOURCE BUILD CMAKE C_COMPILER CXX_COMPILER [unittest options]
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE, BUILD = (pathlib.Path(a).resolve() for a in sys.argv[1:3])
CMAKE, CC, CXX = sys.argv[3:6]
del sys.argv[1:6]
HERE = pathlib.Path(__file__).resolve().parent
CACHE = (BUILD / "CMakeCache.txt").read_text()
# A machine may have no other build program than the one this was built with.
GENERATOR = re.search(r"^CMAKE_GENERATOR:\w+=(.+)$", CACHE, re.M).group(1)
INTERNAL = r"(base|model|emit|compile|cubin|tuningdb|cuda|cpu|plan|tuner|engine|embedded|tools)"


def run(*command, environment=None, check=True, cwd=None):
    """Runs with no VARMOE_* variable of ours and returns the finished process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VARMOE_")}
    env.update(environment or {})
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env, cwd=cwd)
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}")
    return result


def clash_source(path):
    """Defines every fmt and spdlog symbol of the library's objects as a function that aborts."""
    archives = list((BUILD / "src").rglob("libvarmoe_room_*.a")) + list(BUILD.glob("libvarmoe_fmt_compiled.a"))
    names = set()
    for archive in archives:
        for line in run("nm", "--defined-only", archive).stdout.splitlines():
            fields = line.split()
            if len(fields) == 3 and fields[1] in "TW" and re.match(r"_ZNK?(3fmt|6spdlog)", fields[2]):
                names.add(fields[2])
    lines = ["#include <stdlib.h>"]
    for i, name in enumerate(sorted(names)):
        lines.append(f'void clash_{i}(void) __asm__("{name}");\nvoid clash_{i}(void) {{ abort(); }}')
    path.write_text("\n".join(lines) + "\n")
    return len(names)


class Packaging(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        root = pathlib.Path(cls.folder.name)
        first = root / "installed"
        run(CMAKE, "--install", BUILD, "--prefix", first)
        # An installed tree may be moved.
        cls.prefix = root / "moved here"
        first.rename(cls.prefix)
        cls.root = root
        (cls.library,) = list(cls.prefix.rglob("libvarmoe_jit.so"))
        (cls.archive,) = list(cls.prefix.rglob("libvarmoe_jit.a"))

    def run_consumer(self, program):
        # A misspelt variable makes the library say a line through its own fmt and spdlog.
        result = run(program, environment={"VARMOE_CACHE_DIRR": "x", "HOME": str(self.root),
                                           "LD_LIBRARY_PATH": str(self.library.parent)})
        self.assertIn("consumer: ok", result.stdout)
        self.assertIn("VARMOE_CACHE_DIRR", result.stderr)

    def test_fault_45_only_varmoe_symbols_are_exported(self):
        lines = run("nm", "-D", "--defined-only", self.library).stdout.split("\n")
        names = [line.split()[-1].split("@")[0] for line in lines if line.strip()]
        names = [n for n in names if not re.fullmatch(r"VARMOE_\d+", n)]
        self.assertGreater(len(names), 20)
        shown = run("c++filt", *names).stdout.split("\n")
        for name, text in zip(names, shown):
            self.assertRegex(name, r"^(varmoe_\w+|_ZNK?6varmoe.*|_ZT[ISV]N6varmoe.*)$", text)
            self.assertNotRegex(text, rf"\bvarmoe::{INTERNAL}::|::Impl::")
        declared = set(re.findall(r"^VARMOE_C_API [^;(]*?\b(varmoe_\w+)\(", (SOURCE / "include/varmoe/varmoe.h").read_text(),
                                  re.M))
        self.assertGreater(len(declared), 10)
        self.assertEqual({n for n in names if n.startswith("varmoe_")}, declared)

    def test_fault_45_the_static_library_shows_no_other_library(self):
        text = run("nm", "--defined-only", "--extern-only", self.archive).stdout
        names = [line.split()[2] for line in text.splitlines() if len(line.split()) == 3]
        self.assertGreater(len(names), 20)
        for name in names:
            self.assertIn("varmoe", name)
        self.assertFalse([n for n in names if re.match(r"_ZNK?(3fmt|6spdlog|8nlohmann)", n)])

    def test_fault_45_neither_driver_nor_nvrtc_nor_fmt_is_linked(self):
        dynamic = run("readelf", "-d", self.library).stdout
        needed = set(re.findall(r"NEEDED.*\[(.*?)\]", dynamic))
        self.assertFalse([n for n in needed if re.search(r"cuda|nvrtc|fmt|spdlog", n)], needed)
        self.assertRegex(dynamic, r"SONAME.*\[libvarmoe_jit\.so\.0\]")
        self.assertNotIn("RUNPATH", dynamic)
        for program in ("varmoe-tune", "varmoe-bench"):
            path = self.prefix / "bin" / program
            if path.exists():
                needed = re.findall(r"NEEDED.*\[(.*?)\]", run("readelf", "-d", path).stdout)
                self.assertFalse([n for n in needed if re.search(r"cuda|nvrtc|fmt|spdlog", n)], needed)

    def test_fault_45_every_header_compiles_alone(self):
        include = self.prefix / "include"
        headers = sorted((include / "varmoe").iterdir())
        self.assertGreaterEqual(len(headers), 8)
        for header in headers:
            source = self.root / "alone.cpp"
            source.write_text(f"#include <varmoe/{header.name}>\n#include <varmoe/{header.name}>\nint main() {{}}\n")
            run(CXX, "-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{include}", source)
            run(CXX, "-std=c++20", "-fno-exceptions" if header.suffix == ".h" else "-Wall", "-fsyntax-only", f"-I{include}",
                "-DVARMOE_STATIC", source)
        source = self.root / "alone.c"
        source.write_text("#include <varmoe/varmoe.h>\nint main(void) { return 0; }\n")
        run(CC, "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", f"-I{include}", source)

    def test_fault_45_find_package_and_a_host_with_another_fmt_and_spdlog(self):
        clash = self.root / "clash.c"
        self.assertGreater(clash_source(clash), 50)
        build = self.root / "find_package"
        run(CMAKE, "-G", GENERATOR, "-S", HERE / "find_package", "-B", build, f"-DCMAKE_PREFIX_PATH={self.prefix}", f"-DCLASH={clash}",
            f"-DCMAKE_C_COMPILER={CC}", f"-DCMAKE_CXX_COMPILER={CXX}", "-DCMAKE_BUILD_TYPE=Debug")
        run(CMAKE, "--build", build, "-j", "2")
        for program in ("c_shared", "cpp_shared", "cpp_static"):
            with self.subTest(program):
                self.run_consumer(build / program)

    def test_fault_45_another_minor_version_is_not_taken(self):
        build = self.root / "wrong_version"
        (build / "source").mkdir(parents=True)
        (build / "source" / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.22)\nproject(x LANGUAGES NONE)\nfind_package(varmoe_jit 0.2 REQUIRED)\n")
        result = run(CMAKE, "-G", GENERATOR, "-S", build / "source", "-B", build / "build", f"-DCMAKE_PREFIX_PATH={self.prefix}", check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("0.2", result.stderr)

    @unittest.skipUnless(shutil.which("pkg-config"), "no pkg-config here")
    def test_fault_45_pkg_config(self):
        (folder,) = [p.parent for p in self.prefix.rglob("varmoe_jit.pc")]
        import shlex
        flags = {}
        for kind in ("--cflags", "--libs", "--modversion"):
            text = run("pkg-config", kind, "varmoe_jit", environment={"PKG_CONFIG_PATH": str(folder)}).stdout
            flags[kind] = shlex.split(text)
        program = self.root / "by_pkg_config"
        define = f'-DPACKAGE_VERSION="{flags["--modversion"][0]}"'
        run(CC, "-std=c99", define, *flags["--cflags"], HERE / "consumer.c", "-o", program, *flags["--libs"])
        self.run_consumer(program)
        private = re.search(r"^Libs\.private: (.*)$", (folder / "varmoe_jit.pc").read_text(), re.M).group(1).split()
        run(CC, "-std=c99", define, "-DVARMOE_STATIC", *flags["--cflags"], HERE / "consumer.c", "-o", program, self.archive,
            *private)
        self.run_consumer(program)

    def test_fault_45_add_subdirectory(self):
        build = self.root / "add_subdirectory"
        same = re.findall(r"^(VARMOE_(?:CUDA|NVRTC)_INCLUDE_DIR|CMAKE_CXX_COMPILER_LAUNCHER):\w+=(.+)$", CACHE, re.M)
        options = [f"-D{name}={value}" for name, value in same]
        run(CMAKE, "-G", GENERATOR, "-S", HERE / "add_subdirectory", "-B", build, f"-DVARMOE_SOURCE={SOURCE}",
            f"-DCMAKE_C_COMPILER={CC}", f"-DCMAKE_CXX_COMPILER={CXX}", "-DCMAKE_CXX_FLAGS=-O0", *options)
        run(CMAKE, "--build", build, "-j", "2", "--target", "host")
        self.run_consumer(build / "host")


if __name__ == "__main__":
    unittest.main()
