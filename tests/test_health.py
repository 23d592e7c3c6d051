"""The decision to retrain, case by case."""

from typing import Any

import pytest

from retrue.drift import Drift
from retrue.health import Decision, decide
from retrue.metrics import Quality


def drifted(fired: bool) -> Drift:
    return Drift(
        n=500,
        distance=0.31,
        statistic=12.5 if fired else 0.4,
        threshold=6.1,
        p=1e-7 if fired else 0.3,
        worst="length",
        distances={"embedding": 0.31, "length": 0.6, "margin": 0.1},
        quantiles={},
    )


def measured(n: int, high: float) -> Quality:
    return Quality(
        n=n,
        accuracy=high - 0.05,
        low=high - 0.1,
        high=high,
        f1_macro=high - 0.05,
        f1={"negative": high - 0.05, "positive": high - 0.05},
        confusion=[[n, 0], [0, 0]],
        labels=["negative", "positive"],
    )


def judge(**changes: Any) -> Decision:
    """A healthy model that promised 0.93 and may lose 0.03, with the given changes."""
    healthy: dict[str, Any] = {
        "drift": drifted(False),
        "quality": measured(200, 0.95),
        "expected_accuracy": 0.93,
        "tolerated_drop": 0.03,
        "minimum_labels": 100,
        "hours_since_request": None,
        "cooldown_hours": 24.0,
    }
    return decide(**{**healthy, **changes})


DRIFT, ACCURACY, COOLDOWN = "the texts have drifted", "accuracy on", "the cool-down is"
LOW = measured(200, 0.89)


@pytest.mark.parametrize(
    ("changes", "action", "reasons"),
    [
        pytest.param({}, "none", [], id="all is well"),
        pytest.param({"drift": None, "quality": None}, "none", [], id="nothing to look at"),
        pytest.param({"drift": drifted(True)}, "retrain", [DRIFT], id="drift"),
        pytest.param({"drift": drifted(True), "quality": None}, "retrain", [DRIFT], id="drift without labels"),
        pytest.param({"quality": LOW}, "retrain", [ACCURACY], id="low accuracy"),
        pytest.param({"quality": LOW, "drift": None}, "retrain", [ACCURACY], id="low accuracy without a window"),
        pytest.param({"quality": LOW, "drift": drifted(True)}, "retrain", [DRIFT, ACCURACY], id="both"),
        pytest.param({"quality": measured(99, 0.2)}, "none", [], id="one label too few"),
        pytest.param({"quality": measured(100, 0.2)}, "retrain", [ACCURACY], id="just enough labels"),
        pytest.param({"quality": measured(200, 0.91)}, "none", [], id="low, but not shown to be"),
        pytest.param({"quality": LOW, "tolerated_drop": 0.05}, "none", [], id="a drop that is tolerated"),
        pytest.param({"quality": LOW, "expected_accuracy": 0.9}, "none", [], id="never promised to be better"),
        pytest.param(
            {"drift": drifted(True), "hours_since_request": 23.9}, "wait", [DRIFT, COOLDOWN], id="still cooling down"
        ),
        pytest.param({"quality": LOW, "hours_since_request": 0.0}, "wait", [ACCURACY, COOLDOWN], id="asked just now"),
        pytest.param({"drift": drifted(True), "hours_since_request": 24.0}, "retrain", [DRIFT], id="cooled down"),
        pytest.param({"drift": drifted(True), "hours_since_request": 1.0, "cooldown_hours": 0.0}, "retrain", [DRIFT]),
        pytest.param({"hours_since_request": 1.0}, "none", [], id="a cool-down alone is no reason"),
    ],
)
def test_a_retraining_is_asked_for_when_there_is_a_shown_reason_and_none_was_asked_for_lately(
    changes: dict[str, Any], action: str, reasons: list[str]
) -> None:
    decision = judge(**changes)
    assert decision.action == action
    assert len(decision.reasons) == len(reasons)
    for found, expected in zip(decision.reasons, reasons, strict=True):
        assert expected in found


def test_the_reasons_give_the_numbers() -> None:
    decision = judge(drift=drifted(True), quality=LOW, hours_since_request=2.0)
    assert decision.reasons == [
        "the texts have drifted, most of all in length: "
        "statistic 12.50 over the threshold 6.10 on 500 rows (p = 1e-07)",
        "accuracy on 200 labels is 0.840 (0.790 to 0.890), under the 0.900 that is tolerated",
        "a retraining was requested 2.0 hours ago, and the cool-down is 24.0",
    ]
