"""The functions of the retraining workflow: each step gets its one call, from the first event to the crown."""

import importlib.util
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
import requests
from moto import mock_aws

from retrue import artifact
from retrue.classifier import Classifier
from retrue.errors import BadInput
from retrue.lake import Lake
from retrue.records import Label, iso, new_id
from retrue.release import serving_model

ROOT = Path(__file__).parents[2]
BUCKET, PARAMETER = "retrue-test", "/retrue/test/model"
CONTEXT = SimpleNamespace(
    function_name="steps",
    memory_limit_in_mb=3538,
    invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:steps",
    aws_request_id="r-1",
)
REQUEST = {"reason": "the texts drifted", "trigger": "drift", "environment": "test", "mark": "0f"}
RUN = "retrue-0123456789abcdef"


@pytest.fixture(scope="module")
def clients() -> dict[str, Any]:
    return {name: boto3.client(name) for name in ("iam", "lambda", "s3", "ssm", "stepfunctions")}


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tracking: str, clients: dict[str, Any]) -> Iterator[ModuleType]:
    """Both functions, with a predict function whose version 1 serves no model yet."""
    spec = importlib.util.spec_from_file_location("train_app", ROOT / "functions" / "train" / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("app.py", "def handler(event, context): return event")
    with mock_aws(config={"lambda": {"use_docker": False}}):
        where = {"LocationConstraint": "eu-central-1"}
        clients["s3"].create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)
        clients["ssm"].put_parameter(Name=PARAMETER, Value="none", Type="String")
        role = clients["iam"].create_role(RoleName="role", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        shape: dict[str, Any] = {"Runtime": "python3.11", "Handler": "app.handler", "Role": role}
        client = clients["lambda"]
        client.create_function(FunctionName="predict", Code={"ZipFile": code.getvalue()}, **shape)
        client.publish_version(FunctionName="predict")
        client.create_alias(FunctionName="predict", Name="live", FunctionVersion="1")
        states = clients["stepfunctions"]
        machine = states.create_state_machine(name="retrain", definition="{}", roleArn=role)["stateMachineArn"]
        for name, value in {
            "BUCKET": BUCKET,
            "ENVIRONMENT": "test",
            "MODEL_PARAMETER": PARAMETER,
            "STATE_MACHINE_ARN": machine,
            "MLFLOW_TRACKING_URI": tracking,
            "ENCODER": "tiny",
            "TRAIN_SETTINGS": "epochs=1",
            "MAXIMUM_TEST_ROWS": "100",
            "FUNCTION": "predict",
        }.items():
            monkeypatch.setenv(name, value)
        yield module


@pytest.fixture
def lake(app: ModuleType, clients: dict[str, Any]) -> Lake:
    return Lake(BUCKET, clients["s3"])


@pytest.fixture
def log(app: ModuleType) -> io.StringIO:
    """What the functions log."""
    stream = io.StringIO()
    app.logger.registered_handler.setStream(stream)
    return stream


def steps(app: ModuleType, step: str, **event: Any) -> dict[str, Any]:
    """What the function `steps` answers, as the workflow gets it."""
    answer: dict[str, Any] = json.loads(json.dumps(app.steps({"step": step, "run": RUN, **event}, CONTEXT)))
    return answer


def release(app: ModuleType, step: str, **event: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(json.dumps(app.release({"step": step, "run": RUN, **event}, CONTEXT)))
    return answer


def logged(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_run_goes_from_its_request_to_a_crowned_champion(
    app: ModuleType, lake: Lake, log: io.StringIO, tiny_model: Path, tiny_dataset: Path, tracking: str
) -> None:
    machine = app.os.environ["STATE_MACHINE_ARN"]
    states = boto3.client("stepfunctions")
    execution = states.start_execution(stateMachineArn=machine, name="one")["executionArn"]
    begun = steps(app, "begin", execution=execution, input={"id": "event-1", "detail": REQUEST})
    assert (begun["alone"], begun["request"]) == (True, REQUEST)

    lake.upload_folder(tiny_dataset, f"datasets/{tiny_dataset.name}/")
    lake.put("datasets/current", tiny_dataset.name.encode())
    now = app._now()
    kept = "a zanzibar film that nobody should read of in a log"
    id = new_id(now - 1_000, bytes(10))
    lake.write_labels([Label(id, iso(now - 500), "negative", "m", "positive", {"positive": 1.0}, "http", kept)])
    data = steps(app, "snapshot", request=REQUEST)
    assert data["dataset"] != tiny_dataset.name
    assert data["backend"] == "worker"
    assert data["job"]["TrainingJobName"] == RUN
    assert data["job"]["HyperParameters"] == {"encoder_name": "tiny", "epochs": "1", "minutes": "1152.0"}

    training = steps(app, "plan", request=REQUEST, job=data["job"])
    assert (training["jobs"], training["artifacts"]) == ([data["job"]], None)

    # A training job leaves its model.
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(tiny_model.iterdir()):
            archive.add(path, path.name)
    lake.put("runs/job/output/model.tar.gz", body.getvalue())
    uri = lake.uri("runs/job/output/model.tar.gz")
    results = [{"job": RUN, "artifacts": uri}]
    training = steps(app, "choose", request=REQUEST, job=data["job"], rung=0, results=results)
    assert (training["jobs"], training["artifacts"]) == ([], uri)
    candidate = steps(
        app, "evaluate", request=REQUEST, artifacts=uri, dataset=data["dataset"], feedback=data["feedback"]
    )
    model = artifact.identity(tiny_model)
    assert (candidate["model"], candidate["promote"]) == (model, True)
    assert candidate["evidence"]["dataset"] == data["dataset"]
    assert candidate["evidence"]["feedback"]["rows"] == 1
    assert candidate["evidence"]["rules"]["trigger"] == "drift"

    number = steps(app, "register", request=REQUEST, candidate=candidate)["uri"].removeprefix("models:/retrue-test/")
    assert number.isdecimal()
    artefacts = [key for key in lake.keys("mlflow/retrue-test/") if "/artifacts/" in key]
    assert [key.rpartition("/")[2] for key in artefacts] == sorted([artifact.CARD, *artifact.REPORT])
    assert lake.get(artefacts[1]) == (tiny_model / artifact.PAGE).read_bytes()
    version = release(app, "publish", model=model)["version"]
    classifier = Classifier.open(tiny_model)
    texts = [item["text"] for item in json.loads((tiny_model / artifact.GOLDEN).read_text())]
    probe = {"model": model, "scores": [classifier.score(text).scores for text in texts]}
    said = {"results": [json.dumps(probe)], "region": "eu-central-1"}
    requests.post("http://motoapi.amazonaws.com/moto-api/static/lambda-simple/response", json=said, timeout=10)
    assert release(app, "validate", model=model, version=version)["worst"] < 1e-6
    assert serving_model(PARAMETER) == "none"

    shared = release(app, "share", version=version)
    assert (shared["on"], shared["live"]) == (False, "1")  # nobody serves with whom it could be compared
    entry = release(app, "promote", request=REQUEST, candidate=candidate, version=version, live=shared["live"])
    assert (entry["action"], entry["model"], entry["version"], entry["run"]) == ("promoted", model, version, RUN)
    assert entry["previous_version"] == "1"
    assert serving_model(PARAMETER) == lake.uri(f"models/{model}/")
    assert boto3.client("lambda").get_alias(FunctionName="predict", Name="live")["FunctionVersion"] == version
    assert steps(app, "crown", model=model) == {"version": number}

    # Trained once more to the same model, it does not pass the champion that it is.
    again = steps(app, "evaluate", request=REQUEST, artifacts=uri, dataset=data["dataset"], feedback=data["feedback"])
    assert (again["model"], again["promote"]) == (model, False)
    refused = release(app, "reject", request=REQUEST, candidate=again)
    assert (refused["action"], refused["previous_version"]) == ("rejected", version)
    assert [line.action for line in lake.ledger()] == ["promoted", "rejected"]
    assert [line.evidence["feedback"]["rows"] for line in lake.ledger() if line.evidence] == [1, 1]

    told = logged(log)
    order = [
        "begin",
        "snapshot",
        "plan",
        "choose",
        "evaluate",
        "register",
        "publish",
        "validate",
        "share",
        "promote",
        "crown",
        "evaluate",
        "reject",
    ]
    assert [line["step"] for line in told] == order
    assert told[1]["dataset"] == data["dataset"]
    assert told[4]["promote"] is True
    assert told[9]["reason"] == f"the texts drifted: {candidate['reason']}"
    assert "zanzibar" not in log.getvalue()
    assert all(text not in log.getvalue() for text in texts)


def test_a_search_is_planned_from_the_settings_that_trainings_have(
    app: ModuleType, lake: Lake, log: io.StringIO
) -> None:
    search = {"kind": "grid", "space": {"learning_rate": [1e-4, 1e-3], "cut": ["head", "ends"]}, "trials": 4}
    job = {
        "HyperParameters": {},
        "CheckpointConfig": {"S3Uri": "", "LocalPath": "/opt/ml/checkpoints"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 14_400},
    }
    training = steps(app, "plan", request={"search": search}, job=job)
    assert {one["HyperParameters"]["cut"] for one in training["jobs"]} == {"head", "ends"}
    (told,) = logged(log)
    assert told["search"].startswith("4 trials (4 to 33%, 2 to 100%)")
    search["space"] = {"rate": [1]}
    with pytest.raises(BadInput, match="rate cannot be searched: there are learning_rate, epochs,"):
        steps(app, "plan", request={"search": search}, job=job)


def test_a_second_run_is_not_alone(app: ModuleType, lake: Lake) -> None:
    states, machine = boto3.client("stepfunctions"), app.os.environ["STATE_MACHINE_ARN"]
    first = states.start_execution(stateMachineArn=machine, name="one")["executionArn"]
    assert steps(app, "begin", execution=first, input={"detail": {}})["alone"]
    assert not steps(app, "begin", execution=first + "-other", input={"detail": {}})["alone"]
    states.stop_execution(executionArn=first)
    assert steps(app, "begin", execution=first + "-other", input={"detail": {}})["alone"]


def test_a_run_that_failed_is_written_down(app: ModuleType, lake: Lake, log: io.StringIO) -> None:
    error = {"Error": "NotFound", "Cause": json.dumps({"errorMessage": "there is nothing under s3://x/"})}
    told = release(app, "fail", execution="arn:one", state={"error": error})
    assert told == {"action": "failed", "reason": "NotFound: there is nothing under s3://x/"}
    (kept,) = lake.ledger()
    assert (kept.action, kept.model, kept.previous_version) == ("failed", None, "1")
    assert logged(log)[0]["reason"] == told["reason"]


def test_without_a_server_candidates_are_not_registered(
    app: ModuleType, lake: Lake, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    model = artifact.identity(tiny_model)
    lake.upload(tiny_model / artifact.CARD, f"models/{model}/{artifact.CARD}")
    candidate = {"model": model, "promote": True, "reason": "better"}
    assert steps(app, "register", candidate=candidate) == {"uri": ""}
    assert steps(app, "crown", model=model) == {"version": None}


@pytest.mark.parametrize(
    ("handler", "step"), [("steps", "unknown"), ("steps", "promote"), ("release", ""), ("release", "evaluate")]
)
def test_a_step_that_is_not_of_this_function_is_an_error(app: ModuleType, handler: str, step: str) -> None:
    with pytest.raises(ValueError, match=f"no step is named '{step}'"):
        getattr(app, handler)({"step": step}, CONTEXT)
