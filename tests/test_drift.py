"""The drift rule: agreement with scipy, false alarms as often as it says, and power, on simulated and on real text."""

import io
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from retrue import drift
from retrue.errors import ModelRefused

MIXING = np.random.default_rng(7).normal(size=(20, 64))


def world(
    rng: np.random.Generator,
    n: int,
    *,
    shift: float = 0.0,
    longer: float = 0.0,
    broken: float = 0.0,
    marked: float = 0.0,
    second: float = 0.5,
    noise: float = 0.0,
    film: float = 0.0,
) -> tuple[Any, list[str]]:
    """Columns of a world of two labels, and the film of each row, of which there are some 7 in a row.

    `shift` is another topic, `longer` of log tokens, `broken` and `marked` more pieces and symbols, `second` the share
    of the second label, `noise` what no direction learned has, `film` the share of variance that films account for.
    """
    films = np.repeat(np.arange(n), np.minimum(30, 1 + rng.exponential(6, n).astype(int)))[:n]
    own, common = rng.normal(size=(n, 26)), rng.normal(size=(n, 26))[films]
    values = np.sqrt(1 - film) * own + np.sqrt(film) * common
    label = values[:, 25] < NormalDist().inv_cdf(second)
    hidden = values[:, :20].copy()
    hidden[:, 0] += 2 * label
    hidden[:, 1:4] += shift
    residual = np.sqrt(np.sum((0.3 * own[:, :5] + noise) ** 2, axis=1) + 4)
    tokens = np.clip(np.exp(5 + longer + 0.7 * values[:, 20]), 3, 256).astype(int)
    pieces, symbols = (0.1 * np.exp(0.4 * values[:, 21 + i]) + more for i, more in enumerate((broken, marked)))
    share = 1 / (1 + np.exp(-(6 * label - 3 + values[:, 24])))
    projection = np.column_stack([hidden @ MIXING, residual])
    table = drift.columns(projection, tokens, pieces, symbols, np.stack([1 - share, share], axis=1))
    return table, [str(film) for film in films]


def documents(rng: np.random.Generator, n: int, shift: float = 0.0, longer: float = 0.0) -> Any:
    return world(rng, n, shift=shift, longer=longer)[0]


@pytest.fixture(scope="module")
def reference() -> drift.Reference:
    return drift.register(documents(np.random.default_rng(1), 2500))


def test_a_row_is_projections_residual_log_length_the_shares_and_the_log_odds_of_the_second_label() -> None:
    projection, scores = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.2, 0.8], [0.75, 0.25]])
    table = drift.columns(projection, np.array([100, 2]), np.array([0.5, 0.0]), np.array([0.1, 0.2]), scores)
    expected = [[1, 2, np.log(100), 0.5, 0.1, np.log(4)], [3, 4, np.log(2), 0, 0.2, -np.log(3)]]
    np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_of_more_labels_each_has_its_log_odds() -> None:
    nothing = np.zeros(2)
    scores = np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    table = drift.columns(np.zeros((2, 65)), nothing, nothing, nothing, scores)
    np.testing.assert_allclose(table[:, 68:], np.log(scores / (1 - scores)), rtol=1e-6)


def test_scores_of_zero_and_one_have_finite_log_odds() -> None:
    one = np.ones(1)
    for certain in ([1.0, 0.0], [0.0, 1.0, 0.0]):
        table = drift.columns(np.zeros((1, 65)), one, one, one, np.array([certain], dtype=np.float32))
        assert np.isfinite(table).all()
        assert np.abs(table[0, 68:]).min() > 20


@pytest.mark.parametrize("n", [10, 333, 4000])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_distances_agree_with_scipy(reference: drift.Reference, n: int, shift: float) -> None:
    registered = documents(np.random.default_rng(1), 2500)
    window = world(np.random.default_rng(n), n, shift=shift, longer=shift, broken=shift, marked=shift, noise=shift)[0]
    exact = [wasserstein_distance(a, b) / b.std() for a, b in zip(window.T, registered.T, strict=True)]
    found = drift.check(reference, window)
    assert found.distance == found.distances["embedding"]
    assert found.distance == pytest.approx(np.mean(exact[:64]), rel=0.02)
    # A tail beyond the last of 256 quantiles is not seen, which matters only where there is next to no distance.
    for group, distance in zip(drift.GROUPS[1:], exact[64:], strict=True):
        assert found.distances[group] == pytest.approx(distance, rel=0.02, abs=0.01)


