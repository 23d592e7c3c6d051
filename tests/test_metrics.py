"""Metrics against scipy's and scikit-learn's own."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax
from scipy.stats import binomtest, norm
from sklearn.metrics import confusion_matrix, f1_score

from retrue import metrics

LABELS = ["negative", "neutral", "positive"]
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=60)


@given(PAIRS)
def test_quality_agrees_with_scikit_learn_and_scipy(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = [a for a, _ in pairs], [b for _, b in pairs]
    found = metrics.quality(truth, predicted, LABELS)
    assert found.confusion == confusion_matrix(truth, predicted, labels=LABELS).tolist()
    expected = f1_score(truth, predicted, labels=LABELS, average=None, zero_division=0)
    assert [found.f1[label] for label in LABELS] == pytest.approx(expected)
    assert found.f1_macro == pytest.approx(expected.mean())
    right = sum(a == b for a, b in pairs)
    exact = binomtest(right, len(pairs)).proportion_ci(0.95, method="exact")
    assert (found.n, found.accuracy) == (len(pairs), right / len(pairs))
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_one_class_alone_is_judged_without_a_warning() -> None:
    found = metrics.quality(["positive"] * 4, ["positive"] * 4, ["negative", "positive"])
    assert (found.accuracy, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 4))
    assert found.f1 == {"negative": 0.0, "positive": 1.0}


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([], [], "no labelled rows"),
        (["negative"], ["negative", "positive"], "one of each per row"),
        (["negative"], ["angry"], "not one of the given labels"),
        (["angry"], ["negative"], "not one of the given labels"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(truth: list[str], predicted: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.quality(truth, predicted, LABELS)


def test_an_interval_holds_the_true_share_at_least_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    for share, n in [(0.5, 20), (0.9, 100), (0.99, 400)]:
        intervals = [metrics.interval(int(k), n) for k in rng.binomial(n, share, 1000)]
        assert np.mean([low <= share <= high for low, high in intervals]) >= 0.95


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_a_share_that_is_none_has_no_interval(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        metrics.interval(successes, n)


def test_softmax_agrees_with_scipy_even_where_exp_would_overflow() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0], [-1e4, -1e4, -1e4], [0.1, 0.2, 0.3]])
    np.testing.assert_allclose(metrics.softmax(logits), scipy_softmax(logits, axis=1), rtol=1e-12)


def sample(seed: int, sharpness: float, classes: int = 3, n: int = 2000) -> tuple[Any, Any]:
    """Logits that are `sharpness` times as sure as the truth, which is drawn from them, is."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(scale=1.5, size=(n, classes))
    truth = (rng.random(n)[:, None] > metrics.softmax(honest).cumsum(axis=1)).sum(axis=1)
    return honest * sharpness, np.minimum(truth, classes - 1)


@pytest.mark.parametrize(("seed", "sharpness", "classes"), [(1, 1.0, 2), (2, 3.0, 3), (3, 0.4, 5)])
def test_the_temperature_is_the_likeliest_one(seed: int, sharpness: float, classes: int) -> None:
    logits, truth = sample(seed, sharpness, classes)

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature), axis=1)[np.arange(len(truth)), truth].mean())

    best = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-9})
    found = metrics.fit_temperature(logits, truth)
    assert found == pytest.approx(math.exp(best.x), rel=1e-4)
    assert found == pytest.approx(sharpness, rel=0.15)


