"""The trainings of one run: which jobs a search begins with, which follow, and what the registry is told of them."""

import io
import json
import tarfile
from typing import Any

import pytest

from retrue import trials
from retrue.errors import BadInput, NotFound, TrainingFailed, WrongSetting
from retrue.lake import Lake
from retrue.settings import Steps

RUN = "retrue-0123456789abcdef"
KNOWN: dict[str, type] = {"learning_rate": float, "epochs": int}
JOB: dict[str, Any] = {
    "TrainingJobName": RUN,
    "HyperParameters": {"encoder_name": "tiny", "epochs": "3"},
    "InputDataConfig": [],
    "OutputDataConfig": {"S3OutputPath": "s3://retrue-test/runs/"},
    "StoppingCondition": {"MaxRuntimeInSeconds": 14_400, "MaxWaitTimeInSeconds": 18_000},
    "CheckpointConfig": {"S3Uri": f"s3://retrue-test/runs/{RUN}/checkpoints/", "LocalPath": "/opt/ml/checkpoints"},
}
SEARCH = {"kind": "random", "space": {"learning_rate": {"loguniform": [1e-5, 1e-3]}}, "trials": 9, "seed": 7}
PLAIN = {"reason": "drift"}


def settings(**more: Any) -> Steps:
    return Steps("retrue-test", "test", "/retrue/test/model", "arn:machine", train_seconds=14_400, **more)


def plan(lake: Lake, request: dict[str, Any], **more: Any) -> dict[str, Any]:
    return trials.plan(lake, settings(**more), RUN, request, JOB, KNOWN)


def asked(**more: Any) -> dict[str, Any]:
    return {**PLAIN, "search": {**SEARCH, **more}}


def leave(lake: Lake, job: str, metric: float, paused: bool, other: dict[str, bytes] | None = None) -> dict[str, str]:
    """What a training job leaves: trial.json, or a model folder with its card; the result of the Map for it."""
    told: dict[str, Any] = {"metric": metric, "history": [{"step": 4, "accuracy": metric}], "losses": [[4, 0.5]]}
    files = {"model.onnx": b"graph", **(other or {})}
    if paused:
        files = {"trial.json": json.dumps({**told, "seconds": 2.0, "paused": True}).encode()}
    elif other is None:
        files["card.json"] = json.dumps({"run": {**told, "train_seconds": 5.0}}).encode()
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    key = f"runs/{job}/output/model.tar.gz"
    lake.put(key, body.getvalue())
    return {"job": job, "artifacts": lake.uri(key)}


def choose(lake: Lake, jobs: list[dict[str, Any]], rung: int, scores: dict[str, float], paused: bool) -> dict[str, Any]:
    """The answer to jobs that scored so; one without a score failed."""
    results: list[dict[str, Any]] = []
    for job in jobs:
        name = job["TrainingJobName"]
        trial = name.rsplit("-", 1)[1]
        if trial in scores:
            results.append(leave(lake, name, scores[trial], paused))
        else:
            results.append({"job": name, "error": {"Error": "TrainingFailed", "Cause": "the loss is nan"}})
    return trials.choose(lake, settings(), RUN, asked(), JOB, rung, results)


def names(answer: dict[str, Any]) -> list[str]:
    return [job["TrainingJobName"].removeprefix(RUN) for job in answer["jobs"]]


def test_without_a_search_the_job_of_the_snapshot_is_the_only_one(lake: Lake) -> None:
    answer = plan(lake, PLAIN)
    assert answer == {"jobs": [JOB], "at_once": 4, "rung": 0, "artifacts": None, "search": ""}
    assert list(lake.keys("runs/")) == []
    result = {"job": RUN, "artifacts": "s3://retrue-test/runs/x/output/model.tar.gz"}
    after = trials.choose(lake, settings(), RUN, PLAIN, JOB, 0, [result])
    assert (after["jobs"], after["artifacts"]) == ([], result["artifacts"])
    assert trials.curves(lake, RUN) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"Error": "TrainingFailed", "Cause": "the loss is nan: lower it"}, "the loss is nan: lower it"),
        ({"Error": "States.Timeout", "Cause": ""}, "States.Timeout: no reason given"),
        ({"Error": "States.TaskFailed", "Cause": '{"FailureReason": "no room"}'}, "States.TaskFailed: no room"),
        ({"Error": "States.TaskFailed", "Cause": '{"StatusReason": "no host"}'}, "States.TaskFailed: no host"),
        ({"Error": "Odd", "Cause": '["a list"]'}, 'Odd: ["a list"]'),
    ],
)
def test_a_single_training_that_fails_ends_the_run_with_its_own_reason(
    lake: Lake, error: dict[str, str], reason: str
) -> None:
    with pytest.raises(TrainingFailed) as raised:
        trials.choose(lake, settings(), RUN, PLAIN, JOB, 0, [{"job": RUN, "error": error}])
    assert str(raised.value) == reason


