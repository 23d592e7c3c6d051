"""The workflow's definition, run by an interpreter of the language: the services' answers are given, all else is real.

The interpreter is moto's. The answers of SageMaker and AWS Batch have the shapes of their service models, since nobody
has recorded any on AWS. TrainOnWorker runs for real on the local cloud, in tests/local/test_search.py.
"""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.validate import validate_parameters
from moto import mock_aws

PROJECT = Path(__file__).resolve().parents[2]
REGION = "eu-central-1"
NAMES = {
    "StepsFunction": f"arn:aws:lambda:{REGION}:123456789012:function:steps",
    "ReleaseFunction": f"arn:aws:lambda:{REGION}:123456789012:function:release",
    "TrainActivity": f"arn:aws:states:{REGION}:123456789012:activity:train",
    "TrainImage": f"123456789012.dkr.ecr.{REGION}.amazonaws.com/retrue-train:1",
    "TrainRole": "arn:aws:iam::123456789012:role/train",
    "TrainQueue": f"arn:aws:batch:{REGION}:123456789012:job-queue/train",
    "TrainDefinition": f"arn:aws:batch:{REGION}:123456789012:job-definition/train:1",
    "Topic": f"arn:aws:sns:{REGION}:123456789012:topic",
}
DEFINITION: dict[str, Any] = yaml.safe_load(
    re.sub(r"\$\{(\w+)\}", lambda found: NAMES[found[1]], (PROJECT / "infra/retrain.asl.yaml").read_text())
)
INNER: dict[str, Any] = DEFINITION["States"]["Train"]["ItemProcessor"]["States"]
STATES: dict[str, Any] = {**DEFINITION["States"], **INNER}
TASKS = [name for name, state in STATES.items() if state["Type"] == "Task" and name != "TrainOnWorker"]
EVENT = {"id": "event-1", "detail": {"reason": "the texts drifted", "trigger": "drift"}}


Answer = Callable[[dict[str, Any]], Any]
Runner = Callable[[dict[str, Answer]], Any]


def payload(**values: Any) -> Answer:
    return lambda _: {"StatusCode": 200, "ExecutedVersion": "$LATEST", "Payload": values}


def refuse(error: str, cause: str = "why not") -> Answer:
    return lambda _: {"Error": error, "Cause": cause}


def job(name: str = "retrue-1", nodes: int = 1) -> dict[str, Any]:
    """A training job as a snapshot makes it."""
    source = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated", "S3Uri": "s3://lake/datasets/d1/"}
    return {
        "TrainingJobName": name,
        "HyperParameters": {"epochs": "2"},
        "InputDataConfig": [{"ChannelName": "dataset", "DataSource": {"S3DataSource": source}}],
        "OutputDataConfig": {"S3OutputPath": "s3://lake/runs/"},
        "CheckpointConfig": {"S3Uri": f"s3://lake/runs/{name}/checkpoints/", "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": nodes, "VolumeSizeInGB": 50},
        "EnableManagedSpotTraining": nodes == 1,
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, **({"MaxWaitTimeInSeconds": 90} if nodes == 1 else {})},
    }


def artifacts(name: str) -> str:
    return f"s3://lake/runs/{name}/output/model.tar.gz"


def trained_in_sagemaker(given: dict[str, Any]) -> dict[str, Any]:
    name = given["job"]["TrainingJobName"]
    return {
        "TrainingJobName": name,
        "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{name}",
        "TrainingJobStatus": "Completed",
        "SecondaryStatus": "Completed",
        "ModelArtifacts": {"S3ModelArtifacts": artifacts(name)},
        "AlgorithmSpecification": {"TrainingImage": NAMES["TrainImage"], "TrainingInputMode": "File"},
        "ResourceConfig": given["job"]["ResourceConfig"],
        "StoppingCondition": given["job"]["StoppingCondition"],
        "BillableTimeInSeconds": 40,
        "TrainingTimeInSeconds": 100,
    }


def trained_in_batch(given: dict[str, Any]) -> dict[str, Any]:
    name = given["job"]["TrainingJobName"]
    id = "0f1e2d3c-0000-4000-8000-123456789012"
    return {
        "JobArn": f"arn:aws:batch:{REGION}:123456789012:job/{id}",
        "JobName": name,
        "JobId": id,
        "JobQueue": NAMES["TrainQueue"],
        "Status": "SUCCEEDED",
        "Attempts": [{"StatusReason": "Host EC2 (instance i-0) terminated."}, {"Container": {"ExitCode": 0}}],
        "JobDefinition": NAMES["TrainDefinition"],
        "StartedAt": 1_767_259_800_000,
    }


