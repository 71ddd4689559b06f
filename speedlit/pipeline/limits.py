"""Where the numbers of a run config may lie: no type forbids null, NaN, or a negative temperature."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

MOST = 10**12  # no count, second or token of a run is larger; beyond, arithmetic of machine words begins to fail
FROM_0 = (0, math.inf)
FROM_1 = (1, math.inf)
SHARE = (0, 1)
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # what numpy and torch take
    "threads": (1, 1024),
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
    "plan.usd_per_hour": FROM_0,
    "plan.latency_us": FROM_0,
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
    """One line per key that is null though it needs a value."""
    return [f"{key} is null; give a value, or leave the key out to take the default" for key, value, free in leaves(config) if value is None and not free]


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
    low, high = LIMITS.get(key, (-math.inf, math.inf))
    if not math.isfinite(value):
        return [f"{key} is {value}; it must be a finite number"]
    if value < low:
        return [f"{key} is {value}; it must be at least {low}"]
    if value > min(high, MOST):
        return [f"{key} is {value:.6g}; it must be at most {min(high, MOST)}"]
    return []