def test_the_margin_of_more_labels_is_the_mean_over_them() -> None:
    rng = np.random.default_rng(0)
    registered, window = (np.hstack([documents(rng, n)[:, :68], rng.normal(n, n, (n, 3))]) for n in (300, 200))
    exact = [wasserstein_distance(window[:, k], registered[:, k]) / registered[:, k].std() for k in (68, 69, 70)]
    found = drift.check(drift.register(registered), window)
    assert found.distances["margin"] == pytest.approx(np.mean(exact), rel=0.02)
    assert "margin" not in found.quantiles


def test_false_alarms_are_as_rare_as_the_rate_asked_for_at_every_size() -> None:
    """Sizes on the grid, and larger than any that N allows to calibrate."""
    rng = np.random.default_rng(2)
    p: dict[int, list[float]] = {50: [], 200: [], 1000: []}
    for seed in range(4):
        reference = drift.register(documents(rng, 1500), seed=seed)
        for n, values in p.items():
            values += [drift.check(reference, documents(rng, n)).p for _ in range(100)]
    for n, values in p.items():
        assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.08, n
        assert np.mean(np.array(values) < 0.01) <= 0.02, n
        assert min(values) > 1e-5, n
    # p is near to uniform and rather above it, not only right at one point.
    everything = np.concatenate(list(p.values()))
    assert 0.13 <= np.mean(everything < 0.2) <= 0.23
    assert 0.38 <= np.mean(everything < 0.5) <= 0.55
    # What a sequential detector multiplies (Vovk and Wang 2021): an e-value has a mean of at most 1.
    evidence = np.mean([k * everything ** (k - 1) for k in (0.1, 0.25, 0.5, 0.8)], axis=0)
    assert evidence.mean() < 1.15


CHANGES: list[tuple[dict[str, float], str]] = [
    ({"shift": 1.0}, "embedding"),
    ({"noise": 0.4}, "residual"),
    ({"longer": -0.8}, "length"),
    ({"longer": 0.8}, "length"),
    ({"broken": 0.05}, "pieces"),
    ({"marked": 0.05}, "symbols"),
    ({"second": 0.9}, "margin"),
    ({"second": 0.15}, "margin"),
]


@pytest.mark.parametrize(("change", "worst"), CHANGES)
def test_a_change_is_found_and_its_group_named(
    reference: drift.Reference, change: dict[str, float], worst: str
) -> None:
    rng = np.random.default_rng(3)
    found = [drift.check(reference, world(rng, 200, **change)[0]) for _ in range(10)]
    assert all(check.p < 1e-4 for check in found)
    assert {check.worst for check in found} == {worst}


def test_quantiles_are_told_before_and_after_in_units_that_people_read(reference: drift.Reference) -> None:
    window = world(np.random.default_rng(4), 1000, longer=-0.7, broken=0.05, second=0.9)[0]
    registered = documents(np.random.default_rng(1), 2500)
    found = drift.check(reference, window).quantiles
    assert list(found) == list(drift.GROUPS[1:])
    for side, table in (("before", registered), ("after", window)):
        shown = {
            "residual": table[:, 64],
            "length": np.exp(table[:, 65]),
            "pieces": table[:, 66],
            "symbols": table[:, 67],
            "margin": 1 / (1 + np.exp(-table[:, 68])),
        }
        for group, values in shown.items():
            np.testing.assert_allclose(found[group][side], np.quantile(values, drift.SHOWN), rtol=0.05)


def test_windows_of_whole_films_are_quiet_where_the_reference_knows_its_films() -> None:
    rng = np.random.default_rng(5)
    alarms: dict[str, list[bool]] = {"films": [], "rows": [], "blind": []}
    for seed in range(3):
        registered, films = world(rng, 600, film=0.3)
        known, blind = drift.register(registered, groups=films, seed=seed), drift.register(registered, seed=seed)
        for _ in range(60):
            window = world(rng, 200, film=0.3)[0]
            alarms["films"].append(drift.check(known, window).p < 0.05)
            alarms["blind"].append(drift.check(blind, window).p < 0.05)
            alarms["rows"].append(drift.check(known, documents(rng, 200)).p < 0.05)
    assert np.mean(alarms["films"]) <= 0.1
    assert np.mean(alarms["rows"]) <= 0.05
    assert np.mean(alarms["blind"]) >= 0.5


def test_a_row_without_a_group_is_one_of_its_own() -> None:
    rows = documents(np.random.default_rng(9), 300)
    alone = drift.register(rows).to_bytes()
    assert drift.register(rows, groups=[None] * 300).to_bytes() == alone
    assert drift.register(rows, groups=[str(i) for i in range(300)]).to_bytes() == alone
    assert drift.register(rows, groups=["one", "one"] + [None] * 298).to_bytes() != alone


def past(reference: drift.Reference, windows: Iterable[Any]) -> list[dict[str, Any]]:
    checks = (drift.check(reference, window) for window in windows)
    return [{"n": check.n, "distances": check.distances} for check in checks]


