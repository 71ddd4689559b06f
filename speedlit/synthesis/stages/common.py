"""What the synthesis stages share: asking a backend with parts and shards, and turning answers into records.

Answers of the teacher are in the journal, so an interrupted or sharded stage finds them there. Answers of local models go to part
files of ``CHUNK`` requests in ``<stage>/work/parts``. Chunks are cut by position and a shard takes whole chunks, so a local batch is
made of the same requests, and gives the same samples, whoever computes it. Prompts, requests and answers pass through: a stage's memory
does not grow with their number.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from speedlit.context import Backend, Context, Reply, Request, Sampling
from speedlit.files import atomic, canonical_json, content_id, read_jsonl, write_jsonl
from speedlit.progress import Progress
from speedlit.records import Generation, Prompt, Record, Row
from speedlit.synthesis.budget import BudgetSpent
from speedlit.synthesis.lines import rows
from speedlit.synthesis.parsing import Rejected, parse_record
from speedlit.synthesis.quality import Answers, Measures, merge, show
from speedlit.synthesis.schemas import record_schema
from speedlit.synthesis.templates import Template, derived_seed, load_set

CHUNK = 1024
BATCHED = ("seed", "preferences", "revisions")  # stages that ``teacher.mode: batch`` is for: many requests that wait for nothing
COUNTS = {"synthetic": "synthesis"}  # uses whose count has another name in the config
T = TypeVar("T")
Asked = tuple[T, Request]  # a question, with whatever its answer will be needed for


def ask(ctx: Context, role: str, asked: Iterable[tuple[T, Request]], label: str, total: int | None = None) -> Iterator[tuple[T, Request, Reply]]:
    """Ask this shard's share; yields what came with each question, the question and its reply, in order, counted and shown.

    Args:
        asked: made as they are needed: only those in flight are in memory.
        total: how many there are over all shards, where that is known.
    """
    whole = ctx.shard == (0, 1)
    label = label if whole else f"{label} {ctx.shard[0]}/{ctx.shard[1]}"
    answers = _ask_teacher(ctx, asked) if role == "teacher" else _ask_local(ctx, role, asked)
    mine = None if total is None else _share(ctx, role, total)
    with Progress(label, mine, "answers") as progress:
        try:
            for carried, request, reply in answers:
                ctx.ledger.reply(reply, role)
                progress.advance(note=lambda: standing(ctx))
                yield carried, request, reply
        except BudgetSpent as spent:
            raise spent.out_of(mine) if mine else spent from None


def standing(ctx: Context) -> str:
    """Accepted, rejected, and what the teacher's answers cost, as far as the stage has come."""
    ledger, price = ctx.ledger, (ctx.config.get("prices") or {}).get(ctx.config["teacher"]["model"])
    words = [f"{ledger.accepted:,} accepted"] if ledger.accepted else []
    words += [f"{ledger.rejected.total():,} rejected"] if ledger.rejected else []
    if price and ledger.calls:
        batched = price.get("batch", 1.0) if ledger.notes.get("mode") == "batch" else 1.0
        words.append(f"${batched * (ledger.tokens_in * price['input'] + ledger.tokens_out * price['output']) / 1e6:,.2f}")
    return ", ".join(words)


def _share(ctx: Context, role: str, total: int) -> int:
    index, count = ctx.shard
    unit = 1 if role == "teacher" else CHUNK
    return sum(min(unit, total - start) for start in range(index * unit, total, count * unit))


def _ask_teacher(ctx: Context, asked: Iterable[Asked[T]]) -> Iterator[tuple[T, Request, Reply]]:
    mine = ctx.mine(asked)
    in_batches = ctx.config["teacher"].get("mode") == "batch" and ctx.name in BATCHED
    if in_batches:
        ctx.ledger.notes["mode"] = "batch"
    for first in itertools.islice(mine, 1):  # a shard without a share needs no backend
        yield from _answered(itertools.chain([first], mine), ctx.backend("batches" if in_batches else "teacher"))


def _answered(asked: Iterable[Asked[T]], backend: Backend) -> Iterator[tuple[T, Request, Reply]]:
    """Pair replies with what was asked; the backend takes questions ahead of the reply handed out."""
    ahead: deque[Asked[T]] = deque()

    def requests() -> Iterator[Request]:
        for pair in asked:
            ahead.append(pair)
            yield pair[1]

    for reply in backend.generate(requests()):
        yield (*ahead.popleft(), reply)
    if ahead:
        raise RuntimeError(f"{len(ahead)} requests had no reply")


