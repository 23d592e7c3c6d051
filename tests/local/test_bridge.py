"""Metrics from log lines, and alarms evaluated as CloudWatch documents it."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from retrue import telemetry
from retrue.local.bridge import ALARM, INSUFFICIENT, OK, Bridge, metrics, state
from retrue.telemetry import Metric

NOW_MS = time.time_ns() // 1_000_000  # CloudWatch takes no time far from now
ABOVE: dict[str, Any] = {"ComparisonOperator": "GreaterThanThreshold", "Threshold": 5.0, "EvaluationPeriods": 3}


@pytest.mark.parametrize(
    ("alarm", "points", "expected"),
    [
        (ABOVE, [6.0, 7.0, 8.0], ALARM),
        (ABOVE, [6.0, 5.0, 8.0], OK),
        (ABOVE | {"DatapointsToAlarm": 2}, [6.0, 5.0, 8.0], ALARM),
        (ABOVE | {"DatapointsToAlarm": 1}, [None, None, 8.0], ALARM),
        (ABOVE, [None, 7.0, 8.0], OK),
        (ABOVE, [None, None, None], INSUFFICIENT),
        (ABOVE | {"TreatMissingData": "breaching"}, [None, None, None], ALARM),
        (ABOVE | {"TreatMissingData": "breaching"}, [None, None, 1.0], OK),
        (ABOVE | {"TreatMissingData": "notBreaching"}, [None, None, None], OK),
        (ABOVE | {"TreatMissingData": "ignore"}, [None, None, None], "as before"),
        (ABOVE | {"ComparisonOperator": "LessThanThreshold", "EvaluationPeriods": 1}, [4.0], ALARM),
        (ABOVE | {"ComparisonOperator": "GreaterThanOrEqualToThreshold", "EvaluationPeriods": 1}, [5.0], ALARM),
    ],
)
def test_an_alarm_counts_breaching_and_missing_periods(
    alarm: dict[str, Any], points: list[float | None], expected: str
) -> None:
    assert state(alarm, points, "as before") == expected


def test_a_percentile_is_asked_for_by_the_alarms_own_period() -> None:
    now = datetime(2026, 1, 1, 9, 32, tzinfo=UTC)
    alarm: dict[str, Any] = {
        "Namespace": "AWS/Lambda",
        "MetricName": "Duration",
        "Dimensions": [{"Name": "FunctionName", "Value": "predict"}],
        "ExtendedStatistic": "p99",
        "Period": 300,
        "EvaluationPeriods": 2,
    }
    client = boto3.client("cloudwatch", region_name="us-east-1")
    asked = {name: alarm[name] for name in ("Namespace", "MetricName", "Dimensions", "Period")}
    asked |= {"StartTime": now - timedelta(minutes=10), "EndTime": now, "ExtendedStatistics": ["p99"]}
    began = [datetime(2026, 1, 1, 9, minute, tzinfo=UTC) for minute in (25, 30)]
    points = [
        {"Timestamp": began[1], "ExtendedStatistics": {"p99": 25_000.0}},
        {"Timestamp": began[0], "ExtendedStatistics": {"p99": 40.0}},
    ]
    with Stubber(client) as stub:
        stub.add_response("get_metric_statistics", {"Datapoints": points}, asked)
        assert Bridge(None, client, [], "retrue")._points(alarm, now) == [40.0, 25_000.0]


def test_a_line_that_telemetry_writes_becomes_metric_data(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.publish("local", {Metric.HEARTBEAT: 1, Metric.DRIFT_P: 0.25}, NOW_MS)
    found = metrics(capsys.readouterr().out.strip())
    assert {(space, datum["MetricName"], tuple(datum["Values"])) for space, datum in found} == {
        ("retrue", "Heartbeat", (1.0,)),
        ("retrue", "DriftP", (0.25,)),
    }
    assert all(datum["Dimensions"] == [{"Name": "Environment", "Value": "local"}] for _, datum in found)
    assert all(datum["Timestamp"].timestamp() * 1000 == NOW_MS for _, datum in found)


@pytest.mark.parametrize("line", ["START RequestId: 1", '{"message": "_aws"}', '{"_aws": 3}', '{"_aws": {}'])
def test_other_lines_are_no_metrics(line: str) -> None:
    assert metrics(line) == []


def test_a_metric_in_the_log_sets_off_its_alarm_once(capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    telemetry.publish("local", {Metric.DRIFT_FIRED: 1}, round(now.timestamp() * 1000))
    line = capsys.readouterr().out.strip()
    assert json.loads(line)["_aws"]
    with mock_aws():
        logs, cloudwatch = (boto3.client(name, region_name="us-east-1") for name in ("logs", "cloudwatch"))
        logs.create_log_group(logGroupName="/aws/lambda/monitor")
        logs.create_log_stream(logGroupName="/aws/lambda/monitor", logStreamName="one")
        event = {"timestamp": round(now.timestamp() * 1000) + 1, "message": line}
        bridge = Bridge(logs, cloudwatch, ["/aws/lambda/monitor", "/aws/lambda/never-ran"], "retrue")
        assert bridge.turn(now) == []
        logs.put_log_events(logGroupName="/aws/lambda/monitor", logStreamName="one", logEvents=[event])
        cloudwatch.put_metric_alarm(
            AlarmName="retrue-drift", Namespace="retrue", MetricName="DriftFired", Statistic="Maximum", Period=3600,
            Dimensions=[{"Name": "Environment", "Value": "local"}], EvaluationPeriods=1, Threshold=1,
            ComparisonOperator="GreaterThanOrEqualToThreshold", TreatMissingData="notBreaching",
        )  # fmt: skip
        cloudwatch.put_metric_alarm(
            AlarmName="retrue-other", Namespace="retrue", MetricName="DriftFired", Statistic="Maximum", Period=3600,
            Dimensions=[{"Name": "Environment", "Value": "elsewhere"}], EvaluationPeriods=1, Threshold=1,
            ComparisonOperator="GreaterThanOrEqualToThreshold", TreatMissingData="notBreaching",
        )  # fmt: skip
        changed = bridge.turn(now + timedelta(seconds=2))
        assert any(change.startswith("retrue-drift") and change.endswith("to ALARM") for change in changed)
        states = {a["AlarmName"]: a["StateValue"] for a in cloudwatch.describe_alarms()["MetricAlarms"]}
        assert states == {"retrue-drift": "ALARM", "retrue-other": "OK"}
        assert bridge.turn(now + timedelta(seconds=4)) == []
