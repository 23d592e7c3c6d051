"""The whole circle on real reviews, through the deployed local stack over real HTTP, workflow and training included."""

import csv
import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from retrue import dataset, promotion, registry, sources
from retrue.dataset import Example
from retrue.local import machine
from retrue.records import id_ms
from retrue.stack import Stack
from retrue.terminal import ask, drop, follow

NAMES = {"0": "negative", "1": "positive"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]


@pytest.fixture(scope="module")
def films(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Example]]:
    """A small prepared dataset of IMDB reviews, and reviews that are in none of its splits."""
    columns = sources.Columns(group="title_id", names=NAMES)
    train = sources.table(real_data / "imdb_train.parquet", columns)["train"]
    rest = sources.table(real_data / "imdb_test.parquet", sources.Columns(names=NAMES))["train"]
    shuffle = random.Random(7)
    shuffle.shuffle(train)
    shuffle.shuffle(rest)
    splits = {"train": train[:1_000], "validation": rest[:200], "test": rest[200:500]}
    folder = dataset.write(tmp_path_factory.mktemp("films"), splits, name="films", source="IMDB, a small part")
    return folder, rest[500:]


@pytest.fixture(scope="module")
def tweets(real_data: Path) -> list[Example]:
    """Airline tweets, as many of each label."""
    rows = pq.read_table(real_data / "drift" / "airline_tweets.parquet", columns=["text", "label"]).to_pylist()
    random.Random(7).shuffle(rows)
    sides = [[Example(row["text"], name) for row in rows if str(row["label"]) == side] for side, name in NAMES.items()]
    return list(itertools.chain.from_iterable(zip(*sides, strict=False)))[:800]


def test_the_circle_closes_on_real_reviews(
    stack: Stack,
    redeploy: Callable[..., Stack],
    films: tuple[Path, list[Example]],
    tweets: list[Example],
    tmp_path: Path,
) -> None:
    folder, fresh = films
    machine.use(stack, folder)

    # a first model, from few rows so that there is room to become better
    little = {"max_rows": 240, "batch_size": 8, "cut": "head"}
    first = follow(stack, ask(stack, {"reason": "first model", "settings": little}))
    assert first["outcome"] == "Promoted", first
    before = stack.status()
    assert before["alias_version"] == first["version"]
    assert before["model_version"] == first["model"]

    # predictions over HTTP, and a label for some
    answers: list[dict[str, Any]] = []
    for start in range(0, 200, 20):
        texts = [row.text for row in fresh[start : start + 20]]
        answers += stack.http("POST", "/v1/predict", {"inputs": texts})["predictions"]
    assert len({answer["id"] for answer in answers}) == 200
    assert all(id_ms(answer["id"]) for answer in answers)
    for answer, row in zip(answers[:20], fresh, strict=False):
        assert stack.http("POST", "/v1/feedback", {"id": answer["id"], "label": row.label})["label"] == row.label

    # a CSV with bad rows: nothing good is lost, and the order is kept
    reviews = fresh[200:400]
    job = drop(stack, _write(tmp_path / "new reviews+more.csv", reviews, bad=True), "incoming/", wait=True)
    assert (job["state"], job["accepted"], job["rejected"]) == ("done", 200, 2), job
    results = _read(stack, job["results"])
    assert [row["id"] for row in results] == [f"r{k}" for k in range(200)]
    assert {row["label"] for row in results} == {"negative", "positive"}
    rejects = _read(stack, job["rejects"])
    assert len(rejects) == 2

    # labels for them, by the ids of the file's own column
    told = drop(stack, _write_labels(tmp_path / "truth.csv", reviews), "labels/", wait=True)
    assert (told["state"], told["accepted"], told["rejected"]) == ("done", 200, 0), told

    # the monitor is silent on reviews like those it knows
    quiet = stack.check(request=True)
    assert quiet["decision"] == "none", quiet
    assert quiet["requested"] is False
    assert quiet["drift"]["fired"] is False
    assert quiet["accuracy"]["n"] == 220
    right = sum(row["label"] == review.label for row, review in zip(results, reviews, strict=True))
    right += sum(answer["label"] == row.label for answer, row in zip(answers[:20], fresh, strict=False))
    assert quiet["accuracy"]["value"] == pytest.approx(right / 220)

    # tweets come, and their labels; the monitor fires and asks for a retraining
    job = drop(stack, _write(tmp_path / "tweets.csv", tweets), "incoming/", wait=True)
    assert job["accepted"] == len(tweets), job
    told = drop(stack, _write_labels(tmp_path / "tweet-labels.csv", tweets), "labels/", wait=True)
    assert told["accepted"] == len(tweets), told
    assert stack.workflow.oldest_running() is None
    loud = stack.check(request=True)
    assert loud["drift"]["fired"] is True
    assert loud["decision"] == "retrain", loud
    assert loud["requested"] is True

    # the alarm goes off, from a metric in the monitor's log, and the monitor's own heartbeat is heard
    _wait_for_alarms(stack, {"DriftAlarm": "ALARM", "HeartbeatAlarm": "OK"})

    # the workflow trains on the labelled tweets too, and the better candidate is promoted
    second = follow(stack, _newest(stack, first["execution"]))
    assert second["outcome"] == "Promoted", second
    assert "drift" in second["reason"]
    assert second["evidence"]["rules"]["trigger"] == "drift"
    after = stack.status()
    assert after["alias_version"] == second["version"] != before["alias_version"]
    assert after["model_version"] == second["model"] != before["model_version"]
    assert stack.http("GET", "/v1/health")["model"] == second["model"]
    assert stack.release.ask(before["alias_version"], {"probe": ["a fine film"]})["model"] == first["model"]

    # asked again at once, the monitor has a new reference and too little that is new
    calm = stack.check(request=True)
    assert calm["decision"] == "none", calm

    # a candidate that learned nothing is rejected
    settings = {"max_rows": 40, "learning_rate": 1e-7}
    third = follow(stack, ask(stack, {"reason": "a bad idea", "settings": settings}))
    assert third["outcome"] == "Rejected", third
    assert third["action"] == "rejected"
    assert stack.status()["alias_version"] == after["alias_version"]

    # rollback restores the former version
    entry = promotion.roll_back(stack.lake, stack.release, "test", _now(stack))
    assert (entry.version, entry.model) == (before["alias_version"], before["model_version"])
    assert stack.http("GET", "/v1/health")["model"] == first["model"]
    assert [line.action for line in stack.lake.ledger()] == ["promoted", "promoted", "rejected", "rolled-back"]
    stack.crown(first["model"])
    assert _registered(stack)["champion"] == first["model"]

    # a person may name a model, and a deployment without changes leaves what serves alone
    again = follow(stack, ask(stack, {"reason": "a person decided", "model": second["model"]}))
    assert (again["outcome"], again["model"]) == ("Promoted", second["model"])
    assert again["reason"] == "a person decided: a person put it past the gate"
    assert again["evidence"] == {"override": True, "reason": "a person decided", "trigger": "person"}
    served = stack.status()
    assert served["alias_version"] == again["version"] not in (before["alias_version"], after["alias_version"])
    redeploy()
    assert stack.status() == served
    assert stack.http("GET", "/v1/health")["model"] == second["model"]

    # every candidate is in the registry, and its champion is what serves
    found = _registered(stack)
    assert found["models"] == {first["model"], second["model"], third["model"]}
    assert found["champion"] == second["model"]

    # a CSV beyond one run goes through its own workflow, in parts
    many = tmp_path / "many.csv"
    _write(many, [Example(f"A fine film, the {k}th that I saw, and not the last.", "positive") for k in range(2_200)])
    job = drop(stack, many, "incoming/", wait=True)
    assert (job["state"], job["accepted"], job["rejected"]) == ("done", 2_200, 0), job
    assert [row["id"] for row in _read(stack, job["results"])] == [f"r{k}" for k in range(2_200)]
    assert len(list(stack.lake.keys(f"parts/{job['id']}/rows/"))) == 3

    # nobody's words are in any log
    logs = _logs(stack)
    assert len(logs) > 1_000
    for row in [*fresh[:400], *tweets]:
        assert row.text[:60] not in logs
        assert row.text[-40:] not in logs


