"""Any JSONL, JSON, CSV, Parquet or Hugging Face dataset folder, in TRL's formats, to the rows of a shard set.

- prompt + completion, or messages (the last assistant turn is the completion): sft
- prompt + chosen + rejected, or chosen + rejected with a shared beginning: preference
- query + positive (or positives) + negatives (or negative): contrastive; with scores (of the positive and of each negative): graded
- text + label: contrastive; the same label makes a positive, another label a hard negative

Conversations are turned into text by TRL's own helpers and the tokenizer's chat template.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import read_jsonl

Row = dict[str, Any]
MESSAGES = ("messages", "conversations")
ALIASES = {
    "query": ("query", "anchor", "question"),
    "positive": ("positive", "positives", "pos"),
    "negatives": ("negatives", "negative", "neg", "hard_negatives"),
}


def read_rows(source: str | Path, split: str | None = None) -> Iterator[Row]:
    """Rows of a file or dataset folder.

    Args:
        source: .jsonl, .json, .csv or .parquet (also compressed), a folder written by ``save_to_disk``, or a folder of data files.
        split: of a folder that has several; default train.

    Raises:
        UsageError: not there, or nothing that can be read.
    """
    path = Path(source)
    if not path.exists():
        raise UsageError(f"{source}: no such file or folder")
    if path.is_file() and path.suffix == ".jsonl":
        return read_jsonl(path)
    return _dataset(path, split)


def _dataset(path: Path, split: str | None) -> Iterator[Row]:
    """Through the datasets library."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    kinds = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
    try:
        if path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()):
            found = datasets.load_from_disk(str(path))
        elif path.is_dir():
            found = datasets.load_dataset(str(path))
        else:
            suffix = next((s for s in path.suffixes if s in kinds), None)
            if suffix is None:
                raise UsageError(f"{path}: can't tell its format; give .jsonl, .json, .csv, .parquet (also .gz), or a dataset folder")
            found = datasets.load_dataset(kinds[suffix], data_files=str(path), split="train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"cannot read {path} as a data set: {str(error).splitlines()[0][:300]}") from error
    if hasattr(found, "column_names") and isinstance(found.column_names, dict):
        split = split or ("train" if "train" in found else next(iter(found)))
        if split not in found:
            raise UsageError(f"{path} has no split {split!r}; it has {', '.join(found)}")
        found = found[split]
    return ({key: value for key, value in row.items() if value is not None} for row in found)


def guess_shape(row: Row) -> str:
    """sft, preference or contrastive, by a row's keys.

    Raises:
        UsageError: the keys fit none.
    """
    keys = set(row)
    if {"chosen", "rejected"} <= keys:
        return "preference"
    if {"prompt", "completion"} <= keys or keys & set(MESSAGES):
        return "sft"
    if keys & set(ALIASES["query"]) and keys & set(ALIASES["positive"]):
        return "contrastive"
    raise UsageError(
        f"can't tell the shape of rows with the keys {', '.join(sorted(keys))}; rows need prompt and completion, messages, prompt and chosen and rejected, "
        "or query and positive; labelled text needs --label KEY --text KEY"
    )


def convert(rows: Iterable[Row], shape: str, tokenizer: Any = None) -> Iterator[Row]:
    """Rows of a shard set.

    Args:
        rows: of the source.
        shape: sft, preference or contrastive.
        tokenizer: renders conversations; not needed for plain text.

    Raises:
        UsageError: a row lacks something, or is a conversation and there is no chat template; names the row.
    """
    make = {"sft": _sft, "preference": _preference, "contrastive": _contrastive}[shape]
    for number, row in enumerate(rows):
        try:
            made = make(row, tokenizer)
        except UsageError as error:
            raise UsageError(f"row {number}: {error}") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UsageError(f"row {number} is no {shape} row in TRL's formats ({type(error).__name__}: {error})") from error
        yield {**({"id": str(row["id"])} if "id" in row else {}), **made}


def _render(row: Row, tokenizer: Any) -> Row:
    """Conversations to text, plain text as it is."""
    from trl.data_utils import is_conversational, maybe_apply_chat_template

    if not is_conversational(row):
        return row
    if tokenizer is None or getattr(tokenizer, "chat_template", None) is None:
        raise UsageError("it is a conversation, and rendering it needs --tokenizer FOLDER with a chat template")
    return dict(maybe_apply_chat_template(row, tokenizer))


def _sft(row: Row, tokenizer: Any) -> Row:
    from trl.data_utils import maybe_convert_to_chatml

    row = maybe_convert_to_chatml(copy.deepcopy({key: row[key] for key in ("prompt", "completion", *MESSAGES) if key in row}))
    if "messages" in row:
        *prompt, last = row["messages"]
        if last.get("role") != "assistant" or not prompt:
            raise UsageError("messages must end with an assistant's turn after at least one other")
        row = {"prompt": prompt, "completion": [last]}
    row = _render(row, tokenizer)
    return {"prompt": row["prompt"], "completion": row["completion"]}


def _preference(row: Row, tokenizer: Any) -> Row:
    from trl.data_utils import maybe_convert_to_chatml, maybe_extract_prompt

    row = maybe_convert_to_chatml(copy.deepcopy({key: row[key] for key in ("prompt", "chosen", "rejected") if key in row}))
    if row["chosen"] == row["rejected"]:
        raise UsageError("chosen and rejected are the same")
    row = _render(dict(maybe_extract_prompt(row)), tokenizer)
    return {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}


def _contrastive(row: Row, tokenizer: Any) -> Row:
    found = {name: next((row[alias] for alias in aliases if alias in row), None) for name, aliases in ALIASES.items()}
    positive, negatives = _texts(found["positive"], tokenizer), _texts(found["negatives"] or [], tokenizer)
    query = _texts(found["query"], tokenizer)
    if not positive or not query:
        raise UsageError("it needs a query and a positive")
    return {
        "kind": str(row.get("kind", "retrieval")), "instruction": str(row.get("instruction") or ""),
        "query": query[0], "positive": positive[0], "negatives": negatives, **({"scores": row["scores"]} if "scores" in row else {}),
    }  # fmt: skip


def _texts(value: Any, tokenizer: Any) -> list[str]:
    """Texts of a field that holds a text, a conversation, or a list of either."""
    if value is None or value == [] or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and isinstance(value[0], dict):  # a conversation is one text
        if len(value) == 1:
            return [str(value[0]["content"])]
        if tokenizer is None or getattr(tokenizer, "chat_template", None) is None:
            raise UsageError("it is a conversation of several turns, and rendering it needs --tokenizer FOLDER with a chat template")
        return [tokenizer.apply_chat_template(value, tokenize=False)]
    return [text for item in value for text in _texts(item, tokenizer)]


def labelled(rows: Iterable[Row], text: str, label: str, seed: int = 0, negatives: int = 1, instruction: str = "", rounds: int = 1) -> Iterator[Row]:
    """Contrastive rows from labelled texts: another text of the same label is the positive, texts of other labels are hard negatives.

    Args:
        rows: of the source.
        text: key of the text.
        label: key of the label.
        seed: of the draws; every text is a query ``rounds`` times, whatever the order of the source.
        negatives: hard negatives per query, of different labels.
        instruction: of every row.
        rounds: pairs per text.

    Raises:
        UsageError: a key is missing, or there are too few texts or labels.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(rows):
        if text not in row or label not in row:
            raise UsageError(f"row {number} has no {text if text not in row else label!r}; it has {', '.join(map(str, row))}")
        groups[str(row[label])].append(str(row[text]))
    names = sorted(groups)
    if len(names) <= negatives:
        raise UsageError(f"{negatives} hard negatives need more than {negatives} labels, and there are {len(names)}: {', '.join(names[:5])}")
    pools = {name: sorted(set(groups[name])) for name in names}
    draw = random.Random(seed)
    for _ in range(rounds):
        for name in names:
            if len(pools[name]) < 2:
                continue  # a text alone with its label has no positive
            for query in pools[name]:
                positive = draw.choice(pools[name])
                while positive == query:
                    positive = draw.choice(pools[name])
                others = draw.sample([other for other in names if other != name], negatives)
                yield {
                    "kind": "classification", "instruction": instruction, "query": query, "positive": positive,
                    "negatives": [draw.choice(pools[other]) for other in others], "labels": [name, *others],
                }  # fmt: skip
