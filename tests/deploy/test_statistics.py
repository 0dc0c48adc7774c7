"""Statistics against published values, closed forms and brute-force enumeration."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardbit_deploy import sample_size, statistics
from hardbit_deploy.distributions import binomial_cdf

Z_95 = 1.959963984540054


# --- intervals of one rate --------------------------------------------------------------------------------------------


def test_wilson_reproduces_newcombe_1998_table_i() -> None:
    """Newcombe, Statistics in Medicine 17 (1998) 857, example of 81 in 263 and 15 in 148."""
    assert statistics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert statistics.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_clopper_pearson_reproduces_newcombe_1998_table_i() -> None:
    assert statistics.clopper_pearson(81, 263) == pytest.approx((0.2527, 0.3676), abs=5e-5)
    assert statistics.clopper_pearson(15, 148) == pytest.approx((0.0578, 0.1617), abs=5e-5)
    assert statistics.clopper_pearson(1, 29) == pytest.approx((0.0009, 0.1776), abs=5e-5)


@pytest.mark.parametrize("trials", [1, 20, 10_000])
def test_at_the_ends_both_intervals_are_the_exact_one(trials: int) -> None:
    high = 1 - 0.025 ** (1 / trials)
    for interval in (statistics.wilson_interval, statistics.clopper_pearson):
        assert interval(0, trials) == pytest.approx((0.0, high), abs=1e-12)
        assert interval(trials, trials) == pytest.approx((1 - high, 1.0), abs=1e-12)


def test_no_flip_among_ten_thousand_means_less_than_three_in_ten_thousand() -> None:
    assert statistics.clopper_pearson_upper(0, 10_000) == pytest.approx(2.995e-4, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(trials=st.integers(1, 40), data=st.data())
def test_binomial_cdf_is_the_sum_of_its_terms(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    rate = Fraction(data.draw(st.integers(0, 100)), 100)
    exact = sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(successes + 1))
    assert binomial_cdf(successes, trials, float(rate)) == pytest.approx(float(exact), abs=1e-12)


def test_binomial_cdf_holds_for_a_million_trials() -> None:
    """Half of the mass lies below the middle, less half of the central term (Stirling: 1/sqrt(pi n/2))."""
    trials = 1_000_000
    central = math.exp(math.lgamma(trials + 1) - 2 * math.lgamma(trials / 2 + 1) + trials * math.log(0.5))
    assert binomial_cdf(trials // 2, trials, 0.5) == pytest.approx(0.5 + central / 2, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(trials=st.integers(1, 300), data=st.data())
def test_wilson_bounds_are_where_the_score_test_turns(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(1, max(1, trials - 1)))
    if successes == trials:
        return
    for bound in statistics.wilson_interval(successes, trials):
        score = (successes / trials - bound) / math.sqrt(bound * (1 - bound) / trials)
        assert abs(score) == pytest.approx(Z_95, rel=1e-9)


def test_clopper_pearson_covers_at_least_as_often_as_it_says_and_wilson_nearly() -> None:
    trials = 40
    exact = [statistics.clopper_pearson(k, trials) for k in range(trials + 1)]
    wilson = [statistics.wilson_interval(k, trials) for k in range(trials + 1)]
    coverages = {"exact": [], "wilson": []}
    for rate in np.linspace(0.005, 0.995, 199):
        mass = [math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(trials + 1)]
        for name, intervals in (("exact", exact), ("wilson", wilson)):
            coverages[name].append(
                sum(m for m, (low, high) in zip(mass, intervals, strict=True) if low <= rate <= high)
            )
    assert min(coverages["exact"]) >= 0.95
    assert np.mean(coverages["wilson"]) == pytest.approx(0.95, abs=0.01)
    assert min(coverages["wilson"]) > 0.83


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="are no count"):
        statistics.wilson_interval(successes, trials)


# --- paired outcomes --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(lost=st.integers(0, 12), gained=st.integers(0, 12))
def test_mcnemar_counts_the_coin_sequences_that_are_at_least_as_lopsided(lost: int, gained: int) -> None:
    discordant = lost + gained
    sequences = sum(
        math.comb(discordant, heads)
        for heads in range(discordant + 1)
        if abs(2 * heads - discordant) >= abs(gained - lost)
    )
    assert statistics.mcnemar_exact(lost, gained) == pytest.approx(min(1.0, sequences / 2**discordant))


def test_tango_and_mcnemar_reproduce_fagerland_2014() -> None:
    """Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014) 2850: airway reactivity, table [[1, 1], [7, 12]]."""
    assert statistics.tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert statistics.mcnemar_exact(7, 1) == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("gained", "lost", "images"), [(9, 4, 30), (0, 3, 25), (20, 20, 100), (1, 0, 12)])
def test_tango_bounds_agree_with_a_likelihood_maximised_by_search(gained: int, lost: int, images: int) -> None:
    """At a bound the score test with the nuisance parameter found by brute force is exactly at its critical value."""
    for bound in statistics.tango_interval(gained, lost, images):
        p_lost = np.linspace(max(0.0, -bound), min(1.0, (1 - bound) / 2), 400_001)[1:-1]
        p_gained = p_lost + bound
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = (images - gained - lost) * np.log(1 - p_lost - p_gained)
            if lost:
                likelihood = likelihood + lost * np.log(p_lost)
            if gained:
                likelihood = likelihood + gained * np.log(p_gained)
        best = p_lost[np.nanargmax(likelihood)]
        variance = (2 * best + bound - bound**2) / images
        assert abs((gained - lost) / images - bound) / math.sqrt(variance) == pytest.approx(Z_95, abs=2e-3)


@settings(max_examples=50, deadline=None)
@given(images=st.integers(1, 60), data=st.data())
def test_tango_interval_holds_its_estimate_and_mirrors(images: int, data: st.DataObject) -> None:
    gained = data.draw(st.integers(0, images))
    lost = data.draw(st.integers(0, images - gained))
    low, high = statistics.tango_interval(gained, lost, images)
    assert -1 <= low <= (gained - lost) / images + 1e-12
    assert (gained - lost) / images - 1e-12 <= high <= 1
    assert statistics.tango_interval(lost, gained, images) == pytest.approx((-high, -low), abs=1e-9)


def test_compare_paired_counts_each_direction() -> None:
    baseline = np.array([True, True, True, False, False, True])
    candidate = np.array([True, False, False, True, False, True])
    comparison = statistics.compare_paired(baseline, candidate)
    assert (comparison.lost, comparison.gained, comparison.images) == (2, 1, 6)
    assert comparison.difference == pytest.approx(-1 / 6)
    assert comparison.discordance == pytest.approx(0.5)
    with pytest.raises(ValueError, match="one entry per image"):
        statistics.compare_paired(baseline, candidate[:-1])


def test_holm_reproduces_a_worked_example() -> None:
    """Step-down by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, then never below the one before."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []


