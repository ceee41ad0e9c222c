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


def captured(torch, function):
    """A CUDA graph of one call, after two that warm up on a stream of their own (autograd and libraries set themselves up there)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
        function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def interleaved(torch, functions, iterations, warm_up=3):
    """Median µs of each of `functions`, a dict, run in turn `iterations` times after `warm_up` that do not count, so that all meet the same clocks."""
    times = {name: [] for name in functions}
    for i in range(iterations + warm_up):
        for name, function in functions.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize()
            if i >= warm_up:
                times[name].append(begin.elapsed_time(end) * 1e3)
    return {name: sorted(t)[len(t) // 2] for name, t in times.items()}
