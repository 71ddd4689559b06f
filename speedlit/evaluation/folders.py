"""Encoders from what there is: a live module, one of our model folders, or a folder or name of another library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from speedlit.errors import UsageError
from speedlit.evaluation import ranks
from speedlit.evaluation.encoder import Encoder
from speedlit.files import sha256_file
from speedlit.models.fast_bert import speed_up_bert

MARKS = ("speedlit.json", "modules.json", "config.json", "adapter_config.json")
WEIGHTS = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")


def module_encoder(module: Any, **options: Any) -> Encoder:
    """The encoder of a live ``EmbeddingModule``: its own ``embed``, tokenizer and token contract.

    Raises:
        UsageError: the module has no ``embed``, so it does not make vectors of texts.
    """
    if not callable(getattr(module, "embed", None)):
        name = type(module).__name__
        raise UsageError(f"MTEB scores need a module that embeds texts, such as EmbeddingModule, not {name}: take the MTEB callback out of the config")
    return Encoder(module, module.embed, module.tokenizer, module.tokens, together=getattr(module, "together", 1), **options)


def open_encoder(
    path: str | Path, *, pooling: str | None = None, max_length: int | None = None, device: str = "cpu", dtype: str = "float32", **options: Any
) -> Encoder:
    """The encoder of a model folder or hub name.

    Args:
        path: a model folder of ours (``speedlit.json``; also the folder of a fit, which holds one as ``model``), a
            sentence-transformers model, or a plain Hugging Face model (then ``pooling`` must be said); also as
            ``package:NAME/SUBFOLDER`` or ``speedlit:base``; or a checkpoint of a fit, which all ranks must open together.
        pooling: last, mean, weighted_mean or cls; only for a model that does not say itself.
        max_length: longest text in tokens, in place of the model's own.
        device: where to compute.
        dtype: float32, bfloat16 or float16.
        options: of ``Encoder``; ``name`` and ``revision`` default to the path's name and the hash of its files.

    Raises:
        UsageError: no such folder, or nothing says how the model pools.
    """
    from speedlit.checkpoints import is_checkpoint
    from speedlit.models.backbone import resolve

    if is_checkpoint(Path(path)):
        with _unpacked(Path(path)) as place:
            return open_encoder(place, pooling=pooling, max_length=max_length, device=device, dtype=dtype, **options)
    folder = Path(resolve(str(path)))
    if (folder / "model" / "speedlit.json").is_file():
        folder = folder / "model"
    precision = _dtype(dtype)
    _check_device(device)
    if options.get("token_budget") is not None and options["token_budget"] < 1:
        raise UsageError(f"--token-budget is {options['token_budget']}; it must be at least 1")
    if options.get("token_budget") is None:
        options["token_budget"] = 1024 if device == "cpu" else 16384  # what a layer makes of 1,024 tokens stays in a core's cache
    if folder.is_dir():
        options = {"name": f"speedlit/{_label(folder)}", "revision": folder_hash(folder), **options}
    else:
        options = {"name": str(path), "revision": "main", **options}
    if not (folder / "speedlit.json").is_file() and pooling is None:
        return _foreign(str(path) if not folder.is_dir() else str(folder), max_length, device, precision, options)
    from speedlit.models.folder import load_folder

    loaded = load_folder(folder if folder.is_dir() else str(path), dtype=precision, role="embedder")
    changes: dict[str, Any] = {key: value for key, value in {"pooling": pooling, "max_length": max_length}.items() if value is not None}
    loaded.tokens = replace(loaded.tokens, **changes)
    places = getattr(loaded.model.config, "max_position_embeddings", None)
    if max_length is not None and places is not None and max_length > places:
        raise UsageError(f"--max-length is {max_length}, but {path} knows {places} positions; give at most that many tokens")
    loaded.model.to(device)
    options.setdefault("side_by_side", speed_up_bert(loaded.model) > 0)
    return Encoder(loaded.model, loaded.embed, loaded.tokenizer, loaded.tokens, **options)


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The model folder of a checkpoint, written by the first rank and there until all have read it."""
    from speedlit.models.unpack import unpacked

    with ExitStack() as stack:
        place, error = path, None
        if ranks.number() == 0:
            try:
                place = stack.enter_context(unpacked(path))
            except Exception as found:  # noqa: BLE001 - raised again below, once the others know of it
                error = found
        ranks.together(error)
        error = None
        try:
            yield ranks.agreed(place)
        except Exception as found:  # noqa: BLE001 - as above
            error = found
        ranks.together(error)


