"""How many tokens a text has: by the model's own tokenizer where it lies on this machine, else estimated, and said so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PACKAGED = Path(__file__).resolve().parent.parent / "offline" / "base"
PIECE = re.compile(r" ?[^\W\d_]+|\d{1,3}|[^\w\s]+|\s+|_+")  # where byte-pair tokenizers of large models cut first
LONG = 9  # letters, the blank before included, that such a tokenizer has in one token as a rule


@dataclass(frozen=True)
class Meter:
    """Counts tokens.

    Attributes:
        count: text -> tokens.
        source: whose tokens: a tokenizer's name, or ``estimated``.
    """

    count: Callable[[str], int]
    source: str

    @property
    def exact(self) -> bool:
        """The model's own tokenizer counted."""
        return self.source != "estimated"


def meter(model: str) -> Meter:
    """The meter of a model's name, folder or hub id. Nothing is fetched."""
    file = local_file(model, "tokenizer.json")
    if file is None:
        return Meter(estimate, "estimated")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return Meter(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), f"counted by the tokenizer of {model}")


def estimate(text: str) -> int:
    """Tokens that a large model's byte-pair tokenizer gives, roughly: one per piece, more for long words."""
    return sum(-(-len(piece.encode()) // LONG) for piece in PIECE.findall(text))


def local_file(model: str, name: str) -> Path | None:
    """A file of a model that lies on this machine: packaged, in a folder, in an installed package, or in the hub's cache; else None."""
    if model == "speedlit:base":
        return _in(PACKAGED, name)
    if model.startswith("package:"):
        package, _, sub = model.removeprefix("package:").partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        places = list(spec.submodule_search_locations or []) if spec else []
        return _in(Path(places[0]) / sub, name) if places else None
    if Path(model).expanduser().is_dir():
        return _in(Path(model).expanduser(), name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name)
    return Path(found) if isinstance(found, str) else None


def _in(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None
