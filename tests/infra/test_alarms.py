"""Alarms and dashboard, held to each other and to the code: renaming a metric in one of them fails here."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from retrue.local import localize
from retrue.telemetry import DIMENSION, NAMESPACE, Metric

PROJECT = Path(__file__).resolve().parents[2]
TEMPLATE: dict[str, Any] = localize.read(PROJECT / "template.yaml")
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]
FUNCTIONS = {name: r["Properties"] for name, r in RESOURCES.items() if r["Type"] == "AWS::Serverless::Function"}
ALARMS = {name: r["Properties"] for name, r in RESOURCES.items() if r["Type"] == "AWS::CloudWatch::Alarm"}
WIDGETS: list[dict[str, Any]] = json.loads(RESOURCES["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"])["widgets"]
# What AWS publishes by itself, with the dimension that it publishes it by.
OF_AWS = {
    "AWS/ApiGateway": ({"Count", "4XXError", "5XXError", "Latency"}, ["ApiName", "Stage"]),
    "AWS/Lambda": ({"ConcurrentExecutions", "Duration", "Errors", "Throttles"}, ["FunctionName"]),
    "AWS/SQS": ({"ApproximateNumberOfMessagesVisible"}, ["QueueName"]),
    "AWS/States": (
        {"ExecutionsStarted", "ExecutionsSucceeded", "ExecutionsFailed", "ExecutionsTimedOut"},
        ["StateMachineArn"],
    ),
}


def drawn() -> list[tuple[str, str, dict[str, str]]]:
    """Every line of the dashboard as (namespace, metric, dimensions)."""
    found = []
    for widget in WIDGETS:
        for namespace, metric, *rest in widget["properties"].get("metrics", ()):
            pairs = [item for item in rest if isinstance(item, str)]
            found.append((namespace, metric, dict(zip(pairs[::2], pairs[1::2], strict=True))))
    return found


def published() -> set[str]:
    """The members of Metric that the program gives a value to."""
    files = [PROJECT / "src/retrue/report.py", *sorted((PROJECT / "functions").rglob("app.py"))]
    return {
        node.attr
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Metric"
    }


def test_every_metric_is_published_and_drawn_and_nothing_else_is() -> None:
    assert published() == {metric.name for metric in Metric}
    ours = [(metric, dimensions) for namespace, metric, dimensions in drawn() if namespace == NAMESPACE]
    assert {metric for metric, _ in ours} == {metric.value for metric in Metric}
    assert all(dimensions == {DIMENSION: "${Environment}"} for _, dimensions in ours)


def test_the_dashboard_draws_what_aws_publishes_as_aws_names_it() -> None:
    for namespace, metric, dimensions in drawn():
        if namespace != NAMESPACE:
            names, by = OF_AWS[namespace]
            assert metric in names
            assert list(dimensions) == by


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_watches_a_metric_that_somebody_publishes(name: str) -> None:
    alarm = ALARMS[name]
    names, by = OF_AWS.get(alarm["Namespace"], ({metric.value for metric in Metric}, [DIMENSION]))
    assert alarm["MetricName"] in names
    assert [dimension["Name"] for dimension in alarm["Dimensions"]] == by


def test_the_dashboard_shows_every_alarm() -> None:
    (shown,) = [widget["properties"]["alarms"] for widget in WIDGETS if widget["type"] == "alarm"]
    assert sorted(shown) == sorted(f"${{{name}.Arn}}" for name in ALARMS)


def test_the_dashboard_names_only_what_the_template_always_makes() -> None:
    from_template = {name for name, resource in RESOURCES.items() if "Condition" not in resource} | {"Environment"}
    body = RESOURCES["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    named = {part.split("}")[0].split(".")[0] for part in body.split("${")[1:]} - {"AWS::Region"}
    assert named <= from_template
    assert named & set(FUNCTIONS) == set(FUNCTIONS)


def test_no_two_widgets_lie_upon_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for widget in WIDGETS:
        columns = range(widget["x"], widget["x"] + widget["width"])
        cells = {(x, y) for x in columns for y in range(widget["y"], widget["y"] + widget["height"])}
        assert not cells & taken, widget["properties"]["title"]
        assert max(columns) < 24
        taken |= cells


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_fails_is_held_back_or_slows_down_is_told(name: str) -> None:
    by = [{"Name": "FunctionName", "Value": {"Ref": name}}]
    of_it = {alarm["MetricName"]: alarm for alarm in ALARMS.values() if alarm["Dimensions"] == by}
    assert set(of_it) == {"Errors", "Throttles", "Duration"}
    for metric in ("Errors", "Throttles"):
        alarm = of_it[metric]
        assert (alarm["Statistic"], alarm["Threshold"]) == ("Sum", 1)
        assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    slow = of_it["Duration"]
    assert slow["ExtendedStatistic"] == "p99"
    assert slow["Threshold"] == 0.8 * 1000 * FUNCTIONS[name]["Timeout"]


def test_a_workflow_that_fails_or_takes_too_long_is_told() -> None:
    by = [{"Name": "StateMachineArn", "Value": {"Ref": "Retrain"}}]
    watched = {alarm["MetricName"] for alarm in ALARMS.values() if alarm["Dimensions"] == by}
    assert watched == {"ExecutionsFailed", "ExecutionsTimedOut"}


@pytest.mark.parametrize(
    ("name", "metric", "threshold", "comparison"),
    [
        ("ModelAgeAlarm", Metric.MODEL_AGE_HOURS, "MaximumModelAgeHours", "GreaterThanThreshold"),
        ("LabelAgeAlarm", Metric.LABEL_AGE_HOURS, "MaximumLabelAgeHours", "GreaterThanThreshold"),
        ("AccuracyFloorAlarm", Metric.ACCURACY, "AccuracyFloor", "LessThanThreshold"),
    ],
)
def test_staleness_and_the_floor_are_parameters(name: str, metric: Metric, threshold: str, comparison: str) -> None:
    alarm = ALARMS[name]
    assert (alarm["MetricName"], alarm["ComparisonOperator"]) == (metric, comparison)
    assert alarm["Threshold"] == {"Ref": threshold}


def test_a_silent_monitor_is_told_after_the_hours_that_were_set() -> None:
    alarm = ALARMS["HeartbeatAlarm"]
    assert alarm["EvaluationPeriods"] == alarm["DatapointsToAlarm"] == {"Ref": "MaximumSilenceHours"}
    # CloudWatch looks back a week at most where a period is an hour.
    assert alarm["Period"] * TEMPLATE["Parameters"]["MaximumSilenceHours"]["MaxValue"] == 7 * 24 * 3600


def test_who_publishes_to_the_topic_may() -> None:
    (statement,) = RESOURCES["TopicPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert set(statement["Principal"]["Service"]) == {
        "cloudwatch.amazonaws.com",
        "events.amazonaws.com",
        "budgets.amazonaws.com",
    }
    subscribers = [
        one
        for notice in RESOURCES["Budget"]["Properties"]["NotificationsWithSubscribers"]
        for one in notice["Subscribers"]
    ]
    assert subscribers == [{"SubscriptionType": "SNS", "Address": {"Ref": "Topic"}}] * 2


def test_a_budget_is_made_only_where_one_is_set() -> None:
    assert RESOURCES["Budget"]["Condition"] == "HasBudget"
    assert TEMPLATE["Parameters"]["MonthlyBudget"]["Default"] == 0
    assert RESOURCES["Budget"]["Properties"]["Budget"]["BudgetLimit"]["Amount"] == {"Ref": "MonthlyBudget"}


def test_the_guide_names_every_alarm() -> None:
    guide = (PROJECT / "docs/monitoring.md").read_text()
    for name in ALARMS:
        function = next((one for one in FUNCTIONS if name.startswith(one.removesuffix("Function"))), None)
        told = name if function is None else f"…{name.removeprefix(function.removesuffix('Function'))}"
        assert f"`{told}`" in guide