def _ask_local(ctx: Context, role: str, asked: Iterable[Asked[T]]) -> Iterator[tuple[T, Request, Reply]]:
    source = iter(asked)
    chunks = ctx.mine(iter(lambda: list(itertools.islice(source, CHUNK)), []))
    backend: Backend | None = None
    for exists, group in itertools.groupby(((_part(ctx, role, chunk), chunk) for chunk in chunks), key=lambda pair: pair[0].exists()):
        if exists:
            for path, chunk in group:
                replies = (Reply(**row) for row in read_jsonl(path))
                yield from ((carried, request, reply) for (carried, request), reply in zip(chunk, replies, strict=True))
            continue
        backend = backend or ctx.backend(role)
        yield from _sampled(group, backend)


def _sampled(chunks: Iterable[tuple[Path, list[Asked[T]]]], backend: Backend) -> Iterator[tuple[T, Request, Reply]]:
    """Answers that are not there yet; each chunk goes to its part file once it is complete."""
    rows: list[dict[str, Any]] = []
    flat = (((path if n == len(chunk) else None, carried), request) for path, chunk in chunks for n, (carried, request) in enumerate(chunk, 1))
    for (path, carried), request, reply in _answered(flat, backend):
        rows.append(asdict(reply))
        yield carried, request, reply
        if path is not None:
            write_jsonl(path, rows)
            rows = []


def _part(ctx: Context, role: str, chunk: Sequence[tuple[Any, Request]]) -> Path:
    """Named by what is asked, so a part of other requests is never taken for this one."""
    stage = ctx.out if ctx.shard == (0, 1) else ctx.out.parent.parent  # a shard works in <stage>/work/shard-i-of-n
    folder = stage / "work" / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{role}-{content_id([_asked(request) for _, request in chunk])}.jsonl"


def _asked(request: Request) -> list[Any]:
    shape = [request.schema] if request.schema is not None else []
    return [request.id, request.index, list(request.messages), asdict(request.sampling), *shape]


def structured(ctx: Context, role: str) -> bool:
    """Whether the answers of ``role`` are kept to a JSON schema while they are written."""
    return bool(ctx.config["teacher" if role == "teacher" else "sampling"].get("structured"))


def prompts_of(ctx: Context, *uses: str) -> Iterator[Prompt]:
    """The run's prompts for some uses, in their order."""
    return (Prompt.from_json(row) for _, row in prompt_rows(ctx, *uses))


