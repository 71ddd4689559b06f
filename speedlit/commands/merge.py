"""``speedlit merge MODEL MODEL ... --to DIR``: several trained models of one shape become one."""

from __future__ import annotations

import argparse
from pathlib import Path

from speedlit.commands.run import quiet_libraries
from speedlit.errors import UsageError

EPILOG = """methods:
  average                the weighted mean of the weights of two models or more; adapters are merged into their base first
  slerp                  a point on the arc between two models, tensor by tensor

The folder that is written holds full weights; `speedlit export` and `speedlit evaluate` read it like any trained model.

example: speedlit merge runs/seed-1/model runs/seed-2/model --to merged --method slerp --weights 0.6,0.4"""


def run(argv: list[str]) -> int:
    """Parse the words after ``merge``, write the folder, and say what is in it.

    Raises:
        UsageError: models that are not of one kind, weights that don't fit, or a target in use.
    """
    parser = argparse.ArgumentParser(
        prog="speedlit merge",
        description="Combine the weights of trained models of one base: seeds, checkpoints or data mixes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="+", help="model folders, folders of fits, or their checkpoints")
    parser.add_argument("--to", required=True, metavar="DIR", help="new folder")
    parser.add_argument("--method", default="average", help="average (default) or slerp")
    parser.add_argument("--weights", help="the share of each model, with commas (default: all the same)")
    known = parser.parse_args(argv)
    weights = _numbers(known.weights)
    quiet_libraries()
    from speedlit.merging import merge

    done = merge([Path(model) for model in known.models], Path(known.to), known.method, weights)
    parts = ", ".join(f"{share:.3f} {source['name']}" for share, source in zip(done["weights"], done["sources"], strict=True))
    print(f"{known.to}: {done['method']} of {parts}")
    return 0


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--weights {text!r} is not a list of numbers with commas, such as 0.6,0.4") from error
