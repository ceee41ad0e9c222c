"""Times of the tools that compare varmoe with torch on one GPU."""


def replayed(torch, function, count, iterations):
    """Median µs of one of `count` calls in a CUDA graph, over `iterations` replays; the first three do not count."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            function()
    return timed(torch, graph.replay, count, iterations)


def timed(torch, function, count, iterations):
    """The same of calls of `function` as it is, between CUDA events; `count`: what its time is divided by."""
    times = []
    for i in range(iterations + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end) * 1e3 / count)
    return sorted(times)[len(times) // 2]