# --- what a test can see ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("discordance", "images"), [(0.02, 1570), (0.05, 3920), (0.10, 7850)])
def test_a_paired_test_sees_one_point_with_so_many_images(discordance: float, images: int) -> None:
    assert round(sample_size.images_needed_paired(discordance, 0.01), -1) == images


def test_the_unpaired_test_needs_ten_times_as_many() -> None:
    """At rates about 55 %, where INT8 networks of the literature stand."""
    assert round(sample_size.images_needed_unpaired(0.56, 0.55), -2) == 38_800


def test_a_thousand_images_see_one_to_three_points() -> None:
    assert sample_size.visible_difference(1000, 0.02) == pytest.approx(0.013, abs=5e-4)
    assert sample_size.visible_difference(1000, 0.10) == pytest.approx(0.028, abs=5e-4)


@given(discordance=st.floats(0.01, 1.0), images=st.integers(100, 100_000))
def test_visible_difference_inverts_images_needed(discordance: float, images: int) -> None:
    drop = sample_size.visible_difference(images, discordance)
    if drop < discordance:
        assert sample_size.images_needed_paired(discordance, drop * (1 + 1e-9)) == pytest.approx(images, abs=1)


def test_images_needed_for_mcnemar_have_the_power_that_they_promise() -> None:
    """Power by enumeration of the discordant counts; the exact test is a little less powerful than its formula."""
    discordance, drop = 0.10, 0.05
    images = sample_size.images_needed_paired(discordance, drop)
    p_lost = (discordance + drop) / 2 / discordance
    power = 0.0
    for discordant in range(images + 1):
        weight = binomial_cdf(discordant, images, discordance)
        weight -= binomial_cdf(discordant - 1, images, discordance)
        if weight < 1e-9:
            continue
        for lost in range(discordant + 1):
            if lost * 2 > discordant and statistics.mcnemar_exact(lost, discordant - lost) < 0.05:
                mass = math.comb(discordant, lost) * p_lost**lost * (1 - p_lost) ** (discordant - lost)
                power += weight * mass
    assert power == pytest.approx(0.80, abs=0.05)


@pytest.mark.parametrize(("reference", "margin"), [(0.66, 0.05), (0.9, 0.03), (0.5, 0.04)])
def test_images_needed_for_a_rate_have_the_power_that_they_promise(reference: float, margin: float) -> None:
    images = sample_size.images_needed_rate(reference, margin)
    decided = np.array(
        [
            statistics.noninferiority_rate(k, images, reference, margin).status == "pass"
            for k in range(int(images * (reference - 3 * margin)), images + 1)
        ]
    )
    fewest = int(images * (reference - 3 * margin)) + int(np.argmax(decided))  # passing begins here
    power = 1 - binomial_cdf(fewest - 1, images, reference)
    wrongly = 1 - binomial_cdf(fewest - 1, images, reference - margin)
    assert power == pytest.approx(0.80, abs=0.02)
    assert wrongly == pytest.approx(0.05, abs=0.012)


