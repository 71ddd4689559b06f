"""Peak memory of every synthesis stage at several sizes: it must not grow with the number of records.

    python -m scripts.bench.streams --sizes 1000 100000

Each stage runs in a process of its own, on what the stage before has written, with a writer that answers at once. ``dataset`` has a
bench of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from speedlit.context import Context, Reply, Request

STAGES = ("topics", "tasks", "seed", "candidates", "preferences", "revisions", "synthesis", "refinement")
WORDS = [first + second for first in ("ba", "de", "fi", "go", "hu", "ja", "ke", "li") for second in ("mar", "nes", "pol", "rit", "sun", "tam", "vok", "zin")]


def answer(text: str, seed: int | None) -> str:
    """What every role says; one answer in twenty is no JSON."""
    rng = random.Random(f"{text[-200:]}{seed}")
    if "JSON list of strings" in text:
        return json.dumps([f"{' '.join(rng.choices(WORDS, k=6))} {rng.random()}" for _ in range(3)])
    if candidates := re.findall(r"<candidate (\d+)>", text):
        return json.dumps({"reason": "drawn", "best": int(candidates[0]), "worst": int(candidates[-1])})
    if record := re.search(r"<record>\n(.*)\n</record>", text):
        fields = json.loads(record[1])
        name = rng.choice(list(fields))
        return json.dumps({"reason": "first word", "edits": [[name, fields[name].split()[0], "mended"]]})
    if rng.random() < 0.05:
        return "I have no idea."
    return json.dumps({key: " ".join(rng.choices(WORDS, k=40)) for key in re.findall(r'^- "(\w+)":', text, re.MULTILINE)})


class Writer:
    """Answers at once, some requests ahead as a real backend does."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply per request."""
        for r in requests:
            yield Reply(r.id, r.index, answer(r.messages[-1]["content"], r.sampling.seed), provenance={"backend": "bench", "model": "bench"})

    def close(self) -> None:
        """Nothing to free."""


def context(name: str, root: Path, size: int) -> Context:
    """The context of a stage that gets ``size`` prompts or records."""
    counts = {"seed": size, "root": size // 2, "candidates": 2, "preferences": size // 2, "revisions": size, "synthesis": size, "validation": 0, "test": 10}
    config: dict[str, Any] = {
        "seed": 0, "prompts": "paper", "revision": "edits", "control": False, "counts": counts, "topics": {"file": str(root / "topics.txt"), "depth": 4},
        "tasks": {"per_topic": 2, "test": 0.1, "validation": 0.0}, "teacher": {"max_tokens": 200}, "sampling": {"max_tokens": 200},
        "comparison": {"sources": []},
    }  # fmt: skip
    out = root / name
    out.mkdir(exist_ok=True)
    return Context(name, out, {stage: root / stage for stage in STAGES}, config, root, lambda role: Writer())


def stage(name: str, root: Path, size: int) -> None:
    """Run one stage in this process and print its peak memory in MB."""
    import_module(f"speedlit.synthesis.stages.{name}").run(context(name, root, size))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000], help="records per stage; about 20 kB of disk each")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="show these only")
    parser.add_argument("--stage", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        stage(args.stage[0], Path(args.stage[1]), int(args.stage[2]))
        return 0
    peaks: dict[str, list[int]] = {name: [] for name in STAGES}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "topics.txt").write_text("".join(f"Top/Field{n % 37}/Part{n % 1013}/Topic{n}\n" for n in range(max(size // 4, 60))))
            for name in STAGES[: STAGES.index(args.stages[-1]) + 1]:
                command = [sys.executable, "-m", "scripts.bench.streams", "--stage", name, folder, str(size)]
                peaks[name].append(int(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split()[-1]))
                if name in args.stages:
                    print(f"{name}, {size} records: {peaks[name][-1]} MB", flush=True)
    for name in args.stages:
        print(f"{name}: {peaks[name][-1] / peaks[name][0]:.2f} of the smallest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
