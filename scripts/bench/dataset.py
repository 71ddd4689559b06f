"""The ``dataset`` stage at scale: seconds, peak memory over all its processes, and what it finds of planted faults.

    python -m scripts.bench.dataset --records 1000000
    python -m scripts.bench.dataset --records 100000 1000000      # and the ratio of their memory

Records are made by a fast generator: 120 words of query and positive, 110 of negative, in a vocabulary with a long tail, one prompt
each. Planted: near-duplicates whose exact Jaccard similarity is 0.8 or more, pairs below it, exact copies, texts that share 13 words
with an evaluation text, and negatives that equal their positive. Memory is the proportional set size (PSS), 4 times a second.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from speedlit.files import canonical_json
from speedlit.workers import in_order

BLOCK = 5000  # records that are made together
QUERY, POSITIVE, NEGATIVE = 12, 108, 110  # words
SHARES = {"near": 0.05, "far": 0.02, "copy": 0.01, "contaminated": 0.002, "negative": 0.002}  # of the records
EVALUATION = 2000  # evaluation texts
MESSAGES = [{"role": "user", "content": "Write one sample of training data for a text embedding model, as JSON, and mind every one of these rules. " * 11}]
TASKS = 50_000
THRESHOLD = 0.8
FILES = {"prompts": "tasks", "records": "refinement", "revisions": "refinement"}  # file -> the stage that wrote it


def vocabulary() -> np.ndarray:
    """40,000 words of one to four syllables."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    rng = np.random.default_rng(1)
    return np.array(["".join(syllables[i] for i in rng.integers(0, len(syllables), 1 + n % 4)) + ("" if n < 4000 else str(n % 97)) for n in range(40_000)])


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Word numbers with a long tail, as in real text."""
    return np.minimum((40_000 ** rng.random(shape)).astype(np.int64), 39_999)


def evaluation(words: np.ndarray) -> list[str]:
    """The protected texts."""
    return [" ".join(words[row]) for row in draw(np.random.default_rng(2), (EVALUATION, 60))]


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of the runs of five words."""
    left, right = ({tuple(text[i : i + 5]) for i in range(len(text) - 4)} for text in (a.tolist(), b.tolist()))
    return len(left & right) / len(left | right)


