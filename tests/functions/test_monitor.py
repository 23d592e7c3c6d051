"""The monitor function: its events, its settings, and what it logs."""

import importlib.util
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue import corpus
from retrue.classifier import Classifier
from retrue.lake import Lake
from retrue.records import new_id

ROOT = Path(__file__).parents[2]
BUCKET, PARAMETER = "retrue-test", "/retrue/test/model"
CONTEXT = SimpleNamespace(
    function_name="monitor",
    memory_limit_in_mb=1024,
    invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:monitor",
    aws_request_id="r-1",
)
SCHEDULE = json.loads((ROOT / "tests" / "events" / "schedule-hourly.json").read_text())


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("BUCKET", BUCKET)
    monkeypatch.setenv("ENVIRONMENT", "test")
    monkeypatch.setenv("MODEL_PARAMETER", PARAMETER)
    monkeypatch.setenv("LABEL_DAYS", "2")
    spec = importlib.util.spec_from_file_location("monitor_app", ROOT / "functions" / "monitor" / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock_aws():
        boto3.client("s3").create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        boto3.client("ssm").put_parameter(Name=PARAMETER, Value="none", Type="String")
        yield module


@pytest.fixture
def log(app: ModuleType) -> io.StringIO:
    """What the function logs."""
    stream = io.StringIO()
    app.logger.registered_handler.setStream(stream)
    return stream


@pytest.fixture
def sent(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reaches the event bus, at the border of botocore."""
    import botocore.client

    entries: list[dict[str, Any]] = []
    call = botocore.client.BaseClient._make_api_call

    def watched(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "PutEvents":
            entries.extend(arguments["Entries"])
        return call(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", watched)
    return entries


def serve(model: Path) -> Classifier:
    classifier = Classifier.open(model)
    lake = Lake(BUCKET)
    lake.upload_folder(model, f"models/{classifier.model}/")
    boto3.client("ssm").put_parameter(
        Name=PARAMETER, Value=lake.uri(f"models/{classifier.model}/"), Type="String", Overwrite=True
    )
    return classifier


def capture(classifier: Classifier, texts: list[str]) -> None:
    ms = time.time_ns() // 1_000_000 - 60_000
    answers = [classifier.score(text) for text in texts]
    Lake(BUCKET).write_predictions(
        [a.record(new_id(ms, n.to_bytes(10)), classifier.model, "http") for n, a in enumerate(answers)]
    )


def test_the_schedule_before_the_first_model_gets_a_report(app: ModuleType) -> None:
    report = app.handler(SCHEDULE, CONTEXT)
    assert (report["model"], report["decision"]) == (None, "none")
    assert Lake(BUCKET).get_json("reports/latest.json") == report


def test_drift_puts_one_request_on_the_bus_and_a_dry_run_none(
    app: ModuleType, sent: list[dict[str, Any]], tiny_model: Path, log: io.StringIO
) -> None:
    classifier = serve(tiny_model)
    capture(classifier, [f"{n} !!! ??? {n * 31 % 97} zanzibar" for n in range(80)])
    dry = app.handler({"request": False}, CONTEXT)
    assert (dry["decision"], dry["requested"], sent) == ("retrain", False, [])
    report = app.handler(SCHEDULE, CONTEXT)
    assert report["requested"]
    assert [(e["Source"], e["DetailType"], e["EventBusName"]) for e in sent] == [
        ("retrue", "retrain.requested", "default")
    ]
    detail = json.loads(sent[0]["Detail"])
    assert detail.keys() == {"environment", "reason", "trigger", "evidence", "report"}
    assert (detail["environment"], detail["trigger"]) == ("test", "drift")
    assert app.handler(SCHEDULE, CONTEXT)["decision"] == "wait"
    assert len(sent) == 1
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["report"]["decision"] for line in lines] == ["retrain", "retrain", "wait"]
    assert "zanzibar" not in log.getvalue()


def test_usual_texts_are_left_in_peace(app: ModuleType, sent: list[dict[str, Any]], tiny_model: Path) -> None:
    classifier = serve(tiny_model)
    capture(classifier, [example.text for example in corpus.generate(seed=5, rows=100, domain="films")])
    report = app.handler(SCHEDULE, CONTEXT)
    assert (report["n"], report["decision"], sent) == (100, "none", [])
