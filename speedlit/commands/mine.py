"""``speedlit mine SOURCE --model MODEL --to OUT``: hard negatives for contrastive data, found by a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from speedlit.commands.run import quiet_libraries
from speedlit.errors import UsageError

EPILOG = """A negative must score at least --margin below the positive, as a share of the positive's score: what comes closer is likely a
second right answer. Candidates are the positives of rows of the same kind, and the texts of --corpus. Queries carry their instruction.

examples:
  speedlit mine runs/fit/shards --model runs/fit/model --to shards/mined
  speedlit mine pairs.jsonl --model my-embedder --to mined.jsonl --replace --negatives 7"""


def run(argv: list[str]) -> int:
    """Parse the words after ``mine``, write the rows, and say what was found.

    Raises:
        UsageError: no contrastive rows, no model, or numbers that don't fit.
    """
    known = _parser().parse_args(argv)
    from speedlit.mining import Rules, mine, texts_of

    rules = Rules(known.negatives, known.margin, known.skip, known.among, known.ceiling, known.replace)
    quiet_libraries()
    from speedlit.data.convert import read_rows
    from speedlit.evaluation.folders import check_model, open_encoder

    check_model(known.model)
    rows = _rows(Path(known.source))
    corpus = texts_of(read_rows(known.corpus)) if known.corpus else []
    encoder = open_encoder(known.model, pooling=known.pooling, device=known.device, dtype=known.dtype)
    made, found = mine(rows, encoder, rules, corpus)
    _write(made, Path(known.to))
    print(f"{known.to}: {found['rows']} rows, {found['mined']} negatives mined for {found['with']} of them")
    return 0


def _rows(source: Path) -> list[dict[str, Any]]:
    """Contrastive rows of a shard set, or of a file that ``speedlit shard`` can read."""
    from speedlit.data import convert
    from speedlit.data.shards import MANIFEST, ShardSet

    if (source / MANIFEST).is_file():
        shards = ShardSet(source).check()
        if shards.shape != "contrastive":
            raise UsageError(f"{source} holds {shards.shape} rows; negatives are mined for contrastive ones")
        return list(shards)
    rows = list(convert.convert(convert.read_rows(source), "contrastive"))
    if not rows:
        raise UsageError(f"{source} is empty")
    return rows


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    """JSONL for a name that ends in .jsonl, else a shard set."""
    from speedlit.data.shards import write_shards
    from speedlit.files import write_jsonl

    if out.suffix == ".jsonl":
        write_jsonl(out, rows)
    else:
        write_shards(rows, out, "contrastive")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speedlit mine",
        description="Find hard negatives for contrastive rows: near documents that are clearly not as near as the positive.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help="contrastive shard set, or a file that `speedlit shard` reads (query, positive, negatives)")
    parser.add_argument("--model", required=True, help="the embedder that judges closeness: folder or hub name, as for `speedlit evaluate`")
    parser.add_argument("--to", required=True, metavar="OUT", help="file that ends in .jsonl, or folder of a shard set")
    parser.add_argument("--negatives", type=int, default=4, help="mined negatives per row at most (default 4)")
    parser.add_argument("--margin", type=float, default=0.05, help="share of the positive's score that a negative stays below it (default 0.05)")
    parser.add_argument("--ceiling", type=float, help="highest cosine of a negative (default: none)")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many of the closest that pass (default 0)")
    parser.add_argument("--among", type=int, default=100, help="look at so many of the closest documents (default 100)")
    parser.add_argument("--replace", action="store_true", help="in place of the rows' own negatives; default: behind them")
    parser.add_argument("--corpus", help="further documents: a file of rows with `text` (and `title`)")
    parser.add_argument("--pooling", choices=["last", "mean", "weighted_mean", "cls"], help="for a model that does not say how it pools")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    return parser
