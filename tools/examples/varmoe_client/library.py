"""The shared library."""
import ctypes as c
import pathlib

from .engine import Engine
from .handle import VarmoeError
from .structs import EngineOptions, I64, KernelReport, PTR, PrepareOptions, SIZE, STR

CPU = -1


def find_library():
    """libvarmoe_jit.so of a build folder of this checkout, else the name alone, for the dynamic loader to find."""
    root = pathlib.Path(__file__).resolve().parents[3]
    return next(iter(sorted(root.glob("build/**/libvarmoe_jit.so"))), "libvarmoe_jit.so")


class Library:
    """The shared library. `path`: the file; None: find_library()."""

    def __init__(self, path=None):
        self.lib = c.CDLL(str(path or find_library()))
        for name in ("varmoe_last_error", "varmoe_version", "varmoe_status_name"):
            getattr(self.lib, name).restype = STR
        for name in ("varmoe_sorted_ids_size", "varmoe_aligned_blocks"):
            getattr(self.lib, name).restype = I64
        self.lib.varmoe_report_kernel_count.restype = SIZE

    def version(self):
        return self.lib.varmoe_version().decode()

    def check(self, status):
        if status != 0:
            raise VarmoeError(status, self.lib.varmoe_status_name(status).decode(), self.lib.varmoe_last_error().decode())

    def made(self, kind):
        """A struct with the library's defaults."""
        value = kind()
        self.check(getattr(self.lib, kind.c_name + "_init")(c.byref(value), SIZE(c.sizeof(kind))))
        return value

    def size(self, function, pointer, count):
        size = SIZE()
        self.check(getattr(self.lib, function)(pointer, I64(count), c.byref(size)))
        return size.value

    def prepare(self, function, pointer, tokens):
        options = self.made(PrepareOptions)
        if tokens is not None:
            options.tokens, options.token_count = (I64 * len(tokens))(*tokens), len(tokens)
        report = PTR()
        self.check(getattr(self.lib, function)(pointer, c.byref(options), c.byref(report)))
        try:
            kernels = []
            for i in range(self.lib.varmoe_report_kernel_count(report)):
                kernel = self.made(KernelReport)
                self.check(self.lib.varmoe_report_kernel(report, SIZE(i), c.byref(kernel)))
                kernels.append({name: getattr(kernel, name).decode() for name in ("stage", "name", "config", "origin", "error")})
            return kernels
        finally:
            self.lib.varmoe_report_destroy(report)

    def engine(self, device=0, **members):
        """device: CUDA ordinal, or "cpu". members: the others of varmoe_engine_options (cache_dir, fc1_config, cpu_threads, …)."""
        options = self.made(EngineOptions)
        options.assign({"device": CPU if device == "cpu" else device, **members})
        pointer = PTR()
        self.check(self.lib.varmoe_engine_create(c.byref(options), c.byref(pointer)))
        return Engine(self, pointer)
