"""The registry, on a real MLflow over a file."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from retrue import registry
from retrue.artifact import Card

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
    run={"seconds": 3.5},
)
BETTER = {"promote": True, "reason": "the candidate is better on all rows"}
NOT_BETTER = {"promote": False, "reason": "the candidate is not shown better"}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for every test that wants one, since MLflow takes long to make its tables."""
    return f"sqlite:///{tmp_path_factory.getbasetemp() / 'mlflow.db'}"


@pytest.fixture
def client(tracking: str) -> Any:
    from mlflow import MlflowClient

    registry.crown(tracking, "nowhere", "nothing")  # makes the tables, without the library's own warnings
    return MlflowClient(tracking_uri=tracking, registry_uri=tracking)


def register(tracking: str, environment: str, model: str, verdict: dict[str, Any], card: Card = CARD) -> str:
    return registry.register(tracking, environment, model, f"s3://lake/models/{model}/", card, verdict)


def version(client: Any, environment: str, number: str) -> Any:
    return client.get_model_version(f"retrue-{environment}", number)


def test_a_candidate_becomes_a_version_that_points_to_its_folder(tracking: str, client: Any) -> None:
    assert register(tracking, "one", "aaa", BETTER) == "models:/retrue-one/1"
    found = version(client, "one", "1")
    assert found.source == "s3://lake/models/aaa/"
    assert found.tags == {"model": "aaa", "promoted": "true", "reason": BETTER["reason"]}
    run = client.get_run(found.run_id)
    assert (run.info.run_name, run.info.status) == ("aaa", "FINISHED")
    assert (run.data.tags["model"], run.data.tags["dataset"]) == ("aaa", "0123456789ab")
    assert run.data.params == {"epochs": "4", "learning_rate": "0.003", "encoder_name": "tiny"}
    assert run.data.metrics == {
        "test.n": 40.0,
        "test.accuracy": 0.75,
        "test.f1.negative": 0.7,
        "test.f1.positive": 0.8,
        "calibration_error": 0.031,
    }


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
    card = dataclasses.replace(CARD, metrics={"f1": {labels[0]: 0.25, labels[1]: 0.5}})
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