def test_the_temperature_stays_in_its_bounds_where_the_data_set_none() -> None:
    logits = np.array([[0.2, 0.0], [0.3, 0.1]])
    assert metrics.fit_temperature(logits, np.array([0, 0])) == pytest.approx(0.05)
    assert metrics.fit_temperature(logits, np.array([1, 1])) == pytest.approx(20.0)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    scores = np.array([[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 10)
    truth = np.array([0] * 7 + [1] * 3 + [1] * 6 + [0] * 4)
    assert metrics.calibration_error(scores, truth) == pytest.approx(0.5 * abs(0.9 - 0.7) + 0.5 * abs(0.6 - 0.6))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_agrees_with_the_formula_written_out(bins: int) -> None:
    logits, truth = sample(4, 2.0)
    scores = metrics.softmax(logits)
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == truth
    expected = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(scores, truth, bins) == pytest.approx(expected)


def test_the_fitted_temperature_makes_an_overconfident_model_honest() -> None:
    logits, truth = sample(5, 3.0, n=5000)
    before = metrics.calibration_error(metrics.softmax(logits), truth)
    after = metrics.calibration_error(metrics.softmax(logits / metrics.fit_temperature(logits, truth)), truth)
    assert before > 0.1
    assert after < 0.03


@pytest.mark.parametrize(
    ("values", "truth", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "n > 0"),
        (np.zeros((3, 2)), np.zeros(2, dtype=int), "n > 0"),
        (np.zeros(3), np.zeros(3, dtype=int), "n > 0"),
        (np.zeros((2, 2)), np.array([0, 2]), "whole numbers from 0 to 1"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), "whole numbers from 0 to 1"),
        (np.array([[0.0, np.nan]]), np.array([0]), "not finite"),
    ],
)
def test_tables_that_do_not_fit_are_refused(values: Any, truth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.fit_temperature(values, truth)
    with pytest.raises(ValueError, match=message):
        metrics.calibration_error(values, truth)


def test_reliability_bins_hold_every_row_once_and_give_the_calibration_error() -> None:
    logits, truth = sample(6, 2.0)
    scores = metrics.softmax(logits)
    found = metrics.reliability(scores, truth)
    assert sum(bin.count for bin in found) == len(truth)
    assert all(bin.low < bin.confidence <= bin.high and 0 <= bin.accuracy <= 1 for bin in found)
    gap = sum(bin.count * abs(bin.confidence - bin.accuracy) for bin in found) / len(truth)
    assert metrics.calibration_error(scores, truth) == pytest.approx(gap)
    right = sum(bin.count * bin.accuracy for bin in found)
    assert right == pytest.approx((scores.argmax(axis=1) == truth).sum())


def test_a_row_on_the_edge_of_a_bin_belongs_to_the_lower_one() -> None:
    (first, last) = metrics.reliability(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1]), bins=2)
    assert (first.low, first.high, first.confidence, first.accuracy, first.count) == (0.0, 0.5, 0.5, 1.0, 1)
    assert (last.low, last.high, last.confidence, last.accuracy, last.count) == (0.5, 1.0, 1.0, 0.0, 1)


def test_slices_say_what_is_right_in_each_part_with_its_interval() -> None:
    right = np.array([True] * 6 + [False] * 4)
    parts = {"label": metrics.groups(["a"] * 5 + ["b"] * 5), "source": metrics.groups(["base"] * 10)}
    a, b = metrics.slices(right, parts)  # a cut into one part says nothing of its own
    assert (a.by, a.part, a.n, a.accuracy) == ("label", "a", 5, 1.0)
    assert (b.by, b.part, b.n, b.accuracy) == ("label", "b", 5, 0.2)
    assert (b.low, b.high) == metrics.interval(1, 5)


def test_terciles_part_the_rows_by_length_and_name_their_limits() -> None:
    lengths = [5, 3000, 12, 40, 700, 1]
    found = metrics.terciles(lengths, "characters")
    assert list(found) == ["up to 5 characters", "6 to 40 characters", "over 40 characters"]
    assert [[length for length, own in zip(lengths, mask, strict=True) if own] for mask in found.values()] == [
        [5, 1],
        [12, 40],
        [3000, 700],
    ]


def test_texts_of_one_length_are_one_part() -> None:
    found = metrics.terciles([7] * 9, "characters")
    assert [int(mask.sum()) for mask in found.values() if mask.any()] == [9]
    assert metrics.slices(np.ones(9, bool), {"length": found}) == []


# two classifiers on the same rows
@pytest.mark.parametrize(("gained", "lost"), [(12, 3), (0, 7), (7, 0), (0, 0), (40, 41)])
def test_the_chance_to_win_by_luck_agrees_with_scipys_exact_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    assert metrics.win_chance(gained, gained + lost) == pytest.approx(expected)


def score(gained: int, lost: int, n: int, difference: float) -> float:
    """Tango's statistic with the likeliest shares under a difference searched for rather than solved."""

    def surprise(share: float) -> float:  # of rows that are lost
        rest = 1 - 2 * share - difference
        parts = [(gained, share + difference), (lost, share), (n - gained - lost, rest)]
        return -sum(count * math.log(max(part, 1e-300)) for count, part in parts if count)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share = minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return float((gained - lost - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference))))


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(1, 7, 21), (12, 2, 50), (40, 20, 160), (3, 0, 2000), (60, 50, 2000), (5, 6, 12)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_of_a_difference_ends_where_the_score_says(
    gained: int, lost: int, n: int, confidence: float
) -> None:
    low, high = metrics.difference(gained, lost, n, confidence)
    limit = norm.ppf((1 + confidence) / 2)
    assert (score(gained, lost, n, low), score(gained, lost, n, high)) == pytest.approx((limit, -limit), abs=1e-3)


