"""Whose turn it is: one execution at a time and one for each event, whatever Step Functions says late or not at all."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest

from retrue import turn
from retrue.lake import TURN, Lake
from retrue.workflow import Workflow

ROLE = "arn:aws:iam::123456789012:role/retrain"
NOW = 1_767_259_800_000  # 2026-01-01T09:30Z


@pytest.fixture
def workflow(cloud: None) -> Workflow:
    client = boto3.client("stepfunctions")
    return Workflow(client.create_state_machine(name="retrain", definition="{}", roleArn=ROLE)["stateMachineArn"])


def begun(workflow: Workflow, name: str) -> str:
    execution: str = workflow.client.start_execution(stateMachineArn=workflow.arn, name=name)["executionArn"]
    return execution


@pytest.mark.parametrize("end", ["stopped", "running"])
def test_a_turn_lasts_as_long_as_its_execution(lake: Lake, workflow: Workflow, end: str) -> None:
    first, second = begun(workflow, "one"), begun(workflow, "two")
    assert turn.take(lake, workflow, first, "event-1", NOW)
    assert turn.take(lake, workflow, first, "event-1", NOW + 1), "the step was tried again"
    assert not turn.take(lake, workflow, second, "event-2", NOW)
    if end == "stopped":
        workflow.client.stop_execution(executionArn=first)
    assert turn.take(lake, workflow, second, "event-2", NOW) is (end == "stopped")
    holder = second if end == "stopped" else first
    assert lake.get_json(TURN)["execution"] == holder


def test_an_event_that_comes_twice_has_one_turn_even_where_the_first_has_ended(lake: Lake, workflow: Workflow) -> None:
    first, second, third = (begun(workflow, name) for name in ("one", "two", "three"))
    assert turn.take(lake, workflow, first, "event-1", NOW)
    workflow.client.stop_execution(executionArn=first)
    assert not turn.take(lake, workflow, second, "event-1", NOW)
    assert turn.take(lake, workflow, third, "event-2", NOW)


def test_two_that_people_began_one_after_the_other_have_a_turn_each(lake: Lake, workflow: Workflow) -> None:
    first, second = begun(workflow, "one"), begun(workflow, "two")
    assert turn.take(lake, workflow, first, None, NOW)
    workflow.client.stop_execution(executionArn=first)
    assert turn.take(lake, workflow, second, None, NOW)


@pytest.mark.parametrize(("later", "mine"), [(turn.UNSEEN_MS - 1, False), (turn.UNSEEN_MS, True)])
def test_a_holder_that_cannot_be_described_is_new_at_first_and_then_gone(
    lake: Lake, workflow: Workflow, later: int, mine: bool
) -> None:
    assert turn.take(lake, workflow, begun(workflow, "one") + "-unseen", "event-1", NOW)
    assert turn.take(lake, workflow, begun(workflow, "two"), "event-2", NOW + later) is mine


@pytest.mark.parametrize("before", ["nobody", "one that has ended"])
def test_of_those_that_begin_together_exactly_one_goes_on(lake: Lake, workflow: Workflow, before: str) -> None:
    """All look before any of them writes, as in the worst race."""
    if before != "nobody":
        ended = begun(workflow, "ended")
        assert turn.take(lake, workflow, ended, "event-0", NOW)
        workflow.client.stop_execution(executionArn=ended)
    executions = [begun(workflow, f"racer-{number}") for number in range(4)]
    together = threading.Barrier(len(executions))

    class Slow(Lake):
        first = threading.local()

        def get_versioned(self, key: str) -> tuple[Any, str | None]:
            found = super().get_versioned(key)
            if not getattr(self.first, "over", False):
                self.first.over = True
                together.wait(10)
            return found

    slow = Slow(lake.bucket, lake.s3)
    with ThreadPoolExecutor(len(executions)) as pool:
        answers = list(pool.map(lambda execution: turn.take(slow, workflow, execution, execution, NOW), executions))
    assert sum(answers) == 1
    assert lake.get_json(TURN)["execution"] == executions[answers.index(True)]
