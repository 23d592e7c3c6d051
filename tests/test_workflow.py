"""The workflow from outside, on a cloud that lives in this process, and on recorded answers where it has none."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.stub import ANY, Stubber
from moto import mock_aws

from retrue.errors import BadInput, StackError
from retrue.workflow import REQUESTED, Activity, Task, Workflow, begin, tell

ACCOUNT = "arn:aws:states:eu-central-1:123456789012"
MACHINE = f"{ACCOUNT}:stateMachine:retrain"
QUEUE = f"{ACCOUNT}:activity:train"
LONG = f"{ACCOUNT}:execution:retrue-test-retrain:" + "0f1e2d3c-" * 9
TASK = Task("token-1", {"TrainingJobName": "retrue-1"})
TELL: dict[str, Callable[[Activity], bool]] = {
    "send_task_heartbeat": lambda activity: activity.heartbeat(TASK),
    "send_task_success": lambda activity: activity.succeed(TASK, {"done": True}),
    "send_task_failure": lambda activity: activity.fail(TASK, "TrainingFailed", "no rows"),
}


@pytest.fixture
def states() -> Iterator[Stubber]:
    with Stubber(boto3.client("stepfunctions")) as stub:
        yield stub
        stub.assert_no_pending_responses()


def execution(name: str, minute: int, status: str = "RUNNING") -> dict[str, Any]:
    return {
        "executionArn": f"{ACCOUNT}:execution:retrain:{name}",
        "stateMachineArn": MACHINE,
        "name": name,
        "status": status,
        "startDate": datetime(2026, 1, 1, 9, minute, tzinfo=UTC),
    }


@mock_aws
def test_a_request_reaches_the_rule_with_its_reason_and_evidence() -> None:
    logs, events = boto3.client("logs"), boto3.client("events")
    logs.create_log_group(logGroupName="/aws/events/seen")
    pattern = {"source": ["retrue"], "detail-type": ["retrain.requested"], "detail": {"environment": ["test"]}}
    events.put_rule(Name="retrain", EventPattern=json.dumps(pattern))
    group = "arn:aws:logs:eu-central-1:123456789012:log-group:/aws/events/seen"
    events.put_targets(Rule="retrain", Targets=[{"Id": "log", "Arn": group}])

    id = tell("default", "test", REQUESTED, {"reason": "the texts drifted", "evidence": {"p": 1e-9}})
    tell("default", "another", REQUESTED, {"reason": "not for this environment"})
    (seen,) = logs.filter_log_events(logGroupName="/aws/events/seen")["events"]
    event = json.loads(seen["message"])
    assert event["id"] == id
    assert event["detail"] == {"environment": "test", "reason": "the texts drifted", "evidence": {"p": 1e-9}}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [({"ErrorCode": "InternalFailure", "ErrorMessage": "try again"}, "try again"), ({}, "no reason")],
)
def test_a_request_that_the_bus_refuses_is_an_error(entry: dict[str, str], reason: str) -> None:
    events = boto3.client("events")
    with Stubber(events) as stub:
        stub.add_response("put_events", {"FailedEntryCount": 1, "Entries": [entry]})
        with pytest.raises(StackError, match=f"the event bus refused the request: {reason}"):
            tell("default", "test", REQUESTED, {"reason": "why not"}, events)


@mock_aws
def test_executions_that_have_ended_are_not_running() -> None:
    client = boto3.client("stepfunctions")
    role = "arn:aws:iam::123456789012:role/retrain"
    machine = client.create_state_machine(name="retrain", definition="{}", roleArn=role)["stateMachineArn"]
    workflow = Workflow(machine)
    assert workflow.oldest_running() is None
    first, second = (
        client.start_execution(stateMachineArn=machine, name=name)["executionArn"] for name in ("one", "two")
    )
    client.stop_execution(executionArn=first)
    assert workflow.oldest_running() == second
    assert workflow.describe(first)["status"] == "ABORTED"
    assert {found["executionArn"] for found in workflow.executions()} == {first, second}


def test_the_oldest_running_execution_may_be_on_any_page(states: Stubber) -> None:
    asked = {"stateMachineArn": MACHINE, "statusFilter": "RUNNING"}
    page = {"executions": [execution("c", 9), execution("a", 7)], "nextToken": "more"}
    states.add_response("list_executions", page, asked)
    rest = {"executions": [execution("b", 5), execution("d", 8)]}
    states.add_response("list_executions", rest, {**asked, "nextToken": "more"})
    assert Workflow(MACHINE, states.client).oldest_running() == execution("b", 5)["executionArn"]


def test_executions_come_newest_first(states: Stubber) -> None:
    found = [execution("a", 7), execution("b", 9), execution("c", 8, "FAILED")]
    states.add_response("list_executions", {"executions": found}, {"stateMachineArn": MACHINE, "maxResults": 3})
    assert [one["name"] for one in Workflow(MACHINE, states.client).executions(3)] == ["b", "c", "a"]


def test_states_are_told_in_the_order_they_were_entered(states: Stubber) -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)

    def event(number: int, kind: str, **details: Any) -> dict[str, Any]:
        return {"timestamp": when, "id": number, "type": kind, **details}

    first = [
        event(1, "ExecutionStarted", executionStartedEventDetails={"input": "{}"}),
        event(2, "TaskStateEntered", stateEnteredEventDetails={"name": "Begin"}),
        event(3, "TaskStateExited", stateExitedEventDetails={"name": "Begin"}),
    ]
    last = [event(4, "ChoiceStateEntered", stateEnteredEventDetails={"name": "IsAlone"})]
    states.add_response("get_execution_history", {"events": first, "nextToken": "more"}, {"executionArn": "arn:one"})
    states.add_response("get_execution_history", {"events": last}, {"executionArn": "arn:one", "nextToken": "more"})
    assert Workflow(MACHINE, states.client).states("arn:one") == ["Begin", "IsAlone"]


def test_states_inside_a_map_are_left_out_however_its_iterations_mix(states: Stubber) -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        (0, "MapStateEntered", "Train"),
        (1, "MapStateStarted", None),
        (2, "MapIterationStarted", None),
        (2, "MapIterationStarted", None),
        (3, "ChoiceStateEntered", "Backend"),
        (4, "ChoiceStateEntered", "Backend"),
        (6, "TaskStateEntered", "TrainOnWorker"),
        (5, "TaskStateEntered", "TrainOnWorker"),
        (7, "MapIterationSucceeded", None),
        (8, "MapIterationSucceeded", None),
        (10, "MapStateSucceeded", None),
        (11, "MapStateExited", None),
        (12, "TaskStateEntered", "Choose"),
    ]
    events = [
        {
            "timestamp": when,
            "id": number,
            "previousEventId": before,
            "type": kind,
            **({"stateEnteredEventDetails": {"name": name}} if name else {}),
        }
        for number, (before, kind, name) in enumerate(rows, 1)
    ]
    states.add_response("get_execution_history", {"events": events}, {"executionArn": "arn:one"})
    assert Workflow(MACHINE, states.client).states("arn:one") == ["Train", "Choose"]


def test_work_is_taken_with_its_token(states: Stubber) -> None:
    work = {"taskToken": "token-1", "input": '{"TrainingJobName": "retrue-1"}'}
    states.add_response("get_activity_task", work, {"activityArn": QUEUE, "workerName": "desk"})
    assert Activity(QUEUE, states.client).take("desk") == TASK


def test_a_poll_that_ends_without_work_is_nothing(states: Stubber) -> None:
    states.add_response("get_activity_task", {})
    assert Activity(QUEUE, states.client).take("desk") is None


def test_a_poll_outlasts_the_minute_that_it_is_held_open() -> None:
    assert Activity(QUEUE).client.meta.config.read_timeout > 60


@pytest.mark.parametrize("call", TELL)
def test_what_a_worker_tells_is_heard(states: Stubber, call: str) -> None:
    states.add_response(call, {})
    assert TELL[call](Activity(QUEUE, states.client))


@pytest.mark.parametrize("code", ["TaskTimedOut", "TaskDoesNotExist", "InvalidToken"])
@pytest.mark.parametrize("call", TELL)
def test_a_worker_learns_that_nobody_waits(states: Stubber, call: str, code: str) -> None:
    states.add_client_error(call, code)
    assert not TELL[call](Activity(QUEUE, states.client))


@pytest.mark.parametrize("call", TELL)
def test_other_errors_are_not_taken_for_nobody_waiting(states: Stubber, call: str) -> None:
    states.add_client_error(call, "AccessDeniedException")
    with pytest.raises(ClientError, match="AccessDenied"):
        TELL[call](Activity(QUEUE, states.client))


def test_a_network_that_is_away_for_a_moment_does_not_mean_that_nobody_waits() -> None:
    nowhere = Config(retries={"max_attempts": 0})
    client = boto3.client("stepfunctions", endpoint_url="http://127.0.0.1:1", config=nowhere)
    assert Activity(QUEUE, client).heartbeat(TASK)


def test_answers_go_out_as_json_and_long_causes_keep_their_end(states: Stubber) -> None:
    states.add_response("send_task_success", {}, {"taskToken": "token-1", "output": '{"done": true}'})
    told = {"taskToken": "token-1", "error": "TrainingFailed", "cause": "x" * 3_992 + "the end."}
    states.add_response("send_task_failure", {}, told)
    states.add_response("send_task_failure", {}, {"taskToken": ANY, "error": ANY, "cause": "short"})
    activity = Activity(QUEUE, states.client)
    activity.succeed(TASK, {"done": True})
    activity.fail(TASK, "TrainingFailed", "x" * 50_000 + "the end.")
    activity.fail(TASK, "TrainingFailed", "short")


@pytest.mark.parametrize("execution", [LONG, "arn:x", LONG.upper() + ":ü_/."])
def test_a_run_has_a_name_that_sagemaker_takes(execution: str) -> None:
    run = begin(execution, True, {"reason": "the texts drifted"})["run"]
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", run)
    assert begin(execution, False, {})["run"] == run
    assert begin(execution + "2", True, {})["run"] != run


@pytest.mark.parametrize("alone", [True, False])
def test_whether_it_is_alone_is_handed_on(alone: bool) -> None:
    assert begin(LONG, alone, {"reason": "the texts drifted"})["alone"] is alone


@mock_aws
def test_an_execution_runs_until_it_has_ended_and_of_an_unknown_one_nothing_is_said() -> None:
    client = boto3.client("stepfunctions")
    role = "arn:aws:iam::123456789012:role/retrain"
    machine = client.create_state_machine(name="retrain", definition="{}", roleArn=role)["stateMachineArn"]
    workflow = Workflow(machine)
    execution = client.start_execution(stateMachineArn=machine, name="one")["executionArn"]
    assert workflow.is_running(execution) is True
    client.stop_execution(executionArn=execution)
    assert workflow.is_running(execution) is False
    assert workflow.is_running(execution + "-2") is None


def test_a_request_keeps_what_it_says_and_always_has_a_reason_and_a_trigger() -> None:
    request = {"reason": "too old", "trigger": "schedule", "settings": {"epochs": "1"}}
    assert begin(LONG, True, request)["request"] == request
    filled = {"reason": "no reason given", "trigger": "person", "model": "m"}
    assert begin(LONG, True, {"model": "m"})["request"] == filled


@pytest.mark.parametrize("trigger", ["boredom", "", None, ["drift"]])
def test_a_trigger_that_the_gate_does_not_know_is_refused_before_anything_is_trained(trigger: Any) -> None:
    with pytest.raises(BadInput, match="none of drift, accuracy, schedule, person"):
        begin(LONG, True, {"reason": "why not", "trigger": trigger})