def test_the_interval_of_a_difference_is_that_of_a_published_example() -> None:
    # Airway hyper-responsiveness before and after a transplantation (Bentur et al. 2009): 1, 1, 7, 12 children.
    assert metrics.difference(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("n", [10, 100, 5000])
def test_the_interval_of_a_difference_is_right_at_its_extremes(n: int) -> None:
    square = norm.ppf(0.975) ** 2  # where all rows agree or none does, the equation of the score can be solved
    assert metrics.difference(0, 0, n) == pytest.approx((-square / (n + square), square / (n + square)), abs=1e-8)
    assert metrics.difference(n, 0, n) == pytest.approx(((n - square) / (n + square), 1.0), abs=1e-8)
    assert metrics.difference(0, n, n) == pytest.approx((-1.0, (square - n) / (n + square)), abs=1e-8)


@pytest.mark.parametrize(("up", "down", "n"), [(0.03, 0.03, 2000), (0.02, 0.03, 2000), (0.001, 0.011, 500)])
def test_the_lower_bound_of_a_difference_is_too_high_as_seldom_as_it_says(up: float, down: float, n: int) -> None:
    # Two standard errors of 2000 draws around 2.5 % are 0.7 points; few rows that differ put the score a little off.
    draws = np.random.default_rng(3).multinomial(n, [up, down, 1 - up - down], size=2000)
    over = [metrics.difference(gained, lost, n)[0] > up - down for gained, lost, _ in draws.tolist()]
    assert 0.005 < np.mean(over) < 0.035


@pytest.mark.parametrize(("gained", "lost", "n", "floor"), [(30, 32, 1000, -0.01), (0, 0, 100, -0.01), (3, 1, 40, 0.0)])
def test_so_many_rows_as_are_said_to_be_needed_are_enough_and_fewer_are_not(
    gained: int, lost: int, n: int, floor: float
) -> None:
    needed = metrics.rows_to_show(gained, lost, n, floor)
    assert needed is not None

    def lowest(times: float) -> float:
        return metrics._lowest_difference(gained * times, lost * times, n * times, 0.95)  # type: ignore[arg-type]

    assert lowest(needed / n) >= floor - 1e-9
    assert lowest((needed - 1) / n) < floor


def test_no_number_of_rows_shows_what_is_not_so() -> None:
    assert metrics.rows_to_show(10, 20, 1000, -0.01) is None
    assert metrics.rows_to_show(10, 21, 1000, -0.01) is None
    assert metrics.rows_to_show(0, 0, 1000, 0.0) is None


@given(PAIRS)
def test_macro_f1_of_numbers_is_that_of_labels(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = (np.array([LABELS.index(label) for label in column]) for column in zip(*pairs, strict=True))
    expected = metrics.quality([a for a, _ in pairs], [b for _, b in pairs], LABELS).f1_macro
    assert metrics.macro_f1(truth, predicted, 3) == pytest.approx(expected)


def answers(seed: int, n: int, *accuracies: float) -> tuple[Any, list[Any]]:
    """Truth and predictions for three labels, right as often as told and else wrong at random."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size=n, p=[0.6, 0.3, 0.1])
    return truth, [np.where(rng.random(n) < one, truth, rng.integers(3, size=n)) for one in accuracies]


def test_resampled_f1_has_the_spread_of_rows_drawn_one_by_one() -> None:
    truth, said = answers(1, 400, 0.8, 0.7)
    rng = np.random.default_rng(2)
    found = metrics.f1_samples(said, truth, 3, 1500, rng)
    rows = rng.integers(400, size=(400, 400))
    plain = np.array([[metrics.macro_f1(truth[row], one[row], 3) for row in rows] for one in said])
    assert found.shape == (2, 1500)
    np.testing.assert_allclose(found.mean(axis=1), plain.mean(axis=1), atol=4 * plain.std() / 20)
    np.testing.assert_allclose(np.cov(found), np.cov(plain), rtol=0.3, atol=1e-4)


def test_resampled_calibration_has_the_spread_of_rows_drawn_one_by_one() -> None:
    tables = []
    for seed, sharpness in ((4, 1.0), (4, 2.0)):
        logits, truth = sample(seed, sharpness, n=500)
        tables.append(metrics.softmax(logits))
    rng = np.random.default_rng(2)
    found = metrics.calibration_samples(tables, truth, 1000, rng)
    rows = rng.integers(500, size=(300, 500))
    plain = np.array([[metrics.calibration_error(table[row], truth[row]) for row in rows] for table in tables])
    np.testing.assert_allclose(found.mean(axis=1), plain.mean(axis=1), atol=4 * plain.std() / 17)
    np.testing.assert_allclose(found.std(axis=1), plain.std(axis=1), rtol=0.2)


def test_the_same_answers_never_differ_on_any_resample() -> None:
    truth, (said,) = answers(1, 100, 0.8)
    ours, theirs = metrics.f1_samples([said, said], truth, 3, 50, np.random.default_rng(0))
    assert (ours == theirs).all()


# the intervals of F1, and accuracy without labels
def test_f1_intervals_are_those_of_rows_drawn_one_by_one() -> None:
    truth, (said,) = answers(3, 300, 0.75)
    told = metrics.quality(*([LABELS[i] for i in column] for column in (truth, said)), LABELS)
    macro, by_label = metrics.f1_intervals(told.confusion, seed=1, draws=4000)
    assert macro.value == pytest.approx(told.f1_macro)
    assert [one.value for one in by_label] == pytest.approx([told.f1[label] for label in LABELS])
    rows = np.random.default_rng(2).integers(300, size=(2000, 300))
    drawn = np.array([metrics._f1(metrics._confusion(truth[row], said[row], 3)) for row in rows])
    plain = np.quantile(np.column_stack([drawn.mean(axis=1), drawn]), [0.025, 0.975], axis=0)
    found = np.array([[one.low, one.high] for one in (macro, *by_label)]).T
    np.testing.assert_allclose(found, plain, atol=0.015)
    assert by_label[2].high - by_label[2].low > 2 * (by_label[0].high - by_label[0].low)  # a tenth of the rows


def test_f1_intervals_hold_the_true_f1_about_as_often_as_they_say() -> None:
    truth, (said,) = answers(4, 100_000, 0.8)
    real = [metrics.macro_f1(truth, said, 3), *metrics._f1(metrics._confusion(truth, said, 3))]
    rng, held = np.random.default_rng(5), []
    for _ in range(300):
        rows = rng.integers(len(truth), size=300)
        macro, by_label = metrics.f1_intervals(metrics._confusion(truth[rows], said[rows], 3).tolist(), 0, draws=400)
        held.append([one.low <= f1 <= one.high for one, f1 in zip((macro, *by_label), real, strict=True)])
    assert (np.mean(held, axis=0) > 0.9).all()


def test_f1_intervals_are_the_same_with_the_same_seed_and_hold_what_was_seen() -> None:
    counts = [[40, 3, 0], [5, 20, 0], [0, 0, 0]]
    macro, by_label = metrics.f1_intervals(counts, seed=7)
    assert metrics.f1_intervals(counts, seed=7) == (macro, by_label)
    assert metrics.f1_intervals(counts, seed=8) != (macro, by_label)
    assert all(one.low <= one.value <= one.high for one in (macro, *by_label))
    assert by_label[2] == metrics.Estimate(0.0, 0.0, 0.0)
    narrow, _ = metrics.f1_intervals(counts, seed=7, confidence=0.5)
    assert macro.low < narrow.low < narrow.high < macro.high


def test_every_row_right_is_an_f1_without_doubt() -> None:
    macro, by_label = metrics.f1_intervals([[9, 0], [0, 4]], seed=0)
    assert [macro, *by_label] == [metrics.Estimate(1.0, 1.0, 1.0)] * 3


@pytest.mark.parametrize("counts", [[], [[0, 0], [0, 0]], [[1, 2]], [1, 2]])
def test_counts_that_are_no_confusion_have_no_interval(counts: Any) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        metrics.f1_intervals(counts, seed=0)


def test_a_calibrated_model_knows_its_accuracy_on_an_easier_or_a_harder_mix_of_its_texts() -> None:
    logits, truth = sample(8, 1.0, n=40_000)
    scores = metrics.softmax(logits)
    sure = scores.max(axis=1) > 0.8
    for rows in (sure, ~sure):
        right = float((scores[rows].argmax(axis=1) == truth[rows]).mean())
        assert metrics.estimated_accuracy(scores[rows]) == pytest.approx(right, abs=0.01)


def test_an_overconfident_model_thinks_too_well_of_itself() -> None:
    logits, truth = sample(9, 3.0)
    scores = metrics.softmax(logits)
    assert metrics.estimated_accuracy(scores) > (scores.argmax(axis=1) == truth).mean() + 0.1


@pytest.mark.parametrize("table", [np.zeros((0, 2)), np.zeros(3)])
def test_no_rows_have_no_estimated_accuracy(table: Any) -> None:
    with pytest.raises(ValueError, match="n > 0"):
        metrics.estimated_accuracy(table)