def make_block(root: Path, block: tuple[int, int]) -> dict[str, list[Any]]:
    """Write one block of prompts, records and revisions; returns what was planted, by id."""
    start, count = block
    rng, words = np.random.default_rng([3, start]), vocabulary()
    protected = draw(np.random.default_rng(2), (EVALUATION, 60))
    texts = draw(rng, (count, QUERY + POSITIVE + NEGATIVE))
    ids = [f"{value:016x}" for value in rng.integers(0, 2**63, count)]
    names = [f"{value:016x}" for value in rng.integers(0, 2**63, count)]
    places = iter(rng.permutation(count))
    planted: dict[str, list[Any]] = {name: [] for name in SHARES}
    document = QUERY + POSITIVE
    for name, share in SHARES.items():
        for _ in range(int(share * count)):
            i = next(places)
            if name in ("near", "far", "copy"):
                j = next(places)
                texts[i] = texts[j]
            if name in ("near", "far"):  # some words changed, far enough from each other
                edits = rng.integers(1, 4) if name == "near" else rng.integers(5, 9)
                at = rng.permutation(document // 12)[:edits] * 12 + rng.integers(0, 12)
                texts[i, at] = draw(rng, (edits,))
                alike = similarity(texts[i, :document], texts[j, :document])
                if (alike >= THRESHOLD) == (name == "near"):
                    planted[name].append((ids[j], ids[i]))
            elif name == "copy":
                planted[name].append((ids[j], ids[i]))
            else:
                planted[name].append(ids[i])
                if name == "contaminated":
                    texts[i, 20:40] = protected[rng.integers(EVALUATION), 7:27]
    equal = set(planted["negative"])
    with ExitStack() as stack:
        streams = {name: stack.enter_context((root / f"{name}-{start}").open("w", encoding="utf-8")) for name in FILES}
        for row, identity, prompt in zip(words[texts], ids, names, strict=True):
            query, positive, negative = " ".join(row[:QUERY]), " ".join(row[QUERY:document]), " ".join(row[document:])
            write(streams, identity, prompt, query, positive, positive if identity in equal else negative)
    return planted


def write(streams: dict[str, Any], identity: str, prompt: str, query: str, positive: str, negative: str) -> None:
    fields = {"hard_negative_document": negative, "positive_document": positive, "user_query": query}
    task = f"{int(prompt, 16) % TASKS:016x}"
    same = {"schema": 1, "kind": "retrieval", "prompt_id": prompt}
    about = {"task_id": task, "task": "Find it.", "topic": "A/B", "group": task, "split": "train", "use": "synthetic", "template": "paper/retrieval@1"}
    line(streams["prompts"], {**about, "id": prompt, "index": 0, "knobs": {}, "messages": MESSAGES, "keys": sorted(fields), **same})
    roles = {"query": query, "positive": positive, "negatives": [negative], "instruction": "Find it.", "parsed_by": "revised", "source": "refined"}
    line(streams["records"], {**same, **roles, "id": identity, "generation_id": identity[::-1], "fields": fields, "index": 0})
    change = {"source": "revisor", "before": fields, "after": fields, "edits": [], "status": "kept", "reason": ""}
    line(streams["revisions"], {**same, **change, "id": identity[8:] + identity[:8], "record_id": identity})


def line(stream: Any, row: dict[str, Any]) -> None:
    stream.write(canonical_json(row) + "\n")


def make(root: Path, count: int) -> dict[str, list[Any]]:
    """Write the folders that the stage reads; returns what was planted."""
    for name in ("tasks", "refinement", "evaldata", "parts"):
        (root / name).mkdir(parents=True)
    (root / "evaldata" / "texts.txt").write_text("\n".join(evaluation(vocabulary())), encoding="utf-8")
    blocks = [(start, min(BLOCK, count - start)) for start in range(0, count, BLOCK)]
    planted: dict[str, list[Any]] = {name: [] for name in SHARES}
    for (start, _), found in zip(blocks, in_order(partial(make_block, root / "parts"), blocks), strict=True):
        for name, rows in found.items():
            planted[name] += rows
        for name, folder in FILES.items():
            part = root / "parts" / f"{name}-{start}"
            with (root / folder / f"{name}.jsonl").open("ab") as out, part.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
            part.unlink()
    with (root / "tasks" / "tasks.jsonl").open("w", encoding="utf-8") as tasks:
        for n in range(TASKS):
            same = {"schema": 1, "topic": "A/B", "kind": "retrieval", "text": "Find it.", "split": "train"}
            line(tasks, {**same, "id": f"{n:016x}", "topic_id": f"{n * 7:016x}", "group": str(n)})
    return planted


def stage(root: Path) -> None:
    """Run the stage on such folders, in this process."""
    from speedlit.context import Context
    from speedlit.synthesis.stages import dataset

    filters = {"exact": True, "minhash_threshold": THRESHOLD, "ngram": 13}
    config = {"seed": 0, "filters": filters, "comparison": {"sources": []}, "counts": {}, "evaluation": {"tasks": [], "data": str(root / "evaldata")}}
    ctx = Context("dataset", root / "dataset", {name: root / name for name in ("tasks", "refinement", "synthesis", "seed")}, config, root, lambda role: None)  # type: ignore[arg-type, return-value]
    dataset.run(ctx)
    print(json.dumps(ctx.ledger.to_json()))


def pss(pid: int) -> int:
    """Proportional set size in bytes of a process and all its children."""
    try:
        total = next(int(row.split()[1]) for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if row.startswith("Pss:")) << 10
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except (OSError, StopIteration):
        return 0  # it has ended meanwhile
    return total + sum(pss(child) for child in children)


def measure(root: Path) -> tuple[float, float, int, dict[str, Any]]:
    """Seconds, seconds of CPU, peak bytes and ledger of the stage in a process of its own."""
    start, before = time.monotonic(), cpu()
    process = subprocess.Popen([sys.executable, "-m", "scripts.bench.dataset", "--stage", str(root)], stdout=subprocess.PIPE, text=True)
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.25):
            peak = max(peak, pss(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - start, cpu() - before, peak, json.loads(out.splitlines()[-1])


def cpu() -> float:
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def verdict(root: Path, planted: dict[str, list[Any]]) -> dict[str, Any]:
    """What was found of what was planted. Of a pair that one is left out that comes later in the run's order."""
    reasons: dict[str, str] = {}
    with (root / "dataset" / "dropped.jsonl").open() as stream:
        for text in stream:
            row = json.loads(text)
            reasons[row["record_id"]] = row["reason"]
    pairs = {name: sum(a in reasons or b in reasons for a, b in planted[name]) / max(len(planted[name]), 1) for name in ("near", "far", "copy")}
    single = {name: sum(row in reasons for row in planted[name]) / max(len(planted[name]), 1) for name in ("contaminated", "negative")}
    marked = {x for rows in planted.values() for row in rows for x in (row if isinstance(row, tuple) else [row])}
    return {"found": {**pairs, **single}, "planted": {name: len(rows) for name, rows in planted.items()}, "others_dropped": len(reasons.keys() - marked)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's folder for temporary files); about 17 kB per record")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--stage", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        stage(args.stage)
        return 0
    results = []
    for count in args.records:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            planted = make(Path(folder), count)
            seconds, used, peak, ledger = measure(Path(folder))
            found = verdict(Path(folder), planted)
        figures = {"seconds": round(seconds, 1), "cpu_seconds": round(used, 1), "peak_mb": peak >> 20, "triplets": ledger["accepted"]}
        results.append({"records": count, **figures, **found})
        print(f"{count} records: {seconds:.0f} s ({used:.0f} s of CPU), peak {peak >> 20} MB, {ledger['accepted']} triplets")
        print("  share found: " + ", ".join(f"{name} {value:.4f} of {found['planted'][name]}" for name, value in found["found"].items()))
        print(f"  left out besides: {found['others_dropped']}")
    if len(results) > 1:
        print(f"memory of the largest over the smallest: {results[-1]['peak_mb'] / results[0]['peak_mb']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