def test_before_enough_windows_were_accepted_a_reference_without_groups_is_cautious(
    reference: drift.Reference,
) -> None:
    window = {"n": 200, "distances": dict.fromkeys(drift.GROUPS, 5.0)}
    assert drift.stretch(reference, []) == dict.fromkeys(drift.GROUPS, drift.CAUTION)
    assert drift.stretch(reference, [window] * (drift.BURN_IN - 1)) == dict.fromkeys(drift.GROUPS, drift.CAUTION)
    assert min(drift.stretch(reference, [window] * drift.BURN_IN).values()) > 3
    rows, films = world(np.random.default_rng(15), 200, film=0.4)
    assert drift.stretch(drift.register(rows, groups=films), []) == dict.fromkeys(drift.GROUPS, 1.0)


def test_windows_of_any_size_that_lie_twice_as_far_away_as_they_should_stretch_twofold(
    reference: drift.Reference,
) -> None:
    twice = [
        {"n": n, "distances": dict(zip(drift.GROUPS, 2 * mean * np.sqrt(1 / n + 1 / reference.rows), strict=True))}
        for n, mean in zip(reference.sizes.tolist(), reference.mean, strict=True)
    ]
    found = drift.stretch(reference, twice * drift.BURN_IN)
    assert found == pytest.approx(dict.fromkeys(drift.GROUPS, 2.0), rel=1e-5)


def test_quiet_traffic_of_single_rows_is_hardly_stretched_and_less_the_longer_it_lasts(
    reference: drift.Reference,
) -> None:
    rng = np.random.default_rng(11)
    quiet = past(reference, [documents(rng, 100) for _ in range(500)])
    few, many = (drift.stretch(reference, quiet[:n]) for n in (drift.BURN_IN, 500))
    assert all(1 <= factor < 1.6 for factor in few.values())
    assert all(1 <= factor < 1.3 for factor in many.values())
    assert sum(many.values()) < sum(few.values())


def test_no_factor_is_below_one_where_traffic_varies_less_than_the_reference() -> None:
    rng = np.random.default_rng(12)
    registered, films = world(rng, 600, film=0.6)
    reference = drift.register(registered, groups=films)
    quiet = past(reference, [documents(rng, 100) for _ in range(drift.BURN_IN)])
    assert min(drift.stretch(reference, quiet).values()) == 1.0


def test_windows_of_whole_films_are_believed_after_a_burn_in_and_drift_is_still_found() -> None:
    """The reference holds independent rows: it cannot know how much alike the rows of a film are."""
    rng = np.random.default_rng(13)
    p: dict[str, list[float]] = {"before": [], "after": [], "drifted": []}
    for seed in range(2):
        reference = drift.register(documents(rng, 600), seed=seed)
        windows = [world(rng, 100, film=0.4)[0] for _ in range(drift.BURN_IN + 150)]
        found = drift.stretch(reference, past(reference, windows[: drift.BURN_IN]))
        assert min(found[group] for group in ("embedding", "length", "margin")) > 1.3
        for window in windows[drift.BURN_IN :]:
            p["before"].append(drift.check(reference, window).p)
            p["after"].append(drift.check(reference, window, stretch=found).p)
        for _ in range(10):
            drifted = world(rng, 100, film=0.4, shift=2.5)[0]
            p["drifted"].append(drift.check(reference, drifted, stretch=found).p)
    before, after = (np.array(p[name]) for name in ("before", "after"))
    assert np.mean(before < 0.05) > 0.5
    assert np.mean(after < 0.05) <= 0.1
    assert np.mean(after < 0.01) <= 0.02
    assert np.median(p["drifted"]) < 1e-3


