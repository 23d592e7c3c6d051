"""The drift rule: agreement with scipy, false alarms as often as it says, and power, on simulated and on real text."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from retrue import drift
from retrue.errors import ModelRefused

MIXING = np.random.default_rng(7).normal(size=(20, 64))


def documents(rng: np.random.Generator, n: int, shift: float = 0.0, longer: float = 0.0) -> Any:
    """Columns of a world of two topics: 64 correlated projections, token counts cut at 256, two-class scores."""
    topic = rng.integers(0, 2, n)
    hidden = rng.normal(size=(n, 20))
    hidden[:, :3] += 2 * topic[:, None] + shift
    tokens = np.clip(rng.lognormal(5 + longer, 0.7, n), 3, 256).astype(int)
    winner = 1 / (1 + np.exp(-np.abs(rng.normal(3, 1.5, n) + 0.2 * hidden[:, 0])))
    return drift.columns(hidden @ MIXING, tokens, np.stack([winner, 1 - winner], axis=1))


@pytest.fixture(scope="module")
def reference() -> drift.Reference:
    return drift.register(documents(np.random.default_rng(1), 2500))


def test_columns_are_projections_log_length_and_the_margin_of_the_two_best_scores() -> None:
    scores = np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    table = drift.columns(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([100, 2]), scores)
    expected = [[1, 2, np.log(100), np.log(0.7 / 0.2)], [3, 4, np.log(2), np.log(2)]]
    np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_a_score_of_zero_still_has_a_finite_margin() -> None:
    table = drift.columns(np.zeros((1, 1)), np.array([5]), np.array([[1.0, 0.0]], dtype=np.float32))
    assert np.isfinite(table).all()
    assert table[0, -1] > 20


@pytest.mark.parametrize("n", [10, 50, 333, 1000, 4000])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_distances_agree_with_scipy(reference: drift.Reference, n: int, shift: float) -> None:
    registered = documents(np.random.default_rng(1), 2500)
    window = documents(np.random.default_rng(n), n, shift, shift)
    exact = [wasserstein_distance(a, b) / b.std() for a, b in zip(window.T, registered.T, strict=True)]
    found = drift.check(reference, window, 0.05)
    assert found.distance == found.distances["embedding"]
    assert found.distance == pytest.approx(np.mean(exact[:-2]), rel=0.02)
    # A tail beyond the last of 256 quantiles is not seen, which matters only where there is next to no distance.
    assert found.distances["length"] == pytest.approx(exact[-2], rel=0.02, abs=0.01)
    assert found.distances["margin"] == pytest.approx(exact[-1], rel=0.02, abs=0.01)


def test_false_alarms_are_as_rare_as_the_rate_asked_for_at_every_size() -> None:
    """Sizes on the grid, between two of its points, and larger than any that N allows to calibrate."""
    sizes = {50: 60, 130: 60, 200: 60, 1000: 60, 4000: 30}
    rng = np.random.default_rng(2)
    p: dict[int, list[float]] = {n: [] for n in sizes}
    for seed in range(8):
        reference = drift.register(documents(rng, 2500), seed)
        for n, windows in sizes.items():
            p[n] += [drift.check(reference, documents(rng, n), 0.05).p for _ in range(windows)]
    for n, values in p.items():
        assert 0.02 <= np.mean(np.array(values) < 0.05) <= 0.08, n
        assert min(values) > 1e-5, n
    # p is as good as uniform, not only right at one point.
    everything = np.concatenate(list(p.values()))
    assert np.mean(everything < 0.2) == pytest.approx(0.2, abs=0.04)
    assert np.mean(everything < 0.5) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("shift", "longer", "worst"), [(1.0, 0.0, "embedding"), (0.0, -0.8, "length"), (0.0, 0.8, "length")]
)
def test_a_shift_is_found_and_its_group_named(
    reference: drift.Reference, shift: float, longer: float, worst: str
) -> None:
    rng = np.random.default_rng(3)
    found = [drift.check(reference, documents(rng, 200, shift, longer), 1e-4) for _ in range(20)]
    assert all(check.fired for check in found)
    assert {check.worst for check in found} == {worst}


def test_an_unsure_classifier_is_found_by_its_margin(reference: drift.Reference) -> None:
    window = documents(np.random.default_rng(4), 200)
    window[:, -1] *= 0.5
    found = drift.check(reference, window, 1e-4)
    assert (found.fired, found.worst) == (True, "margin")


def test_more_drift_and_larger_windows_give_more_evidence(reference: drift.Reference) -> None:
    def median(n: int, shift: float) -> float:
        rng = np.random.default_rng(5)
        return float(np.median([drift.check(reference, documents(rng, n, shift), 0.05).p for _ in range(15)]))

    assert median(200, 1.0) < median(200, 0.5) < median(200, 0.0)
    assert median(1000, 0.5) < median(200, 0.5) < median(50, 0.5)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(10, 3000),
    seed=st.integers(0, 99),
    shifts=st.lists(st.floats(0, 3), min_size=2, max_size=4),
    alpha=st.floats(1e-6, 0.5),
)
def test_p_never_rises_with_the_statistic_and_fires_just_beyond_the_threshold(
    reference: drift.Reference, n: int, seed: int, shifts: list[float], alpha: float
) -> None:
    found = [drift.check(reference, documents(np.random.default_rng(seed), n, shift), alpha) for shift in shifts]
    found.sort(key=lambda check: check.statistic)
    for lower, higher in itertools.pairwise(found):
        assert lower.p >= higher.p
        if lower.p < 0.05 and higher.statistic > lower.statistic + 1e-9:
            assert lower.p > higher.p or lower.p == 0
    for check in found:
        assert 0 <= check.p <= 1
        if abs(check.statistic - check.threshold) > 1e-6:
            assert check.fired == (check.statistic > check.threshold)


def test_the_tail_tells_small_p_values_apart_far_below_what_was_resampled(reference: drift.Reference) -> None:
    window = documents(np.random.default_rng(6), 200)
    p = []
    for push in np.linspace(0.12, 0.4, 15):
        moved = window.copy()
        moved[:, -2] -= push
        p.append(drift.check(reference, moved, 0.05).p)
    assert p == sorted(p, reverse=True)
    assert len(set(p)) == len(p)
    assert any(1e-6 < value < 1e-3 for value in p)
    assert p[-1] < 1e-6


def test_a_stored_reference_is_small_and_answers_the_same(reference: drift.Reference) -> None:
    data = reference.to_bytes()
    assert len(data) < 400_000
    window = documents(np.random.default_rng(8), 300, 0.3)
    assert drift.check(drift.Reference.from_bytes(data), window, 0.01) == drift.check(reference, window, 0.01)


def test_an_unreadable_reference_is_refused(reference: drift.Reference) -> None:
    data = reference.to_bytes()
    older = io.BytesIO()
    np.savez(older, rows=2500, quantiles=reference.quantiles)
    newer = io.BytesIO()
    np.savez(newer, **vars(reference), blocks=3)
    for other in (b"", b"{}", data[:100], data[:-1], data[1:], older.getvalue(), newer.getvalue()):
        with pytest.raises(ModelRefused, match="train the model again"):
            drift.Reference.from_bytes(other)


def test_the_same_rows_and_seed_give_the_same_reference() -> None:
    rows = documents(np.random.default_rng(9), 300)
    assert drift.register(rows, 5).to_bytes() == drift.register(rows, 5).to_bytes()
    assert drift.register(rows, 5).to_bytes() != drift.register(rows, 6).to_bytes()


def test_a_column_that_never_varied_neither_alarms_by_itself_nor_hides_a_change() -> None:
    def cut(rng: np.random.Generator, n: int) -> Any:
        """Every text reaches the token limit."""
        table = documents(rng, n)
        table[:, -2] = np.log(256)
        return table

    rng = np.random.default_rng(10)
    reference = drift.register(cut(rng, 1000))
    quiet = [drift.check(reference, cut(rng, 200), 1e-4) for _ in range(50)]
    assert not any(check.fired for check in quiet)
    single = cut(rng, 200)
    single[0, -2] = np.log(30)
    assert not drift.check(reference, single, 1e-4).fired
    short = cut(rng, 200)
    short[::4, -2] = np.log(30)
    found = drift.check(reference, short, 1e-4)
    assert (found.fired, found.worst) == (True, "length")


def test_documents_that_are_all_alike_can_be_registered() -> None:
    reference = drift.register(np.ones((40, 5)))
    assert drift.check(reference, np.ones((20, 5)), 0.4).p == 1.0
    assert drift.check(reference, np.full((20, 5), 3.0), 1e-4).fired


def test_a_window_of_another_model_is_refused(reference: drift.Reference) -> None:
    with pytest.raises(ValueError, match=r"10 columns and the reference 66.*own model"):
        drift.check(reference, np.zeros((50, 10)), 0.05)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_a_false_alarm_rate_that_is_no_share_is_refused(reference: drift.Reference, alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        drift.check(reference, documents(np.random.default_rng(0), 50), alpha)


def test_windows_and_references_that_are_too_small_are_refused(reference: drift.Reference) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least 10"):
        drift.check(reference, documents(rng, 9), 0.05)
    with pytest.raises(ValueError, match="at least 20"):
        drift.register(documents(rng, 19))


@pytest.mark.parametrize(("table", "message"), [(np.full((50, 66), np.nan), "not finite"), (np.zeros(66), "shape")])
def test_tables_that_are_none_are_refused(reference: drift.Reference, table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drift.check(reference, table, 0.05)
    with pytest.raises(ValueError, match=message):
        drift.register(table)


@pytest.fixture(scope="module")
def reviews_and_tweets(real_data: Path) -> tuple[Any, Any]:
    """Columns of real IMDB reviews and airline tweets: projected hashed words, and a linear classifier's scores."""
    import pyarrow.parquet as pq
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    def read(name: str, rows: int) -> tuple[list[str], Any]:
        table = pq.read_table(real_data / name, columns=["text", "label"])
        picked = table.take(np.random.default_rng(0).choice(len(table), rows, replace=False))
        return picked["text"].to_pylist(), picked["label"].to_numpy()

    words = HashingVectorizer(n_features=2**15, alternate_sign=False)
    texts, labels = read("imdb_train.parquet", 3000)
    model = LogisticRegression(C=20).fit(words.transform(texts), labels)
    directions = np.random.default_rng(0).normal(size=(2**15, 64))

    def table(texts: list[str]) -> Any:
        features = words.transform(texts)
        tokens = np.minimum([len(text.split()) for text in texts], 256)
        return drift.columns(features @ directions, tokens, model.predict_proba(features))

    reviews = table(read("imdb_test.parquet", 2500 + 40 * 200)[0])
    return reviews, table(read("drift/airline_tweets.parquet", 20 * 200)[0])


def test_fresh_reviews_are_quiet_and_tweets_are_found_on_real_text(reviews_and_tweets: tuple[Any, Any]) -> None:
    reviews, tweets = reviews_and_tweets
    reference = drift.register(reviews[:2500])
    quiet = np.split(reviews[2500:], 40)
    p = [drift.check(reference, window, 1e-4).p for window in quiet]
    assert min(p) > 1e-4
    assert np.mean(np.array(p) < 0.05) <= 0.2
    for window in np.split(tweets, 20):
        assert drift.check(reference, window, 1e-4).fired
    for window, foreign in zip(quiet[:20], np.split(tweets, 20), strict=True):
        assert drift.check(reference, np.vstack([window[:140], foreign[:60]]), 1e-4).fired