def answers(backend: str, jobs: list[dict[str, Any]], better: bool = True, **others: Answer) -> dict[str, Answer]:
    """What every task is answered in a run that goes well, but for the states in `others`."""
    training = {"jobs": jobs, "at_once": 2, "rung": 0, "artifacts": None}
    over = {"jobs": [], "at_once": 2, "rung": 1, "artifacts": artifacts(jobs[0]["TrainingJobName"])}
    candidate = {"model": "m1", "promote": better, "reason": "fewer errors", "reasons": [], "evidence": {"rows": 40}}
    return {
        "Begin": payload(alone=True, run="retrue-1", request=EVENT["detail"]),
        "Snapshot": payload(job=jobs[0], backend=backend, dataset="d1", feedback={"rows": 0}),
        "Plan": payload(**training, search=""),
        "TrainOnSageMaker": trained_in_sagemaker,
        "TrainOnBatch": trained_in_batch,
        "Choose": payload(**over),
        "Evaluate": payload(**candidate),
        "Register": payload(uri="models:/retrue/1"),
        "RecordRejection": payload(action="rejected"),
        "Publish": payload(version="2"),
        "Validate": payload(worst=0.0),
        "Share": payload(on=False, live="1", since=0, until=0, wait=1),
        "Look": payload(state="harmless", reason="", evidence={}, shared={"on": True, "live": "1", "wait": 1}),
        "Withdraw": payload(action="withdrawn", reason="it fails more often"),
        "TellWithdrawal": lambda _: {"MessageId": "0f1e2d3c-0000-4000-8000-123456789012"},
        "Promote": payload(action="promoted"),
        "Crown": payload(version="1"),
        "RecordFailure": payload(action="failed", reason="BadDataset: no rows"),
        "Notify": lambda _: {"MessageId": "0f1e2d3c-0000-4000-8000-123456789012"},
        **others,
    }