def prompt_rows(ctx: Context, *uses: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same as JSON, each with the byte at which its line begins."""
    marks = [f'"use":"{use}"'.encode() for use in uses]

    def other(line: bytes) -> bool:  # known without parsing: the file is written in one spelling
        return b'"use":"' in line and not any(mark in line for mark in marks)

    found = rows(ctx.inputs["tasks"] / "prompts.jsonl", skip=other)
    return ((start, row) for start, row in found if row.get("use") in uses)


def count_of(ctx: Context, *uses: str) -> int:
    """How many prompts there are for some uses: what the config asks for, or ``tasks`` would have failed."""
    return sum(ctx.config["counts"].get(COUNTS.get(use, use)) or 0 for use in uses)


def writer_sampling(ctx: Context, role: str) -> Sampling:
    """How ``role`` draws samples: the teacher by ``teacher``, generators by ``sampling``."""
    settings = ctx.config["teacher" if role == "teacher" else "sampling"]
    return Sampling(settings.get("temperature", 1.0), settings.get("top_p", 1.0), settings.get("max_tokens", 800))


def write_requests(ctx: Context, role: str, prompts: Iterable[Prompt], samples: int = 1) -> Iterator[tuple[Prompt, Request]]:
    """Each prompt with one request per sample, seeded by the run's seed, the prompt and the sample's index."""
    base, shaped = writer_sampling(ctx, role), structured(ctx, role)
    for prompt in prompts:
        schema = record_schema(prompt.keys) if shaped else None
        for index in range(samples):
            drawn = Sampling(base.temperature, base.top_p, base.max_tokens, derived_seed(ctx.config["seed"], prompt.id, index))
            yield prompt, Request(prompt.id, prompt.messages, drawn, index, schema)


def exact_sampling(ctx: Context, role: str, *parts: Any) -> Sampling:
    """Temperature 0, for judge, critic and revisor."""
    return Sampling(0.0, 1.0, writer_sampling(ctx, role).max_tokens, derived_seed(ctx.config["seed"], *parts))


def sample(
    ctx: Context,
    role: str,
    source: str,
    asked: Iterable[tuple[Prompt, Request]],
    total: int,
    suffix: str = "",
    watch: Callable[[Record, Prompt], None] | None = None,
) -> int:
    """Let ``role`` answer; write ``generations``, ``records`` and ``rejected`` (with ``suffix``), in the order of the requests.

    Args:
        watch: is shown every record.

    Returns:
        How many records it gave.
    """
    templates, levels = load_set(ctx.config["prompts"]), ctx.config.get("quality")
    count = 0
    answers, measures = Answers(levels), Measures(levels)
    with Outputs(ctx.out, "generations", "records", "rejected", suffix=suffix) as out:
        for prompt, request, reply in ask(ctx, role, asked, f"{ctx.name}: {source}", total):
            usage = {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
            provenance = {**reply.provenance, "sampling": asdict(request.sampling), **({"error": reply.error} if reply.error else {})}
            generation = Generation(prompt.id, source, reply.index, reply.text, reply.finish_reason, usage, provenance)
            out.write("generations", generation)
            try:
                record = to_record(prompt, generation, templates[prompt.kind], reply.error)
            except Rejected as reason:
                ctx.ledger.reject(str(reason))
                answers.add(prompt.kind, reply.provenance.get("model", source), str(reason))
                out.write("rejected", {"generation_id": generation.id, "prompt_id": prompt.id, "kind": prompt.kind, "reason": str(reason), "text": reply.text})
                continue
            ctx.ledger.accepted += 1
            answers.add(prompt.kind, reply.provenance.get("model", source), record.parsed_by)
            measures.add(record, prompt)
            if watch:
                watch(record, prompt)
            out.write("records", record)
            count += 1
    note_quality(ctx, source, measures.result(), answers.result())
    return count


def note_quality(ctx: Context, source: str, *measured: dict[str, Any]) -> None:
    """Put what was measured into the ledger and show its alarms; nothing is said where there was nothing to measure."""
    found = merge(*measured)
    if len(found) == 1:
        return
    ctx.ledger.notes.setdefault("quality", {})[source] = found
    show(f"{ctx.name}, {source}" if source != ctx.name else source, found, ctx.config.get("quality"))


def to_record(prompt: Prompt, generation: Generation, template: Template, error: str = "") -> Record:
    """Parse one generation.

    Raises:
        Rejected: with a reason code.
    """
    if error:
        raise Rejected(f"no_answer:{error}")
    parsed = parse_record(generation.text, prompt.keys, generation.finish_reason)
    return make_record(prompt, template, parsed.fields, generation.id, parsed.parsed_by, generation.source, generation.index)


def make_record(prompt: Prompt, template: Template, fields: dict[str, str], generation_id: str, parsed_by: str, source: str, index: int) -> Record:
    """A record with query, positive and negatives read from its fields."""
    query, positive, negative = (template.key_of(role) for role in ("query", "positive", "negative"))
    assert query is not None and positive is not None  # the loader has checked this
    negatives = [fields[negative]] if negative else []
    instruction = template.instruction_for(prompt.task)
    return Record(generation_id, prompt.id, prompt.kind, instruction, fields, fields[query], fields[positive], negatives, parsed_by, source, index)


class Outputs:
    """Several JSON-lines files written side by side; all take their place at the end, or none."""

    def __init__(self, folder: Path, *names: str, suffix: str = "") -> None:
        self._paths = {name: folder / f"{name}{suffix}.jsonl" for name in names}
        self._stack = ExitStack()

    def __enter__(self) -> Outputs:
        self._streams = {name: self._stack.enter_context(atomic(path)) for name, path in self._paths.items()}
        return self

    def write(self, name: str, row: Row | dict[str, Any]) -> None:
        """Append one row."""
        self._streams[name].write(canonical_json(row.to_json() if isinstance(row, Row) else row) + "\n")

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