def check_model(path: str | Path) -> None:
    """Look whether ``path`` can be a model at all, before any task is loaded.

    Raises:
        UsageError: it is a folder that holds none, or no folder at all.
    """
    from speedlit.checkpoints import is_checkpoint
    from speedlit.models.backbone import resolve

    if is_checkpoint(Path(path)):
        return
    folder = Path(resolve(str(path)))
    if folder.is_dir() and not any((folder / name).is_file() for name in (*MARKS, "model/speedlit.json")):
        raise UsageError(f"{path} holds no model: none of {', '.join(MARKS)} is in it; name a fit's folder or checkpoint, an export or a Hugging Face model")


def folder_hash(folder: Path) -> str:
    """First 12 hex digits over the names and bytes of a model folder's weights, configs and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in WEIGHTS for path in folder.rglob(pattern)}):
        digest.update(f"{path.relative_to(folder).as_posix()}:{sha256_file(path)}\n".encode())
    return digest.hexdigest()[:12]


@dataclass
class _ForeignTokens:
    """The token rules of a sentence-transformers model: its tokenizer's own special tokens, its prompts as prefixes."""

    max_length: int
    query_template: str = "{instruction}{text}"

    def encode_texts(self, tokenizer: Any, texts: Sequence[str], instructions: Sequence[str | None]) -> list[list[int]]:
        filled = [(instruction or "") + text for text, instruction in zip(texts, instructions, strict=True)]
        ids: list[list[int]] = tokenizer(filled, truncation=True, max_length=self.max_length)["input_ids"]
        return ids


def _foreign(path: str, max_length: int | None, device: str, dtype: torch.dtype, options: dict[str, Any]) -> Encoder:
    """A sentence-transformers model, run module by module as its ``modules.json`` says."""
    from sentence_transformers import SentenceTransformer

    folder = Path(path)
    if folder.is_dir() and not (folder / "modules.json").is_file():
        raise UsageError(f"{path} does not say how it pools (no speedlit.json, no modules.json): add --pooling last, mean, weighted_mean or cls")
    try:
        model = SentenceTransformer(path, device=device, model_kwargs={"dtype": dtype})
    except OSError as error:  # what transformers says of a name that is neither
        if error.filename or Path(path).exists():
            raise
        raise UsageError(f"{path}: there is no such folder, and as a hub id it can't be had; name a model folder, or check the id and the network") from error
    options.setdefault("side_by_side", speed_up_bert(model) > 0)

    def embed(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = model({"input_ids": input_ids, "attention_mask": mask})["sentence_embedding"]
        return vectors

    tokens: Any = _ForeignTokens(max_length or model.max_seq_length or 512)
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt}
    own = {"instruct": False, "instructions": {**prompts, **(options.pop("instructions", None) or {})}}
    return Encoder(model, embed, model.tokenizer, tokens, **{**options, **own})


def _label(folder: Path) -> str:
    """A name for results: the fit's folder rather than its ``model``."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _check_device(name: str) -> None:
    """Refuse a device that torch doesn't know, or that isn't here, before anything is loaded."""
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise UsageError(f"--device {name} is no device that torch knows; use cpu, cuda or cuda:1") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no GPU here; use cpu")


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UsageError(f"unknown dtype {name!r}: use {', '.join(known)}")
    return known[name]


def read_instructions(path: str | Path) -> dict[str, str]:
    """A table of instructions by task name, from a JSON or YAML file.

    Raises:
        UsageError: unreadable, or not a mapping of texts to texts.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        table = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is neither JSON nor YAML: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in table.items()):
        raise UsageError(f"{path} must map task names to instruction texts")
    return table
