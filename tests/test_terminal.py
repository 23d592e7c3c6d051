"""What the command line asks of a stack, and what a terminal shows of the trainings of a run."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws
from rich.console import Console

from retrue import search, terminal
from retrue.lake import Lake
from retrue.search import Search, Trial
from retrue.terminal import ask
from retrue.worker import progress_key

RUN = "retrue-0123456789abcdef"


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


class Ending:
    """An execution that enters its last state and ends between any two looks at it."""

    ended = False

    def describe(self, _: str) -> dict[str, Any]:
        return {"status": "SUCCEEDED" if self.ended else "RUNNING"}

    def states(self, _: str) -> list[str]:
        before, self.ended = self.ended, True
        return ["IsBetter", "RecordRejection", *(["Rejected"] if before else [])]


def test_the_outcome_is_the_last_state_also_where_it_came_between_two_looks(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "POLL_SECONDS", 0)
    stack: Any = SimpleNamespace(workflow=Ending(), lake=lake)
    assert terminal.follow(stack, "arn")["outcome"] == "Rejected"


@pytest.fixture
def lake() -> Iterator[Lake]:
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="lake")
        yield Lake("lake", client)


def begun() -> Search:
    trials = [{"epochs": str(number)} for number in range(1, 5)]
    return Search.begin(search.plan(trials, 0, 0, 0))


def note(lake: Lake, job: str, share: float, message: str) -> None:
    lake.put_json(progress_key(job), {"share": share, "message": message})


def test_one_training_tells_its_own_progress(lake: Lake) -> None:
    assert terminal._progress(lake, RUN) == (0.0, "not begun")
    note(lake, RUN, 0.4, "epoch 1 of 3")
    assert terminal._progress(lake, RUN) == (0.4, "epoch 1 of 3")


def test_a_search_tells_the_progress_of_its_rung(lake: Lake) -> None:
    lake.put(f"runs/{RUN}/search.json", begun().to_json().encode())
    note(lake, f"{RUN}-0-00", 0.5, "epoch 1 of 3")
    note(lake, f"{RUN}-0-01", 1.0, "paused after step 4")
    assert terminal._progress(lake, RUN) == (0.375, "rung 1 of 2, 4 trials: epoch 1 of 3")


def test_trials_are_told_as_they_begin_and_a_table_ends_each_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=100)
    monkeypatch.setattr(terminal, "err", console)
    show = terminal.trials_shown(True)
    found = begun()
    show(found)
    states: list[dict[str, Any]] = [
        {"metric": 0.5}, {"metric": 0.9}, {"state": "failed", "error": "out of [memory]"}, {"metric": 0.7},
    ]  # fmt: skip
    for trial, more in zip(found.trials, states, strict=True):
        found = found.replaced(Trial(trial.name, trial.settings, rungs=0 if "state" in more else 1, seconds=2, **more))
    show(search.halve(found))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines[0] == "4 trials (4 to 33%, 2 to 100%), the work of 2.7 full trainings"
    assert lines[1] == "rung 1 of 2, trial 00 to 33%: epochs=1"
    rows = [line.strip("│ ").split(" │ ") for line in lines if line.startswith("│")]
    assert rows == [
        ["01", "2", "33%", "0.9000", "2", "running"],
        ["03", "4", "33%", "0.7000", "2", "running"],
        ["00", "1", "33%", "0.5000", "2", "stopped early"],
        ["02", "3", "0%", "-", "2", "failed"],
    ]
    assert lines[-2:] == ["trial 02 failed: out of [memory]", "rung 2 of 2, trial 01 to 100%: epochs=2"]


def test_a_training_without_a_search_is_told_by_its_own_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True)
    monkeypatch.setattr(terminal, "err", console)
    terminal.trials_shown(False)(begun())
    assert console.export_text() == ""
