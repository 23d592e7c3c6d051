"""The gate: who passes, who does not, and how often it is wrong."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from retrue import gate
from retrue.metrics import quality

LABELS = ["negative", "positive"]


def answers(right: Any) -> list[str]:
    return ["positive" if hit else "negative" for hit in right]


def judge(candidate: Any, champion: Any, recent: Any, **options: Any) -> gate.Verdict:
    """The verdict on two models that are right (true) or wrong (false) row by row; the truth is always positive."""
    return gate.decide(
        ["positive"] * len(candidate), answers(candidate), answers(champion), list(recent), labels=LABELS, **options
    )


def pair(rng: np.random.Generator, n: int, champion: float, gain: float, differ: float = 0.06) -> Any:
    """Two models that differ on a share of the rows, the candidate `gain` more accurate on average; (2, n)."""
    draw = rng.random(n)
    gained, lost = draw < (differ + gain) / 2, draw > 1 - (differ - gain) / 2
    both = rng.random(n) < champion
    return np.where(gained | lost, [gained, lost], [both, both])


def world(rng: np.random.Generator, base_gain: float, recent_gain: float, base: int = 2000, recent: int = 400) -> Any:
    """Candidate, champion, and the marks of the recent rows."""
    rows = np.hstack([pair(rng, base, 0.92, base_gain), pair(rng, recent, 0.85, recent_gain, differ=0.12)])
    return rows[0], rows[1], np.arange(base + recent) >= base


def share_promoted(simulations: int, seed: int, **gains: Any) -> float:
    rng = np.random.default_rng(seed)
    return float(np.mean([judge(*world(rng, **gains)).promote for _ in range(simulations)]))


@pytest.mark.parametrize(("base", "recent"), [(600, 200), (600, 0), (0, 300), (300, 300)])
def test_an_equal_candidate_is_promoted_at_most_as_often_as_alpha_says(base: int, recent: int) -> None:
    # 2000 simulations put two standard errors of a true 5 % at 1 %.
    assert share_promoted(2000, seed=1, base_gain=0.0, recent_gain=0.0, base=base, recent=recent) <= 0.06


def test_a_clearly_better_candidate_is_always_promoted() -> None:
    assert share_promoted(200, seed=2, base_gain=0.03, recent_gain=0.05) == 1.0


def test_a_worse_candidate_is_never_promoted() -> None:
    assert share_promoted(300, seed=3, base_gain=-0.02, recent_gain=-0.05) == 0.0


def test_a_candidate_that_is_better_on_recent_rows_and_equal_on_the_base_is_promoted() -> None:
    rng = np.random.default_rng(4)
    verdicts = [judge(*world(rng, 0.0, 0.1)) for _ in range(100)]
    # An equal candidate looks worse on the base by chance, at most alpha of the time.
    assert sum(verdict.promote for verdict in verdicts) >= 90
    assert any("is better on recent rows" in verdict.reason for verdict in verdicts)


def test_a_candidate_that_is_better_on_recent_rows_but_forgot_the_base_is_rejected() -> None:
    rng = np.random.default_rng(5)
    for _ in range(100):
        candidate, champion, recent = world(rng, -0.04, 0.1)
        verdict = judge(candidate, champion, recent)
        assert not verdict.promote
        assert "worse on the base rows" in verdict.reason
        assert judge(candidate[recent], champion[recent], recent[recent]).promote


def test_a_loss_on_the_base_within_the_margin_is_forgiven() -> None:
    base, recent = 4000, 400
    candidate, champion = np.ones((2, base + recent), dtype=bool)
    candidate[:30] = False  # 0.75 %, and beyond doubt
    champion[base : base + 60] = False
    marks = np.arange(base + recent) >= base
    verdict = judge(candidate, champion, marks)
    assert verdict.evidence["comparisons"]["base rows"]["p_worse"] < 1e-6
    assert verdict.promote
    assert not judge(candidate, champion, marks, margin=0.005).promote


def test_one_more_lucky_row_than_the_champion_is_not_enough() -> None:
    candidate, champion = np.ones((2, 1000), dtype=bool)
    champion[:4] = False
    verdict = judge(candidate, champion, np.zeros(1000, dtype=bool))
    assert not verdict.promote
    assert verdict.reason == (
        "the candidate is not shown better; it comes nearest on all rows: "
        "1.0000 against 0.9960 on 1000 rows, +4 -0 (p = 0.062, not under 0.05)"
    )
    champion[4] = False
    assert judge(candidate, champion, np.zeros(1000, dtype=bool)).promote


def test_with_two_chances_each_is_tested_at_half_of_alpha() -> None:
    candidate, champion = np.ones((2, 1000), dtype=bool)
    champion[:5] = False  # p = 1/32
    assert judge(candidate, champion, np.zeros(1000, dtype=bool)).promote
    assert not judge(candidate, champion, np.arange(1000) >= 900).promote


def test_the_same_answers_are_not_better() -> None:
    same = np.arange(100) < 90
    verdict = judge(same, same, np.zeros(100, dtype=bool))
    assert not verdict.promote
    assert verdict.evidence["comparisons"]["all rows"]["p_better"] == 1.0


@pytest.mark.parametrize(
    ("gained", "lost", "agreed"), [(12, 3, 100), (3, 12, 0), (0, 7, 5), (40, 41, 1), (600, 500, 0)]
)
def test_the_comparison_agrees_with_scipys_exact_test(gained: int, lost: int, agreed: int) -> None:
    outcomes = [(True, False)] * gained + [(False, True)] * lost + [(True, True)] * agreed + [(False, False)] * 2
    found = gate.compare(outcomes)
    assert found.p_better == pytest.approx(binomtest(gained, gained + lost, alternative="greater").pvalue)
    assert found.p_worse == pytest.approx(binomtest(lost, gained + lost, alternative="greater").pvalue)
    assert (found.rows, found.gained, found.lost) == (len(outcomes), gained, lost)
    assert found.candidate == pytest.approx((gained + agreed) / len(outcomes))
    assert found.champion == pytest.approx((lost + agreed) / len(outcomes))
    assert found.change == pytest.approx(found.candidate - found.champion)


@pytest.mark.parametrize(("right", "promote"), [(70, True), (60, False), (50, False), (0, False)])
def test_the_first_model_has_to_beat_the_commonest_label(right: int, promote: bool) -> None:
    truth = ["positive"] * 50 + ["negative"] * 50
    other = {"positive": "negative", "negative": "positive"}
    candidate = [label if i < right else other[label] for i, label in enumerate(truth)]
    verdict = gate.decide(truth, candidate, None, [False] * 100, labels=LABELS)
    # 60 of 100 is over the half that a coin gets, but its interval reaches down to 0.497.
    assert verdict.promote is promote
    assert verdict.evidence["commonest_label"] == 0.5
    assert ("does not beat" in verdict.reason) is not promote


def test_always_answering_the_commonest_label_is_no_model() -> None:
    truth = ["positive"] * 90 + ["negative"] * 10
    assert not gate.decide(truth, ["positive"] * 100, None, [False] * 100, labels=LABELS).promote


@pytest.mark.parametrize("with_champion", [True, False])
def test_the_evidence_is_plain_json_that_says_everything(with_champion: bool) -> None:
    candidate, champion, recent = world(np.random.default_rng(6), 0.0, 0.1)
    truth = ["positive"] * len(candidate)
    verdict = gate.decide(
        truth, answers(candidate), answers(champion) if with_champion else None, recent.tolist(), labels=LABELS
    )
    assert json.loads(json.dumps(verdict.evidence)) == verdict.evidence
    assert verdict.evidence["candidate"]["accuracy"] == quality(truth, answers(candidate), LABELS).accuracy
    if with_champion:
        assert list(verdict.evidence["comparisons"]) == ["all rows", "recent rows", "base rows"]
        assert verdict.evidence["comparisons"]["recent rows"]["rows"] == recent.sum()


@pytest.mark.parametrize(
    ("truth", "candidate", "champion", "recent"),
    [
        ([], [], [], []),
        (["positive"], ["positive", "positive"], ["positive"], [True]),
        (["positive"], ["positive"], [], [True]),
        (["positive"], ["positive"], ["positive"], []),
        (["positive"], ["angry"], ["positive"], [True]),
    ],
)
def test_columns_that_cannot_be_judged_are_refused(
    truth: list[str], candidate: list[str], champion: list[str], recent: list[bool]
) -> None:
    with pytest.raises(ValueError, match=r"length|one of each|no labelled rows|given labels"):
        gate.decide(truth, candidate, champion, recent, labels=LABELS)
