"""``speedlit shard``: any JSONL or Hugging Face data set to training shards."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError


def run(argv: Sequence[str]) -> int:
    """Write a shard set and say what is in it."""
    options = _parser().parse_args(list(argv))
    from speedlit.data import convert
    from speedlit.data.shards import write_shards

    rows = convert.read_rows(options.source, options.split)
    if (options.label is None) != (options.text is None):
        raise UsageError("--label and --text go together: the keys of the label and of the text")
    if options.limit is not None:
        rows = itertools.islice(rows, options.limit)
    if options.label is not None:
        shape = "contrastive"
        made = convert.labelled(rows, options.text, options.label, options.seed, options.negatives, options.instruction, options.rounds)
    else:
        first = next(iter(head := list(itertools.islice(rows, 1))), None)
        if first is None:
            raise UsageError(f"{options.source} is empty")
        shape = options.shape or convert.guess_shape(first)
        made = convert.convert(itertools.chain(head, rows), shape, _tokenizer(options.tokenizer))
        if options.instruction:
            made = ({**row, "instruction": options.instruction} for row in made)
    if options.kind:
        made = ({**row, "kind": options.kind} for row in made)
    manifest = write_shards(made, Path(options.to), shape)
    size = sum(chunk["bytes"] for chunk in manifest.chunks)
    chunks = len(manifest.chunks)
    print(f"{manifest.count} {shape} rows in {chunks} {'chunk' if chunks == 1 else 'chunks'} ({size / 1e6:.1f} MB) in {options.to}")
    return 0


def _tokenizer(place: str | None) -> Any:
    if place is None:
        return None
    from speedlit.models.backbone import load_tokenizer, resolve

    return load_tokenizer(resolve(place))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"speedlit shard: {message}; `speedlit shard --help` shows all options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="speedlit shard", description=__doc__, epilog="labelled text: speedlit shard train.jsonl --label label --text text --to shards/pairs")
    parser.add_argument("source", help=".jsonl, .json, .csv, .parquet (also .gz), or a dataset folder")
    parser.add_argument("--to", required=True, help="folder of the shard set; a set that is there is replaced")
    parser.add_argument("--shape", choices=("sft", "preference", "contrastive"), help="default: by the keys of the first row")
    parser.add_argument("--tokenizer", help="model folder or hub id whose chat template renders conversations")
    parser.add_argument("--split", help="split of a dataset folder (default: train)")
    parser.add_argument("--limit", type=int, help="read so many rows at most")
    parser.add_argument("--label", help="key of the label: pairs from labelled text (same label = positive, another label = hard negative)")
    parser.add_argument("--text", help="key of the text, with --label")
    parser.add_argument("--negatives", type=int, default=1, help="hard negatives per query, with --label (default 1)")
    parser.add_argument("--rounds", type=int, default=1, help="pairs per text, with --label (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws, with --label")
    parser.add_argument("--instruction", default="", help="instruction of every contrastive row")
    parser.add_argument("--kind", default="", help="task kind of every contrastive row")
    return parser
