"""``speedlit predict``: embeddings of a corpus by a finished model, or the predictions of a fit's recipe for its data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from speedlit.commands.evaluate import add_model_options
from speedlit.commands.run import quiet_libraries
from speedlit.errors import UsageError

EPILOG = """OUT gets part-00000.parquet ... (columns id, vector) in the order of the corpus, manifest.json, and last _SUCCESS. After a kill the
same command goes on with the parts that are missing. Under torchrun or srun the parts are shared out, on any number of ranks.

examples:
  speedlit predict runs/fit/model --corpus corpus.jsonl --to embeddings
  speedlit predict my-embedder --corpus corpus.jsonl --text title,text --to embeddings --format npy --device cuda --dtype bfloat16
  speedlit predict my-embedder --corpus queries.jsonl --to queries --instruction "Given a question, find its answer"
  speedlit predict --config fit/embedder --data.shards runs/shards     vectors of the queries of a shard set, as in training"""


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="speedlit predict",
        description="Write the embeddings of a corpus.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", help="model, as for `speedlit evaluate`")
    parser.add_argument("--corpus", required=True, help=".jsonl, .json, .csv or .parquet, or a dataset folder")
    parser.add_argument("--to", required=True, metavar="OUT", help="folder for the parts")
    parser.add_argument("--text", default="text", help="column that holds the text, or several with commas, such as title,text (default: text)")
    parser.add_argument("--instruction", help="encode the texts as queries with this instruction (default: as documents)")
    parser.add_argument("--format", default="parquet", choices=["parquet", "npy"], help="of the parts (default: parquet)")
    parser.add_argument("--part-size", type=int, default=16384, help="texts of a part (default 16384)")
    add_model_options(parser)
    return parser


def run(argv: list[str]) -> int:
    """Parse the words after ``predict`` and write the embeddings; with --config, Lightning's predict of a recipe.

    Raises:
        UsageError: no such model or corpus, no such column, or a folder in use.
    """
    if any(word == "-c" or word.partition("=")[0] == "--config" for word in argv):
        from speedlit.commands import fit

        return fit.run(["predict", *argv])
    if not argv:
        build_parser().print_help()
        return 2
    known = build_parser().parse_args(argv)
    if known.part_size < 1:
        raise UsageError(f"--part-size is {known.part_size}; it must be at least 1")
    if not Path(known.corpus).exists():
        raise UsageError(f"--corpus {known.corpus}: no such file or folder")
    quiet_libraries()
    from speedlit.data.convert import read_rows
    from speedlit.evaluation import ranks
    from speedlit.evaluation.corpus import encode_corpus
    from speedlit.evaluation.folders import check_model, open_encoder
    from speedlit.files import sha256_file

    check_model(known.path)
    corpus, columns = Path(known.corpus), [name.strip() for name in known.text.split(",") if name.strip()]
    with ranks.joined(known.device) as device:
        options = {"pooling": known.pooling, "max_length": known.max_length, "device": device, "dtype": known.dtype}
        encoder = open_encoder(known.path, token_budget=known.token_budget, spread=False, **options)
        files = [corpus] if corpus.is_file() else sorted(path for path in corpus.rglob("*") if path.is_file())
        digests = ranks.agreed([sha256_file(path)[:16] for path in files] if ranks.number() == 0 else None)
        identity = {"model": [encoder.name, encoder.revision], "corpus": digests, "dtype": known.dtype, "contract": [known.pooling, known.max_length]}
        layout = {"columns": columns, "instruction": known.instruction, "size": known.part_size, "form": known.format}
        done = encode_corpus(encoder, read_rows(corpus), Path(known.to), identity, **layout)
        if ranks.number() == 0:
            print(f"{known.to}: {done['rows']} embeddings in {len(done['parts'])} part(s)", flush=True)
    return 0
