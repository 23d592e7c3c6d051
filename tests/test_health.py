"""What is due, case by case, and what no case may ever lead to."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrue.errors import WrongSetting
from retrue.health import MODES, Decision, Policy, Signs, decide

DRIFT = "the texts have drifted, most of all in length"
ACCURACY = "accuracy on 300 labels is 0.850 (0.805 to 0.888), and 0.900 is tolerated"
LABELS, OVERDUE, SUGGESTED = (
    "drift alone does not say what is right",
    "one is due even without a sign",
    "mode is suggest",
)
ASKED, TOLD = "the last request for a retraining was", "the last request for labels was"
QUIET = Signs(drift=None, accuracy=None, model_hours=240.0, hours_since_request=None, new_labels=0)
DRIFTED, LOW, OLD = {"drift": DRIFT}, {"accuracy": ACCURACY}, {"model_hours": 721.0}
SUGGEST = {"mode": "suggest"}


def judge(signs: dict[str, Any], **policy: Any) -> Decision:
    """What is due for a model of ten days, with the given signs."""
    return decide(replace(QUIET, **signs), Policy(**policy))


@pytest.mark.parametrize(
    ("signs", "policy", "action", "trigger", "reasons"),
    [
        pytest.param({}, {}, "none", None, [], id="all is well"),
        pytest.param({"new_labels": 5000}, {}, "none", None, [], id="labels alone are no reason"),
        pytest.param({"hours_since_request": 1.0}, {}, "none", None, [], id="a cool-down alone is no reason"),
        pytest.param({}, SUGGEST, "none", None, [], id="all is well where a person decides"),
        # accuracy
        pytest.param(LOW, {}, "retrain", "accuracy", [ACCURACY], id="low accuracy"),
        pytest.param(LOW, SUGGEST, "suggest", "accuracy", [ACCURACY, SUGGESTED], id="low accuracy, a person decides"),
        pytest.param(LOW | DRIFTED, {}, "retrain", "drift", [ACCURACY, DRIFT], id="drift explains low accuracy"),
        pytest.param(LOW | OLD, {}, "retrain", "accuracy", [ACCURACY], id="low accuracy of an old model"),
        # drift
        pytest.param(DRIFTED, {}, "label", "drift", [DRIFT, LABELS], id="drift without labels"),
        pytest.param(DRIFTED | {"new_labels": 199}, {}, "label", "drift", [DRIFT, LABELS], id="one label too few"),
        pytest.param(DRIFTED | {"new_labels": 200}, {}, "retrain", "drift", [DRIFT], id="just enough labels"),
        pytest.param(
            DRIFTED | {"new_labels": 200}, SUGGEST, "suggest", "drift", [DRIFT, SUGGESTED], id="labels and a person"
        ),
        pytest.param(DRIFTED, SUGGEST, "label", "drift", [DRIFT, LABELS], id="labels are asked for in either mode"),
        pytest.param(DRIFTED, {"labels_wanted": 0}, "retrain", "drift", [DRIFT], id="no labels wanted"),
        pytest.param(DRIFTED, {"drift_retrains_at_once": True}, "retrain", "drift", [DRIFT], id="drift at once"),
        # the backstop
        pytest.param(OLD, {}, "retrain", "schedule", [OVERDUE], id="an old model"),
        pytest.param(OLD, SUGGEST, "suggest", "schedule", [OVERDUE, SUGGESTED], id="an old model, a person decides"),
        pytest.param(OLD, {"backstop_days": 0}, "none", None, [], id="no backstop"),
        pytest.param(OLD, {"backstop_days": 31}, "none", None, [], id="a later backstop"),
        pytest.param({"model_hours": 720.0}, {}, "none", None, [], id="a model just young enough"),
        pytest.param(OLD | {"hours_since_request": 720.0}, {}, "none", None, [], id="an old model, asked about lately"),
        pytest.param(
            OLD | {"hours_since_request": 721.0}, {}, "retrain", "schedule", [OVERDUE], id="an old model and request"
        ),
        pytest.param({"hours_since_request": 9e3}, {}, "none", None, [], id="a young model, nobody asked for long"),
        pytest.param(
            OLD | DRIFTED, {}, "retrain", "schedule", [DRIFT, OVERDUE], id="the backstop needs no labels, drift or not"
        ),
        # the cool-down
        pytest.param(
            LOW | {"hours_since_request": 119.9}, {}, "wait", "accuracy", [ACCURACY, ASKED], id="still cooling down"
        ),
        pytest.param(LOW | {"hours_since_request": 120.0}, {}, "retrain", "accuracy", [ACCURACY], id="cooled down"),
        pytest.param(
            LOW | {"hours_since_request": 0.0}, {"cooldown_hours": 0}, "retrain", "accuracy", [ACCURACY], id="no rest"
        ),
        pytest.param(
            LOW | {"hours_since_request": 1.0}, SUGGEST, "wait", "accuracy", [ACCURACY, ASKED], id="just told"
        ),
        pytest.param(
            DRIFTED | {"hours_since_labels_asked": 119.9}, {}, "wait", "drift", [DRIFT, LABELS, TOLD], id="labels asked"
        ),
        pytest.param(
            DRIFTED | {"hours_since_labels_asked": 120.0}, {}, "label", "drift", [DRIFT, LABELS], id="asked long ago"
        ),
        pytest.param(
            DRIFTED | {"hours_since_labels_asked": 1.0, "new_labels": 200}, {}, "retrain", "drift", [DRIFT],
            id="labels that came at once are used at once",
        ),
        pytest.param(
            DRIFTED | {"hours_since_request": 1.0}, {}, "wait", "drift", [DRIFT, LABELS, ASKED], id="asked just now"
        ),
        pytest.param(
            LOW | {"hours_since_labels_asked": 1.0}, {}, "retrain", "accuracy", [ACCURACY], id="labels asked just now"
        ),
    ],
)  # fmt: skip
def test_what_is_due_follows_from_the_signs_and_the_policy(
    signs: dict[str, Any], policy: dict[str, Any], action: str, trigger: str | None, reasons: list[str]
) -> None:
    decision = judge(signs, **policy)
    assert (decision.action, decision.trigger) == (action, trigger)
    assert len(decision.reasons) == len(reasons)
    for found, expected in zip(decision.reasons, reasons, strict=True):
        assert expected in found


def test_the_reasons_say_what_to_do_and_with_which_numbers() -> None:
    assert judge(DRIFTED | {"new_labels": 60}).reasons[1] == (
        "drift alone does not say what is right: give 140 more labels with `retrue feedback --file labels.csv` "
        "(a retraining needs 200, and 60 are new)"
    )
    assert "give 1 more label with" in judge(DRIFTED | {"new_labels": 199}).reasons[1]
    assert judge({"model_hours": 31.26 * 24}).reasons == [
        "the model is 31.3 days old and no retraining was requested in the last 30 days: one is due even without a sign"
    ]
    assert judge(LOW | {"hours_since_request": 2.0}).reasons[1] == (
        "the last request for a retraining was 2.0 hours ago, and the cool-down is 120 hours"
    )
    assert judge(DRIFTED | {"hours_since_labels_asked": 7.25}, cooldown_hours=24.5).reasons[2] == (
        "the last request for labels was 7.2 hours ago, and the cool-down is 24.5 hours"
    )
    assert judge(LOW, mode="suggest").reasons[1] == (
        "nothing was started, since the mode is suggest: start it with `retrue retrain`"
    )


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"mode": "maybe"}, "automatic, suggest"),
        ({"cooldown_hours": -1.0}, "COOLDOWN_HOURS is not 0 or more"),
        ({"backstop_days": float("nan")}, "BACKSTOP_DAYS is not 0 or more"),
        ({"labels_wanted": -1}, "LABELS_WANTED is not 0 or more"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongSetting, match=message):
        Policy(**policy)


HOURS = st.floats(0, 3_000)
POLICIES = st.builds(
    Policy,
    mode=st.sampled_from(MODES),
    cooldown_hours=st.floats(0, 300),
    backstop_days=st.one_of(st.just(0.0), st.floats(0.1, 90)),
    labels_wanted=st.integers(0, 500),
    drift_retrains_at_once=st.booleans(),
)
SIGNS = st.builds(
    Signs,
    drift=st.sampled_from([None, DRIFT]),
    accuracy=st.sampled_from([None, ACCURACY]),
    model_hours=HOURS,
    hours_since_request=st.none() | HOURS,
    new_labels=st.integers(0, 600),
    hours_since_labels_asked=st.none() | HOURS,
)


@given(SIGNS, POLICIES)
def test_where_a_person_decides_nothing_is_started_and_the_same_is_due(signs: Signs, policy: Policy) -> None:
    suggested, done = decide(signs, replace(policy, mode="suggest")), decide(signs, replace(policy, mode="automatic"))
    assert suggested.action != "retrain"
    assert done.action != "suggest"
    assert suggested.action == {"retrain": "suggest"}.get(done.action, done.action)
    assert suggested.trigger == done.trigger


@given(SIGNS, POLICIES)
def test_a_young_model_without_a_sign_is_left_alone(signs: Signs, policy: Policy) -> None:
    calm = replace(signs, drift=None, accuracy=None)
    decision = decide(calm, policy)
    if calm.model_hours <= policy.backstop_days * 24 or not policy.backstop_days:
        assert decision == Decision("none", None, [])
    assert decision.trigger in (None, "schedule")


@given(SIGNS, POLICIES)
def test_no_sign_is_lost_and_every_action_has_its_reason(signs: Signs, policy: Policy) -> None:
    decision = decide(signs, policy)
    fired = [sign for sign in (signs.accuracy, signs.drift) if sign]
    assert decision.reasons[: len(fired)] == fired
    assert (decision.action == "none") == (decision.trigger is None) == (not decision.reasons)
    assert decision.action != "none" or not fired
    assert decision.action != "label" or (signs.new_labels < policy.labels_wanted and not signs.accuracy)


@given(
    st.lists(st.tuples(st.floats(0.5, 100), st.sampled_from([None, DRIFT]), st.sampled_from([None, ACCURACY]),
                       st.integers(0, 300)), max_size=40),
    POLICIES,
)  # fmt: skip
def test_two_requests_of_a_kind_are_never_closer_than_the_cool_down(
    checks: list[tuple[float, str | None, str | None, int]], policy: Policy
) -> None:
    now, asked = 0.0, dict.fromkeys(["retraining", "labels"], -1e9)
    for hours, drift, accuracy, labels in checks:
        now += hours
        since = {kind: now - time if time >= 0 else None for kind, time in asked.items()}
        signs = Signs(drift, accuracy, now, since["retraining"], labels, since["labels"])
        action = decide(signs, policy).action
        if action in ("retrain", "suggest", "label"):
            kind = "labels" if action == "label" else "retraining"
            assert now - asked[kind] >= policy.cooldown_hours
            assert kind == "retraining" or now - asked["retraining"] >= policy.cooldown_hours
            asked[kind] = now
