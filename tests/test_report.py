"""What is said of a check: sentences, lines for a terminal, points for pictures, and metrics."""

from typing import Any

import numpy as np
import pytest

from retrue import report
from retrue.drift import Drift
from retrue.records import Label
from retrue.telemetry import Metric

NOW = 1_700_000_000_000
SEEN = Drift(200, 0.21, 9.5, 3.4, 2e-7, "length", {"embedding": 0.21, "length": 0.6}, {})


def labels(right: int, wrong: int, **other: Any) -> list[Label]:
    kinds = [("positive", "positive")] * right + [("negative", "positive")] * wrong
    return [
        Label(
            str(k), "t", truth, "m", said, {"negative": 0.2, "positive": 0.8}, "http", tokens=k, origin="http", **other
        )
        for k, (truth, said) in enumerate(kinds)
    ]


def full(evidence: float = 9_000.0) -> report.Report:
    found = report.blank(NOW, "automatic") | {"model": "m", "tolerated_accuracy": 0.9, "expected_accuracy": 0.93}
    found["drift"] = report.drifted(SEEN, {"length": 1.2}, evidence, 8_760.0)
    found |= report.labelled(labels(80, 20), ["negative", "positive"], evidence, 8_760.0)
    found["ages"] = {"model_hours": 3.0, "label_hours": 1.5, "text_hours": 0.0, "check_hours": None}
    return found


def test_a_report_of_nothing_has_every_key_of_one_that_knows_everything() -> None:
    blank = report.blank(NOW, "automatic")
    assert full().keys() == blank.keys()
    assert blank["time"] == "2023-11-14T22:13:20.000Z"
    assert report.sentences(blank) == (None, None)
    assert report.measured(blank).keys() == {
        Metric.WINDOW_ROWS,
        Metric.RETRAIN_REQUESTED,
        Metric.LABELS_WANTED,
        Metric.HEARTBEAT,
    }


def test_where_no_label_ever_came_their_age_is_the_models() -> None:
    found = full()
    assert report.measured(found)[Metric.LABEL_AGE_HOURS] == 1.5
    found["ages"]["label_hours"] = None
    assert report.measured(found)[Metric.LABEL_AGE_HOURS] == found["ages"]["model_hours"] == 3.0


def test_only_a_detector_that_fired_says_something() -> None:
    texts, accuracy = report.sentences(full())
    assert texts is not None
    assert accuracy is not None
    assert "most of all in length" in texts
    assert "on 200 rows (p = 2e-07)" in texts
    assert "accuracy on 100 labels is 0.800 (0.708 to 0.873)" in accuracy
    assert "under the 0.900 that is tolerated" in accuracy
    assert report.sentences(full(8_759.0)) == (None, None)


def test_a_comparison_without_a_detector_does_not_fire_by_itself() -> None:
    assert report.drifted(SEEN, {}, None, None)["fired"] is False


def test_labels_are_told_as_they_are() -> None:
    found = full()
    assert found["confusion"] == {"labels": ["negative", "positive"], "counts": [[0, 20], [0, 80]]}
    assert found["f1"]["per_class"]["negative"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    macro = found["f1"]
    assert macro["macro"] == pytest.approx(2 * 80 / 180 / 2)
    assert macro["low"] < macro["macro"] < macro["high"]
    assert found["calibration_error"] == pytest.approx(0.0, abs=1e-9)
    by = {(part["by"], part["part"]): part["n"] for part in found["slices"]}
    assert by[("label", "positive")] == 80
    assert by[("label", "negative")] == 20
    assert sum(n for (kind, _), n in by.items() if kind == "length") == 100


def test_a_slice_with_few_labels_is_not_told() -> None:
    found = report.labelled(labels(90, 10), ["negative", "positive"], 0.0, 1.0)
    assert "label" not in {part["by"] for part in found["slices"]}
    assert np.all([part["n"] >= report.LEAST for part in found["slices"]])


def test_an_earlier_window_makes_no_second_point() -> None:
    found = full()
    assert report.point(found)["statistic"] == 9.5
    found["drift_reason"] = "3 new rows are too few to judge: 50 are needed"
    assert report.point(found)["statistic"] is None
    assert report.point(found)["accuracy"] == 0.8
    # What the detector has is known all the same, and an alarm does not end because nobody wrote.
    assert report.measured(found)[Metric.DRIFT_FIRED] == 1.0


def test_the_lines_for_a_terminal_say_what_is_known_and_why_the_rest_is_not() -> None:
    told = dict(report.lines(full()))
    assert told["drift"].startswith("distance 0.210 sd on 200 texts, most in length;")
    assert told["drift"].endswith("evidence 9e+03 of 8,760")
    assert told["newest label"] == "1.5 hours ago"
    assert told["decision"] == "none"
    blank = report.blank(NOW, "automatic") | {"model": "m", "drift_reason": "too few", "accuracy_reason": "none yet"}
    assert [name for name, _ in report.lines(blank)] == ["model", "drift", "accuracy", "decision"]
