import math

import numpy as np
import pytest

from speedlit.errors import UsageError
from speedlit.evaluation.bootstrap import Interval, cluster_bootstrap, describe_gain, paired_bootstrap, t_interval


def test_t_interval_of_known_values():
    got = t_interval([1.0, 2.0, 3.0])
    assert got.mean == 2.0
    assert math.isclose(got.high - got.mean, 4.302652729911275 / math.sqrt(3), rel_tol=1e-9)  # t(0.975, 2) * sd / sqrt(3)


def test_bootstrap_agrees_with_normal_theory():
    values = np.random.default_rng(1).normal(5, 2, size=900)
    got = cluster_bootstrap(values, draws=4000)
    half = 1.96 * values.std() / 30
    assert got.mean == pytest.approx(values.mean())
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.06)


def test_equal_values_in_a_cluster_count_once():
    base = np.random.default_rng(2).normal(size=60)
    single = cluster_bootstrap(base, draws=4000)
    copied = cluster_bootstrap(np.repeat(base, 10), np.repeat(np.arange(60), 10), draws=4000)
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high))
    naive = cluster_bootstrap(np.repeat(base, 10), draws=4000)
    assert (copied.high - copied.low) > 2.5 * (naive.high - naive.low)


def test_coverage_is_near_the_level():
    rng, hits = np.random.default_rng(3), 0
    for trial in range(200):
        effect = np.repeat(rng.normal(size=40), 5)
        values = effect + rng.normal(size=200)
        got = cluster_bootstrap(values, np.repeat(np.arange(40), 5), draws=400, seed=trial)
        hits += got.low <= 0 <= got.high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 10, size=300)
    after, before = hard + 0.5 + rng.normal(0, 0.1, 300), hard
    got = paired_bootstrap(after, before)
    assert got.low > 0.4 and got.verdict == "gain"


def test_the_same_seed_gives_the_same_interval():
    values = list(np.random.default_rng(5).random(50))
    assert cluster_bootstrap(values, seed=7) == cluster_bootstrap(values, seed=7)
    assert cluster_bootstrap(values, seed=7) != cluster_bootstrap(values, seed=8)


def test_verdicts():
    assert Interval(0.1, -0.05, 0.25, 10, 10).verdict == "no gain"
    assert Interval(0.1, 0.0, 0.25, 10, 10).verdict == "no gain"
    assert Interval(-0.1, -0.2, -0.01, 10, 10).verdict == "loss"
    assert describe_gain(Interval(0.1, -0.05, 0.25, 10, 10)) == "+0.100 [-0.050, +0.250]: no gain"
    assert describe_gain(Interval(0.1, 0.05, 0.25, 10, 10)) == "+0.100 [+0.050, +0.250]"


def test_one_cluster_or_seed_says_nothing():
    assert cluster_bootstrap([1.0, 1.0], ["a", "a"]).verdict == "no gain"
    assert t_interval([3.0]).verdict == "no gain"


@pytest.mark.parametrize("bad", [[], [float("nan")], [[1.0]]])
def test_unusable_values(bad):
    with pytest.raises(UsageError):
        cluster_bootstrap(bad)


def test_lengths_must_match():
    with pytest.raises(UsageError, match="2 values have 1 clusters"):
        cluster_bootstrap([1, 2], ["a"])
    with pytest.raises(UsageError, match="same items"):
        paired_bootstrap([1, 2], [1])