def test_a_stretch_scales_what_counts_as_far_and_nothing_else(reference: drift.Reference) -> None:
    window = documents(np.random.default_rng(14), 200, 1.0)
    plain = drift.check(reference, window)
    stretched = drift.check(reference, window, stretch={"embedding": 2.0})
    assert (stretched.distances, stretched.threshold) == (plain.distances, plain.threshold)
    assert stretched.statistic < plain.statistic
    assert stretched.p > plain.p
    assert drift.check(reference, window, stretch=dict.fromkeys(drift.GROUPS, 1.0)) == plain


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(10, 3000),
    seed=st.integers(0, 99),
    shifts=st.lists(st.floats(0, 3), min_size=2, max_size=4),
    alpha=st.floats(1e-6, 0.5),
)
def test_p_never_rises_with_the_statistic_and_falls_below_the_rate_just_beyond_the_threshold(
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
            assert (check.p < alpha) == (check.statistic > check.threshold)


def test_the_tail_tells_small_p_values_apart_far_below_what_was_resampled(reference: drift.Reference) -> None:
    window = documents(np.random.default_rng(6), 200)
    p = []
    for push in np.linspace(0.12, 0.4, 15):
        moved = window.copy()
        moved[:, 65] -= push
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


def test_a_reference_of_what_another_graph_scored_is_refused() -> None:
    data = drift.register(documents(np.random.default_rng(9), 300), made_by="model 1, 64 tokens").to_bytes()
    assert drift.Reference.from_bytes(data, "model 1, 64 tokens").made_by == "model 1, 64 tokens"
    for other in ("model 2, 64 tokens", ""):
        with pytest.raises(ModelRefused, match=r"made by model 1, 64 tokens, and .* serves: train"):
            drift.Reference.from_bytes(data, other)


def test_the_same_rows_and_seed_give_the_same_reference() -> None:
    rows = documents(np.random.default_rng(9), 300)
    assert drift.register(rows, seed=5).to_bytes() == drift.register(rows, seed=5).to_bytes()
    assert drift.register(rows, seed=5).to_bytes() != drift.register(rows, seed=6).to_bytes()


def test_a_column_that_never_varied_neither_alarms_by_itself_nor_hides_a_change() -> None:
    def cut(rng: np.random.Generator, n: int) -> Any:
        """Every text reaches the token limit."""
        table = documents(rng, n)
        table[:, 65] = np.log(256)
        return table

    rng = np.random.default_rng(10)
    reference = drift.register(cut(rng, 500))
    quiet = [drift.check(reference, cut(rng, 200)) for _ in range(drift.BURN_IN)]
    assert min(check.p for check in quiet) > 1e-4
    assert drift.stretch(reference, [vars(check) for check in quiet])["length"] == 1.0
    single = cut(rng, 200)
    single[0, 65] = np.log(30)
    assert drift.check(reference, single).p > 1e-4
    short = cut(rng, 200)
    short[::4, 65] = np.log(30)
    found = drift.check(reference, short)
    assert (found.p < 1e-4, found.worst) == (True, "length")


def test_documents_that_are_all_alike_can_be_registered() -> None:
    reference = drift.register(np.ones((40, 69)))
    assert drift.check(reference, np.ones((20, 69))).p == 1.0
    assert drift.check(reference, np.full((20, 69), 3.0)).p < 1e-4


def test_a_window_of_another_model_is_refused(reference: drift.Reference) -> None:
    with pytest.raises(ValueError, match=r"71 columns and the reference 69.*own model"):
        drift.check(reference, np.zeros((50, 71)))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_a_false_alarm_rate_that_is_no_share_is_refused(reference: drift.Reference, alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        drift.check(reference, documents(np.random.default_rng(0), 50), alpha)


def test_windows_and_references_that_are_too_small_are_refused(reference: drift.Reference) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least 10"):
        drift.check(reference, documents(rng, 9))
    with pytest.raises(ValueError, match="at least 20"):
        drift.register(documents(rng, 19))


@pytest.mark.parametrize(
    ("table", "message"),
    [(np.full((50, 69), np.nan), "not finite"), (np.zeros(69), "shape"), (np.zeros((50, 68)), "shape")],
)
def test_tables_that_are_none_are_refused(reference: drift.Reference, table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drift.check(reference, table)
    with pytest.raises(ValueError, match=message):
        drift.register(table)


@pytest.fixture(scope="module")
def reviews_and_tweets(bag_of_words: Callable[[list[str]], tuple[Any, ...]], real_data: Path) -> tuple[Any, Any]:
    """Columns of real IMDB reviews and airline tweets, from hashed words in the place of a hidden layer."""
    import pyarrow.parquet as pq

    def columns(name: str, rows: int) -> Any:
        texts = pq.read_table(real_data / name, columns=["text"])["text"]
        picked = texts.take(np.random.default_rng(0).choice(len(texts), rows, replace=False))
        return drift.columns(*bag_of_words(picked.to_pylist()))

    return columns("imdb_test.parquet", 1500 + 20 * 200), columns("drift/airline_tweets.parquet", 5 * 200)


def test_fresh_reviews_are_quiet_and_tweets_are_found_on_real_text(reviews_and_tweets: tuple[Any, Any]) -> None:
    reviews, tweets = reviews_and_tweets
    reference = drift.register(reviews[:1500])
    quiet = np.split(reviews[1500:], 20)
    p = [drift.check(reference, window).p for window in quiet]
    assert min(p) > 1e-4
    assert np.mean(np.array(p) < 0.05) <= 0.2
    for window, foreign in zip(quiet[:5], np.split(tweets, 5), strict=True):
        assert drift.check(reference, foreign).p < 1e-6
        assert drift.check(reference, np.vstack([window[:140], foreign[:60]])).p < 1e-4
