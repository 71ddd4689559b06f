"""One decoder layer of the real shape, and the head with its loss: what share of the device's large products they reach.

    python -m scripts.bench.layer                            # this machine's, as `speedlit plan --measured FILE` reads it
    BENCH_CLOCK=cpu OMP_NUM_THREADS=1 python -m scripts.bench.layer --json speedlit/planning/layer.json    # the one that is shipped

The layer is that of Llama-3-8B (hidden 4,096, 32 heads, 8 of keys and values, 14,336 inside the MLP) with random weights in
bfloat16, built, adapted and run by the trainer's own code: forward, forward and backward with LoRA, and of all weights; causal
in rows of 430 tokens (SFT, DPO: a mean sample of the paper's recipe), and bidirectional in rows of 64 (the embedder's texts); on a
GPU eight times as many as on a CPU. Mistral-7B's layer has the same shape. The head is Llama-3's, 128,256 tokens wide, at the 178 places
of a mean answer. A large square product (2,048 wide, on a GPU 8,192) is timed before and after each, and shares are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from scripts.bench.machine import cpu, versions
from scripts.bench.row import now as cpu_clock
from speedlit.losses.logprobs import AT_ONCE, token_logps
from speedlit.models.adapter import LoRA
from speedlit.models.backbone import Backbone, hidden_states
from speedlit.models.fast import speed_up
from speedlit.planning.footprint import Shape

HIDDEN, INSIDE, HEADS, KV_HEADS, VOCABULARY = 4096, 14336, 32, 8, 128256
TEXTS = {"generator": ("causal", 1, 430), "embedder": ("bidirectional", 6, 64)}
PLACES = 178  # of the head
ON_GPU = 8  # times as many of all these
RANK = 16
PRODUCT = {"cpu": 2048, "cuda": 8192}
Work = tuple[dict[str, Any], Callable[[], None]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, after one that does not count")
    parser.add_argument("--json", type=Path, default=Path("layer.json"), help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        for found in measure(works(Path(folder), device), device, args.rounds):  # after each round, so that what is measured can't be lost
            args.json.write_text(json.dumps({"machine": machine(device), **found}, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(all_works: list[Work], device: str, rounds: int) -> Iterator[dict[str, Any]]:
    """The product's rate, and each work's seconds and share of it, in turn; what is known after each round."""
    rates: list[float] = []
    times: list[list[float]] = [[] for _ in all_works]
    shares: list[list[float]] = [[] for _ in all_works]
    after = product_rate(device)
    for number in range(rounds + 1):
        for (row, work), seconds, share in zip(all_works, times, shares, strict=True):
            before, took, after = after, timed(work, device), product_rate(device)
            if number:
                rates.append(after)
                seconds.append(took)
                share.append(row["flops"] / took / ((before + after) / 2))
            print(f"round {number}: {row['use']} {row['part']} {row['work']}: {took:.4g} s", file=sys.stderr, flush=True)
        if number:
            rows = [
                {**row, "seconds": round(statistics.median(s), 5), "share": round(statistics.median(p), 3), "low": round(min(p), 3), "high": round(max(p), 3)}
                for (row, _), s, p in zip(all_works, times, shares, strict=True)
            ]
            yield {"gemm_tflops": round(statistics.median(rates) / 1e12, 4), "rounds": number, "rows": rows}


def works(folder: Path, device: str) -> list[Work]:
    """All that is measured; ``flops`` as `speedlit plan` counts them."""
    shape = Shape(HIDDEN, INSIDE, 1, HEADS, KV_HEADS, VOCABULARY, HIDDEN // HEADS)
    block, low = sum(a * b for a, b in shape.linear.values()), shape.adapter(RANK, "all-linear")
    each = {"forward": 2 * block, "lora": 4 * block + 6 * low, "full": 6 * block}
    found: list[Work] = []
    more = 1 if device == "cpu" else ON_GPU
    for use, (attention, few, length) in TEXTS.items():
        rows = few * more
        plain, adapted = (one_layer(folder, attention, adapter, device) for adapter in (False, True))
        for kind, flops in each.items():
            row = {"use": use, "part": "layer", "work": kind, "rows": rows, "length": length, "flops": flops * rows * length}
            found.append((row, layer_work(adapted if kind == "lora" else plain, kind, rows, length, device)))
    head = torch.empty(VOCABULARY, HIDDEN, dtype=torch.bfloat16, device=device).normal_(std=0.02)
    for kind, times in {"forward": 2, "lora": 4, "full": 6}.items():
        row = {"use": "generator", "part": "head", "work": kind, "rows": more, "length": PLACES, "flops": times * VOCABULARY * HIDDEN * PLACES * more}
        found.append((row, head_work(head, kind, PLACES * more, device)))
    return found


def layer_work(model: Any, kind: str, rows: int, length: int, device: str) -> Callable[[], None]:
    """A layer's pass, as a module of the trainer makes it in the middle of a network: its input needs a gradient, too."""
    ids = torch.randint(0, 64, (rows, length), device=device)
    mask = torch.ones_like(ids)

    def work() -> None:
        with torch.set_grad_enabled(kind != "forward"), torch.autocast(device, torch.bfloat16):
            out = hidden_states(model, ids, mask)
        if kind != "forward":
            out.backward(torch.ones_like(out))
            model.zero_grad(set_to_none=True)

    return work


