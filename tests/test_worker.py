"""Training work on this machine: real programs in processes of their own, on a lake that lives in this one."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, UnStubbedResponseError
from botocore.stub import ANY, Stubber
from moto import mock_aws

from retrue import worker
from retrue.errors import TrainingFailed
from retrue.lake import Lake
from retrue.worker import progress_key
from retrue.workflow import Activity

JOB = "retrue-0123456789abcdef"
START = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
root = Path(os.environ["RETRUE_ML_ROOT"])
"""
COPY = """
for name in ("dataset", "encoder"):
    for path in (root / "input/data" / name).iterdir():
        (root / "model" / f"{name}-{path.name}").write_bytes(path.read_bytes())
(root / "model/chosen.json").write_text((root / "input/config/hyperparameters.json").read_text())
"""
LAST = 'print("still here", flush=True)\ntime.sleep(60)'

Program = Callable[[str], Path]


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("s3")


@pytest.fixture
def lake(s3: Any) -> Iterator[Lake]:
    s3.create_bucket(Bucket="lake", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    found = Lake("lake", s3)
    found.put("datasets/d1/train", b"rows")
    found.put("encoders/tiny/weights", b"numbers")
    yield found
    for key in list(found.keys("")):
        s3.delete_object(Bucket="lake", Key=key)
    s3.delete_bucket(Bucket="lake")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Writes a training program with this body."""

    def write(body: str) -> Path:
        path = tmp_path / "job.py"
        path.write_text(START + textwrap.dedent(body))
        return path

    return write


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """The program of an image answers SIGTERM with a handler of its own, which must not stay in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats and patience of a fraction of a second."""
    monkeypatch.setattr(worker, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(worker, "TERM_SECONDS", 0.3)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Hears what a program prints; an hour passes when it says that it is still here."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def hear(line: str) -> None:
        clock.now += 3_600.0 * (line == "still here")

    return hear


def request(**places: str) -> dict[str, Any]:
    """What the workflow asks for, in the shape of CreateTrainingJob."""
    where = {
        "dataset": "s3://lake/datasets/d1/",
        "encoder": "s3://lake/encoders/tiny/",
        "out": "s3://lake/runs/",
        **places,
    }
    return {
        "TrainingJobName": JOB,
        "HyperParameters": {"epochs": "2"},
        "InputDataConfig": [
            {"ChannelName": name, "DataSource": {"S3DataSource": {"S3Uri": where[name]}}}
            for name in ("dataset", "encoder")
        ],
        "OutputDataConfig": {"S3OutputPath": where["out"]},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }


def run(lake: Lake, program: Path, alive: Callable[[], bool] = lambda: True, **more: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    return worker.run(lake, request(**more), program, alive, lines.append), lines


def failure(lake: Lake, program: Path, alive: Callable[[], bool] = lambda: True, **more: Any) -> str:
    """The reason that a job ends with; nothing was uploaded."""
    with pytest.raises(TrainingFailed) as raised:
        run(lake, program, alive, **more)
    assert not [key for key in lake.keys("runs/") if key.endswith(".tar.gz")]
    return str(raised.value)


CHECKPOINTS = {"S3Uri": f"s3://lake/runs/{JOB}/checkpoints/", "LocalPath": "/opt/ml/checkpoints"}
STATE = """
kept = root / "checkpoints/state.pt"
before = kept.read_text() if kept.is_file() else ""
def write(text):
    (root / "checkpoints/.state.pt.new").write_text(text)
    (root / "checkpoints/.state.pt.new").replace(kept)
"""


def kept(lake: Lake) -> dict[str, bytes]:
    """The checkpoints in the lake by their names."""
    prefix = f"runs/{JOB}/checkpoints/"
    return {key.removeprefix(prefix): lake.get(key) for key in lake.keys(prefix)}


def test_checkpoints_travel_while_the_program_runs_and_come_back_with_the_next_attempt(
    lake: Lake, program: Program, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SYNC_SECONDS", 0.05)
    asked = {**request(), "CheckpointConfig": CHECKPOINTS}
    first = program(
        STATE
        + """
def last(*_):
    write("one two ")
    sys.exit(1)
signal.signal(signal.SIGTERM, last)
write("one ")
time.sleep(60)
"""
    )
    # Nobody waits any more as soon as the first checkpoint has arrived.
    with pytest.raises(TrainingFailed, match="no longer waits"):
        worker.run(lake, asked, first, lambda: kept(lake) != {"state.pt": b"one "}, lambda _: None)
    assert kept(lake) == {"state.pt": b"one two "}
    second = program(
        STATE
        + """
assert before == "one two ", before
write(before + "three")
(root / "model/done").touch()
"""
    )
    worker.run(lake, asked, second, lambda: True, lambda _: None)
    assert kept(lake) == {"state.pt": b"one two three"}


def test_a_network_that_is_away_for_a_moment_ends_no_training(
    lake: Lake, program: Program, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SYNC_SECONDS", 0.05)
    monkeypatch.setattr(worker, "PROGRESS_SECONDS", 0.0)
    away: list[str] = []

    def once(call: Callable[..., Any]) -> Callable[..., Any]:
        def first_away(*values: Any) -> Any:
            if call.__name__ not in away:
                away.append(call.__name__)
                raise EndpointConnectionError(endpoint_url="https://lake")
            return call(*values)

        return first_away

    monkeypatch.setattr(lake, "put_json", once(lake.put_json))
    monkeypatch.setattr(lake, "upload", once(lake.upload))
    body = program(
        STATE
        + """
write("one ")
print("progress 0.25 epoch 1 of 4", flush=True)
print("progress 0.50 epoch 2 of 4", flush=True)
time.sleep(60)
"""
    )
    asked = {**request(), "CheckpointConfig": CHECKPOINTS}
    # Nobody waits any more as soon as the checkpoint has arrived after all.
    with pytest.raises(TrainingFailed, match="no longer waits"):
        worker.run(lake, asked, body, lambda: kept(lake) != {"state.pt": b"one "}, lambda _: None)
    assert sorted(away) == ["put_json", "upload"]
    assert lake.get_json(progress_key(JOB))["share"] == 0.5


def test_the_program_gets_its_folders_and_its_model_is_handed_back(lake: Lake, program: Program) -> None:
    answer, _ = run(lake, program(COPY))
    place = f"s3://lake/runs/{JOB}/output/model.tar.gz"
    assert answer == {
        "TrainingJobName": JOB,
        "TrainingJobStatus": "Completed",
        "ModelArtifacts": {"S3ModelArtifacts": place},
    }
    with tarfile.open(fileobj=io.BytesIO(lake.get(f"runs/{JOB}/output/model.tar.gz"))) as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
        held = {name: file.read() for name, file in found.items() if file}
    assert held == {
        "chosen.json": b'{"epochs": "2"}',
        "dataset-train": b"rows",
        "encoder-weights": b"numbers",
    }


def test_every_line_is_told_in_order_from_both_streams(lake: Lake, program: Program) -> None:
    body = """
    for number in range(500):
        print(number, file=sys.stderr if number % 2 else sys.stdout, flush=True)
    sys.stdout.buffer.write(b"caf\\xe9\\n")
    """
    _, lines = run(lake, program(body))
    assert lines == [*map(str, range(500)), "caf�"]


def test_progress_is_kept_for_whoever_waits_elsewhere(
    lake: Lake, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PROGRESS_SECONDS", 0.0)
    body = """
    print("loading", flush=True)
    print("progress 0.25 epoch 1 of 4", flush=True)
    print("progress is slow today", flush=True)
    """
    run(lake, program(body))
    assert lake.get_json(progress_key(JOB)) == {"share": 0.25, "message": "epoch 1 of 4"}


def test_progress_is_written_now_and_then_but_its_end_always(lake: Lake, program: Program) -> None:
    puts: list[Any] = []
    put_json = lake.put_json

    def counting(key: str, value: Any) -> None:
        puts.append(value["share"])
        put_json(key, value)

    lake.put_json = counting  # type: ignore[method-assign]
    run(lake, program('for k in range(101): print(f"progress {k / 100:.2f} batch {k}", flush=True)'))
    assert puts[0] == 0.0
    assert puts[-1] == 1.0
    assert len(puts) < 10
    assert lake.get_json(progress_key(JOB)) == {"share": 1.0, "message": "batch 100"}


def test_a_program_that_says_why_it_failed_is_believed(lake: Lake, program: Program) -> None:
    body = """
    print("many other lines", flush=True)
    (root / "output/failure").write_text("the dataset has no rows: add some")
    sys.exit(1)
    """
    assert failure(lake, program(body)) == "the dataset has no rows: add some"


def test_a_reason_in_a_strange_encoding_is_still_told(lake: Lake, program: Program) -> None:
    body = '(root / "output/failure").write_bytes(b"caf\\xe9 is closed"); sys.exit(1)'
    assert failure(lake, program(body)) == "caf� is closed"


def test_a_program_that_crashes_leaves_its_last_lines(lake: Lake, program: Program) -> None:
    body = """
    for number in range(100): print("line", number, flush=True)
    raise MemoryError("no room for the batch")
    """
    reason = failure(lake, program(body))
    assert reason.splitlines()[-1] == "MemoryError: no room for the batch"
    assert "Traceback (most recent call last):" in reason
    assert "line 99" in reason
    assert len(reason.splitlines()) == 40


@pytest.mark.parametrize(
    ("body", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -9)], ids=["silent", "killed"]
)
def test_a_program_that_says_nothing_leaves_its_exit_code(lake: Lake, program: Program, body: str, code: int) -> None:
    assert failure(lake, program(body)) == f"the training program ended with exit code {code}"


def test_a_program_past_its_time_is_told_to_stop_and_the_limit_is_the_reason(
    lake: Lake, program: Program, late: Callable[[str], None]
) -> None:
    body = """
    def stop(*_):
        (root / "output/failure").write_text("stopped from outside")
        print("stopping", flush=True)
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    """
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        late(line)

    with pytest.raises(TrainingFailed, match=r"the job reached its time limit \(MaxRuntimeInSeconds\)"):
        worker.run(lake, request(), program(textwrap.dedent(body) + LAST), lambda: True, tell)
    assert lines == ["still here", "stopping"]


@pytest.mark.usefixtures("quick")
def test_a_program_that_will_not_stop_is_killed(
    lake: Lake, program: Program, late: Callable[[str], None], tmp_path: Path
) -> None:
    body = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); Path({str(tmp_path / 'id')!r}).write_text(str(os.getpid()))"
    with pytest.raises(TrainingFailed, match="time limit"):
        worker.run(lake, request(), program(f"{body}\n{LAST}"), lambda: True, late)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)


def test_a_program_that_closes_its_output_is_still_watched(
    lake: Lake, program: Program, late: Callable[[str], None]
) -> None:
    body = 'print("still here", flush=True); os.close(1); os.close(2); time.sleep(60)'
    with pytest.raises(TrainingFailed, match="time limit"):
        worker.run(lake, request(), program(body), lambda: True, late)


def test_a_program_that_leaves_a_child_behind_has_ended_all_the_same(
    lake: Lake, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LAST_SECONDS", 1.0)
    body = """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    sys.exit(7)
    """
    reason = failure(lake, program(body))
    os.kill(int(reason), signal.SIGKILL)  # its last line is all that the program said


@pytest.mark.usefixtures("quick")
def test_a_job_that_nobody_waits_for_ends(lake: Lake, program: Program) -> None:
    beats: list[bool] = []

    def alive() -> bool:
        beats.append(len(beats) < 3)
        return beats[-1]

    assert failure(lake, program(LAST), alive) == "the workflow no longer waits for this job"
    assert beats == [True, True, True, False]


@pytest.mark.usefixtures("quick")
def test_a_heartbeat_that_is_refused_ends_the_program_and_is_not_hidden(lake: Lake, program: Program) -> None:
    lines: list[str] = []

    def refused() -> bool:
        if lines:
            raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "SendTaskHeartbeat")
        return True

    body = f"print(os.getpid(), flush=True)\n{LAST}"
    with pytest.raises(ClientError, match="AccessDenied"):
        worker.run(lake, request(), program(body), refused, lines.append)
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[0]), 0)


@pytest.mark.usefixtures("quick")
def test_the_heart_beats_while_files_travel_both_ways(
    lake: Lake, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    beaten = threading.Event()
    patient: list[bool] = []

    def alive() -> bool:
        beaten.set()
        return True

    def slow(call: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*values: Any) -> Any:
            beaten.clear()
            patient.append(beaten.wait(20))
            return call(*values)

        return wait

    monkeypatch.setattr(lake, "download_folder", slow(lake.download_folder))
    monkeypatch.setattr(lake, "upload", slow(lake.upload))
    run(lake, program(COPY), alive)
    assert patient == [True, True, True]


@pytest.mark.parametrize("place", ["dataset", "encoder", "out"])
def test_another_bucket_is_refused_before_any_work(lake: Lake, program: Program, tmp_path: Path, place: str) -> None:
    body = f"Path({str(tmp_path / 'ran')!r}).touch()"
    reason = failure(lake, program(body), **{place: "s3://elsewhere/datasets/d1/"})
    assert reason == "this worker reads and writes lake only, and was asked to use elsewhere"
    assert not (tmp_path / "ran").exists()


def test_nothing_is_left_on_the_disk(
    lake: Lake, program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    run(lake, program(COPY))
    failure_of = program("sys.exit(1)")
    lake.s3.delete_object(Bucket="lake", Key=f"runs/{JOB}/output/model.tar.gz")
    failure(lake, failure_of)
    assert list(scratch.iterdir()) == []


@pytest.fixture
def states() -> Iterator[Stubber]:
    """The workflow, which has one job to give."""
    with Stubber(boto3.client("stepfunctions")) as stub:
        give(stub, request())
        yield stub
        stub.assert_no_pending_responses()


def give(states: Stubber, work: dict[str, Any]) -> None:
    asked = {"activityArn": "arn:queue", "workerName": "desk"}
    states.add_response("get_activity_task", {"taskToken": "token-1", "input": json.dumps(work)}, asked)


def serve(lake: Lake, states: Stubber, program: Path, once: bool = True) -> list[str]:
    lines: list[str] = []
    worker.serve(lake, Activity("arn:queue", states.client), program, "desk", lines.append, once)
    return lines


def test_a_worker_answers_with_the_model(lake: Lake, program: Program, states: Stubber) -> None:
    states.add_response("send_task_success", {}, {"taskToken": "token-1", "output": ANY})
    assert serve(lake, states, program("print('training')")) == [f"{JOB}: taken", "training", f"{JOB}: done"]


@pytest.mark.parametrize("stopped", [SystemExit, KeyboardInterrupt])
def test_a_worker_that_is_stopped_keeps_the_last_checkpoint_and_hands_the_job_on(
    lake: Lake, program: Program, monkeypatch: pytest.MonkeyPatch, stopped: type[BaseException]
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_SECONDS", 60.0)
    body = program(
        STATE
        + """
def last(*_):
    write("the very last")
    sys.exit(1)
signal.signal(signal.SIGTERM, last)
print("ready", flush=True)
time.sleep(60)
"""
    )

    def tell(line: str) -> None:
        if line == "ready":
            raise stopped  # as the handlers of SIGTERM and SIGINT do

    with Stubber(boto3.client("stepfunctions")) as stub:
        give(stub, {**request(), "CheckpointConfig": CHECKPOINTS})
        told = {"taskToken": "token-1", "error": "Interrupted", "cause": "the worker was stopped"}
        stub.add_response("send_task_failure", {}, told)
        with pytest.raises(stopped):
            worker.serve(lake, Activity("arn:queue", stub.client), body, "desk", tell, once=True)
        stub.assert_no_pending_responses()
    assert kept(lake) == {"state.pt": b"the very last"}


def test_a_worker_answers_with_the_reason_of_a_failure(lake: Lake, program: Program, states: Stubber) -> None:
    body = '(root / "output/failure").write_text("no rows"); sys.exit(1)'
    told = {"taskToken": "token-1", "error": "TrainingFailed", "cause": "no rows"}
    states.add_response("send_task_failure", {}, told)
    assert serve(lake, states, program(body)) == [f"{JOB}: taken", f"{JOB}: failed: no rows"]


def test_a_worker_answers_when_the_lake_lacks_what_the_job_needs(lake: Lake, program: Program, states: Stubber) -> None:
    lake.s3.delete_object(Bucket="lake", Key="encoders/tiny/weights")
    told = {"taskToken": "token-1", "error": "NotFound", "cause": "there is nothing under s3://lake/encoders/tiny/"}
    states.add_response("send_task_failure", {}, told)
    serve(lake, states, program(COPY))


@pytest.mark.parametrize(
    ("body", "call"), [("", "send_task_success"), ("sys.exit(1)", "send_task_failure")], ids=["done", "failed"]
)
def test_a_worker_lives_on_when_its_answer_comes_too_late(
    lake: Lake, program: Program, states: Stubber, body: str, call: str
) -> None:
    states.add_client_error(call, "TaskTimedOut")
    assert serve(lake, states, program(body))[-1] == f"{JOB}: nobody waits for its answer any more"


@pytest.mark.usefixtures("quick")
def test_a_worker_lives_on_when_nobody_waits_for_the_job_any_more(
    lake: Lake, program: Program, states: Stubber
) -> None:
    states.add_client_error("send_task_heartbeat", "TaskTimedOut")
    states.add_client_error("send_task_failure", "TaskTimedOut")
    lines = serve(lake, states, program(LAST))
    assert lines[-2:] == [
        f"{JOB}: failed: the workflow no longer waits for this job",
        f"{JOB}: nobody waits for its answer any more",
    ]


def test_a_worker_takes_the_next_job_after_a_failure(lake: Lake, program: Program, states: Stubber) -> None:
    told = {"taskToken": "token-1", "error": "TrainingFailed", "cause": ANY}
    states.add_response("send_task_failure", {}, told)
    states.add_response("get_activity_task", {})  # a poll without work
    give(states, request())
    states.add_response("send_task_failure", {}, told)
    with pytest.raises(UnStubbedResponseError):  # it polls again, and the workflow has nothing more to say
        serve(lake, states, program("sys.exit(1)"), once=False)


def test_a_worker_asked_for_one_poll_ends_without_work(lake: Lake, program: Program) -> None:
    with Stubber(boto3.client("stepfunctions")) as stub:
        stub.add_response("get_activity_task", {})
        assert serve(lake, stub, program("")) == []


def test_a_batch_job_finds_its_request_in_its_command(
    lake: Lake, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.main(program(COPY + "print('training')"), {}, json.dumps(request()))
    assert f"runs/{JOB}/output/model.tar.gz" in list(lake.keys("runs/"))
    assert capsys.readouterr().out == "training\n"


def test_of_several_batch_nodes_the_main_one_hands_over_the_model(lake: Lake, program: Program) -> None:
    nodes = {"AWS_BATCH_JOB_MAIN_NODE_INDEX": "0"}
    worker.main(program(""), {**nodes, "AWS_BATCH_JOB_NODE_INDEX": "1"}, json.dumps(request()))
    assert list(lake.keys("runs/")) == []
    worker.main(program(COPY), {**nodes, "AWS_BATCH_JOB_NODE_INDEX": "0"}, json.dumps(request()))
    assert list(lake.keys("runs/")) == [f"runs/{JOB}/output/model.tar.gz"]


def test_a_batch_job_that_fails_ends_with_an_error(lake: Lake, program: Program) -> None:
    with pytest.raises(TrainingFailed, match="exit code 3"):
        worker.main(program("sys.exit(3)"), {}, json.dumps(request()))


def test_without_a_request_the_image_becomes_the_program_that_sagemaker_wants(program: Program, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = program('(root / "model/ran").write_text(str(os.getpid())); sys.exit(5)')
    environ = {**os.environ, "RETRUE_ML_ROOT": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-m", "retrue.worker", str(path), "train"], env=environ)
    assert process.wait(60) == 5
    assert (tmp_path / "model/ran").read_text() == str(process.pid)  # so that SIGTERM reaches it
