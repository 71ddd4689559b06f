"""Where the values of a run config may lie: no type forbids null, NaN, a negative temperature, or an unknown choice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from importlib.util import find_spec
from typing import Any, get_args, get_type_hints

from speedlit.errors import UsageError
from speedlit.plugins import load
from speedlit.synthesis.wire import address

MOST = 10**12  # no count, second or token of a run is larger; beyond, arithmetic of machine words begins to fail
FROM_0 = (0, math.inf)
FROM_1 = (1, math.inf)
SHARE = (0, 1)
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # what numpy and torch take
    "threads": (1, 1024),
    "topics.depth": (2, math.inf),
    "tasks.per_topic": FROM_1,
    "counts.candidates": (2, math.inf),
    **{f"counts.{name}": FROM_1 for name in ("seed", "root", "preferences", "revisions", "synthesis")},
    **{f"counts.{name}": FROM_0 for name in ("validation", "test", "inspected")},
    "teacher.concurrency": FROM_1,
    "teacher.retries": FROM_0,
    "teacher.batch_requests": (1, 50_000),
    "teacher.patience": FROM_0,
    "teacher.temperature": FROM_0,
    "teacher.max_tokens": FROM_1,
    "teacher.embedded.writer_noise": SHARE,
    "teacher.embedded.judge_noise": SHARE,
    "teacher.embedded.critic_noise": SHARE,
    "teacher.embedded.world_seed": (0, 2**32 - 1),
    "sampling.temperature": FROM_0,
    "sampling.top_p": SHARE,
    "sampling.max_tokens": FROM_1,
    "sampling.batch_size": FROM_1,
    "sampling.processes": (1, 1024),
    "comparison.seeds": FROM_0,
    "comparison.processes": (1, 1024),
    "study.seeds": FROM_1,
    "study.steps": FROM_1,
    "study.triplets": FROM_1,
    "study.processes": (1, 1024),
    "filters.ngram": FROM_1,
    **{f"budget.{name}": FROM_0 for name in ("usd", "calls", "tokens")},
    "plan.usd_per_hour": FROM_0,
    "plan.latency_us": FROM_0,
}
ABOVE_0 = {  # key: the most it may be
    **dict.fromkeys(("teacher.batch_poll", "teacher.timeout", "teacher.requests_per_minute", "teacher.tokens_per_minute"), math.inf),
    **dict.fromkeys(("filters.minhash_threshold", "filters.negative_like_positive", "filters.copied_query", "plan.kept"), 1),
    **dict.fromkeys(("plan.product", "plan.utilisation"), 1),
    **{f"plan.{name}": math.inf for name in ("devices", "tflops", "tokens_per_second", "memory_gb")},
    **{f"plan.{name}": math.inf for name in ("gpus_per_node", "memory_gb_s", "link_gb_s", "network_gb_s")},
}
CHOICES: dict[str, tuple[str | None, ...]] = {
    "revision": ("full", "edits"),
    "revision_guard": ("likelihood", None),
    "teacher.mode": ("live", "batch"),
    "judge_swap": ("drop", "keep", None),
    "sampling.dtype": ("float32", "bfloat16"),
}
NAMES = ("name", "root", "base", "prompts", "teacher.model")  # texts that cannot be empty


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Each dotted key of nested dataclasses with its value and whether it may be null."""
    hints = get_type_hints(type(config))
    for item in fields(config):
        key, value = prefix + item.name, getattr(config, item.name)
        if is_dataclass(value):
            yield from leaves(value, key + ".")
        else:
            yield key, value, type(None) in get_args(hints[item.name])


def nulls(config: Any) -> list[str]:
    """The keys that are null though they need a value."""
    return [key for key, value, free in leaves(config) if value is None and not free]


def mistakes(config: Any) -> list[str]:
    """One line per value that no type can forbid, each beginning with its key; a config without nulls where a value is needed."""
    bad = strange(config)
    for key, value, _ in leaves(config):
        if key in CHOICES and value not in CHOICES[key]:
            bad.append(f"{key} is {value!r}; choose {' or '.join('null' if c is None else c for c in CHOICES[key])}")
    for name in ("test", "validation"):
        if not 0 <= (share := getattr(config.tasks, name)) < 1:
            bad.append(f"tasks.{name} is {share}; a share lies between 0 and 1")
    if config.tasks.test + config.tasks.validation >= 1:
        bad.append("tasks.test and tasks.validation together leave nothing to train on; lower one")
    if config.sampling.structured and find_spec("xgrammar") is None:
        bad.append("sampling.structured needs xgrammar: pip install 'speedlit[structured]', or set it to false")
    unknown = set(config.comparison.sources) - {"junior", "senior", "refined", "teacher"}
    if unknown:
        bad.append(f"comparison.sources has {', '.join(sorted(unknown))}; choose among junior, senior, refined, teacher")
    bad += plugged(config.teacher)
    for url in filter(None, (config.teacher.base_url, config.sampling.base_url)):
        try:
            address(url)
        except UsageError as error:
            bad.append(str(error))
    for model, price in config.prices.items():
        bad += [f"prices.{model}.{key} is {value}; it must be at least 0" for key, value in asdict(price).items() if value < 0]
    if config.budget.usd is not None and config.teacher.model not in config.prices:
        name = config.teacher.model
        bad.append(f"budget.usd needs a price: prices has no {name!r}; add `{name}: {{input: USD, output: USD}}` (per million tokens) to prices")
    return bad


def plugged(teacher: Any) -> list[str]:
    """What is wrong about a teacher that is no server."""
    if not teacher.backend:
        return ["teacher.settings are those of a teacher.backend, and none is named; name one, or leave them out"] if teacher.settings else []
    bad = []
    if teacher.base_url:
        bad.append(f"teacher.base_url names a server and teacher.backend {teacher.backend} none; leave one of them out")
    if teacher.mode == "batch":
        bad.append(f"teacher.mode is batch, which is an API of servers, and teacher.backend {teacher.backend} is none; set it to live")
    try:
        load(teacher.backend, "teacher.backend")
    except UsageError as error:
        bad.append(str(error))
    return bad


def strange(config: Any) -> list[str]:
    """One line per empty name, and per number that is not finite, huge, or outside its limits."""
    bad = []
    for key, value, _ in leaves(config):
        if key in NAMES and not str(value).strip():
            bad.append(f"{key} is empty; give a name, or leave the key out to take the default")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            bad += outside(key, value)
    for model, price in config.prices.items():
        bad += [line for key, value, _ in leaves(price, f"prices.{model}.") for line in outside(key, value)]
    return bad


def outside(key: str, value: float) -> list[str]:
    """What is wrong with one number, if anything."""
    low, high = LIMITS.get(key, (-math.inf, ABOVE_0.get(key, math.inf)))
    if not math.isfinite(value):
        return [f"{key} is {value}; it must be a finite number"]
    if key in ABOVE_0 and value <= 0:
        return [f"{key} is {value}; it must be above 0"]
    if value < low:
        return [f"{key} is {value}; it must be at least {low}"]
    if value > min(high, MOST):
        return [f"{key} is {value:.6g}; it must be at most {min(high, MOST)}"]
    return []