def test_a_search_begins_with_a_job_for_each_trial_that_differs_in_its_own_things_only(lake: Lake) -> None:
    answer = plan(lake, asked())
    assert names(answer) == [f"-0-{number:02d}" for number in range(9)]
    own = ("TrainingJobName", "HyperParameters", "StoppingCondition", "CheckpointConfig")
    for number, job in enumerate(answer["jobs"]):
        assert {key: job[key] for key in job if key not in own} == {key: JOB[key] for key in JOB if key not in own}
        assert job["CheckpointConfig"] == {
            "S3Uri": f"s3://retrue-test/runs/{RUN}/trials/{number:02d}/checkpoints/",
            "LocalPath": "/opt/ml/checkpoints",
        }
        chosen = job["HyperParameters"]
        assert (chosen["encoder_name"], chosen["epochs"], chosen["until"]) == ("tiny", "3", "0.111111")
        assert float(chosen["minutes"]) * 60 < job["StoppingCondition"]["MaxRuntimeInSeconds"]
        waits = job["StoppingCondition"]["MaxWaitTimeInSeconds"] - job["StoppingCondition"]["MaxRuntimeInSeconds"]
        assert waits == 3_600
        assert len(job["TrainingJobName"]) <= 63
        assert all(isinstance(value, str) for value in chosen.values())
    assert len({job["HyperParameters"]["learning_rate"] for job in answer["jobs"]}) == 9
    assert answer["search"].startswith("9 trials (9 to 11%, 3 to 33%, 2 to 100%), the work of 3.0 full trainings")


def test_the_same_request_plans_the_same_trials_and_the_longest_search_keeps_within_the_state(lake: Lake) -> None:
    assert plan(lake, asked()) == plan(lake, asked())
    answer = plan(lake, asked(trials=24), search_trials=24)
    failures = [{"job": "x" * 63, "error": {"Error": "TrainingFailed", "Cause": "x" * 4_000}}] * 24
    assert len(json.dumps(answer)) + len(json.dumps(failures)) < 200_000  # of 256 kB


def test_time_and_money_bound_a_search_and_number_and_price_are_told(lake: Lake) -> None:
    told = plan(lake, asked(), search_hours=12, price_per_hour=2.0)["search"]
    assert told.endswith("at most 12.00 machine hours for 24.00 at 2 an hour")
    jobs = plan(lake, asked(), search_hours=12, price_per_hour=2.0, search_cost=10.0)["jobs"]
    kept = trials.read(lake, RUN)
    assert kept is not None
    assert 9.8 < kept.plan.cost <= 10
    assert {job["StoppingCondition"]["MaxRuntimeInSeconds"] for job in jobs} == {kept.plan.seconds[0]}
    assert max(trials.read(lake, RUN).plan.seconds) <= 14_400  # type: ignore[union-attr]


def test_a_cost_without_a_price_is_refused_since_it_would_bound_nothing(lake: Lake) -> None:
    with pytest.raises(WrongSetting, match="SEARCH_COST bounds nothing without a price: set PRICE_PER_HOUR"):
        plan(lake, asked(), search_cost=10.0)
    assert plan(lake, PLAIN, search_cost=10.0)["jobs"] == [JOB]


