"""Metrics as lines on stdout."""

import json
import time

import pytest

from retrue.telemetry import COUNTS, Metric, publish


def test_a_line_has_every_value_and_the_environment_as_its_only_dimension(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "monitor")
    now = round(time.time() * 1000)
    publish("prod", {Metric.ACCURACY: 0.9, Metric.WINDOW_ROWS: 500}, now)
    line = json.loads(capsys.readouterr().out)
    (told,) = line["_aws"]["CloudWatchMetrics"]
    assert line["_aws"]["Timestamp"] == now
    assert (told["Namespace"], told["Dimensions"], line["Environment"]) == ("retrue", [["Environment"]], "prod")
    assert told["Metrics"] == [{"Name": "Accuracy", "Unit": "None"}, {"Name": "WindowRows", "Unit": "Count"}]
    assert (line["Accuracy"], line["WindowRows"]) == ([0.9], [500.0])
    assert set(line) == {"_aws", "Environment", "Accuracy", "WindowRows"}


def test_the_version_is_a_second_dimension_where_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    publish("prod", {Metric.FAILED_REQUESTS: 1}, round(time.time() * 1000), "7")
    line = json.loads(capsys.readouterr().out)
    (told,) = line["_aws"]["CloudWatchMetrics"]
    assert sorted(told["Dimensions"][0]) == ["Environment", "Version"]
    assert (line["Environment"], line["Version"], line["FailedRequests"]) == ("prod", "7", [1.0])


def test_no_values_write_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    publish("prod", {}, round(time.time() * 1000))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("metric", Metric)
def test_every_metric_can_be_published(metric: Metric, capsys: pytest.CaptureFixture[str]) -> None:
    publish("prod", {metric: 1}, round(time.time() * 1000))
    (told,) = json.loads(capsys.readouterr().out)["_aws"]["CloudWatchMetrics"]
    assert told["Metrics"] == [{"Name": metric.value, "Unit": "Count" if metric in COUNTS else "None"}]
