"""Train the demo's base model: a small Llama that knows the language of the embedded world, as LLaMA-3 knows ours.

    python scripts/build_base.py --out speedlit/offline/base          # the shipped model, about half an hour on one free core
    python scripts/build_base.py --out /tmp/base --steps 30           # a short version, as the test does it

Deterministic: one thread, one seed, pages from ``speedlit.offline.corpus``; two runs on one machine give the same bytes.
Two phases: the language first, then a short one in which JSON has the keys that were asked for (the values stay unrelated).
The base sees the world's language, JSON, and the words of instructions, but never a task's prompt with its record.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from speedlit.files import sha256_file, write_json
from speedlit.offline.corpus import FIRST, SECOND, pages

# A word with the blank before it is one piece, and so is the punctuation between two JSON strings.
PIECES = r' ?[A-Za-z0-9_]+|[^\sA-Za-z0-9_]+(?: ")?|\s'
VOCABULARY = 1536


def build_tokenizer(seed: int, count: int = 40_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the first ``count`` pages; any text can be encoded and comes back unchanged."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(itertools.islice(pages(seed), count), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=512, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast, hidden: int) -> LlamaForCausalLM:
    """A four-layer Llama with tied embeddings and random weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, stream: Iterator[str], rows: int, length: int) -> Iterator[torch.Tensor]:
    """Packed pages, each between bos and eos: long tensors of shape (rows, length)."""
    ids: list[int] = []
    while True:
        while len(ids) < rows * length:
            for page in tokenizer(list(itertools.islice(stream, 256)), add_special_tokens=False)["input_ids"]:
                ids += [tokenizer.bos_token_id, *page, tokenizer.eos_token_id]
        yield torch.tensor(ids[: rows * length]).view(rows, length)
        ids = ids[rows * length :]


def rate(step: int, steps: int, peak: float, cool: float) -> float:
    """Learning rate: warm-up over 100 steps, constant, then a linear cool-down over the last share ``cool``."""
    return peak * min(1.0, (step + 1) / 100, (steps - step) / max(cool * steps, 1))


def train(model: LlamaForCausalLM, data: Iterator[torch.Tensor], steps: int, peak: float, cool: float, every: int = 200) -> list[float]:
    """Next-token training; returns the loss of every step (nats per token)."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=peak, betas=(0.9, 0.98))
    losses, start = [], time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak, cool)
        batch = next(data)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % every == 0:
            recent = sum(losses[-every:]) / every
            print(f"step {step + 1}/{steps}  loss {recent:.4f}  {(step + 1) * batch.numel() / (time.monotonic() - start):.0f} tokens/s", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=7000, help="of the first phase")
    parser.add_argument("--second", type=int, default=1500, help="steps of the second phase")
    parser.add_argument("--start", type=Path, help="folder of a finished first phase: do the second one only")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16, help="sequences in a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(args.seed)
    start = time.monotonic()
    if args.start:
        model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    else:
        model = build_model(tokenizer, args.hidden)
        train(model, batches(tokenizer, pages(args.seed + 1, FIRST), args.rows, args.length), args.steps, args.lr, cool=0.3)
    model.train()
    losses = train(model, batches(tokenizer, pages(args.seed + 2, SECOND), args.rows, args.length), args.second, args.lr / 3, cool=1.0)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    last = losses[-min(200, len(losses)) :]
    recipe = {
        "what": "base model of the demo, trained by scripts/build_base.py on pages of speedlit.offline.corpus (world 0)",
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": args.seed,
        "steps": [args.steps, args.second],
        "rows": args.rows,
        "length": args.length,
        "lr": [args.lr, args.lr / 3],
        "hidden": args.hidden,
        "tokens": (args.steps + args.second) * args.rows * args.length,
        "loss": round(math.fsum(last) / len(last), 4),
        "sha256": {path.name: sha256_file(path) for path in sorted(args.out.iterdir()) if path.name != "RECIPE.json"},
    }
    write_json(args.out / "RECIPE.json", recipe)
    print(json.dumps({**recipe, "seconds": round(time.monotonic() - start)}))


if __name__ == "__main__":
    main()
