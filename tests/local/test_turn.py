"""The beginning and the end of a run in the deployed workflow, with the roles' own permissions."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from retrue.lake import LEDGER, TURN
from retrue.stack import Stack
from retrue.workflow import Activity

WISH = {"reason": "a model that is not there", "trigger": "person", "model": "nowhere"}


def ended(stack: Stack, name: str, event: str) -> list[str]:
    """The states of an execution that this event begins, when it has ended."""
    given = json.dumps({"id": event, "detail": WISH})
    words = {"stateMachineArn": stack.outputs["StateMachineArn"], "name": name, "input": given}
    execution = stack.workflow.client.start_execution(**words)["executionArn"]
    while stack.workflow.describe(execution)["status"] == "RUNNING":
        time.sleep(0.1)
    return stack.workflow.states(execution)


@pytest.fixture
def ledger(stack: Stack) -> Iterator[None]:
    """Takes the entries away that a test leaves, since others read the whole ledger."""
    before = set(stack.lake.keys(LEDGER))
    yield
    stack.lake.delete([key for key in stack.lake.keys(LEDGER) if key not in before])


@pytest.mark.usefixtures("ledger")
def test_an_event_has_one_turn_and_its_failure_is_written_down_and_told(stack: Stack) -> None:
    path = ["Begin", "IsAlone", "PublishNamed", "Publish", "RecordFailure", "Notify", "HasMoved", "Failed"]
    assert ended(stack, "turn-1", "event-1") == path
    newest = stack.lake.ledger()[-1]
    assert (newest.action, newest.reason.partition(":")[0]) == ("failed", "NotFound")
    assert ended(stack, "turn-2", "event-1") == ["Begin", "IsAlone", "AnotherIsRunning"], "it was delivered twice"
    assert stack.lake.get_json(TURN)["event"] == "event-1"
    assert ended(stack, "turn-3", "event-2") == path
    assert stack.lake.get_json(TURN)["execution"].endswith(":turn-3")


@pytest.fixture
def training(stack: Stack) -> Iterator[tuple[Any, str, Activity]]:
    """The deployed states of one training as a state machine, whose queue no worker polls."""
    client = stack.workflow.client
    activity = client.create_activity(name="retrue-turn-test")["activityArn"]
    deployed = client.describe_state_machine(stateMachineArn=stack.outputs["StateMachineArn"])
    inner = json.loads(deployed["definition"])["States"]["Train"]["ItemProcessor"]
    inner["States"]["TrainOnWorker"]["Resource"] = activity
    definition = json.dumps({"StartAt": inner["StartAt"], "States": inner["States"]})
    words = {"name": "retrue-turn-test", "definition": definition, "roleArn": deployed["roleArn"]}
    machine = client.create_state_machine(**words)["stateMachineArn"]
    yield client, machine, Activity(activity, client)
    client.delete_state_machine(stateMachineArn=machine)
    client.delete_activity(activityArn=activity)


def test_a_training_whose_worker_was_stopped_goes_to_the_next(training: tuple[Any, str, Activity]) -> None:
    client, machine, queue = training
    given = {"job": {"TrainingJobName": "retrue-1"}, "backend": "worker"}
    execution = client.start_execution(stateMachineArn=machine, input=json.dumps(given))["executionArn"]
    for worker in ("first", "second"):
        task = queue.take(worker)
        assert task is not None
        assert task.request == given["job"]
        if worker == "first":
            assert queue.fail(task, "Interrupted", "the worker was stopped")
    assert queue.succeed(task, {"ModelArtifacts": {"S3ModelArtifacts": "s3://lake/runs/retrue-1/output/model.tar.gz"}})
    while (found := client.describe_execution(executionArn=execution))["status"] == "RUNNING":
        time.sleep(0.1)
    assert json.loads(found["output"]) == {
        "job": "retrue-1",
        "artifacts": "s3://lake/runs/retrue-1/output/model.tar.gz",
    }
