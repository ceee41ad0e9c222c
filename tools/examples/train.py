#!/usr/bin/env python3
"""Trains a small model of variable-width MoE blocks with varmoe, with plain torch, or with both, and compares the losses.

usage: train.py [--library FILE] [--backend varmoe|torch | --compare] [--device cuda|cpu] [--steps N] [--seed S] [--tokens T] [--hidden H] [--blocks B]
                [--widths I,I…] [--top-k K] [--weight-on-input] [--lr LR] [--json FILE]

Task: the next symbol after two, of a table drawn once; a quarter of the answers is noise, so the loss has a floor (about 1.6; ln 64 = 4.2). Every step has
new samples, drawn from the seed. Model: embeddings of both symbols, then blocks of norm, router (softmax, top-k, renormalised) and experts with a residual, norm,
head. Parameters and optimizer (AdamW) are fp32; experts compute in bf16 on both backends: varmoe's layer rounds its parameters and hands back fp32 gradients,
torch runs one expert after another with autograd through the same rounding. Initial parameters and samples depend on the seed alone.

--compare trains with varmoe, with torch, and with torch from another seed (S + 1), and compares with the second: the largest relative difference of running means
of 20 losses, which must be at most 1 %, and the correlation of the losses, at least 0.9999. The third run shows what these numbers are for curves that are not
the same: it is not judged. Fewer than 100 steps are too few for the correlation, which is then shown alone. The two runs drift apart where rounding makes a router choose
another expert, the more the fewer samples a step has (--tokens) and the larger its step (--lr): with few samples the bars say little.

Needs torch; a GPU unless --device cpu. Exit status: 0 done, 1 the curves differ, 2 usage, 3 environment.
"""
import argparse
import json
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))

SYMBOLS, WINDOW = 64, 20
MOST_DIFFERENCE, LEAST_CORRELATION = 0.01, 0.9999


def make_model(torch, options, engine, seed):
    """`engine`: None for torch's own experts."""
    import varmoe_autograd as va

    class LoopExperts(va.MoEParameters):
        """Parameters as MoELayer's, in torch."""

        def forward(self, x, topk_ids, topk_weights):
            experts = self.experts(lambda parameter: parameter.to(self.dtype))
            return va.expert_loop(x, topk_ids, topk_weights, experts, self.activation, weight_on_input=options.weight_on_input)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.RMSNorm(options.hidden)
            self.router = torch.nn.Linear(options.hidden, len(options.widths), bias=False)
            shape = options.hidden, options.widths, options.top_k
            if engine is None:
                self.experts = LoopExperts(*shape, parameter_dtype=torch.float32, weight_on_input=options.weight_on_input)
            else:
                self.experts = va.MoELayer(engine, *shape, parameter_dtype=torch.float32, weight_on_input=options.weight_on_input)

        def forward(self, h):
            x = self.norm(h)
            scores, ids = self.router(x).softmax(dim=-1).topk(options.top_k, dim=-1)
            return h + self.experts(x.bfloat16(), ids, scores / scores.sum(dim=-1, keepdim=True)).float()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (torch.nn.Embedding(SYMBOLS, options.hidden) for _ in range(2))
            self.blocks = torch.nn.ModuleList(Block() for _ in range(options.blocks))
            self.norm = torch.nn.RMSNorm(options.hidden)
            self.head = torch.nn.Linear(options.hidden, SYMBOLS, bias=False)

        def forward(self, symbols):
            h = self.first(symbols[:, 0]) + self.second(symbols[:, 1])
            for block in self.blocks:
                h = block(h)
            return self.head(self.norm(h))

    torch.manual_seed(seed)  # every parameter is drawn on the CPU
    return Model().to(options.device)


def make_samples(torch, options, seed):
    """symbols int64 [steps, T, 2] and answers [steps, T] where the model is."""
    generator = torch.Generator().manual_seed(1000 + seed)
    table = torch.randint(SYMBOLS, (SYMBOLS, SYMBOLS), generator=torch.Generator().manual_seed(7))
    symbols = torch.randint(SYMBOLS, (options.steps, options.tokens, 2), generator=generator)
    noise = torch.randint(SYMBOLS, (options.steps, options.tokens), generator=generator)
    noisy = torch.rand(options.steps, options.tokens, generator=generator) < 0.25
    answers = torch.where(noisy, noise, table[symbols[..., 0], symbols[..., 1]])
    return symbols.to(options.device), answers.to(options.device)


