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
SCORING = "arn:aws:states:eu-central-1:123456789012:stateMachine:retrue-test-scoring"
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
    monkeypatch.setenv("SCORING_ARN", SCORING)
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


@pytest.fixture
def large(app: ModuleType, lake: Lake, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The event of a file that takes more than one run, where a model serves and the workflow is there."""
    monkeypatch.setenv("FILE_MEGABYTES", "0.00002")
    serve(lake, tiny_model)
    role = boto3.client("iam").create_role(RoleName="scoring", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    boto3.client("stepfunctions").create_state_machine(
        name="retrue-test-scoring",
        definition=json.dumps({"StartAt": "A", "States": {"A": {"Type": "Succeed"}}}),
        roleArn=role,
    )
    dropped = event("s3-object-created")
    body = b"id,text\n1,a zanzibar film\n2,\n3,a poor zanzibar film\n"
    dropped["detail"]["object"]["size"] = len(body)
    lake.put(key_of(dropped), body)
    return dropped


def executions() -> list[dict[str, Any]]:
    client = boto3.client("stepfunctions")
    found = client.list_executions(stateMachineArn=SCORING)["executions"]
    return [client.describe_execution(executionArn=one["executionArn"]) for one in found]


def test_a_large_file_begins_one_workflow_however_often_it_is_told(
    app: ModuleType, lake: Lake, large: dict[str, Any], log: io.StringIO
) -> None:
    answer = app.handler(large, CONTEXT)
    assert (answer["state"], answer["rows"]) == ("running", 0)
    assert app.handler(large, CONTEXT) == answer
    (execution,) = executions()
    assert execution["name"] == answer["id"]
    assert json.loads(execution["input"]) == {"job": answer["id"], "size": large["detail"]["object"]["size"]}
    assert [line["message"] for line in logged(log)] == ["job takes more than one run"] * 2
    assert list(lake.keys("results/")) == []


def test_without_a_model_no_workflow_is_begun(app: ModuleType, lake: Lake, large: dict[str, Any]) -> None:
    point("none")
    with pytest.raises(NoModel):
        app.handler(large, CONTEXT)
    assert executions() == []


def test_the_steps_of_the_workflow_do_the_job_and_log_it_without_its_words(
    app: ModuleType,
    lake: Lake,
    large: dict[str, Any],
    log: io.StringIO,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = app.handler(large, CONTEXT)["id"]
    point(lake.uri("models/000000000000/"))  # another model serves by now
    plan = app.handler({"step": "cut", "job": job, "size": large["detail"]["object"]["size"]}, CONTEXT)
    assert plan["parts"] == 1
    items = [{"Key": key, "Size": 1} for key in lake.keys(plan["rows"])]
    assert app.handler({"step": "score", "job": job, "items": items}, CONTEXT) == {"parts": [0]}
    answer = app.handler({"step": "join", "job": job}, CONTEXT)
    assert {name: answer[name] for name in ("state", "rows", "accepted", "rejected")} == {
        "state": "done", "rows": 3, "accepted": 2, "rejected": 1,
    }  # fmt: skip
    assert [line["message"] for line in logged(log)] == ["job takes more than one run", "job ended"]
    printed = capsys.readouterr()
    assert "zanzibar" not in log.getvalue() + printed.out + printed.err + json.dumps(plan)
    told = json.loads(printed.out)
    assert (told["JobRows"], told["JobRejected"]) == ([3.0], [1.0])
    # A step that failed at its very end does not make it otherwise.
    app.handler({"step": "fail", "job": job, "error": {"Error": "States.Timeout"}}, CONTEXT)
    assert lake.read_job(job).state == "done"


def test_a_workflow_that_failed_is_written_into_the_job_with_a_remedy(
    app: ModuleType, lake: Lake, large: dict[str, Any]
) -> None:
    job = app.handler(large, CONTEXT)["id"]
    app.handler({"step": "fail", "job": job, "error": {"Error": "States.Timeout", "Cause": "whatever"}}, CONTEXT)
    found = lake.read_job(job)
    assert (found.state, "drop the file again" in (found.error or "")) == ("failed", True)
    assert "States.Timeout" in (found.error or "")


def test_a_large_file_that_cannot_be_read_ends_its_job(
    app: ModuleType, lake: Lake, large: dict[str, Any], log: io.StringIO
) -> None:
    lake.put(key_of(large), b"a,b\n1,2\n3,4\n5,6\n7,8\n")
    job = app.handler(large, CONTEXT)["id"]
    assert app.handler({"step": "cut", "job": job, "size": 20}, CONTEXT)["parts"] == 0
    assert lake.read_job(job).state == "failed"
    assert logged(log)[-1]["message"] == "job ended"


def test_a_step_that_nobody_knows_is_an_error(app: ModuleType, lake: Lake, large: dict[str, Any]) -> None:
    job = app.handler(large, CONTEXT)["id"]
    with pytest.raises(ValueError, match="no step is named 'dance'"):
        app.handler({"step": "dance", "job": job}, CONTEXT)
