"""The line through the scores: against scipy, and on laws that were planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import f, linregress, t

from speedlit.errors import UsageError
from speedlit.study.fitline import fit_line, reach

SIZES = np.repeat([125, 250, 500, 1000, 2000], 3)
LOG = np.log10(SIZES)


def noisy(truth: np.ndarray, seed: int, noise: float = 1.0) -> list[float]:
    return list(truth + np.random.default_rng(seed).normal(0, noise, len(truth)))


def test_line_and_interval_are_scipys() -> None:
    scores = noisy(20 + 15 * LOG, 1)
    mine, theirs = fit_line(list(SIZES), scores), linregress(LOG, scores)
    assert (mine.a, mine.b, mine.r2) == pytest.approx((theirs.intercept, theirs.slope, theirs.rvalue**2))
    half = t.ppf(0.975, len(SIZES) - 2) * theirs.stderr
    assert (mine.low, mine.high) == pytest.approx((theirs.slope - half, theirs.slope + half))
    assert mine.at(1000) == pytest.approx(theirs.intercept + 3 * theirs.slope)


def test_the_curvature_test_is_the_f_test() -> None:
    scores = np.asarray(noisy(20 + 15 * LOG, 2))
    one, two = (float(np.sum((scores - np.polyval(np.polyfit(LOG, scores, degree), LOG)) ** 2)) for degree in (1, 2))
    free = len(SIZES) - 3
    assert fit_line(list(SIZES), list(scores)).p_curvature == pytest.approx(f.sf((one - two) / (two / free), 1, free))


def test_a_planted_law_is_recovered_as_often_as_the_interval_promises() -> None:
    lines = [fit_line(list(SIZES), noisy(20 + 15 * LOG, seed)) for seed in range(300)]
    assert 0.91 < np.mean([line.low <= 15 <= line.high for line in lines]) < 0.985
    assert 0.91 < np.mean([line.verdict == "holds" for line in lines]) < 0.985, "a true line is refused in 5 % of the cases"


def test_a_seed_s_level_is_taken_out() -> None:
    seeds = [0, 1, 2] * 5
    truth = 20 + 15 * LOG + np.asarray([-6.0, 0.0, 6.0] * 5)
    scores = noisy(truth - 3 * (LOG - 2.7) ** 2, 4, 0.2)
    alike, blocked = fit_line(list(SIZES), scores), fit_line(list(SIZES), scores, seeds)
    assert (blocked.a, blocked.b) == pytest.approx((alike.a, alike.b)), "every seed has every size"
    assert blocked.high - blocked.low < (alike.high - alike.low) / 5
    assert alike.p_curvature is not None
    assert blocked.p_curvature is not None
    assert alike.p_curvature > 0.5 > 0.001 > blocked.p_curvature, "the bend was hidden behind the seeds"
    dummies = np.asarray([[float(seed == k) for k in range(3)] for seed in seeds])
    beta = np.linalg.lstsq(np.column_stack([LOG, dummies]), np.asarray(scores), rcond=None)[0]
    assert blocked.b == pytest.approx(beta[0])
    assert blocked.a == pytest.approx(beta[1:].mean())


def test_planted_curvature_is_detected_and_the_law_bounded() -> None:
    truth = 20 + 30 * np.minimum(LOG, np.log10(500))  # grows to 500, then stands still
    line = fit_line(list(SIZES), noisy(truth, 3, 0.5))
    assert line.p_curvature is not None
    assert line.p_curvature < 0.001
    assert line.verdict == "no law: the scores bend away from a line"
    within = reach(list(SIZES), noisy(truth, 3, 0.5))
    assert within is not None
    assert (within.first, within.last) == (125, 500)


def test_where_there_is_no_law_none_is_found() -> None:
    verdicts = [fit_line(list(SIZES), noisy(0 * LOG + 50, seed)).verdict for seed in range(200)]
    assert np.mean([v.startswith("no law: the interval") for v in verdicts]) > 0.9
    assert sum(v == "holds" for v in verdicts) <= 10, "2.5 % by chance"
    assert reach(list(SIZES), list(60 - 3 * LOG)) is None


def test_scores_without_noise() -> None:
    line = fit_line([10, 100, 1000, 10000], [1.0, 2.0, 3.0, 4.0])
    assert (line.a, line.b, line.r2) == pytest.approx((0, 1, 1))
    assert line.holds
    assert fit_line([10, 100, 1000, 10000], [1.0, 4.0, 9.0, 16.0]).p_curvature == 0


@pytest.mark.parametrize("score", [70.0, 33.333, 50.1, 100.0, 0.0])
def test_equal_scores_are_no_law(score: float) -> None:
    """Least squares leaves a slope of some 1e-15 there, and no noise that could speak against it."""
    for sizes in ([100, 200, 400], [64, 128, 256, 512, 1024], [10, 23, 57]):
        for seeds in (1, 2, 3, 5):
            line = fit_line(sizes * seeds, [score] * len(sizes) * seeds)
            assert line.verdict == "no law: the interval of b holds 0"
            assert (line.a, line.b) == (pytest.approx(score), 0)
            assert reach(sizes * seeds, [score] * len(sizes) * seeds) is None


def test_too_little_to_judge_says_so() -> None:
    line = fit_line([10, 100], [1.0, 2.0])
    assert line.p_curvature is None
    assert not line.holds
    assert line.to_json()["interval"] == [None, None]
    with pytest.raises(UsageError, match="two sizes"):
        fit_line([10, 10], [1.0, 2.0])
    with pytest.raises(UsageError, match="finite"):
        fit_line([10, 100], [1.0, float("nan")])
