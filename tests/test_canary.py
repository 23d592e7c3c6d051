"""What a canary is withdrawn for, and how seldom a harmless one is."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from retrue.canary import LEAST, Bounds, Calls, answers, conduct, mirrored

BOUNDS = Bounds()
LABELS = ["negative", "positive"]


def scores(rng: np.random.Generator, n: int, positive: float = 0.5, sure: float = 2.0) -> NDArray[np.float64]:
    """Scores of two labels, of which a share is for the second."""
    side = np.where(rng.random(n) < positive, sure, -sure)
    share = 1 / (1 + np.exp(-(side + rng.normal(size=n))))
    return np.stack([1 - share, share], axis=1)


@pytest.mark.parametrize(
    ("calls", "failed", "harmful"),
    [
        (0, 0, False),
        (1, 1, False),
        (3, 2, True),
        (100, 4, False),
        (100, 6, True),
        (5_000, 60, False),
        (5_000, 90, True),
    ],
)
def test_more_failures_than_may_be_are_harm_where_luck_does_not_explain_them(
    calls: int, failed: int, harmful: bool
) -> None:
    found = conduct(Calls(calls, failed, None), Calls(1_000, 0, None), BOUNDS)
    assert bool(found.harms) == harmful
    assert (found.evidence["calls"], found.evidence["failed"]) == (calls, failed)
    if harmful:
        assert f"{failed} of {calls} calls failed" in found.harms[0]


def test_a_harmless_canary_is_called_failing_in_one_of_a_thousand_at_most() -> None:
    failed = np.random.default_rng(0).binomial(500, BOUNDS.failures, 20_000)
    found = [conduct(Calls(500, int(each), None), Calls(0, 0, None), BOUNDS).harms for each in failed]
    assert sum(map(bool, found)) <= 25


def test_calls_that_take_longer_than_they_may_are_harm() -> None:
    slow, usual = Calls(LEAST, 0, 90.0), Calls(LEAST, 0, 40.0)
    (harm,) = conduct(slow, usual, BOUNDS).harms
    assert "2.2 times as long as the champion's" in harm
    assert conduct(slow, usual, Bounds(slowdown=3)).harms == []
    assert conduct(usual, slow, BOUNDS).harms == []


@pytest.mark.parametrize("few", [Calls(LEAST - 1, 0, 90.0), Calls(LEAST, 0, None)])
def test_durations_of_few_calls_or_none_are_not_compared(few: Calls) -> None:
    usual = Calls(LEAST, 0, 40.0)
    for pair in ((few, usual), (usual, few)):
        found = conduct(*pair, BOUNDS)
        assert (found.harms, found.evidence["slowdown"]) == ([], None)


def test_the_distance_of_scores_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = scores(rng, 120, positive=0.7), scores(rng, 700)
    expected = max(wasserstein_distance(ours[:, k], theirs[:, k]) for k in range(2))
    assert answers(ours, theirs, LABELS, BOUNDS).evidence["distance"] == pytest.approx(expected)


@pytest.mark.parametrize("change", [{"positive": 0.9}, {"positive": 0.1}, {"sure": 0.0}])
def test_answers_that_lie_too_far_apart_are_harm(change: dict[str, float]) -> None:
    rng = np.random.default_rng(2)
    usual = {"positive": 0.5, "sure": 4.0}
    (harm,) = answers(scores(rng, 200, **usual | change), scores(rng, 2_000, **usual), LABELS, BOUNDS).harms
    assert "from the champion's on texts of the same time, and 0.2 may lie between" in harm


def test_the_label_that_lies_furthest_apart_is_named() -> None:
    rng = np.random.default_rng(3)
    theirs = rng.dirichlet([1, 1, 8], 500)
    ours = rng.dirichlet([1, 8, 1], 100)
    ours[:, 0] = 0.0
    (harm,) = answers(ours, theirs, ["a", "b", "c"], BOUNDS).harms
    assert harm.startswith(("the scores of b lie 0.", "the scores of c lie 0."))


def test_answers_to_like_texts_are_no_harm_however_few() -> None:
    rng = np.random.default_rng(4)
    for n in [LEAST] * 100 + [500] * 20:
        assert answers(scores(rng, n), scores(rng, 2_000), LABELS, BOUNDS).harms == []


def test_a_large_distance_that_luck_explains_is_no_harm() -> None:
    """Few sure answers for either label lie far apart by chance."""
    rng = np.random.default_rng(5)
    tight = Bounds(distance=0.01)
    found = [answers(scores(rng, LEAST), scores(rng, LEAST), LABELS, tight) for _ in range(40)]
    assert sum(one.evidence["distance"] > tight.distance for one in found) >= 35
    assert sum(map(bool, (one.harms for one in found))) <= 1


def test_too_few_answers_are_not_compared() -> None:
    rng = np.random.default_rng(6)
    found = answers(scores(rng, LEAST - 1, positive=1.0), scores(rng, 2_000, positive=0.0), LABELS, BOUNDS)
    assert (found.harms, found.evidence["distance"]) == ([], None)


def test_golden_inputs_have_to_get_the_champion_s_label_often_enough() -> None:
    champion = ["a"] * 10
    assert mirrored(["a"] * 5 + ["b"] * 5, champion, BOUNDS).harms == []
    (harm,) = mirrored(["a"] * 4 + ["b"] * 6, champion, BOUNDS).harms
    assert harm == "only 40% of 10 golden inputs get the champion's label"