def train(torch, options, backend, seed):
    """The loss of every step."""
    engine = None
    if backend == "varmoe":
        import varmoe_client
        engine = varmoe_client.Library(options.library).engine(0 if options.device == "cuda" else "cpu")
    model = make_model(torch, options, engine, seed)
    symbols, answers = make_samples(torch, options, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    losses, begin = [], time.monotonic()
    for step in range(options.steps):
        loss = torch.nn.functional.cross_entropy(model(symbols[step]), answers[step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())  # stays on the device: no step waits for the host
    losses = torch.stack(losses).double().cpu()
    seconds = time.monotonic() - begin
    marks = sorted({0, options.steps // 4, options.steps // 2, 3 * options.steps // 4, options.steps - 1})
    print(f"{backend:7} seed {seed}: {seconds:6.1f} s, loss " + ", ".join(f"{losses[i]:.4f} ({i})" for i in marks), flush=True)
    return losses


def compare(torch, losses, reference):
    """(largest relative difference of running means, correlation)"""
    window = min(WINDOW, len(losses))
    mean, expected = (curve.unfold(0, window, 1).mean(dim=1) for curve in (losses, reference))
    if len(losses) < 2:
        return float(((mean - expected) / expected).abs().max()), float("nan")
    return float(((mean - expected) / expected).abs().max()), float(torch.corrcoef(torch.stack([losses, reference]))[0, 1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="libvarmoe_jit.so; default: below build/")
    parser.add_argument("--backend", choices=("varmoe", "torch"), default="varmoe")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    for name, value in (("--steps", 500), ("--seed", 1), ("--tokens", 8192), ("--hidden", 256), ("--blocks", 3), ("--top-k", 2)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--widths", default="512,256,256,128,128,128,64,64", help="of the experts, multiples of 8")
    parser.add_argument("--weight-on-input", action="store_const", const=1, default=0,
                        help="routing weights multiply the experts' input (Llama-4), not their output")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--json", type=pathlib.Path, help="write the losses here as one JSON object")
    options = parser.parse_args()
    options.widths = [int(w) if w.isdecimal() else 0 for w in options.widths.split(",")]
    if min(options.steps, options.tokens, options.blocks, options.top_k, *options.widths) < 1 or options.top_k > len(options.widths):
        parser.error("--steps, --tokens, --blocks, --top-k and --widths must be positive, --top-k at most the number of widths")
    try:
        import torch
        import varmoe_client
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ImportError("torch sees no GPU (--device cpu needs none)")
        if options.compare or options.backend == "varmoe":
            varmoe_client.Library(options.library)
    except (ImportError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 3
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        if not options.compare:
            curves = {options.backend: train(torch, options, options.backend, options.seed)}
        else:
            curves = {"varmoe": train(torch, options, "varmoe", options.seed), "torch": train(torch, options, "torch", options.seed),
                      "torch, other seed": train(torch, options, "torch", options.seed + 1)}
    except varmoe_client.VarmoeError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2 if error.name in ("invalid_spec", "invalid_argument") else 3
    if options.json:
        options.json.write_text(json.dumps({name: curve.tolist() for name, curve in curves.items()}) + "\n")
    if not options.compare:
        return 0
    good = True
    print(f"{'beside torch':18} {'difference':>10} {'correlation':>12}")
    for name in ("varmoe", "torch, other seed"):
        difference, correlation = compare(torch, curves[name], curves["torch"])
        verdict = ""
        if name == "varmoe":
            good = difference <= MOST_DIFFERENCE and (options.steps < 100 or correlation >= LEAST_CORRELATION)
            verdict = "ok" if good else "WRONG"
        print(f"{name:18} {difference * 100:9.3f}% {correlation:12.7f} {verdict}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
