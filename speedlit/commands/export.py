"""``speedlit export MODEL --to DIR``: a trained model for other libraries, proven in a fresh process."""

from __future__ import annotations

import argparse
from pathlib import Path

from speedlit.commands.run import quiet_libraries
from speedlit.errors import UsageError

EPILOG = """formats:
  adapter                the LoRA weights, for peft
  merged                 full weights, for transformers
  chat-template          a generator's prompt as a Jinja file, for a server of chat messages: vllm serve --chat-template FILE
  sentence-transformers  full weights with pooling, normalisation, prompts and token rules, for sentence-transformers and mteb

example: speedlit export runs/fit/model --to my-embedder --format sentence-transformers"""


def run(argv: list[str]) -> int:
    """Parse the words after ``export``, write the folder, and say how equal it is.

    Raises:
        UsageError: not a model folder, a target in use, or a format that this model cannot have.
        SpeedlitError: the export gave other vectors in a fresh process; it has been removed.
    """
    parser = argparse.ArgumentParser(
        prog="speedlit export",
        description="Write a trained model for other libraries; it is loaded again in a fresh process and compared before it counts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="model folder, or the folder of a fit")
    parser.add_argument("--to", required=True, metavar="DIR", help="new folder (chat-template: file)")
    parser.add_argument("--format", default="sentence-transformers", help="adapter, merged, chat-template or sentence-transformers (default)")
    parser.add_argument("--dtype", default="float32", help="of the stored weights: float32 (default), bfloat16 or float16")
    known = parser.parse_args(argv)
    if known.format == "chat-template":
        return _chat_template(Path(known.model), Path(known.to))
    quiet_libraries()
    from speedlit.export import export

    done = export(Path(known.model), Path(known.to), known.format, known.dtype)
    print(f"{done['path']}: {done['format']}, {done['texts']} texts equal in a fresh process (smallest cosine {done['cosine']:.6f})")
    return 0


def _chat_template(model: Path, target: Path) -> int:
    """Write how a generator reads a prompt.

    Raises:
        UsageError: not a model folder of ours.
    """
    from speedlit.data.tokens import TokenContract
    from speedlit.files import atomic, read_object

    card = next((place / "speedlit.json" for place in (model, model / "model") if (place / "speedlit.json").is_file()), None)
    if card is None:
        raise UsageError(f"{model} holds no speedlit.json; name a model folder that speedlit has trained")
    with atomic(target) as stream:
        stream.write(TokenContract.from_json(read_object(card, "tokens")["tokens"]).chat_template())
    print(f"{target}: chat template of {card.parent}")
    return 0
