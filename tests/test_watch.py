"""The monitor on real predictions of a small real model."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue import artifact, corpus, drift, watch
from retrue.classifier import Classifier
from retrue.drift import Reference
from retrue.lake import Lake
from retrue.records import Label, Prediction, from_iso, iso, new_id
from retrue.settings import Monitor
from retrue.telemetry import Metric
from retrue.watch import HOUR, Report

BUCKET = "retrue-test"
NOW = time.time_ns() // 1_000_000 - 4 * HOUR  # CloudWatch takes no metrics from the far past or future
SETTINGS = Monitor(
    bucket=BUCKET, environment="test", model_parameter="/retrue/test/model", minimum_labels=20, label_days=2
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
    for name in (artifact.CARD, artifact.REFERENCE):
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
    found = []
    for number, text in enumerate(texts):
        answer = classifier.score(text)
        ms = now_ms - HOUR - number // 20 * 60_000
        found.append(answer.record(new_id(ms, number.to_bytes(10)), classifier.model, "http"))
    return found


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
                **other,
            }
        )
        for n, p in enumerate(predictions)
    ]


def checked(lake: Lake, classifier: Classifier, last: Report | None = None, **other: Any) -> Report:
    settings = Monitor(**{**vars(SETTINGS), **other})
    reference = Reference.from_bytes(lake.get(f"models/{classifier.model}/{artifact.REFERENCE}"))
    return watch.check(lake, classifier.card, classifier.model, reference, settings, NOW, last)


def ran(lake: Lake, classifier: Classifier, now: int, **other: Any) -> tuple[Report, list[dict[str, Any]]]:
    """The report of one run, and the details of the requests that it sent."""
    sent: list[dict[str, Any]] = []
    settings = Monitor(**{**vars(SETTINGS), **other})
    report = watch.run(lake, lake.uri(f"models/{classifier.model}/"), settings, now, sent.append)
    return report, sent


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


def test_too_few_rows_are_not_judged(lake: Lake, classifier: Classifier, odd: list[Prediction]) -> None:
    write(lake, odd[:40])
    report = checked(lake, classifier)
    assert report["n"] == 40
    assert report["drift"] is None
    assert report["drift_reason"] == "40 rows are too few to judge: 50 are needed"
    assert report["decision"] == "none"


def test_a_minimum_that_cannot_be_judged_is_raised_to_one_that_can(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd[:5])
    assert checked(lake, classifier, minimum_rows=1)["drift_reason"] == (
        f"5 rows are too few to judge: {drift.SIZES[0]} are needed"
    )


def test_texts_of_the_usual_kind_raise_no_alarm(lake: Lake, classifier: Classifier, usual: list[Prediction]) -> None:
    write(lake, usual)
    report = checked(lake, classifier)
    assert report["n"] == 240
    assert not report["drift"]["fired"]
    assert report["drift"]["p"] > SETTINGS.false_alarm_rate
    assert (report["decision"], report["reasons"]) == ("none", [])


def test_very_different_texts_raise_the_alarm_and_say_where(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)
    report = checked(lake, classifier)
    found = report["drift"]
    assert found["fired"]
    assert found["statistic"] > found["threshold"]
    assert list(found["distances"]) == list(drift.GROUPS)
    assert report["decision"] == "retrain"
    assert report["reasons"][0].startswith(f"the texts have drifted, most of all in {found['worst']}")


def test_only_the_newest_rows_of_this_model_are_looked_at(
    lake: Lake, classifier: Classifier, usual: list[Prediction], odd: list[Prediction]
) -> None:
    write(lake, usual)
    strange = [Prediction.of({**json.loads(p.to_json()), "model": "another"}) for p in odd]
    write(lake, [Prediction.of({**json.loads(p.to_json()), "id": p.id[:-1] + "f"}) for p in strange])
    old = scored(classifier, ODD[:20], NOW - 30 * HOUR)
    write(lake, old)
    report = checked(lake, classifier, window_rows=100)
    assert report["n"] == report["drift"]["n"] == 100
    assert report["window"] == {"from": usual[99].time, "to": usual[0].time, "n": 100}
    assert checked(lake, classifier)["n"] == 240
    assert not checked(lake, classifier)["drift"]["fired"]


def test_no_more_objects_are_read_than_are_needed(
    lake: Lake, classifier: Classifier, usual: list[Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lake, usual)
    read: list[str] = []
    get = lake.get

    def counting(key: str) -> bytes:
        read.append(key)
        return get(key)

    with monkeypatch.context() as patch:
        patch.setattr(lake, "get", counting)
        checked(lake, classifier, window_rows=60)
    assert len([key for key in read if key.startswith("capture/")]) == 3


def test_accuracy_comes_with_its_interval_and_its_number_of_labels(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    lake.write_labels(truths(usual[:50], wrong=5))
    report = checked(lake, classifier)
    accuracy = report["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0.9, 50)
    # The interval is what SciPy's binomtest gives for 45 of 50 by the exact method.
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.781864, 0.966724), abs=1e-6)
    assert report["f1"]["per_class"].keys() == {"negative", "positive"}
    assert report["f1"]["n"] == 50
    assert report["f1"]["macro"] == pytest.approx(sum(report["f1"]["per_class"].values()) / 2)


def test_the_newest_label_of_a_prediction_wins(lake: Lake, classifier: Classifier, usual: list[Prediction]) -> None:
    lake.write_labels(truths(usual[:30], wrong=30, hours_ago=5))
    lake.write_labels(truths(usual[:30], wrong=0, hours_ago=2))
    assert checked(lake, classifier)["accuracy"] == pytest.approx(
        {"value": 1.0, "n": 30, "low": 0.884297, "high": 1.0, "fired": False}, abs=1e-6
    )


def test_labels_of_another_model_and_labels_too_old_do_not_count(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    lake.write_labels(truths(usual[:10], wrong=10, model="another"))
    lake.write_labels(truths(usual[10:20], wrong=10, hours_ago=24 * 3))
    report = checked(lake, classifier)
    assert report["accuracy"] is None
    assert report["f1"] is None
    assert report["ages"]["label_hours"] == 1.0


def test_accuracy_shown_to_be_too_low_asks_for_a_retraining(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    lake.write_labels(truths(usual[:100], wrong=90))
    report = checked(lake, classifier)
    assert report["decision"] == "retrain"
    assert report["reasons"][0].startswith("accuracy on 100 labels is 0.100")
    assert checked(lake, classifier, minimum_labels=101)["decision"] == "none"


def test_ages_are_carried_on_from_the_last_report_when_nothing_new_came(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    first = checked(lake, classifier)
    assert first["ages"]["label_hours"] is None
    assert first["ages"]["text_hours"] is None
    assert first["ages"]["check_hours"] is None
    assert first["ages"]["model_hours"] == pytest.approx(model_hours(classifier))

    last = {"time": iso(NOW - 2 * HOUR), "newest": {"text": iso(NOW - 100 * HOUR), "label": iso(NOW - 50 * HOUR)}}
    quiet = checked(lake, classifier, last)
    assert [quiet["ages"][name] for name in ("text_hours", "label_hours", "check_hours")] == [100.0, 50.0, 2.0]
    write(lake, usual[:20])
    assert checked(lake, classifier, last)["ages"]["text_hours"] == 1.0


def test_a_run_asks_once_and_then_waits_for_the_cool_down(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)
    report, sent = ran(lake, classifier, NOW)
    assert report["requested"]
    assert len(sent) == 1
    assert (sent[0]["reason"], sent[0]["trigger"]) == ("; ".join(report["reasons"]), "drift")
    assert sent[0]["evidence"]["drift"] == report["drift"]
    assert json.loads(lake.get(sent[0]["report"].removeprefix(f"s3://{BUCKET}/"))) == report
    json.dumps(sent)

    later, sent = ran(lake, classifier, NOW + 2 * HOUR)
    assert (later["decision"], later["requested"], sent) == ("wait", False, [])
    assert later["ages"]["check_hours"] == 2.0
    assert "2.0 hours ago" in later["reasons"][-1]

    after, sent = ran(lake, classifier, NOW + 3 * HOUR, cooldown_hours=3.0)
    assert (after["decision"], after["requested"], len(sent)) == ("retrain", True, 1)


@pytest.mark.parametrize(("drifted", "trigger"), [(False, "accuracy"), (True, "drift")])
def test_a_request_says_what_fired_and_drift_goes_before_accuracy(
    lake: Lake, classifier: Classifier, usual: list[Prediction], odd: list[Prediction], drifted: bool, trigger: str
) -> None:
    write(lake, odd if drifted else usual)
    lake.write_labels(truths((odd if drifted else usual)[:100], wrong=90))
    report, (sent,) = ran(lake, classifier, NOW)
    assert report["accuracy"]["fired"]
    assert report["drift"]["fired"] is drifted
    assert sent["trigger"] == trigger


def test_a_dry_run_asks_for_nothing_and_leaves_the_cool_down_alone(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)
    uri = lake.uri(f"models/{classifier.model}/")
    report = watch.run(lake, uri, SETTINGS, NOW, None)
    assert (report["decision"], report["requested"]) == ("retrain", False)
    assert watch.LAST_REQUEST not in list(lake.keys("reports/"))
    assert ran(lake, classifier, NOW + HOUR)[0]["requested"]


def test_a_request_that_cannot_be_sent_is_tried_again_at_the_next_check(
    lake: Lake, classifier: Classifier, odd: list[Prediction]
) -> None:
    write(lake, odd)

    def refuse(_: dict[str, Any]) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        watch.run(lake, lake.uri(f"models/{classifier.model}/"), SETTINGS, NOW, refuse)
    assert ran(lake, classifier, NOW + HOUR)[0]["requested"]


def test_reports_are_kept_and_the_latest_is_at_hand(
    lake: Lake, classifier: Classifier, usual: list[Prediction]
) -> None:
    write(lake, usual)
    first, _ = ran(lake, classifier, NOW)
    second, _ = ran(lake, classifier, NOW + HOUR)
    assert lake.get_json("reports/latest.json") == second
    kept = [key for key in lake.keys("reports/") if not key.endswith("latest.json")]
    assert [lake.get_json(key) for key in kept] == [first, second]


def test_what_is_not_known_is_not_published(
    lake: Lake, classifier: Classifier, usual: list[Prediction], capsys: pytest.CaptureFixture[str]
) -> None:
    ran(lake, classifier, NOW)
    assert published(capsys.readouterr().out) == {
        Metric.WINDOW_ROWS: 0.0,
        Metric.RETRAIN_REQUESTED: 0.0,
        Metric.HEARTBEAT: 1.0,
        Metric.MODEL_AGE_HOURS: pytest.approx(model_hours(classifier)),
    }
    write(lake, usual)
    lake.write_labels(truths(usual[:40], wrong=4))
    report, _ = ran(lake, classifier, NOW)
    values = published(capsys.readouterr().out)
    assert values[Metric.ACCURACY] == 0.9
    assert values[Metric.LABELLED_PREDICTIONS] == 40
    assert values[Metric.DRIFT_FIRED] == 0
    assert values[Metric.DRIFT_DISTANCE] == report["drift"]["distance"]
    assert values.keys() == {*Metric} - {Metric.JOB_ROWS, Metric.JOB_REJECTED}


def test_before_the_first_model_the_monitor_is_alive_and_says_so(
    lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    report = watch.run(lake, artifact.NONE, SETTINGS, NOW, None)
    assert report["reasons"] == ["no model is serving yet: run `retrue retrain`"]
    assert published(capsys.readouterr().out)[Metric.HEARTBEAT] == 1.0
    assert lake.get_json("reports/latest.json") == report


def test_the_age_of_the_last_check_is_published_from_the_second_check_on(
    lake: Lake, classifier: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(lake, classifier, NOW)
    assert "CheckAgeHours" not in published(capsys.readouterr().out)
    ran(lake, classifier, NOW + 3 * HOUR)
    assert published(capsys.readouterr().out)["CheckAgeHours"] == pytest.approx(3)
