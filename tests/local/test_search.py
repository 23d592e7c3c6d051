"""A search in the deployed workflow: its states on the local cloud, its steps, and a worker that takes the jobs.

Trainings take minutes, so the worker here runs a program that leaves at once what a training would have left.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from retrue import lake, trials
from retrue.local.home import endpoint_environ
from retrue.stack import Stack
from retrue.workflow import Workflow, run_of

PROGRAM = """
import json, os, sys
from pathlib import Path

root = Path(os.environ["RETRUE_ML_ROOT"])
chosen = json.loads((root / "input/config/hyperparameters.json").read_text())
if chosen["epochs"] == "5":
    (root / "output/failure").write_text("the loss is nan: lower learning_rate")
    sys.exit(1)
told = {"metric": 1 - 1 / int(chosen["epochs"]), "seconds": 1.0, "losses": [[1, 0.5]]}
told["history"] = [{"step": 1, "accuracy": told["metric"], "until": float(chosen["until"])}]
if float(chosen["until"]) < 1:
    (root / "model/trial.json").write_text(json.dumps(told))
else:
    (root / "model/card.json").write_text(json.dumps({"run": told}))
"""


WORKER = """
import sys
from pathlib import Path
from retrue import worker
from retrue.lake import Lake
from retrue.workflow import Activity

bucket, activity, program = sys.argv[1:]
worker.serve(Lake(bucket), Activity(activity), Path(program), "test", print, once=False)
"""


@pytest.fixture(scope="module")
def machine(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workflow]:
    """The deployed workflow from Plan to where it would evaluate, and a worker for its trainings.

    It has a queue of its own, since the stack's worker would take the jobs too.
    """
    client = stack.session.client("stepfunctions")
    activity = client.create_activity(name="retrue-search-test")["activityArn"]
    deployed = client.describe_state_machine(stateMachineArn=stack.outputs["StateMachineArn"])
    definition = json.loads(deployed["definition"])
    definition |= {"StartAt": "Plan"}
    definition["States"]["Train"]["ItemProcessor"]["States"]["TrainOnWorker"]["Resource"] = activity
    definition["States"]["Evaluate"] = {"Type": "Succeed"}
    definition["States"]["RecordFailure"] = {"Type": "Fail", "ErrorPath": "$.error.Error", "CausePath": "$.error.Cause"}
    words = {"definition": json.dumps(definition), "roleArn": deployed["roleArn"]}
    arn = client.create_state_machine(name="retrue-search-test", **words)["stateMachineArn"]
    program = tmp_path_factory.mktemp("program") / "job.py"
    program.write_text(PROGRAM)
    assert stack.session.endpoint is not None
    work = subprocess.Popen(
        [sys.executable, "-c", WORKER, stack.outputs["BucketName"], activity, str(program)],
        env={**os.environ, **endpoint_environ(stack.session.endpoint)},
    )
    yield Workflow(arn, client)
    work.terminate()
    work.wait(30)
    client.delete_state_machine(stateMachineArn=arn)
    client.delete_activity(activityArn=activity)


def run(stack: Stack, machine: Workflow, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """The end of an execution that begins where Snapshot has made its job."""
    store = stack.lake
    store.put(f"{lake.DATASETS}d1/rows", b"rows")
    place = store.uri(f"{lake.DATASETS}d1/")
    job = {
        "TrainingJobName": run_of(name),
        "HyperParameters": {"max_tokens": "64"},
        "InputDataConfig": [{"ChannelName": "dataset", "DataSource": {"S3DataSource": {"S3Uri": place}}}],
        "OutputDataConfig": {"S3OutputPath": store.uri(lake.RUNS)},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "CheckpointConfig": {"S3Uri": store.uri(f"{lake.RUNS}x/checkpoints/"), "LocalPath": "/opt/ml/checkpoints"},
    }
    given = {"run": run_of(name), "request": request, "data": {"job": job, "backend": "worker", "dataset": "d1"}}
    started = machine.client.start_execution(stateMachineArn=machine.arn, name=name, input=json.dumps(given))
    while (found := machine.describe(started["executionArn"]))["status"] == "RUNNING":
        time.sleep(0.2)
    return found


def test_the_trials_of_a_search_are_halved_until_one_is_the_candidate(stack: Stack, machine: Workflow) -> None:
    wanted = {"kind": "grid", "space": {"epochs": [2, 3, 4, 5]}, "trials": 4, "seed": 0}
    found = run(stack, machine, "search", {"reason": "test", "search": wanted})
    assert found["status"] == "SUCCEEDED", found
    name = run_of("search")
    states = machine.states(found["executionArn"])
    assert states == ["Plan", *["Train", "Choose", "IsTrained"] * 2, "Evaluate"]
    assert json.loads(found["output"])["training"] == {
        "jobs": [], "at_once": 4, "rung": 2,
        "artifacts": stack.lake.uri(f"runs/{name}-1-02/output/model.tar.gz"),
    }  # fmt: skip
    kept = trials.read(stack.lake, name)
    assert kept is not None
    assert [(trial.name, trial.state, trial.rungs) for trial in kept.trials] == [
        ("00", "stopped early", 1), ("01", "finished", 2), ("02", "finished", 2), ("03", "failed", 0),
    ]  # fmt: skip
    assert kept.trials[3].error == "the loss is nan: lower learning_rate"
    assert kept.trials[2].history == [{"step": 1, "accuracy": 0.75, "until": 1.0}]


def test_a_plain_training_takes_the_same_way_once(stack: Stack, machine: Workflow) -> None:
    broken = {"reason": "test", "settings": {}}
    found = run(stack, machine, "plain", broken)
    assert found["status"] == "FAILED"
    assert (found["error"], "KeyError: 'epochs'" in found["cause"]) == ("TrainingFailed", True)
    assert machine.states(found["executionArn"]) == ["Plan", "Train", "Choose", "RecordFailure"]