@pytest.fixture(scope="module")
def cloud() -> Iterator[tuple[Any, str]]:
    """Step Functions, and the workflow in it."""
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        client = boto3.client("stepfunctions", region_name=REGION)
        role = boto3.client("iam").create_role(RoleName="retrain", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        words = {"definition": json.dumps(DEFINITION), "roleArn": role}
        yield client, client.create_state_machine(name="retrain", **words)["stateMachineArn"]


@pytest.fixture
def run(cloud: tuple[Any, str], interpret: Callable[..., Any]) -> Runner:
    """Runs the workflow with these answers, by the state that asks; each is given the state's input."""
    return lambda given: interpret(*cloud, EVENT, given)


def once(error: str, then: Answer) -> Answer:
    """An answer that comes after this error."""
    before = [error]

    def answer(given: dict[str, Any]) -> Any:
        return {"Error": before.pop(), "Cause": "try again"} if before else then(given)

    return answer


TRAINED = ["Begin", "IsAlone", "Snapshot", "Plan", "Train", "Choose", "IsTrained", "Evaluate", "Register", "IsBetter"]
PUBLISHED = ["Publish", "Validate", "Share", "IsShared", "Promote", "Crown", "Promoted"]
BACKENDS = {
    "sagemaker": ("sagemaker", 1, ["Backend", "TrainOnSageMaker", "Trained"]),
    "sagemaker on two nodes": ("sagemaker", 2, ["Backend", "TrainOnSageMaker", "Trained"]),
    "batch": ("batch", 1, ["Backend", "TrainOnBatch", "BatchArtifacts", "Trained"]),
    "batch on two nodes": ("batch", 2, ["Backend", "TrainOnBatch", "BatchArtifacts", "Trained"]),
}


def shaped(service: str, operation: str, request: dict[str, Any], side: str = "input") -> None:
    """ParamValidationError where the service's model knows no such request or answer."""
    model = boto3.client(service, region_name=REGION).meta.service_model.operation_model(operation)
    validate_parameters(request, getattr(model, f"{side}_shape"))


def camel(value: Any) -> Any:
    """Step Functions writes PascalCase where the API of Batch writes camelCase."""
    if isinstance(value, dict):
        return {key[0].lower() + key[1:]: camel(item) for key, item in value.items()}
    return [camel(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("better", [True, False])
def test_a_training_on_every_backend_ends_where_the_gate_says(run: Runner, name: str, better: bool) -> None:
    backend, nodes, inner = BACKENDS[name]
    ended = run(answers(backend, [job(nodes=nodes)], better))
    assert (ended.status, ended.waits) == ("SUCCEEDED", [])
    assert ended.path == TRAINED + (PUBLISHED if better else ["RecordRejection", "Rejected"])
    assert [state for state in ended.entered if state in INNER] == inner
    (told,) = ended.payloads("choose")
    assert told["results"] == [{"job": "retrue-1", "artifacts": artifacts("retrue-1")}]
    (begun,) = ended.payloads("begin")
    assert begun["input"] == EVENT
    if better:
        (promoted,) = ended.payloads("promote")
        assert (promoted["version"], promoted["live"]) == ("2", "1")


@pytest.mark.parametrize("nodes", [1, 2])
def test_sagemaker_is_asked_for_what_its_model_knows(run: Runner, nodes: int) -> None:
    asked = job(nodes=nodes)
    (request,) = run(answers("sagemaker", [asked])).requests("sagemaker")
    shaped("sagemaker", "CreateTrainingJob", request)
    answer = {**trained_in_sagemaker({"job": asked}), "CreationTime": datetime(2026, 1, 1, tzinfo=UTC)}
    shaped("sagemaker", "DescribeTrainingJob", answer, "output")
    assert {key: request[key] for key in asked} == asked
    assert request["EnableNetworkIsolation"] is True
    assert request["RoleArn"] == NAMES["TrainRole"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_batch_is_asked_for_what_its_model_knows_and_hands_the_job_on(run: Runner, nodes: int) -> None:
    asked = job(nodes=nodes)
    (request,) = (camel(found) for found in run(answers("batch", [asked])).requests("batch"))
    shaped("batch", "SubmitJob", request)
    model = boto3.client("batch", region_name=REGION).meta.service_model
    validate_parameters(camel(trained_in_batch({"job": asked})), model.shape_for("JobDetail"))
    assert (request["jobQueue"], request["jobDefinition"]) == (NAMES["TrainQueue"], NAMES["TrainDefinition"])
    # With other overrides than the mark that Step Functions leaves, Batch refuses a job of several nodes.
    assert [variable["name"] for variable in request["containerOverrides"]["environment"]] == ["MANAGED_BY_AWS"]
    assert {name: json.loads(value) for name, value in request["parameters"].items()} == {"request": asked}


@pytest.mark.parametrize("backend", ["sagemaker", "batch"])
def test_the_trials_of_a_search_train_side_by_side_and_one_that_fails_stops_none(run: Runner, backend: str) -> None:
    rungs = [[job(f"retrue-1-0-{number:02d}") for number in range(3)], [job("retrue-1-1-02")]]
    state = {"sagemaker": "TrainOnSageMaker", "batch": "TrainOnBatch"}[backend]
    well = answers(backend, rungs[0])

    def train(given: dict[str, Any]) -> Any:
        if given["job"]["TrainingJobName"] == "retrue-1-0-01":
            return {"Error": "States.TaskFailed", "Cause": '{"FailureReason": "the loss is nan"}'}
        return well[state](given)

    later = iter([{"jobs": rungs[1], "at_once": 2, "rung": 1, "artifacts": None}])
    last = well["Choose"]
    choose = lambda given: payload(**found)(given) if (found := next(later, None)) else last(given)  # noqa: E731
    ended = run({**well, state: train, "Choose": choose})
    assert ended.status == "SUCCEEDED"
    rung = ["Train", "Choose", "IsTrained"]
    assert ended.path == ["Begin", "IsAlone", "Snapshot", "Plan", *rung, *rung, *TRAINED[7:], *PUBLISHED]
    first, second = (told["results"] for told in ended.payloads("choose"))
    assert [result["job"] for result in first] == [one["TrainingJobName"] for one in rungs[0]]
    assert first[1]["error"] == {"Error": "States.TaskFailed", "Cause": '{"FailureReason": "the loss is nan"}'}
    assert [result.get("artifacts") for result in first] == [
        artifacts("retrue-1-0-00"), None, artifacts("retrue-1-0-02"),
    ]  # fmt: skip
    assert second == [{"job": "retrue-1-1-02", "artifacts": artifacts("retrue-1-1-02")}]
    assert [told["rung"] for told in ended.payloads("choose")] == [0, 1]
    assert (ended.times("NotTrained"), ended.waits) == (1, [])


def test_an_execution_that_is_not_alone_ends_at_once(run: Runner) -> None:
    ended = run(answers("batch", [job()], Begin=payload(alone=False, run="retrue-1", request=EVENT["detail"])))
    assert (ended.status, ended.path) == ("SUCCEEDED", ["Begin", "IsAlone", "AnotherIsRunning"])


def test_a_model_that_a_person_named_is_published_and_nothing_is_trained(run: Runner) -> None:
    wish = {"reason": "the frozen rows are old", "trigger": "person", "model": "m7"}
    ended = run(answers("batch", [job()], Begin=payload(alone=True, run="retrue-1", request=wish)))
    assert ended.path == ["Begin", "IsAlone", "PublishNamed", *PUBLISHED]
    assert ended.payloads("publish")[0]["model"] == "m7"
    assert ended.payloads("promote")[0]["candidate"]["evidence"]["override"] is True


SHARED = {"on": True, "live": "1", "since": 0, "until": 60_000, "wait": 1}


def look(state: str) -> Answer:
    return payload(state=state, reason="it fails more often", evidence={"calls": 40}, shared=SHARED)


HARMFUL = {"Share": payload(**SHARED), "Look": look("harmful")}


def test_a_canary_is_looked_at_until_its_time_is_over(run: Runner) -> None:
    looks = iter(["watching", "watching", "harmless"])
    canary: dict[str, Answer] = {"Share": payload(**SHARED), "Look": lambda given: look(next(looks))(given)}
    ended = run(answers("batch", [job()], **canary))
    once_more = ["Watch", "Look", "IsHarmless"]
    assert ended.path == [*TRAINED, "Publish", "Validate", "Share", "IsShared", *once_more * 3, *PUBLISHED[-3:]]
    assert ended.payloads("promote")[0]["live"] == "1"


def test_a_canary_that_does_harm_is_withdrawn_and_people_are_told(run: Runner) -> None:
    ended = run(answers("batch", [job()], **HARMFUL))
    assert (ended.status, ended.path[-5:]) == (
        "SUCCEEDED", ["Look", "IsHarmless", "Withdraw", "TellWithdrawal", "Withdrawn"],
    )  # fmt: skip
    assert ended.payloads("withdraw")[0]["watched"]["reason"] == "it fails more often"
    assert [found["Message"] for found in ended.requests("sns")] == ["it fails more often"]


def test_a_withdrawal_that_nobody_can_be_told_of_is_one_all_the_same(run: Runner) -> None:
    ended = run(answers("batch", [job()], **HARMFUL, TellWithdrawal=refuse("SNS.NotFoundException")))
    assert (ended.status, ended.path[-1]) == ("SUCCEEDED", "Withdrawn")


@pytest.mark.parametrize("name", ["Look", "Promote"])
def test_a_deployment_that_comes_between_has_the_model_published_again(run: Runner, name: str) -> None:
    well = answers("batch", [job()], Share=payload(**SHARED), Look=look("harmless"))
    ended = run({**well, name: once("AliasMoved", well[name])})
    assert (ended.status, ended.times("Publish"), ended.path[-1]) == ("SUCCEEDED", 2, "Promoted")


BACKEND_OF = {"TrainOnSageMaker": "sagemaker", "TrainOnBatch": "batch"}
FAILING = {"RecordFailure": "Evaluate", "Notify": "Evaluate"}  # where the error comes from that leads to these


def until(name: str, answer: Answer) -> dict[str, Answer]:
    """Answers of a run that reaches a state, which gets this one."""
    backend = BACKEND_OF.get(name, "sagemaker")
    before = {FAILING[name]: refuse("BadDataset", '{"errorMessage": "no rows"}')} if name in FAILING else {}
    if name in {"Look", "Withdraw", "TellWithdrawal"}:
        before = HARMFUL
    return answers(backend, [job()], better=name != "RecordRejection", **{**before, name: answer})


WAYS = {
    "to a promotion": ("sagemaker", True, {}),
    "to a withdrawal": ("sagemaker", True, HARMFUL),
    "to a rejection": ("batch", False, {}),
    "to a failure": ("batch", True, {"Evaluate": refuse("BadDataset")}),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("number", range(max(len(STATES[name]["Retry"][0]["ErrorEquals"]) for name in TASKS)))
def test_what_a_service_could_not_do_at_first_is_tried_again(run: Runner, name: str, number: int) -> None:
    """Every task meets one of the errors that its Retry names, then its answer."""
    backend, better, others = WAYS[name]
    well = answers(backend, [job()], better, **others)
    names = {task: STATES[task]["Retry"][0]["ErrorEquals"] for task in TASKS}
    ended = run({task: once(names[task][number % len(names[task])], well[task]) for task in TASKS})
    plain = run(well)
    assert ended.path == plain.path
    assert len(ended.waits) == len(plain.asked)
    assert len(ended.asked) == 2 * len(plain.asked)


@pytest.mark.parametrize("name", TASKS)
def test_a_service_that_stays_away_is_asked_five_times_and_longer_waited_for_each_time(run: Runner, name: str) -> None:
    (retry,) = STATES[name]["Retry"]
    ended = run(until(name, refuse(retry["ErrorEquals"][0])))
    assert len(ended.waits) == retry["MaxAttempts"] == 4
    longest = [retry["IntervalSeconds"] * retry["BackoffRate"] ** attempt for attempt in range(4)]
    assert all(0 <= wait <= most for wait, most in zip(ended.waits, longest, strict=True))


@pytest.mark.parametrize("name", [name for name in TASKS if name not in {*FAILING, *BACKEND_OF, "TellWithdrawal"}])
def test_every_failure_is_written_down_and_told_and_ends_as_one(run: Runner, name: str) -> None:
    ended = run(until(name, refuse("BadDataset", '{"errorMessage": "no rows"}')))
    assert (ended.waits, ended.times(name)) == ([], 1)
    assert (ended.status, ended.error) == ("FAILED", "RetrainingFailed")
    assert ended.path[-5:] == [name, "RecordFailure", "Notify", "HasMoved", "Failed"]
    (told,) = ended.payloads("fail")
    assert told["state"]["error"] == {"Error": "BadDataset", "Cause": '{"errorMessage": "no rows"}'}
    assert [found["Message"] for found in ended.requests("sns")] == ["BadDataset: no rows"]


@pytest.mark.parametrize("name", BACKEND_OF)
def test_a_training_that_fails_alone_is_for_choose_to_judge(run: Runner, name: str) -> None:
    failing = {name: refuse("States.TaskFailed", "{}"), "Choose": refuse("TrainingFailed", "the loss is nan")}
    ended = run(answers(BACKEND_OF[name], [job()], **failing))
    assert ended.path[-6:] == ["Train", "Choose", "RecordFailure", "Notify", "HasMoved", "Failed"]
    assert (ended.times("NotTrained"), ended.waits) == (1, [])


@pytest.mark.parametrize("name", ["Promote", "Crown"])
@pytest.mark.parametrize("told", [True, False])
def test_a_run_whose_version_serves_is_a_promotion_whatever_came_after(run: Runner, name: str, told: bool) -> None:
    recorded = payload(action="promoted", reason="version 2 serves, and after that came Timeout")
    others = {} if told else {"Notify": refuse("SNS.AuthorizationErrorException")}
    ended = run({**until(name, refuse("States.Timeout")), "RecordFailure": recorded, **others})
    assert (ended.status, ended.path[-1]) == ("SUCCEEDED", "Promoted")
    (fail,) = ended.payloads("fail")
    assert fail["state"]["release"] == {"version": "2"}
    assert fail["state"]["watched"]["shared"]["live"] == "1"
    assert ("promoted" in fail["state"]) is (name == "Crown")
    assert ended.requests("sns")[0]["Message"].startswith("version 2 serves")


def test_people_are_told_where_the_ledger_cannot_be_written(run: Runner) -> None:
    ended = run(until("RecordFailure", refuse("AccessDenied")))
    assert ended.path[-5:] == ["RecordFailure", "Unrecorded", "Notify", "HasMoved", "Failed"]
    (message,) = (found["Message"] for found in ended.requests("sns"))
    assert message.startswith("BadDataset. The ledger could not be written either, AccessDenied.")


def test_nobody_who_can_be_told_does_not_change_the_end(run: Runner) -> None:
    ended = run(until("Notify", refuse("SNS.NotFoundException")))
    assert ended.path[-4:] == ["RecordFailure", "Notify", "HasMoved", "Failed"]
    assert ended.error == "RetrainingFailed"
