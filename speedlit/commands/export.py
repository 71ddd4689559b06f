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
  onnx                   an embedder with pooling and normalisation as one graph, for onnxruntime (pip install 'speedlit[onnx]')

A generator is exported as merged: `vllm serve DIR` and `transformers serve DIR` then use its prompt template and its ends as they are.
The model card takes recipe, lineage, cost and scores from the run that the model lies in; --results names other scores.

A checkpoint gives what the fit would have left at that step; sharded or not, of adapters or of all weights.

examples:
  speedlit export runs/fit/model --to my-embedder --format sentence-transformers --license apache-2.0
  speedlit export runs/fit/checkpoints/last.ckpt --to step-400"""


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
    parser.add_argument("model", help="model folder, folder of a fit, or one of its checkpoints (file or folder)")
    parser.add_argument("--to", required=True, metavar="DIR", help="new folder (chat-template: file)")
    parser.add_argument("--format", default="sentence-transformers", help="adapter, merged, chat-template, onnx or sentence-transformers (default)")
    parser.add_argument("--dtype", default="float32", help="of the stored weights: float32 (default), bfloat16 or float16")
    parser.add_argument("--license", help="for the model card, as the hub writes it: apache-2.0, mit, llama3 ...")
    parser.add_argument("--results", metavar="DIR", help="what `speedlit evaluate --output` wrote: scores for the model card")
    parser.add_argument("--push", metavar="OWNER/NAME", help="then upload it to this repository of the hub, a private one unless --public is said")
    parser.add_argument("--public", action="store_true", help="with --push: everybody may read it")
    known = parser.parse_args(argv)
    if known.public and not known.push:
        raise UsageError("--public says who may read what --push OWNER/NAME uploads; add it")
    if known.format == "chat-template":
        return _chat_template(Path(known.model), Path(known.to))
    quiet_libraries()
    from speedlit.export import export
    from speedlit.push import check_name, push

    if known.push:
        check_name(known.push)
    done = export(Path(known.model), Path(known.to), known.format, known.dtype, known.license, Path(known.results) if known.results else None)
    print(f"{done['path']}: {done['format']}, {done['texts']} texts equal in a fresh process (smallest cosine {done['cosine']:.6f})")
    if known.push:
        print(f"pushed to {push(Path(known.to), known.push, private=not known.public)}")
    return 0


def _chat_template(model: Path, target: Path) -> int:
    """Write how a generator reads a prompt.

    Raises:
        UsageError: not a model folder of ours.
    """
    from speedlit.models.unpack import unpacked

    with unpacked(model) as folder:
        _write_chat_template(folder, target)
    print(f"{target}: chat template of {model}")
    return 0


def _write_chat_template(model: Path, target: Path) -> None:
    from speedlit.data.tokens import TokenContract
    from speedlit.files import atomic, read_object

    card = next((place / "speedlit.json" for place in (model, model / "model") if (place / "speedlit.json").is_file()), None)
    if card is None:
        raise UsageError(f"{model} holds no speedlit.json; name a model folder that speedlit has trained")
    with atomic(target) as stream:
        stream.write(TokenContract.from_json(read_object(card, "tokens")["tokens"]).chat_template())
