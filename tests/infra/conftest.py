"""What runs a workflow's definition: moto's interpreter of the language, its tasks answered by the tests."""

import json
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from moto.stepfunctions.parser.api import HistoryEventType, TaskFailedEventDetails
from moto.stepfunctions.parser.asl.component.common.error_name.custom_error_name import CustomErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import FailureEvent, FailureEventException
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import StatesErrorName
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import state_task_service_unsupported
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.resource import ResourceCondition
from moto.stepfunctions.parser.asl.eval.environment import Environment
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.mocking.mock_config import MockedResponseReturn

from retrue.workflow import Workflow

Answer = Callable[[dict[str, Any]], Any]


class Run:
    """An execution that has ended: its status, the states it entered, and what each task was asked."""

    def __init__(self, client: Any, execution: str, waits: list[float]) -> None:
        while (found := client.describe_execution(executionArn=execution))["status"] == "RUNNING":
            time.sleep(0.01)
        self.status, self.error, self.waits = found["status"], found.get("error"), waits
        self.path = Workflow("", client).states(execution)
        events = client.get_execution_history(executionArn=execution)["events"]
        self.entered = [e["stateEnteredEventDetails"]["name"] for e in events if "stateEnteredEventDetails" in e]
        asked = [e["taskScheduledEventDetails"] for e in events if "taskScheduledEventDetails" in e]
        self.asked = [(e["resourceType"], json.loads(e["parameters"])) for e in asked]
        self.times = self.entered.count

    def payloads(self, step: str) -> list[dict[str, Any]]:
        found = [asked["Payload"] for kind, asked in self.asked if kind == "lambda"]
        return [payload for payload in found if payload["step"] == step]

    def requests(self, service: str) -> list[dict[str, Any]]:
        return [asked for kind, asked in self.asked if kind == service]


@pytest.fixture
def interpret(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, Any, dict[str, Answer]], Run]:
    """Runs a state machine on an input with answers by the state that asks; each is given the state's input.

    An answer of the keys Error and Cause alone is a failure.
    """

    def go(client: Any, machine: str, event: Any, given: dict[str, Answer]) -> Run:
        def respond(env: Environment) -> MockedResponseReturn:
            answer = given[env.next_state_name or ""](env.states.get_input())
            if isinstance(answer, dict) and answer.keys() == {"Error", "Cause"}:
                error, cause = answer["Error"], answer["Cause"]
                name = StatesErrorName.from_name(error) if error.startswith("States.") else CustomErrorName(error)
                details = EventDetails(taskFailedEventDetails=TaskFailedEventDetails(error=error, cause=cause))
                raise FailureEventException(FailureEvent(env, name, HistoryEventType.TaskFailed, details))
            return MockedResponseReturn(0, 0, answer)

        waits: list[float] = []
        monkeypatch.setattr(Environment, "is_mocked_mode", lambda _: True)
        monkeypatch.setattr(Environment, "get_current_mocked_response", respond)
        monkeypatch.setattr(retrier_decl, "time", SimpleNamespace(sleep=waits.append))
        # The interpreter runs no SageMaker jobs; with answers given it need not.
        known = {ResourceCondition.Sync, ResourceCondition.WaitForTaskToken}
        monkeypatch.setattr(state_task_service_unsupported, "_SUPPORTED_INTEGRATION_PATTERNS", known)
        words = {"name": str(uuid.uuid4()), "input": json.dumps(event)}
        execution = client.start_execution(stateMachineArn=machine, **words)["executionArn"]
        return Run(client, execution, waits)

    return go
