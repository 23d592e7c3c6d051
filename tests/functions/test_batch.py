"""The batch function: its events, which model it takes, and what it logs."""

import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue.classifier import Classifier
from retrue.errors import ModelRefused, NoModel
from retrue.lake import Lake
from retrue.records import from_iso

ROOT = Path(__file__).parents[2]
BUCKET, PARAMETER = "retrue-test", "/retrue/test/model"
CONTEXT = SimpleNamespace(
    function_name="batch",
    memory_limit_in_mb=1769,
    invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:batch",
    aws_request_id="r-1",
    get_remaining_time_in_millis=lambda: 900_000,
)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.setenv("BUCKET", BUCKET)
    monkeypatch.setenv("ENVIRONMENT", "test")
    monkeypatch.setenv("MODEL_PARAMETER", PARAMETER)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec = importlib.util.spec_from_file_location("batch_app", ROOT / "functions" / "batch" / "app.py")
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
def lake(app: ModuleType) -> Lake:
    return Lake(BUCKET)


def event(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "tests" / "events" / f"{name}.json").read_text())
    return found


def key_of(event: dict[str, Any]) -> str:
    key: str = event["detail"]["object"]["key"]
    return key


def serve(lake: Lake, model: Path) -> str:
    name = Classifier.open(model).model
    lake.upload_folder(model, f"models/{name}/")
    point(lake.uri(f"models/{name}/"))
    return name


def point(uri: str) -> None:
    boto3.client("ssm").put_parameter(Name=PARAMETER, Value=uri, Type="String", Overwrite=True)


