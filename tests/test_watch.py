"""The monitor on real predictions of a small real model."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue import artifact, corpus, drift, watch
from retrue.classifier import Classifier
from retrue.errors import Busy, ModelRefused
from retrue.lake import Lake
from retrue.records import Label, Prediction, from_iso, iso, new_id
from retrue.report import Report
from retrue.settings import Monitor
from retrue.telemetry import Metric
from retrue.watch import HOUR, STATE

BUCKET = "retrue-test"
NOW = time.time_ns() // 1_000_000 - 4 * HOUR  # CloudWatch takes no metrics from the far past or future
SETTINGS = Monitor(
    bucket=BUCKET,
    environment="test",
    model_parameter="/retrue/test/model",
    minimum_labels=20,
    label_days=2,
    backstop_days=0,
)
ODD = [f"{n} {n * 7 % 13} !!! ??? {n * 31 % 97} ..." for n in range(120)]


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("s3")


@pytest.fixture
def lake(s3: Any, tiny_model: Path, classifier: Classifier) -> Iterator[Lake]:
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    lake = Lake(BUCKET, s3)
    for name in (artifact.CARD, artifact.REFERENCE, artifact.MANIFEST):
        lake.put(f"models/{classifier.model}/{name}", (tiny_model / name).read_bytes())
    yield lake
    for key in list(lake.keys("")):
        s3.delete_object(Bucket=BUCKET, Key=key)
    s3.delete_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> Classifier:
    return Classifier.open(tiny_model)


@pytest.fixture(scope="module")
def usual(classifier: Classifier) -> list[Prediction]:
    """Predictions for new texts of the kind that the model was proved on."""
    return scored(classifier, [example.text for example in corpus.generate(seed=77, rows=240, domain="films")], NOW)


@pytest.fixture(scope="module")
def odd(classifier: Classifier) -> list[Prediction]:
    return scored(classifier, ODD, NOW)


def scored(classifier: Classifier, texts: Sequence[str], now_ms: int) -> list[Prediction]:
    return [
        classifier.score(text).record(
            new_id(now_ms - HOUR - number // 20 * 60_000, number.to_bytes(10)), classifier.model, "http"
        )
        for number, text in enumerate(texts)
    ]


def write(lake: Lake, predictions: Sequence[Prediction]) -> None:
    for first in range(0, len(predictions), 20):
        lake.write_predictions(list(predictions[first : first + 20]))


def truths(predictions: Sequence[Prediction], wrong: int, hours_ago: float = 1.0, **other: Any) -> list[Label]:
    """A label for each prediction, the first `wrong` of which say that the model was wrong."""
    opposite = {"negative": "positive", "positive": "negative"}
    return [
        Label(
            **{
                "id": p.id,
                "time": iso(NOW - round(hours_ago * HOUR)),
                "label": opposite[p.label] if n < wrong else p.label,
                "model": p.model,
                "predicted": p.label,
                "scores": p.scores,
                "source": "http",
                "tokens": p.tokens,
                "origin": "http",
                **other,
            }
        )
        for n, p in enumerate(predictions)
    ]


def ran(
    lake: Lake, classifier: Classifier, now: int = NOW, **other: Any
) -> tuple[Report, list[tuple[str, dict[str, Any]]]]:
    """The report of one run, and the events that it sent."""
    sent: list[tuple[str, dict[str, Any]]] = []
    settings = replace(SETTINGS, **other)
    uri = lake.uri(f"models/{classifier.model}/")
    return watch.run(lake, uri, settings, now, lambda kind, detail: sent.append((kind, detail))), sent


def checked(lake: Lake, classifier: Classifier, now: int = NOW, **other: Any) -> Report:
    return ran(lake, classifier, now, **other)[0]


def model_hours(classifier: Classifier) -> float:
    return (NOW - from_iso(classifier.card.created)) / HOUR


def published(printed: str) -> dict[str, float]:
    """The metrics in lines of the Embedded Metric Format."""
    values: dict[str, float] = {}
    for line in printed.splitlines():
        document = json.loads(line)
        assert document["Environment"] == "test" or document["Environment"] == ["test"]
        for group in document["_aws"]["CloudWatchMetrics"]:
            for metric in group["Metrics"]:
                value = document[metric["Name"]]
                values[metric["Name"]] = value[0] if isinstance(value, list) else value
    return values


def test_too_few_rows_are_no_evidence_and_wait_for_the_next_check(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd[:40])
    report = checked(lake, classifier)
    assert (report["n"], report["drift"], report["decision"]) == (40, None, "none")
    assert report["drift_reason"] == "40 new rows are too few to judge: 50 are needed"
    assert lake.get_json(STATE)["drift"] == 0
    write(lake, odd[40:60])
    later = checked(lake, classifier, NOW + HOUR)
    assert (later["n"], later["drift"]["n"], later["drift_reason"]) == (60, 60, None)


def test_a_minimum_that_cannot_be_judged_is_raised_to_one_that_can(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd[:5])
    assert checked(lake, classifier, minimum_rows=1)["drift_reason"] == (
        f"5 new rows are too few to judge: {drift.SIZES[0]} are needed"
    )


def test_texts_of_the_usual_kind_raise_no_alarm(lake: Lake, classifier: Classifier, usual: list[Prediction]) -> None:
    write(lake, usual)
    report = checked(lake, classifier)
    assert report["n"] == 240
    assert not report["drift"]["fired"]
    assert report["drift"]["evidence"] < report["drift"]["limit"] == SETTINGS.run_length
    assert (report["decision"], report["reasons"]) == ("none", [])
    assert 0.5 < report["estimated_accuracy"] < 1


def test_a_text_is_evidence_once(lake: Lake, classifier: Classifier, usual: list[Prediction]) -> None:
    write(lake, usual)
    first = checked(lake, classifier)
    again = checked(lake, classifier, NOW + HOUR)
    assert (again["n"], again["drift_reason"]) == (0, "0 new rows are too few to judge: 50 are needed")
    assert again["drift"] == first["drift"]
    assert list(lake.keys("capture/")) == []
    assert [lake.find_prediction(one.id) for one in usual[:3]] == usual[:3]


def test_evidence_adds_up_over_checks_and_survives_in_the_lake(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    levels = []
    for number in range(4):
        write(lake, usual[number * 60 : number * 60 + 60])
        report = checked(lake, classifier, NOW + number * HOUR)
        levels.append(report["drift"]["evidence"])
        assert lake.get_json(STATE)["drift"] == levels[-1]
    values = [levels[0], *(later / (before + 1) for before, later in itertools.pairwise(levels))]
    assert all(0 < value < 10 for value in values)
    state = lake.get_json(STATE)
    assert [point["evidence"] for point in state["points"]] == levels
    assert [window["n"] for window in state["past"]] == [60] * 4


def test_very_different_texts_raise_the_alarm_and_say_where(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)
    report = checked(lake, classifier)
    found = report["drift"]
    assert found["fired"]
    assert found["statistic"] > found["threshold"]
    assert tuple(found["distances"]) == drift.GROUPS
    assert (report["decision"], report["trigger"]) == ("label", "drift")
    assert report["reasons"][0].startswith(f"the texts have drifted, most of all in {found['worst']}")
    assert lake.get_json(STATE)["past"] == []


def test_only_rows_of_this_model_are_judged_and_of_many_a_part_drawn_by_lot(
    lake: Lake, classifier: Classifier, usual: list[Prediction], odd: list[Prediction]
) -> None:
    write(lake, usual)
    write(lake, [replace(one, id=f"{one.id[:-12]}f{one.id[-11:]}", model="another") for one in odd])
    report = checked(lake, classifier, window_rows=100)
    assert report["n"] == report["drift"]["n"] == 100
    assert not report["drift"]["fired"]
    # From early and late rows alike.
    assert report["window"]["from"] < usual[100].time or report["window"]["from"] < usual[0].time
    assert list(lake.keys("capture/")) == []


def test_rows_of_a_model_that_served_before_do_not_pile_up(
    lake: Lake, classifier: Classifier, usual: list[Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lake, [replace(one, model="another") for one in usual])
    checked(lake, classifier)
    assert len(list(lake.keys("capture/"))) == 12
    monkeypatch.setattr(watch, "FULL", 200)
    checked(lake, classifier, NOW + HOUR)
    assert list(lake.keys("capture/")) == []


@pytest.mark.parametrize("name", [artifact.MODEL, artifact.WEIGHTS])
def test_a_reference_that_another_graph_made_is_refused(
    lake: Lake, classifier: Classifier, usual: list[Prediction], name: str
) -> None:
    write(lake, usual)
    key = f"models/{classifier.model}/{artifact.MANIFEST}"
    manifest = lake.get_json(key)
    lake.put_json(key, {"files": {**manifest["files"], name: "0" * 64}})
    with pytest.raises(ModelRefused, match="reference"):
        checked(lake, classifier)
    assert len(list(lake.keys("capture/"))) == 12


def test_of_two_checks_at_the_same_time_one_counts(
    lake: Lake, classifier: Classifier, usual: list[Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lake, usual)
    put = lake.put_json_if

    def late(key: str, value: Any, etag: str | None) -> bool:
        lake.put_json(key, {**value, "drift": 0.5})
        return put(key, value, etag)

    with monkeypatch.context() as patch:
        patch.setattr(lake, "put_json_if", late)
        with pytest.raises(Busy, match="look at its report"):
            checked(lake, classifier)
    assert lake.get_json(STATE)["drift"] == 0.5


def test_accuracy_comes_with_its_interval_and_its_number_of_labels(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    lake.write_labels(truths(usual[:50], wrong=5))
    report = checked(lake, classifier)
    accuracy = report["accuracy"]
    assert (accuracy["value"], accuracy["n"], accuracy["fired"]) == (0.9, 50, False)
    # The interval is what SciPy's binomtest gives for 45 of 50 by the exact method.
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.781864, 0.966724), abs=1e-6)
    f1 = report["f1"]
    assert f1["per_class"].keys() == {"negative", "positive"}
    assert f1["low"] < f1["macro"] < f1["high"]
    assert f1["macro"] == pytest.approx(sum(one["value"] for one in f1["per_class"].values()) / 2)
    assert sum(map(sum, report["confusion"]["counts"])) == f1["n"] == 50
    assert 0 <= report["calibration_error"] <= 1
    assert {part["by"] for part in report["slices"]} <= {"label", "length"}


def test_nothing_is_claimed_under_the_minimum_of_labels(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    lake.write_labels(truths(usual[:19], wrong=19))
    report = checked(lake, classifier)
    known = (report["accuracy"], report["f1"], report["confusion"], report["calibration_error"], report["slices"])
    assert known == (None, None, None, None, [])
    assert report["accuracy_reason"] == "19 labels are too few to judge: 20 are needed"
    assert report["decision"] == "none"


def test_the_newest_label_of_a_prediction_wins(lake: Lake, classifier: Classifier, usual: list[Prediction]) -> None:
    lake.write_labels(truths(usual[:30], wrong=30, hours_ago=5))
    lake.write_labels(truths(usual[:30], wrong=0, hours_ago=2))
    accuracy = checked(lake, classifier)["accuracy"]
    assert (accuracy["value"], accuracy["n"], accuracy["fired"]) == (1.0, 30, False)
    assert lake.get_json(STATE)["labels"] == 30


def test_labels_of_another_model_and_labels_too_old_do_not_count(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    lake.write_labels(truths(usual[:10], wrong=10, model="another"))
    report = checked(lake, classifier)
    assert lake.get_json(STATE)["labels"] == 0
    lake.write_labels(truths(usual[10:40], wrong=10, hours_ago=24 * 3))
    report = checked(lake, classifier, NOW + HOUR)
    assert report["accuracy"] is None
    assert report["ages"]["label_hours"] == 2.0


def test_labels_that_show_a_fall_ask_for_a_retraining(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    lake.write_labels(truths(usual[:100], wrong=90))
    report, sent = ran(lake, classifier)
    assert (report["decision"], report["trigger"]) == ("retrain", "accuracy")
    assert report["reasons"][0].startswith("accuracy on 100 labels is 0.100")
    assert [(kind, detail["trigger"]) for kind, detail in sent] == [("retrain.requested", "accuracy")]


def test_ages_are_carried_on_when_nothing_new_came(lake: Lake, classifier: Classifier, usual: list[Prediction]) -> None:
    first = checked(lake, classifier)
    unknown = [first["ages"][name] for name in ("label_hours", "text_hours", "check_hours")]
    assert unknown == [None, None, None]
    assert first["ages"]["model_hours"] == pytest.approx(model_hours(classifier))
    write(lake, usual[:20])
    lake.write_labels(truths(usual[:20], wrong=0, hours_ago=3))
    checked(lake, classifier, NOW + HOUR)
    quiet = checked(lake, classifier, NOW + 3 * HOUR)
    assert [quiet["ages"][name] for name in ("text_hours", "label_hours", "check_hours")] == [4.0, 6.0, 2.0]


def test_drift_asks_for_labels_once_and_retrains_when_they_are_there(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)
    report, sent = ran(lake, classifier, labels_wanted=30)
    assert report["requested"]
    assert [kind for kind, _ in sent] == ["labels.wanted"]
    assert json.loads(lake.get(sent[0][1]["report"].removeprefix(f"s3://{BUCKET}/"))) == report
    json.dumps(sent)

    lake.write_labels(truths(odd[:20], wrong=0))
    later, sent = ran(lake, classifier, NOW + 2 * HOUR, labels_wanted=30)
    assert (later["decision"], later["requested"], sent) == ("wait", False, [])
    assert "give 10 more labels" in later["reasons"][1]

    lake.write_labels(truths(odd[20:30], wrong=0))
    after, sent = ran(lake, classifier, NOW + 3 * HOUR, labels_wanted=30)
    assert (after["decision"], after["trigger"], after["requested"]) == ("retrain", "drift", True)
    assert [kind for kind, _ in sent] == ["retrain.requested"]
    assert sent[0][1]["evidence"]["drift"] == after["drift"]


def test_a_request_is_followed_by_the_cool_down(lake: Lake, classifier: Classifier, odd: list[Prediction]) -> None:
    write(lake, odd)
    at_once = {"drift_retrains_at_once": True, "cooldown_hours": 3.0}
    assert checked(lake, classifier, **at_once)["requested"]
    later, sent = ran(lake, classifier, NOW + 2 * HOUR, **at_once)
    assert (later["decision"], later["requested"], sent) == ("wait", False, [])
    after, sent = ran(lake, classifier, NOW + 3 * HOUR, **at_once)
    assert (after["decision"], after["requested"], len(sent)) == ("retrain", True, 1)


def test_in_suggest_mode_a_person_is_told_and_nothing_is_trained(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)
    report, sent = ran(lake, classifier, mode="suggest", drift_retrains_at_once=True)
    assert (report["decision"], report["mode"], report["requested"]) == ("suggest", "suggest", True)
    assert [kind for kind, _ in sent] == ["retrain.suggested"]
    assert ran(lake, classifier, NOW + HOUR, mode="suggest", drift_retrains_at_once=True)[1] == []


def test_an_old_model_is_retrained_without_any_evidence(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    write(lake, usual)
    young = checked(lake, classifier, backstop_days=model_hours(classifier) / 24 + 1)
    assert young["decision"] == "none"
    old, sent = ran(lake, classifier, NOW + HOUR, backstop_days=model_hours(classifier) / 24 - 1)
    assert (old["decision"], old["trigger"]) == ("retrain", "schedule")
    assert [kind for kind, _ in sent] == ["retrain.requested"]


def test_drift_goes_before_accuracy(lake: Lake, classifier: Classifier, odd: list[Prediction]) -> None:
    write(lake, odd)
    lake.write_labels(truths(odd[:100], wrong=90))
    report, ((kind, detail),) = ran(lake, classifier, labels_wanted=50)
    assert report["accuracy"]["fired"]
    assert report["drift"]["fired"]
    assert (kind, detail["trigger"], len(report["reasons"])) == ("retrain.requested", "drift", 2)


def test_a_new_model_begins_with_no_evidence(
    lake: Lake, classifier: Classifier, usual: list[Prediction], odd: list[Prediction]
) -> None:
    lake.put_json(STATE, {"model": "another", "drift": 1e9, "labels": 500, "newest": {"text": iso(NOW), "label": None}})
    write(lake, usual)
    report = checked(lake, classifier, NOW + HOUR)
    assert report["drift"]["evidence"] < 100
    assert report["decision"] == "none"
    assert report["ages"]["text_hours"] == 1.0
    assert lake.get_json(STATE)["labels"] == 0


def test_a_dry_run_tells_nobody_and_leaves_the_cool_down_alone(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)
    uri = lake.uri(f"models/{classifier.model}/")
    settings = replace(SETTINGS, drift_retrains_at_once=True)
    report = watch.run(lake, uri, settings, NOW, None)
    assert (report["decision"], report["requested"]) == ("retrain", False)
    assert watch.TOLD not in list(lake.keys("reports/"))
    assert checked(lake, classifier, NOW + HOUR, drift_retrains_at_once=True)["requested"]


def test_a_request_that_cannot_be_sent_is_tried_again_at_the_next_check(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)

    def refuse(*_: Any) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        watch.run(lake, lake.uri(f"models/{classifier.model}/"), SETTINGS, NOW, refuse)
    assert checked(lake, classifier, NOW + HOUR)["requested"]


def test_reports_are_kept_with_their_pages_and_the_latest_is_at_hand(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    write(lake, usual)
    first, second = checked(lake, classifier), checked(lake, classifier, NOW + HOUR)
    assert lake.get_json("reports/latest.json") == second
    for report in (first, second):
        key = report["page"].removeprefix(f"s3://{BUCKET}/")
        assert lake.get_json(key.replace(".html", ".json")) == report
        assert lake.get(key).startswith(b"<!DOCTYPE html>")
    assert lake.get("reports/latest.html") == lake.get(second["page"].removeprefix(f"s3://{BUCKET}/"))


def test_what_is_not_known_is_not_published(
    lake: Lake, classifier: Classifier, usual: list[Prediction], capsys: pytest.CaptureFixture[str]
) -> None:
    checked(lake, classifier)
    assert published(capsys.readouterr().out) == {
        Metric.WINDOW_ROWS: 0.0,
        Metric.RETRAIN_REQUESTED: 0.0,
        Metric.LABELS_WANTED: 0.0,
        Metric.HEARTBEAT: 1.0,
        Metric.MODEL_AGE_HOURS: pytest.approx(model_hours(classifier)),
        Metric.LABEL_AGE_HOURS: pytest.approx(model_hours(classifier)),
    }
    write(lake, usual)
    lake.write_labels(truths(usual[:40], wrong=4))
    report = checked(lake, classifier, NOW + 3 * HOUR)
    values = published(capsys.readouterr().out)
    assert values[Metric.ACCURACY] == 0.9
    assert values[Metric.LABELLED_PREDICTIONS] == 40
    assert values[Metric.DRIFT_FIRED] == 0
    assert values[Metric.DRIFT_DISTANCE] == report["drift"]["distance"]
    assert values[Metric.CHECK_AGE_HOURS] == pytest.approx(3)
    assert values.keys() == {*Metric} - {Metric.JOB_ROWS, Metric.JOB_REJECTED, Metric.FAILED_REQUESTS}


def test_before_the_first_model_the_monitor_is_alive_and_says_so(
    lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    report = watch.run(lake, artifact.NONE, SETTINGS, NOW, None)
    assert report["reasons"] == ["no model is serving yet: run `retrue retrain`"]
    assert published(capsys.readouterr().out)[Metric.HEARTBEAT] == 1.0
    assert lake.get_json("reports/latest.json") == report
    assert lake.get("reports/latest.html").startswith(b"<!DOCTYPE html>")
