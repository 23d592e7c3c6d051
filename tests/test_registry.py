"""The registry, on a real MLflow over a database."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import requests
from moto import mock_aws

from retrue import registry
from retrue.artifact import Card
from retrue.errors import WrongSetting
from retrue.lake import Lake

CARD = Card(
    labels=["negative", "positive"],
    created="2026-01-01T00:00:00.000Z",
    encoder="tiny",
    precision="int8",
    max_tokens=64,
    temperature=1.25,
    dataset="0123456789ab",
    metrics={
        "test": {"n": 40, "accuracy": 0.75, "f1": {"negative": 0.7, "positive": 0.8}, "labels": ["negative"]},
        "calibration_error": 0.031,
        "int8": {"shipped": True},
    },
    settings={"epochs": 4, "learning_rate": 0.003, "encoder_name": "tiny"},
    run={
        "seconds": 3.5,
        "code": "0.1.0+abc",
        "encoder_sha256": "ef" * 32,
        "losses": [[1, 0.7], [2, 0.6], [3, 0.5]],
        "history": [
            {"step": 2, "epoch": 1, "loss": 0.65, "accuracy": 0.7, "f1_macro": 0.69},
            {"step": 3, "epoch": 2, "loss": 0.5, "accuracy": 0.75, "f1_macro": 0.74},
        ],
    },
)
TRIAL = {
    "name": "trial-1",
    "settings": {"learning_rate": 0.001},
    "metric": 0.71,
    "state": "finished",
    "history": [{"step": 4, "epoch": 1, "loss": 0.6, "accuracy": 0.71, "f1_macro": 0.7}],
    "losses": [[2, 0.9], [4, 0.6]],
}
BETTER = {"promote": True, "reason": "the candidate is better on all rows"}
NOT_BETTER = {"promote": False, "reason": "the candidate is not shown better"}


@pytest.fixture
def client(tracking: str) -> Any:
    from mlflow import MlflowClient

    registry.crown(tracking, "nowhere", "nothing")  # makes the tables, without the library's own warnings
    return MlflowClient(tracking_uri=tracking, registry_uri=tracking)


def register(
    tracking: str, environment: str, model: str, verdict: dict[str, Any], card: Card = CARD, **more: Any
) -> str:
    return registry.register(tracking, environment, model, f"s3://lake/models/{model}/", card, verdict, **more)


def version(client: Any, environment: str, number: str) -> Any:
    return client.get_model_version(f"retrue-{environment}", number)


def test_a_candidate_becomes_a_version_that_points_to_its_folder(tracking: str, client: Any) -> None:
    assert register(tracking, "one", "aaa", BETTER) == "models:/retrue-one/1"
    found = version(client, "one", "1")
    assert found.source == "s3://lake/models/aaa/"
    assert found.tags == {"model": "aaa", "promoted": "true", "reason": BETTER["reason"]}
    run = client.get_run(found.run_id)
    assert (run.info.run_name, run.info.status) == ("aaa", "FINISHED")
    tags = {"model": "aaa", "dataset": "0123456789ab", "encoder_sha256": "ef" * 32, "code": "0.1.0+abc"}
    assert tags.items() <= run.data.tags.items()
    assert found.tags.items() <= run.data.tags.items()
    assert run.data.params == {"epochs": "4", "learning_rate": "0.003", "encoder_name": "tiny"}
    final = {name: value for name, value in run.data.metrics.items() if not name.startswith(("train.", "evaluation."))}
    assert final == {
        "test.n": 40.0,
        "test.accuracy": 0.75,
        "test.f1.negative": 0.7,
        "test.f1.positive": 0.8,
        "calibration_error": 0.031,
    }


def points(client: Any, run: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run, name)]


def test_a_run_has_the_curves_of_its_training(tracking: str, client: Any) -> None:
    long = [[step, 1 / step] for step in range(1, 1301)]  # more than a server takes in one call
    register(tracking, "curves", "aaa", BETTER, dataclasses.replace(CARD, run={**CARD.run, "losses": long}))
    run = version(client, "curves", "1").run_id
    assert points(client, run, "train.loss") == [(step, loss) for step, loss in long]
    assert points(client, run, "evaluation.accuracy") == [(2, 0.7), (3, 0.75)]
    assert points(client, run, "evaluation.f1_macro") == [(2, 0.69), (3, 0.74)]


def test_the_trials_of_a_search_are_runs_below_the_candidates(tracking: str, client: Any) -> None:
    stopped = {**TRIAL, "name": "trial-2", "state": "stopped early", "metric": 0.5}
    failed = {**TRIAL, "name": "trial-3", "state": "failed", "metric": None, "history": [], "losses": []}
    register(tracking, "search", "aaa", BETTER, trials=[TRIAL, stopped, failed])
    parent = version(client, "search", "1").run_id
    experiment = client.get_experiment_by_name("retrue-search").experiment_id
    runs = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'", order_by=["run_name"])
    assert [(run.info.run_name, run.info.status, run.data.tags["state"]) for run in runs] == [
        ("trial-1", "FINISHED", "finished"),
        ("trial-2", "KILLED", "stopped early"),
        ("trial-3", "FAILED", "failed"),
    ]
    assert runs[0].data.params == {"learning_rate": "0.001"}
    assert (runs[0].data.metrics["metric"], runs[1].data.metrics["metric"]) == (0.71, 0.5)
    assert runs[2].data.metrics == {}
    assert points(client, runs[0].info.run_id, "train.loss") == [(2, 0.9), (4, 0.6)]
    assert points(client, runs[0].info.run_id, "evaluation.accuracy") == [(4, 0.71)]


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """Files for people, as they come from a model folder."""
    folder = tmp_path / "shown"
    folder.mkdir()
    for name, text in (("card.md", "# Model card"), ("card.json", "{}"), ("curves.svg", "<svg/>")):
        (folder / name).write_text(text)
    return folder


def test_artefacts_lie_in_the_lake_where_runs_are_in_a_database(tracking: str, client: Any, shown: Path) -> None:
    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="pond", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        lake = Lake("pond", s3)
        register(tracking, "pond", "aaa", BETTER, artifacts=sorted(shown.iterdir()), location=lake.uri("mlflow/"))
        run = client.get_run(version(client, "pond", "1").run_id)
        root = f"mlflow/retrue-pond/{run.info.run_id}/artifacts/"
        assert run.info.artifact_uri == lake.uri(root.rstrip("/"))
        assert list(lake.keys("")) == [f"{root}{name}" for name in ("card.json", "card.md", "curves.svg")]
        assert lake.get(f"{root}card.md") == b"# Model card"
        head = s3.head_object(Bucket="pond", Key=f"{root}curves.svg")
        assert head["ContentType"] == "image/svg+xml"  # so that a browser shows it


def test_artefacts_lie_in_a_folder_where_one_is_given(tracking: str, client: Any, shown: Path, tmp_path: Path) -> None:
    register(tracking, "folder", "aaa", BETTER, artifacts=sorted(shown.iterdir()), location=str(tmp_path / "kept"))
    run = version(client, "folder", "1").run_id
    kept = tmp_path / "kept" / "retrue-folder" / run / "artifacts"
    assert sorted(path.name for path in kept.iterdir()) == ["card.json", "card.md", "curves.svg"]


def test_the_challenger_is_the_newest_candidate_that_does_not_serve(tracking: str, client: Any) -> None:
    def aliases() -> dict[str, int]:
        return {k: int(v) for k, v in client.get_registered_model("retrue-aliases").aliases.items()}

    register(tracking, "aliases", "aaa", BETTER)
    assert aliases() == {"challenger": 1}
    registry.crown(tracking, "aliases", "aaa")
    assert aliases() == {"champion": 1}
    register(tracking, "aliases", "bbb", NOT_BETTER)
    assert aliases() == {"champion": 1, "challenger": 2}
    registry.crown(tracking, "aliases", "aaa")  # a roll-back leaves the challenger alone
    assert aliases() == {"champion": 1, "challenger": 2}


@pytest.mark.parametrize("uri", ["./mlruns", "/srv/mlruns", "file:///srv/mlruns", "mlruns"])
def test_a_folder_of_runs_is_refused_with_what_to_do(uri: str) -> None:
    with pytest.raises(WrongSetting, match=r"names a folder.*sqlite:////.*https://.*ARN.*migrate-filestore"):
        register(uri, "one", "aaa", BETTER)
    with pytest.raises(WrongSetting, match="names a folder"):
        registry.crown(uri, "one", "aaa")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[requests.PreparedRequest]:
    """What is asked of any server: it knows no experiment, takes no new one, and to all else has nothing to say."""
    found: list[requests.PreparedRequest] = []
    refused = {"get-by-name": (404, "RESOURCE_DOES_NOT_EXIST"), "create": (400, "INVALID_PARAMETER_VALUE")}

    def send(session: Any, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        found.append(request)
        answer = requests.Response()
        status, code = refused.get(urlsplit(str(request.url)).path.rpartition("/")[2], (200, ""))
        answer.status_code, answer.request = status, request
        answer._content = json.dumps({"error_code": code, "message": "no"} if code else {}).encode()
        return answer

    monkeypatch.setattr(requests.Session, "send", send)
    return found


def test_a_server_is_reached_by_its_address_and_keeps_artefacts_where_it_keeps_them(
    sent: list[requests.PreparedRequest], capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    assert registry.crown("https://mlflow.example.com", "one", "aaa") is None
    assert str(sent[0].url).startswith("https://mlflow.example.com/api/2.0/mlflow/model-versions/search")
    with pytest.raises(MlflowException, match="INVALID_PARAMETER_VALUE"):
        register("https://mlflow.example.com", "far", "aaa", BETTER, location="s3://lake/mlflow/")
    assert str(sent[-1].url).endswith("/experiments/create")
    assert json.loads(sent[-1].body or "") == {"name": "retrue-far"}
    assert "WARNING" not in capfd.readouterr().err


def test_a_server_that_sagemaker_manages_is_reached_by_its_arn_alone(
    sent: list[requests.PreparedRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    arn = "arn:aws:sagemaker:eu-central-1:123456789012:mlflow-tracking-server/retrue"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # what it was comes back at the end
    try:
        assert registry.crown(arn, "one", "aaa") is None
    finally:
        mlflow.set_tracking_uri(None)
    (request,) = sent
    where = "https://eu-central-1.experiments.sagemaker.aws/api/2.0/mlflow/model-versions/search"
    assert str(request.url).startswith(where)
    assert request.headers["x-mlflow-sm-tracking-server-arn"] == arn
    assert "/eu-central-1/sagemaker-mlflow/aws4_request" in request.headers["Authorization"]


def test_a_rejected_candidate_is_registered_with_the_reason(tracking: str, client: Any) -> None:
    register(tracking, "two", "aaa", BETTER)
    assert register(tracking, "two", "bbb", NOT_BETTER) == "models:/retrue-two/2"
    tags = version(client, "two", "2").tags
    assert (tags["promoted"], tags["reason"]) == ("false", "the candidate is not shown better")
    experiment = client.get_experiment_by_name("retrue-two")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_the_crown_is_on_the_newest_version_of_a_model(tracking: str, client: Any) -> None:
    for model in ("aaa", "bbb", "aaa", "ccc"):
        register(tracking, "three", model, BETTER)
    assert registry.crown(tracking, "three", "aaa") == "3"
    assert client.get_model_version_by_alias("retrue-three", "champion").version == 3
    assert registry.crown(tracking, "three", "ccc") == "4"
    assert client.get_model_version_by_alias("retrue-three", "champion").version == 4


def test_ten_versions_are_ordered_by_number_and_not_by_letter(tracking: str) -> None:
    bare = dataclasses.replace(CARD, metrics={}, settings={})
    for _ in range(10):
        register(tracking, "ten", "aaa", BETTER, bare)
    assert registry.crown(tracking, "ten", "aaa") == "10"


def test_a_model_that_was_never_registered_gets_no_crown(tracking: str, client: Any) -> None:
    register(tracking, "four", "aaa", BETTER)
    registry.crown(tracking, "four", "aaa")
    assert registry.crown(tracking, "four", "zzz") is None
    assert registry.crown(tracking, "five", "aaa") is None
    assert client.get_model_version_by_alias("retrue-four", "champion").version == 1


@pytest.mark.parametrize("labels", [("c++", "c--"), ("😀", "😡"), ("it's", "a/b"), ("/", "//"), ("très bon", "a:b")])
def test_labels_may_hold_what_mlflow_refuses_in_a_name(tracking: str, client: Any, labels: tuple[str, str]) -> None:
    card = dataclasses.replace(CARD, metrics={"f1": {labels[0]: 0.25, labels[1]: 0.5}}, run={})
    register(tracking, "odd", "aaa", BETTER, card)
    newest = max(client.search_model_versions("name = 'retrue-odd'"), key=lambda found: int(found.version))
    assert sorted(client.get_run(newest.run_id).data.metrics.values()) == [0.25, 0.5]


def test_without_a_server_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert register("", "one", "aaa", BETTER) == ""
    assert registry.crown("", "one", "aaa") is None
    assert list(tmp_path.iterdir()) == []


def test_only_the_numbers_of_nested_values_are_metrics() -> None:
    values = {"a": 1, "b": {"c": 0.5, "d": {"e": -2}, "f": "text", "g": True, "h": [1, 2], "i": None}}
    assert registry.flat(values) == {"a": 1.0, "b.c": 0.5, "b.d.e": -2.0}
