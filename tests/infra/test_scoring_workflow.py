"""The workflow of a large CSV: held to the function that it calls, and run with that function's own steps.

The interpreter is moto's, its Map lists a real bucket (of moto's) and writes there. It knows no ItemBatcher, so each
part comes as a batch of one, as on the local cloud.
"""

import ast
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from retrue import jobs, lake, parts
from retrue.classifier import Classifier
from retrue.lake import Lake
from retrue.local import localize

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = (PROJECT / "infra/scoring.asl.yaml").read_text()
STATES: dict[str, Any] = yaml.safe_load(SOURCE)["States"]
MAP: dict[str, Any] = STATES["Score"]
TASKS = {
    name: state
    for name, state in {**STATES, **MAP["ItemProcessor"]["States"]}.items()
    if state["Type"] == "Task"
}  # fmt: skip
TEMPLATE: dict[str, Any] = localize.read(PROJECT / "template.yaml")
MACHINE: dict[str, Any] = TEMPLATE["Resources"]["Scoring"]["Properties"]
REGION, BUCKET, PARAMETER = "eu-central-1", "retrue-test", "/retrue/test/model"
NAMES = {"BatchFunction": f"arn:aws:lambda:{REGION}:123456789012:function:batch", "Bucket": BUCKET}
ROWS = 8
CONTEXT = SimpleNamespace(
    function_name="batch",
    memory_limit_in_mb=1769,
    invoked_function_arn=NAMES["BatchFunction"],
    aws_request_id="r-1",
    get_remaining_time_in_millis=lambda: 900_000,
)

Answer = Callable[[dict[str, Any]], Any]
Runner = Callable[..., Any]


# the definition
def test_every_substitution_is_given_and_none_is_unused() -> None:
    assert set(re.findall(r"\$\{(\w+)\}", SOURCE)) == set(MACHINE["DefinitionSubstitutions"]) == set(NAMES)


def test_the_steps_that_are_called_are_those_that_are_handled_and_get_what_they_read() -> None:
    tree = ast.parse((PROJECT / "functions/batch/app.py").read_text())
    handled = {
        ast.literal_eval(case.pattern.value): {
            ast.literal_eval(node.slice)
            for line in case.body
            for node in ast.walk(line)
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "event"
        }
        for match in ast.walk(tree)
        if isinstance(match, ast.Match)
        for case in match.cases
        if isinstance(case.pattern, ast.MatchValue)
    }
    given = {}
    for task in TASKS.values():
        payload = {key.removesuffix(".$"): value for key, value in task["Parameters"]["Payload"].items()}
        given[payload["step"]] = payload.keys() - {"step", "job"}
        assert "job" in payload
    assert given == handled


@pytest.mark.parametrize("name", TASKS)
def test_a_task_waits_no_longer_than_the_function_may_take_and_is_tried_again_only_for_its_service(name: str) -> None:
    task = TASKS[name]
    assert task["TimeoutSeconds"] <= TEMPLATE["Resources"]["BatchFunction"]["Properties"]["Timeout"]
    (retry,) = task["Retry"]
    assert {"Lambda.TooManyRequestsException", "Lambda.ServiceException"} <= set(retry["ErrorEquals"])
    assert not {"States.ALL", "States.TaskFailed", "States.Timeout", "Lambda.Unknown"} & set(retry["ErrorEquals"])
    assert (retry["BackoffRate"], retry["JitterStrategy"]) == (2.0, "FULL")


def test_the_map_reads_lists_batches_and_writes_where_its_role_may() -> None:
    allowed = {
        (action, place["Fn::Sub"].removeprefix("${Bucket.Arn}/") if "Fn::Sub" in place else "the bucket")
        for policy in MACHINE["Policies"]
        for statement in policy.get("Statement", ())
        for action in (statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]])
        for place in (statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]])
        if action.startswith("s3:")
    }
    map_folder = f"{lake.PARTS}map/*"
    assert allowed == {
        ("s3:ListBucket", "the bucket"),
        ("s3:GetObject", map_folder),
        ("s3:PutObject", map_folder),
        ("s3:ListMultipartUploadParts", map_folder),
        ("s3:AbortMultipartUpload", map_folder),
    }
    assert MAP["ItemReader"]["Resource"].endswith(":s3:listObjectsV2")
    assert MAP["ResultWriter"]["Resource"].endswith(":s3:putObject")
    assert f"{MAP['ResultWriter']['Parameters']['Prefix']}/*" == map_folder
    assert MAP["ItemProcessor"]["ProcessorConfig"]["Mode"] == "DISTRIBUTED"


def test_a_batch_of_parts_is_done_within_one_run_of_the_function() -> None:
    """At a fifth of a second a row, which a vCPU needs for 512 tokens of a full-size DistilBERT."""
    function = TEMPLATE["Resources"]["BatchFunction"]["Properties"]
    assert MAP["ItemBatcher"]["MaxItemsPerBatch"] * parts.ROWS * 0.2 < function["Timeout"]


