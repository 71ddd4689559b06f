"""Batched sampling from a trained model folder, with the interface of the HTTP client.

Tokens are drawn by the Gumbel-max rule. The noise is a hash of (request id, sample index, seed), the step and the token, so a sample
does not depend on what else is in its batch, on the order of work or on the number of processes (but for rounding: the same batch
gives the same bits).

The decode loop is written out because it is faster than ``generate`` for small models: equal prompts are read once, the cache grows
in place, and finished rows leave the batch.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from speedlit.context import Reply, Request
from speedlit.errors import SpeedlitError
from speedlit.generation.grammar import Constraint, Grammars
from speedlit.models.folder import load_folder
from speedlit.workers import begin_worker

WINDOW = 1024  # requests that are sorted by length together
GROW = 32  # token places that are added to a cache at a time
COMPACT = 0.75  # finished rows leave once fewer than this share is alive
GOLDEN, MIX_1, MIX_2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # SplitMix64's constants, signed


@dataclass(frozen=True)
class Row:
    """One sample to draw: prompt token ids, the key of its noise (64 bits, signed), how it is drawn, and the schema it is kept to."""

    ids: tuple[int, ...]
    key: int
    temperature: float
    top_p: float
    max_tokens: int
    schema: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, request: Request, ids: Sequence[int]) -> Row:
        """The row of a request whose prompt has these token ids."""
        s = request.sampling
        digest = hashlib.sha256(f"{request.id}:{request.index}:{s.seed}".encode()).digest()
        return cls(tuple(ids), int.from_bytes(digest[:8], "big", signed=True), s.temperature, s.top_p, s.max_tokens, request.schema)


@dataclass(frozen=True)
class Drawn:
    """What came out of one row; ``finish_reason`` is ``stop``, ``length`` or ``prompt_too_long``."""

    text: str
    tokens: int
    finish_reason: str


Result = Callable[[], "list[tuple[Drawn, int]]"]  # of one batch: what was drawn, and the token count of each prompt


class LocalBackend:
    """A writer that is a local model.

    Args:
        model_folder: a finished stage's ``model`` folder, or any Hugging Face folder.
        batch_size: rows per forward pass.
        processes: worker processes with one torch thread each; 1, or little to do, works in this process.
        dtype: ``float32`` or ``bfloat16``.
        device: such as ``cuda``; None takes a GPU where there is one.
        window: requests that are bucketed by length together; results come in order, window by window.
    """

    def __init__(
        self, model_folder: Path | str, batch_size: int = 64, processes: int = 1, dtype: str = "float32", device: str | None = None, window: int = WINDOW
    ) -> None:
        self.folder, self.batch_size, self.processes, self.window = str(model_folder), batch_size, processes, window
        self._load = (self.folder, dtype, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._writer: Writer | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._provenance = {"backend": "local", "model": os.path.relpath(self.folder, Path(self.folder).parent.parent), "dtype": dtype}

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer every request, in order.

        Raises:
            SpeedlitError: a worker died.
        """
        source = iter(requests)
        windows = iter(lambda: list(itertools.islice(source, self.window)), [])
        first = list(itertools.islice(windows, 2))
        parallel = self.processes > 1 and len(first) == 2  # one window is done before the workers have started
        waiting: deque[tuple[list[Request], list[list[int]], list[Result]]] = deque()
        for window in itertools.chain(first, windows):
            batches = self._buckets(window)
            waiting.append((window, batches, [self._start([window[i] for i in batch], parallel) for batch in batches]))
            if len(waiting) > parallel:
                yield from self._collect(*waiting.popleft())
        while waiting:
            yield from self._collect(*waiting.popleft())

    def close(self) -> None:
        """End the workers and free the model."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._writer = None

    def _buckets(self, window: Sequence[Request]) -> list[list[int]]:
        """Positions of the window, longest prompts first, cut into batches of one way of sampling."""
        order = sorted(range(len(window)), key=lambda i: (repr(_way(window[i])), -len(_prompt(window[i])), _prompt(window[i]), i))
        batches = []
        for _, group in itertools.groupby(order, key=lambda i: _way(window[i])):
            rows = list(group)
            batches += [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        return batches

    def _start(self, batch: list[Request], parallel: bool) -> Result:
        """Begin one batch in a worker, or put it off until its result is wanted."""
        if not parallel:
            if self._writer is None:
                self._writer = Writer(*self._load)
            return partial(self._writer.write, batch)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_begin_worker, initargs=self._load)
        return self._pool.submit(_work, batch).result

    def _collect(self, window: Sequence[Request], batches: Sequence[Sequence[int]], results: Sequence[Result]) -> Iterator[Reply]:
        found: dict[int, tuple[Drawn, int]] = {}
        try:
            for batch, result in zip(batches, results, strict=True):
                found.update(zip(batch, result(), strict=True))
        except BrokenProcessPool as error:
            text = f"a worker that samples from {self.folder} died, most likely for want of memory: lower sampling.batch_size or sampling.processes"
            raise SpeedlitError(text) from error
        for i, request in enumerate(window):
            drawn, prompt_tokens = found[i]
            fault = drawn.finish_reason if drawn.finish_reason == "prompt_too_long" else ""
            yield Reply(request.id, request.index, drawn.text, drawn.finish_reason, prompt_tokens, drawn.tokens, False, fault, self._provenance)


def _way(request: Request) -> tuple[float, float, int]:
    return request.sampling.temperature, request.sampling.top_p, request.sampling.max_tokens


def _prompt(request: Request) -> str:
    return request.messages[-1]["content"]


class Writer:
    """A loaded model that draws batches."""

    def __init__(self, folder: str, dtype: str, device: str) -> None:
        loaded = load_folder(folder, dtype=getattr(torch, dtype))
        self.model = loaded.model.to(device).eval()
        if device == "cpu":  # torch's fused CPU kernel takes three times as long as plain products when there is one query
            self.model.set_attn_implementation("eager")
        self.tokenizer, self.contract, self.device = loaded.tokenizer, loaded.tokens, device
        self.stops = torch.tensor(sorted(end_tokens(loaded.model, loaded.tokenizer)), device=device)
        self.limit = getattr(loaded.model.config, "max_position_embeddings", None) or 1 << 30
        self.keeps_last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(loaded.model.forward).parameters else {}
        self._ids: dict[str, tuple[int, ...]] = {}
        self._grammars: Grammars | None = None

    def write(self, batch: Sequence[Request]) -> list[tuple[Drawn, int]]:
        """Draw the samples of some requests; returns them with the token counts of their prompts."""
        rows = [Row.of(request, self._encode(_prompt(request))) for request in batch]
        fits = [i for i, row in enumerate(rows) if len(row.ids) < self.limit]
        drawn = dict(zip(fits, self.draw([rows[i] for i in fits]), strict=True)) if fits else {}
        return [(drawn.get(i, Drawn("", 0, "prompt_too_long")), len(row.ids)) for i, row in enumerate(rows)]

    def _encode(self, prompt: str) -> tuple[int, ...]:
        """Token ids by the model's own token contract; samples of one prompt follow each other, so a small memory will do."""
        if prompt not in self._ids:
            if len(self._ids) > 64:
                self._ids.clear()
            self._ids[prompt] = tuple(self.contract.encode_prompt(self.tokenizer, prompt))
        return self._ids[prompt]

    @torch.inference_mode()
    def draw(self, rows: Sequence[Row]) -> list[Drawn]:
        """Draw one sample per row; all rows share temperature, top_p and token limit."""
        way, longest = rows[0], max(len(row.ids) for row in rows)
        steps = max(min(way.max_tokens, self.limit - longest), 1)
        keys = torch.tensor([row.key for row in rows], device=self.device)
        cache, mask, logits = self._read(rows, longest)
        out = torch.full((len(rows), steps), -1, dtype=torch.long, device=self.device)
        where = torch.arange(len(rows), device=self.device)  # batch place -> row
        alive = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        constraint = self._constraint(rows, logits.shape[-1])
        for step in range(steps):
            if constraint is not None:
                logits = constraint.mask(logits, where.tolist())
            token = pick(logits, keys[where], step, way.temperature, way.top_p)
            out[where[alive], step] = token[alive]
            if constraint is not None:
                constraint.take(where[alive].tolist(), token[alive].tolist())
            alive &= ~torch.isin(token, self.stops)
            count = int(alive.sum())
            if count == 0 or step + 1 == steps:
                break
            if count < COMPACT * len(where):
                where, token, mask = where[alive], token[alive], mask[alive]
                cache.batch_select_indices(alive.nonzero()[:, 0])
                alive = alive[alive]
            mask = torch.cat([mask, mask.new_ones(len(where), 1)], dim=1)
            position = mask.sum(1, keepdim=True) - 1
            logits = self.model(
                input_ids=token[:, None], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True, **self.keeps_last
            ).logits[:, -1]
        return [self._finish(row) for row in out.tolist()]

    def _read(self, rows: Sequence[Row], longest: int) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Read the prompts, each distinct one once.

        Returns:
            The cache, the mask [rows, longest] (padding on the left) and the next token's logits [rows, vocabulary].
        """
        distinct = list(dict.fromkeys(row.ids for row in rows))
        place = {ids: i for i, ids in enumerate(distinct)}
        ids = torch.tensor([[0] * (longest - len(r)) + list(r) for r in distinct], device=self.device)
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in distinct], device=self.device)
        cache = growing_cache(self.model.config)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True, **self.keeps_last).logits[:, -1]
        index = torch.tensor([place[row.ids] for row in rows], device=self.device)
        if len(distinct) < len(rows):
            cache.batch_select_indices(index)
        return cache, mask[index], logits[index]

    def _constraint(self, rows: Sequence[Row], size: int) -> Constraint | None:
        """What keeps these rows to their schemas, where they have any."""
        if all(row.schema is None for row in rows):
            return None
        if self._grammars is None:
            self._grammars = Grammars(self.tokenizer, size, self.stops.tolist())
        return self._grammars.constraint([row.schema for row in rows])

    def _finish(self, tokens: list[int]) -> Drawn:
        """Text of a row that ends at a stop token, or at the token limit."""
        stops = set(self.stops.tolist())
        end = next((i for i, token in enumerate(tokens) if token in stops or token < 0), len(tokens))
        stopped = end < len(tokens) and tokens[end] in stops
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Drawn(text, end + stopped, "stop" if stopped else "length")


def pick(logits: torch.Tensor, keys: torch.Tensor, step: int, temperature: float, top_p: float) -> torch.Tensor:
    """The next token of each row.

    Args:
        logits: [rows, vocabulary].
        keys: the rows' keys, int64.
        step: how many tokens were drawn before.
        temperature: 0 takes the most likely token.
        top_p: only the most likely tokens that together reach this probability can be drawn.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_p < 1:
        ranked, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        probabilities = torch.softmax(ranked, -1)
        ranked = ranked.masked_fill(probabilities.cumsum(-1) - probabilities >= top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ranked)
    return (logits + gumbel(keys, step, logits.shape[-1])).argmax(-1)