def one_layer(folder: Path, attention: str, adapter: bool, device: str) -> Any:
    """A network of one layer between few embeddings and a norm, with random weights, as a fit has it."""
    from transformers import LlamaConfig, LlamaModel

    place = folder / "layer"
    if not (place / "config.json").is_file():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=HIDDEN, intermediate_size=INSIDE, num_hidden_layers=1, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
            max_position_embeddings=2048, rope_theta=500000.0,
        )  # fmt: skip
        LlamaModel(config).to(torch.bfloat16).save_pretrained(place)
    model = Backbone(str(place), attention=attention, dtype="bfloat16").build(head=False)
    model = LoRA(r=RANK, alpha=2 * RANK, dropout=0.1).apply(model) if adapter else model.requires_grad_(True)
    model.enable_input_require_grads()
    speed_up(model)
    return model.train().to(device)


def head_work(head: torch.Tensor, kind: str, places: int, device: str) -> Callable[[], None]:
    """Log-probs of targets out of hidden states, and back to the states and, where it is trained, to the head; in the chunks that a GPU takes."""
    weight = head.detach().requires_grad_(kind == "full")
    hidden = torch.randn(1, places + 1, HIDDEN, device=device).to(torch.bfloat16).requires_grad_(kind != "forward")
    labels = torch.randint(0, VOCABULARY, (1, places + 1), device=device)

    def work() -> None:
        with torch.set_grad_enabled(kind != "forward"), torch.autocast(device, torch.bfloat16):
            found, _ = token_logps(hidden, weight, labels, chunk=max(1, AT_ONCE["cuda"] // VOCABULARY))
        if kind != "forward":
            (-found.mean()).backward()
            hidden.grad = weight.grad = None

    return work


def timed(work: Callable[[], None], device: str) -> float:
    """Seconds; on a GPU the mean of ten, which it may take in one go."""
    clock, times = (cpu_clock, 1) if device == "cpu" else (time.perf_counter, 10)
    wait(device)
    start = clock()
    for _ in range(times):
        work()
    wait(device)
    return (clock() - start) / times


def wait(device: str) -> None:
    """Until a GPU has done what it was asked for."""
    if device != "cpu":
        torch.cuda.synchronize()


def product_rate(device: str) -> float:
    """FLOP/s of one large product in bfloat16."""
    size = PRODUCT[device]
    left, right = (torch.ones(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(left)

    def work() -> None:
        torch.mm(left, right, out=out)

    return 2 * size**3 / timed(work, device)


def machine(device: str) -> dict[str, Any]:
    """Where it was measured, and with what."""
    own = {"device": f"{torch.get_num_threads()} thread(s) of {cpu()}"} if device == "cpu" else {"device": torch.cuda.get_device_name()}
    clock = "CPU time" if device == "cpu" and os.environ.get("BENCH_CLOCK") == "cpu" else "wall clock"
    return {**own, "kind": device, "clock": clock, "versions": versions(("torch", "transformers", "peft"))}


if __name__ == "__main__":
    raise SystemExit(main())
