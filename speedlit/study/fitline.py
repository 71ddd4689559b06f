"""The line score = a + b log10 N: least squares, Student interval of b, R2, a test of curvature, and the sizes for which it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speedlit.errors import UsageError

LEVEL = 0.95
LEAST = 3  # sizes that a line is judged by: two always lie on one


@dataclass(frozen=True)
class Line:
    """score = ``a`` + ``b`` log10 N.

    Attributes:
        low: lower end of the 95 % Student interval of b; ``high`` is the upper one.
        r2: share of the scores' variance that the line explains.
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


def fit_line(sizes: Sequence[int], scores: Sequence[float]) -> Line:
    """Ordinary least squares over cells; each is a size and the score that one model got.

    Raises:
        UsageError: lists of different lengths, a value that cannot be, or fewer than two sizes.
    """
    from scipy.stats import t

    x, y = np.log10(np.asarray(sizes, dtype=np.float64)), np.asarray(scores, dtype=np.float64)
    if len(x) != len(y) or not np.isfinite(x).all() or not np.isfinite(y).all():
        raise UsageError("a line needs one finite score per size, and sizes above 0")
    if len(np.unique(x)) < 2:
        raise UsageError("a line needs two sizes at least: give study.sizes more of them")
    beta, variance, left = least_squares(x, y, 1)
    free = len(x) - 2
    half = float(t.ppf((1 + LEVEL) / 2, free) * np.sqrt(variance[1])) if free else np.inf
    total = float(((y - y.mean()) ** 2).sum())
    centre = float(x.mean())
    slope = float(beta[1])
    return Line(
        float(beta[0]) - slope * centre,
        slope,
        slope - half,
        slope + half,
        1 - left / total if total > 0 else 1.0,
        curvature(x, y),
        int(min(sizes)),
        int(max(sizes)),
        len(x),
    )


def least_squares(x: np.ndarray, y: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients of the polynomial in x - mean(x), their variances, and the sum of squares that is left."""
    design = np.vander(x - x.mean(), degree + 1, increasing=True)
    beta = np.linalg.lstsq(design, y, rcond=None)[0]
    left = float(((y - design @ beta) ** 2).sum())
    free = len(y) - degree - 1
    variance = np.diag(np.linalg.inv(design.T @ design)) * (left / free if free else np.inf)
    return beta, variance, left


def curvature(x: np.ndarray, y: np.ndarray) -> float | None:
    """The p-value of a quadratic term; None where it cannot be tested."""
    from scipy.stats import t

    free = len(x) - 3
    if len(np.unique(x)) < LEAST or free < 1:
        return None
    beta, variance, left = least_squares(x, y, 2)
    if left <= 1e-20 * max(float((y**2).sum()), 1e-300):  # no noise at all: the term is there or it is not
        return 0.0 if abs(beta[2]) > 1e-9 * max(float(np.abs(y).max()), 1e-300) else 1.0
    return float(2 * t.sf(abs(beta[2]) / np.sqrt(variance[2]), free))


def reach(sizes: Sequence[int], scores: Sequence[float]) -> Line | None:
    """The line over the longest run of neighbouring sizes, three at least, for which the law holds; of equally long ones the one with the largest sizes.

    Several runs are tried, so the one that is found was chosen: its p-value flatters.
    """
    known = sorted(set(sizes))
    for length in range(len(known), LEAST - 1, -1):
        for start in range(len(known) - length, -1, -1):
            inside = [(n, s) for n, s in zip(sizes, scores, strict=True) if known[start] <= n <= known[start + length - 1]]
            line = fit_line([n for n, _ in inside], [s for _, s in inside])
            if line.holds:
                return line
    return None
