"""The line score = a + b log10 N: least squares, Student interval of b, R2, a test of curvature, and the sizes for which it holds.

Seeds are blocks: each has a level of its own, which is taken out, since a lucky seed is lucky at every size. Where no blocks are given all cells are alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speedlit.errors import UsageError

LEVEL = 0.95
ROUNDING = 1e-12  # what of a score is no difference
LEAST = 3  # sizes that a line is judged by: two always lie on one


@dataclass(frozen=True)
class Line:
    """score = ``a`` + ``b`` log10 N.

    Attributes:
        low: lower end of the 95 % Student interval of b; ``high`` is the upper one.
        r2: share of the scores' variance within blocks that the line explains.
        p_curvature: chance of a quadratic term this large if there were none (t-test, the same as the F-test); None with fewer than three sizes, or
            with no more cells than the three terms need.
        first: smallest size; ``last`` is the largest, ``count`` how many scores.
    """

    a: float
    b: float
    low: float
    high: float
    r2: float
    p_curvature: float | None
    first: int
    last: int
    count: int

    @property
    def holds(self) -> bool:
        """Whether the law describes these sizes: b is above 0, and nothing speaks for a bend."""
        return self.low > 0 and self.p_curvature is not None and self.p_curvature >= 1 - LEVEL

    @property
    def verdict(self) -> str:
        """``holds``, or what speaks against it."""
        if self.low <= 0:
            return "no law: the interval of b holds 0" if self.high >= 0 else "no law: the score falls with N"
        if self.p_curvature is None:
            return "undecided: too few cells for a test of curvature"
        return "holds" if self.holds else "no law: the scores bend away from a line"

    def at(self, size: float) -> float:
        """The score that the line gives to a size."""
        return self.a + self.b * float(np.log10(size))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        ends = [end if np.isfinite(end) else None for end in (self.low, self.high)]
        plain = {name: getattr(self, name) for name in ("a", "b", "r2", "p_curvature", "first", "last", "count", "holds", "verdict")}
        return {**plain, "interval": ends}


def fit_line(sizes: Sequence[int], scores: Sequence[float], blocks: Sequence[Hashable] | None = None) -> Line:
    """Least squares over cells; each is a size, the score that one model got, and the block (seed) that it belongs to.

    Raises:
        UsageError: lists of different lengths, a value that cannot be, or fewer than two sizes.
    """
    from scipy.stats import t

    x, y = np.log10(np.asarray(sizes, dtype=np.float64)), np.asarray(scores, dtype=np.float64)
    if len(x) != len(y) or not np.isfinite(x).all() or not np.isfinite(y).all():
        raise UsageError("a line needs one finite score per size, and sizes above 0")
    if len(np.unique(x)) < 2:
        raise UsageError("a line needs two sizes at least: give study.sizes more of them")
    levels = levels_of(blocks, len(x))
    beta, variance, left, free = least_squares(x, y, 1, levels)
    total = least_squares(x, y, 0, levels)[2]
    half = float(t.ppf((1 + LEVEL) / 2, free) * np.sqrt(variance[1])) if free > 0 else np.inf
    slope = float(beta[1])
    return Line(
        float(beta[0]) - slope * float(x.mean()),
        slope,
        slope - half,
        slope + half,
        1 - left / total if total > 0 else 1.0,
        curvature(x, y, levels),
        int(min(sizes)),
        int(max(sizes)),
        len(x),
    )


def levels_of(blocks: Sequence[Hashable] | None, count: int) -> np.ndarray:
    """Columns (cells, blocks - 1) of mean 0 that let every block have its own level; the intercept stays the mean's."""
    names = list(dict.fromkeys(blocks or [0] * count))
    columns = np.array([[float(block == name) for name in names[1:]] for block in blocks or [0] * count]).reshape(count, len(names) - 1)
    centred: np.ndarray = columns - columns.mean(0)
    return centred


def least_squares(x: np.ndarray, y: np.ndarray, degree: int, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Coefficients of the polynomial in x - mean(x) and of the blocks' levels, their variances, the squares that are left, and degrees of freedom."""
    design = np.hstack([np.vander(x - x.mean(), degree + 1, increasing=True), levels])
    beta = np.linalg.lstsq(design, y, rcond=None)[0]
    left = float(((y - design @ beta) ** 2).sum())
    if left <= ROUNDING**2 * float((y**2).sum()):  # no noise: a slope of rounding errors alone, as equal scores leave one, would look like a law
        left, beta = 0.0, np.where(np.abs(beta) <= ROUNDING * np.abs(y).max(), 0.0, beta)
    free = len(y) - design.shape[1]
    variance = np.diag(np.linalg.pinv(design.T @ design)) * (left / free if free > 0 else np.inf)
    return beta, variance, left, free


def curvature(x: np.ndarray, y: np.ndarray, levels: np.ndarray) -> float | None:
    """The p-value of a quadratic term; None where it cannot be tested."""
    from scipy.stats import t

    beta, variance, left, free = least_squares(x, y, 2, levels)
    if len(np.unique(x)) < LEAST or free < 1:
        return None
    if left <= 1e-20 * max(float((y**2).sum()), 1e-300):  # no noise at all: the term is there or it is not
        return 0.0 if abs(beta[2]) > 1e-9 * max(float(np.abs(y).max()), 1e-300) else 1.0
    return float(2 * t.sf(abs(beta[2]) / np.sqrt(variance[2]), free))


def reach(sizes: Sequence[int], scores: Sequence[float], blocks: Sequence[Hashable] | None = None) -> Line | None:
    """The line over the longest run of neighbouring sizes, three at least, for which the law holds; of equally long ones the one with the largest sizes.

    Several runs are tried, so the one that is found was chosen: its p-value flatters.
    """
    known = sorted(set(sizes))
    for length in range(len(known), LEAST - 1, -1):
        for start in range(len(known) - length, -1, -1):
            inside = [i for i, n in enumerate(sizes) if known[start] <= n <= known[start + length - 1]]
            line = fit_line([sizes[i] for i in inside], [scores[i] for i in inside], [blocks[i] for i in inside] if blocks else None)
            if line.holds:
                return line
    return None
