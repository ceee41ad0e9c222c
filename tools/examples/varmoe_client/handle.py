"""Objects of the library and calls that it made beforehand."""
import ctypes as c

from .tensors import stream_of


class VarmoeError(RuntimeError):
    """A call that failed: `code` is one of VARMOE_E_*, `name` its name ("not_prepared"), the text the library's sentence."""

    def __init__(self, code, name, sentence):
        super().__init__(sentence or name)
        self.code, self.name = code, name


class Handle:
    """One object of the library and what destroys it."""
    destroy = ""

    def __init__(self, library, pointer, *keeps):
        self.library, self.pointer, self.keeps = library, pointer, list(keeps)

    def close(self):
        if self.pointer:
            getattr(self.library.lib, self.destroy)(self.pointer)
            self.pointer = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        try:
            self.close()
        except (AttributeError, TypeError):  # the interpreter is shutting down
            pass


class Call:
    """Arguments set up once, for loops and graph captures: call() enqueues on `stream`, None being torch's current stream where x lies on a GPU."""

    def __init__(self, handle, function, args, tensor, keeps, *more):
        self.handle, self.function, self.args, self.tensor, self.keeps, self.more = handle, function, args, tensor, keeps, more

    def __call__(self, stream=None):
        self.args.stream = stream if stream is not None else stream_of(self.tensor)
        self.handle.library.check(self.function(self.handle.pointer, c.byref(self.args), *self.more))