def _write(path: Path, rows: list[Example], bad: bool = False) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for k, row in enumerate(rows):
            writer.writerow([f"r{k}", row.text])
            if bad and k == 50:
                writer.writerow(["blank", "  "])
            if bad and k == 100:
                writer.writerow(["wide", "a good film", "one cell too many"])
    return path


def _write_labels(path: Path, rows: list[Example]) -> Path:
    lines = [f"r{k},{row.label}\n" for k, row in enumerate(rows)]
    path.write_text("id,label\n" + "".join(lines))
    return path


def _read(stack: Stack, uri: str) -> list[dict[str, str]]:
    body = stack.lake.get(uri.split("/", 3)[3]).decode()
    return list(csv.DictReader(body.splitlines(keepends=True)))


def _newest(stack: Stack, old: str) -> str:
    """The execution that the monitor's event began."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        newest = stack.workflow.executions()[0]["executionArn"]
        if newest != old:
            return str(newest)
        time.sleep(0.2)
    raise AssertionError("the monitor's event began no execution")


def _wait_for_alarms(stack: Stack, wanted: dict[str, str]) -> None:
    client = stack.session.client("cloudwatch")
    deadline = time.monotonic() + 60
    states: dict[str, str] = {}
    while time.monotonic() < deadline:
        alarms = client.describe_alarms(AlarmNamePrefix=stack.name)["MetricAlarms"]
        states = {name: a["StateValue"] for a in alarms for name in wanted if name in a["AlarmName"]}
        if states == wanted:
            return
        time.sleep(0.5)
    raise AssertionError(f"the alarms are {states}")


def _registered(stack: Stack) -> dict[str, Any]:
    """What MLflow knows, at the address that the workflow's own function writes to."""
    config = stack.session.client("lambda").get_function_configuration(FunctionName="retrue-local-steps")
    client = registry._client(config["Environment"]["Variables"]["MLFLOW_TRACKING_URI"])
    versions = client.search_model_versions("name = 'retrue-local'")
    champion = client.get_model_version_by_alias("retrue-local", "champion")
    return {"models": {version.tags["model"] for version in versions}, "champion": champion.tags["model"]}


def _now(stack: Stack) -> int:
    from retrue.records import from_iso

    return from_iso(stack.lake.ledger()[-1].time) + 1


def _logs(stack: Stack) -> str:
    client = stack.session.client("logs")
    lines = []
    for group in client.describe_log_groups()["logGroups"]:
        for page in client.get_paginator("filter_log_events").paginate(logGroupName=group["logGroupName"]):
            lines += [event["message"] for event in page["events"]]
    return json.dumps(lines, ensure_ascii=False)
