"""What the local cloud lacks, done in the open through public AWS APIs: metrics from log lines, and alarms.

Log lines in CloudWatch's embedded metric format become PutMetricData. Alarms are evaluated as CloudWatch documents it
(dimensions, M of N, missing data) and set with SetAlarmState, whose actions the local cloud runs.
"""

import json
import operator
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

OK, ALARM, INSUFFICIENT = "OK", "ALARM", "INSUFFICIENT_DATA"
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}


def metrics(line: str) -> list[tuple[str, dict[str, Any]]]:
    """The data in one log line of the embedded metric format, as (namespace, datum) for PutMetricData."""
    if '"_aws"' not in line:
        return []
    try:
        values = json.loads(line)
        head = values["_aws"]
        blocks = head["CloudWatchMetrics"]
    except (ValueError, KeyError, TypeError):
        return []  # a line that only looks like it: CloudWatch ignores those too
    when = datetime.fromtimestamp(head["Timestamp"] / 1000, UTC)
    found = []
    for block in blocks:
        for names in block["Dimensions"]:
            dimensions = [{"Name": name, "Value": str(values[name])} for name in names]
            for metric in block["Metrics"]:
                written = values[metric["Name"]]
                datum = {
                    "MetricName": metric["Name"],
                    "Dimensions": dimensions,
                    "Timestamp": when,
                    "Unit": metric.get("Unit", "None"),
                    "Values": written if isinstance(written, list) else [written],
                }
                found.append((block["Namespace"], datum))
    return found


def state(alarm: dict[str, Any], points: list[float | None], now: str) -> str:
    """The state of an alarm, from one value for each of its last periods (None for a missing one) and its state now."""
    missing = alarm.get("TreatMissingData", "missing")
    breaches = COMPARISONS[alarm["ComparisonOperator"]]
    needed = alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"])
    if missing == "ignore" and all(point is None for point in points):
        return now
    if missing == "missing" and all(point is None for point in points):
        return INSUFFICIENT
    filled = {"breaching": True, "notBreaching": False}.get(missing, False)
    count = sum(filled if point is None else breaches(point, alarm["Threshold"]) for point in points)
    return ALARM if count >= needed else OK


class Bridge:
    """Carries metrics and evaluates alarms of one stack; `turn` is called every few seconds."""

    def __init__(self, logs: Any, cloudwatch: Any, groups: list[str], alarms: str) -> None:
        self.logs, self.cloudwatch, self.groups, self.alarms = logs, cloudwatch, groups, alarms
        self._since: dict[str, int] = {}
        self._seen: set[tuple[str, int, str]] = set()

    def turn(self, now: datetime) -> list[str]:
        """Carry new metrics, evaluate every alarm, and say which ones changed."""
        for group in self.groups:
            self._carry(group, now)
        changed = []
        pages = self.cloudwatch.get_paginator("describe_alarms").paginate(AlarmNamePrefix=self.alarms)
        for alarm in (alarm for page in pages for alarm in page["MetricAlarms"]):
            found = state(alarm, self._points(alarm, now), alarm["StateValue"])
            if found != alarm["StateValue"]:
                reason = f"evaluated at {now:%H:%M:%S}"
                self.cloudwatch.set_alarm_state(AlarmName=alarm["AlarmName"], StateValue=found, StateReason=reason)
                changed.append(f"{alarm['AlarmName']}: {alarm['StateValue']} to {found}")
        return changed

    def _carry(self, group: str, now: datetime) -> None:
        since = self._since.setdefault(group, int(now.timestamp() * 1000))
        try:
            pages = list(self.logs.get_paginator("filter_log_events").paginate(logGroupName=group, startTime=since))
        except self.logs.exceptions.ResourceNotFoundException:
            return  # the function has not run yet
        for event in (event for page in pages for event in page["events"]):
            # Events of the same millisecond may still come, so the last ones are read again. CloudWatch has an id for
            # each event, the local cloud has none.
            identity = (event["logStreamName"], event["timestamp"], event["message"])
            if identity in self._seen:
                continue
            self._seen.add(identity)
            self._since[group] = max(self._since[group], event["timestamp"])
            for namespace, datum in metrics(event["message"]):
                self.cloudwatch.put_metric_data(Namespace=namespace, MetricData=[datum])

    def _points(self, alarm: dict[str, Any], now: datetime) -> list[float | None]:
        """One value for each of the alarm's last periods, the one in progress included, oldest first."""
        period = timedelta(seconds=alarm["Period"])
        begin = now - period * alarm["EvaluationPeriods"]
        # Seconds can be put together again to any period, except for percentiles.
        percentile = alarm.get("ExtendedStatistic")
        asked: dict[str, Any] = {"Period": 1, "Statistics": ["Sum", "Minimum", "Maximum", "SampleCount"]}
        if percentile:
            asked = {"Period": alarm["Period"], "ExtendedStatistics": [percentile]}
        answer = self.cloudwatch.get_metric_statistics(
            Namespace=alarm["Namespace"],
            MetricName=alarm["MetricName"],
            Dimensions=alarm.get("Dimensions", []),
            StartTime=begin,
            EndTime=now,
            **asked,
        )
        points: list[float | None] = []
        for k in range(alarm["EvaluationPeriods"]):
            low, high = begin + period * k, begin + period * (k + 1)
            inside = [d for d in answer["Datapoints"] if low < d["Timestamp"] <= high]
            points.append(_statistic(percentile or alarm["Statistic"], inside))
        return points


def _statistic(name: str, data: list[dict[str, Any]]) -> float | None:
    if not data:
        return None
    if name == "Maximum":
        return float(max(d["Maximum"] for d in data))
    if name == "Minimum":
        return float(min(d["Minimum"] for d in data))
    if name not in ("Sum", "Average"):
        return float(max(d["ExtendedStatistics"][name] for d in data))
    total = float(sum(d["Sum"] for d in data))
    return total / float(sum(d["SampleCount"] for d in data)) if name == "Average" else total
