"""What the command line asks of a stack, on a bus that lives in this process."""

import json
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue.terminal import ask


class Executions:
    """The workflow's executions as the rule would begin them: one for each event that the bus has delivered."""

    def __init__(self, group: str) -> None:
        self.group = group

    def executions(self) -> list[dict[str, Any]]:
        seen = boto3.client("logs").filter_log_events(logGroupName=self.group)["events"]
        return [{"executionArn": event["message"]} for event in seen]

    def describe(self, execution: str) -> dict[str, Any]:
        return {"input": execution}


@mock_aws
@pytest.mark.parametrize(
    ("detail", "trigger"), [({"reason": "new labels"}, "person"), ({"reason": "a test", "trigger": "drift"}, "drift")]
)
def test_whoever_asks_at_a_terminal_is_a_person_unless_said_otherwise(detail: dict[str, Any], trigger: str) -> None:
    group, events = "/aws/events/retrain", boto3.client("events")
    boto3.client("logs").create_log_group(logGroupName=group)
    events.put_rule(Name="retrain", EventPattern=json.dumps({"source": ["retrue"]}))
    arn = f"arn:aws:logs:eu-central-1:123456789012:log-group:{group}"
    events.put_targets(Rule="retrain", Targets=[{"Id": "log", "Arn": arn}])
    stack: Any = SimpleNamespace(session=boto3, outputs={"EnvironmentName": "test"}, workflow=Executions(group))
    found = json.loads(ask(stack, detail))["detail"]
    assert found.pop("mark")
    assert found == {**detail, "environment": "test", "trigger": trigger}