def gumbel(keys: torch.Tensor, step: int, size: int) -> torch.Tensor:
    """Standard Gumbel noise [rows, size] as a function of (key, step, column): SplitMix64, 24 bits of it, in place for speed."""
    start = _mix(keys + _signed(step * GOLDEN))
    bits = _mix(start[:, None] + torch.arange(size, device=keys.device) * GOLDEN)
    uniform = bits.bitwise_right_shift_(40).float().add_(2.0**23).mul_(2.0**-24).clamp_(2.0**-25, 1 - 2.0**-24)  # never 0: infinite noise
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finisher on int64, in place; shifts are made logical by a mask."""
    shifted = torch.empty_like(z)
    for shift, factor in ((30, MIX_1), (27, MIX_2), (31, 1)):
        torch.bitwise_right_shift(z, shift, out=shifted)
        shifted.bitwise_and_((1 << (64 - shift)) - 1)
        z.bitwise_xor_(shifted)
        if factor != 1:
            z.mul_(factor)
    return z


def _signed(value: int) -> int:
    """``value`` as a two's complement number of 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


class GrowingLayer(DynamicLayer):
    """A cache layer that grows by ``GROW`` places at a time instead of copying itself for each token.

    Keys and values are handed out with their free places, which the mask hides: they stay contiguous, and that is what makes a
    matrix product with one query fast on a CPU.
    """

    length = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Put states [rows, heads, tokens, size] after those that are there; returns all places."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        assert self.keys is not None and self.values is not None
        start, end = self.length, self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            places = end + GROW - self.keys.shape[-2]
            self.keys, self.values = (torch.nn.functional.pad(states, (0, 0, 0, places)) for states in (self.keys, self.values))
        self.keys[:, :, start:end], self.values[:, :, start:end] = key_states, value_states
        self.length = end
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens that are in."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Places that the next ``update`` will hand out, and the first one's position."""
        end = self.length + query_length
        there = self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0
        return (there if end <= there else end + GROW), 0


def growing_cache(config: Any) -> DynamicCache:
    """A cache for a model; layers of a special kind (sliding windows, states) stay what they are."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]  # type: ignore[no-untyped-call]
    return cache


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """All end-of-text ids that the model or its tokenizer names."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = configured if isinstance(configured, list) else [configured]
    return {token for token in [*named, tokenizer.eos_token_id] if token is not None}


_worker: Writer | None = None


def _begin_worker(folder: str, dtype: str, device: str) -> None:
    global _worker
    begin_worker()
    _worker = Writer(folder, dtype, device)


def _work(batch: Sequence[Request]) -> list[tuple[Drawn, int]]:
    assert _worker is not None
    return _worker.write(batch)