@pytest.mark.parametrize(
    ("search", "more", "reason"),
    [
        ({"trials": 17}, {}, "17 trials are asked for, and this deployment allows 16"),
        ({"space": {"rate": [1], "epochs": ["few"]}}, {}, "rate cannot be searched.*; epochs holds"),
        ({"kind": "grid"}, {}, "a grid has no ranges"),
        ({}, {"search_hours": 1}, "search longer, or try fewer"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused_before_anything_runs(
    lake: Lake, search: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadInput, match=reason):
        plan(lake, asked(**search), **more)
    assert list(lake.keys("runs/")) == []


def test_the_better_trials_go_on_from_their_checkpoints_and_the_best_becomes_the_candidate(lake: Lake) -> None:
    first = plan(lake, asked())
    scores = {"00": 0.5, "02": 0.9, "03": 0.7, "05": 0.8, "06": 0.1, "08": 0.2}
    second = choose(lake, first["jobs"], 0, scores, paused=True)
    assert (names(second), second["rung"], second["artifacts"]) == (["-1-02", "-1-03", "-1-05"], 1, None)
    before = {job["TrainingJobName"][-2:]: job for job in first["jobs"]}
    for job in second["jobs"]:
        former = before[job["TrainingJobName"][-2:]]
        assert job["CheckpointConfig"] == former["CheckpointConfig"]
        assert job["HyperParameters"]["learning_rate"] == former["HyperParameters"]["learning_rate"]
        assert job["HyperParameters"]["until"] == "0.333333"
    third = choose(lake, second["jobs"], 1, {"02": 0.9, "03": 0.95, "05": 0.8}, paused=True)
    assert names(third) == ["-2-02", "-2-03"]
    assert third["jobs"][0]["HyperParameters"]["until"] == "1.000000"
    last = choose(lake, third["jobs"], 2, {"02": 0.93, "03": 0.96}, paused=False)
    assert (last["jobs"], last["artifacts"]) == ([], f"s3://retrue-test/runs/{RUN}-2-03/output/model.tar.gz")

    told = {trial["name"]: trial for trial in trials.curves(lake, RUN)}
    assert {name: trial["state"] for name, trial in told.items()} == {
        "00": "stopped early", "01": "failed", "02": "finished", "03": "finished", "04": "failed",
        "05": "stopped early", "06": "stopped early", "07": "failed", "08": "stopped early",
    }  # fmt: skip
    assert (told["03"]["metric"], told["01"]["metric"]) == (0.96, None)
    assert told["03"]["history"] == [{"step": 4, "accuracy": 0.96}]
    assert set(told["03"]) == {"name", "settings", "metric", "state", "history", "losses"}


def test_a_step_that_is_tried_again_comes_to_the_same_end(lake: Lake) -> None:
    first = plan(lake, asked())
    scores = {f"{number:02d}": number / 10 for number in range(8)}
    answer = choose(lake, first["jobs"], 0, scores, paused=True)
    kept = lake.get(f"runs/{RUN}/search.json")
    assert choose(lake, first["jobs"], 0, scores, paused=True) == answer
    assert lake.get(f"runs/{RUN}/search.json") == kept


def test_a_job_that_left_nothing_that_can_be_read_counts_as_failed(lake: Lake) -> None:
    jobs = plan(lake, {**PLAIN, "search": {"kind": "grid", "space": {"epochs": [1, 2, 3, 4]}}})["jobs"]
    results = [leave(lake, job["TrainingJobName"], 0.5, paused=True) for job in jobs]
    lake.put(f"runs/{RUN}-0-00/output/model.tar.gz", b"no archive")
    leave(lake, f"{RUN}-0-01", 0.5, paused=False, other={"notes.txt": b"nothing"})
    results[2]["artifacts"] = lake.uri("runs/nowhere/model.tar.gz")
    answer = trials.choose(lake, settings(), RUN, asked(), JOB, 0, results)
    assert names(answer) == ["-1-03"]
    kept = trials.read(lake, RUN)
    assert kept is not None
    errors = [trial.error for trial in kept.trials]
    assert errors[0].startswith("its archive cannot be read")
    assert errors[1] == "its archive holds neither trial.json nor card.json"
    assert "there is no s3://retrue-test/runs/nowhere" in errors[2]


def test_where_every_trial_fails_the_run_ends_with_the_reasons(lake: Lake) -> None:
    jobs = plan(lake, asked())["jobs"]
    with pytest.raises(TrainingFailed, match="trial 00: the loss is nan; trial 01: the loss is nan"):
        choose(lake, jobs, 0, {}, paused=True)


def test_a_search_whose_plan_is_gone_is_not_taken_for_a_plain_training(lake: Lake) -> None:
    with pytest.raises(NotFound, match=r"search\.json"):
        trials.choose(lake, settings(), RUN, asked(), JOB, 0, [{"job": RUN, "artifacts": "s3://retrue-test/x"}])
