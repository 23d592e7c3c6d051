"""Fourteen days of traffic in a minute, by an injected clock: the deployed monitor on real reviews and tweets."""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from retrue import answers, dataset, sources, watch
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.local import machine
from retrue.records import Label, iso, new_id
from retrue.stack import Stack
from retrue.terminal import ask, follow

NAMES = {"0": "negative", "1": "positive"}
DAY = 86_400_000
A_DAY, LABELLED = 80, 24  # texts of a day, and those of them that somebody labels
PURE, DAYS = 10, 14  # days before the drift, and all
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


@pytest.fixture(scope="module")
def films(real_data: Path) -> list[Example]:
    rows = sources.table(real_data / "imdb_test.parquet", sources.Columns(names=NAMES))["train"]
    random.Random(8).shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def tweets(real_data: Path) -> list[Example]:
    rows = pq.read_table(real_data / "drift" / "airline_tweets.parquet", columns=["text", "label"]).to_pylist()
    random.Random(8).shuffle(rows)
    return [Example(row["text"], NAMES[str(row["label"])]) for row in rows]


@pytest.fixture(scope="module")
def classifier(stack: Stack, films: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A model of film reviews that serves: the first one of the ledger, or one that is trained now."""
    promoted = [entry.model for entry in stack.lake.ledger() if entry.action == "promoted"]
    if promoted:
        follow(stack, ask(stack, {"reason": "a model of films alone", "model": promoted[0]}))
    else:
        splits = {"train": films[:400], "validation": films[400:500], "test": films[500:800]}
        folder = dataset.write(tmp_path_factory.mktemp("films"), splits, name="films", source="IMDB, a small part")
        machine.use(stack, folder)
        follow(stack, ask(stack, {"reason": "first model"}))
    return answers.fetch_model(stack.lake, stack.serving(), tmp_path_factory.mktemp("model"))


@pytest.fixture
def people(stack: Stack) -> Iterator[Callable[[], list[str]]]:
    """What the topic of the alarms tells people."""
    sns, sqs = stack.session.client("sns"), stack.session.client("sqs")
    url = sqs.create_queue(QueueName="people")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    allowed = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage"}
    policy = {"Version": "2012-10-17", "Statement": [allowed | {"Resource": arn}]}
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(policy)})
    subscription = sns.subscribe(TopicArn=stack.outputs["TopicArn"], Protocol="sqs", Endpoint=arn)["SubscriptionArn"]

    def told() -> list[str]:
        messages = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=2).get("Messages", ())
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(message["Body"])["Message"] for message in messages]

    yield told
    sns.unsubscribe(SubscriptionArn=subscription)
    sqs.delete_queue(QueueUrl=url)


def test_fourteen_days_are_silent_until_texts_drift_and_a_person_has_the_last_word(
    stack: Stack,
    redeploy: Callable[..., Stack],
    classifier: Classifier,
    films: list[Example],
    tweets: list[Example],
    people: Callable[[], list[str]],
) -> None:
    # The clock goes back by two weeks, and what was asked for since then has not happened yet.
    stack.lake.delete([watch.STATE, watch.TOLD])
    rows = films[-PURE * A_DAY :] + tweets
    today = time.time_ns() // 1_000_000
    executions = len(stack.workflow.executions())
    known = stack.lake.newest_labels(today, 24)
    before = len({label.id for label in known if label.model == classifier.model})
    careful = {"RetrainMode": "suggest", "RetrainCooldownHours": "40", "ToleratedDrop": "0.1"}
    redeploy(**careful)

    def live(day: int) -> dict[str, Any]:
        """One day's texts and labels, and the check at its end."""
        now = today - (DAYS - 1 - day) * DAY
        capture(stack, classifier, rows[day * A_DAY : (day + 1) * A_DAY], now)
        return check(stack, now)

    for day in range(PURE):
        report = live(day)
        assert report["drift"]["n"] == A_DAY, report
        assert (report["decision"], report["requested"]) == ("none", False), report
    assert report["accuracy"]["n"] == before + PURE * LABELLED
    assert report["accuracy"]["low"] < report["accuracy"]["value"] < report["accuracy"]["high"]
    points = stack.lake.get_json("reports/state.json")["points"][-PURE:]
    assert [point["n"] for point in points] == [A_DAY] * PURE

    # Tweets come. A person is told, once, and nothing is trained.
    loud = live(PURE)
    assert loud["drift"]["fired"]
    assert (loud["decision"], loud["trigger"], loud["requested"]) == ("suggest", "drift", True), loud
    told = wait_for(people, "retrain.suggested")
    assert "the texts have drifted" in told
    assert loud["page"] in told
    later = live(PURE + 1)
    assert (later["decision"], later["requested"]) == ("wait", False), later
    assert len(stack.workflow.executions()) == executions

    # Nobody does anything; with the automatic mode the workflow begins by itself.
    redeploy(**careful | {"RetrainMode": "automatic"})
    again = live(PURE + 2)
    assert (again["decision"], again["trigger"], again["requested"]) == ("retrain", "drift", True), again
    begun = wait_for(stack.workflow.oldest_running, "execution")
    request = json.loads(stack.workflow.describe(begun)["input"])["detail"]
    assert (request["trigger"], request["page"]) == ("drift", again["page"])
    stack.session.client("stepfunctions").stop_execution(executionArn=begun)
    assert live(DAYS - 1)["decision"] == "wait"
    wait_for(lambda: alarm(stack, "DriftAlarm"), "ALARM")
    assert stack.lake.get("reports/latest.html").startswith(b"<!DOCTYPE html>")


def capture(stack: Stack, classifier: Classifier, rows: list[Example], now: int) -> None:
    """Answers over the day before `now`, written as the predict function does, and labels for some."""
    for first in range(0, A_DAY, 10):
        ms, part = now - DAY + first * DAY // A_DAY, rows[first : first + 10]
        ids = [new_id(ms, random.Random(ms + k).randbytes(10)) for k in range(len(part))]
        answered = [
            classifier.score(row.text).record(id, classifier.model, "http") for id, row in zip(ids, part, strict=True)
        ]
        stack.lake.write_predictions(answered)
        stack.lake.write_labels(
            [
                Label(
                    id=one.id,
                    time=iso(ms + 60_000),
                    label=row.label,
                    model=one.model,
                    predicted=one.label,
                    scores=one.scores,
                    source="http",
                    tokens=one.tokens,
                    origin="http",
                )
                for one, row in zip(answered[: LABELLED * 10 // A_DAY], part, strict=False)
            ]
        )


def check(stack: Stack, now: int) -> dict[str, Any]:
    """One check by the deployed function, as of a time that is told to it."""
    answer = stack.session.client("lambda").invoke(
        FunctionName=stack.outputs["MonitorFunctionName"], Payload=json.dumps({"time": iso(now)}).encode()
    )
    report: dict[str, Any] = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, report
    return report


def alarm(stack: Stack, name: str) -> str:
    found = stack.session.client("cloudwatch").describe_alarms(AlarmNamePrefix=stack.name)["MetricAlarms"]
    return next(one["StateValue"] for one in found if name in one["AlarmName"])


def wait_for(look: Callable[[], Any], wanted: str) -> str:
    """The first thing seen, of those that `look` gives, that holds the wanted word."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        seen = look()
        for one in [seen] if isinstance(seen, str) else seen or ():
            if wanted in one:
                return str(one)
        time.sleep(0.5)
    raise AssertionError(f"there was no {wanted}")
