"""``speedlit evaluate PATH``: MTEB scores of a checkpoint, an exported folder, or any other embedding model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speedlit.commands.run import quiet_libraries
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import read_json

EPILOG = """examples:
  speedlit evaluate runs/fit/model --tasks STSBenchmark,SciFact
  speedlit evaluate runs/fit/model --data my-sets --output results
  speedlit evaluate sentence-transformers/all-MiniLM-L6-v2 --tasks "MTEB(eng, v2)" --output results

--data DIR holds a tasks.json: rows such as {"folder": "SciFact", "task": "SciFact"} (a registered task with a local copy) or
{"folder": "MySet", "type": "Retrieval", "prompt": {"query": "..."}} (a task of your own, in which an empty text is a mistake, and so is
one of 100,000 characters that the model would cut, unless its row says "allow": ["empty", "long"]; registered tasks are scored as mteb does).
With --output, finished tasks are not run again: results are filed under a hash of the model's files.
Under torchrun or srun the ranks share the texts out; --device cuda gives each its own GPU."""


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="speedlit evaluate",
        description="Score an embedding model on MTEB tasks.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", help="model folder (of speedlit, sentence-transformers or transformers), checkpoint of a fit, or hub name")
    lists = "names with commas, a benchmark, a shipped list (quick, eng-v1-56), or a file (.txt one name a line, .json or .yaml a list); default: all of --data"
    parser.add_argument("--tasks", help=lists)
    parser.add_argument("--data", help="folder with a tasks.json and local sets")
    parser.add_argument("--output", help="folder for results in mteb's own layout")
    add_model_options(parser)
    parser.add_argument("--instructions", help="JSON or YAML table of instructions by task name")
    parser.add_argument("--no-instructions", action="store_true", help="leave the tasks' own instructions away")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a model is read and where it computes: what every command that embeds texts asks."""
    parser.add_argument("--pooling", choices=["last", "mean", "weighted_mean", "cls"], help="for a model that does not say how it pools")
    parser.add_argument("--max-length", type=int, help="longest text in tokens (default: the model's own)")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")
    parser.add_argument("--token-budget", type=int, help="padded tokens per forward pass (default: 1024 on a CPU, else 16384)")


def run(argv: list[str]) -> int:
    """Parse the words after ``evaluate``, score, and print a table.

    Raises:
        UsageError: unknown task, missing folder, column or pooling information.
        SpeedlitError: a task failed; the others have run.
    """
    known = build_parser().parse_args(argv)
    if known.tasks is None and known.data is None:
        raise UsageError("nothing to run: add --tasks NAMES, or --data with a folder that holds a tasks.json")
    names = read_names(known.tasks)
    quiet_libraries()
    from speedlit.evaluation import ranks
    from speedlit.evaluation.folders import check_model, open_encoder, read_instructions
    from speedlit.evaluation.readable import check_lengths
    from speedlit.evaluation.run import evaluate
    from speedlit.evaluation.tasks import load_tasks

    check_model(known.path)
    tasks = load_tasks(names, known.data)
    options: dict[str, Any] = {"token_budget": known.token_budget, "instruct": not known.no_instructions}
    if known.instructions:
        options["instructions"] = read_instructions(known.instructions)
    failures: dict[str, str] = {}
    with ranks.joined(known.device) as device:
        encoder = open_encoder(known.path, pooling=known.pooling, max_length=known.max_length, device=device, dtype=known.dtype, **options)
        check_lengths(encoder, tasks)
        scores = evaluate(encoder, tasks, output=Path(known.output) if known.output else None, failed=failures.__setitem__, progress=True)
        first = ranks.number() == 0
    kinds = {task.metadata.name: (task.metadata.type, task.metadata.main_score) for task in tasks}
    if first:
        print(table(scores, kinds), flush=True)
    if failures:
        raise SpeedlitError("\n".join(f"task {name} failed: {reason}" for name, reason in failures.items()))
    return 0


def read_names(tasks: str | None) -> list[str] | str | None:
    """Names as given, or from a file.

    Raises:
        UsageError: the file is not a list of names.
    """
    if tasks is None or not Path(tasks).is_file():
        return tasks
    path = Path(tasks)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text; --tasks takes task names, or a text file of them") from error
    if path.suffix in (".json", ".yaml", ".yml"):
        import yaml

        names = read_json(path) if path.suffix == ".json" else yaml.safe_load(text)
    else:
        names = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} must hold a list of task names")
    return names


def table(scores: Mapping[str, float], kinds: Mapping[str, Sequence[str]]) -> str:
    """One line per task, then the mean of each category, of the tasks, and of the categories (as MTEB counts)."""
    width = max([len(name) for name in scores] + [20])
    lines = [f"{'task':<{width}}  {'type':<20}  {'metric':<16}  score"]
    by_type: dict[str, list[float]] = {}
    for name, score in scores.items():
        kind, metric = kinds[name]
        by_type.setdefault(kind, []).append(score)
        lines.append(f"{name:<{width}}  {kind:<20}  {metric:<16}  {100 * score:.2f}")
    means = {kind: sum(found) / len(found) for kind, found in by_type.items()}
    if len(scores) > 1:
        lines += [f"{'mean of ' + kind:<{width}}  {'':<20}  {len(by_type[kind]):<16}  {100 * mean:.2f}" for kind, mean in means.items()]
        lines.append(f"{'mean over tasks':<{width}}  {'':<20}  {len(scores):<16}  {100 * sum(scores.values()) / len(scores):.2f}")
        lines.append(f"{'mean over types':<{width}}  {'':<20}  {len(means):<16}  {100 * sum(means.values()) / len(means):.2f}")
    return "\n".join(lines)
