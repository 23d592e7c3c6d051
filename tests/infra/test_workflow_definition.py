"""The workflow's definition, held to the functions that it calls, the template around it and the services it asks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from retrue import dataset, lake, snapshot, worker, workflow
from retrue.dataset import Example
from retrue.lake import Lake
from retrue.local import localize
from retrue.settings import Steps

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = (PROJECT / "infra/retrain.asl.yaml").read_text()
WORKFLOW: dict[str, Any] = yaml.safe_load(SOURCE)
STATES: dict[str, Any] = WORKFLOW["States"]
TEMPLATE: dict[str, Any] = localize.read(PROJECT / "template.yaml")
INNER: dict[str, Any] = STATES["Train"]["ItemProcessor"]["States"]
TASKS = {name: state for name, state in {**STATES, **INNER}.items() if state["Type"] == "Task"}
# Each leads on, since nothing may keep a failure from being told.
AFTER_A_FAILURE = {"RecordFailure": "Unrecorded", "Notify": "HasMoved", "TellWithdrawal": "Withdrawn"}
HANDLERS = {"${StepsFunction}": "steps", "${ReleaseFunction}": "release"}
CALLS = {name: task for name, task in TASKS.items() if task["Resource"] == "arn:aws:states:::lambda:invoke"}
TRAINING = {name: task for name, task in TASKS.items() if name.startswith("TrainOn")}


def next_states(state: dict[str, Any]) -> Iterator[str]:
    for item in [state, *state.get("Choices", ()), *state.get("Catch", ())]:
        if "Next" in item:
            yield item["Next"]
    if "Default" in state:
        yield state["Default"]


def cases() -> dict[tuple[str, str], set[str]]:
    """The keys of the event that each step reads, by handler and step, from the match statements of the app."""
    found: dict[tuple[str, str], set[str]] = {}
    for function in ast.parse((PROJECT / "functions/train/app.py").read_text()).body:
        for match in (node for node in ast.walk(function) if isinstance(node, ast.Match)):
            for case in match.cases:
                if isinstance(function, ast.FunctionDef) and isinstance(case.pattern, ast.MatchValue):
                    step = ast.literal_eval(case.pattern.value)
                    found[function.name, step] = {
                        ast.literal_eval(node.slice)
                        for line in case.body
                        for node in ast.walk(line)
                        if isinstance(node, ast.Subscript)
                        and isinstance(node.value, ast.Name)
                        and node.value.id == "event"
                    }
    return found


def given(task: dict[str, Any]) -> tuple[tuple[str, str], set[str]]:
    """Handler and step of a call, and the keys of its payload."""
    payload = task["Parameters"]["Payload"]
    called = HANDLERS[task["Parameters"]["FunctionName"]], payload["step"]
    return called, {key.removesuffix(".$") for key in payload}


@pytest.fixture(scope="module")
def snapped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real snapshot answers."""
    root = tmp_path_factory.mktemp("datasets")
    texts = {label: [f"{label} film number {n}, watched to its end" for n in range(40)] for label in ("bad", "good")}
    rows = [Example(text, label) for label, group in texts.items() for text in group]
    folder = dataset.write(root, {"train": rows}, name="small", source="made for a test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="lake")
        store = Lake("lake", client)
        store.upload_folder(folder, f"{lake.DATASETS}{folder.name}/")
        store.put(lake.CURRENT_DATASET, folder.name.encode())
        settings = Steps("lake", "dev", "/retrue/dev/model", "arn:machine")
        run = workflow.run_of("arn:execution")
        return snapshot.snapshot(store, settings, run, {"settings": {"epochs": 2}}, 0)


@pytest.fixture(scope="module")
def job(snapped: dict[str, Any]) -> dict[str, Any]:
    """The training job that a real snapshot makes."""
    found: dict[str, Any] = snapped["job"]
    return found


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_a_time_limit_and_its_errors_are_recorded(name: str) -> None:
    task = TASKS[name]
    assert task["TimeoutSeconds"] > 0
    *moved, catch = task["Catch"]
    again = {"ErrorEquals": ["AliasMoved"], "ResultPath": "$.error", "Next": "Publish"}
    assert moved == ([again] if name in ("Look", "Promote") else [])
    assert catch["ErrorEquals"] == ["States.ALL"]
    if name in AFTER_A_FAILURE:
        assert catch["Next"] == AFTER_A_FAILURE[name]
        assert catch["ResultPath"] != "$.error"
    else:
        after = "NotTrained" if name in TRAINING else "RecordFailure"
        assert (catch["ResultPath"], catch["Next"]) == ("$.error", after)


def test_one_training_that_fails_does_not_end_the_others() -> None:
    result = INNER["NotTrained"]["Parameters"]
    assert set(result) == {"job.$", "error.$"}
    assert result["error.$"] == "$.error"
    (catch,) = STATES["Train"]["Catch"]  # of what Choose cannot look at, such as too large a state
    assert catch["Next"] == "RecordFailure"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_tried_again_later_and_later_and_by_lot_and_only_for_what_its_service_could_not_do(name: str) -> None:
    (retry,) = TASKS[name]["Retry"]
    assert not {"States.ALL", "States.TaskFailed", "States.Timeout", "Lambda.Unknown"} & set(retry["ErrorEquals"])
    assert retry["MaxAttempts"] > 1
    assert retry["BackoffRate"] > 1
    assert retry["JitterStrategy"] == "FULL"
    if name in CALLS:
        assert {"Lambda.TooManyRequestsException", "Lambda.ServiceException"} <= set(retry["ErrorEquals"])


@pytest.mark.parametrize("machine", [WORKFLOW, STATES["Train"]["ItemProcessor"]], ids=["whole", "training"])
def test_every_next_state_exists_and_every_state_is_reached(machine: dict[str, Any]) -> None:
    reached: set[str] = set()
    waiting = [machine["StartAt"]]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += next_states(machine["States"][name])
    assert reached == set(machine["States"])


@pytest.mark.parametrize("name", STATES)
def test_a_state_goes_on_or_ends(name: str) -> None:
    state = STATES[name]
    ends = state["Type"] in {"Succeed", "Fail"} or state.get("End") is True
    assert ends != bool(list(next_states(state)))


def test_the_steps_that_are_called_are_those_that_are_handled() -> None:
    called = [given(task)[0] for task in CALLS.values()]
    assert len(called) == len(set(called))
    assert set(called) == set(cases())


@pytest.mark.parametrize("name", CALLS)
def test_a_step_gets_every_key_that_it_reads(name: str) -> None:
    called, payload = given(CALLS[name])
    assert cases()[called] <= payload


def test_all_that_a_snapshot_answers_goes_on_and_no_step_asks_for_more(snapped: dict[str, Any]) -> None:
    passed = STATES["Snapshot"]["ResultSelector"]
    assert passed == {f"{key}.$": f"$.Payload.{key}" for key in snapped}
    assert set(re.findall(r"\$\.data\.(\w+)", SOURCE)) == set(snapped)


@pytest.mark.parametrize("name", CALLS)
def test_the_workflow_waits_no_longer_than_the_function_may_take(name: str) -> None:
    function = CALLS[name]["Parameters"]["FunctionName"].strip("${}")
    assert CALLS[name]["TimeoutSeconds"] <= TEMPLATE["Resources"][function]["Properties"]["Timeout"]


def test_what_a_person_puts_past_the_gate_says_so_in_the_ledger() -> None:
    made = STATES["PublishNamed"]["Parameters"]
    assert made["evidence"]["override"] is True
    assert made["evidence"]["reason.$"] == "$.request.reason"
    request = {"reason": "the frozen rows are out of date", "model": "m"}
    begun = workflow.begin("arn:execution", None, request)["request"]
    paths = [value for part in (made, made["evidence"]) for key, value in part.items() if key.endswith(".$")]
    assert {path.removeprefix("$.request.") for path in paths} <= set(begun)
    assert "past the gate" in made["reason"]


def test_what_the_evaluation_answers_goes_on_whole() -> None:
    kept = {key.removesuffix(".$") for key in STATES["Evaluate"]["ResultSelector"]}
    tree = ast.parse((PROJECT / "src/retrue/evaluation.py").read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "evaluate")
    (answer,) = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
    assert isinstance(answer, ast.Dict)
    assert kept == {ast.literal_eval(key) for key in answer.keys if key is not None}


def test_every_substitution_is_given_and_none_is_unused() -> None:
    substitutions = TEMPLATE["Resources"]["Retrain"]["Properties"]["DefinitionSubstitutions"]
    assert set(re.findall(r"\$\{(\w+)\}", SOURCE)) == set(substitutions)


def test_a_training_has_the_longest_time_that_the_template_allows() -> None:
    longest = TEMPLATE["Parameters"]["TrainSeconds"]["MaxValue"]
    assert TRAINING
    assert all(task["TimeoutSeconds"] > longest for task in TRAINING.values())
    waiting = TEMPLATE["Parameters"]["TrainWaitSeconds"]["MaxValue"]
    assert all(TRAINING[name]["TimeoutSeconds"] > longest + waiting for name in TRAINING if name != "TrainOnWorker")


@pytest.mark.parametrize("name", ["Promote", "RecordFailure"])
def test_what_moves_the_alias_has_given_up_before_the_workflow_goes_on(name: str) -> None:
    assert TASKS[name]["TimeoutSeconds"] == TEMPLATE["Resources"]["ReleaseFunction"]["Properties"]["Timeout"]


def test_a_worker_beats_several_times_before_it_counts_as_dead() -> None:
    assert INNER["TrainOnWorker"]["HeartbeatSeconds"] >= 3 * worker.HEARTBEAT_SECONDS


def test_every_backend_of_the_template_has_its_state() -> None:
    chosen = {choice["StringEquals"]: choice["Next"] for choice in INNER["Backend"]["Choices"]}
    others = set(TEMPLATE["Parameters"]["TrainBackend"]["AllowedValues"]) - set(chosen)
    assert others == {"worker"}
    assert INNER["Backend"]["Default"] == "TrainOnWorker"
    assert {*chosen.values(), "TrainOnWorker"} == set(TRAINING)


def test_sagemaker_gets_every_key_of_the_job_that_a_snapshot_makes(job: dict[str, Any]) -> None:
    passed = INNER["TrainOnSageMaker"]["Parameters"]
    paths = {key.removesuffix(".$"): value for key, value in passed.items() if key.endswith(".$")}
    assert paths == {key: f"$.job.{key}" for key in job}


def test_a_worker_finds_every_key_that_it_reads_in_the_job(job: dict[str, Any]) -> None:
    tree = ast.parse((PROJECT / "src/retrue/worker.py").read_text())
    read = {
        ast.literal_eval(node.slice)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in {"request", "task.request"}
    }
    assert {"HyperParameters", "InputDataConfig"} <= read
    assert read <= set(job)


def test_the_model_of_a_batch_job_is_looked_for_where_it_is_written(job: dict[str, Any]) -> None:
    written = f"{job['OutputDataConfig']['S3OutputPath']}{job['TrainingJobName']}/output/model.tar.gz"
    template = INNER["BatchArtifacts"]["Parameters"]["artifacts.$"]
    form, *paths = re.fullmatch(r"States\.Format\('(.*)', (\S+), (\S+)\)", template).groups()  # type: ignore[union-attr]
    values = [job[path.split(".")[2]] for path in paths]
    values[0] = values[0]["S3OutputPath"]
    assert form.format(*values) == written == f"s3://lake/{lake.RUNS}{job['TrainingJobName']}/output/model.tar.gz"


def test_the_architecture_names_every_state() -> None:
    page = (PROJECT / "docs/architecture.md").read_text()
    assert [name for name in {**STATES, **INNER} if f"`{name}`" not in page] == []