def test_the_function_begins_the_machine_that_the_template_names() -> None:
    variables = TEMPLATE["Resources"]["BatchFunction"]["Properties"]["Environment"]["Variables"]
    assert variables["SCORING_ARN"]["Fn::Sub"].endswith(f":stateMachine:{MACHINE['Name']['Fn::Sub']}")
    assert variables["FILE_MEGABYTES"] == {"Ref": "BatchFileMegabytes"}
    assert variables["AT_ONCE"] == {"Ref": "BatchAtOnce"}


def test_the_disk_holds_the_largest_file() -> None:
    storage = TEMPLATE["Resources"]["BatchFunction"]["Properties"]["EphemeralStorage"]["Size"] * 2**20
    assert storage > parts.LARGEST * 2
    assert TEMPLATE["Parameters"]["BatchFileMegabytes"]["MaxValue"] * 1e6 <= parts.LARGEST


def test_the_architecture_names_every_state() -> None:
    page = (PROJECT / "docs/architecture.md").read_text()
    assert [name for name in {**STATES, **MAP["ItemProcessor"]["States"]} if f"`{name}`" not in page] == []


# its runs
@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> Iterator[ModuleType]:
    """The function, beside a bucket and a model that serves."""
    for name, value in {
        "BUCKET": BUCKET, "ENVIRONMENT": "test", "MODEL_PARAMETER": PARAMETER, "SCORING_ARN": "arn:machine",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(parts, "ROWS", ROWS)
    for module in (jobs, parts.scoring):
        monkeypatch.setattr(module, "CHUNK", ROWS)
    spec = importlib.util.spec_from_file_location("scoring_app", PROJECT / "functions/batch/app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        model = Classifier.open(tiny_model).model
        Lake(BUCKET).upload_folder(tiny_model, f"models/{model}/")
        uri = f"s3://{BUCKET}/models/{model}/"
        boto3.client("ssm").put_parameter(Name=PARAMETER, Value=uri, Type="String")
        yield module


@pytest.fixture
def run(app: ModuleType, interpret: Callable[..., Any]) -> Runner:
    """Runs a job through the workflow with the function's own steps, but for the states in `others`."""
    definition = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda found: NAMES[found[1]], SOURCE))
    score = localize.unbatched(definition)["States"]["Score"]
    score["ToleratedFailurePercentage"] = float(score["ToleratedFailurePercentage"])  # it takes no whole number
    client = boto3.client("stepfunctions")
    role = boto3.client("iam").create_role(RoleName="scoring", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    words = {"definition": json.dumps(definition), "roleArn": role}
    machine = client.create_state_machine(name="scoring", **words)["stateMachineArn"]

    def call(name: str) -> Answer:
        payload = TASKS[name]["Parameters"]["Payload"]

        def answer(given: dict[str, Any]) -> Any:
            found = {key.removesuffix(".$"): _at(value, given) for key, value in payload.items()}
            return {"StatusCode": 200, "Payload": app.handler(found, CONTEXT)}

        return answer

    def go(job: str, size: int, **others: Answer) -> Any:
        return interpret(client, machine, {"job": job, "size": size}, {name: call(name) for name in TASKS} | others)

    return go


def _at(value: str, given: dict[str, Any]) -> Any:
    """What a payload's path names in a state's input, or the word itself."""
    if not value.startswith("$."):
        return value
    for key in value[2:].split("."):
        given = given[key]
    return given


def dropped(app: ModuleType, rows: int) -> tuple[Lake, str, int]:
    """A job that has begun, and the size of its file."""
    store = Lake(BUCKET)
    body = ("id,text\n" + "".join(f"r{n},a fine film number {n}\n" for n in range(rows))).encode()
    store.put("incoming/many.csv", body)
    model = next(iter(store.keys("models/"))).split("/")[1]
    return store, jobs.start(store, "predict", "incoming/many.csv", "identity", 1_795_339_800_123, model).id, len(body)


def ids(store: Lake, job: str, name: str, column: int) -> list[str]:
    return [line.split(",")[column] for line in store.get(f"results/{job}/{name}").decode().splitlines()[1:]]


def test_a_file_goes_through_its_parts_to_its_results(app: ModuleType, run: Runner) -> None:
    store, job, size = dropped(app, rows=3 * ROWS + 2)
    ended = run(job, size)
    assert (ended.status, ended.waits) == ("SUCCEEDED", [])
    assert ended.path == ["Cut", "IsReadable", "Score", "Join", "IsWhole", "Joined"]
    found = store.read_job(job)
    assert (found.state, found.accepted, found.error) == ("done", 3 * ROWS + 2, None)
    assert ids(store, job, "results.csv", 0) == [f"r{n}" for n in range(3 * ROWS + 2)]
    # What the Map answered is beside the parts, and no state holds any of the texts.
    assert list(store.keys("parts/map/"))
    assert "film" not in json.dumps(ended.asked)


def test_a_file_that_cannot_be_read_ends_without_an_alarm(app: ModuleType, run: Runner) -> None:
    store, job, size = dropped(app, rows=1)
    store.put("incoming/many.csv", b"a,b\n1,2\n")
    ended = run(job, size)
    assert (ended.status, ended.path) == ("SUCCEEDED", ["Cut", "IsReadable", "Unreadable"])
    assert store.read_job(job).state == "failed"


def failing(*numbers: int) -> Callable[[Answer], Answer]:
    """A Score whose parts of these numbers fail, as where the function runs out of memory."""

    def wrap(well: Answer) -> Answer:
        def answer(given: dict[str, Any]) -> Any:
            if parts.number_of(given["Items"][0]["Key"]) in numbers:
                return {"Error": "Runtime.ExitError", "Cause": "signal: killed"}
            return well(given)

        return answer

    return wrap


@pytest.fixture
def score(app: ModuleType) -> Answer:
    def answer(given: dict[str, Any]) -> Any:
        event = {"step": "score", "job": given["BatchInput"]["job"], "items": given["Items"]}
        return {"StatusCode": 200, "Payload": app.handler(event, CONTEXT)}

    return answer


def test_one_part_of_many_that_fails_comes_back_among_the_rejects(app: ModuleType, run: Runner, score: Answer) -> None:
    store, job, size = dropped(app, rows=12 * ROWS)
    ended = run(job, size, ScoreParts=failing(4)(score))
    assert (ended.status, ended.path[-1]) == ("SUCCEEDED", "Joined")
    found = store.read_job(job)
    assert (found.state, found.error) == ("done", parts.SOME_FAILED)
    assert ids(store, job, "rejects.csv", 2) == [f"r{n}" for n in range(4 * ROWS, 5 * ROWS)]


def test_a_map_that_fails_ends_as_a_failure_and_what_is_there_is_joined(
    app: ModuleType, run: Runner, score: Answer
) -> None:
    """As where more parts fail than are tolerated, which the interpreter does not count."""
    store, job, size = dropped(app, rows=4 * ROWS)

    def misled(given: dict[str, Any]) -> Any:
        plan = app.handler({"step": "cut", "job": job, "size": size}, CONTEXT)
        first = f"parts/{job}/rows/000000.jsonl.gz"
        score({"BatchInput": {"job": job}, "Items": [{"Key": first}]})
        return {"StatusCode": 200, "Payload": {**plan, "rows": 7}}  # no prefix that could be listed

    ended = run(job, size, Cut=misled)
    assert (ended.status, ended.error) == ("FAILED", "ScoringFailed")  # which the alarm hears
    assert ended.path[-4:] == ["Score", "Join", "IsWhole", "Failed"]
    found = store.read_job(job)
    assert (found.state, found.error) == ("done", parts.SOME_FAILED)
    assert ids(store, job, "results.csv", 0) == [f"r{n}" for n in range(ROWS)]
    assert ids(store, job, "rejects.csv", 2) == [f"r{n}" for n in range(ROWS, 4 * ROWS)]


@pytest.mark.parametrize("name", ["Cut", "Join"])
def test_a_step_that_fails_is_written_into_the_job(app: ModuleType, run: Runner, name: str) -> None:
    store, job, size = dropped(app, rows=2 * ROWS)
    ended = run(job, size, **{name: lambda _: {"Error": "Sandbox.Timedout", "Cause": "Task timed out"}})
    assert (ended.status, ended.path[-3:]) == ("FAILED", [name, "RecordFailure", "Failed"])
    found = store.read_job(job)
    assert (found.state, "Sandbox.Timedout" in (found.error or "")) == ("failed", True)


def test_what_cannot_even_be_written_down_fails_too(app: ModuleType, run: Runner) -> None:
    _, job, size = dropped(app, rows=ROWS)
    away = lambda _: {"Error": "States.Timeout", "Cause": ""}  # noqa: E731
    ended = run(job, size, Cut=away, RecordFailure=away)
    assert (ended.status, ended.path[-2:]) == ("FAILED", ["RecordFailure", "Failed"])


def test_what_the_service_could_not_do_at_first_is_tried_again(app: ModuleType, run: Runner, score: Answer) -> None:
    store, job, size = dropped(app, rows=2 * ROWS)
    before = ["Lambda.TooManyRequestsException"] * 3

    def throttled(given: dict[str, Any]) -> Any:
        return {"Error": before.pop(), "Cause": "Rate Exceeded"} if before else score(given)

    ended = run(job, size, ScoreParts=throttled)
    assert (ended.status, len(ended.waits)) == ("SUCCEEDED", 3)
    assert store.read_job(job).accepted == 2 * ROWS
