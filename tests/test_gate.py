"""The gate: who passes, who does not and why, and how often it is wrong."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from retrue import gate
from retrue.errors import WrongSetting
from retrue.gate import Rules, Showing, Verdict
from retrue.metrics import calibration_error, quality
from retrue.records import TRIGGERS

LABELS = ["negative", "positive"]


def show(hits: Any, recent: Any = False, **other: Any) -> Showing:
    """A model that is right (true) or wrong (false) row by row, and as sure of each as it may be; labels take turns."""
    hits = np.asarray(hits, dtype=bool)
    n = len(hits)
    truth = other.pop("truth", np.arange(n) % 2)
    sure = np.full(n, other.pop("sure", max(hits.mean(), 0.6)))
    said = np.where(hits, truth, 1 - truth)
    recent = np.broadcast_to(recent, n)
    row = {
        "labels": LABELS,
        "truth": truth,
        "scores": np.where(said[:, None] == [0, 1], sure[:, None], 1 - sure[:, None]),
        "tokens": np.arange(n) % 7 * 10 + 10,
        "sources": ["feedback" if new else "base" for new in recent],
        "recent": recent,
        "milliseconds": 10.0,
        "size": 23_000_000,
    }
    return Showing(**{**row, **other})


def hits(n: int, wrong: int, start: int = 0) -> Any:
    """Right but for `wrong` rows from `start` on."""
    found = np.ones(n, dtype=bool)
    found[start : start + wrong] = False
    return found


def judge(candidate: Any, champion: Any, recent: Any = False, **rules: Any) -> Verdict:
    return gate.judge(show(candidate, recent), show(champion, recent), Rules(**rules))


def pair(rng: np.random.Generator, n: int, champion: float, gain: float, differ: float) -> Any:
    """Two models that differ on a share of the rows, the candidate `gain` more accurate on average; (2, n)."""
    draw = rng.random(n)
    gained, lost = draw < (differ + gain) / 2, draw > 1 - (differ - gain) / 2
    both = rng.random(n) < (champion - (differ - gain) / 2) / (1 - differ)
    return np.where(gained | lost, [gained, lost], [both, both])


def world(rng: np.random.Generator, gain: float, recent_gain: float, frozen: int = 1600, recent: int = 400) -> Any:
    """Candidate, champion, and the marks of the recent rows."""
    rows = np.hstack([pair(rng, frozen, 0.92, gain, 0.06), pair(rng, recent, 0.85, recent_gain, 0.12)])
    return rows[0], rows[1], np.arange(frozen + recent) >= frozen


def promoted(
    metric: str, draws: int, gain: float, recent_gain: float, triggers: Sequence[Any] = ("person", "drift")
) -> list[float]:
    """The share of drawn candidates that are promoted, by what asked for the retraining.

    Who is shown better on neither all nor the recent rows cannot be promoted, which is quickly seen; that the gate
    agrees is checked on the first of the draws.
    """
    rng = np.random.default_rng(17)
    found = []
    for draw in range(draws):
        candidate, champion, recent = world(rng, gain, recent_gain)
        models = show(candidate, recent), show(champion, recent)
        rules = Rules(metric=metric, draws=300, seed=draw)
        parts = [gate.compare(*models, rows, rules) for rows in (recent | True, recent)]
        hopeful = any(part.p_better < rules.alpha for part in parts)
        if hopeful or draw < 5:
            found.append([gate.judge(*models, replace(rules, trigger=trigger)).promote for trigger in triggers])
            assert hopeful or not any(found[-1])
    return [float(share) for share in np.sum(found, axis=0) / draws]


# how often it is wrong, at 2,000 rows, of which 400 are recent
@pytest.mark.parametrize(("metric", "draws"), [("accuracy", 1000), ("f1_macro", 400)])
def test_of_equal_candidates_at_most_a_twentieth_is_promoted(metric: str, draws: int) -> None:
    slack = 2 * (0.05 * 0.95 / draws) ** 0.5  # two standard errors: 1.4 points of 1,000 draws, 2.2 of 400
    shares = promoted(metric, draws, 0.0, 0.0)
    assert max(shares) <= 0.05 + slack
    assert min(shares) > 0.01, "a gate that nobody passes shows nothing"


@pytest.mark.parametrize(("metric", "draws"), [("accuracy", 400), ("f1_macro", 200)])
def test_of_candidates_that_are_a_point_worse_at_most_a_fiftieth_is_promoted(metric: str, draws: int) -> None:
    # Were it 2 %, 400 draws would show none with a chance of 0.03 %, and 200 with one of 1.8 %.
    assert promoted(metric, draws, -0.01, -0.01) == [0.0, 0.0]


def test_being_much_better_on_recent_rows_does_not_buy_off_a_point_lost_on_the_frozen_ones() -> None:
    # The bound promises 2.5 %; two standard errors of 150 draws are 2.5 points.
    (share,) = promoted("accuracy", 150, -0.01, 0.08, ["drift"])
    assert share <= 0.05


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_a_candidate_is_promoted_the_more_surely_the_better_it_is(metric: str) -> None:
    # Two standard errors of 40 draws are 16 points or less; the decision record has the shares of 1,000 draws.
    (one,), (two,), (three,) = (promoted(metric, 40, gain, gain, ["person"]) for gain in (0.01, 0.02, 0.03))
    assert 0.3 < one < 0.8
    assert two > 0.85
    assert three >= two


# the paired test
def test_one_more_lucky_row_than_the_champion_is_not_enough() -> None:
    verdict = judge(hits(1000, 0), hits(1000, 4))
    assert not verdict.promote
    assert verdict.reasons == [
        "the candidate is not shown better; it comes nearest on all rows: "
        "accuracy 1.0000 against 0.9960 on 1000 rows, +4 -0 (p = 0.062, not under 0.05)"
    ]
    verdict = judge(hits(1000, 0), hits(1000, 5))
    assert verdict.promote
    assert verdict.reasons == [
        "the candidate is better on all rows: "
        "accuracy 1.0000 against 0.9950 on 1000 rows, +5 -0 (p = 0.031, under 0.05)",
        "it loses less than 0.01 on the frozen rows: "
        "accuracy 1.0000 against 0.9950 on 1000 rows, +5 -0, a change of +0.0050 (+0.0012 to +0.0117)",
    ]


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_tie_keeps_the_champion(trigger: str, metric: str) -> None:
    same = hits(1000, 80)
    verdict = judge(same, same, np.arange(1000) >= 800, trigger=trigger, metric=metric)
    assert not verdict.promote
    assert verdict.reasons[0].startswith("the candidate is not shown better; it comes nearest on all rows: ")
    assert verdict.evidence["comparisons"]["all rows"]["p_better"] == 1.0


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_only_where_the_monitor_asked_are_recent_rows_enough(trigger: str) -> None:
    n, recent = 8400, np.arange(8400) >= 8000
    candidate, champion = hits(n, 30), hits(n, 42, start=8000)  # a little worse on the frozen rows, better on recent
    verdict = judge(candidate, champion, recent, trigger=trigger)
    assert verdict.promote is (trigger in ("drift", "accuracy"))
    if verdict.promote:
        assert verdict.reasons[0].startswith("the candidate is better on recent rows: ")
        assert verdict.evidence["level"] == 0.025
    else:
        assert verdict.reasons[0].startswith("the candidate is not shown better; it comes nearest on all rows: ")


def test_with_two_chances_each_is_tested_at_half_of_alpha() -> None:
    champion, recent = hits(1000, 5), np.arange(1000) >= 900  # p = 1/32
    assert judge(hits(1000, 0), champion, recent, trigger="person").promote
    assert not judge(hits(1000, 0), champion, recent, trigger="drift").promote
    # Where all rows are of one kind there is one chance.
    assert judge(hits(1000, 0), champion, trigger="drift").promote
    assert judge(hits(1000, 0), champion, True, trigger="drift").promote


@pytest.mark.parametrize(
    ("gained", "lost", "agreed"), [(12, 3, 100), (3, 12, 0), (0, 7, 5), (40, 41, 1), (600, 500, 0)]
)
def test_the_comparison_agrees_with_scipys_exact_test(gained: int, lost: int, agreed: int) -> None:
    candidate = show([True] * gained + [False] * lost + [True] * agreed + [False] * 2)
    champion = show([False] * gained + [True] * lost + [True] * agreed + [False] * 2)
    found = gate.compare(candidate, champion, ~candidate.recent, Rules())
    n = gained + lost + agreed + 2
    assert found.p_better == pytest.approx(binomtest(gained, gained + lost, alternative="greater").pvalue)
    assert found.p_worse == pytest.approx(binomtest(lost, gained + lost, alternative="greater").pvalue)
    assert (found.rows, found.gained, found.lost) == (n, gained, lost)
    assert (found.candidate, found.champion) == pytest.approx(((gained + agreed) / n, (lost + agreed) / n))
    assert found.change == pytest.approx(found.candidate - found.champion)
    assert found.low < found.change < found.high


def test_macro_f1_sees_what_accuracy_does_not() -> None:
    truth = np.arange(2000) % 20 == 0  # 5 % of the rows are positive
    columns = {"truth": truth.astype(np.int64)}
    blind, seeing = ~truth, np.ones(2000, dtype=bool)
    seeing[1:1000:10] = False  # finds each of the 100, at the price of 100 false alarms
    models = show(seeing, **columns), show(blind, **columns)
    everything = np.ones(2000, dtype=bool)
    assert gate.compare(*models, everything, Rules()).change == 0.0
    found = gate.compare(*models, everything, Rules(metric="f1_macro"))
    names = [[LABELS[column] for column in columns] for columns in (models[0].truth, *(m.predicted for m in models))]
    ours, theirs = (quality(names[0], said, LABELS).f1_macro for said in names[1:])
    assert (found.candidate, found.champion, found.change) == pytest.approx((ours, theirs, ours - theirs))
    assert found.p_better == pytest.approx(1 / 2001)
    assert found.low > 0.1
    assert gate.compare(*models[::-1], everything, Rules(metric="f1_macro")).high < -0.1


# the frozen rows
def test_a_candidate_that_forgot_the_frozen_rows_is_rejected_however_good_it_is_on_recent_ones() -> None:
    n, recent = 2400, np.arange(2400) >= 2000
    verdict = judge(hits(n, 40), hits(n, 200, start=2000), recent, trigger="drift")
    assert verdict.evidence["comparisons"]["all rows"]["p_better"] < 1e-6
    assert not verdict.promote
    assert verdict.reasons == [
        "the candidate is worse on the frozen rows: accuracy 0.9800 against 1.0000 on 2000 rows, +0 -40, "
        "a change of -0.0200 (-0.0271 to -0.0147), and 0.01 may be lost"
    ]
    assert judge(hits(n, 40), hits(n, 200, start=2000), recent, trigger="drift", margin=0.03).promote


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_where_rows_are_too_few_the_reason_says_how_many_are_needed(metric: str) -> None:
    def ask(times: int) -> Verdict:
        frozen, recent = 500 * times, 100
        rng = np.random.default_rng(3)
        candidate, champion = (hits(frozen, 20 * times, start=s) for s in (0, 20 * times))
        order = rng.permutation(frozen)  # so that no slice is hit more than another
        new = [hits(recent, wrong) for wrong in (0, 40)]
        rows = [np.concatenate([part[order], extra]) for part, extra in zip((candidate, champion), new, strict=True)]
        return judge(*rows, np.arange(frozen + recent) >= frozen, trigger="drift", metric=metric, draws=500)

    verdict = ask(1)
    assert not verdict.promote
    (reason,) = verdict.reasons
    assert reason.startswith("the candidate is not shown to lose less than 0.01 on the frozen rows: ")
    told = re.search(r"for which about (\d+) such rows are needed$", reason)
    assert told is not None
    needed = int(told[1])
    assert 2_000 < needed < 5_000
    assert not ask(round(0.7 * needed / 500)).promote
    assert ask(round(1.4 * needed / 500)).promote


# slices
def _slice_case(kind: str) -> tuple[Showing, Showing]:
    n = 3000
    rng = np.random.default_rng(5)
    recent = np.arange(n) >= 2400
    tokens = rng.permutation(n) + 10
    sources = [["base", "shop", "feedback"][2 if new else int(k % 3 == 0)] for k, new in enumerate(recent)]
    rows = {
        "length": tokens > np.quantile(tokens, 2 / 3),
        "label": np.arange(n) % 2 == 1,
        "source": np.array(sources) == "shop",
        "recency": recent,
    }[kind]
    candidate, champion = np.ones((2, n), dtype=bool)
    lost = rng.permutation(np.flatnonzero(rows))[: round(0.078 * rows.sum())]
    gained = rng.permutation(np.flatnonzero(~rows))[: 2 * len(lost)]
    candidate[lost], champion[gained] = False, False
    other = {"recent": recent, "tokens": tokens, "sources": sources}
    return show(candidate, **other), show(champion, **other)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("length", "length over 2009 tokens"),
        ("label", "label positive"),
        ("source", "source shop"),
        ("recency", "recency recent"),
    ],
)
def test_each_kind_of_slice_is_looked_at(kind: str, name: str) -> None:
    models = _slice_case(kind)
    verdict = gate.judge(*models, Rules(margin=0.2))
    assert not verdict.promote
    (reason,) = verdict.reasons
    assert reason.startswith(f"the candidate is worse on the slice {name}: accuracy 0.92")
    assert reason.endswith("and 0.05 may be lost there")
    assert gate.judge(*models, Rules(margin=0.2, slice_margin=0.1)).promote


def test_a_slice_of_few_rows_is_told_but_not_judged() -> None:
    n = 1000
    truth = (np.arange(n) < 40).astype(np.int64)
    candidate, champion = hits(n, 20), hits(n, 100, start=500)
    models = show(candidate, truth=truth), show(champion, truth=truth)
    verdict = gate.judge(*models, Rules(slice_margin=0.2))
    assert verdict.promote
    (told,) = [part for part in verdict.evidence["slices"] if part["slice"] == "label positive"]
    assert (told["rows"], told["lost"], told["judged"]) == (40, 20, False)
    assert not gate.judge(*models, Rules(slice_margin=0.2, slice_rows=40)).promote


def test_slices_part_the_rows_and_none_is_looked_at_twice() -> None:
    recent = np.arange(90) >= 60
    model = show(hits(90, 9), recent, tokens=np.arange(90))
    found = dict(gate.slices(model))
    assert list(found) == [
        "length up to 30 tokens",
        "length 30 to 59 tokens",
        "length over 59 tokens",
        "label negative",
        "label positive",
        "recency frozen",
        # The recent rows are those over 59 tokens here, and the sources say what recency said.
    ]
    assert sum(found[name].astype(int) for name in list(found)[:3]).tolist() == [1] * 90
    # Texts that were all cut at the same length are no slice of their own.
    assert not [name for name in dict(gate.slices(show(hits(90, 9), tokens=np.full(90, 64)))) if "length" in name]


# calibration and cost
def test_scores_that_are_further_from_the_truth_reject() -> None:
    candidate, champion = hits(2000, 100), hits(2000, 160, start=1000)
    good = show(champion, sure=0.92)
    assert gate.judge(show(candidate, sure=0.95), good, Rules()).promote
    verdict = gate.judge(show(candidate, sure=0.9999), good, Rules())
    assert not verdict.promote
    (reason,) = verdict.reasons
    assert reason.startswith(
        "the candidate's scores are worse calibrated: an expected error of 0.0499 against 0.0000, +0.0499 ("
    )
    assert gate.judge(show(candidate, sure=0.9999), good, Rules(calibration_margin=0.05)).promote


def test_a_model_that_uses_more_bins_is_not_taken_for_worse_calibrated() -> None:
    # Both say what is true; the candidate is less sure of some rows, which fills more bins and adds noise to its error.
    rejected = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sure = [rng.beta(2, 1, 500) / 2 + 0.5, rng.beta(30, 1, 500) / 2 + 0.5]
        models = [show(rng.random(500) < one, sure=one) for one in sure]
        assert calibration_error(models[0].scores, models[0].truth) > calibration_error(
            models[1].scores, models[1].truth
        )
        verdict = gate.judge(models[0], models[1], Rules(draws=200))
        rejected += any("calibrated" in reason for reason in verdict.reasons)
    assert rejected <= 6  # a fortieth lies over the interval, and two standard errors of 40 draws are 5 points


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        (
            {"milliseconds": 15.2},
            "the candidate takes 15.20 ms of CPU time a text against the champion's 10.00, more than 1.5 times as much",
        ),
        (
            {"size": 69_000_000},
            "the candidate has 69.00 MB against the champion's 23.00, more than 1.5 times as much",
        ),
    ],
)
def test_a_better_candidate_that_costs_too_much_is_rejected(worse: dict[str, Any], reason: str) -> None:
    champion = show(hits(1000, 50))
    verdict = gate.judge(show(hits(1000, 0), **worse), champion, Rules())
    assert (verdict.promote, verdict.reasons) == (False, [reason])
    assert gate.judge(show(hits(1000, 0), **worse), champion, Rules(latency_factor=2, size_factor=3)).promote
    as_much = {name: value / 1.6 * 1.5 for name, value in worse.items()}
    assert gate.judge(show(hits(1000, 0)), show(hits(1000, 50), **as_much), Rules()).promote


def test_every_rule_that_is_broken_is_told_and_the_worst_comes_first() -> None:
    candidate = show(hits(1000, 300), sure=0.9999, milliseconds=30.0, size=99_000_000)
    verdict = gate.judge(candidate, show(hits(1000, 50)), Rules())
    assert not verdict.promote
    starts = [
        "the candidate is worse on the frozen rows",
        "the candidate is not shown better",
        "the candidate is worse on the slice length up to 30 tokens",
        "the candidate is worse on the slice length 30 to 50 tokens",
        "the candidate is worse on the slice length over 50 tokens",
        "the candidate is worse on the slice label negative",
        "the candidate is worse on the slice label positive",
        "the candidate's scores are worse calibrated",
        "the candidate takes",
        "the candidate has",
    ]
    assert len(verdict.reasons) == len(starts)
    for reason, start in zip(verdict.reasons, starts, strict=True):
        assert reason.startswith(start)


# the first model
@pytest.mark.parametrize(("right", "promote"), [(70, True), (60, False), (50, False), (0, False)])
def test_the_first_model_has_to_beat_the_commonest_label(right: int, promote: bool) -> None:
    verdict = gate.judge(show(np.arange(100) < right), None, Rules())
    # 60 of 100 is over the half that a coin gets, but its interval reaches down to 0.497.
    assert verdict.promote is promote
    assert verdict.evidence["commonest_label"] == 0.5
    assert ("does not beat" in verdict.reasons[0]) is not promote


def test_always_answering_the_commonest_label_is_no_model() -> None:
    truth = (np.arange(100) >= 90).astype(np.int64)
    assert not gate.judge(show(np.arange(100) < 90, truth=truth), None, Rules()).promote


@pytest.mark.parametrize(
    ("floors", "reason"),
    [
        ({"floor_accuracy": 0.87}, "is not shown to reach the floor of 0.8700"),
        ({"floor_f1": 0.87}, "the candidate's macro F1 of 0.9000 (at least 0.8"),
    ],
)
def test_the_first_model_has_to_be_shown_to_reach_the_floors(floors: dict[str, float], reason: str) -> None:
    model = show(hits(200, 20))
    verdict = gate.judge(model, None, Rules(**floors))
    assert not verdict.promote
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]
    assert gate.judge(model, None, Rules(**dict.fromkeys(floors, 0.84))).promote


# what is told
@pytest.mark.parametrize("with_champion", [True, False])
@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_the_evidence_is_plain_json_that_says_everything(with_champion: bool, metric: str) -> None:
    candidate, champion, recent = world(np.random.default_rng(6), 0.0, 0.1)
    models = show(candidate, recent), show(champion, recent)
    rules = Rules(trigger="drift", metric=metric, draws=200)
    verdict = gate.judge(models[0], models[1] if with_champion else None, rules)
    assert json.loads(json.dumps(verdict.evidence, allow_nan=False)) == verdict.evidence
    assert verdict.evidence["rules"] == asdict(rules)
    said = [[LABELS[k] for k in column] for column in (models[0].truth, models[0].predicted)]
    own = quality(*said, LABELS)
    for name in ("accuracy", "low", "high", "f1_macro"):
        assert verdict.evidence["candidate"][name] == pytest.approx(getattr(own, name), rel=1e-5)
    if with_champion:
        assert list(verdict.evidence["comparisons"]) == ["all rows", "recent rows", "frozen rows"]
        assert verdict.evidence["comparisons"]["recent rows"]["rows"] == recent.sum()
        assert {part["slice"] for part in verdict.evidence["slices"]} == set(dict(gate.slices(models[0])))
        for part in verdict.evidence["slices"]:
            assert part["low"] <= part["change"] <= part["high"]


def test_the_same_rows_and_rules_give_the_same_verdict() -> None:
    candidate, champion, recent = world(np.random.default_rng(8), 0.01, 0.05)
    rules = {"trigger": "drift", "metric": "f1_macro", "draws": 300}
    assert judge(candidate, champion, recent, **rules) == judge(candidate, champion, recent, **rules)
    assert judge(candidate, champion, recent, **rules) != judge(candidate, champion, recent, **rules, seed=1)


def test_a_thousand_labels_fit_into_the_state_of_the_workflow() -> None:
    rng, n = np.random.default_rng(9), 4000
    labels = [f"a label with a long name and the number {k}" for k in range(1000)]
    truth = np.arange(n) % 1000

    def model(wrong: float) -> Showing:
        said = np.where(rng.random(n) < wrong, rng.integers(1000, size=n), truth)
        scores = np.full((n, 1000), 1e-4)
        scores[np.arange(n), said] = 0.9
        return Showing(labels, truth, scores, np.arange(n), ["base"] * n, np.zeros(n, dtype=bool), 1.0, 1)

    verdict = gate.judge(model(0.1), model(0.2), Rules(draws=50))
    assert verdict.promote
    assert len(json.dumps([verdict.evidence, verdict.reasons])) < 100_000  # of 256 kB


# what cannot be judged
def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the columns differ in length"):
        show(hits(4, 1), tokens=np.arange(3))
    with pytest.raises(ValueError, match="the columns differ in length"):
        show(hits(4, 1), sources=["base"] * 5)


@pytest.mark.parametrize(
    ("scores", "truth"),
    [([], []), ([[np.nan, 1.0]], [0]), ([[0.5, 0.5]], [2])],
    ids=["no rows", "not finite", "no such label"],
)
def test_scores_that_are_none_are_refused(scores: Sequence[Any], truth: Sequence[int]) -> None:
    n = len(truth)
    table, column = np.reshape(scores, (n, 2)).astype(float), np.array(truth, dtype=np.int64)
    model = Showing(LABELS, column, table, column, ["base"] * n, np.zeros(n, dtype=bool), 1.0, 1)
    with pytest.raises(ValueError, match=r"n > 0|not finite|whole numbers"):
        gate.judge(model, None, Rules())


@pytest.mark.parametrize(
    "other",
    [{"truth": np.zeros(10, dtype=np.int64)}, {"recent": np.ones(10, dtype=bool)}, {"labels": LABELS[::-1]}],
    ids=["truth", "recent", "labels"],
)
def test_models_that_answered_other_rows_are_not_compared(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="did not answer the same rows"):
        gate.judge(show(hits(10, 1)), show(hits(10, 1), **other), Rules())


@pytest.mark.parametrize(
    "wrong", [{"metric": "recall"}, {"alpha": 0.0}, {"alpha": 5.0}, {"margin": 1.0}, {"margin": -0.01}]
)
def test_rules_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(WrongSetting, match=f"GATE_{next(iter(wrong)).upper()}"):
        Rules(**wrong)