def test_images_needed_for_a_promise_of_perfection_are_exact() -> None:
    needed = sample_size.images_needed_rate(1.0, 0.01)
    assert needed == 299
    assert statistics.noninferiority_rate(needed, needed, 1.0, 0.01).status == "pass"
    assert statistics.noninferiority_rate(needed - 1, needed - 1, 1.0, 0.01).status == "inconclusive"


# --- gates ------------------------------------------------------------------------------------------------------------


def test_a_margin_of_one_point_is_not_visible_with_two_hundred_images() -> None:
    result = statistics.noninferiority_rate(132, 200, reference=0.66, margin=0.01)
    assert result.status == "inconclusive"
    assert result.lower_bound < result.line < result.upper_bound
    assert result.images_needed == sample_size.images_needed_rate(0.66, 0.01) == 14_001


def test_a_large_effect_decides_in_spite_of_few_images() -> None:
    assert statistics.noninferiority_rate(190, 200, reference=0.66, margin=0.01).status == "pass"
    assert statistics.noninferiority_rate(20, 200, reference=0.66, margin=0.01).status == "fail"


def test_enough_images_on_the_line_itself_ask_for_what_the_estimate_needs() -> None:
    on_the_line = statistics.noninferiority_rate(13_000, 20_000, reference=0.66, margin=0.01)
    assert on_the_line.status == "inconclusive"
    assert on_the_line.images_needed is None
    rounded = statistics.noninferiority_rate(18_600, 20_000, reference=0.95, margin=0.02)  # 0.95 - 0.02 < 0.93
    assert (rounded.status, rounded.images_needed) == ("inconclusive", None)
    near = statistics.noninferiority_rate(13_040, 20_000, reference=0.66, margin=0.01)
    assert near.status == "inconclusive"
    assert near.images_needed is not None
    assert near.images_needed > 20_000


def test_two_equal_systems_pass_a_paired_gate_with_few_images() -> None:
    """The pairing is worth a factor of 25 here: 560 images instead of 14,000."""
    baseline = np.zeros(2000, bool)
    baseline[:1320] = True
    candidate = baseline.copy()
    candidate[[0, 1, 2, 3]] = False
    candidate[[1500, 1501, 1502]] = True
    result = statistics.noninferiority_paired(statistics.compare_paired(baseline, candidate), margin=0.01)
    assert result.status == "pass"
    assert result.estimate == pytest.approx(-0.0005)
    candidate[4:80] = False
    assert statistics.noninferiority_paired(statistics.compare_paired(baseline, candidate), 0.01).status == "fail"


def test_an_undecided_paired_gate_says_how_many_images_it_needs() -> None:
    baseline = np.ones(200, bool)
    candidate = baseline.copy()
    candidate[:3] = False
    baseline[3:6] = False
    result = statistics.noninferiority_paired(statistics.compare_paired(baseline, candidate), margin=0.01)
    assert result.status == "inconclusive"
    assert result.images_needed == sample_size.images_needed_paired_noninferiority(0.03, 0.01) == 1855


# --- timings ----------------------------------------------------------------------------------------------------------


def test_bootstrap_enumerates_the_resamples_of_two_processes() -> None:
    """Two processes give four equally likely resamples: the extremes are the pure ones."""
    slow, fast = np.full(100, 3.0), np.full(100, 1.0)
    low, high = statistics.bootstrap_over_processes([slow, fast], lambda pooled: float(np.median(pooled)))
    assert (low, high) == (1.0, 3.0)


def test_bootstrap_over_processes_is_wider_than_over_queries_when_processes_differ() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(1 + 0.1 * shift, 0.01, 500) for shift in range(5)]
    low, high = statistics.bootstrap_over_processes(samples, lambda pooled: float(np.median(pooled)))
    assert high - low > 0.1
    assert low < 1.2 < high


def test_bootstrap_medians_match_exhaustive_resampling_of_three_processes() -> None:
    samples = [np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0]), np.array([5.0, 6.0, 7.0])]
    medians = [float(np.median(np.concatenate(draw))) for draw in product(samples, repeat=3)]
    expected = np.quantile(medians, [0.1, 0.9])
    found = statistics.bootstrap_over_processes(
        samples, lambda pooled: float(np.median(pooled)), confidence=0.8, resamples=20_000
    )
    assert found == pytest.approx(expected, abs=0.51)
