"""From encoded samples to padded tensors: one collator per shape. Padding is always on the right.

A sample is a dict of plain lists, made once from a row by ``encode_*``; ``widths`` columns are what the plan needs to know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from speedlit.data.plan import cuts
from speedlit.data.tokens import TokenContract
from speedlit.labels import IGNORE

Sample = dict[str, Any]


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows of ids as one tensor (rows, longest)."""
    out = np.full((len(rows), max(1, max(map(len, rows)))), value, dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


def pad_ids(rows: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both (rows, longest)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = pad(rows, value)
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def text_hash(text: str) -> int:
    """A 63-bit hash of a text: equal for equal texts in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def encode_sft(tokenizer: Any, tokens: TokenContract, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Samples with ids and labels."""
    pairs = tokens.encode_pairs(tokenizer, [r["prompt"] for r in rows], [r["completion"] for r in rows])
    return [{"id": row["id"], "rows": [pair], "width": len(pair[0]), "targets": targets(pair[1])} for row, pair in zip(rows, pairs, strict=True)]


def encode_preference(tokenizer: Any, tokens: TokenContract, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Samples with the chosen and the rejected sequence; ``targets`` counts the chosen one's."""
    prompts = [r["prompt"] for r in rows]
    chosen = tokens.encode_pairs(tokenizer, prompts, [r["chosen"] for r in rows])
    rejected = tokens.encode_pairs(tokenizer, prompts, [r["rejected"] for r in rows])
    return [
        {"id": row["id"], "rows": [c, r], "width": max(len(c[0]), len(r[0])), "targets": targets(c[1])}
        for row, c, r in zip(rows, chosen, rejected, strict=True)
    ]


def encode_contrastive(tokenizer: Any, tokens: TokenContract, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Samples with a query and its documents (positive first). The instruction goes to the query only, as in the paper."""
    queries = tokens.encode_texts(tokenizer, [r["query"] for r in rows], [r["instruction"] or None for r in rows])
    texts = [text for r in rows for text in (r["positive"], *r["negatives"])]
    documents = iter(tokens.encode_texts(tokenizer, texts, [None] * len(texts)))
    samples = []
    for row, query in zip(rows, queries, strict=True):
        own = [row["positive"], *row["negatives"]]
        names = row.get("labels") or own  # texts of one label count as equal
        docs = [next(documents) for _ in own]
        samples.append({
            "id": row["id"], "kind": row["kind"], "query": query, "documents": docs, "width": len(query) + sum(map(len, docs)), "targets": len(own) - 1,
            "asked": text_hash(row["instruction"] + "\n" + row["query"]), "query_text": text_hash(row["query"]), "texts": [text_hash(n) for n in names],
            "scores": row.get("scores") or [],
        })  # fmt: skip
    return samples


def targets(labels: Sequence[int]) -> int:
    """How many labels count; a sequence's first token is predicted from nothing."""
    return sum(label != IGNORE for label in labels[1:])


def collate_rows(samples: Sequence[Sample], pad_id: int) -> dict[str, Any]:
    """SFT and preference: all first sequences, then all second ones; ids, labels (both (rows, T)), lengths and sample ids."""
    rows = [sample["rows"][k] for k in range(len(samples[0]["rows"])) for sample in samples]
    ids, labels, lengths = pad([ids for ids, _ in rows], pad_id), pad([labels for _, labels in rows], IGNORE), torch.tensor([len(ids) for ids, _ in rows])
    return {"ids": ids, "labels": labels, "lengths": lengths, "names": [s["id"] for s in samples]}


def collate_contrastive(
    samples: Sequence[Sample], pad_id: int, slots: int, chunk: int | None, overhead: int = 256, places: int | None = None,
    tokens: int | None = None,
) -> dict[str, Any]:
    """Texts in chunks of similar length, the longest first, and how to put their vectors back in order.

    Args:
        samples: of one task kind.
        pad_id: padding id.
        slots: documents per query, the same on every rank; a sample with fewer has empty slots.
        chunk: texts in a chunk at most; None: no bound.
        overhead: what one more chunk costs, in padded tokens.
        places: samples of a rank, the same on every rank; this one may have fewer, and the places left over are empty.
        tokens: padded tokens in a chunk of several texts at most; None: no bound.

    Returns:
        chunks: list of (ids, mask); order (texts,): row of each text among all chunks' rows, queries first, then documents
        sample by sample, -1 for an empty slot or place; asked and query_text (B,), texts (B, slots): hashes, 0 for an empty one;
        scores (B, slots): of the documents, where the samples have them, else nan.
    """
    count = len(samples) if places is None else places
    texts = [s["query"] for s in samples] + [document for s in samples for document in s["documents"]]
    if not texts:
        texts = [[pad_id]]  # a rank without samples goes along
    by_length = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    pieces = cuts(np.array([len(texts[i]) for i in by_length]), chunk, overhead, tokens)
    members = [by_length[start:end] for start, end in reversed(pieces)]
    chunks = [pad_ids([texts[i] for i in found], pad_id) for found in members]
    place = {text: row for row, text in enumerate(text for found in members for text in found)}
    empty, following = count - len(samples), len(samples)
    order = [place[i] for i in range(len(samples))] + [-1] * empty
    hashes, scores = np.zeros((count, slots), dtype=np.int64), np.full((count, slots), np.nan, dtype=np.float32)
    asked, query_text = np.zeros((2, count), dtype=np.int64)
    for number, sample in enumerate(samples):
        own = len(sample["documents"])
        order += [place[i] for i in range(following, following + own)] + [-1] * (slots - own)
        hashes[number, :own], asked[number], query_text[number] = sample["texts"], sample["asked"], sample["query_text"]
        scores[number, : len(sample["scores"])] = sample["scores"]
        following += own
    return {
        "chunks": chunks, "order": torch.tensor(order + [-1] * empty * slots),
        "kind": samples[0]["kind"] if samples else "", "names": [s["id"] for s in samples],
        "texts": torch.from_numpy(hashes), "scores": torch.from_numpy(scores), "asked": torch.from_numpy(asked), "query_text": torch.from_numpy(query_text),
    }  # fmt: skip
