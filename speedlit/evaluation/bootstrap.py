"""How sure a mean is: cluster bootstrap over prompts, Student interval over seeds, and the words for it.

Records of one topic resemble each other, so a bootstrap over single records would promise too much: whole clusters
(the cells of held-out prompts) are drawn instead. Few seeds are no population to draw from: there, Student's t.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speedlit.errors import UsageError


@dataclass(frozen=True)
class Interval:
    """A mean and its interval, in the unit of the values; ``n`` values in ``clusters`` clusters."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def verdict(self) -> str:
        """``gain``, ``loss``, or ``no gain`` where the interval contains zero. Meant for differences."""
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "no gain"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, as ``summary.json`` keeps them; an infinite end is None, which JSON can hold."""
        low, high = (end if np.isfinite(end) else None for end in (self.low, self.high))
        return {"mean": self.mean, "low": low, "high": high, "n": self.n, "clusters": self.clusters, "verdict": self.verdict}

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _finite(values: Sequence[float]) -> np.ndarray:
    """The values as float64, refused when there are none or one is not a number."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UsageError("an interval needs a flat list of at least one value")
    if not np.isfinite(array).all():
        raise UsageError("an interval needs finite values: drop or impute the missing ones first")
    return array


def cluster_bootstrap(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean over whole clusters (Davison & Hinkley 1997, 3.8).

    Args:
        values: one number per item, shape (N,).
        clusters: the cluster of each item, any hashable; None makes every item its own cluster.
        draws: bootstrap samples. Each draws as many clusters as there are, with replacement, and takes the mean of their items.
        level: coverage of the interval.
        seed: the same seed gives the same interval.

    Returns:
        The plain mean of all values with the interval of the resampled means. With one cluster the interval is infinite:
        nothing is known about the others.

    Raises:
        UsageError: no values, values that are not finite, or clusters of another length.
    """
    array = _finite(values)
    names = range(len(array)) if clusters is None else clusters
    if len(names) != len(array):
        raise UsageError(f"{len(array)} values have {len(names)} clusters: one cluster per value is needed")
    order: dict[Hashable, int] = {}
    member = np.fromiter((order.setdefault(name, len(order)) for name in names), dtype=np.int64, count=len(array))
    count = len(order)
    mean = float(array.mean())
    if count == 1:
        return Interval(mean, -np.inf, np.inf, len(array), 1)
    sums, sizes = np.bincount(member, array, minlength=count), np.bincount(member, minlength=count)
    picks = np.random.default_rng(seed).integers(count, size=(draws, count))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(array), count)


def paired_bootstrap(after: Sequence[float], before: Sequence[float], clusters: Sequence[Hashable] | None = None, **options: Any) -> Interval:
    """Interval of the mean of ``after - before``, item by item; options as in ``cluster_bootstrap``.

    Raises:
        UsageError: the two lists differ in length (they must hold the same items in the same order).
    """
    if len(after) != len(before):
        raise UsageError(f"a paired difference needs the same items on both sides, not {len(after)} and {len(before)}")
    return cluster_bootstrap(_finite(after) - _finite(before), clusters, **options)


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's interval of the mean of a few independent values, such as one score per seed.

    With a single value the interval is infinite.
    """
    from scipy.stats import t

    array = _finite(values)
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(mean, -np.inf, np.inf, 1, 1)
    half = float(t.ppf((1 + level) / 2, n - 1) * array.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, n)


def describe_gain(difference: Interval, unit: str = "", digits: int = 3) -> str:
    """The words for a difference: ``+0.120 [0.080, 0.160]`` or the same with ``: no gain`` behind it."""
    scale = f"{difference.mean:+.{digits}f} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]{unit}"
    return scale if difference.verdict == "gain" else f"{scale}: {difference.verdict}"
