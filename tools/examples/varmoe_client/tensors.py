"""What serves as a tensor: its address, and its shape, element type, strides and stream where it has them."""
import ctypes as c

from .structs import ExpertWeights


def address(tensor):
    """Where a tensor's first element lies; None for None."""
    if tensor is None or isinstance(tensor, int):
        return tensor
    if hasattr(tensor, "data_ptr"):
        return tensor.data_ptr()
    if hasattr(tensor, "__array_interface__"):
        return tensor.__array_interface__["data"][0]
    if hasattr(tensor, "buffer_info"):
        return tensor.buffer_info()[0]
    if isinstance(tensor, (c.Array, c._SimpleCData, c.Structure)):
        return c.addressof(tensor)
    view = memoryview(tensor)
    return c.addressof((c.c_char * view.nbytes).from_buffer(view)) if view.nbytes else None


def element(tensor):
    """"bf16", "fp16", "fp32", "int32", "int64", or "" where the tensor does not say so."""
    names = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32", "int32": "int32", "int64": "int64", "long": "int64"}
    if hasattr(tensor, "dtype"):
        return names.get(str(tensor.dtype).removeprefix("torch."), "")
    return {"f": "fp32", "i": "int32", "q": "int64"}.get(getattr(tensor, "typecode", ""), "")


def rows(tensor, name, columns):
    """(rows, elements between rows) of a [T, columns] tensor; None where it has no shape."""
    shape = getattr(tensor, "shape", None)
    if shape is None:
        return None
    if len(shape) != 2 or shape[1] != columns:
        raise ValueError(f"{name} has the shape {tuple(shape)}: must be [T, {columns}]")
    strides = tensor.stride() if callable(getattr(tensor, "stride", None)) else [s // tensor.itemsize for s in tensor.strides]
    if columns > 1 and strides[1] != 1:
        raise ValueError(f"{name} has a stride of {strides[1]} elements between columns: must be 1")
    if shape[0] > 1 and strides[0] < columns:
        raise ValueError(f"{name} has {strides[0]} elements between rows: must be at least {columns}")
    return int(shape[0]), int(strides[0]) if shape[0] > 1 else columns


def require(tensor, name, allowed):
    """Its element type is of `allowed`, where it says so."""
    kind = element(tensor)
    if kind and kind not in allowed:
        raise ValueError(f"{name} is {kind}: must be {' or '.join(allowed)}")
    return kind


def length(tensor):
    """Elements of a tensor; None where it does not say so."""
    if hasattr(tensor, "numel"):
        return tensor.numel()
    return tensor.size if hasattr(tensor, "size") else len(tensor) if hasattr(tensor, "__len__") else None


def contiguous(tensor, name, columns, tokens):
    """A [T, columns] tensor without gaps between rows, of at least `tokens` where that is given; its T, or None where it has no shape."""
    shape = rows(tensor, name, columns)
    if shape is None:
        return None
    if shape[1] != columns:
        raise ValueError(f"{name} has {shape[1]} elements between rows: must be contiguous")
    if tokens is not None and shape[0] < tokens:
        raise ValueError(f"{name} has {shape[0]} rows: must have {tokens}")
    return shape[0]


def expert_weights(experts, name, dtype):
    """varmoe_expert_weights of a list of (gate, up, down), tensors that say their shapes; gate is None where the activation has none."""
    array = (ExpertWeights * len(experts))()
    for i, (one, matrices) in enumerate(zip(array, experts)):
        for member, tensor in zip(("gate", "up", "down"), matrices):
            if tensor is None:
                continue
            where = f"{name}[{i}].{member}"
            require(tensor, where, (dtype,))
            if len(getattr(tensor, "shape", ())) != 2:
                raise ValueError(f"{where} must have a shape of two dimensions: give an array of ExpertWeights where it has none")
            stride, kept = rows(tensor, where, tensor.shape[1])[1], "fc2_stride" if member == "down" else "fc1_stride"
            if getattr(one, kept) not in (0, stride):
                raise ValueError(f"{where} has {stride} elements between rows: must have as many as the gate, {getattr(one, kept)}")
            setattr(one, kept, stride)
            setattr(one, member, address(tensor))
    return array


def host_buffer(size, alignment=256):
    """`size` bytes of host memory at an aligned address, as a ctypes array."""
    raw = (c.c_uint8 * (size + alignment))()
    return (c.c_uint8 * size).from_buffer(raw, -c.addressof(raw) % alignment)


def host_copy(values, alignment=256):
    """The bytes of an array in host memory at an aligned address, as a ctypes array."""
    given = memoryview(values).cast("B")
    copy = host_buffer(given.nbytes, alignment)
    memoryview(copy).cast("B")[:] = given
    return copy


def stream_of(tensor):
    """torch's current stream of a tensor on a GPU; else null, the legacy default stream."""
    if getattr(getattr(tensor, "device", None), "type", "") != "cuda":
        return None
    import torch
    return torch.cuda.current_stream(tensor.device).cuda_stream


def scratch(tensor, size):
    """Workspace where the tensor lies: a torch tensor on its GPU, else host memory."""
    if getattr(getattr(tensor, "device", None), "type", "") == "cuda":
        import torch
        return torch.empty(max(size, 1), dtype=torch.uint8, device=tensor.device)
    return host_buffer(max(size, 1))