def logged(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_dropped_file_is_classified_and_logged_without_its_words(
    app: ModuleType, lake: Lake, tiny_model: Path, log: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    model = serve(lake, tiny_model)
    dropped = event("s3-object-created")
    lake.put(key_of(dropped), b"id,text\n1,a zanzibar film\n2,\n3,a poor zanzibar film\n")
    answer = app.handler(dropped, CONTEXT)
    assert {name: answer[name] for name in ("state", "model", "rows", "accepted", "rejected")} == {
        "state": "done",
        "model": model,
        "rows": 3,
        "accepted": 2,
        "rejected": 1,
    }
    job = lake.read_job(answer["id"])
    assert job.input == "s3://retrue-test/incoming/reviews of may + june.csv"
    assert from_iso(job.started) == from_iso("2026-11-22T09:30:00Z")
    assert f"results/{job.id}/results.csv" in list(lake.keys("results/"))

    (line,) = logged(log)
    assert (line["message"], line["job"]) == ("job ended", answer)
    printed = capsys.readouterr()
    assert "zanzibar" not in log.getvalue() + printed.out + printed.err
    told = json.loads(printed.out)
    assert (told["JobRows"], told["JobRejected"]) == ([3.0], [1.0])


def test_the_same_event_delivered_twice_does_its_job_once(
    app: ModuleType, lake: Lake, tiny_model: Path, log: io.StringIO
) -> None:
    serve(lake, tiny_model)
    dropped = event("s3-object-created")
    lake.put(key_of(dropped), b"text\ngood film\n")
    first = app.handler(dropped, CONTEXT)
    before = {key: lake.get(key) for key in lake.keys("")}
    assert app.handler(dropped, CONTEXT) == first
    assert {key: lake.get(key) for key in lake.keys("")} == before
    assert [line["message"] for line in logged(log)] == ["job ended", "job was done before"]

    dropped["detail"]["object"]["sequencer"] = "0067422A5C8E31B9F1"  # dropped once more under the same name
    assert app.handler(dropped, CONTEXT)["id"] != first["id"]


def test_of_a_share_only_so_much_is_captured(
    app: ModuleType, lake: Lake, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTURE_RATE", "0")
    serve(lake, tiny_model)
    dropped = event("s3-object-created")
    lake.put(key_of(dropped), b"text\ngood film\n")
    assert app.handler(dropped, CONTEXT)["accepted"] == 1
    assert list(lake.keys("capture/")) == []


def test_labels_are_taken_without_any_model(app: ModuleType, lake: Lake, tiny_model: Path) -> None:
    serve(lake, tiny_model)
    texts, truths = event("s3-object-created"), event("s3-labels-created")
    lake.put(key_of(texts), b"id,text\na1,good film\na2,bad film\n")
    app.handler(texts, CONTEXT)
    point("none")
    lake.put(key_of(truths), b"id,label\na1,positive\na2,negative\n")
    answer = app.handler(truths, CONTEXT)
    assert (answer["kind"], answer["state"], answer["accepted"]) == ("label", "done", 2)
    assert len(list(lake.newest_labels(from_iso(truths["time"]), 1))) == 2


@pytest.mark.parametrize("key", ["incoming/notes.txt", "incoming/", "somewhere/else.csv"])
def test_other_files_are_ignored_with_a_log_line(app: ModuleType, lake: Lake, log: io.StringIO, key: str) -> None:
    dropped = event("s3-object-created")
    dropped["detail"]["object"]["key"] = key
    assert app.handler(dropped, CONTEXT) == {"ignored": True}
    assert logged(log)[0]["message"].startswith("ignored")
    assert list(lake.keys("")) == []


def test_without_a_model_the_event_is_kept_and_the_job_says_why_and_goes_on_later(
    app: ModuleType, lake: Lake, tiny_model: Path
) -> None:
    dropped = event("s3-object-created")
    lake.put(key_of(dropped), b"text\ngood film\n")
    with pytest.raises(NoModel):
        app.handler(dropped, CONTEXT)
    (key,) = lake.keys("jobs/")
    assert (lake.get_json(key)["state"], "retrue retrain" in lake.get_json(key)["error"]) == ("failed", True)

    serve(lake, tiny_model)
    assert app.handler(dropped, CONTEXT)["state"] == "done"
    assert "error" not in lake.get_json(key)


def test_a_model_that_is_not_whole_is_refused_and_the_event_kept(app: ModuleType, lake: Lake, tiny_model: Path) -> None:
    model = serve(lake, tiny_model)
    lake.put(f"models/{model}/model.onnx", b"altered")
    dropped = event("s3-object-created")
    lake.put(key_of(dropped), b"text\ngood film\n")
    with pytest.raises(ModelRefused):
        app.handler(dropped, CONTEXT)
    (key,) = lake.keys("jobs/")
    assert lake.get_json(key)["state"] == "failed"


def test_the_model_is_fetched_once_for_many_files(
    app: ModuleType, lake: Lake, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(lake, tiny_model)
    fetched: list[str] = []
    download = Lake.download_folder

    def counting(self: Lake, prefix: str, *more: Any) -> list[Path]:
        fetched.append(prefix)
        return download(self, prefix, *more)

    monkeypatch.setattr(Lake, "download_folder", counting)
    for number in range(3):
        dropped = event("s3-object-created")
        dropped["detail"]["object"]["key"] = f"incoming/{number}.csv"
        lake.put(f"incoming/{number}.csv", b"text\ngood film\n")
        app.handler(dropped, CONTEXT)
    assert len(fetched) == 1


def test_a_job_that_broke_off_goes_on_with_the_model_it_began_with(
    app: ModuleType, lake: Lake, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve(lake, tiny_model)
    dropped = event("s3-object-created")
    lake.put(key_of(dropped), b"text\ngood film\n")

    def breaks(*_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "upload", breaks)
        with pytest.raises(ConnectionError):
            app.handler(dropped, CONTEXT)
    point(lake.uri("models/000000000000/"))
    assert app.handler(dropped, CONTEXT)["model"] == model


def test_a_file_that_cannot_be_read_is_not_tried_again(app: ModuleType, lake: Lake, tiny_model: Path) -> None:
    serve(lake, tiny_model)
    dropped = event("s3-object-created")
    lake.put(key_of(dropped), b"a,b\n1,2\n")
    assert app.handler(dropped, CONTEXT)["state"] == "failed"
