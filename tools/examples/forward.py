#!/usr/bin/env python3
"""A layer of three widths from Python: router, forward, and a check against plain arithmetic.

usage: forward.py [LIBRARY]

With torch and a GPU: torch tensors on it, and the same forward again from a CUDA graph. Without: arrays of Python's own on the CPU backend.
Exit status: 0 the results agree, 1 they do not.
"""
import array
import math
import random
import sys

import varmoe_client

HIDDEN, WIDTHS, TOP_K, TOKENS = 64, [32, 16, 8, 24], 2, 5


def bf16(value):
    """The 16 bits of the bf16 nearest to a float (ties to even)."""
    bits = int.from_bytes(array.array("f", [value]).tobytes(), sys.byteorder)
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def number(bits):
    return array.array("f", (bits << 16).to_bytes(4, sys.byteorder))[0]


def expected(x, fc1, fc2, ids, weights):
    """The layer, one number at a time. fc1: each expert's gate rows, then its up rows, of H; fc2: H rows of the expert's width."""
    out = [0.0] * (TOKENS * HIDDEN)
    begins = [sum(WIDTHS[:e]) for e in range(len(WIDTHS))]
    for t in range(TOKENS):
        for slot in range(TOP_K):
            e, weight = ids[t * TOP_K + slot], weights[t * TOP_K + slot]
            width, row = WIDTHS[e], x[t * HIDDEN:(t + 1) * HIDDEN]
            up = [sum(a * b for a, b in zip(row, fc1[(2 * begins[e] + i) * HIDDEN:])) for i in range(2 * width)]
            h = [up[i] / (1 + math.exp(-up[i])) * up[width + i] for i in range(width)]
            for n in range(HIDDEN):
                out[t * HIDDEN + n] += weight * sum(a * b for a, b in zip(h, fc2[begins[e] * HIDDEN + n * width:]))
    return out


def error(got, wanted):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(got, wanted)) / sum(b * b for b in wanted))


def main():
    library = varmoe_client.Library(sys.argv[1] if len(sys.argv) > 1 else None)
    random.seed(1)
    x, fc1, fc2 = ([bf16(random.gauss(0, scale)) for _ in range(count)] for count, scale in (
        (TOKENS * HIDDEN, 1.0), (2 * sum(WIDTHS) * HIDDEN, HIDDEN ** -0.5), (sum(WIDTHS) * HIDDEN, 0.2)))
    logits = [random.gauss(0, 1) for _ in range(TOKENS * len(WIDTHS))]
    try:
        import torch
        on_gpu = torch.cuda.is_available()
    except ImportError:
        on_gpu = False

    engine = library.engine(0 if on_gpu else "cpu")
    layer = engine.layer(hidden_size=HIDDEN, expert_widths=WIDTHS, top_k=TOP_K)
    router = engine.router(len(WIDTHS), TOP_K, renormalize=1)
    layer.prepare([TOKENS])
    router.prepare()
    if on_gpu:
        def tensor(bits, *shape):
            return torch.tensor(bits, dtype=torch.int32, device="cuda").to(torch.int16).view(torch.bfloat16).view(*shape)
        given = [tensor(x, TOKENS, HIDDEN), tensor(fc1, -1), tensor(fc2, -1)]
        out = torch.full((TOKENS, HIDDEN), float("nan"), dtype=torch.bfloat16, device="cuda")
        ids = torch.empty(TOKENS, TOP_K, dtype=torch.int32, device="cuda")
        weights = torch.empty(TOKENS, TOP_K, device="cuda")
        layer.bind(*given[1:])
        route = router.call(torch.tensor(logits, device="cuda").view(TOKENS, -1), ids, weights)
        forward = layer.call(given[0], ids, weights, out)
        route()
        forward()
        torch.cuda.synchronize()
        got = out.float().view(-1).tolist()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            route()
            forward()
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert out.float().view(-1).tolist() == got, "a graph's result differs"
        chosen, weighed = ids.view(-1).tolist(), weights.view(-1).tolist()
    else:
        def aligned(bits):
            # bf16 as 16-bit integers, at an address that suits x, out and the weights.
            return varmoe_client.host_copy(array.array("H", bits))
        given, out = [aligned(x), aligned(fc1), aligned(fc2)], aligned([0] * (TOKENS * HIDDEN))
        ids, weights = array.array("i", [0] * (TOKENS * TOP_K)), array.array("f", [0] * (TOKENS * TOP_K))
        layer.bind(*given[1:])
        router.route(array.array("f", logits), ids, weights, tokens=TOKENS)
        layer.forward(given[0], ids, weights, out, tokens=TOKENS)
        got = [number(bits) for bits in memoryview(out).cast("B").cast("H")]
        chosen, weighed = ids.tolist(), weights.tolist()

    off = error(got, expected([number(v) for v in x], [number(v) for v in fc1], [number(v) for v in fc2], chosen, weighed))
    print(f"{engine.description()}: error {off:.1e}{', eager and graph equal' if on_gpu else ''}")
    return 0 if off < 1e-2 else 1


if __name__ == "__main__":
    sys.exit(main())
