"""The workflows seen from outside: ask for a run, see what runs, take training work as a worker.

This module alone knows Step Functions and EventBridge.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as Unreachable

from retrue.errors import BadInput, StackError
from retrue.records import TRIGGERS

SOURCE = "retrue"
REQUESTED, SUGGESTED, LABELS_WANTED = "retrain.requested", "retrain.suggested", "labels.wanted"
CAUSE = 4_000  # characters of a failure; a search keeps those of all its trials in one state of 256 kB
UNFINISHED = {"RUNNING", "PENDING_REDRIVE"}
GONE = {"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"}  # what a token is answered that nobody waits for


def tell(bus: str, environment: str, kind: str, detail: dict[str, Any], events: Any = None) -> str:
    """Put an event on the bus, such as REQUESTED with the reason, its trigger and its evidence as detail; its id."""
    client = events if events is not None else boto3.client("events")
    entry = {
        "EventBusName": bus,
        "Source": SOURCE,
        "DetailType": kind,
        "Detail": json.dumps({"environment": environment, **detail}),
    }
    answer = client.put_events(Entries=[entry])
    if answer["FailedEntryCount"]:
        raise StackError(f"the event bus refused the request: {answer['Entries'][0].get('ErrorMessage', 'no reason')}")
    event: str = answer["Entries"][0]["EventId"]
    return event


def run_of(execution: str) -> str:
    """The short name of an execution's run: at most 63 characters of [a-z0-9-], as SageMaker wants it."""
    return "retrue-" + hashlib.sha256(execution.encode()).hexdigest()[:16]


def begin(execution: str, alone: bool, request: dict[str, Any]) -> dict[str, Any]:
    """Whether this execution may go on, the name of its run, and the request with a reason and a trigger in any case.

    BadInput where the trigger is none that the gate knows: better now than after the training.
    """
    whole = {"reason": "no reason given", "trigger": "person", **request}
    if whole["trigger"] not in TRIGGERS:
        raise BadInput(f"the request's trigger is none of {', '.join(TRIGGERS)}: name one, or leave it out")
    return {"alone": alone, "run": run_of(execution), "request": whole}


class Workflow:
    """One state machine and its executions."""

    def __init__(self, arn: str, client: Any = None) -> None:
        self.arn = arn
        self.client = client if client is not None else boto3.client("stepfunctions")

    def start(self, name: str, given: dict[str, Any]) -> None:
        """Start the execution of this name, or do nothing where there has been one within 90 days."""
        with suppress(self.client.exceptions.ExecutionAlreadyExists):
            self.client.start_execution(stateMachineArn=self.arn, name=name, input=json.dumps(given))

    def oldest_running(self) -> str | None:
        """The execution that began first among those that run now."""
        pages = self.client.get_paginator("list_executions").paginate(stateMachineArn=self.arn, statusFilter="RUNNING")
        running = [(e["startDate"], e["executionArn"]) for page in pages for e in page["executions"]]
        return min(running)[1] if running else None

    def is_running(self, execution: str) -> bool | None:
        """Whether an execution has not ended; None where it is not known, since it is too new or too old."""
        try:
            return str(self.describe(execution)["status"]) in UNFINISHED
        except self.client.exceptions.ExecutionDoesNotExist:
            return None

    def executions(self, most: int = 20) -> list[dict[str, Any]]:
        """The newest executions, newest first: arn, status, start and stop."""
        found = self.client.list_executions(stateMachineArn=self.arn, maxResults=most)["executions"]
        return sorted(found, key=lambda e: e["startDate"], reverse=True)

    def describe(self, execution: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.describe_execution(executionArn=execution)
        return answer

    def states(self, execution: str) -> list[str]:
        """The names of the states entered so far, in order, without those inside a Map."""
        pages = self.client.get_paginator("get_execution_history").paginate(executionArn=execution)
        inside: set[int] = set()  # ids of the events from the beginning of one of a Map's iterations to its end
        names: list[str] = []
        for event in (event for page in pages for event in page["events"]):
            follows = event.get("previousEventId") in inside and not event["type"].startswith("Map")
            if follows or event["type"] == "MapIterationStarted":
                inside.add(event["id"])
            elif "stateEnteredEventDetails" in event:
                names.append(event["stateEnteredEventDetails"]["name"])
        return names


@dataclass(frozen=True)
class Task:
    """A piece of training work: the token that answers it, and the request."""

    token: str
    request: dict[str, Any]


class Activity:
    """The queue of training work that workers poll."""

    def __init__(self, arn: str, client: Any = None) -> None:
        self.arn = arn
        # A poll is held open for a minute when there is no work.
        patient = Config(read_timeout=75, retries={"mode": "standard"})
        self.client = client if client is not None else boto3.client("stepfunctions", config=patient)

    def take(self, worker: str) -> Task | None:
        """Wait up to a minute for work."""
        answer = self.client.get_activity_task(activityArn=self.arn, workerName=worker)
        return Task(answer["taskToken"], json.loads(answer["input"])) if answer.get("taskToken") else None

    def heartbeat(self, task: Task) -> bool:
        """Say that the work goes on; False where the workflow no longer waits for it."""
        try:
            return _heard(self.client.send_task_heartbeat, taskToken=task.token)
        except (Unreachable, HTTPClientError):
            # A network that is away for a moment ends no work of hours; if it stays away, a later beat is told so.
            return True

    def succeed(self, task: Task, output: dict[str, Any]) -> bool:
        """Hand back the answer; False where the workflow no longer waits for it."""
        return _heard(self.client.send_task_success, taskToken=task.token, output=json.dumps(output))

    def fail(self, task: Task, error: str, cause: str) -> bool:
        """Say why there is no answer; False where the workflow no longer waits for one."""
        return _heard(self.client.send_task_failure, taskToken=task.token, error=error, cause=cause[-CAUSE:])


def _heard(call: Callable[..., Any], **values: Any) -> bool:
    try:
        call(**values)
    except ClientError as error:
        if error.response["Error"]["Code"] in GONE:
            return False
        raise
    return True
